"""A writer whose database is not as it should be says what is wrong and what to do, once."""

import asyncio
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from tests.headend.writing.making import T0_US, telemetry
from tests.programs import pods
from tests.programs.pods import Running, started
from tests.stack import ops
from tests.stack.places import free_port
from tests.stack.postgres import READER, WRITER, PostgresServer

from derops_headend.eventlog.sqlite import SqliteEventLog
from derops_headend.storage.roles import roles_sql
from derops_headend.storage.schema import migrate

ROLES_COMMAND = '"derops-headend database roles"'
TRIES = 4
_numbers = itertools.count(1)


@pytest.fixture
def name(postgres_server: PostgresServer) -> Iterator[str]:
    """Return the name of a database that is as it should be, with the roles."""
    name = f"bad_{next(_numbers)}"
    postgres_server.create_for_roles(name, roles_sql())
    yield name
    postgres_server.drop_database(name)


async def fill_log(data: Path) -> None:
    log = SqliteEventLog(data / "events.db")
    await log.append([telemetry({"active_power_watts": [1.0]}, t0_us=T0_US)])
    log.close()
    for file in data.iterdir():
        os.chown(file, pods.UID, pods.UID)


def events(running: Running, part: str) -> list[str]:
    """Return what its log says of a part, but for tries."""
    lines = [json.loads(line) for line in running.said().splitlines()]
    return [line["event"] for line in lines if line.get("part") == part]


Spoil = Callable[[PostgresServer, str], str]


def away(server: PostgresServer, name: str) -> str:
    return server.url(name, WRITER).replace(str(server.port), str(free_port()))


def wrong_password(server: PostgresServer, name: str) -> str:
    return server.url(name, WRITER).replace(f"{WRITER}:", f"{WRITER}:x")


def no_password(server: PostgresServer, name: str) -> str:
    return f"postgresql://{WRITER}@127.0.0.1:{server.port}/{name}"


def no_database(server: PostgresServer, name: str) -> str:
    return server.url("nowhere", WRITER)


def no_host(server: PostgresServer, name: str) -> str:
    return f"postgresql://{WRITER}@nowhere.invalid/{name}"


def may_not_connect(server: PostgresServer, name: str) -> str:
    with server.superuser(name) as connection:
        connection.execute(f"revoke connect on database {name} from public, {WRITER}".encode())
    return server.url(name, WRITER)


def may_not_create(server: PostgresServer, name: str) -> str:
    with server.superuser(name) as connection:
        connection.execute(f"revoke create on schema public from {WRITER}".encode())
    return server.url(name, WRITER)


def may_not_use_the_schema(server: PostgresServer, name: str) -> str:
    with server.superuser(name) as connection:
        connection.execute(f"revoke usage on schema public from public, {WRITER}".encode())
    return server.url(name, WRITER)


def is_only_a_reader(server: PostgresServer, name: str) -> str:
    return server.url(name, READER)


def tables_of_another(server: PostgresServer, name: str) -> str:
    with server.superuser(name) as connection:
        migrate(connection)
    return server.url(name, WRITER)


def may_not_insert(server: PostgresServer, name: str) -> str:
    with psycopg.connect(server.url(name, WRITER), autocommit=True) as connection:
        migrate(connection)
        connection.execute(f"revoke insert on log_offset from {WRITER}".encode())
    return server.url(name, WRITER)


def read_only(server: PostgresServer, name: str) -> str:
    with server.superuser() as connection:
        connection.execute(f"alter database {name} set default_transaction_read_only = on".encode())
    return server.url(name, WRITER)


def no_tls(server: PostgresServer, name: str) -> str:
    return f"{server.url(name, WRITER)}?sslmode=verify-full"


@pytest.mark.parametrize(
    ("spoil", "wrong", "todo"),
    [
        (away, "connection to server at", "Connection refused"),
        (wrong_password, "password authentication failed", ROLES_COMMAND),
        (no_password, "connection to server at", "give the role a password"),
        (no_database, 'database "nowhere" does not exist', "create it, then run what"),
        (no_host, "failed to resolve host", "is the host in the URL right?"),
        (may_not_connect, "permission denied for database", ROLES_COMMAND),
        (may_not_create, "permission denied for schema public", ROLES_COMMAND),
        (may_not_use_the_schema, "no schema has been selected to create in", ROLES_COMMAND),
        (is_only_a_reader, "permission denied for schema public", ROLES_COMMAND),
        (tables_of_another, "permission denied for table schema_version", ROLES_COMMAND),
        (may_not_insert, "permission denied for table log_offset", ROLES_COMMAND),
        (read_only, "cannot execute", "name the primary in the URL"),
        (no_tls, "connection to server at", "sslmode"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)  # fmt: skip
async def test_it_is_said_on_readyz_and_in_one_line(
    postgres_server: PostgresServer,
    name: str,
    directory: Path,
    spoil: Spoil,
    wrong: str,
    todo: str,
) -> None:
    await fill_log(directory / "data")
    url = await asyncio.to_thread(spoil, postgres_server, name)
    program = pods.writer(directory)
    settings = {**program.settings, "DEROPS_WRITER_DATABASE_URL": url}
    settings["DEROPS_WRITER_LOG_LEVEL"] = "DEBUG"

    with started(dataclasses.replace(program, settings=settings), directory) as running:
        await pods.until(lambda: events(running, "database").count("writer.failed") >= TRIES)
        seen = [ops.ask(program.ops_port) for _ in range(3)]
        alive = ops.ask(program.ops_port, "livez")
        told = events(running, "database")

    texts = {text for status, text in seen if status == 503}
    assert texts
    for text in texts:
        first = text.splitlines()[0]
        assert first.startswith(f"waiting for database: {wrong}")
        assert todo in first
    assert told.count("dependency.missing") == 1
    assert told.count("dependency.found") <= 1
    assert alive == (200, "ok\n")
    password = postgres_server.url(name).split(":")[2].split("@")[0]
    assert password not in running.said() + "".join(texts)
