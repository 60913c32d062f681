"""Where things lie: the repository, the cache, private directories, free ports."""

import contextlib
import fcntl
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / "build"

_SHARED_MEMORY = Path("/dev/shm")
MEMORY = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
"""For files that need no disk and are many; None = where temporary files are."""

_PORTS = range(20_000, 32_000)
"""Below the range from which Linux takes the ports of outgoing connections."""

_port_claims: list[int] = []
"""Open files whose locks are held until this process ends."""


def skip_without_parts() -> None:
    """Skip the test that needs a real part where DEROPS_WITHOUT_PARTS is set.

    Whatever finds a part calls this first: no list of tests says which need one.
    """
    if os.environ.get("DEROPS_WITHOUT_PARTS"):
        from pytest import skip  # noqa: PT013  # a stack by itself has no need of it

        skip("needs a real part: make test", allow_module_level=True)


def cache() -> Path:
    """Return the user's cache directory of this project; it outlives clones and ``make clean``.

    What is built or unpacked for tests lies here: who asks for it needs a real part.
    """
    skip_without_parts()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "derops"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextlib.contextmanager
def locked(name: str) -> Iterator[int]:
    """Keep other processes out until the block ends; say so where others keep us out.

    Yields:
        The open lock: whoever inherits it keeps others out too, also after we are gone.
    """
    with (cache() / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that has {lock.name}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


@contextlib.contextmanager
def private_directory(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """Yield a new directory; it goes away afterwards unless DEROPS_STACK_KEEP is set.

    Others may pass through but not look around: PostgreSQL below it runs as a different user.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"derops-{purpose}-", dir=parent))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        remove(directory)


def remove(directory: Path) -> None:
    """Remove a private directory, unless it is to be kept for a look."""
    if os.environ.get("DEROPS_STACK_KEEP"):
        print(f"kept {directory}", flush=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)


def free_port() -> int:
    """Return a port that nobody listens on and no other stack on this machine was given.

    The claim holds until this process ends, so that a part keeps its port over restarts.
    """
    claims = Path(tempfile.gettempdir()) / f"derops-ports-{os.getuid()}"
    claims.mkdir(exist_ok=True)
    for port in random.sample(_PORTS, len(_PORTS)):
        claim = os.open(claims / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(claim)
            continue
        _port_claims.append(claim)
        return port
    raise RuntimeError(f"no free port from {_PORTS.start} to {_PORTS.stop}")
