"""The roles have the rights that they need, on any server, and no others."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import errors
from tests.headend.storage.storing import NOW, Sample, Store, roll_up_all, us
from tests.stack.postgres import OWNER, READER, WRITER, PostgresServer

from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.engines import detect
from derops_headend.storage.maintenance import Keeper
from derops_headend.storage.roles import (
    FUNCTIONS,
    TABLES,
    find_missing,
    find_superfluous,
    roles_sql,
)
from derops_headend.storage.schema import migrate

PROGRAM = Path(sys.executable).parent / "derops-headend"
NAME = "roles"


@pytest.fixture(params=["postgres_server", "timescale_server"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    found: PostgresServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def reader(server: PostgresServer, database_url: str) -> Iterator[psycopg.Connection]:
    """Return a connection of the reader to a database in which the writer has made its tables."""
    database = WriterDatabase.connect(database_url, "log")
    Store(database)([Sample(us(NOW), 1.0)])
    database.close()
    name = database_url.rpartition("/")[2]
    with psycopg.connect(server.url(name, READER), autocommit=True) as connection:
        yield connection


@pytest.fixture
def database_url(server: PostgresServer) -> Iterator[str]:
    yield server.create_for_roles(NAME, roles_sql())
    server.drop_database(NAME)


@pytest.fixture
def roles_known(server: PostgresServer) -> None:
    """Have the roles, which are those of all databases of a server."""
    server.create_for_roles("roles_elsewhere", roles_sql())
    server.drop_database("roles_elsewhere")


@pytest.fixture
def old_url(server: PostgresServer) -> Iterator[str]:
    """Return the URL of a database that was filled before there were roles, by its owner."""
    url = server.create_database(NAME)
    database = WriterDatabase.connect(url, "log", retention_days=400)
    Store(database)([Sample(us(NOW - timedelta(days=n)), 1.0) for n in range(5, 0, -1)])
    database.close()
    yield url
    server.drop_database(NAME)


def check(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, "database", "roles", "--check"],
        env={"PATH": os.environ["PATH"], "DEROPS_WRITER_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def missing(url: str) -> list[str]:
    with psycopg.connect(url, autocommit=True) as connection:
        return find_missing(connection)


def test_all_that_the_writer_makes_is_known_and_the_readers_too(reader: psycopg.Connection) -> None:
    made = reader.execute(
        "select relname from pg_class where relnamespace = 'public'::regnamespace "
        "and relkind in ('r', 'p', 'v', 'm', 'f') and not relispartition "
        "and pg_get_userbyid(relowner) = %s",
        (WRITER,),
    ).fetchall()
    functions = reader.execute(
        "select proname from pg_proc where pg_get_userbyid(proowner) = %s", (WRITER,)
    ).fetchall()

    assert {name for (name,) in made} == set(TABLES)
    assert {name for (name,) in functions} == set(FUNCTIONS)
    text = roles_sql().decode()
    assert [name for name in (*TABLES, *FUNCTIONS) if name not in text] == []
    for table in TABLES:
        reader.execute(f"select * from {table} limit 1".encode())


def test_nothing_is_missing_after_it_and_after_it_again(
    server: PostgresServer, database_url: str
) -> None:
    before = check(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        migrate(connection)
    server.apply_roles(NAME, roles_sql())
    after = check(database_url)

    for result in (before, after):
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"{WRITER} in database {NAME} has all that the writer needs\n"


FORBIDDEN = [
    "create role another",
    "create database another",
    "create schema another",
    "create extension hstore",
    "create extension file_fdw",
    "select * from secrets.keys",
    "create table secrets.mine ()",
    "select * from pg_authid",
    "select pg_read_file('/etc/passwd')",
    "copy (select 1) to program 'true'",
    "alter system set fsync = off",
    "set role postgres",
    "alter role derops_writer superuser",
    "alter role derops_reader login",
]


@pytest.mark.parametrize("role", [WRITER, READER])
def test_what_no_role_needs_is_refused(
    server: PostgresServer, database_url: str, role: str
) -> None:
    with server.superuser(NAME) as connection:
        connection.execute("create schema secrets")
        connection.execute("create table secrets.keys ()")

    with psycopg.connect(server.url(NAME, role), autocommit=True) as connection:
        for statement in FORBIDDEN:
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement.encode())


CHANGES = [
    "create table mine ()",
    "create view mine as select 1",
    "create function mine() returns int language sql as 'select 1'",
    "insert into asset (namespace, name, uid) values ('a', 'b', 'c')",
    "update telemetry set active_power_watts = 0",
    "delete from dispatch_event",
    "truncate quarantine",
    "drop table telemetry",
    "alter table asset add column mine int",
    "lock table roll_up_due in share row exclusive mode",
    "select ensure_telemetry_day('2030-01-01')",
]


def test_the_reader_changes_nothing(reader: psycopg.Connection) -> None:
    for statement in CHANGES:
        with pytest.raises(errors.InsufficientPrivilege), reader.transaction():
            reader.execute(statement.encode())


def test_the_history_is_the_readers_too(server: PostgresServer, reader: psycopg.Connection) -> None:
    result = subprocess.run(
        [PROGRAM, "history", "--summary"],
        env={"DEROPS_WRITER_DATABASE_URL": server.url(NAME, READER)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (result.returncode, result.stdout) == (0, "none\n"), result.stderr


def test_a_database_of_an_earlier_version_becomes_the_writers(
    server: PostgresServer, old_url: str
) -> None:
    as_writer = server.url(NAME, WRITER)
    server.apply_roles(NAME, roles_sql())
    server.apply_roles(NAME, roles_sql())

    assert missing(as_writer) == []
    database = WriterDatabase.connect(as_writer, "log", retention_days=3)
    try:
        store = Store(database, offset=1)
        store([Sample(us(NOW), 2.0), Sample(us(NOW - timedelta(days=9)), 3.0)])
        roll_up_all(as_writer)
        with psycopg.connect(as_writer, autocommit=True) as connection:
            keeper = Keeper(connection, detect(connection), retention_days=3)
            keeper.drop_before((datetime.now(UTC) - timedelta(days=3)).date())
    finally:
        database.close()
    with psycopg.connect(server.url(NAME, READER), autocommit=True) as connection:
        rows = connection.execute(
            "select count(*), min(ts) >= now() - interval '4 days' from telemetry"
        ).fetchone()
        rolled_up = connection.execute("select sum(samples) from telemetry_1m").fetchone()
    assert rows == (4, True)
    assert rolled_up == (6,)  # what comes later than its day was dropped is not


def test_an_old_schema_is_upgraded_by_the_writer(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from derops_headend.storage.schema import migrations

    first = {version: text for version, text in migrations().items() if version < 4}
    url = server.create_database(NAME)
    try:
        with monkeypatch.context() as before:
            before.setattr("derops_headend.storage.schema.migrations", lambda: first)
            with psycopg.connect(url, autocommit=True) as connection:
                migrate(connection)
        server.apply_roles(NAME, roles_sql())

        with psycopg.connect(server.url(NAME, WRITER), autocommit=True) as connection:
            assert migrate(connection) == max(migrations())
            assert find_missing(connection) == []
        with psycopg.connect(server.url(NAME, READER), autocommit=True) as connection:
            connection.execute("select * from dispatch_claim")
    finally:
        server.drop_database(NAME)


def test_what_is_missing_is_said_in_plain_lines(server: PostgresServer, database_url: str) -> None:
    with server.superuser(NAME) as connection:
        connection.execute("revoke create on schema public from derops_writer")
        connection.execute(f"revoke temporary on database {NAME} from derops_writer".encode())
        connection.execute(f"revoke temporary on database {NAME} from public".encode())

    result = check(database_url)

    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.splitlines() == [
        f"missing: {WRITER} may not create tables in schema public of database {NAME}",
        f"missing: {WRITER} may not create temporary tables in database {NAME}",
    ]


def test_tables_of_somebody_else_are_said(
    server: PostgresServer, roles_known: None, old_url: str
) -> None:
    result = check(server.url(NAME, WRITER))

    lines = result.stdout.splitlines()
    assert result.returncode == 1
    assert f"missing: {WRITER} may not create tables in schema public of database {NAME}" in lines
    assert (
        f"missing: asset belongs to {OWNER} and not to {WRITER}: "
        "only an owner alters and drops tables"
    ) in lines
    assert f"missing: {READER} may not read asset" in lines
    assert len(lines) < 20


def test_a_schema_that_nobody_may_use_is_said(server: PostgresServer, database_url: str) -> None:
    with server.superuser(NAME) as connection:
        connection.execute("revoke usage on schema public from public, derops_writer")

    assert missing(database_url) == [
        f"{WRITER} may use no schema of its search_path in database {NAME}, such as public"
    ]


def test_a_reader_that_is_not_there_is_said(server: PostgresServer, database_url: str) -> None:
    with server.superuser() as connection:
        connection.execute("alter role derops_reader rename to somebody")
        try:
            assert missing(database_url) == [f"there is no role {READER}"]
        finally:
            connection.execute("alter role somebody rename to derops_reader")


def test_a_database_that_is_read_only_is_said(server: PostgresServer, database_url: str) -> None:
    with server.superuser() as connection:
        connection.execute(f"alter database {NAME} set default_transaction_read_only = on".encode())

    assert missing(database_url) == [
        "transactions are read only here (default_transaction_read_only)"
    ]


def test_more_than_is_needed_is_noted_and_no_failure(
    server: PostgresServer, database_url: str
) -> None:
    with server.superuser() as connection:
        connection.execute("alter role derops_writer createrole createdb")
        try:
            result = check(database_url)
        finally:
            connection.execute("alter role derops_writer nocreaterole nocreatedb")

    assert result.returncode == 0
    assert [line for line in result.stdout.splitlines() if line.startswith("note: ")] == [
        f"note: {WRITER} may create roles: the writer needs no such right",
        f"note: {WRITER} may create databases: the writer needs no such right",
    ]


def test_who_does_not_use_timescale_though_it_is_there_is_told_in_time(
    timescale_server: PostgresServer,
) -> None:
    url = timescale_server.create_database("without")
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            (note,) = find_superfluous(connection)
    finally:
        timescale_server.drop_database("without")

    assert note.startswith("the server has TimescaleDB, and database without does not use it")


def test_where_everybody_could_create_nobody_else_can(server: PostgresServer) -> None:
    """PostgreSQL 14 has it so."""
    url = server.create_database(NAME)
    try:
        with server.superuser(NAME) as connection:
            connection.execute("alter schema public owner to postgres")
            connection.execute("grant all on schema public to public")
        server.apply_roles(NAME, roles_sql())

        for stranger in (url, server.url(NAME, READER)):
            with (
                psycopg.connect(stranger, autocommit=True) as connection,
                pytest.raises(errors.InsufficientPrivilege),
            ):
                connection.execute("create table mine ()")
        with psycopg.connect(server.url(NAME, WRITER), autocommit=True) as connection:
            migrate(connection)
    finally:
        server.drop_database(NAME)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param((f"{WRITER}:", f"{WRITER}:x"), "password authentication failed", id="secret"),
        pytest.param((f"/{NAME}", "/nowhere"), 'database "nowhere" does not exist', id="database"),
        pytest.param((WRITER, "nobody"), "password authentication failed", id="role"),
    ],
)
def test_a_database_that_is_not_to_be_had_is_said(
    database_url: str, change: tuple[str, str], said: str
) -> None:
    result = check(database_url.replace(*change))

    assert (result.returncode, result.stderr) == (1, "")
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"missing: {said}")
    assert database_url.split(":")[2].split("@")[0] not in line, "a password is nobody's to see"
