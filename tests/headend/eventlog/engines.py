"""Both engines of the event log behind one face, for the contract suite."""

import asyncio
import itertools
import sqlite3
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Protocol

from tests.stack.nats import NatsServer

from derops_headend.eventlog.jetstream import (
    JetStreamEventLog,
    JetStreamLogReader,
    JetStreamSettings,
)
from derops_headend.eventlog.ports import EventLog, LogReader
from derops_headend.eventlog.sqlite import SqliteEventLog, SqliteLogReader

MAX_BYTES = 256 * 1024**2
_prefixes = itertools.count(1)


class Engine(Protocol):
    """One log on one engine, which may be opened again and again."""

    async def open(self, *, max_bytes: int = MAX_BYTES) -> EventLog:
        """Open it as a gateway does, or make it."""

    async def close(self, log: EventLog) -> None:
        """Close what ``open`` returned."""

    def reader(self) -> LogReader:
        """Open it as a writer does; blocks."""


def alter(path: Path, statement: str, *values: str) -> None:
    """Change the file of a log, or have it change, beside whoever has it open."""
    with closing(sqlite3.connect(path)) as beside, beside:
        beside.execute(statement, values)


class SqliteEngine:
    def __init__(self, directory: Path) -> None:
        self._path = directory / "events.db"

    async def open(self, *, max_bytes: int = MAX_BYTES) -> EventLog:
        return SqliteEventLog(self._path, max_bytes=max_bytes)

    async def close(self, log: EventLog) -> None:
        assert isinstance(log, SqliteEventLog)
        log.close()

    def reader(self) -> LogReader:
        return SqliteLogReader(self._path)


class JetStreamEngine:
    def __init__(self, server: NatsServer) -> None:
        self.where = JetStreamSettings(url=server.url, prefix=f"TEST{next(_prefixes)}")

    async def open(self, *, max_bytes: int = MAX_BYTES) -> EventLog:
        return await JetStreamEventLog.open(self.where, shards=1, max_bytes=max_bytes)

    async def close(self, log: EventLog) -> None:
        assert isinstance(log, JetStreamEventLog)
        await log.close()

    def reader(self) -> LogReader:
        return JetStreamLogReader(self.where)


class Opened:
    """A log with a reader beside it; everything is closed at the end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._cleanup = AsyncExitStack()

    async def log(self, *, max_bytes: int = MAX_BYTES) -> EventLog:
        log = await self.engine.open(max_bytes=max_bytes)
        self._cleanup.push_async_callback(self.engine.close, log)
        return log

    async def reader(self) -> LogReader:
        reader = await asyncio.to_thread(self.engine.reader)
        self._cleanup.callback(reader.close)
        return reader

    async def close(self) -> None:
        await self._cleanup.aclose()
