"""Attacks on the memory of Idempotency-Keys by whoever may order in a namespace of their own."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from tests.api.auditing.conftest import AuditDatabase, make_database
from tests.api.auditing.making import ANNA, NOW, make_create
from tests.stack.postgres import PostgresServer
from tests.waiting import now, until

from derops_headend.api.audit.lookup import MOST_ANNOUNCEMENTS
from derops_headend.api.audit.trail import AuditTrail
from derops_headend.api.problems import ProblemError, Slug

KEY = "k" * 64
_REFUSED = """
insert into audit_event (chain, seq, hash, at, body, stage, request_id, caller, namespace, verb,
  resource, name, object_uid, status, idempotency_key_sha256)
select 'seeded', 2 * number + (stage = 'RequestReceived')::int, '', at, '{}', stage,
  'request-' || number, %(caller)s, 'pilot-north', 'create', 'dispatches', 'd-1', '',
  case stage when 'ResponseComplete' then 409 end, %(key)s
from generate_series(1, 100000) number,
  unnest(array['RequestReceived', 'ResponseComplete']) stage,
  lateral (select %(now)s::timestamptz - number * interval '1 second' as at) moment
"""


@pytest.fixture
def audited(postgres_server: PostgresServer) -> Iterator[AuditDatabase]:
    yield from make_database(postgres_server)


@pytest.fixture
async def trail(audited: AuditDatabase, tmp_path: Path) -> AsyncIterator[AuditTrail]:
    opened = AuditTrail.open(
        tmp_path / "audit", replica="api-0", connect=audited.connect, now=lambda: NOW
    )
    await opened.start()
    await until(lambda: opened.sink.connected)
    yield opened
    await opened.close()


async def test_a_key_of_many_refused_orders(audited: AuditDatabase, trail: AuditTrail) -> None:
    """R122: orders with one key are refused for days; then asking for that key takes seconds.

    All callers' orders ask one after the other.
    """
    with psycopg.connect(audited.writer, autocommit=True) as connection:
        connection.execute(_REFUSED, {"caller": ANNA, "key": KEY, "now": NOW})
        connection.execute("analyze audit_event")

    begun = now()
    with pytest.raises(ProblemError) as refused:
        await trail.find_key(ANNA, "pilot-north", KEY)
    assert now() - begun < 1, "others would wait"
    assert refused.value.slug is Slug.KEY_EXPIRED

    assert await trail.find_key("oidc:bob", "pilot-north", KEY) is None


async def test_a_key_that_is_refused_now_and_then_goes_on(trail: AuditTrail) -> None:
    for _ in range(MOST_ANNOUNCEMENTS - 2):
        call = make_create(KEY)
        await trail.announce(call)
        await trail.complete(call, 422, "invalid", 100)
    assert await trail.find_key(ANNA, "pilot-north", KEY) is None

    await trail.announce(make_create(KEY, name="d-2"))
    used = await trail.find_key(ANNA, "pilot-north", KEY)
    assert used is not None
    assert used.name == "d-2"
