"""The attacker is an agent with a valid certificate of its own asset, in a namespace of its own.

It says what it likes. It speaks through the real gateway to the operator's own code, and through
the log to a real PostgreSQL.
"""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.attacks.two_tenants import THIEF, VICTIM, Tenants, outcome, tenants
from tests.headend.gateway.counting import counted

from derops.schedules import SECOND_US
from derops.wire.v1 import dispatch_pb2, log_pb2

REFUSED = "derops_gateway_refused_reports_total"
STRANGE = "derops_operator_strange_reports_total"
UNLOGGED = "derops_gateway_unlogged_reports_total"
ALLOWED = 1000


@pytest.fixture
async def both(tmp_path: Path, database_url: str) -> AsyncIterator[Tenants]:
    async with tenants(tmp_path, database_url) as running:
        yield running


def told(both: Tenants, uid: str) -> list[tuple[str, str, str]]:
    """Return what status says of the victim's dispatch: how it ended, and what is known late."""
    status = both.look(VICTIM[0], uid)
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    return [(status["phase"], status["reason"], conditions["Applied"])]


# Another tenant's dispatches


async def test_a_stranger_tells_no_outcome_of_a_dispatch_that_is_settled(both: Tenants) -> None:
    """H1: an agent tells an outcome of another tenant's dispatch that ended OutcomeUnknown.

    The operator counts AnotherAsset; the victim's status and anybody's history say what they said.
    """
    both.dispatch("peak", starts_in_seconds=-7200, seconds=60)
    await both.run()
    thief = await both.agent(THIEF)
    before = counted(STRANGE, reason="AnotherAsset")

    await thief.say(outcome("peak", begun_ago=7000))
    await thief.acknowledged()
    await both.operator_heard_all()

    assert told(both, "peak") == [("Failed", "OutcomeUnknown", "Unknown")]
    assert "lateReport" not in both.look(VICTIM[0], "peak")
    assert both.history("namespace, phase, reason, applied", "dispatch_uid = 'peak'") == [
        ("pilot", "Failed", "OutcomeUnknown", None)
    ]
    assert counted(STRANGE, reason="AnotherAsset") == before + 1


@pytest.mark.parametrize("stranger_first", [True, False])
async def test_the_genuine_late_proof_stands_whoever_spoke_first(
    both: Tenants, stranger_first: bool
) -> None:
    """H2: an agent tells the very steps that another tenant's agent tells, with other facts.

    The genuine report stands in status and history, in either order, told again too.
    """
    both.dispatch("peak", starts_in_seconds=-7200, seconds=60)
    await both.run()
    thief, owner = await both.agent(THIEF), await both.agent(VICTIM)
    genuine = outcome("peak", begun_ago=7000)
    forged = outcome("peak", begun_ago=7000, active_milliseconds=1, applied_watts=-9001)
    for place in (0, 1, 2):
        forged.transitions[place].at_us = genuine.transitions[place].at_us

    for number in range(4):
        speaks_now = stranger_first == (number % 2 == 0)
        speaker, report = (thief, forged) if speaks_now else (owner, genuine)
        await speaker.say(report)
        await speaker.acknowledged()
        both.store()
    await both.operator_heard_all()

    status = both.look(VICTIM[0], "peak")
    assert status["lateReport"]["phase"] == "Complete"
    assert status["execution"]["applied"]["watts"] == 5000
    assert both.history(
        "namespace, phase, reported_phase, applied, applied_watts, active_seconds::int",
        "dispatch_uid = 'peak'",
    ) == [("pilot", "Failed", "Complete", True, 5000, 60)]


async def test_a_stranger_tells_nothing_of_a_dispatch_that_is_held(both: Tenants) -> None:
    """H3: an agent tells an outcome of another tenant's dispatch that its gateway holds.

    The gateway counts AnotherAsset and says so in its log; nobody else hears of it.
    """
    both.dispatch("peak")
    await both.run()
    thief = await both.agent(THIEF)
    before = counted(REFUSED, reason="AnotherAsset")

    with capture_logs() as lines:
        await thief.say(outcome("peak"))
        assert await thief.heard() == []
    await both.operator_heard_all()

    assert both.rig.log.of(log_pb2.AGENT_REPORT) == []
    assert told(both, "peak") == [("Submitted", "Validated", "Unknown")]
    assert counted(REFUSED, reason="AnotherAsset") == before + 1
    refused = [line for line in lines if line["event"] == "report.refused"]
    assert [(line["namespace"], line["asset"]) for line in refused] == [("other", "thief")]


async def test_what_a_stranger_said_before_the_dispatch_was_known_is_in_nobodys_history(
    both: Tenants,
) -> None:
    """H4: an agent tells an outcome of another tenant's uid before the gateway hears of it.

    It shows in the agent's own history until the headend says whose dispatch it is; then nowhere.
    """
    await both.run()
    thief = await both.agent(THIEF)
    await thief.say(outcome("peak"))
    await thief.acknowledged()
    assert both.history("namespace, asset_name", "dispatch_uid = 'peak'") == [THIEF]

    both.dispatch("peak")
    both.controller.core.load()
    await both.operator_heard_all()

    assert told(both, "peak") == [("Submitted", "Validated", "Unknown")]
    assert both.history("namespace, phase, applied", "dispatch_uid = 'peak'") == [
        ("pilot", "Submitted", False)
    ]


async def test_invented_dispatches_are_in_the_speakers_own_history_alone(both: Tenants) -> None:
    """H5: an agent tells outcomes of dispatches that never were.

    They are acknowledged and settled, and in its own namespace's history; no Dispatch hears of it.
    """
    await both.run()
    thief = await both.agent(THIEF)
    before = counted(STRANGE, reason="UnknownDispatch")

    await thief.say(outcome("invented"))

    assert (await thief.read_until("settled")).dispatch_uid == "invented"
    await both.operator_heard_all()
    assert both.history("namespace, asset_name, phase") == [(*THIEF, "Complete")]
    assert counted(STRANGE, reason="UnknownDispatch") == before + 1
    assert both.controller.core.fleet.known_uids() & {"invented"} == set()


async def test_a_flood_of_invented_dispatches_costs_so_many_rows_and_no_more(
    both: Tenants,
) -> None:
    """H6: an agent tells outcomes of thousands of invented dispatches.

    A thousand a day go into the log; the others are acknowledged and counted, and the other
    tenant's agent is heard meanwhile.
    """
    both.dispatch("peak")
    await both.run()
    thief, owner = await both.agent(THIEF), await both.agent(VICTIM)
    before = counted(UNLOGGED)

    for number in range(ALLOWED + 500):
        await thief.say(outcome(f"invented-{number}"))
        if number % 100 == 99:
            await thief.acknowledged()
    await owner.say(outcome("peak", begun_ago=0, phase="Active", **active()))
    await owner.acknowledged()
    await both.operator_heard_all()

    owners = [entry.asset.name for entry in both.rig.log.of(log_pb2.AGENT_REPORT)]
    assert owners.count("thief") == ALLOWED
    assert owners.count("battery") == 1
    assert counted(UNLOGGED) == before + 500
    assert told(both, "peak") == [("Active", "Applied", "True")]
    assert all(not uid.startswith("invented") for uid in both.controller.core.fleet.known_uids())


async def test_many_ledgers_of_one_agent_take_no_more_memory_than_a_few(both: Tenants) -> None:
    """H7: an agent reports on its own dispatch from ever new ledgers.

    The operator keeps eight, the furthest among them, and counts what it lets go of.
    """
    both.dispatch("own", THIEF)
    await both.run()
    before = counted("derops_operator_forgotten_ledgers_total")
    for number in range(20):
        thief = await both.agent(THIEF, epoch=number + 1, ledger_id=f"ledger-{number}")
        await thief.say(outcome("own", begun_ago=0, phase="Active", **active()))
        await thief.acknowledged()
        await thief.close()
    await both.operator_heard_all()

    assert len(both.controller.core.fleet._reports["own"]) == 8
    assert counted("derops_operator_forgotten_ledgers_total") == before + 12


# Outcomes that cannot be


def active() -> dict[str, Any]:
    """Return what an honest agent has to say as soon as it has begun."""
    return {
        "reason": "Applied",
        "transitions": [],
        "ended_us": 0,
        "reverted_us": 0,
        "verified": "Unknown",
        "verified_us": 0,
        "evidence": "ReadBack",
        "within_tolerance_milliseconds": 0,
        "active_milliseconds": 0,
        "delivered_watt_hours": 0.0,
    }


def complete_early() -> dispatch_pb2.DispatchReport:
    report = outcome("own", begun_ago=2, seconds=600, active_milliseconds=2000)
    report.delivered_watt_hours, report.within_tolerance_milliseconds = 2.0, 1000
    report.ended_us = report.applied_us + 2 * SECOND_US
    report.transitions[-1].at_us = report.ended_us
    return report  # type: ignore[no-any-return]


def begun(**changes: Any) -> Callable[[], dispatch_pb2.DispatchReport]:
    """Return what makes a report of a window that has begun just now, with something else in it."""
    return lambda: outcome("own", begun_ago=2, seconds=600, **active() | changes)


IMPOSSIBLE = [
    pytest.param(complete_early, "its planned end is", id="H21 complete before its end"),
    pytest.param(
        begun(phase="Complete", applied_us=0, planned_end_us=0),
        "its planned end is",
        id="H22 complete at once, and nothing else said",
    ),
    pytest.param(
        begun(phase="Active", verified="True", verified_us=1, evidence="Effect"),
        "verified True without samples",
        id="H23 verified without samples",
    ),
    pytest.param(
        begun(phase="Failed", active_milliseconds=3_600_000),
        "active_milliseconds 3600000 is more",
        id="H24 active for longer than there was time",
    ),
    pytest.param(
        begun(phase="Failed", delivered_watt_hours=-20_000.0),
        "delivered_watt_hours -20000 is more",
        id="H25 more energy than its rating allows",
    ),
    pytest.param(
        begun(
            phase="Active", transitions=[dispatch_pb2.Transition(phase="Complete", at_us=10**15)]
        ),
        "is not that of the last transition",
        id="H26 another end among its transitions",
    ),
]


@pytest.mark.parametrize(("report", "why"), IMPOSSIBLE)
async def test_what_cannot_have_been_is_believed_by_nobody(
    both: Tenants, report: Callable[[], dispatch_pb2.DispatchReport], why: str
) -> None:
    """An agent tells an impossible outcome of its own dispatch.

    The gateway counts it and logs the field, its value and the limit; status and history hear
    nothing, and the dispatch ends OutcomeUnknown if nothing else is said.
    """
    both.dispatch("own", THIEF)
    await both.run()
    thief = await both.agent(THIEF)
    kinds = ("Impossible", "Malformed")
    before = sum(counted(REFUSED, reason=kind) for kind in kinds)

    with capture_logs() as lines:
        await thief.say(report())
        assert await thief.heard() == []
    await both.operator_heard_all()

    assert both.rig.log.of(log_pb2.AGENT_REPORT) == []
    status = both.look(THIEF[0], "own")
    assert (status["phase"], status["reason"]) == ("Sent", "DeliveredToSession")
    assert sum(counted(REFUSED, reason=kind) for kind in kinds) == before + 1
    (line,) = [line for line in lines if line["event"] == "report.refused"]
    assert why in line["why"]


async def test_what_has_not_begun_is_not_applied(both: Tenants) -> None:
    """H29: an agent tells that its dispatch of the next hour is on the device, and over.

    The gateway counts it as impossible; status hears nothing of it.
    """
    both.dispatch("own", THIEF, starts_in_seconds=3600, created_ago_seconds=86_400)
    await both.run()
    thief = await both.agent(THIEF)
    before = counted(REFUSED, reason="Impossible")

    await thief.say(outcome("own", begun_ago=60, phase="Active", **active()))
    await thief.say(outcome("own", begun_ago=60))
    assert await thief.heard() == []
    await both.operator_heard_all()

    assert both.rig.log.of(log_pb2.AGENT_REPORT) == []
    assert both.look(THIEF[0], "own")["phase"] == "Sent"
    assert counted(REFUSED, reason="Impossible") == before + 2


async def test_a_clock_that_is_said_to_be_ahead_makes_no_certain_success(both: Tenants) -> None:
    """H27: an agent tells its dispatch complete before its end, by a clock that is ahead.

    An honest agent whose clock was set forward tells the same, so it is taken; status says that
    the gateway heard it too early, and Succeeded is Unknown.
    """
    both.dispatch("own", THIEF)
    await both.run()
    thief = await both.agent(THIEF)
    report = outcome("own", begun_ago=2, seconds=600, active_milliseconds=2000)
    report.delivered_watt_hours, report.within_tolerance_milliseconds = 2.0, 1000

    await thief.say(report)
    await thief.acknowledged()
    await both.operator_heard_all()

    status = both.look(THIEF[0], "own")
    succeeded = {each["type"]: each["status"] for each in status["conditions"]}["Succeeded"]
    assert (status["phase"], succeeded) == ("Complete", "Unknown")
    assert "before the end that was ordered" in status["message"]


async def test_an_impossible_outcome_of_an_unknown_dispatch_is_not_logged_either(
    both: Tenants,
) -> None:
    """H28: an agent tells impossible outcomes of dispatches that the gateway does not hold.

    They are counted like those of one that is held, and let go of: an agent that measures wrongly
    forgets them. However many there are, so many lines in the log are enough.
    """
    await both.run()
    thief = await both.agent(THIEF)
    before = counted(REFUSED, reason="Impossible")

    lies: list[dict[str, Any]] = [
        {"active_milliseconds": 10**9},
        {"delivered_watt_hours": 1e9},
        {"within_tolerance_milliseconds": 0},
        {"planned_end_us": 2 * 10**15, "ended_us": 1},
    ]
    lies *= 50
    with capture_logs() as lines:
        for number, changes in enumerate(lies):
            await thief.say(outcome(f"unknown-{number}", **changes))
        answered = await thief.heard()

    assert sorted(answered) == ["report_ack"] * len(lies) + ["settled"] * len(lies)
    assert both.rig.log.of(log_pb2.AGENT_REPORT) == []
    assert counted(REFUSED, reason="Impossible") == before + len(lies)
    assert 60 < len([line for line in lines if line["event"] == "report.refused"]) < 70
