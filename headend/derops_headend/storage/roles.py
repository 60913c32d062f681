"""The roles that derops has in PostgreSQL: the SQL that makes them, and what they lack."""

from collections.abc import Iterator
from importlib import resources
from typing import Any

import psycopg

READER = "derops_reader"
API = "derops_api"
OLDEST_POSTGRES = 14
TABLES = (
    "schema_version",
    "schema_applied",
    "asset",
    "telemetry",
    "telemetry_1m",
    "telemetry_15m",
    "roll_up_due",
    "retention",
    "measurement",
    "telemetry_gap",
    "dispatch_event",
    "dispatch_claim",
    "dispatch_history",
    "dispatch_told",
    "dispatch",
    "dispatch_summary",
    "dispatch_backfill",
    "connection_event",
    "quarantine",
    "log_offset",
    "audit_event",
)
"""Tables and views that the writer makes; partitions are beside them."""

FUNCTIONS = (
    "from_microseconds",
    "ensure_telemetry_day",
    "refresh_dispatch",
    "keep_dispatches",
    "ensure_audit_month",
    "refuse_change_of_audit",
)

_SERVER = """
    select current_setting('server_version'), current_setting('server_version_num')::int / 10000,
      pg_is_in_recovery(), current_setting('default_transaction_read_only')::bool
"""
_RIGHTS = """
    select current_user, current_database(), current_schema(),
      coalesce(has_schema_privilege(current_schema(), 'CREATE'), false),
      has_database_privilege(current_database(), 'TEMPORARY'),
      rolsuper, rolcreaterole, rolcreatedb
    from pg_roles where rolname = current_user
"""
_FOREIGN = """
    select relname, pg_get_userbyid(relowner) from pg_class
    where relnamespace = current_schema()::regnamespace and not pg_has_role(relowner, 'USAGE') and (
      relname = any(%(tables)s) or oid in (
        select inhrelid from pg_inherits
        where inhparent in (
          to_regclass('telemetry'), to_regclass('measurement'), to_regclass('audit_event')
        )
      )
    )
    union all
    select proname, pg_get_userbyid(proowner) from pg_proc
    where pronamespace = current_schema()::regnamespace and not pg_has_role(proowner, 'USAGE')
      and proname = any(%(functions)s)
    order by 1
"""
_UNREADABLE = """
    select relname from pg_class
    where relnamespace = current_schema()::regnamespace and relname = any(%(tables)s)
      and not has_table_privilege(coalesce(%(reader)s::name, current_user), oid, 'SELECT')
    order by 1
"""
_OF_AUDIT = """
    select has_table_privilege(%(role)s, 'audit_event', 'INSERT'),
      has_table_privilege(%(role)s, 'audit_event', 'UPDATE, DELETE, TRUNCATE, TRIGGER')
      or pg_has_role(%(role)s, relowner, 'MEMBER')
    from pg_class where oid = to_regclass('audit_event')
"""
_OURS_ARE_THERE = "select to_regclass('dispatch_event') is not null"
_TIMESCALE_IS_OFFERED = """
    select from pg_available_extensions where name = 'timescaledb' and installed_version is null
"""
_SHOWN = 5


def roles_sql() -> bytes:
    """Return the SQL that makes the roles; it may be run again and again."""
    return (resources.files("derops_headend.storage") / "roles.sql").read_bytes()


def find_missing(connection: psycopg.Connection) -> list[str]:
    """Return what the role of a connection lacks to be a writer, and the others; a line each.

    A database need not have a role for the API; where there is one, it has what it needs.
    """
    return [
        *_missing_of_server(connection),
        *_missing_of_writer(connection),
        *_missing_of_reader(connection),
        *_missing_of_api(connection),
    ]


def find_unreadable(connection: psycopg.Connection, reader: str | None = None) -> list[str]:
    """Return the tables and views that are there and ``reader`` may not read; None = who asks."""
    rows = connection.execute(_UNREADABLE, {"tables": list(TABLES), "reader": reader}).fetchall()
    return [name for (name,) in rows]


def find_superfluous(connection: psycopg.Connection) -> list[str]:
    """Return what is not as it should be and hinders nothing; a line each."""
    found = []
    user, database, *_, is_super, makes_roles, makes_databases = _rights(connection)
    for has, right in (
        (is_super, "is a superuser"),
        (makes_roles and not is_super, "may create roles"),
        (makes_databases and not is_super, "may create databases"),
    ):
        if has:
            found.append(f"{user} {right}: the writer needs no such right")
    if not _is_role(connection, API):
        found.append(f"there is no role {API}: the API needs it, if you run that")
    elif _rights_in_audit(connection)[1]:
        found.append(f"{API} may change audit_event, or become who may: it should only add rows")
    is_offered = connection.execute(_TIMESCALE_IS_OFFERED).fetchone() is not None
    if is_offered and not _ours_are_there(connection):
        found.append(
            f"the server has TimescaleDB, and database {database} does not use it: a superuser "
            "creates the extension before the writer makes its tables, or never"
        )
    return found


def _missing_of_server(connection: psycopg.Connection) -> Iterator[str]:
    version, major, is_standby, is_read_only = connection.execute(_SERVER).fetchone() or ()
    if major < OLDEST_POSTGRES:
        yield f"PostgreSQL {version} is too old: {OLDEST_POSTGRES} or newer is needed"
    if is_standby:
        yield "the server is a standby: name the primary in the URL"
    elif is_read_only:
        yield "transactions are read only here (default_transaction_read_only)"


def _missing_of_writer(connection: psycopg.Connection) -> Iterator[str]:
    user, database, schema, may_create, may_stage, *_ = _rights(connection)
    if schema is None:
        yield f"{user} may use no schema of its search_path in database {database}, such as public"
    elif not may_create:
        yield f"{user} may not create tables in schema {schema} of database {database}"
    if not may_stage:
        yield f"{user} may not create temporary tables in database {database}"
    rows = connection.execute(
        _FOREIGN, {"tables": list(TABLES), "functions": list(FUNCTIONS)}
    ).fetchall()
    for name, owner in rows[:_SHOWN]:
        yield f"{name} belongs to {owner} and not to {user}: only an owner alters and drops tables"
    if len(rows) > _SHOWN:
        yield f"and so do {len(rows) - _SHOWN} others"


def _missing_of_reader(connection: psycopg.Connection) -> Iterator[str]:
    if not _is_role(connection, READER):
        yield f"there is no role {READER}"
        return
    yield from _unreadable(connection, READER)


def _missing_of_api(connection: psycopg.Connection) -> Iterator[str]:
    if not _is_role(connection, API):
        return
    yield from _unreadable(connection, API)
    if not _rights_in_audit(connection)[0]:
        yield f"{API} may not insert into audit_event"


def _unreadable(connection: psycopg.Connection, role: str) -> Iterator[str]:
    names = find_unreadable(connection, role)
    for name in names[:_SHOWN]:
        yield f"{role} may not read {name}"
    if len(names) > _SHOWN:
        yield f"nor {len(names) - _SHOWN} others"


def _is_role(connection: psycopg.Connection, name: str) -> bool:
    row = connection.execute("select from pg_roles where rolname = %s", (name,)).fetchone()
    return row is not None


def _rights_in_audit(connection: psycopg.Connection) -> tuple[bool, bool]:
    """Return whether the API's role may add to the audit, and whether it may do more."""
    row = connection.execute(_OF_AUDIT, {"role": API}).fetchone()
    return (row[0], row[1]) if row else (True, False)


def _rights(connection: psycopg.Connection) -> tuple[Any, ...]:
    return connection.execute(_RIGHTS).fetchone() or ()


def _ours_are_there(connection: psycopg.Connection) -> bool:
    return connection.execute(_OURS_ARE_THERE).fetchone() == (True,)
