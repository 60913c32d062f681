"""The schema: numbered SQL files, applied in order, never backwards."""

from importlib import resources

import psycopg
import structlog

from derops.errors import SchemaTooNewError
from derops_headend.storage.engines import add_timescale

_LOCK = 0x6465726F7073  # "derops": the same key in every program that migrates
_VERSION = "select coalesce(max(version), 0) from schema_version"


def migrations() -> dict[int, bytes]:
    """Return the SQL of each version that this program knows, in order."""
    directory = resources.files("derops_headend.storage") / "migrations"
    found = {
        int(file.name.partition("_")[0]): file.read_bytes()
        for file in directory.iterdir()
        if file.name.endswith(".sql")
    }
    return dict(sorted(found.items()))


def find_version(connection: psycopg.Connection) -> int:
    """Return the version of a database's schema; 0 = there is none."""
    known = connection.execute("select to_regclass('schema_version') is not null").fetchone()
    if known != (True,):
        return 0
    row = connection.execute(_VERSION).fetchone()
    return int(row[0]) if row else 0


def migrate(connection: psycopg.Connection) -> int:
    """Bring the database to the newest version and return it; all of it happens, or nothing.

    Programs that start together take turns.

    Raises:
        SchemaTooNewError: A newer program wrote the database.
    """
    known = migrations()
    add_timescale(connection)
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(
            "create table if not exists schema_version ("
            "version integer primary key, applied_at timestamptz not null default now())"
        )
        found = find_version(connection)
        newest = max(known)
        if found > newest:
            raise SchemaTooNewError("database", found, newest)
        for version in range(found + 1, newest + 1):
            connection.execute(known[version])
            connection.execute("insert into schema_version (version) values (%s)", (version,))
            structlog.get_logger("storage").info("schema.migrated", version=version)
    return newest
