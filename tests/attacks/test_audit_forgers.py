"""Who wants the audit to be wrong, or to stop the API by it."""

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors
from tests.api.auditing.conftest import AuditDatabase, make_database
from tests.api.auditing.making import ANNA, NOW, make_call, make_create
from tests.counters import value_of
from tests.stack.postgres import PostgresServer
from tests.waiting import until

from derops_headend.api.audit import metrics
from derops_headend.api.audit.trail import AuditTrail
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.storage.audit import MOST_PAGE_BYTES, AuditFilter, find_page
from derops_headend.storage.audit_retention import drop_months, prepare_months
from derops_headend.storage.audit_verification import verify
from derops_headend.storage.chain import Head


@pytest.fixture
def audited(postgres_server: PostgresServer) -> Iterator[AuditDatabase]:
    for database in make_database(postgres_server):
        with psycopg.connect(database.writer, autocommit=True) as writer:
            prepare_months(writer, NOW)  # else records of then lie where those without a month do
        yield database


def away() -> psycopg.Connection:
    raise psycopg.OperationalError("nobody answers")


def open_trail(directory: Path, database: AuditDatabase | None, **options: Any) -> AuditTrail:
    given: dict[str, Any] = {"now": lambda: NOW, "max_bytes": 1024**2} | options
    connect = database.connect if database else away
    return AuditTrail.open(directory, replica=directory.name, connect=connect, **given)


@pytest.fixture
async def trail(tmp_path: Path, audited: AuditDatabase) -> AsyncIterator[AuditTrail]:
    trail = open_trail(tmp_path / "api-0", audited)
    await trail.start()
    await until(lambda: trail.sink.connected)
    yield trail
    await trail.close()


async def record_calls(trail: AuditTrail, count: int) -> Head:
    """Have some calls written down, and return the head that would be printed."""
    for _ in range(count):
        await trail.complete(make_call(), 200, "OK", 1)
    await until(lambda: not trail.sink.behind)
    head = trail.sink.head
    assert head is not None
    return head


def findings(database: AuditDatabase, *heads: Head) -> list[str]:
    with psycopg.connect(database.api, autocommit=True) as connection:
        return [str(each) for each in verify(connection, heads)]


def as_owner_of_the_server(database: AuditDatabase, statement: str) -> None:
    with database.server.superuser(database.name) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(statement.encode())


async def test_the_api_s_password_changes_no_record(
    trail: AuditTrail, audited: AuditDatabase
) -> None:
    """R1: edit, remove, truncate, drop, or lift the trigger, with the API's own role."""
    head = await record_calls(trail, 5)
    partitions = [row["relname"] for row in audited.rows(
        "select relname from pg_class where oid in "
        "(select inhrelid from pg_inherits where inhparent = 'audit_event'::regclass)"
    )]  # fmt: skip

    with audited.connect() as thief:
        for table in ["audit_event", *partitions]:
            for statement in (
                f"update {table} set caller = 'nobody'",
                f"delete from {table}",
                f"truncate {table}",
                f"drop table {table}",
                f"alter table {table} disable trigger all",
                f"alter table {table} rename to elsewhere",
            ):
                with pytest.raises(errors.InsufficientPrivilege), thief.transaction():
                    thief.execute(statement.encode())

    assert len(audited.rows()) == 6
    assert findings(audited, head) == []


async def test_a_forged_record_of_another_is_found(
    trail: AuditTrail, audited: AuditDatabase
) -> None:
    """R2: add a record to a chain that is another's, with the API's own role."""
    head = await record_calls(trail, 5)
    before = value_of(metrics.CONFLICTS)
    with audited.connect() as thief:
        thief.execute(
            "insert into audit_event select chain, seq + 1, at, hash, body, stage, request_id, "
            "'oidc:eve', namespace, verb, resource, name, object_uid, status, "
            "idempotency_key_sha256 from audit_event where seq = %s",
            (head.seq,),
        )

    assert f"chain {head.chain} seq {head.seq + 1}: was edited" in findings(audited)[0]
    await record_calls(trail, 1)
    assert value_of(metrics.CONFLICTS) - before == 1


@pytest.mark.parametrize(
    "body",
    [
        '{"dropped":7}',
        '{"dropped":[7]}',
        '{"dropped":[{"chain":"a"}]}',
        '{"dropped":[{"chain":"a","first":null,"last":2,"hash":"b"}]}',
        '{"dropped":[{"chain":["a"],"first":"x","last":2,"hash":"b"}]}',
        "[" * 200_000,
    ],
)
async def test_a_record_that_is_to_end_the_verification(
    trail: AuditTrail, audited: AuditDatabase, body: str
) -> None:
    """R128: add a record, with the API's own role, that nobody can take away, and verify fails."""
    await record_calls(trail, 3)
    forge(audited, 1, body)

    assert [each for each in findings(audited) if "retention/zzz" not in each] == []
    assert "chain retention/zzz seq 1: was edited" in findings(audited)[0]


async def test_a_record_that_is_to_keep_old_months(
    trail: AuditTrail, audited: AuditDatabase
) -> None:
    """R129: the last number that there is, so that no drop can be told, and none is made."""
    await record_calls(trail, 3)
    forge(audited, 2**63 - 1, "{}")
    with psycopg.connect(audited.writer, autocommit=True) as writer:
        drop_months(writer, datetime(2090, 1, 1, tzinfo=UTC).date(), NOW)
        left = writer.execute("select count(*) from audit_event where stage <> 'Dropped'")
        assert left.fetchone() == (0,)


def forge(audited: AuditDatabase, seq: int, body: str) -> None:
    """Add a record with the role of the API, by a chain that sorts behind all others."""
    with audited.connect() as thief:
        thief.execute(
            "insert into audit_event (chain, seq, hash, at, body, stage, request_id, caller, "
            "namespace, verb, resource, name, object_uid, idempotency_key_sha256) values "
            "('retention/zzz', %s, '', %s, %s, 'Dropped', '', '', '', '', '', '', '', '')",
            (seq, NOW, body),
        )


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        pytest.param(
            "update audit_event set body = replace(body, 'oidc:anna', 'oidc:eve!') where seq = 4",
            ["seq 4: was edited"],
            id="R3: edits a record",
        ),
        pytest.param(
            "update audit_event set caller = 'oidc:eve' where seq = 4",
            ["seq 4: was edited"],
            id="R4: edits what pages show",
        ),
        pytest.param(
            "delete from audit_event where seq = 4",
            ["seq 4: it is not there"],
            id="R5: removes a record",
        ),
        pytest.param(
            "update audit_event it set body = other.body, hash = other.hash from audit_event other "
            "where it.seq in (4, 5) and other.seq = 9 - it.seq",
            ["seq 4: was edited", "seq 5: was edited"],
            id="R6: reorders records",
        ),
        pytest.param(
            "delete from audit_event where seq > 6",
            ["seq 11: was told, and is not there"],
            id="R7: cuts the tail",
        ),
        pytest.param(
            "truncate audit_event",
            ["seq 11: was told, and is not there: there is no such chain"],
            id="R8: removes all",
        ),
    ],
)
async def test_whoever_owns_the_database(
    trail: AuditTrail, audited: AuditDatabase, statement: str, named: list[str]
) -> None:
    head = await record_calls(trail, 10)
    assert findings(audited, head) == []

    as_owner_of_the_server(audited, statement)

    found = "\n".join(findings(audited, head))
    assert [each for each in named if f"chain {head.chain} {each}" not in found] == []


async def test_a_month_that_is_dropped_by_hand_is_missed(
    tmp_path: Path, audited: AuditDatabase
) -> None:
    """R9: drop the month in which it happened, as the writer does with old ones."""
    months = iter([NOW, NOW + timedelta(days=31), NOW + timedelta(days=32)])
    now = [next(months)]
    with psycopg.connect(audited.writer, autocommit=True) as owner:
        prepare_months(owner, NOW)
    trail = open_trail(tmp_path / "api-0", audited, now=lambda: now[0])
    await trail.start()
    await record_calls(trail, 5)
    now[0] = next(months)
    await record_calls(trail, 5)
    await trail.close()
    assert findings(audited) == []

    with psycopg.connect(audited.writer, autocommit=True) as owner:
        owner.execute("drop table audit_event_202611")

    assert "records 1 to 6 are not there, and no drop of them was told" in findings(audited)[0]


async def test_no_text_of_a_caller_becomes_a_record_or_a_secret(trail: AuditTrail) -> None:
    """R10: line ends, quotes, NUL and a forged record in all that a caller names."""
    forged = f'x"}}\n{"0" * 64} {{"chain":"{trail.file.head.chain}","seq":1,"prev":"0","at":"'
    call = make_call(
        forged, path=f"/v1/{forged}?access_token=secret", user_agent=forged, name="\0\ud800\r\n"
    )
    await trail.complete(call, 200, forged, 1)
    await trail.refused(forged, "unauthenticated", "GET", f"/{forged}?token=secret")

    found = [json.loads(each.body) for each in trail.file.scan()]
    assert [each["seq"] for each in found] == [1, 2, 3]
    assert found[1]["principal"]["name"] == forged
    assert "secret" not in json.dumps(found)
    await until(lambda: not trail.sink.behind)


async def test_strangers_do_not_fill_the_file(tmp_path: Path) -> None:
    """R11: refusals without end, of ever other networks, while the database is away."""
    seconds = itertools.count()
    trail = open_trail(
        tmp_path / "api-0", None, now=lambda: NOW + timedelta(seconds=next(seconds) / 50)
    )
    await trail.start()
    for number in range(20_000):
        await trail.refused(f"2001:db8:{number:x}::1", "unauthenticated", "GET", "/" * 256)
        if number % 1000 == 0:
            await trail.sum_up()
    await trail.sum_up()

    assert trail.file.size < 0.6 * 1024**2
    await trail.complete(make_call(), 200, "OK", 1)
    await trail.close()


async def test_reads_and_refused_orders_leave_room_to_cancel(tmp_path: Path) -> None:
    """R12: fill the file by calls that need no right, so that nobody can cancel."""
    trail = open_trail(tmp_path / "api-0", None)
    await trail.start()

    async def fill() -> None:
        while True:
            await trail.complete(make_create(caller="oidc:eve"), 403, "forbidden", 1)

    with pytest.raises(ProblemError, match="full"):
        await fill()
    cancel = make_create()
    await trail.announce(cancel)
    await trail.complete(cancel, 200, "", 1)
    await trail.close()


async def test_a_key_is_its_callers_in_one_namespace(trail: AuditTrail) -> None:
    """R13: use the Idempotency-Key of somebody else, to learn of an order or to hide one."""
    call = make_create("k" * 64)
    await trail.announce(call)
    call.subject.object_uid = "uid-1"
    await trail.complete(call, 201, "", 1)

    for caller, namespace in ((f"{ANNA} ", "pilot-north"), ("oidc:eve", "pilot-north"), (ANNA, "")):
        assert await trail.find_key(caller, namespace, "k" * 64) is None
    assert await trail.find_key(ANNA, "pilot-north", "k" * 64)


async def test_a_key_is_known_though_its_replica_is_gone(
    tmp_path: Path, audited: AuditDatabase
) -> None:
    """R14: have a replica end right after it said that a key is used, and ask another one."""
    lost, other = (open_trail(tmp_path / name, audited) for name in ("api-0", "api-1"))
    for each in (lost, other):
        await each.start()
    await until(lambda: lost.sink.connected and other.sink.connected)

    await lost.announce(make_create("k" * 64))

    used = await other.find_key(ANNA, "pilot-north", "k" * 64)
    assert used is not None
    assert (used.name, used.object_uid) == ("d-1", "")
    for each in (lost, other):
        await each.close()


async def test_a_clock_that_is_set_hides_nothing(tmp_path: Path, audited: AuditDatabase) -> None:
    """R15: set the clock of the API back or years forward before a call."""
    clock = iter([NOW + timedelta(days=days) for days in (0, -400, 0, 20_000, -1, 0, 0, 0)])
    trail = open_trail(tmp_path / "api-0", audited, now=lambda: next(clock, NOW))
    await trail.start()

    head = await record_calls(trail, 5)
    await trail.close()

    assert [row["seq"] for row in audited.rows()] == list(range(1, 7))
    assert findings(audited, head) == []


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "no JSON",
        "[" * 200_000,
        "[]",
        "null",
        '{"requestId":7,"bodySha256":"b"}',
        '{"requestId":"r"}',
        '{"requestId":"r","bodySha256":"b","change":"all"}',
    ],
)
async def test_an_announcement_that_says_nothing(
    trail: AuditTrail, audited: AuditDatabase, body: str
) -> None:
    """R146: a row that says that a key was used, and not for what: no order, and no 500."""
    columns = ("chain", "seq", "hash", "at", "body", "stage", "request_id", "caller", "namespace")
    with audited.connect() as thief:
        thief.execute(
            f"insert into audit_event ({', '.join(columns)}, verb, resource, name, object_uid, "
            "idempotency_key_sha256) values "
            "('x', 1, '', %s, %s, 'RequestReceived', 'r', %s, 'pilot-north', '', '', '', '', %s)",
            (NOW, body, ANNA, "k" * 64),
        )

    with pytest.raises(ProblemError, match="take a new key") as refused:
        await trail.find_key(ANNA, "pilot-north", "k" * 64)
    assert refused.value.slug is Slug.KEY_EXPIRED
    assert await trail.find_key(ANNA, "pilot-north", "n" * 64) is None


async def test_records_that_are_to_fill_the_memory_of_who_reads_them(
    trail: AuditTrail, audited: AuditDatabase
) -> None:
    """R147: large records, and such that say when or where in words that end no page."""
    await record_calls(trail, 5)
    with audited.connect() as thief:
        for chain, at, size in (
            ("'large-' || number", "%s::timestamptz", 60_000),
            ("'huge-' || number", "%s::timestamptz", 5_000_000),
            ("repeat('long', 200) || number", "%s::timestamptz", 10),
            ("'never-' || number", "greatest(%s::timestamptz, 'infinity')", 10),
        ):
            thief.execute(
                "insert into audit_event (chain, seq, hash, at, body, stage, request_id, caller, "
                "namespace, verb, resource, name, object_uid, idempotency_key_sha256) select "
                f"{chain}, 1, '', {at}, repeat('x', %s), '', '', '', '', '', '', '', '', '' "
                "from generate_series(1, 50) number".encode(),
                (NOW, size),
            )
        found: list[str] = []
        page = find_page(thief, AuditFilter(), limit=500)
        for _ in range(200):
            assert sum(len(each.body) for each in page.records) <= MOST_PAGE_BYTES
            found += [each.chain for each in page.records]
            if page.end is None:
                break
            page = find_page(thief, AuditFilter(), after=page.end, limit=500)

    assert page.end is None
    known = [each for each in found if each.startswith(("large", "huge", "api-0"))]
    assert len(known) == len(set(known)) + 5 == 106
    assert len({each.partition(" seq")[0] for each in findings(audited)}) == 200
    with psycopg.connect(audited.writer, autocommit=True) as writer:
        drop_months(writer, datetime(2090, 1, 1, tzinfo=UTC).date(), NOW)
        assert writer.execute("select count(*) from audit_event_other").fetchone() == (50,)


async def test_calls_of_a_known_caller_that_are_too_many(
    trail: AuditTrail, audited: AuditDatabase
) -> None:
    """R148: be refused so often that nobody can tell who it was, and whom it was about."""
    await record_calls(trail, 0)
    for number in range(300):
        call = make_call("oidc:eve", namespace=f"ns-{number % 2}")
        await trail.held_back(call, 429, "too-many-requests")
        await trail.refused("192.0.2.7", "unauthenticated", "GET", "/")
    for number in range(1000):
        call = make_call(f"system:serviceaccount:evil:a-{number}", namespace=f"n-{number}")
        await trail.held_back(call, 429, "too-many-requests")
    await trail.sum_up()
    await until(lambda: not trail.sink.behind)

    rows = audited.rows("select caller, namespace, body from audit_event")
    bodies = [(row, json.loads(row["body"])) for row in rows]
    told = [
        (row["caller"], row["namespace"], body.get("count", 1))
        for row, body in bodies
        if body.get("principal") and body["stage"] == "ResponseComplete"
    ]
    assert sum(count for caller, _, count in told if caller == "oidc:eve") == 300
    of_one = [count for caller, at, count in told if caller == "oidc:eve" and at == "ns-1"]
    assert (sum(of_one), max(of_one)) == (150, 140)
    evil = [each for each in told if each[0].startswith("system:serviceaccount:evil")]
    assert sum(count for *_, count in evil) == 1000
    assert len(evil) < 20 + 200 + 2
