"""The event log in one SQLite file: the gateway appends, the writer beside it reads and trims.

The file has a WAL, synchronous=FULL and pages of 16 KiB. As measured, larger pages write more
beside a record, and smaller ones cost more processor time.

The bound is on the bytes of the records. Moving records costs as much as writing them, so the file
gives space back only once most of it is free, and keeps it for the next outage until then.
"""

import asyncio
import queue
import secrets
import sqlite3
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from derops.errors import LogDamagedError
from derops.sqlite import Schema, connect, read_version, transaction
from derops.wire.v1 import log_pb2
from derops_headend.eventlog import metrics
from derops_headend.eventlog.ports import (
    MAX_READ_RECORDS,
    LogFullError,
    LogMissingError,
    StoredRecord,
)
from derops_headend.eventlog.records import pack

SCHEMA = Schema(1, readable_from=1)
MAX_READ_BYTES = 1024 * 1024
MAX_COMMIT_BYTES = 4 * 1024 * 1024
DEFAULT_MAX_BYTES = 8 * 1024**3
_DROPPED_SHARE = 50
"""The part of the records that is dropped at a time, as one in so many."""

PRAGMAS = (
    "page_size = 16384",
    "auto_vacuum = INCREMENTAL",  # only a new file takes it
    "synchronous = FULL",
    "wal_autocheckpoint = 2000",
    "journal_size_limit = 67108864",
    # Debian's SQLite writes zeros over what it deletes: a trim would cost as much as an append.
    "secure_delete = OFF",
)
_BUSY_SECONDS = 30
_MAKER = "a gateway with the same data directory makes it"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_TABLES = (
    "CREATE TABLE meta (log_id TEXT NOT NULL) STRICT",
    """CREATE TABLE record (
         log_offset INTEGER PRIMARY KEY,
         checksum INTEGER NOT NULL,
         body BLOB NOT NULL
       ) STRICT""",
)
_INSERT = "INSERT INTO record (log_offset, checksum, body) VALUES (?, ?, ?)"
_SELECT = (
    "SELECT log_offset, checksum, body FROM record WHERE log_offset > ? ORDER BY log_offset LIMIT ?"
)
_LAST = "SELECT coalesce(max(log_offset), 0) FROM record"
# The last record stays: it is what the next offset is counted from. One step is bounded, as the
# appender waits for it.
_TRIM_RECORDS = 1000
_TRIM = (
    f"DELETE FROM record WHERE log_offset <= min(?, ({_LAST}) - 1, "  # noqa: S608
    f"(SELECT coalesce(min(log_offset), 0) FROM record) + {_TRIM_RECORDS})"
)
_DROP = (
    f"DELETE FROM record WHERE log_offset <= min(({_LAST}) - 1, "  # noqa: S608
    "(SELECT min(log_offset) FROM record) + ?)"
)
_VACUUM_PAGES = 4096
_FREE_PAGES_TO_VACUUM = 1024
_MEASURE_SECONDS = 0.1

Pending = tuple[list[bytes], "Future[None]"]


class SqliteLogReader:
    """The log as its writer sees it. Methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Open a log that is there.

        Raises:
            LogMissingError: It is not there yet.
            SchemaTooNewError: It is for newer programs.
        """
        self._path = path
        self._lock = threading.Lock()
        self._connection = _connect(path, create=False)
        try:
            if read_version(self._connection, path, SCHEMA.version) == 0:
                raise LogMissingError(f"{path} is empty; {_MAKER}")
            # A trim that a crash undoes is made again; the appender's own commits are FULL.
            self._connection.execute("PRAGMA synchronous = NORMAL")
            (self._log_id,) = self._connection.execute("SELECT log_id FROM meta").fetchone()
        except BaseException:
            self._connection.close()
            raise

    @property
    def log_id(self) -> str:
        """Random, made with the file."""
        return str(self._log_id)

    def bounds(self) -> tuple[int, int]:
        """Return the offsets of the first and the last record; (1, 0) before the first append."""
        query = "SELECT coalesce(min(log_offset), 1), coalesce(max(log_offset), 0) FROM record"
        with self._lock:
            first, last = self._connection.execute(query).fetchone()
        return first, last

    def read(self, after: int, limit: int = MAX_READ_RECORDS) -> list[StoredRecord]:
        """Return up to ``limit`` records after an offset, about 1 MiB at most.

        Raises:
            LogDamagedError: The next record does not match its checksum.
        """
        found: list[StoredRecord] = []
        size = 0
        try:
            with self._lock, closing(self._connection.execute(_SELECT, (after, limit))) as rows:
                for offset, checksum, body in rows:
                    last = found[-1].offset if found else after
                    found.append(self._decode(last, offset, checksum, body))
                    size += len(body)
                    if size >= MAX_READ_BYTES:
                        break
        except LogDamagedError:
            if not found:
                raise
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            if not found:
                raise LogDamagedError(str(self._path), after + 1) from error
        return found

    def raw(self, offset: int) -> bytes:
        """Return the bytes of one record, unchecked; none where they cannot be read."""
        query = "SELECT body FROM record WHERE log_offset = ?"
        try:
            with self._lock:
                row = self._connection.execute(query, (offset,)).fetchone()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            return b""
        return row[0] if row and isinstance(row[0], bytes) else b""

    def trim(self, through: int) -> None:
        """Forget the oldest records up to an offset, a bounded step of them; the last of all stays.

        Space that the file no longer needs goes back to the disk.
        """
        with self._lock:
            self._connection.execute(_TRIM, (through,))
            used, free, _ = self._measure_pages()
            if free > max(_FREE_PAGES_TO_VACUUM, 3 * used):
                # A script, for "execute" makes one step of it only: it frees one page.
                self._connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _measure_pages(self) -> tuple[int, int, int]:
        pages, free, size = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return pages - free, free, size

    def _decode(self, last: int, offset: int, checksum: object, body: object) -> StoredRecord:
        # In a damaged file offsets may run backwards, and columns have any type, whatever the
        # schema.
        if offset > last and isinstance(body, bytes) and checksum == _checksum(offset, body):
            try:
                return StoredRecord(offset, log_pb2.LogRecord.FromString(body))
            except DecodeError:
                pass
        raise LogDamagedError(str(self._path), max(offset, last + 1))


class SqliteEventLog(SqliteLogReader):
    """The log with its one appender: a thread that commits whatever waits, together."""

    def __init__(
        self, path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES, drop_oldest: bool = False
    ) -> None:
        """Open the log, or make it.

        Args:
            path: The file.
            max_bytes: Bound on what the records take.
            drop_oldest: At the bound drop what was acknowledged and is not in the database yet,
                instead of refusing what is new.

        Raises:
            SchemaTooNewError: It is for newer programs.
        """
        self._appending = _connect(path, create=True)
        try:
            _make(self._appending, path)
            super().__init__(path)
        except BaseException:
            self._appending.close()
            raise
        self._waiting: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._closed = False
        self._max_bytes, self._drop_oldest = max_bytes, drop_oldest
        self._fill = self._measured_at = 0.0
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)
        self._thread.start()

    async def append(self, entries: Sequence[log_pb2.LogEntry]) -> None:
        """Append; return once it is durable.

        Raises:
            LogFullError: The log is at its bound.
            ValueError: There are no entries, or the log is closed.
            sqlite3.Error: The disk refused; nothing of the call is in the log.
        """
        if not entries or self._closed:
            raise ValueError("the event log is closed" if self._closed else "nothing to append")
        serialized = [entry.SerializeToString() for entry in entries]
        done: Future[None] = Future()
        self._waiting.put((serialized, done))
        await asyncio.wrap_future(done)

    def fill(self) -> float:
        """Return the share of the bound that records take; 0 where the oldest are dropped."""
        if not self._drop_oldest and time.monotonic() - self._measured_at > _MEASURE_SECONDS:
            with suppress(sqlite3.Error):  # a disk that fails: the last known value is as good
                self._fill = self._measure()
            self._measured_at = time.monotonic()
        return self._fill

    def close(self) -> None:
        """Commit what was accepted, then close the file."""
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
            self._thread.join()
            self._appending.close()
            super().close()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            group, last = self._take_group(first)
            group = [pending for pending in group if pending[1].set_running_or_notify_cancel()]
            if group:
                self._commit_group(group)
            if last:
                return

    def _take_group(self, first: Pending) -> tuple[list[Pending], bool]:
        group, size = [first], sum(map(len, first[0]))
        while size < MAX_COMMIT_BYTES:
            try:
                pending = self._waiting.get_nowait()
            except queue.Empty:
                break
            if pending is None:
                return group, True
            group.append(pending)
            size += sum(map(len, pending[0]))
        return group, False

    def _measure(self) -> float:
        with self._lock:
            used, _, size = self._measure_pages()
        return used * size / self._max_bytes

    def _make_room(self) -> None:
        """Raise where the log is at its bound; or drop the oldest, where that was chosen."""
        if self._measure() < 1:
            return
        if not self._drop_oldest:
            raise LogFullError(f"the event log holds its bound of {self._max_bytes} bytes")
        first, last = self.bounds()
        with transaction(self._appending):
            self._appending.execute(_DROP, ((last - first) // _DROPPED_SHARE,))
        dropped = self.bounds()[0] - first
        metrics.LOG_RECORDS_DROPPED.inc(dropped)
        structlog.get_logger("log").error("records.dropped", records=dropped, first=first)

    def _commit_group(self, group: list[Pending]) -> None:
        records = pack(entry for serialized, _ in group for entry in serialized)
        try:
            self._make_room()
            with transaction(self._appending):
                (last,) = self._appending.execute(_LAST).fetchone()
                self._appending.executemany(
                    _INSERT,
                    [
                        (offset, _checksum(offset, body), body)
                        for offset, body in enumerate(records, start=last + 1)
                    ],
                )
        except BaseException as error:
            for _, done in group:
                done.set_exception(error)
            return
        for _, done in group:
            done.set_result(None)


def _is_damage(error: sqlite3.Error) -> bool:
    # Without a code: a column that should be bytes is text now, and not even that.
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF in _DAMAGED


def _checksum(offset: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(offset.to_bytes(8, "big")))


def _connect(path: Path, *, create: bool) -> sqlite3.Connection:
    try:
        return connect(path, PRAGMAS, create=create, busy_seconds=_BUSY_SECONDS)
    except sqlite3.OperationalError as error:
        if create or path.exists():
            raise
        raise LogMissingError(f"{path} does not exist; {_MAKER}") from error


def _make(connection: sqlite3.Connection, path: Path) -> None:
    if read_version(connection, path, SCHEMA.version) > 0:
        return
    connection.execute("PRAGMA journal_mode = WAL")
    with transaction(connection):
        for statement in (*_TABLES, *SCHEMA.note()):
            connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES (?)", (secrets.token_hex(16),))
