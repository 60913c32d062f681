"""How telemetry lies in the database by time: TimescaleDB's chunks, or native partitions."""

import functools
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Protocol

import psycopg
import structlog
from psycopg import errors, sql

AHEAD_DAYS = 2
"""Partitions are made this long before they are needed."""

PARTITIONED = ("telemetry", "measurement")

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
    """What the writer asks of it."""

    @property
    def description(self) -> str:
        """Product and version, for people."""

    def prepare(self, connection: psycopg.Connection, days: Iterable[date]) -> None:
        """Make room for samples of ``days`` (UTC), and commit it: not in a transaction."""

    def forget(self) -> None:
        """Look anew what there is: somebody else changed it."""

    def drop_before(self, connection: psycopg.Connection, day: date) -> int:
        """Drop chunks or partitions older than ``day``; return how many days of telemetry went."""


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
        _tell_not_used(str(error).partition("\n")[0])


@functools.cache  # what is tried again and again is told once
def _tell_not_used(why: str) -> None:
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
    """Hypertables with a chunk for each day. Works with the Apache edition."""

    def __init__(self, description: str) -> None:
        self.description = description

    def prepare(self, connection: psycopg.Connection, days: Iterable[date]) -> None:
        """Do nothing: chunks come by themselves."""

    def forget(self) -> None:
        """Do nothing: nothing is remembered."""

    def drop_before(self, connection: psycopg.Connection, day: date) -> int:
        """Drop chunks."""
        dropped = [
            connection.execute(
                "select drop_chunks(%s::regclass, older_than => %s::timestamptz)",
                (table, _midnight(day)),
            ).rowcount
            for table in PARTITIONED
        ]
        return dropped[0]


class NativePartitions:
    """Tables with a partition for each day, made when a sample of that day comes."""

    def __init__(self, description: str) -> None:
        self.description = description
        self._known: set[date] = set()

    def prepare(self, connection: psycopg.Connection, days: Iterable[date]) -> None:
        """Make the partitions that are not there."""
        for day in sorted(set(days) - self._known):
            connection.execute("select ensure_telemetry_day(%s)", (day,))
            self._known.add(day)

    def forget(self) -> None:
        """Look again for the partitions."""
        self._known.clear()

    def drop_before(self, connection: psycopg.Connection, day: date) -> int:
        """Drop partitions."""
        self.forget()
        dropped = [self._drop(connection, table, day) for table in PARTITIONED]
        return dropped[0]

    def _drop(self, connection: psycopg.Connection, table: str, day: date) -> int:
        rows = connection.execute(
            "select relname from pg_inherits join pg_class on oid = inhrelid "
            "where inhparent = %s::regclass and relname < %s",
            (table, f"{table}_{day:%Y%m%d}"),
        ).fetchall()
        for (name,) in rows:
            connection.execute(sql.SQL("drop table {}").format(sql.Identifier(name)))
        return len(rows)


def days_ahead(now: datetime) -> list[date]:
    """Return the days whose partitions should be there already."""
    return [(now + timedelta(days=n)).date() for n in range(AHEAD_DAYS + 1)]


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
