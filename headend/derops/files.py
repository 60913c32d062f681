"""What SQLite leaves to its user: files that outlive loss of power, and are nobody else's."""

import os
import stat
from contextlib import suppress
from pathlib import Path


def make_directory(path: Path) -> None:
    """Make a directory and those above it; return once their names are on the disk.

    SQLite syncs the directory of its file, not the ones above that: a new one could be lost, with
    all that is in it. A new directory is its owner's alone; one that was there may be meant for
    others as well, and stays as it is.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    device = path.stat().st_dev
    for above in path.absolute().parents:
        if above.stat().st_dev != device:
            break
        with suppress(PermissionError):  # one that we may not read is not one that we made
            sync(above)


def make_private(database: Path) -> None:
    """Make an SQLite file that is not there; let nobody but its owner read it, new or not.

    SQLite gives the same mode to the files that it makes beside it.
    """
    try:
        # Only a new one is opened: to close it would give up the locks of its connections.
        os.close(os.open(database, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        for suffix in ("", "-wal", "-shm"):
            _restrict(database.with_name(f"{database.name}{suffix}"), 0o600)


def _restrict(path: Path, mode: int) -> None:
    # Only its owner can restrict a file; one beside a database need not be there.
    with suppress(PermissionError, FileNotFoundError):
        if stat.S_IMODE(path.stat().st_mode) & ~mode:
            path.chmod(mode)


def sync_recovered(database: Path) -> None:
    """Make durable what opening an SQLite file in WAL mode brought back.

    A process that is killed between a write and its sync leaves data that the next process reads
    and that a loss of power still takes away. Nobody may hear of it before this returns.
    """
    with suppress(FileNotFoundError):
        sync(database.with_name(f"{database.name}-wal"))


def sync(path: Path) -> None:
    """Return once a file's content, or a directory's names, are on the disk.

    Never for an SQLite database itself: closing the file gives up the locks of its connections.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
