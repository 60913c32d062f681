"""The agent's files: how they are opened, and in which threads their calls run."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from derops.files import make_directory
from derops.sqlite import Schema, connect, read_version

PRAGMAS = (
    # A sole user of the file needs no index of the log beside it. On a full disk SQLite cannot make
    # that index, and a signal ends the process that maps it.
    "locking_mode = EXCLUSIVE",
    "journal_mode = WAL",
    "synchronous = FULL",
)
_LEDGER_THREADS = 4


class Runner(Protocol):
    """Runs a blocking call, in a thread or in place."""

    def __call__(self, call: Callable[..., Any], /, *arguments: Any) -> Awaitable[Any]:
        """Return what ``call`` returns."""
        ...


def open_database(
    path: Path, tables: str, schema: Schema, upgrades: Sequence[str] = ()
) -> sqlite3.Connection:
    """Open a durable SQLite file and make its tables if it is new; no other process may have it.

    Args:
        path: The file.
        tables: The SQL that makes those of ``schema``.
        schema: Their version.
        upgrades: The first makes version 2 of a file of version 1, and so on.

    Raises:
        SchemaTooNewError: It is for newer programs.
        sqlite3.Error: It cannot be made or read now, or another process has it.
        OSError: The same of its directory.
    """
    make_directory(path.parent)
    connection = connect(path, PRAGMAS)
    try:
        found = read_version(connection, path, schema.version)
        if found < schema.version:
            steps = tables if found == 0 else ";".join(upgrades[found - 1 :])
            connection.executescript(";".join(["BEGIN IMMEDIATE", steps, *schema.note(), "COMMIT"]))
    except BaseException:
        connection.close()
        raise
    return connection


class Threads:
    """The threads in which blocking calls run; all assets of a process share them."""

    def __init__(self) -> None:
        self._ledgers = ThreadPoolExecutor(_LEDGER_THREADS, thread_name_prefix="ledger")
        # One thread: all use one connection, and a reader must not see it in mid-commit.
        self._outbox = ThreadPoolExecutor(1, thread_name_prefix="outbox")

    async def run_ledger(self, call: Callable[..., Any], /, *arguments: Any) -> Any:
        """Run a call of a ledger."""
        return await _run(self._ledgers, call, arguments)

    async def run_outbox(self, call: Callable[..., Any], /, *arguments: Any) -> Any:
        """Run a call of the outbox."""
        return await _run(self._outbox, call, arguments)

    def close(self) -> None:
        """Wait for the calls that run, then end the threads."""
        self._ledgers.shutdown()
        self._outbox.shutdown()


async def _run(
    pool: ThreadPoolExecutor, call: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    future = asyncio.get_running_loop().run_in_executor(pool, partial(call, *arguments))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        # The call goes on, and whoever cancelled may close its file next.
        await asyncio.wait({future})
        raise
