"""Attacks of a caller, or of a tenant with many accounts, on what all callers share.

The database is real; it is slow because it is asked to be.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import psycopg
import pytest
from tests.api.rig import ApiProcess, Tenant, make_token
from tests.stack.controlplane import ControlPlane
from tests.stack.postgres import READER, PostgresServer

from derops.observability import Readiness
from derops_headend.api.caller import Caller, CallerKind
from derops_headend.api.database import CONNECTIONS, ReadingDatabase
from derops_headend.api.limits import CALLS_AT_ONCE, CALLS_OF_ONE_AT_ONCE, Slots
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.api.shares import SHARE
from derops_headend.storage.roles import roles_sql
from derops_headend.storage.schema import migrate

ACCOUNTS = [
    Caller(kind=CallerKind.KUBERNETES, name=f"system:serviceaccount:tenant-b:account-{number}")
    for number in range(2 * CALLS_AT_ONCE // CALLS_OF_ONE_AT_ONCE)
]
SLOW_SECONDS = 8.0
HELD = 7
"""The advisory lock that slow reads wait for."""

VICTIM = Caller(kind=CallerKind.KUBERNETES, name="system:serviceaccount:tenant-a:reader")


@pytest.fixture
def url(postgres_server: PostgresServer) -> Iterator[str]:
    writer = postgres_server.create_for_roles("shares", roles_sql())
    with psycopg.connect(writer, autocommit=True) as connection:
        migrate(connection)
    yield postgres_server.url("shares", READER)
    postgres_server.drop_database("shares")


@pytest.fixture
async def database(url: str) -> AsyncIterator[ReadingDatabase]:
    async with ReadingDatabase(
        url, Readiness(), statement_milliseconds=30_000, read_seconds=30.0
    ) as opened:
        yield opened


def wait_for(connection: psycopg.Connection, seconds: float) -> float:
    connection.execute("select pg_sleep(%s)", (seconds,))
    return seconds


def wait_to_be_let_go(connection: psycopg.Connection, seconds: float) -> float:
    connection.execute("select pg_advisory_xact_lock_shared(%s)", (HELD,))
    return seconds


async def read_as(
    database: ReadingDatabase,
    caller: Caller,
    seconds: float,
    read: Callable[[psycopg.Connection, float], float] = wait_for,
) -> float | Slug:
    SHARE.set(caller.share)
    try:
        return await database.read(read, seconds)
    except ProblemError as problem:
        return problem.slug


@contextmanager
def held_back(url: str) -> Iterator[None]:
    """Have reads that wait to be let go wait until the end of this."""
    with psycopg.connect(url) as connection:
        connection.execute("select pg_advisory_xact_lock(%s)", (HELD,))
        yield


async def test_slow_questions_of_one_tenant(database: ReadingDatabase) -> None:
    """R120: twice as many slow reads as there are connections, by many accounts of a namespace."""
    slow = [
        asyncio.create_task(read_as(database, account, SLOW_SECONDS))
        for account in ACCOUNTS[: 2 * CONNECTIONS]
    ]
    await asyncio.sleep(0)

    for _ in range(5):
        assert await read_as(database, VICTIM, 0.0) == 0.0
    ended = [each.result() for each in slow if each.done()]
    assert SLOW_SECONDS not in ended, "the victim waited"

    answers = await asyncio.gather(*slow)
    # Of ten, four; and some when those are back, before the others have waited for 6 s.
    assert 4 <= answers.count(SLOW_SECONDS) <= 8
    assert answers.count(Slug.TOO_MANY_REQUESTS) == len(slow) - answers.count(SLOW_SECONDS)


def tenants(count: int) -> list[Caller]:
    return [
        Caller(kind=CallerKind.KUBERNETES, name=f"system:serviceaccount:evil-{number}:reader")
        for number in range(count)
    ]


async def test_slow_questions_of_four_tenants_together(database: ReadingDatabase, url: str) -> None:
    """R141: four tenants act together, each with more slow reads than there are connections."""
    with held_back(url):  # so that none of them ends, however busy the machine is
        slow = [
            asyncio.create_task(read_as(database, tenant, SLOW_SECONDS, wait_to_be_let_go))
            for tenant in tenants(4)
            for _ in range(CONNECTIONS)
        ]
        await asyncio.sleep(0)

        for _ in range(5):
            assert await read_as(database, VICTIM, 0.0) == 0.0
        ended = {each.result() for each in slow if each.done()}
        assert ended <= {Slug.TOO_MANY_REQUESTS}, "the victim waited"

    for each in slow:
        each.cancel()
    await asyncio.gather(*slow, return_exceptions=True)


async def test_slow_questions_of_more_tenants_than_there_are_connections(
    database: ReadingDatabase,
) -> None:
    """R142: then nothing is free for a newcomer, who is to wait behind all that they ask."""
    slow = [
        asyncio.create_task(read_as(database, tenant, 2.0))
        for tenant in tenants(CONNECTIONS + 2)
        for _ in range(4)
    ]
    await asyncio.sleep(0)

    assert await read_as(database, VICTIM, 0.0) == 0.0
    assert not all(each.done() for each in slow), "the victim was the last"

    for each in slow:
        each.cancel()
    await asyncio.gather(*slow, return_exceptions=True)


def test_open_calls_of_many_tenants_together() -> None:
    """R143: as many tenants as could have all places, each with all that one may have."""
    slots = Slots(lambda: 0.0)
    with ExitStack() as held:
        for tenant in tenants(CALLS_AT_ONCE // CALLS_OF_ONE_AT_ONCE):
            with suppress(ProblemError):
                for _ in range(CALLS_OF_ONE_AT_ONCE + 1):
                    held.enter_context(slots.hold(tenant.share))

        for number in range(10):
            held.enter_context(slots.hold(f"victim-{number}"))


def test_open_calls_of_a_tenant_with_many_accounts(
    api: ApiProcess, kube: ControlPlane, tenant_a: Tenant, tenant_b: Tenant
) -> None:
    """R121: who may make accounts in a namespace has as many calls open as all callers may."""
    names = [account.name.rpartition(":")[2] for account in ACCOUNTS[: len(ACCOUNTS) // 2 + 1]]
    kube.apply(
        *(
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": name, "namespace": "tenant-b"},
            }
            for name in names
        )
    )
    tokens = [make_token(kube, "tenant-b", name) for name in names]
    with ExitStack() as opened, api.client(tenant_a.token("viewer")) as victim:
        assert victim.get("/v1/me").status_code == 200
        for token in tokens:
            head = (
                f"POST /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                "Content-Type: application/json\r\nContent-Length: 10\r\n\r\n"
            )
            for _ in range(CALLS_OF_ONE_AT_ONCE):
                slow = opened.enter_context(socket.create_connection(("127.0.0.1", api.port)))
                slow.sendall(head.encode())
        with api.client(tokens[0]) as own:
            begun = time.monotonic()
            while own.get("/v1/me").status_code != 429:
                assert time.monotonic() - begun < 25, "their calls are not open"
        assert {victim.get("/v1/me").status_code for _ in range(20)} == {200}
