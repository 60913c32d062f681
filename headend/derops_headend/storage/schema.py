"""The schema: numbered SQL files, applied in order, never backwards.

A file that begins with ``-- readable from N`` lets programs of schema version N go on; one that
does not is for programs of its own version. The table ``schema_version`` has what programs must
know at least, so that also those that know no such note refuse by it.
"""

import re
from importlib import resources
from typing import NamedTuple

import psycopg
import structlog

from derops.errors import SchemaTooNewError
from derops_headend.storage.engines import add_timescale

_LOCK = 0x6465726F7073  # "derops": the same key in every program that migrates
_NOTE = re.compile(rb"-- readable from (\d+)\n")
_TABLES = (
    "create table if not exists schema_version ("
    "version integer primary key, applied_at timestamptz not null default now())",
    "create table if not exists schema_applied ("
    "version integer primary key, readable_from integer not null, "
    "applied_at timestamptz not null default now())",
)


class SchemaState(NamedTuple):
    """How far a database is."""

    version: int
    """The newest migration that has run; 0 = none."""

    readable_from: int
    """The oldest version whose programs can use it."""


def migrations() -> dict[int, bytes]:
    """Return the SQL of each version that this program knows, in order."""
    directory = resources.files("derops_headend.storage") / "migrations"
    found = {
        int(file.name.partition("_")[0]): file.read_bytes()
        for file in directory.iterdir()
        if file.name.endswith(".sql")
    }
    return dict(sorted(found.items()))


def readable_from(version: int, text: bytes) -> int:
    """Return the oldest version whose programs can use a database after a migration."""
    note = _NOTE.match(text)
    return int(note[1]) if note else version


def find_state(connection: psycopg.Connection) -> SchemaState:
    """Return how far a database is."""
    least = _newest(connection, "schema_version")
    if not least:
        return SchemaState(0, 0)
    return SchemaState(max(least, _newest(connection, "schema_applied")), least)


def _newest(connection: psycopg.Connection, table: str) -> int:
    row = connection.execute("select to_regclass(%s) is not null", (table,)).fetchone()
    if row != (True,):
        return 0
    # Both names are our own.
    query = f"select coalesce(max(version), 0) from {table}"  # noqa: S608
    row = connection.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0


def migrate(connection: psycopg.Connection) -> int:
    """Bring the database to the newest version and return it; all of it happens, or nothing.

    Programs that start together take turns. A database that a newer program has brought further,
    and that this one can use, stays as it is.

    Raises:
        SchemaTooNewError: It is for newer programs.
    """
    known = migrations()
    add_timescale(connection)
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
        for statement in _TABLES:
            connection.execute(statement.encode())
        found = find_state(connection)
        newest = max(known)
        if found.readable_from > newest:
            raise SchemaTooNewError("database", found.readable_from, newest)
        for version in range(found.version + 1, newest + 1):
            _apply(connection, version, known[version])
    return max(found.version, newest)


def _apply(connection: psycopg.Connection, version: int, text: bytes) -> None:
    oldest = readable_from(version, text)
    connection.execute(text)
    connection.execute(
        "insert into schema_applied (version, readable_from) values (%s, %s)", (version, oldest)
    )
    connection.execute(
        "insert into schema_version (version) values (%s) on conflict do nothing", (oldest,)
    )
    structlog.get_logger("storage").info("schema.migrated", version=version, readable_from=oldest)
