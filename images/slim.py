"""Reduces the files of a base image to what the programs need. Runs in the build, in the base.

``slim.py ROOT PYTHON_MINOR``: takes away package managers, pip, documentation, caches and the right
to become root; compiles the standard library; adds the user that the images run as. It is the same
for Debian's own Python and for the one below /usr/local of the official python images.
"""

import compileall
import py_compile
import shutil
import sys
from pathlib import Path

UID = 65532

_PACKAGES = (
    "adduser", "apt", "debconf", "debian-archive-keyring", "dpkg", "gcc-14-base", "libapt-pkg7.0",
    "login", "login.defs", "mount", "openssl", "passwd", "perl-base", "sqv", "util-linux",
)  # fmt: skip
"""They install packages, compile, or let somebody become somebody else."""

_SURPLUS = (
    "etc/apt", "etc/dpkg", "etc/*-", "etc/.pwd.lock",
    "root/*", "root/.*", "run/*", "tmp/*", "tmp/.*", "var/backups/*", "var/cache/*", "var/lib/apt",
    "var/lib/dpkg/*-old", "var/lib/dpkg/info", "var/lib/dpkg/lock*", "var/lib/dpkg/triggers",
    "var/lib/dpkg/updates", "var/log/*", "var/tmp/*",
    "usr/share/doc-base", "usr/share/info", "usr/share/lintian", "usr/share/locale",
    "usr/share/man",
    "usr/bin/pdb*", "usr/bin/py3*", "usr/bin/pydoc*", "usr/bin/pygettext*",
    "usr/lib/python3*/ensurepip", "usr/lib/python3*/idlelib", "usr/lib/python3*/test",
    "usr/local/bin/2to3*", "usr/local/bin/idle*", "usr/local/bin/pip*", "usr/local/bin/pydoc*",
    "usr/local/bin/*config", "usr/local/lib/pkgconfig", "usr/local/lib/*.a",
    "usr/local/lib/python3*/config-*", "usr/local/lib/python3*/ensurepip",
    "usr/local/lib/python3*/idlelib", "usr/local/lib/python3*/lib2to3",
    "usr/local/lib/python3*/site-packages/*", "usr/local/lib/python3*/test",
    "usr/local/lib/python3*/tkinter", "usr/local/lib/python3*/turtledemo",
)  # fmt: skip


def main(root: Path, minor: str) -> None:
    """Do it all to the files below ``root``."""
    found = f"{sys.version_info.major}.{sys.version_info.minor}"
    if found != minor:
        sys.exit(
            f"the base image has Python {found}, the packages were chosen for {minor}:"
            f" take another BASE, or say BASE_PYTHON={found}"
        )
    remove_surplus(root)
    add_user(root)
    python = root / "usr/bin/python3"
    if not python.is_symlink():  # the scripts name it there
        python.symlink_to("../local/bin/python3")
    compile_library(root)
    for path in root.rglob("*"):
        mode = path.lstat().st_mode
        if mode & 0o6000 and not path.is_symlink():
            path.chmod(mode & 0o1777)


def remove_surplus(root: Path) -> None:
    """Remove what only builds, installs, explains or remembers."""
    for name in _PACKAGES:
        remove_package(root, name)
    for pattern in (*_SURPLUS, "**/__pycache__"):
        for path in sorted(root.glob(pattern)):
            remove(path)
    for path in root.glob("usr/local/include/python3*/*"):
        if path.name != "patchlevel.h":  # the bill of materials takes the version from it
            remove(path)
    for path in root.glob("usr/share/doc/**/*"):
        if not path.is_dir() and path.name != "copyright":  # the licences must stay with the files
            path.unlink()


def remove_package(root: Path, name: str) -> None:
    """Remove a Debian package's files, and its entry in the list of what is installed."""
    status = root / "var/lib/dpkg/status"
    if not status.exists():
        return
    stanzas = status.read_text().split("\n\n")
    kept = [stanza for stanza in stanzas if not stanza.startswith(f"Package: {name}\n")]
    if len(kept) == len(stanzas):
        return
    status.write_text("\n\n".join(kept))
    for listing in (root / "var/lib/dpkg/info").glob(f"{name}[.:]*list"):
        for line in listing.read_text().splitlines():
            path = root / line.lstrip("/")
            if not path.is_dir() or path.is_symlink():
                path.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, or a directory with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def add_user(root: Path) -> None:
    """Give the images' user a name, so that programs that ask for it get one."""
    for name, line in (
        ("passwd", f"derops:x:{UID}:{UID}:derops:/tmp:/usr/sbin/nologin\n"),
        ("group", f"derops:x:{UID}:\n"),
    ):
        file = root / "etc" / name
        if line not in (text := file.read_text()):
            file.write_text(text + line)


def compile_library(root: Path) -> None:
    """Compile the standard library once: a read-only root would compile it at every start."""
    for directory in [*root.glob("usr/lib/python3*"), *root.glob("usr/local/lib/python3*")]:
        compiled = compileall.compile_dir(
            directory,
            quiet=1,
            workers=0,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            stripdir=str(root),
            prependdir="/",
        )
        if not compiled:
            sys.exit(f"{directory} does not compile")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
