"""TimescaleDB for tests: the one on this machine, or Debian's in a directory of its own.

Debian has TimescaleDB from trixie on, in its Apache edition. Its packages are never mixed into the
machine: they are unpacked below the cache and entered by chroot, which only root can.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.stack import places
from tests.stack.postgres import Installation, find_installation
from tests.stack.processes import StackError

_SUITE = "trixie"
_MAJOR = 17
_PACKAGES = f"postgresql-{_MAJOR},postgresql-{_MAJOR}-timescaledb"
_PRELOAD = ("-c", "shared_preload_libraries=timescaledb", "-c", "timescaledb.telemetry_level=off")


def find_timescale() -> Installation:
    """Return the PostgreSQL that has TimescaleDB; the first time takes a minute."""
    own = find_installation()
    if _has_extension(own.programs):
        return Installation(programs=own.programs, user=own.user, options=_PRELOAD)
    return Installation(
        programs=Path(f"/usr/lib/postgresql/{_MAJOR}/bin"),
        user="postgres",
        root=_unpack(),
        options=_PRELOAD,
    )


def _has_extension(programs: Path) -> bool:
    pg_config = programs / "pg_config"
    if not pg_config.exists():
        return False
    done = subprocess.run([pg_config, "--sharedir"], capture_output=True, text=True, check=False)
    return (Path(done.stdout.strip()) / "extension" / "timescaledb.control").exists()


def _unpack() -> Path:
    root = places.cache() / f"timescaledb-{_SUITE}"
    done = root / ".complete"
    with places.locked("timescaledb"):
        if done.exists():
            return root
        if os.getuid() != 0:
            raise StackError(
                "TimescaleDB is not installed, and only root can put it beside the system;"
                " install the extension timescaledb for the PostgreSQL on PATH"
            )
        print(f"unpacking TimescaleDB from Debian {_SUITE} into the cache (a minute)", flush=True)
        if shutil.which("debootstrap") is None:
            _run(["apt-get", "update", "-q"])
            _run(["apt-get", "install", "-qy", "--no-install-recommends", "debootstrap"])
        shutil.rmtree(root, ignore_errors=True)
        _run(
            [
                "debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root),
                mirror(),
            ]
        )  # fmt: skip
        done.touch()
    return root


def mirror() -> str:
    """Return the mirror that this machine's own packages come from."""
    files = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    for file in files:
        if not file.is_file():
            continue
        found = re.search(
            r"^(?:URIs:\s*|deb\s+(?:\[[^]]*\]\s+)?)(\S+/debian)/?\s*",
            file.read_text(),
            re.MULTILINE,
        )
        if found:
            return found[1]
    return "http://deb.debian.org/debian"


def _run(command: list[str]) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"{command[0]} failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
