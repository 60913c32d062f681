"""One transaction of the writer, on a real PostgreSQL."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from tests.headend.storage.conftest import Query
from tests.headend.writing.making import (
    DISPATCH,
    NAN,
    T0_US,
    bad_entries,
    connection,
    entry,
    gap,
    report,
    sources,
    telemetry,
    transition,
)

from derops.wire.v1 import agent_pb2, dispatch_pb2, log_pb2
from derops_headend.storage.database import OffsetMovedError, StoredCount, WriterDatabase

T0 = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=T0_US)
SECOND = timedelta(seconds=1)


class Rounds:
    """Stores entries, one record after the other."""

    def __init__(self, database: WriterDatabase) -> None:
        self.database = database
        self.offset = 0

    def __call__(self, *entries: log_pb2.LogEntry) -> StoredCount:
        self.offset += 1
        return self.database.store(
            sources(*entries, offset=self.offset), after=self.offset - 1, through=self.offset
        )


@pytest.fixture
def store(database: WriterDatabase) -> Rounds:
    return Rounds(database)


def test_samples_lie_in_columns_and_what_is_absent_is_null(store: Rounds, query: Query) -> None:
    odd_us = T0_US + 123_457
    tally = store(
        telemetry({"active_power_watts": [5000.25, NAN], "voltage_volts": [NAN, 230.1]}),
        telemetry({"setpoint_watts": [-0.5], "fan_speed": [7.0]}, t0_us=odd_us),
    )

    assert (tally.samples, tally.measurements, tally.duplicates) == (3, 1, 0)
    assert query(
        "select ts, active_power_watts, voltage_volts, setpoint_watts from telemetry order by ts"
    ) == [
        (T0, 5000.25, None, None),
        (T0 + timedelta(microseconds=123_457), None, None, -0.5),
        (T0 + SECOND, None, 230.1, None),
    ]
    assert query("select name, ts, value from measurement") == [
        ("fan_speed", T0 + timedelta(microseconds=123_457), 7.0)
    ]
    assert query("select namespace, name, uid from asset") == [("site", "battery", "asset-uid")]


def test_a_created_again_asset_of_one_name_has_rows_of_its_own(store: Rounds, query: Query) -> None:
    again = dispatch_pb2.AssetId(uid="second-uid", namespace="site", name="battery")
    values = {"active_power_watts": [1.0]}

    tally = store(telemetry(values), telemetry(values, asset=again))

    assert tally.samples == 2
    assert query("select count(distinct asset_id) from telemetry") == [(2,)]


def test_equal_rows_are_dropped_and_different_ones_quarantined(store: Rounds, query: Query) -> None:
    values = {"active_power_watts": [1.0, NAN, 3.0], "voltage_volts": [NAN, 2.0, 3.0]}
    store(telemetry({**values, "fan": [1.0, 2.0, 3.0]}))
    changed = {"active_power_watts": [1.0, NAN, 4.0, 5.0], "voltage_volts": [NAN, 2.0, 3.0, 5.0]}

    tally = store(
        telemetry(values), telemetry({**changed, "fan": [1.0, 2.5, 3.0, 4.0]}), gap(), gap()
    )

    assert (tally.samples, tally.measurements, tally.duplicates) == (1, 1, 3 + 2 + 2)
    assert tally.quarantined == {"ConflictingSamples": 1}
    assert query("select active_power_watts from telemetry order by ts") == [
        (1.0,),
        (None,),
        (3.0,),
        (5.0,),
    ]
    ((offset, index, detail),) = query("select log_offset, entry_index, detail from quarantine")
    assert (offset, index) == (2, 1)
    assert detail.startswith("2 samples differ")
    assert query("select count(*) from telemetry_gap") == [(1,)]


def test_two_different_samples_of_one_instant_in_one_round(store: Rounds, query: Query) -> None:
    tally = store(
        telemetry({"active_power_watts": [1.0]}),
        telemetry({"active_power_watts": [2.0]}),
        telemetry({"active_power_watts": [1.0]}),
    )

    assert (tally.samples, tally.duplicates) == (1, 1)
    assert tally.quarantined == {"ConflictingSamples": 1}
    assert query("select active_power_watts from telemetry") == [(1.0,)]


def test_bad_entries_are_quarantined_with_their_bytes_and_block_nothing(
    store: Rounds, query: Query
) -> None:
    bad = bad_entries()

    tally = store(*bad.values(), telemetry({"active_power_watts": [1.0]}))

    assert tally.samples == 1
    assert tally.quarantined == dict.fromkeys(bad, 1)
    rows = query("select reason, body from quarantine order by entry_index")
    assert rows == [(reason, each.body) for reason, each in bad.items()]


def test_what_only_the_database_refuses_is_found_and_quarantined_alone(
    database_url: str, store: Rounds, query: Query
) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("alter table connection_event add check (event <> 'Impossible')")

    tally = store(
        *[connection() for _ in range(5)],
        connection("Impossible"),
        telemetry({"active_power_watts": [1.0]}),
    )

    assert (tally.connections, tally.samples) == (5, 1)
    assert tally.quarantined == {"DatabaseRefused": 1}
    assert query("select entry_index, reason from quarantine") == [(5, "DatabaseRefused")]


def test_a_text_too_long_for_an_index_does_not_stop_the_log(store: Rounds, query: Query) -> None:
    long = agent_pb2.Gap.FromString(gap().body)
    long.outbox_id = "".join(str(number * number * 7919) for number in range(3000))
    message = entry(log_pb2.GAP, long.SerializeToString())

    tally = store(message, connection())

    assert tally.connections == 1
    assert tally.quarantined == {"DatabaseRefused": 1}
    assert query("select count(*) from telemetry_gap") == [(0,)]


def test_reports_told_again_change_nothing_and_the_newest_facts_stand(
    store: Rounds, query: Query
) -> None:
    early = report("Acked", "Active", sequence=4, applied_us=T0_US + 7)
    late = report(
        "Acked", "Active", "Complete", sequence=9, applied_us=T0_US + 7, active_milliseconds=61_000
    )
    finished = report(
        "Acked", "Active", "Complete", sequence=10, applied_us=T0_US + 7,
        active_milliseconds=61_000, reverted_us=T0_US + 99,
    )  # fmt: skip

    store(transition("Submitted"), early)
    store(late, early, finished)
    store(early, late, transition("Submitted", at_us=T0_US + 1))

    assert query("select actor, phase, at from dispatch_event order by actor desc, at") == [
        ("Headend", "Submitted", T0),
        ("Agent", "Acked", T0),
        ("Agent", "Active", T0 + SECOND),
        ("Agent", "Complete", T0 + 2 * SECOND),
    ]
    assert query(
        "select dispatch_uid, namespace, dispatch_name, asset_name, phase, applied, reason, "
        "active_seconds::float, applied_at, reverted_at from dispatch_history"
    ) == [
        (
            DISPATCH, "site", "peak", "battery", "Complete", True, "CompleteReason", 61.0,
            T0 + timedelta(microseconds=7), T0 + timedelta(microseconds=99),
        )
    ]  # fmt: skip


def test_a_stranger_that_names_the_same_step_takes_nobodys_place(
    store: Rounds, query: Query
) -> None:
    genuine = report("Acked", "Complete", sequence=2, applied_us=T0_US, applied_watts=5000)
    forged = report("Acked", "Complete", sequence=9, applied_us=T0_US, applied_watts=-9001)
    forged.asset.MergeFrom(dispatch_pb2.AssetId(uid="t", namespace="other", name="thief"))
    forged.received_us += 1
    view = "select namespace, applied_watts from dispatch_history order by 1"

    store(forged)
    assert query(view) == [("other", -9001)]
    store(genuine)
    assert query(view) == [("other", -9001), ("site", 5000)]
    store(transition("Submitted"))
    store(forged)
    assert query(view) == [("site", 5000)]
    assert query("select subject, count(*) from dispatch_event group by 1 order by 1") == [
        ("other/thief", 2),
        ("site/battery", 3),
    ]
    assert query(
        "select subject, count(*) from dispatch_event where not exists (select from "
        "dispatch_claim claim where (claim.event_id, claim.subject) = "
        "(dispatch_event.event_id, dispatch_event.subject)) group by subject"
    ) == [("other/thief", 2)]


def test_what_is_told_again_of_an_asset_created_anew_is_the_same_step(
    store: Rounds, query: Query
) -> None:
    told = report("Acked", sequence=1)
    again = report("Acked", "Active", sequence=2, applied_us=T0_US)
    again.asset.uid = "uid-anew"

    store(transition("Submitted"), told, again)

    assert query("select phase, applied from dispatch_history") == [("Active", True)]
    assert query("select count(*) from dispatch_event") == [(3,)]


def test_history_of_a_dispatch_that_no_agent_heard_of(store: Rounds, query: Query) -> None:
    store(transition("Submitted"), transition("Expired", "AgentOffline"))

    assert query("select phase, applied, reason, applied_at from dispatch_history") == [
        ("Expired", False, "AgentOffline", None)
    ]


def test_who_ordered_it_is_stored_with_each_step_that_the_headend_tells(
    store: Rounds, query: Query
) -> None:
    store(transition("Submitted", created_by="oidc:zoe"), report("Acked", sequence=1))
    store(transition("Submitted", created_by="eve"))  # told again, and told otherwise

    assert query("select actor, created_by from dispatch_event order by 1") == [
        ("Agent", None),
        ("Headend", "oidc:zoe"),
    ]


def test_the_first_terminal_phase_stands_and_the_late_report_is_told(
    store: Rounds, query: Query
) -> None:
    store(report("Acked", sequence=1), transition("Failed", "OutcomeUnknown"))
    assert query("select phase, applied from dispatch_history") == [("Failed", None)]
    late = report("Acked", "Complete", sequence=2, applied_us=T0_US)
    late.received_us += 1
    store(late)

    assert query("select phase, reason, applied, reported_phase from dispatch_history") == [
        ("Failed", "OutcomeUnknown", True, "Complete")
    ]


def test_a_dispatch_for_an_asset_that_was_never_there_has_a_history(
    store: Rounds, query: Query
) -> None:
    nobody = dispatch_pb2.AssetId(namespace="site", name="nobody")

    store(transition("Rejected", "AssetNotFound", asset=nobody))

    assert query("select phase, asset_name, asset_uid from dispatch_history") == [
        ("Rejected", "nobody", "")
    ]


def test_an_impossible_time_in_a_report_does_not_break_the_view(
    store: Rounds, query: Query
) -> None:
    store(report("Acked", sequence=1, ended_us=2**63 - 1))

    assert query("select phase, ended_at from dispatch_history") == [("Acked", None)]


def test_the_offset_is_part_of_the_transaction(
    store: Rounds, database: WriterDatabase, query: Query
) -> None:
    store(telemetry({"active_power_watts": [1.0]}))
    assert database.committed() == 1

    with pytest.raises(OffsetMovedError):
        database.store(
            sources(telemetry({"active_power_watts": [2.0]}, t0_us=T0_US + 9)), after=0, through=1
        )

    assert query("select count(*) from telemetry") == [(1,)]
    assert query("select log_id, shard, committed_offset from log_offset") == [("log", 0, 1)]


def test_an_asset_of_an_undone_round_is_known_again(
    database_url: str, database: WriterDatabase, query: Query
) -> None:
    good = telemetry({"active_power_watts": [1.0]})
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("alter table dispatch_event rename to elsewhere")
        with pytest.raises(psycopg.errors.UndefinedTable):
            database.store(sources(good, transition("Submitted")), after=0, through=1)
        other.execute("alter table elsewhere rename to dispatch_event")
    database.store(sources(good, transition("Submitted")), after=0, through=1)

    assert query("select count(*) from telemetry join asset using (asset_id)") == [(1,)]


def test_missing_records_are_on_record(database: WriterDatabase, query: Query) -> None:
    tally = database.store([], after=0, through=9, missing=[(1, 9)])

    assert tally.quarantined == {"RecordsMissing": 1}
    assert query("select log_offset, detail from quarantine") == [
        (1, "records 1 to 9 were not in the log")
    ]


def test_an_unknown_kind_with_garbage_keeps_its_bytes(store: Rounds, query: Query) -> None:
    body = bytes(range(256))

    store(entry(log_pb2.ENTRY_KIND_UNSPECIFIED, body))

    assert query("select body from quarantine") == [(body,)]
