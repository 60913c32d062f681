"""What SQLite leaves to its user, so that files outlive loss of power."""

import os
from contextlib import suppress
from pathlib import Path


def make_directory(path: Path) -> None:
    """Make a directory and those above it; return once their names are on the disk.

    SQLite syncs the directory of its file, not the ones above that: a new one could be lost, with
    all that is in it.
    """
    path.mkdir(parents=True, exist_ok=True)
    device = path.stat().st_dev
    for above in path.absolute().parents:
        if above.stat().st_dev != device:
            break
        with suppress(PermissionError):  # one that we may not read is not one that we made
            sync(above)


def sync_recovered(database: Path) -> None:
    """Make durable what opening an SQLite file in WAL mode brought back.

    A process that is killed between writing and syncing leaves what the next one reads, and what
    loss of power still takes away: nobody may hear of it before this returns.
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
