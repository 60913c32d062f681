"""How telemetry lies in the database by time: TimescaleDB's chunks, or native partitions."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Protocol

import psycopg
import structlog
from psycopg import errors, sql

AHEAD_DAYS = 2
"""Partitions are made this long before they are needed: making one locks out readers."""

_REFUSALS = (
    errors.InsufficientPrivilege,
    errors.FeatureNotSupported,  # not in shared_preload_libraries
    errors.ObjectNotInPrerequisiteState,
    errors.UndefinedFile,
    errors.ConfigFileError,
    errors.InternalError,
    errors.UniqueViolation,  # another writer was faster
)


class Engine(Protocol):
    """What the writer asks of it. Each call commits: none belongs into a transaction."""

    @property
    def description(self) -> str:
        """Product and version, for people."""

    def prepare(self, connection: psycopg.Connection, days: Iterable[date]) -> None:
        """Make room for samples of ``days`` (UTC)."""

    def drop_before(self, connection: psycopg.Connection, day: date) -> int:
        """Drop what is all older than ``day``; return how many days' pieces went."""


def add_timescale(connection: psycopg.Connection) -> None:
    """Add TimescaleDB to a new database where the server has it and lets us."""
    known = connection.execute(
        "select installed_version is null and to_regclass('schema_version') is null "
        "from pg_available_extensions where name = 'timescaledb'"
    ).fetchone()
    if known is None or not known[0]:
        return
    try:
        with connection.transaction():
            connection.execute("create extension if not exists timescaledb")
    except _REFUSALS as error:
        why = str(error).partition("\n")[0]
        structlog.get_logger("storage").warning("timescaledb.not_used", why=why)


def detect(connection: psycopg.Connection) -> Engine:
    """Return how telemetry of a migrated database lies."""
    (version,) = connection.execute("select current_setting('server_version')").fetchone() or ("",)
    postgres = f"PostgreSQL {str(version).split()[0]}"
    row = connection.execute(
        "select extversion from pg_extension where extname = 'timescaledb'"
    ).fetchone()
    if row is not None and _is_hypertable(connection):
        return Timescale(f"TimescaleDB {row[0]} on {postgres}")
    return NativePartitions(f"{postgres}, daily partitions")


def _is_hypertable(connection: psycopg.Connection) -> bool:
    query = (
        "select from timescaledb_information.hypertables where hypertable_name = 'telemetry' "
        "and hypertable_schema = current_schema()"
    )
    return connection.execute(query).fetchone() is not None


class Timescale:
    """A hypertable with a chunk for each day. Works with the Apache edition."""

    def __init__(self, description: str) -> None:
        self.description = description

    def prepare(self, connection: psycopg.Connection, days: Iterable[date]) -> None:
        """Do nothing: chunks come by themselves."""

    def drop_before(self, connection: psycopg.Connection, day: date) -> int:
        """Drop chunks."""
        rows = connection.execute(
            "select drop_chunks('telemetry', older_than => %s::timestamptz)", (_midnight(day),)
        ).fetchall()
        return len(rows)


class NativePartitions:
    """A table with a partition for each day, made when a sample of that day comes."""

    def __init__(self, description: str) -> None:
        self.description = description
        self._known: set[date] = set()

    def prepare(self, connection: psycopg.Connection, days: Iterable[date]) -> None:
        """Make the partitions that are not there."""
        for day in sorted(set(days) - self._known):
            connection.execute("select ensure_telemetry_day(%s)", (day,))
            self._known.add(day)

    def drop_before(self, connection: psycopg.Connection, day: date) -> int:
        """Drop partitions."""
        names = [
            name
            for (name,) in connection.execute(
                "select inhrelid::regclass::text from pg_inherits "
                "where inhparent = 'telemetry'::regclass"
            )
            if name < f"telemetry_{day:%Y%m%d}"
        ]
        for name in names:
            connection.execute(sql.SQL("drop table {}").format(sql.Identifier(name)))
        self._known.clear()
        return len(names)


def days_ahead(now: datetime) -> list[date]:
    """Return the days whose partitions should be there already."""
    return [(now + timedelta(days=n)).date() for n in range(AHEAD_DAYS + 1)]


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
