"""The event log in one SQLite file: the gateway appends, the writer beside it reads and trims.

WAL, synchronous=FULL and pages of 64 KiB: measured, this appends at more than half the speed of a
bare write and fdatasync, in records of 256 KiB.
"""

import asyncio
import queue
import secrets
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path

from google.protobuf.message import DecodeError

from derops.errors import LogDamagedError, SchemaTooNewError
from derops.wire.v1 import log_pb2
from derops_headend.ports import MAX_RECORD_BYTES, StoredRecord

SCHEMA_VERSION = 1
MAX_READ_BYTES = 1024 * 1024
MAX_COMMIT_BYTES = 4 * 1024 * 1024

_BUSY_SECONDS = 30
_SCHEMA = (
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
# The last record stays: it is what the next offset is counted from.
_TRIM = f"DELETE FROM record WHERE log_offset <= min(?, ({_LAST}) - 1)"  # noqa: S608

Pending = tuple[list[bytes], "Future[int]"]


class LogMissingError(Exception):
    """There is no event log in the file yet: the gateway makes it when it first starts."""


class SqliteLogReader:
    """The log as its writer sees it. Methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Open a log that is there.

        Raises:
            LogMissingError: It is not there yet.
            SchemaTooNewError: A newer program wrote it.
        """
        self._path = path
        self._lock = threading.Lock()
        self._connection = _connect(path, create=False)
        try:
            if _version(self._connection, path) == 0:
                raise LogMissingError(f"{path} is empty")
            # What a crash undoes of a trim is trimmed again; the appender's own commits are FULL.
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

    def read(self, after: int, limit: int = 256) -> list[StoredRecord]:
        """Return up to ``limit`` records after an offset, about 1 MiB at most.

        Raises:
            LogDamagedError: The next record does not match its checksum.
        """
        found: list[StoredRecord] = []
        size = 0
        try:
            with self._lock, closing(self._connection.execute(_SELECT, (after, limit))) as rows:
                for offset, checksum, body in rows:
                    found.append(StoredRecord(offset, self._decode(offset, checksum, body)))
                    size += len(body)
                    if size >= MAX_READ_BYTES:
                        break
        except LogDamagedError:
            if not found:
                raise
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            if not found:
                raise LogDamagedError(str(self._path), after + 1) from error
        return found

    def trim(self, through: int) -> None:
        """Forget the records up to an offset; the last of all stays."""
        with self._lock:
            self._connection.execute(_TRIM, (through,))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _decode(self, offset: int, checksum: int, body: bytes) -> log_pb2.LogRecord:
        if checksum == _checksum(offset, body):
            try:
                return log_pb2.LogRecord.FromString(body)
            except DecodeError:
                pass
        raise LogDamagedError(str(self._path), offset)


class SqliteEventLog(SqliteLogReader):
    """The log with its one appender: a thread that commits whatever waits, together."""

    def __init__(self, path: Path) -> None:
        """Open the log, or make it.

        Raises:
            SchemaTooNewError: A newer program wrote it.
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
        self._thread = threading.Thread(target=self._run, name="event-log")
        self._thread.start()

    async def append(self, entries: Sequence[log_pb2.LogEntry]) -> int:
        """Append and return the offset of the record with the last entry, once it is durable.

        Raises:
            ValueError: There are no entries, or the log is closed.
            sqlite3.Error: The disk refused; nothing of the call is in the log.
        """
        if not entries or self._closed:
            raise ValueError("the event log is closed" if self._closed else "nothing to append")
        # A record of one entry serialised is the entry with its tag: records of several entries
        # are these bytes in a row, so that each entry is encoded once, and by the caller.
        packed = [log_pb2.LogRecord(entries=[entry]).SerializeToString() for entry in entries]
        done: Future[int] = Future()
        self._waiting.put((packed, done))
        return await asyncio.wrap_future(done)

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

    def _commit_group(self, group: list[Pending]) -> None:
        records, places = _pack([packed for packed, _ in group])
        try:
            with _transaction(self._appending):
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
        for (_, done), place in zip(group, places, strict=True):
            done.set_result(last + 1 + place)


def _pack(calls: Sequence[Sequence[bytes]]) -> tuple[list[bytes], list[int]]:
    """Return records of bounded size, and for each call the index of the record of its last."""
    records: list[bytearray] = [bytearray()]
    places = []
    for packed in calls:
        for entry in packed:
            if records[-1] and len(records[-1]) + len(entry) > MAX_RECORD_BYTES:
                records.append(bytearray())
            records[-1] += entry
        places.append(len(records) - 1)
    return [bytes(record) for record in records], places


def _checksum(offset: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(offset.to_bytes(8, "big")))


def _connect(path: Path, *, create: bool) -> sqlite3.Connection:
    mode = "rwc" if create else "rw"
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
    except sqlite3.OperationalError as error:
        if create or path.exists():
            raise
        raise LogMissingError(f"{path} does not exist") from error
    for pragma in ("page_size = 65536", "synchronous = FULL", "wal_autocheckpoint = 500"):
        connection.execute(f"PRAGMA {pragma}")
    # Debian's SQLite writes zeros over what it deletes: a trim would cost as much as an append.
    connection.execute("PRAGMA secure_delete = OFF")
    return connection


def _make(connection: sqlite3.Connection, path: Path) -> None:
    if _version(connection, path) > 0:
        return
    connection.execute("PRAGMA journal_mode = WAL")
    with _transaction(connection):
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES (?)", (secrets.token_hex(16),))
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _version(connection: sqlite3.Connection, path: Path) -> int:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > SCHEMA_VERSION:
        raise SchemaTooNewError(str(path), found, SCHEMA_VERSION)
    return int(found)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
