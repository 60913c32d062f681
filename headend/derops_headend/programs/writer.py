"""``derops-headend writer``: one writer for each shard of the log that it is to follow."""

import random
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from derops.errors import SchemaTooNewError, SettingError
from derops.metrics import note_program
from derops.observability import OpsServer, Readiness, configure_logging
from derops.settings import GivenPath, Port, ProgramSettings, load_settings, refuse_to_start
from derops_headend.eventlog.engines import (
    ALL_SHARDS,
    SQLITE,
    EventLogUrl,
    ShardNumbers,
    parse_shards,
)
from derops_headend.eventlog.jetstream import JetStreamLogReader
from derops_headend.eventlog.jetstream_words import JetStreamWords
from derops_headend.eventlog.ports import (
    LogMismatchError,
    LogMissingError,
    LogReader,
    LogUnavailableError,
)
from derops_headend.eventlog.sqlite import SqliteLogReader
from derops_headend.eventlog.streams import JetStreamSettings, count_shards
from derops_headend.eventlog.words import FileWords, WriterWords
from derops_headend.programs.word_leaver import WordLeaver
from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.url import DatabaseUrl, check_url
from derops_headend.writer import LOG, Writer

STOP_SECONDS = 3.0
FEWEST_AUDIT_DAYS = 92
"""A chain that rests for 30 days ends; the record of its dropped beginning is kept for longer."""


def _long_enough(days: int) -> int:
    """Return days that keep records of a drop until no chain needs them any more."""
    if 0 < days < FEWEST_AUDIT_DAYS:
        raise ValueError(f"is shorter than {FEWEST_AUDIT_DAYS} days; 0 = for ever")
    return days


AuditDays = Annotated[int, Field(ge=0, le=36_500), AfterValidator(_long_enough)]


class WriterSettings(ProgramSettings):
    """``DEROPS_WRITER_*``."""

    model_config = SettingsConfigDict(env_prefix="DEROPS_WRITER_")

    database_url: DatabaseUrl
    event_log: EventLogUrl = SQLITE
    """The gateway's."""
    data_directory: GivenPath | None = None
    """The gateway's, where it keeps its event log with SQLite."""
    nats_credentials_file: GivenPath | None = None
    nats_ca_file: GivenPath | None = None
    shards: ShardNumbers = ALL_SHARDS
    """Which shards of the event log this process follows."""
    retention_days: int = Field(default=0, ge=0, le=36_500)
    """How long telemetry is kept; 0 = for ever."""
    audit_retention_days: AuditDays = 400
    """How long the audit of the API is kept; 0 = for ever."""
    ops_port: Port = 8082


class ShardWriters:
    """Finds out which shards there are, and runs a writer for each of its own."""

    def __init__(
        self, settings: WriterSettings, readiness: Readiness, stopping: threading.Event
    ) -> None:
        """Prepare; ``start`` starts."""
        self._settings, self._readiness, self._stopping = settings, readiness, stopping
        self.refusal: SchemaTooNewError | SettingError | None = None
        """Why the program cannot run as it was started."""
        self.crashed = False
        self._name = secrets.token_hex(8)
        self._news = threading.Event()
        # A clean end takes no longer than this; what is not committed is undone.
        self.thread = threading.Thread(
            target=self._guard, args=(self._run,), name="writer", daemon=True
        )

    def _guard(self, work: Callable[[], None]) -> None:
        """Do ``work``; when it ends, the program ends."""
        try:
            work()
        except LogMismatchError as error:
            self.refusal = SettingError("DEROPS_WRITER_EVENT_LOG", "environment", str(error))
        except (SchemaTooNewError, SettingError) as error:
            self.refusal = error
        except Exception:
            structlog.get_logger("writer").critical("writer.crashed", exc_info=True)
            self.crashed = True
        finally:
            self._stopping.set()

    def _run(self) -> None:
        shards = self._find_shards()
        writers = [self._make_writer(shard, alone=len(shards) == 1) for shard in shards]
        threads = [
            threading.Thread(
                target=self._guard, args=(writer.run,), name=f"writer-{shard}", daemon=True
            )
            for shard, writer in zip(shards, writers, strict=True)
        ]
        notes = [writer.notes for writer in writers]
        leaver = WordLeaver(lambda: open_words(self._settings), notes, self._news, self._stopping)
        leaver.thread.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        leaver.stop()

    def _find_shards(self) -> Sequence[int]:
        """Return the shards to follow, once the log is there; none when stopped before."""
        if self._settings.event_log == SQLITE:
            return [0]
        self._readiness.expecting(LOG, "not found yet")
        while not self._stopping.is_set():
            try:
                count = count_shards(_where(self._settings))
            except (LogMissingError, LogUnavailableError) as error:
                self._readiness.waiting(LOG, str(error))
                self._stopping.wait(random.uniform(0.5, 2))
            else:
                self._readiness.found(LOG)
                return choose_shards(parse_shards(self._settings.shards), count)
        return []

    def _make_writer(self, shard: int, *, alone: bool) -> Writer:
        settings = self._settings
        url = settings.database_url.get_secret_value()
        return Writer(
            open_log=lambda: open_log(settings, shard),
            connect=lambda log_id: WriterDatabase.connect(
                url,
                log_id,
                shard,
                retention_days=settings.retention_days,
                audit_retention_days=settings.audit_retention_days,
            ),
            readiness=self._readiness,
            stopping=self._stopping,
            shard=shard,
            alone=alone,
            name=self._name,
            on_fault=self._news.set,
        )


def choose_shards(wanted: Sequence[int], count: int) -> Sequence[int]:
    """Return the shards to follow of ``count``: those that are wanted, or all.

    Raises:
        SettingError: The log has no such shard.
    """
    unknown = [shard for shard in wanted if shard >= count]
    if unknown:
        problem = f"the event log has {count} shards, from 0 on: {unknown[0]} is not among them"
        raise SettingError("DEROPS_WRITER_SHARDS", "environment", problem)
    return wanted or range(count)


def open_log(settings: WriterSettings, shard: int) -> LogReader:
    """Open a shard of the log that the settings name.

    Raises:
        LogMissingError: It is not there yet.
        LogUnavailableError: Its engine is away.
        LogMismatchError: It is not what the settings say.
        SchemaTooNewError: A newer program wrote it.
    """
    if settings.event_log == SQLITE:
        return SqliteLogReader(_directory(settings) / "events.db")
    return JetStreamLogReader(_where(settings), shard)


def open_words(settings: WriterSettings) -> WriterWords:
    """Return where a writer of the log that the settings name leaves word."""
    if settings.event_log == SQLITE:
        return FileWords(_directory(settings))
    return JetStreamWords(_where(settings))


def check_settings(settings: WriterSettings) -> None:
    """Check what one setting alone does not show.

    Raises:
        SettingError: A setting cannot be used.
    """
    check_url(settings.database_url, "DEROPS_WRITER_DATABASE_URL")
    if settings.event_log == SQLITE:
        _directory(settings)
        choose_shards(parse_shards(settings.shards), 1)


def _directory(settings: WriterSettings) -> Path:
    if settings.data_directory is None:
        problem = f"is required with {SQLITE}"
        raise SettingError("DEROPS_WRITER_DATA_DIRECTORY", "environment", problem)
    return settings.data_directory


def _where(settings: WriterSettings) -> JetStreamSettings:
    return JetStreamSettings(
        url=settings.event_log,
        credentials_file=settings.nats_credentials_file,
        ca_file=settings.nats_ca_file,
    )


def run_writer(settings: WriterSettings, stopping: threading.Event) -> bool:
    """Run the writers with their ops port until ``stopping`` is set; return whether it ended well.

    Raises:
        SettingError: A setting cannot be used.
        SchemaTooNewError: A newer program wrote the log or the database.
    """
    check_settings(settings)
    note_program("writer")
    readiness = Readiness()
    writers = ShardWriters(settings, readiness, stopping)
    try:
        ops = OpsServer(settings.ops_address, settings.ops_port, readiness, writers.thread.is_alive)
    except OSError as error:
        raise SettingError("DEROPS_WRITER_OPS_PORT", "environment", str(error)) from error
    ops.start()
    writers.thread.start()
    stopping.wait()
    writers.thread.join(STOP_SECONDS)
    ops.stop()
    if writers.refusal is not None:
        raise writers.refusal
    return not writers.crashed


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
