"""The four questions, asked of the database: one dispatch, many, and from a shell."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.headend.storage.conftest import Query
from tests.headend.writing.making import DISPATCH, T0_US, report, sources, transition

from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.history import DispatchFilter, find, read_story, sum_up

T0 = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=T0_US)
MANY = 20_000


@pytest.fixture
def reader(database_url: str, query: Query) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def fill(query: Query, dispatches: int) -> None:
    """Store dispatches of three transitions each; every tenth has failed."""
    query(
        "with assets as (insert into asset (namespace, name, uid) "
        "select 'site', 'a' || n, 'u' || n "
        "from generate_series(0, 99) n returning asset_id, name), "
        "told as (insert into dispatch_event (event_id, asset_id, dispatch_uid, dispatch_name, "
        "actor, phase, reason, message, at, received_at, report, report_received_at, "
        "report_sequence, subject) select gen_random_uuid(), asset_id, 'd' || n, 'n' || n, "
        "'Agent', phase, 'Why', '', moment + step * interval '1 minute', moment, "
        """case when step = 2 then ('{"applied_us": 5, "active_milliseconds": 60000, """
        """"verified": "' || case when n % 10 = 0 then 'False' else 'True' end || '"}')::jsonb """
        "end, moment, 1, 'site/' || name "
        f"from generate_series(1, {dispatches}) n join assets on name = 'a' || (n % 100), "
        "lateral (select timestamptz '2026-11-01' + n * interval '2 minutes' as moment) as m, "
        "lateral (values (0, 'Acked'), (1, 'Active'), "
        "(2, case when n % 10 = 0 then 'Failed' else 'Complete' end)) as steps (step, phase) "
        "returning 1) select count(*) from told"
    )


def test_one_dispatch_answers_the_four_questions(
    database: WriterDatabase, reader: psycopg.Connection
) -> None:
    told = report(
        "Acked", "Active", "Complete", sequence=3, applied_us=T0_US + 7, reverted_us=T0_US + 99,
        active_milliseconds=61_500, verified="True", evidence="Effect", applied_watts=5000,
        verified_us=T0_US + 9, verified_reason="WithinTolerance", clamped_by="LocalLimits",
        planned_start_us=T0_US + 5, planned_end_us=T0_US + 90, interruptions=1,
        reversion_guard="DeviceTimer", clock_offset_milliseconds=-1500,
    )  # fmt: skip
    database.store(sources(transition("Submitted"), told, offset=1), after=0, through=1)

    (found,) = find(reader, DispatchFilter(dispatch=DISPATCH))
    steps = read_story(reader, found)

    assert (found.applied, found.applied_at) == (True, T0 + timedelta(microseconds=7))
    assert (found.active_seconds, found.applied_watts) == (61.5, 5000)
    assert (found.phase, found.reason) == ("Complete", "CompleteReason")
    assert (found.verified, found.evidence) == ("True", "Effect")
    assert (found.verified_reason, found.clamped_by) == ("WithinTolerance", "LocalLimits")
    assert (found.interruptions, found.reversion_guard) == (1, "DeviceTimer")
    assert found.clock_offset_milliseconds == -1500
    instants = (found.planned_start_at, found.verified_at, found.planned_end_at)
    assert instants == tuple(T0 + timedelta(microseconds=n) for n in (5, 9, 90))
    # Two clocks said the same instant: which of them is first nobody knows.
    assert {step.phase for step in steps[:2]} == {"Submitted", "Acked"}
    assert [step.phase for step in steps[2:]] == ["Active", "Complete"]


def test_the_row_says_by_which_request_it_was_ordered(
    database: WriterDatabase, reader: psycopg.Connection
) -> None:
    """What was told first stands: the annotation may have been changed since."""
    told = [
        transition("Submitted", request_id="7f0e6a5c"),
        transition("Sent", request_id="another", at_us=T0_US + 1),
    ]
    database.store(sources(*told, offset=1), after=0, through=1)

    (found,) = find(reader, DispatchFilter(dispatch=DISPATCH))

    assert found.request_id == "7f0e6a5c"


@pytest.mark.parametrize("said", ["", "x" * 65, "a b", "a\nb", "\x1b[2J"])
def test_what_is_no_request_id_is_none(
    database: WriterDatabase, reader: psycopg.Connection, said: str
) -> None:
    entry = transition("Submitted", request_id=said)

    database.store(sources(entry, offset=1), after=0, through=1)

    (found,) = find(reader, DispatchFilter(dispatch=DISPATCH))
    assert found.request_id is None


def test_an_end_that_is_stored_is_told_with_what_its_row_says(database: WriterDatabase) -> None:
    begun = transition("Submitted", request_id="7f0e6a5c")
    first = database.store(
        sources(begun, report("Acked", sequence=1), offset=1), after=0, through=1
    )
    ends = report("Acked", "Active", "Complete", sequence=3)
    second = database.store(sources(ends, offset=2), after=1, through=2)

    (ended,) = second.ended
    assert first.ended == ()
    assert (ended.dispatch_uid, ended.dispatch_name) == (DISPATCH, "peak")
    assert (ended.request_id, ended.phase) == ("7f0e6a5c", "Complete")


def test_an_unknown_outcome_is_told_as_unknown(
    database: WriterDatabase, reader: psycopg.Connection
) -> None:
    entries = (report("Acked", sequence=1), transition("Failed", "OutcomeUnknown"))
    database.store(sources(*entries, offset=1), after=0, through=1)

    (found,) = find(reader, DispatchFilter(phase="Failed"))

    assert (found.applied, found.reason) == (None, "OutcomeUnknown")
    assert (found.reported_phase, found.active_seconds) == ("Acked", None)
    assert (found.verified, found.verified_reason, found.interruptions) == ("", "", 0)
    assert (found.verified_at, found.clock_offset_milliseconds) == (None, None)


def test_what_the_agent_proves_after_an_unknown_outcome_is_known(
    database: WriterDatabase, reader: psycopg.Connection
) -> None:
    unknown = (report("Acked", sequence=1), transition("Failed", "OutcomeUnknown"))
    database.store(sources(*unknown, offset=1), after=0, through=1)
    late = report("Acked", "Cancelled", sequence=2)
    late.received_us += 10
    database.store(sources(late, offset=2), after=1, through=2)

    (found,) = find(reader, DispatchFilter(phase="Failed"))

    assert (found.applied, found.reason) == (False, "OutcomeUnknown")
    assert found.reported_phase == "Cancelled"


def test_a_write_that_was_never_confirmed_is_told_as_unknown(
    database: WriterDatabase, reader: psycopg.Connection
) -> None:
    told = report("Acked", "Failed", sequence=2, reverted_us=T0_US + 99, evidence="Unanswered")
    database.store(sources(told, offset=1), after=0, through=1)

    (found,) = find(reader, DispatchFilter(phase="Failed"))
    (ending,) = sum_up(reader, DispatchFilter())

    assert (found.applied, found.evidence) == (None, "Unanswered")
    assert (ending.dispatches, ending.applied, ending.unknown) == (1, 0, 1)


def test_a_ledger_that_was_lost_takes_nothing_back(
    database: WriterDatabase, reader: psycopg.Connection
) -> None:
    known = report(
        "Acked", "Active", sequence=2, applied_us=T0_US + 7, active_milliseconds=5000,
        evidence="Effect",
    )  # fmt: skip
    lost = report("Failed", sequence=1, ledger_id="new", reason="LedgerLost")
    lost.received_us += 60_000_000
    database.store(sources(known, lost, offset=1), after=0, through=1)

    (found,) = find(reader, DispatchFilter(dispatch=DISPATCH))

    assert (found.phase, found.reason) == ("Failed", "LedgerLost")
    assert (found.applied, found.applied_at) == (True, T0 + timedelta(microseconds=7))
    assert (found.active_seconds, found.evidence) == (5.0, "Effect")
    assert (found.reported_phase, found.reported_reason) == ("Failed", "LedgerLost")


def test_what_a_new_ledger_ends_that_another_was_given_is_not_known(
    database: WriterDatabase, reader: psycopg.Connection
) -> None:
    told = report("Cancelled", sequence=1, ledger_id="new")
    judged = transition("Failed", "LedgerLost")
    judged.received_us += 10
    database.store(sources(told, judged, offset=1), after=0, through=1)

    (found,) = find(reader, DispatchFilter(dispatch=DISPATCH))

    assert (found.phase, found.reason, found.applied) == ("Failed", "LedgerLost", None)
    assert found.reported_phase == "Cancelled"


def test_what_took_the_place_of_a_dispatch_is_named(
    database: WriterDatabase, reader: psycopg.Connection
) -> None:
    told = report("Acked", "Superseded", sequence=2, superseded_by="uid-winner")
    database.store(sources(told, offset=1), after=0, through=1)

    (found,) = find(reader, DispatchFilter(phase="Superseded"))

    assert (found.superseded_by, found.applied) == ("uid-winner", False)


def test_a_month_is_summed_up_and_paged_through(reader: psycopg.Connection, query: Query) -> None:
    fill(query, 250)
    begin = datetime(2026, 11, 1, tzinfo=UTC)
    month = DispatchFilter(namespace="site", since=begin, until=begin + timedelta(days=30))

    pages = [find(reader, month, limit=100)]
    while pages[-1]:
        pages.append(find(reader, month, after=pages[-1][-1].place, limit=100))

    assert [len(page) for page in pages] == [100, 100, 50, 0]
    assert len({each.dispatch_uid for page in pages for each in page}) == 250
    endings = [
        (each.phase, each.dispatches, each.verified, each.refuted) for each in sum_up(reader, month)
    ]
    assert endings == [("Complete", 225, 225, 0), ("Failed", 25, 0, 25)]
    assert sum_up(reader, DispatchFilter(since=begin + timedelta(days=30))) == []
    assert len(find(reader, DispatchFilter(asset_name="a7"))) == 3


def test_one_dispatch_is_found_without_reading_all(
    reader: psycopg.Connection, query: Query
) -> None:
    fill(query, MANY)
    reader.execute("analyze dispatch_event")

    plan = reader.execute(
        "explain (analyze, format json) select * from dispatch_history where dispatch_uid = 'd77'"
    ).fetchone()

    assert plan is not None
    scans = {
        (node["Node Type"], node["Relation Name"])
        for node in nodes(plan[0][0]["Plan"])
        if "Relation Name" in node
    }
    assert ("Seq Scan", "dispatch_event") not in scans
    assert any(relation == "dispatch_event" for _, relation in scans)


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for part in node.get("Plans", ()):
        yield from nodes(part)


def run(database_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "derops-headend"), "history", *arguments],
        env={**os.environ, "DEROPS_WRITER_DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        check=False,
    )


def ask(database_url: str, *arguments: str) -> str:
    result = run(database_url, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_person_asks_from_a_shell(
    database: WriterDatabase, database_url: str, query: Query
) -> None:
    told = report("Acked", "Active", "Complete", sequence=3, applied_us=T0_US)
    database.store(sources(transition("Submitted"), told, offset=1), after=0, through=1)

    story = ask(database_url, "--dispatch", "peak")
    line = json.loads(ask(database_url, "--namespace", "site", "--output", "json"))

    assert "applied                   True" in story
    assert "CompleteReason" in story
    assert line["dispatch_uid"] == DISPATCH
    assert "Complete" in ask(database_url, "--summary")
    assert ask(database_url, "--phase", "Failed") == "none\n"
    assert ask(database_url, "--created-by", "ann") == "none\n"
    query("update dispatch_event set created_by = 'ann' where phase = 'Submitted'")
    assert "created_by                ann" in ask(database_url, "--dispatch", "peak")
    assert json.loads(ask(database_url, "--created-by", "ann", "--output", "json"))["namespace"]


def test_a_person_has_the_rows_checked(database_url: str, query: Query) -> None:
    fill(query, 3)
    assert ask(database_url, "check") == "each row is what its events say\n"
    query("update dispatch set phase = 'Active' where dispatch_uid = 'd2'")

    result = run(database_url, "check")

    assert result.returncode == 1
    assert result.stdout == (
        "d2 of site/a2: the row has {'phase': 'Active'}, its events say {'phase': 'Complete'}\n"
    )
    line = json.loads(run(database_url, "check", "--output", "json").stdout)
    assert (line["dispatch_uid"], line["told"]) == ("d2", {"phase": "Complete"})

    query("delete from dispatch where dispatch_uid = 'd3'")
    query("update dispatch_backfill set done_at = null")
    result = run(database_url, "check")
    assert (result.returncode, result.stdout.count("\n")) == (1, 1)
    assert result.stderr.startswith("the writer has not given every dispatch its row yet")
