"""Programs out of Debian's packages, for tests: unpacked into the cache, never installed.

To install a package would start its server, and change the machine.
"""

import os
import shutil
import subprocess
from pathlib import Path

from tests.stack import places
from tests.stack.processes import StackError


def find_program(name: str, package: str, path: str) -> Path:
    """Return a program: on PATH, or out of Debian's package, once for this user.

    Args:
        name: Of the program.
        package: That it is in; what it links to must be on the machine.
        path: Where it is in there, such as ``usr/bin/promtool``.

    Raises:
        StackError: It is not there, and cannot be had; the message has what was said.
    """
    places.skip_without_parts()
    if on_path := shutil.which(name):
        return Path(on_path)
    folder = places.cache() / package
    program = folder / path
    with places.locked(package):
        if not program.exists():
            if shutil.which("apt-get") is None:
                raise StackError(f"{name} is not on PATH, and there is no apt-get to fetch it with")
            print(f"unpacking {name} from Debian's {package} into the cache", flush=True)
            with places.private_directory(package) as directory:
                _unpack(package, directory, folder, Path(path).parent)
    return program


def _unpack(package: str, directory: Path, folder: Path, programs: Path) -> None:
    get = ["apt-get", "-o", "DPkg::Lock::Timeout=600", "-q"]
    if _run([*get, "download", package], directory):  # no list of packages yet
        _run([*get, "update"], directory)
        if failed := _run([*get, "download", package], directory):
            raise StackError(f"apt-get download {package} failed\n{failed}")
    (archive,) = directory.glob(f"{package}_*.deb")
    part = directory / "unpacked"
    if failed := _run(["dpkg-deb", "--extract", str(archive), str(part)], directory):
        raise StackError(f"dpkg-deb failed\n{failed}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(part / programs, folder / programs)


def _run(command: list[str], directory: Path) -> str:
    """Return what a command that failed said; empty = it did not."""
    done = subprocess.run(
        command,
        cwd=directory,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stdout + done.stderr)[-2000:] or "no word" if done.returncode else ""
