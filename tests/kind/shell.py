"""Programs that others wrote: run to their end, their failure told."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.kind.errors import ClusterError
from tests.stack import places

_TAIL = 3000

_locks: set[int] = set()
"""Locks that each program inherits: where we are killed, the next of us waits for its end."""


@contextmanager
def alone() -> Iterator[None]:
    """Keep out all others that make or end clusters, and so do the programs that we run."""
    with places.locked("cluster") as lock:
        _locks.add(lock)
        try:
            yield
        finally:
            _locks.remove(lock)


def run(
    command: Sequence[str | Path],
    *,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    timeout_seconds: float | None = None,
) -> str:
    """Run a program and return what it printed.

    Raises:
        ClusterError: It failed, or did not end in time; the text has the end of what it said.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=directory,
            env=os.environ | dict(environment or {}),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout_seconds,
            pass_fds=tuple(_locks),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{' '.join(words[:4])}: no end after {timeout_seconds} s") from error
    except OSError as error:
        raise ClusterError(f"{words[0]} cannot be run: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise ClusterError(f"{' '.join(words[:4])} failed\n{said[-_TAIL:]}")
    return done.stdout.decode(errors="replace")


def succeeds(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float | None = None,
) -> bool:
    """Tell whether a program can be run and ends well."""
    try:
        run(command, environment=environment, timeout_seconds=timeout_seconds)
    except ClusterError:
        return False
    return True
