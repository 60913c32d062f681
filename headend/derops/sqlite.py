"""SQLite files of ours: all are opened here, each with the promises that its store needs."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from derops.errors import SchemaTooNewError
from derops.files import make_private, sync_recovered

BUSY_SECONDS = 5.0
"""For how long a statement waits for another connection's lock; sqlite3's own default."""

_NOTE = "schema_note"


class Schema(NamedTuple):
    """What a program makes of the tables of a file.

    A change that an older program can pass over, such as a further table, or a column with a
    default, makes a new version that is readable from the same one as before.
    """

    version: int
    """Grows with each change."""

    readable_from: int
    """The oldest version whose programs can use the file; it never goes back."""

    def note(self) -> list[str]:
        """Return the statements that write both into a file.

        ``user_version`` is what the file is readable from: programs that know no note refuse a
        file by that number alone.
        """
        statements = [f"PRAGMA user_version = {self.readable_from}"]
        if self.version > self.readable_from:
            statements += [
                f"CREATE TABLE IF NOT EXISTS {_NOTE} "
                "(only INTEGER PRIMARY KEY CHECK (only = 1), version INTEGER NOT NULL) STRICT",
                f"INSERT OR REPLACE INTO {_NOTE} VALUES (1, {self.version})",  # noqa: S608
            ]
        return statements


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

    It may be above ``known``: then a newer program wrote the file, and this one can use it.

    Raises:
        SchemaTooNewError: Programs of version ``known`` cannot use it.
    """
    (readable_from,) = connection.execute("PRAGMA user_version").fetchone()
    if readable_from > known:
        raise SchemaTooNewError(str(path), readable_from, known)
    is_noted = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?"
    if connection.execute(is_noted, (_NOTE,)).fetchone() is None:
        return int(readable_from)
    (version,) = connection.execute(f"SELECT version FROM {_NOTE}").fetchone()  # noqa: S608
    return int(version)


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
