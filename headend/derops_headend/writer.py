"""The writer: follows the event log into the database, exactly once, and outlives both.

Rows and the offset that is reached are one transaction. So a writer that dies, or never hears
whether its commit counted, goes on where the database says.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Protocol

import psycopg
import structlog

from derops.backoff import back_off_seconds, spread_seconds
from derops.data_path import SharedFault
from derops.errors import LogDamagedError
from derops.log_fields import dispatch_fields
from derops.observability import Readiness
from derops_headend.eventlog.ports import (
    MAX_READ_RECORDS,
    LogMissingError,
    LogReader,
    LogUnavailableError,
    StoredRecord,
)
from derops_headend.storage import metrics
from derops_headend.storage.database import OffsetMovedError, StoredCount
from derops_headend.storage.explanations import explain
from derops_headend.storage.faults import classify
from derops_headend.writing.notes import WriterNotes
from derops_headend.writing.rows import LogSource

POLL_SECONDS = 0.05
FULL_ROUND_BYTES = 256 * 1024
"""A smaller round is followed by a pause: each costs a transaction, however little it stores."""

CHECK_SECONDS = 5.0
TRIM_SECONDS = 1.0
MAINTAIN_SECONDS = 1.0
CAUGHT_UP_SECONDS = 1.0
"""A younger entry is as good as the newest."""

STAND_BY_POLL_SECONDS = 0.5
TAKE_OVER_SECONDS = 5.0
"""How long another writer may store nothing, though there is something to store."""

LOG, DATABASE = "event log", "database"
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.1, 5.0


class Store(Protocol):
    """What a writer asks of the database; see ``derops_headend.storage.database.Database``."""

    @property
    def engine(self) -> str:
        """How telemetry lies in the database, for people."""

    def committed(self) -> int:
        """Return the offset up to which the log is in the database."""

    def maintain(self) -> None:
        """Do a bounded step of what keeps the database in order."""

    def store(
        self,
        sources: Sequence[LogSource],
        *,
        after: int,
        through: int,
        missing: Sequence[tuple[int, int]] = (),
    ) -> StoredCount:
        """Store entries and the offset in one transaction."""

    def check(self) -> None:
        """Ask for a sign of life."""

    def close(self) -> None:
        """Close the connection."""


class _MissingError(Exception):
    """Something that the writer needs is not there now."""

    def __init__(self, part: str, error: Exception) -> None:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        super().__init__(explain(error) if isinstance(error, psycopg.Error) else first)
        self.part = part


class Writer:
    """Follows one log into one database until it is told to stop."""

    def __init__(
        self,
        *,
        open_log: Callable[[], LogReader],
        connect: Callable[[str], Store],
        readiness: Readiness,
        stopping: threading.Event,
        shard: int = 0,
        alone: bool = True,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        name: str = "",
        on_fault: Callable[[], object] = lambda: None,
    ) -> None:
        """Prepare.

        Args:
            open_log: Opens the log.
            connect: Connects to the database for the log of an id.
            readiness: Is told what is missing.
            stopping: Ends ``run`` when set.
            shard: The number of the log's shard, for people.
            alone: Whether this process follows no other shard.
            now_us: The wall clock.
            name: Of this process, as its word has it.
            on_fault: Called when ``notes`` have another fault, or none any more.
        """
        self.notes = WriterNotes(shard, name, now_us, time.monotonic, on_fault)
        self._log_part, self._database_part = (
            part if alone else f"{part} of shard {shard}" for part in (LOG, DATABASE)
        )
        readiness.expecting(self._log_part, "not read yet")
        readiness.expecting(self._database_part, "asked once the event log is there")
        self._open_log, self._connect = open_log, connect
        self._readiness, self._stopping, self._now_us = readiness, stopping, now_us
        self._failures = 0
        self._trimmed_at = 0.0
        self._last = 0
        self._shard = str(shard)
        self._caught_up_at = time.monotonic()
        metrics.BEHIND_SECONDS.labels(self._shard).set_function(
            lambda: time.monotonic() - self._caught_up_at
        )
        self._log = structlog.get_logger("writer").bind(shard=shard)

    def run(self) -> None:
        """Follow the log; begin again, after a pause, whenever the log or the database fails.

        Raises:
            SchemaTooNewError: A newer program wrote the log or the database: to wait is no use.
            LogMismatchError: The log is not what the settings say: likewise.
        """
        while not self._stopping.is_set():
            try:
                self._attempt()
            except _MissingError as missing:
                self._readiness.waiting(missing.part, str(missing))
                if missing.part == self._database_part:
                    metrics.DATABASE_FAILING.labels(self._shard).set(1)
                self._log.debug("writer.failed", part=missing.part, why=str(missing))
                pause = back_off_seconds(self._failures, _FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS)
                self._failures += 1
                self._stopping.wait(spread_seconds(pause))

    def _attempt(self) -> None:
        try:
            log = self._open_log()
        except (LogMissingError, LogUnavailableError, sqlite3.Error) as error:
            raise self._note_missing(error) from error
        with closing(log):
            try:
                with self.notes.asking():
                    database = self._connect(log.log_id)
            except psycopg.Error as error:
                raise self._note_missing(error, log) from error
            with closing(database):
                self._follow_guarded(log, database)

    def _follow_guarded(self, log: LogReader, database: Store) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._follow(log, database)
                except OffsetMovedError as moved:
                    self._stand_by(log, database, str(moved))
        except LogDamagedError as error:
            metrics.LOG_DAMAGED.labels(self._shard).set(1)
            self._log.error("log.damaged", log=error.log, offset=error.offset)
            raise self._note_missing(error) from error
        except (LogMissingError, LogUnavailableError, sqlite3.Error) as error:
            raise self._note_missing(error) from error
        except psycopg.Error as error:
            metrics.DISCONNECTS.inc()
            self._log.debug("round.failed", why=str(error).strip())
            raise self._note_missing(error, log) from error

    def _note_missing(self, error: Exception, log: LogReader | None = None) -> _MissingError:
        """Note what an error says is broken, and what waits in the log if that can be read."""
        is_database = isinstance(error, psycopg.Error)
        missing = _MissingError(self._database_part if is_database else self._log_part, error)
        last, waiting_since_us = self._look_at_waiting(log) if log is not None else (0, 0)
        self.notes.note_fault(_fault_of(error), str(missing), last, waiting_since_us)
        return missing

    def _look_at_waiting(self, log: LogReader) -> tuple[int, int]:
        """Return the last offset, and when the next record to store came; 0 = that is not known."""
        try:
            _, last = log.bounds()
            committed = self.notes.committed
            records = log.read(committed, 1) if committed is not None else []
        except (LogDamagedError, LogMissingError, LogUnavailableError, sqlite3.Error):
            return 0, 0
        return last, _received_us(records[0]) if records else 0

    def _follow(self, log: LogReader, database: Store) -> None:
        after = self._begin(log, database)
        self._readiness.found(self._database_part, database.engine)
        metrics.DATABASE_FAILING.labels(self._shard).set(0)
        checked_at = maintained_at = time.monotonic()
        while not self._stopping.is_set():
            records = log.read(after)
            metrics.LOG_DAMAGED.labels(self._shard).set(0)
            self._readiness.found(self._log_part, "followed")
            with self.notes.asking():
                if records:
                    after = self._write(database, after, records)
                    checked_at = time.monotonic()
                elif time.monotonic() - checked_at >= CHECK_SECONDS:
                    database.check()
                    checked_at = time.monotonic()
            self._failures = 0
            self._note_place(after, records)
            self._trim(log, after)
            if time.monotonic() - maintained_at >= MAINTAIN_SECONDS:
                with self.notes.asking():
                    database.maintain()
                maintained_at = time.monotonic()
            if not _is_full(records):
                self._caught_up_at = time.monotonic()
                self._stopping.wait(POLL_SECONDS)

    def _note_place(self, after: int, records: Sequence[StoredRecord]) -> None:
        """Note that all up to ``after`` is stored; what comes next came after the last of it."""
        waits = bool(records) and after < self._last
        self.notes.note_place(after, self._last, _received_us(records[-1]) if waits else 0)

    def _stand_by(self, log: LogReader, database: Store, why: str) -> None:
        """Return when nobody else follows this log any more; until then, be ready and wait."""
        self._log.info("writer.stands_by", why=why)
        self._readiness.found(self._log_part, "another writer follows it, this one stands by")
        committed, moved_at = database.committed(), time.monotonic()
        while not self._stopping.wait(STAND_BY_POLL_SECONDS):
            before, committed = committed, database.committed()
            if committed >= log.bounds()[1]:
                moved_at = self._caught_up_at = time.monotonic()
            elif committed != before:
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at >= TAKE_OVER_SECONDS:
                self._log.info("writer.takes_over", committed=committed)
                return

    def _begin(self, log: LogReader, database: Store) -> int:
        after, (_, last) = database.committed(), log.bounds()
        self._last = last
        metrics.COMMITTED.labels(self._shard).set(after)
        if after <= last:
            return after
        # The log is an older copy of itself. What it holds is in the database; what comes next
        # reuses offsets, and would be passed over.
        self._log.error("log.went_back", committed=after, last=last)
        database.store([], after=after, through=last, missing=[(last + 1, after)])
        metrics.RECORDS_MISSING.inc(after - last)
        return last

    def _write(self, database: Store, after: int, records: Sequence[StoredRecord]) -> int:
        begun = time.perf_counter()
        missing = list(missing_ranges(after, [record.offset for record in records]))
        for first, last in missing:
            self._log.error("records.missing", first=first, last=last)
        sources = [
            LogSource(offset, index, entry)
            for offset, record in records
            for index, entry in enumerate(record.entries)
        ]
        through = records[-1].offset
        tally = database.store(sources, after=after, through=through, missing=missing)
        metrics.ROUND_SECONDS.observe(time.perf_counter() - begun)
        metrics.COMMITTED.labels(self._shard).set(through)
        metrics.RECORDS_MISSING.inc(sum(last - first + 1 for first, last in missing))
        if sources:
            newest_us = max(source.entry.received_us for source in sources)
            delay_seconds = max(0.0, (self._now_us() - newest_us) / 1e6)
            metrics.DELAY_SECONDS.labels(self._shard).set(delay_seconds)
            if delay_seconds < CAUGHT_UP_SECONDS:  # though there is so much that rounds are full
                self._caught_up_at = time.monotonic()
        self._count(tally)
        return through

    def _count(self, tally: StoredCount) -> None:
        metrics.SAMPLES.inc(tally.samples)
        metrics.MEASUREMENTS.inc(tally.measurements)
        metrics.DUPLICATES.inc(tally.duplicates)
        metrics.EVENTS.inc(tally.events)
        metrics.CONNECTIONS.inc(tally.connections)
        metrics.GAPS.inc(tally.gaps)
        for ended in tally.ended:
            fields = dispatch_fields(
                namespace=ended.namespace,
                asset=ended.asset_name,
                dispatch=ended.dispatch_name or "",
                uid=ended.dispatch_uid,
                request_id=ended.request_id or "",
            )
            self._log.info("dispatch.recorded", **fields, phase=ended.phase, reason=ended.reason)
        for reason, count in tally.quarantined.items():
            metrics.QUARANTINED.labels(reason).inc(count)
            self._log.warning("entries.quarantined", reason=reason, count=count)

    def _trim(self, log: LogReader, through: int) -> None:
        # Each trim keeps the appender waiting for a moment.
        now = time.monotonic()
        if now - self._trimmed_at >= TRIM_SECONDS:
            log.trim(through)
            first, last = log.bounds()
            self._last = last
            metrics.BACKLOG.labels(self._shard).set(last - through)
            if first >= through:  # else that was a step, and the next round makes the next
                self._trimmed_at = now


def _is_full(records: Sequence[StoredRecord]) -> bool:
    size = sum(len(entry.body) for _, record in records for entry in record.entries)
    return size >= FULL_ROUND_BYTES or len(records) >= MAX_READ_RECORDS


def _received_us(stored: StoredRecord) -> int:
    """Return when a gateway received a record; 0 = there is nothing in it."""
    entries = stored.record.entries
    return int(entries[0].received_us) if entries else 0


def _fault_of(error: Exception) -> SharedFault:
    if isinstance(error, psycopg.Error):
        return classify(error)
    is_damage = isinstance(error, LogDamagedError)
    return SharedFault.LOG_DAMAGED if is_damage else SharedFault.LOG_FAILING


def missing_ranges(after: int, offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield first and last of the offsets that should lie between, and do not."""
    for offset in offsets:
        if offset > after + 1:
            yield after + 1, offset - 1
        after = offset
