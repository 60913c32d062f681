"""SunSpec batteries that are nothing of ours: the program in ``tests/sunspecserver``."""

import contextlib
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.stack import places
from tests.stack.processes import StackError

SOURCES = places.REPOSITORY / "tests" / "sunspecserver"


def program() -> Path:
    """Return the program; build it first where the cache does not have this state."""
    cargo = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo/bin"))
    if cargo is None:
        raise StackError("cargo is not on PATH: it builds sunspecserver, see https://rustup.rs")
    digest = hashlib.sha256()
    for file in (SOURCES / "Cargo.lock", SOURCES / "Cargo.toml", SOURCES / "src" / "main.rs"):
        digest.update(file.read_bytes())
    directory = places.cache() / f"sunspecserver-{digest.hexdigest()[:16]}"
    with places.locked("sunspecserver"):
        if not directory.exists():
            scratch = directory.with_suffix(".part")
            command = [cargo, "build", "--release", "--locked", "--target-dir", str(scratch)]
            done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True)
            if done.returncode:
                raise StackError(f"{' '.join(command)}: {done.stderr.strip()}")
            directory.mkdir()
            shutil.copy(scratch / "release" / "sunspecserver", directory)
            shutil.rmtree(scratch)
    return directory / "sunspecserver"


@contextlib.contextmanager
def batteries(address: str, *units: int) -> Iterator[None]:
    """Have a battery of 10 kW at each unit of an address, ``host:port``."""
    command = [str(program()), address, *map(str, units)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise StackError(f"{' '.join(command)} ended with {process.wait()}")
            yield
        finally:
            process.terminate()
