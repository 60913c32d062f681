"""Reading through the API's connections, on a server that is away, frozen, slow or not ours."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import psycopg
import pytest
from tests.stack.postgres import READER, PostgresServer
from tests.waiting import now, until

from derops.observability import Readiness
from derops_headend.api.database import TURN_SECONDS, ReadingDatabase
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.api.shares import SHARE
from derops_headend.storage.roles import roles_sql
from derops_headend.storage.schema import migrate, migrations

NOWHERE = "postgresql://nobody@127.0.0.1:1/none"
PATIENCE_SECONDS = 60.0
READ_SECONDS = 4.0
_callers = itertools.count(1)
Open = Callable[..., AbstractAsyncContextManager[ReadingDatabase]]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Return a server of these tests alone: they stop it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    """Return the reader's URL of a migrated database."""
    writer = server.create_for_roles("history", roles_sql())
    with psycopg.connect(writer, autocommit=True) as connection:
        migrate(connection)
    yield server.url("history", READER)
    server.drop_database("history")


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
async def database(url: str, readiness: Readiness) -> AsyncIterator[ReadingDatabase]:
    async with ReadingDatabase(
        url, readiness, connections=2, statement_milliseconds=500, read_seconds=READ_SECONDS
    ) as opened:
        yield opened


def one(connection: psycopg.Connection, text: str = "select 1") -> object:
    row = connection.execute(text.encode()).fetchone()
    assert row is not None
    return row[0]


async def refusal_of(
    database: ReadingDatabase, text: str = "select 1"
) -> tuple[ProblemError, float]:
    """Return how a caller of its own is refused, and after how long."""
    SHARE.set(f"caller-{next(_callers)}")
    begun = now()
    with pytest.raises(ProblemError) as caught:
        await database.read(one, text)
    assert caught.value.slug is Slug.DATABASE_UNAVAILABLE
    assert caught.value.retry_after_seconds
    return caught.value, now() - begun


async def until_read(database: ReadingDatabase) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                assert await database.read(one) == 1
            except ProblemError:
                await asyncio.sleep(0.02)
            else:
                return


async def test_what_is_read_is_one_state_and_nothing_is_written(
    database: ReadingDatabase, readiness: Readiness
) -> None:
    def twice(connection: psycopg.Connection) -> set[object]:
        return {one(connection, "select pg_current_snapshot()::text") for _ in range(2)}

    assert len(await database.read(twice)) == 1
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        await database.read(one, "create temporary table t (i int); select 1")
    assert await database.read(one) == 1
    await until(lambda: "database: PostgreSQL" in readiness.report()[1])


async def test_a_database_that_is_away_is_told_of_at_once_and_comes_back_by_itself(
    server: PostgresServer,
    database: ReadingDatabase,
    readiness: Readiness,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await database.read(one) == 1
    server.process.terminate()

    _, seconds = await refusal_of(database)
    assert seconds < READ_SECONDS
    await until(lambda: "degraded database" in readiness.report()[1])
    connect, tries = psycopg.connect, list[str]()

    def counted(url: str, **options: Any) -> psycopg.Connection:
        tries.append(url)
        return connect(url, **options)

    monkeypatch.setattr(psycopg, "connect", counted)
    for _ in range(100):
        await refusal_of(database)
    assert len(tries) < 20, "it is looked for once a second, and not for each call"
    assert readiness.report()[0], "what needs no database goes on"

    server.start_again()
    await until_read(database)
    await until(lambda: "database: PostgreSQL" in readiness.report()[1])
    assert "degraded" not in readiness.report()[1]


async def test_connections_that_broke_while_nobody_used_them_fail_no_call(
    server: PostgresServer, database: ReadingDatabase
) -> None:
    await asyncio.gather(*(database.read(one, "select pg_sleep(0.1) is null") for _ in range(2)))
    with server.superuser() as superuser:
        superuser.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = %s",
            (READER,),
        )

    assert await database.read(one) == 1


async def test_a_server_that_froze_holds_no_thread(
    server: PostgresServer, database: ReadingDatabase, readiness: Readiness
) -> None:
    await asyncio.gather(*(database.read(one, "select pg_sleep(0.1) is null") for _ in range(2)))
    with server.superuser() as superuser:
        pids = [
            pid
            for (pid,) in superuser.execute(
                "select pid from pg_stat_activity where usename = %s", (READER,)
            )
        ]
    pids.append(server.process.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        refused = await asyncio.gather(*(refusal_of(database) for _ in range(4)))
        assert max(seconds for _, seconds in refused) < TURN_SECONDS + READ_SECONDS + 2
        await until(lambda: "degraded database" in readiness.report()[1])
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    await until_read(database)


async def test_a_statement_that_takes_too_long_leaves_its_connection_free(
    server: PostgresServer, database: ReadingDatabase
) -> None:
    refused = await asyncio.gather(
        *(refusal_of(database, "select pg_sleep(30) is null") for _ in range(2))
    )
    assert all("longer than 0.5 s" in problem.detail for problem, _ in refused)

    assert await database.read(one) == 1
    with server.superuser() as superuser:
        assert (
            one(superuser, "select count(*) from pg_stat_activity where query ~ '^select pg_sleep'")
            == 0
        )


async def test_a_read_of_many_statements_ends_with_them_all(database: ReadingDatabase) -> None:
    def many(connection: psycopg.Connection) -> None:
        for _ in range(50):
            one(connection, "select pg_sleep(0.3) is null")

    begun = now()
    with pytest.raises(ProblemError):
        await database.read(many)
    assert now() - begun < READ_SECONDS + 2
    assert await database.read(one) == 1


async def test_who_comes_when_all_connections_are_busy_is_told_so(url: str) -> None:
    async with ReadingDatabase(
        url, Readiness(), connections=1, statement_milliseconds=20_000, read_seconds=20.0
    ) as database:
        busy = asyncio.create_task(database.read(one, "select pg_sleep(12) is null"))
        await asyncio.sleep(0)
        problem, seconds = await refusal_of(database)
        assert "busy" in problem.detail
        assert seconds < TURN_SECONDS + 2
        assert not busy.done()
        await busy


async def test_no_caller_is_told_where_the_database_is(readiness: Readiness) -> None:
    async with ReadingDatabase(NOWHERE, readiness) as database:
        problem, _ = await refusal_of(database)
        assert "127.0.0.1" not in f"{problem} {problem.detail}"
        await until(lambda: "degraded database" in readiness.report()[1])


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("delete from schema_version where version = (select max(version) from schema_version);"
         "delete from schema_applied where version = (select max(version) from schema_applied)",
         f"it has schema version {max(migrations()) - 1}, this program needs {max(migrations())}"),
        ("drop table schema_version", "no writer of derops has made its tables here"),
        ("revoke select on telemetry_1m from derops_reader", "its role may not read telemetry_1m"),
    ],
)  # fmt: skip
async def test_a_schema_that_cannot_be_read_is_named_with_what_to_do(
    server: PostgresServer, url: str, readiness: Readiness, statement: str, words: str
) -> None:
    with server.superuser("history") as superuser:
        superuser.execute(statement.encode())
    async with ReadingDatabase(url, readiness) as database:
        await until(lambda: words in readiness.report()[1])
        await refusal_of(database)


async def test_a_schema_that_is_newer_is_read_and_told_of(
    server: PostgresServer, url: str, readiness: Readiness
) -> None:
    with server.superuser("history") as superuser:
        superuser.execute("insert into schema_version (version) values (9999)")
    async with ReadingDatabase(url, readiness) as database:
        words = f"programs of schema version 9999 or newer, and this one has {max(migrations())}"
        await until(lambda: words in readiness.report()[1])
        assert await database.read(one) == 1


async def test_a_schema_that_is_newer_and_allows_this_version_is_read_like_its_own(
    server: PostgresServer, url: str, readiness: Readiness
) -> None:
    with server.superuser("history") as superuser:
        superuser.execute("insert into schema_applied values (9999, %s)", [max(migrations())])
    async with ReadingDatabase(url, readiness) as database:
        await until(lambda: "database: PostgreSQL" in readiness.report()[1])
        assert await database.read(one) == 1


async def test_a_table_that_went_away_fails_its_reader_alone(
    server: PostgresServer, database: ReadingDatabase, readiness: Readiness
) -> None:
    await until(lambda: "database: PostgreSQL" in readiness.report()[1])
    problem, _ = await refusal_of(database, "select count(*) from nothing")
    assert "nothing" not in problem.detail
    assert await database.read(one) == 1
