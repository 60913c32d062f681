"""promtool, which knows what Prometheus makes of our metrics."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.stack import places
from tests.stack.processes import StackError


def find_promtool() -> Path:
    """Return promtool: on PATH, or out of Debian's package, once for this user.

    The package is unpacked and not installed: that would start a server, and change the machine.
    """
    on_path = shutil.which("promtool")
    if on_path:
        return Path(on_path)
    folder = places.cache() / "prometheus"
    program = folder / "usr/bin/promtool"
    with places.locked("prometheus"):
        if not program.exists():
            if shutil.which("apt-get") is None:
                raise StackError(
                    "promtool is not on PATH, and there is no apt-get to fetch it with"
                )
            print("unpacking promtool from Debian's prometheus into the cache", flush=True)
            with places.private_directory("prometheus") as directory:
                _unpack(directory, folder)
    return program


def _unpack(directory: Path, folder: Path) -> None:
    get = ["apt-get", "-o", "DPkg::Lock::Timeout=600", "-q"]
    if _run([*get, "download", "prometheus"], directory):  # no list of packages yet
        _run([*get, "update"], directory)
        if failed := _run([*get, "download", "prometheus"], directory):
            raise StackError(f"apt-get download prometheus failed\n{failed}")
    (package,) = directory.glob("prometheus_*.deb")
    part = directory / "unpacked"
    if failed := _run(["dpkg-deb", "--extract", str(package), str(part)], directory):
        raise StackError(f"dpkg-deb failed\n{failed}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(part / "usr/bin", folder / "usr/bin")


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
