"""The writer: follows the event log into the database, exactly once, and outlives both.

What is in the database and how far it has come are one transaction, so a writer that dies, or
never hears whether its commit counted, goes on where the database says it is.
"""

import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, Protocol

import psycopg
import structlog
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from derops.errors import LogDamagedError, SchemaTooNewError, SettingError
from derops.observing import OpsServer, Readiness, configure_logging
from derops.settings import load_settings, refuse_to_start
from derops_headend.eventlog.choosing import MAX_SHARDS, SQLITE, EventLogUrl
from derops_headend.eventlog.jetstream import (
    JetStreamLogReader,
    JetStreamSettings,
)
from derops_headend.eventlog.sqlite import SqliteLogReader
from derops_headend.ports import LogMissingError, LogReader, LogUnavailableError, StoredRecord
from derops_headend.storage import metrics
from derops_headend.storage.database import Database, OffsetMovedError, Tally
from derops_headend.writing.rows import Source

POLL_SECONDS = 0.05
CHECK_SECONDS = 5.0
TRIM_SECONDS = 1.0
MAINTAIN_SECONDS = 1.0
STOP_SECONDS = 3.0

_LOG, _DATABASE = "event log", "database"
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.1, 5.0


class WriterSettings(BaseSettings):
    """``DEROPS_WRITER_*``."""

    model_config = SettingsConfigDict(env_prefix="DEROPS_WRITER_")

    database_url: SecretStr
    event_log: EventLogUrl = SQLITE
    """The gateway's."""
    data_directory: Path | None = None
    """The gateway's, where it keeps its event log with SQLite."""
    nats_credentials_file: Path | None = None
    nats_ca_file: Path | None = None
    shard: int = Field(default=0, ge=0, lt=MAX_SHARDS)
    """Which shard of the event log this writer follows."""
    retention_days: int = Field(default=0, ge=0, le=36_500)
    """How long telemetry is kept; 0 = for ever."""
    ops_address: str = "0.0.0.0"  # noqa: S104  # a probe comes from the node, not from loopback
    ops_port: int = Field(default=8082, ge=0, le=65535)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


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
        sources: Sequence[Source],
        *,
        after: int,
        through: int,
        missing: Sequence[tuple[int, int]] = (),
    ) -> Tally:
        """Store entries and the offset in one transaction."""

    def check(self) -> None:
        """Ask for a sign of life."""

    def close(self) -> None:
        """Close the connection."""


class _MissingError(Exception):
    """What the writer needs is not there now."""

    def __init__(self, part: str, error: Exception) -> None:
        super().__init__(str(error).strip().partition("\n")[0] or type(error).__name__)
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
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """Prepare.

        Args:
            open_log: Opens the log.
            connect: Connects to the database for the log of an id.
            readiness: Is told what is missing.
            stopping: Ends ``run`` when set.
            now_us: The wall clock.
        """
        readiness.waiting(_LOG, "not read yet")
        readiness.waiting(_DATABASE, "not connected yet")
        self._open_log, self._connect = open_log, connect
        self._readiness, self._stopping, self._now_us = readiness, stopping, now_us
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._trimmed_at = 0.0
        self._log = structlog.get_logger("writer")

    def run(self) -> None:
        """Follow the log; begin again, after a pause, whenever the log or the database fails.

        Raises:
            SchemaTooNewError: A newer program wrote the log or the database: to wait is no use.
        """
        while not self._stopping.is_set():
            try:
                self._attempt()
            except _MissingError as missing:
                self._readiness.waiting(missing.part, str(missing))
                self._log.debug("writer.failed", part=missing.part, why=str(missing))
                self._stopping.wait(self._pause_seconds * random.uniform(0.5, 1))
                self._pause_seconds = min(2 * self._pause_seconds, _LAST_PAUSE_SECONDS)

    def _attempt(self) -> None:
        try:
            log = self._open_log()
        except (LogMissingError, LogUnavailableError, sqlite3.Error) as error:
            raise _MissingError(_LOG, error) from error
        with closing(log):
            try:
                database = self._connect(log.log_id)
            except psycopg.Error as error:
                raise _MissingError(_DATABASE, error) from error
            with closing(database):
                self._follow_guarded(log, database)

    def _follow_guarded(self, log: LogReader, database: Store) -> None:
        try:
            self._follow(log, database)
        except LogDamagedError as error:
            metrics.LOG_DAMAGED.set(1)
            self._log.error("log.damaged", log=error.log, offset=error.offset)
            raise _MissingError(_LOG, error) from error
        except (LogMissingError, LogUnavailableError, sqlite3.Error) as error:
            raise _MissingError(_LOG, error) from error
        except (OffsetMovedError, psycopg.Error) as error:
            metrics.DISCONNECTS.inc()
            self._log.warning("round.failed", why=str(error).strip())
            raise _MissingError(_DATABASE, error) from error

    def _follow(self, log: LogReader, database: Store) -> None:
        after = self._begin(log, database)
        self._readiness.found(_DATABASE, database.engine)
        checked_at = maintained_at = time.monotonic()
        while not self._stopping.is_set():
            records = log.read(after)
            metrics.LOG_DAMAGED.set(0)
            self._readiness.found(_LOG)
            self._pause_seconds = _FIRST_PAUSE_SECONDS
            if records:
                after = self._write(database, after, records)
                checked_at = time.monotonic()
            elif time.monotonic() - checked_at >= CHECK_SECONDS:
                database.check()
                checked_at = time.monotonic()
            self._trim(log, after)
            if time.monotonic() - maintained_at >= MAINTAIN_SECONDS:
                database.maintain()
                maintained_at = time.monotonic()
            if not records:
                self._stopping.wait(POLL_SECONDS)

    def _begin(self, log: LogReader, database: Store) -> int:
        after, (_, last) = database.committed(), log.bounds()
        metrics.COMMITTED.set(after)
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
            Source(offset, index, entry)
            for offset, record in records
            for index, entry in enumerate(record.entries)
        ]
        through = records[-1].offset
        tally = database.store(sources, after=after, through=through, missing=missing)
        metrics.ROUND_SECONDS.observe(time.perf_counter() - begun)
        metrics.COMMITTED.set(through)
        metrics.RECORDS_MISSING.inc(sum(last - first + 1 for first, last in missing))
        if sources:
            newest_us = max(source.entry.received_us for source in sources)
            metrics.DELAY_SECONDS.set(max(0.0, (self._now_us() - newest_us) / 1e6))
        self._count(tally)
        return through

    def _count(self, tally: Tally) -> None:
        metrics.SAMPLES.inc(tally.samples)
        metrics.MEASUREMENTS.inc(tally.measurements)
        metrics.DUPLICATES.inc(tally.duplicates)
        metrics.EVENTS.inc(tally.events)
        metrics.CONNECTIONS.inc(tally.connections)
        metrics.GAPS.inc(tally.gaps)
        for reason, count in tally.quarantined.items():
            metrics.QUARANTINED.labels(reason).inc(count)
            self._log.warning("entries.quarantined", reason=reason, count=count)

    def _trim(self, log: LogReader, through: int) -> None:
        # Each trim keeps the appender waiting for a moment.
        now = time.monotonic()
        if now - self._trimmed_at >= TRIM_SECONDS:
            log.trim(through)
            metrics.BACKLOG.set(log.bounds()[1] - through)
            self._trimmed_at = now


def missing_ranges(after: int, offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield first and last of the offsets that should lie between, and do not."""
    for offset in offsets:
        if offset > after + 1:
            yield after + 1, offset - 1
        after = offset


def run_writer(settings: WriterSettings, stopping: threading.Event) -> bool:
    """Run a writer with its ops port until ``stopping`` is set; return whether it ended well.

    Raises:
        SettingError: A setting cannot be used.
        SchemaTooNewError: A newer program wrote the log or the database.
    """
    url = settings.database_url.get_secret_value()
    try:
        conninfo_to_dict(url)
    except psycopg.Error:
        problem = "is not a connection URL of PostgreSQL"  # and what it is may hold a password
        raise SettingError("DEROPS_WRITER_DATABASE_URL", "environment", problem) from None
    readiness = Readiness()
    writer = Writer(
        open_log=_log_opener(settings),
        connect=lambda log_id: Database.connect(
            url, log_id, settings.shard, retention_days=settings.retention_days
        ),
        readiness=readiness,
        stopping=stopping,
    )
    failed = threading.Event()
    refused: list[SchemaTooNewError] = []

    def work() -> None:
        try:
            writer.run()
        except SchemaTooNewError as error:
            refused.append(error)
        except Exception:
            structlog.get_logger("writer").critical("writer.crashed", exc_info=True)
            failed.set()
        finally:
            stopping.set()

    # Not waited for longer than a clean end may take: what it has not committed is undone.
    thread = threading.Thread(target=work, name="writer", daemon=True)
    try:
        ops = OpsServer(settings.ops_address, settings.ops_port, readiness, thread.is_alive)
    except OSError as error:
        raise SettingError("DEROPS_WRITER_OPS_PORT", "environment", str(error)) from error
    ops.start()
    thread.start()
    stopping.wait()
    thread.join(STOP_SECONDS)
    ops.stop()
    if refused:
        raise refused[0]
    return not failed.is_set()


def _log_opener(settings: WriterSettings) -> Callable[[], LogReader]:
    if settings.event_log == SQLITE:
        if settings.data_directory is None or settings.shard:
            name = "DATA_DIRECTORY" if settings.data_directory is None else "SHARD"
            problem = f"is required with {SQLITE}" if name == "DATA_DIRECTORY" else "must be 0"
            raise SettingError(f"DEROPS_WRITER_{name}", "environment", problem)
        path = settings.data_directory / "events.db"
        return lambda: SqliteLogReader(path)
    where = JetStreamSettings(
        url=settings.event_log,
        credentials_file=settings.nats_credentials_file,
        ca_file=settings.nats_ca_file,
    )
    return lambda: JetStreamLogReader(where, settings.shard)


def main() -> None:
    """Run the writer until SIGTERM."""
    settings = load_settings(WriterSettings)
    configure_logging(settings.log_level)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        well = run_writer(settings, stopping)
    except (SettingError, SchemaTooNewError) as error:
        refuse_to_start(error)
    sys.exit(0 if well else 1)
