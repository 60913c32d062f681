"""Attacks on the history of dispatches, by agents and by whoever orders."""

import csv
import io

import psycopg
import pytest
from tests.api.reading import reading_site
from tests.headend.writing.making import DISPATCH, report, sources, transition

from derops.wire.v1 import control_pb2, dispatch_pb2, log_pb2
from derops_headend.api.routes import history
from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.dispatches import MOST_STEPS
from derops_headend.storage.history import DispatchFilter, find
from derops_operator.gateways.history import WaitingHistory
from derops_operator.gateways.sync import HISTORY_LIMIT

THIEF = dispatch_pb2.AssetId(uid="t", namespace="other", name="thief")
IN_A_REPORT = 64
"""Steps: the most that a gateway takes."""


def by(asset: dispatch_pb2.AssetId, told: log_pb2.LogEntry) -> log_pb2.LogEntry:
    told.asset.CopyFrom(asset)
    return told


def many_steps(sequence: int) -> log_pb2.LogEntry:
    """Return a report of as many steps as may be, none of which was told before."""
    told = report(*["Acked"] * IN_A_REPORT, sequence=sequence)
    body = dispatch_pb2.DispatchReport.FromString(told.body)
    for step in body.transitions:
        step.at_us += 1_000_000 * IN_A_REPORT * sequence
    told.body = body.SerializeToString()
    return told


def test_made_up_lines_push_no_other_tenants_out() -> None:
    """R200: who may write statuses of a namespace makes up lines while no gateway is there."""
    waiting = WaitingHistory(HISTORY_LIMIT)
    genuine = [
        control_pb2.HeadendTransition(
            asset=dispatch_pb2.AssetId(namespace="site", name="battery"), dispatch_uid=f"d-{n}"
        )
        for n in range(100)
    ]
    dropped = []
    for n in range(2 * HISTORY_LIMIT):
        if n % 400 == 0:
            dropped.append(waiting.put(genuine[n // 400]))
        dropped.append(
            waiting.put(control_pb2.HeadendTransition(asset=THIEF, dispatch_uid="made up"))
        )

    assert len(waiting) == HISTORY_LIMIT
    assert {each.asset.name for each in dropped if each is not None} == {"thief"}
    left = [waiting.pop() for _ in range(HISTORY_LIMIT)]
    assert [each for each in left if each.asset != THIEF] == genuine


def test_endless_steps_make_no_writer_slow(database_url: str) -> None:
    """R20: an agent tells ever more steps of a dispatch, whose row is derived from all of them."""
    database = WriterDatabase.connect(database_url, "log")
    rounds = MOST_STEPS // IN_A_REPORT + 5
    for n in range(rounds):
        told = [many_steps(n), by(THIEF, report("Acked", sequence=n + 1))]
        database.store(sources(*told, offset=n + 1), after=n, through=n + 1)
    ending = (transition("Sent"), transition("Failed", "OutcomeUnknown"))
    database.store(sources(*ending, offset=rounds + 1), after=rounds, through=rounds + 1)
    database.close()

    most = (MOST_STEPS // IN_A_REPORT + 1) * IN_A_REPORT
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("select subject, steps, phase from dispatch order by 1")
        refused = connection.execute(
            "select reason, detail, count(*) from quarantine group by 1, 2"
        )
        assert rows.fetchall() == [
            ("other/thief", 1, "Acked"),
            ("site/battery", most + 2, "Failed"),
        ]
        assert refused.fetchall() == [
            ("TooManySteps", f"{DISPATCH} has {MOST_STEPS} steps already, or more", 4)
        ]


def test_the_word_of_another_tenants_agent_is_on_nobodys_page(database_url: str) -> None:
    """R21: an agent tells of the dispatch of another tenant, before and after it is known."""
    database = WriterDatabase.connect(database_url, "log")
    rounds = [
        [by(THIEF, report("Acked", "Failed", sequence=1))],
        [transition("Submitted"), report("Acked", sequence=1)],
        [by(THIEF, report("Acked", "Complete", sequence=2, applied_watts=-1))],
    ]
    with psycopg.connect(database_url, autocommit=True) as connection:
        for n, told in enumerate(rounds):
            database.store(sources(*told, offset=n + 1), after=n, through=n + 1)
            if n == 0:  # nobody but that agent spoke of it: it is in its own history
                assert [each.namespace for each in find(connection, DispatchFilter())] == ["other"]
        (found,) = find(connection, DispatchFilter())
        assert find(connection, DispatchFilter(namespace="other")) == []
    database.close()

    assert (found.namespace, found.phase, found.applied_watts) == ("site", "Acked", None)


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t", "\r"])
async def test_a_spreadsheet_is_given_no_formula(database_url: str, begins: str) -> None:
    """R22: an agent gives a reason that a spreadsheet would run, and somebody opens the CSV."""
    database = WriterDatabase.connect(database_url, "log")
    told = report("Acked", "Failed", sequence=2, reason=f"{begins}cmd|' /C calc'!A0")
    database.store(sources(told, offset=1), after=0, through=1)
    database.close()

    async with reading_site(database_url, [history.router], {"list dispatches site/"}) as site:
        answer = await site.client.get(
            "/v1/namespaces/site/history", headers={"Accept": "text/csv"}
        )

    (line,) = csv.DictReader(io.StringIO(answer.text, newline=""))
    assert (line["phase"], line["reason"]) == ("Failed", f"'{begins}cmd|' /C calc'!A0")
