"""The audit's table: only ever added to, its months made and dropped by its owner, and verified."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import errors
from tests.counters import value_of
from tests.stack.postgres import API, PostgresServer

from derops_headend.storage import metrics
from derops_headend.storage.audit import AuditFilter, find_page, store
from derops_headend.storage.audit_retention import drop_months, prepare_months
from derops_headend.storage.audit_verification import VerificationCount, export, verify
from derops_headend.storage.chain import ChainedRecord, Head, begin, link
from derops_headend.storage.roles import find_missing, find_superfluous, roles_sql
from derops_headend.storage.schema import migrate

NAME = "audited"
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture(params=["postgres_server", "timescale_server"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    found: PostgresServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def writer(server: PostgresServer) -> Iterator[psycopg.Connection]:
    """Return a connection of the role that owns the tables of a migrated database."""
    url = server.create_for_roles(NAME, roles_sql())
    with psycopg.connect(url, autocommit=True) as connection:
        migrate(connection)
        prepare_months(connection, NOW)
        yield connection
    server.drop_database(NAME)


@pytest.fixture
def api(server: PostgresServer, writer: psycopg.Connection) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server.url(NAME, API), autocommit=True) as connection:
        yield connection


def make_chain(
    chain: str, count: int, *, at: datetime = NOW, after: Head | None = None, **facts: Any
) -> list[ChainedRecord]:
    """Return records of a chain, a second apart."""
    head, found = after or begin(chain), []
    for number in range(count):
        when = at + timedelta(seconds=number)
        known = {
            "stage": "ResponseComplete",
            "at": when.isoformat().replace("+00:00", "Z"),
            "requestId": f"{chain}-{head.seq + 1}",
            "principal": {"name": "oidc:anna"},
            "namespace": "pilot-north",
            "verb": "get",
            "resource": "derassets",
            "name": "b1",
            "status": 200,
        }
        body, head = link(head, json.dumps(known | facts))
        found.append(ChainedRecord(head.chain, head.seq, head.hash, when, body))
    return found


def head_of(records: list[ChainedRecord]) -> Head:
    return Head(*records[-1][:3])


def findings(connection: psycopg.Connection, *heads: Head) -> list[str]:
    return [str(each) for each in verify(connection, heads)]


def tamper(server: PostgresServer, *statements: str) -> None:
    """Do as somebody does who may do everything in the database."""
    with server.superuser(NAME) as connection:
        connection.execute("set session_replication_role = replica")  # no trigger fires
        for statement in statements:
            connection.execute(statement.encode())


def test_what_was_stored_is_whole_and_is_there_once(
    api: psycopg.Connection, writer: psycopg.Connection
) -> None:
    records = [*make_chain("a", 20), *make_chain("b", 5)]
    assert store(api, records) == 0
    assert store(api, records[3:9]) == 0
    tally = VerificationCount()

    assert list(verify(writer, [head_of(records)], tally)) == []

    assert (tally.records, tally.chains) == (25, 2)
    assert [json.loads(body)["seq"] for body in export(writer)][:4] == [1, 1, 2, 2]
    since, until = NOW + timedelta(seconds=2), NOW + timedelta(seconds=4)
    assert list(export(writer, since, until)) == [
        record.body
        for record in sorted(records, key=lambda each: each.at)
        if since <= record.at < until
    ]


def test_another_record_in_the_place_of_one_is_told(api: psycopg.Connection) -> None:
    records = make_chain("a", 3)
    store(api, records)
    other = make_chain("a", 3, verb="list")

    assert store(api, other) == 3


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        pytest.param(
            "update audit_event set body = replace(body, 'oidc:anna', 'oidc:eve!') where seq = 7",
            ["chain a seq 7: was edited: it does not have its hash"],
            id="body",
        ),
        pytest.param(
            "update audit_event set caller = 'oidc:eve' where seq = 7",
            ["chain a seq 7: was edited: its columns are not what the record says"],
            id="column",
        ),
        pytest.param(
            "update audit_event set body = replace(body, 'oidc:anna', 'oidc:eve!'), "
            "caller = 'oidc:eve!', hash = encode(sha256(convert_to("
            "replace(body, 'oidc:anna', 'oidc:eve!'), 'utf8')), 'hex') where seq = 7",
            ["chain a seq 8: does not follow the record before it: one of them was replaced"],
            id="body, column and hash",
        ),
        pytest.param(
            "update audit_event set at = at + interval '1 hour' where seq = 7",
            ["chain a seq 7: was edited: its columns are not what the record says"],
            id="time",
        ),
        pytest.param(
            "delete from audit_event where seq = 7",
            ["chain a seq 7: it is not there, and no drop of them was told"],
            id="one removed",
        ),
        pytest.param(
            "delete from audit_event where seq between 7 and 9",
            ["chain a seq 7: records 7 to 9 are not there, and no drop of them was told"],
            id="some removed",
        ),
        pytest.param(
            "delete from audit_event where seq < 4",
            ["chain a seq 1: records 1 to 3 are not there, and no drop of them was told"],
            id="the first removed",
        ),
        pytest.param(
            "update audit_event set seq = 15 - seq where seq in (7, 8)",
            [
                "chain a seq 7: was edited: its columns are not what the record says",
                "chain a seq 7: does not follow the record before it: one of them was replaced",
                "chain a seq 8: was edited: its columns are not what the record says",
                "chain a seq 8: does not follow the record before it: one of them was replaced",
                "chain a seq 9: does not follow the record before it: one of them was replaced",
            ],
            id="reordered",
        ),
        pytest.param(
            "insert into audit_event select 'a', 7, at + interval '1 day', hash, body, stage, "
            "request_id, caller, namespace, verb, resource, name, object_uid, status, "
            "idempotency_key_sha256 from audit_event where seq = 7",
            [
                "chain a seq 7: was edited: its columns are not what the record says",
                "chain a seq 7: is there twice",
            ],
            id="doubled",
        ),
        pytest.param(
            "update audit_event set body = 'nonsense' where seq = 7",
            [
                "chain a seq 7: was edited: it does not have its hash",
                "chain a seq 7: does not follow the record before it: one of them was replaced",
            ],
            id="no JSON",
        ),
    ],
)
def test_what_was_changed_is_named(
    server: PostgresServer, api: psycopg.Connection, statement: str, said: list[str]
) -> None:
    store(api, make_chain("a", 12))
    assert findings(api) == []

    tamper(server, statement)

    assert findings(api) == said


def test_a_tail_that_is_cut_is_known_by_its_head(
    server: PostgresServer, api: psycopg.Connection
) -> None:
    records, others = make_chain("a", 12), make_chain("b", 3)
    store(api, [*records, *others])
    heads = [head_of(records[:5]), head_of(records), head_of(others)]
    assert findings(api, *heads) == []

    tamper(server, "delete from audit_event where seq > 9 or chain = 'b'")

    assert findings(api) == []  # nobody can know it without the heads
    assert findings(api, *heads) == [
        "chain a seq 12: was told, and is not there: the chain ends at 9",
        "chain b seq 3: was told, and is not there: there is no such chain",
    ]


def test_a_chain_that_was_made_anew_is_known_by_its_heads(
    server: PostgresServer, api: psycopg.Connection
) -> None:
    records = make_chain("a", 12)
    store(api, records)

    tamper(server, "delete from audit_event")
    store(api, make_chain("a", 12, verb="list"))

    assert findings(api) == []  # nobody can know it without the heads
    assert findings(api, head_of(records)) == [
        "chain a seq 12: is another record than the one whose hash was told"
    ]


def store_months(api: psycopg.Connection, writer: psycopg.Connection) -> list[ChainedRecord]:
    """Store a chain that goes through five months, ten records in each."""
    records: list[ChainedRecord] = []
    for month in range(5):
        at = datetime(2026, 1 + month, 15, tzinfo=UTC)
        prepare_months(writer, at)
        after = head_of(records) if records else None
        records += make_chain("a", 10, at=at, after=after)
    store(api, records)
    return records


def test_after_a_drop_the_chain_goes_on(
    api: psycopg.Connection, writer: psycopg.Connection
) -> None:
    records = store_months(api, writer)
    before = value_of(metrics.AUDIT_PARTITIONS_DROPPED)

    drop_months(writer, datetime(2026, 3, 31, tzinfo=UTC).date(), NOW)

    rows = api.execute("select min(seq) from audit_event where chain = 'a'").fetchone()
    assert rows == (21,)
    assert value_of(metrics.AUDIT_PARTITIONS_DROPPED) - before == 2
    heads = [head_of(records[:n]) for n in (5, 10, 20, 35, 50)]
    assert findings(api, *heads) == []
    (told, again) = api.execute(
        "select body from audit_event where stage = 'Dropped' order by seq"
    ).fetchall()
    assert json.loads(told[0])["name"] == "audit_event_202601"
    assert json.loads(again[0])["dropped"] == [
        {"chain": "a", "first": 11, "last": 20, "hash": records[19].hash}
    ]

    drop_months(writer, datetime(2026, 4, 30, tzinfo=UTC).date(), NOW)
    assert findings(api, *heads) == []
    assert findings(api, Head("a", 20, "f" * 64)) == [
        "chain a seq 20: was told with another hash than its drop"
    ]


def test_the_record_of_a_drop_is_dropped_too(
    api: psycopg.Connection, writer: psycopg.Connection
) -> None:
    store_months(api, writer)
    for month in range(2, 13):
        now = datetime(2026, month, 20, tzinfo=UTC)
        prepare_months(writer, now)
        drop_months(writer, (now - timedelta(days=92)).date(), now)
        assert findings(api) == []

    rows = api.execute("select stage, count(*) from audit_event group by stage").fetchall()
    assert rows == [("Dropped", 4)]


def test_a_month_dropped_by_hand_is_told(
    api: psycopg.Connection, writer: psycopg.Connection
) -> None:
    store_months(api, writer)

    writer.execute("drop table audit_event_202602")

    assert findings(api) == [
        "chain a seq 11: records 11 to 20 are not there, and no drop of them was told"
    ]


def test_what_follows_a_drop_must_be_what_followed(
    server: PostgresServer, api: psycopg.Connection, writer: psycopg.Connection
) -> None:
    store_months(api, writer)
    drop_months(writer, datetime(2026, 2, 28, tzinfo=UTC).date(), NOW)

    tamper(server, "delete from audit_event where seq between 11 and 12 and chain = 'a'")
    assert findings(api) == [
        "chain a seq 11: records 11 to 12 are not there, and no drop of them was told"
    ]


def test_a_clock_that_is_far_off_holds_up_nothing(
    api: psycopg.Connection, writer: psycopg.Connection
) -> None:
    early = make_chain("a", 3, at=datetime(1970, 1, 2, tzinfo=UTC))
    late = make_chain("a", 3, at=datetime(2090, 1, 2, tzinfo=UTC), after=head_of(early))
    now = make_chain("a", 3, after=head_of(late))
    store(api, [*early, *late, *now])
    assert findings(api) == []

    drop_months(writer, NOW.date(), NOW)  # what is late keeps what is early
    assert findings(api) == []
    assert api.execute("select count(*) from audit_event_other").fetchone() == (6,)

    drop_months(writer, datetime(2090, 2, 1, tzinfo=UTC).date(), NOW)
    assert api.execute("select count(*) from audit_event_other").fetchone() == (0,)
    store(api, make_chain("b", 3, at=datetime(1970, 1, 2, tzinfo=UTC)))
    with pytest.raises(errors.InsufficientPrivilege, match="append-only"):
        writer.execute("truncate audit_event_other")


def test_a_month_that_began_among_the_others_stays_there(
    api: psycopg.Connection, writer: psycopg.Connection
) -> None:
    later = datetime(2028, 5, 1, tzinfo=UTC)
    store(api, make_chain("a", 3, at=later))

    prepare_months(writer, later)

    names = {
        name
        for (name,) in writer.execute(
            "select relname from pg_class where starts_with(relname, 'audit_event_2028') "
            "and relkind = 'r'"
        )
    }
    assert names == {"audit_event_202806", "audit_event_202807"}
    store(api, make_chain("b", 3, at=later))
    assert findings(api) == []


def test_the_newest_come_first_in_pages(api: psycopg.Connection) -> None:
    records = [
        *make_chain("a", 30),
        *make_chain("b", 30, namespace="south"),
        *make_chain("c", 5, principal=None, namespace=""),
    ]
    store(api, records)
    newest = sorted(records, key=lambda each: (each.at, each.chain, each.seq), reverse=True)

    found: list[ChainedRecord] = []
    page = find_page(api, AuditFilter(), limit=7)
    found += page.records
    while page.end is not None:
        page = find_page(api, AuditFilter(), after=page.end, limit=7)
        assert 0 < len(page.records) <= 7
        found += page.records
    assert found == newest

    def found_of(wanted: AuditFilter) -> list[ChainedRecord]:
        page = find_page(api, wanted, limit=500)
        assert page.end is None
        return page.records

    of_south = found_of(AuditFilter(namespace="south"))
    assert of_south == [each for each in newest if each.chain == "b"]
    assert found_of(AuditFilter(caller="oidc:eve")) == []
    since, until = NOW + timedelta(seconds=3), NOW + timedelta(seconds=6)
    between = found_of(AuditFilter(since=since, until=until))
    assert between == [each for each in newest if since <= each.at < until]
    (one,) = found_of(
        AuditFilter(
            verb="get", resource="derassets", name="b1", request_id="a-3", caller="oidc:anna"
        )
    )
    assert (one.chain, one.seq) == ("a", 3)


FORBIDDEN = [
    "update audit_event set caller = ''",
    "update audit_event_202611 set caller = ''",
    "delete from audit_event",
    "delete from audit_event_202611",
    "truncate audit_event",
    "truncate audit_event_202611",
    "drop table audit_event",
    "drop table audit_event_202611",
    "alter table audit_event disable trigger all",
    "alter table audit_event detach partition audit_event_202611",
    "insert into audit_event_202611 select * from audit_event",
    "drop trigger audit_event_append_only on audit_event",
    "create or replace function refuse_change_of_audit() returns trigger language sql as ''",
    "set session_replication_role = replica",
    "select * from audit_event for update",
    "lock table audit_event in share mode",
    "copy audit_event to program 'true'",
    "create table mine ()",
    "create schema mine",
    "alter role derops_api superuser",
    "set role derops_writer",
    "insert into dispatch_event (event_id) values (gen_random_uuid())",
    "update telemetry set active_power_watts = 0",
    "delete from connection_event",
    "truncate quarantine",
    "insert into asset (namespace, name, uid) values ('a', 'b', 'c')",
    "select ensure_telemetry_day('2030-01-01')",
    "select ensure_audit_month('2030-01-01')",
    "select pg_read_file('/etc/passwd')",
    "select * from pg_authid",
]


def test_the_api_adds_and_reads_and_does_nothing_else(
    server: PostgresServer, api: psycopg.Connection
) -> None:
    store(api, make_chain("a", 3))
    for table in ("telemetry", "dispatch_history", "asset", "audit_event"):
        api.execute(f"select * from {table} limit 1".encode())

    for statement in FORBIDDEN:
        try:
            with api.transaction():
                api.execute(statement.encode())
        except errors.InsufficientPrivilege:
            continue
        pytest.fail(f"the API may: {statement}")

    assert findings(api) == []


@pytest.mark.parametrize(
    "statement",
    [
        "update audit_event set caller = ''",
        "update audit_event_202611 set caller = ''",
        "delete from audit_event",
        "delete from audit_event_202611",
        "truncate audit_event",
        "truncate audit_event_202611",
        "truncate audit_event_other",
        "insert into audit_event select * from audit_event "
        "on conflict (chain, seq, at) do update set caller = ''",
    ],
)
def test_not_even_the_owner_changes_it_by_mistake(
    writer: psycopg.Connection, statement: str
) -> None:
    store(writer, make_chain("a", 3))

    with pytest.raises(errors.InsufficientPrivilege, match="append-only"):
        writer.execute(statement.encode())

    assert findings(writer) == []


def test_a_database_of_an_earlier_version_gets_the_role(server: PostgresServer) -> None:
    """Its tables were made by somebody else, before there was a role for the API."""
    url = server.create_database(NAME)
    try:
        with psycopg.connect(url, autocommit=True) as owner:
            migrate(owner)
            prepare_months(owner, NOW)
        server.apply_roles(NAME, roles_sql())
        with psycopg.connect(server.url(NAME, API), autocommit=True) as api:
            store(api, make_chain("a", 3))
            with pytest.raises(errors.InsufficientPrivilege):
                api.execute("delete from audit_event")
    finally:
        server.drop_database(NAME)


def test_what_the_api_lacks_is_missing_and_what_it_has_too_much_is_noted(
    server: PostgresServer, writer: psycopg.Connection
) -> None:
    assert (find_missing(writer), find_superfluous(writer)) == ([], [])
    writer.execute("revoke insert on audit_event from derops_api")
    assert find_missing(writer) == ["derops_api may not insert into audit_event"]

    writer.execute("grant insert, delete on audit_event to derops_api")
    too_much = ["derops_api may change audit_event, or become who may: it should only add rows"]
    assert (find_missing(writer), find_superfluous(writer)) == ([], too_much)
    writer.execute("revoke delete on audit_event from derops_api")
    with server.superuser(NAME) as connection:
        connection.execute("grant derops_writer to derops_api")
        try:
            assert find_superfluous(writer) == too_much
        finally:
            connection.execute("revoke derops_writer from derops_api")


def test_a_database_without_a_role_for_the_api_will_do(
    server: PostgresServer, writer: psycopg.Connection
) -> None:
    with server.superuser() as connection:
        connection.execute("alter role derops_api rename to somebody")
        try:
            assert find_missing(writer) == []
            assert find_superfluous(writer) == [
                "there is no role derops_api: the API needs it, if you run that"
            ]
        finally:
            connection.execute("alter role somebody rename to derops_api")


def test_a_partition_that_somebody_else_made_is_theirs_to_drop(
    api: psycopg.Connection, writer: psycopg.Connection
) -> None:
    writer.execute(
        "create table audit_event_mine partition of audit_event "
        "for values from ('2020-01-01Z') to ('2021-01-01Z')"
    )
    store(api, make_chain("a", 3, at=datetime(2020, 5, 1, tzinfo=UTC)))

    drop_months(writer, datetime(2026, 1, 1, tzinfo=UTC).date(), NOW)

    assert api.execute("select count(*) from audit_event_mine").fetchone() == (3,)


def test_a_database_with_tables_of_others_is_migrated(server: PostgresServer) -> None:
    url = server.create_for_roles(NAME, roles_sql())
    try:
        with server.superuser(NAME) as connection:
            connection.execute("create table theirs ()")
        with psycopg.connect(url, autocommit=True) as connection:
            migrate(connection)
            assert find_missing(connection) == []
    finally:
        server.drop_database(NAME)
