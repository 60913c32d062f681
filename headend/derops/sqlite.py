"""SQLite files of ours: all are opened here, each with the promises that its store needs."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from derops.errors import SchemaTooNewError
from derops.files import make_private, sync_recovered

BUSY_SECONDS = 5.0
"""For how long a statement waits for another connection's lock; sqlite3's own default."""


def connect(
    path: Path, pragmas: Sequence[str], *, create: bool = True, busy_seconds: float = BUSY_SECONDS
) -> sqlite3.Connection:
    """Open a file that only its owner may read; make durable what a crash left in its log.

    Args:
        path: The file; its directory is there.
        pragmas: What the store promises, each as ``name = value``, in this order.
        create: Whether it is made if it is not there.
        busy_seconds: See BUSY_SECONDS.

    Returns:
        A connection without implicit transactions, for any thread: its owner locks.

    Raises:
        sqlite3.Error: It cannot be made or read now, or another process has it to itself.
        OSError: The same of its directory.
    """
    if create:
        make_private(path)
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}",
        uri=True,
        timeout=busy_seconds,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        sync_recovered(path)
    except BaseException:
        connection.close()
        raise
    return connection


def read_version(connection: sqlite3.Connection, path: Path, known: int) -> int:
    """Return the version of a file's tables, 0 = it has none yet.

    Raises:
        SchemaTooNewError: It is above ``known``: a newer program wrote it.
    """
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > known:
        raise SchemaTooNewError(str(path), found, known)
    return int(found)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is written within, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
