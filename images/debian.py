"""Makes file systems from Debian packages, for either architecture, and runs nothing of them.

apt finds the packages and checks their signatures; dpkg-deb unpacks them. No maintainer script
runs, so arm64 needs no emulator: this module does the little that we need of them.
"""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.stack import places

from images.commands import ImagesError, run

SUITE = "trixie"

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_ALWAYS = ("base-files", "ca-certificates", "coreutils", "dash", "netbase", "tzdata")
_LEFT_OUT = frozenset({"debconf", "debianutils", "dpkg", "mawk", "openssl", "tar"})
"""Only maintainer scripts use them."""

_USERS = "root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
_GROUPS = "root:x:0:\nnogroup:x:65534:\n"


def file_system(packages: Sequence[str], arch: str, left_out: str = "(?!)") -> Path:
    """Return a tar of Debian's smallest system with ``packages``; made once, kept in the cache.

    ``left_out`` is a pattern of names of packages that they ask for and can do without.
    """
    wanted = sorted({*_ALWAYS, *packages})
    source = hashlib.sha256(f"{wanted}{left_out}{Path(__file__).read_text()}".encode())
    directory = places.cache() / "images" / f"debian-{SUITE}-{arch}-{source.hexdigest()[:12]}"
    archive = directory / "rootfs.tar"
    with places.locked(f"images-debian-{arch}"):
        if not archive.exists():
            _need_apt()
            print(f"unpacking Debian {SUITE} ({arch}): {' '.join(packages)}", flush=True)
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            _unpack(_download(wanted, arch, directory), left_out, directory / "root")
            _pack(directory / "root", archive)
            for surplus in (directory / "root", directory / "apt"):
                shutil.rmtree(surplus)
    return archive


def _need_apt() -> None:
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if not _KEYRING.exists():
        missing.append(str(_KEYRING))
    if missing:
        raise ImagesError(
            f"a base image of Debian's packages needs {', '.join(missing)};"
            " name an image that you have instead: make images BASE=registry/python:3.13-slim"
        )


def _download(packages: list[str], arch: str, directory: Path) -> list[Path]:
    """Fetch the packages with what they depend on, as if onto an empty system."""
    apt = directory / "apt"
    (apt / "lists" / "partial").mkdir(parents=True)
    (apt / "archives" / "partial").mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(
        "".join(
            f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n"
            for mirror, suite in (
                (_mirror("debian"), SUITE),
                (_mirror("debian"), f"{SUITE}-updates"),
                (_mirror("debian-security"), f"{SUITE}-security"),
            )
        )
    )
    (apt / "apt.conf").write_text(
        f'APT {{ Architecture "{arch}"; Architectures {{ "{arch}"; }};'
        ' Install-Recommends "false"; Sandbox::User "root"; }\n'
        f'Dir {{ State "{apt}"; State::status "{apt}/status"; State::lists "{apt}/lists";'
        f' Cache "{apt}"; Cache::archives "{apt}/archives";'
        f' Etc::sourcelist "{apt}/sources.list"; Etc::sourceparts "/dev/null"; }}\n'
        'Acquire::Languages "none";\n'
    )
    private = {"APT_CONFIG": str(apt / "apt.conf"), "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-q"], environment=private)
    run(["apt-get", "install", "-qy", "--download-only", *packages], environment=private)
    return sorted((apt / "archives").glob("*.deb"))


def _mirror(name: str) -> str:
    """Return where this machine's own packages of Debian's archive ``name`` come from."""
    files = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    for file in files:
        if file.is_file() and (
            found := re.search(
                rf"^(?:URIs:\s*|deb\s+(?:\[[^]]*\]\s+)?)(\S+/{name})/?\s",
                file.read_text(),
                re.MULTILINE,
            )
        ):
            return found[1]
    return f"http://deb.debian.org/{name}"


def _unpack(archives: list[Path], left_out: str, root: Path) -> None:
    """Unpack the packages, and do what their scripts would do."""
    root.mkdir()
    installed = []
    for archive in archives:
        fields = run(["dpkg-deb", "--field", str(archive)])
        name = fields.partition("\n")[0].removeprefix("Package: ")
        if name in _LEFT_OUT or re.fullmatch(left_out, name):
            continue
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE
        ) as unpacking:
            subprocess.run(
                ["tar", "--extract", "--no-same-owner", "--directory", str(root)],
                stdin=unpacking.stdout,
                check=True,
            )
        if unpacking.returncode:
            raise ImagesError(f"dpkg-deb cannot read {archive.name}")
        installed.append(
            fields.replace("\n", "\nStatus: install ok installed\n", 1).rstrip() + "\n\n"
        )
    status = root / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True, exist_ok=True)
    status.write_text("".join(sorted(installed)))
    for name in ("run", "lock"):
        (root / "var" / name).rmdir()
    (root / "var/run").symlink_to("../run")
    (root / "etc/passwd").write_text(_USERS)
    (root / "etc/group").write_text(_GROUPS)
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    trusted = root / "usr/lib/ssl/cert.pem"  # where OpenSSL looks
    trusted.parent.mkdir(parents=True, exist_ok=True)
    trusted.symlink_to("/etc/ssl/certs/ca-certificates.crt")
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    bundle.write_text("".join(certificate.read_text() for certificate in certificates))


def _pack(root: Path, archive: Path) -> None:
    part = archive.with_suffix(".part")
    run(
        [
            "tar", "--create", "--file", str(part), "--directory", str(root), "--sort=name",
            "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", ".",
        ]
    )  # fmt: skip
    part.rename(archive)
