"""A dispatch's row is what its events say: in any order, told again, late, by whichever writer."""

import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.counters import value_of
from tests.headend.storage.conftest import Query
from tests.headend.storage.storing import NOW
from tests.headend.writing.making import DISPATCH, T0_US, report, sources, transition
from tests.waiting import eventually

from derops.wire.v1 import dispatch_pb2, log_pb2
from derops_headend.storage import metrics
from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.dispatches import compare, fill, is_filled
from derops_headend.storage.engines import detect
from derops_headend.storage.history import DispatchFilter, find, sum_up
from derops_headend.storage.maintenance import Keeper
from derops_headend.storage.schema import migrate, migrations

OWN = dispatch_pb2.AssetId(uid="u", namespace="site", name="battery")
MADE_ANEW = dispatch_pb2.AssetId(uid="v", namespace="site", name="battery")
STRANGER = dispatch_pb2.AssetId(uid="t", namespace="other", name="thief")

HEADEND = [("Submitted", "Why"), ("Sent", "Why"), ("Failed", "OutcomeUnknown"),
           ("Failed", "LedgerLost"), ("Cancelled", "Withdrawn")]  # fmt: skip
AGENT = [("Acked",), ("Acked", "Active"), ("Acked", "Active", "Complete"), ("Acked", "Failed"),
         ("Rejected",), ("Cancelled",)]  # fmt: skip
FACTS: list[dict[str, int | float | str]] = [
    {},
    {"accepted_us": T0_US + 1},
    {"accepted_us": T0_US + 1, "applied_us": T0_US + 7, "evidence": "Effect", "verified": "True",
     "active_milliseconds": 1500, "applied_watts": -5000, "clock_offset_milliseconds": -3},
    {"evidence": "Unanswered", "reverted_us": T0_US + 99},
    {"reason": "LedgerLost"},
    {"superseded_by": "winner", "delivered_watt_hours": 0.25, "interruptions": 2},
]  # fmt: skip
SECONDS = st.integers(0, 3)


@st.composite
def entries(draw: st.DrawFn) -> log_pb2.LogEntry:
    """Return what the operator or an agent may say of the one dispatch, heard at some time."""
    if draw(st.booleans()):
        phase, reason = draw(st.sampled_from(HEADEND))
        made = transition(
            phase,
            reason,
            at_us=T0_US + 1_000_000 * draw(SECONDS),
            request_id=draw(st.sampled_from(["", "r-1", "r-2"])),
        )
        assets = [OWN, OWN, OWN, MADE_ANEW, STRANGER]
    else:
        made = report(
            *draw(st.sampled_from(AGENT)),
            sequence=draw(st.integers(1, 4)),
            ledger_id=draw(st.sampled_from(["first", "second"])),
            **draw(st.sampled_from(FACTS)),
        )
        assets = [OWN, MADE_ANEW, STRANGER]
    made.asset.CopyFrom(draw(st.sampled_from(assets)))
    made.received_us = T0_US + 1_000_000 * draw(SECONDS)
    return made


@st.composite
def histories(draw: st.DrawFn) -> list[list[log_pb2.LogEntry]]:
    """Return rounds of a writer: some entries in an order, and some of them again."""
    told = draw(st.lists(entries(), min_size=1, max_size=8))
    again = draw(st.lists(st.sampled_from(told), max_size=4))
    order = draw(st.permutations(told + again))
    places = sorted(draw(st.sets(st.integers(1, len(order)), max_size=3)))
    return [order[a:b] for a, b in itertools.pairwise([0, *places, len(order)]) if a < b]


@dataclass
class Rounds:
    """What a writer stores, round by round."""

    database: WriterDatabase
    offsets: Iterator[int] = field(default_factory=itertools.count)

    def store(self, told: Sequence[log_pb2.LogEntry]) -> None:
        after = next(self.offsets)
        self.database.store(sources(*told, offset=after + 1), after=after, through=after + 1)


@pytest.fixture
def rounds(database: WriterDatabase) -> Rounds:
    return Rounds(database)


def oracle() -> str:
    """Return the view from before the table, with what decides where it was silent."""
    text = migrations()[6].decode()
    view = text[text.index("create or replace view dispatch_history") :]
    silent = ("received_at desc, at desc\n", "report_received_at desc, report_sequence desc\n")
    for ending in silent:
        assert ending in view
        view = view.replace(ending, ending[:-1] + ", event_id\n")
    return view.replace("dispatch_history", "history_before")


def columns(query: Query) -> str:
    """Return those that the view had before."""
    rows = query(
        "select attname from pg_attribute where attrelid = 'history_before'::regclass "
        "and attnum > 0 order by attnum"
    )
    return ", ".join(name for (name,) in rows)


def differing(query: Query) -> list[tuple[object, ...]]:
    """Return the rows that are not what the events say, by any of the accounts."""
    names = columns(query)
    pairs = [
        ("select * from dispatch", "select * from dispatch_told"),
        ("select * from dispatch_summary", "select * from dispatch_history"),
        (f"select {names} from dispatch_history", f"select {names} from history_before"),
    ]
    return [
        row
        for one, other in pairs
        for row in query(f"({one} except {other}) union all ({other} except {one})")
    ]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=histories(), creators=st.lists(st.sampled_from(["ann", "unknown", None]), max_size=2))
def test_a_row_is_what_the_events_say(
    rounds: Rounds, query: Query, told: list[list[log_pb2.LogEntry]], creators: list[str | None]
) -> None:
    query("drop view if exists history_before")
    query(oracle())
    query("truncate dispatch_event")
    assert query("select * from dispatch") == []

    for each in told:
        rounds.store(each)
        assert differing(query) == []
    for creator in creators:
        query("update dispatch_event set created_by = %s where at = (select min(at) from "
              "dispatch_event)", creator)  # fmt: skip
        assert differing(query) == []
    query("delete from dispatch_event where phase in (select max(phase) from dispatch_event)")
    assert differing(query) == []


def test_who_ordered_is_the_headends_word_of_the_first_step(query: Query) -> None:
    asset(query)
    for actor, phase, creator in [
        ("Agent", "Acked", "thief"), ("Headend", "Sent", "nobody"), ("Headend", "Submitted", "ann")
    ]:  # fmt: skip
        insert(query, phase, actor=actor, created_by=creator)

    assert query("select created_by from dispatch_summary") == [("ann",)]


def test_who_ordered_what_was_refused_is_in_its_row_too(rounds: Rounds, query: Query) -> None:
    rounds.store([transition("Rejected", "AboveAssetLimit", created_by="ann")])

    assert query("select phase, created_by from dispatch") == [("Rejected", "ann")]


def asset(query: Callable[..., object]) -> None:
    query("insert into asset (namespace, name, uid) values ('site', 'battery', 'u')")


def insert(
    run: Callable[..., object],
    phase: str,
    *,
    actor: str = "Agent",
    uid: str = DISPATCH,
    created_by: str | None = None,
) -> None:
    """Store a step as a writer did that knows of no table: it inserts events, and no more."""
    run(
        "insert into dispatch_event (event_id, asset_id, dispatch_uid, actor, phase, reason, "
        "message, at, received_at, subject, created_by) values (%s, (select min(asset_id) from "
        "asset), %s, %s, %s, '', '', now(), now(), 'site/battery', %s)",
        *((uuid.uuid4(), uid, actor, phase, created_by)),
    )


@pytest.mark.parametrize("before", [[], ["Submitted"]], ids=["new", "known"])
def test_of_two_writers_at_once_no_word_is_lost(
    database_url: str, query: Query, before: list[str]
) -> None:
    asset(query)
    for phase in before:
        insert(query, phase)
    with (
        psycopg.connect(database_url) as one,
        psycopg.connect(database_url) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        insert(lambda text, *facts: one.execute(text.encode(), facts), "Complete")
        second = pool.submit(
            insert, lambda text, *facts: other.execute(text.encode(), facts), "Acked"
        )
        eventually(lambda: waits(query, other.info.backend_pid), "wait for the row")
        one.commit()
        second.result()
        other.commit()

    steps = len(before) + 2
    assert query("select phase, steps from dispatch") == [("Complete", steps)]


def waits(query: Query, pid: int) -> bool:
    return query("select cardinality(pg_blocking_pids(%s)) > 0", pid) == [(True,)]


def test_agents_of_two_assets_do_not_wait_for_each_other(database_url: str, query: Query) -> None:
    asset(query)
    with psycopg.connect(database_url) as one, psycopg.connect(database_url) as other:
        other.execute("set lock_timeout = '2s'")
        for connection, subject in ((one, "site/battery"), (other, "other/thief")):
            connection.execute(
                "insert into dispatch_event (event_id, asset_id, dispatch_uid, actor, phase, "
                "reason, message, at, received_at, subject) select gen_random_uuid(), asset_id, "
                "%s, 'Agent', 'Acked', '', '', now(), now(), %s from asset",
                (DISPATCH, subject),
            )


def at_version(newest: int, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {version: text for version, text in migrations().items() if version <= newest}
    with monkeypatch.context() as before:
        before.setattr("derops_headend.storage.schema.migrations", lambda: old)
        with psycopg.connect(database_url, autocommit=True) as connection:
            migrate(connection)


def test_what_was_there_before_gets_its_rows_while_more_comes_in(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_version(7, database_url, monkeypatch)
    with psycopg.connect(database_url, autocommit=True) as connection:

        def run(text: str, *facts: object) -> list[tuple[object, ...]]:
            cursor = connection.execute(text.encode(), facts or None)
            return cursor.fetchall() if cursor.description else []

        asset(run)
        for n in range(25):
            for phase in ("Submitted", "Acked"):
                insert(run, phase, uid=f"d{n:02}", actor="Headend")
        migrate(connection)
        insert(run, "Complete", uid="d03")
        assert run("select dispatch_uid, phase from dispatch") == [("d03", "Complete")]

        looked_at = []
        while (done := fill(connection, limit=10)) is not None:
            looked_at.append(done)
            assert not is_filled(connection)
            assert len(find(connection, DispatchFilter())) == 25  # from the view meanwhile
            insert(run, "Active", uid="d24", actor="Agent")

        assert looked_at == [10, 10, 5]
        assert is_filled(connection)
        assert fill(connection) is None
        assert compare(connection)[0] == []
        assert [
            each.dispatch_uid for each in find(connection, DispatchFilter(phase="Complete"))
        ] == ["d03"]
        counts = {each.phase: each.dispatches for each in sum_up(connection, DispatchFilter())}
        assert counts == {"Complete": 1, "Active": 1, "Acked": 23}


def test_a_step_of_filling_gives_way_to_a_writer(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_version(7, database_url, monkeypatch)
    with (
        psycopg.connect(database_url, autocommit=True) as connection,
        psycopg.connect(database_url) as writer,
    ):

        def run(text: str, *facts: object) -> None:
            connection.execute(text.encode(), facts or None)

        asset(run)
        insert(run, "Submitted")
        migrate(connection)
        insert(lambda text, *facts: writer.execute(text.encode(), facts), "Acked")

        with pytest.raises(psycopg.errors.LockNotAvailable):
            fill(connection)
        writer.commit()

        assert fill(connection) == 1
        assert fill(connection) is None
        assert compare(connection)[0] == []


def test_the_writer_fills_it_as_upkeep(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_version(7, database_url, monkeypatch)
    with psycopg.connect(database_url, autocommit=True) as connection:

        def run(text: str, *facts: object) -> None:
            connection.execute(text.encode(), facts or None)

        asset(run)
        for n in range(7):
            insert(run, "Acked", uid=f"d{n}")
        monkeypatch.setattr("derops_headend.storage.dispatches.AT_ONCE", 3)
        monkeypatch.setattr("derops_headend.storage.maintenance._STEP_SECONDS", 0.0)
        migrate(connection)
        keeper = Keeper(connection, detect(connection))

        told = []
        for _ in range(4):
            keeper.step(NOW)
            told.append(value_of(metrics.HISTORY_FILLING))

        assert told == [1, 1, 1, 0]
        assert is_filled(connection)
        assert compare(connection)[0] == []


def test_what_is_not_so_is_found(database_url: str, query: Query) -> None:
    asset(query)
    for n in range(5):
        insert(query, "Acked", uid=f"d{n}")
    query("update dispatch set phase = 'Complete' where dispatch_uid = 'd1'")
    query("delete from dispatch where dispatch_uid = 'd2'")
    query("update dispatch set dispatch_uid = 'd9' where dispatch_uid = 'd3'")

    found, after = [], ("", "")
    with psycopg.connect(database_url) as connection:
        place: tuple[str, str] | None = after
        while place is not None:
            differences, place = compare(connection, place, limit=2)
            found += differences

    assert [(each.dispatch_uid, bool(each.kept), bool(each.told)) for each in found] == [
        ("d1", True, True), ("d2", False, True), ("d3", False, True), ("d9", True, False),
    ]  # fmt: skip
    assert (found[0].kept, found[0].told) == ({"phase": "Complete"}, {"phase": "Acked"})


def test_rows_from_before_request_ids_stay_and_an_earlier_writer_goes_on(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_version(9, database_url, monkeypatch)
    with psycopg.connect(database_url, autocommit=True) as connection:

        def run(text: str, *facts: object) -> list[tuple[object, ...]]:
            cursor = connection.execute(text.encode(), facts or None)
            return cursor.fetchall() if cursor.description else []

        asset(run)
        insert(run, "Submitted", uid="before", actor="Headend")
        migrate(connection)
        insert(run, "Acked", uid="before")
        insert(run, "Submitted", uid="after", actor="Headend")

        told = {each.dispatch_uid: each for each in find(connection, DispatchFilter())}
        assert {uid: each.phase for uid, each in told.items()} == {
            "before": "Acked",
            "after": "Submitted",
        }
        assert {each.request_id for each in told.values()} == {None}
        assert compare(connection)[0] == []
