"""What the checker of the histories accepts, and what it must complain of."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.lifecycle.checking import Known
from tests.lifecycle.site import Wear
from tests.lifecycle.world import GATEWAYS, World

from derops.lifecycle import Phase, Reason
from derops.modes import Evidence
from derops.schedules import SECOND_US
from derops.wire.v1 import dispatch_pb2
from derops_agent.clock import Moment
from derops_agent.execution import stages
from derops_agent.execution.patience import WORN_RETRY_SECONDS
from derops_agent.execution.state import Execution, Stage
from derops_agent.ports import Setpoints

SETPOINT = {"mode": "ActivePower", "activePowerWatts": 1000}
LIMIT = {"mode": "GenerationLimit", "maxGenerationWatts": 2000}
LOAD = {"mode": "LoadLimit", "maxLoadWatts": 2000}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.begin()
    yield world
    await world.end()


async def _accept(world: World, *, start_seconds: int) -> None:
    world.apply("peak", start_seconds, setpoint=SETPOINT, durationSeconds=30)
    await world.advance(2)


async def _order_what_is_rejected(world: World) -> None:
    world.change_asset(operatingState="OutOfService")
    await world.flow()
    world.apply("peak", 60, setpoint=SETPOINT, durationSeconds=30)


async def _lose_disk(world: World) -> None:
    world.cut_power(lose_disk=True)
    await world.start_agent()
    await world.flow()


async def _conclude(world: World) -> None:
    await world.heal()
    world.checker.conclude(world.cluster.dispatches)


def _as_restarted(world: World) -> dispatch_pb2.DispatchReport:
    """Return the agent's last word as if the order had failed now as ``AgentRestarted``."""
    (known,) = world.checker.known.values()
    (said,) = known.reports.values()
    report = dispatch_pb2.DispatchReport()
    report.CopyFrom(said)
    report.phase, report.reason = Phase.FAILED, Reason.AGENT_RESTARTED
    report.transitions.add(phase=Phase.FAILED, reason=Reason.AGENT_RESTARTED)
    return report


async def test_no_agent_restarted_that_ran_ever_since_it_had_the_order(world: World) -> None:
    await _accept(world, start_seconds=60)

    with pytest.raises(AssertionError, match="AgentRestarted, and there was only"):
        world.checker.hear(_as_restarted(world))


async def test_no_start_is_missed_for_a_restart_after_which_the_agent_went_on(
    world: World,
) -> None:
    await _accept(world, start_seconds=60)
    world.cut_power()
    await world.start_agent()
    await world.advance(5)

    with pytest.raises(AssertionError, match="it had gone on for"):
        world.checker.hear(_as_restarted(world))


async def test_an_order_written_to_a_lost_ledger_may_end_as_that(world: World) -> None:
    world.cut_stream()
    await world.advance(1)  # at the other gateway, so that it dials the first one next
    world.cut_stream(noticed=False)
    await _lose_disk(world)
    world.apply("peak", 0, setpoint=SETPOINT, durationSeconds=8)
    await world.flow()
    await world.kill_gateway(0)
    world.cancel("peak")
    await world.flow()

    await _conclude(world)
    assert world.cluster.dispatches["peak"].status["reason"] == Reason.LEDGER_LOST


async def test_what_a_lost_ledger_wrote_unheard_is_not_told_as_never_applied(
    world: World,
) -> None:
    world.site.break_device("acts and is not heard")
    for way in world.ways.agent:
        way.holds_up = True
    await _accept(world, start_seconds=0)
    assert world.site.held == Setpoints(active_power_watts=1000)
    await _lose_disk(world)
    world.site.break_device("refuses")
    await world.advance(1)
    world.cancel("peak")

    await _conclude(world)
    status = world.cluster.dispatches["peak"].status
    assert status["reason"] == Reason.LEDGER_LOST
    (applied,) = [each for each in status["conditions"] if each["type"] == "Applied"]
    assert applied["status"] == "Unknown"


def _told(world: World) -> tuple[str, str, str]:
    """Return phase, reason and ``Applied`` of the one that is asked about."""
    status = world.cluster.dispatches["peak"].status
    told = {each["type"]: each["status"] for each in status["conditions"]}
    return (status["phase"], status["reason"], told["Applied"])


async def _end(world: World, *, gateway: int, lose_disk: bool) -> None:
    """End the operator and a gateway; the other one stays."""
    await world.kill_operator()
    await world.kill_gateway(gateway, lose_disk=lose_disk)


async def test_what_a_lost_ledger_ran_and_no_gateway_remembers_is_not_told_as_never_applied(
    world: World,
) -> None:
    assert world.stream is not None
    served = world.gateways.index(world.stream.gateway)
    world.ways.control[served].holds_up = True
    await _accept(world, start_seconds=0)
    assert world.site.held == Setpoints(active_power_watts=1000)
    await _end(world, gateway=served, lose_disk=True)
    world.cut_power(lose_disk=True)
    await world.advance(70)
    world.mend_links()
    await world.start_operator()
    await world.start_agent()
    await world.advance(5)

    # The gateway that is away may have given it to an earlier ledger.
    assert _told(world)[0] == Phase.SENT
    assert "has yet to be heard" in world.cluster.dispatches["peak"].status["message"]
    await _conclude(world)
    assert _told(world) == (Phase.FAILED, Reason.LEDGER_LOST, "Unknown")


async def test_a_refusal_waits_for_a_gateway_and_is_believed_once_that_remembers(
    world: World,
) -> None:
    assert world.stream is not None
    away = world.gateways.index(world.stream.gateway)
    world.cut_power()
    world.apply("peak", 0, setpoint=SETPOINT, durationSeconds=30)
    await world.advance(1)
    await _end(world, gateway=away, lose_disk=False)
    await world.advance(70)
    await world.start_operator()
    await world.start_agent()
    await world.advance(5)

    assert _told(world)[0] == Phase.SENT
    await _conclude(world)
    assert _told(world) == (Phase.EXPIRED, Reason.START_DEADLINE_EXCEEDED, "False")


async def test_the_refusal_of_a_ledger_that_is_older_than_the_order_needs_no_memory(
    world: World,
) -> None:
    world.apply("before", 0, setpoint=LIMIT, durationSeconds=2)
    await world.advance(10)
    assert world.cluster.dispatches["before"].status["phase"] == Phase.COMPLETE
    world.cut_power()
    world.apply("peak", 0, setpoint=SETPOINT, durationSeconds=30)
    await world.advance(1)
    for number in range(GATEWAYS):
        await world.kill_gateway(number, lose_disk=True)
    await world.advance(70)

    await _conclude(world)
    assert _told(world) == (Phase.EXPIRED, Reason.START_DEADLINE_EXCEEDED, "False")


async def test_an_agent_that_was_away_for_the_whole_window_is_believed_at_once(
    world: World,
) -> None:
    world.cut_power()
    world.apply("peak", 0, setpoint=SETPOINT, durationSeconds=30)
    await world.advance(1)
    await world.kill_operator()
    await world.advance(100)
    await world.start_agent()
    await world.advance(5)  # a gateway gives it that, as no operator has withdrawn it
    await world.start_operator()
    await world.advance(1)

    assert _told(world) == (Phase.EXPIRED, Reason.START_DEADLINE_EXCEEDED, "False")
    await _conclude(world)


async def test_what_a_late_device_shows_after_it_was_written_over_counts_from_its_own_write(
    world: World,
) -> None:
    world.site.break_device("shows late")  # by three seconds
    world.apply("peak", 1, setpoint=SETPOINT, durationSeconds=8)
    short = {"durationSeconds": 1, "startDeadlineSeconds": 1, "primacy": 50}
    world.apply("short", 4, setpoint={"mode": "ActivePower", "activePowerWatts": 1300}, **short)
    await world.advance(12)
    assert world.cluster.dispatches["short"].status["reason"] == Reason.START_DEADLINE_EXCEEDED

    await _conclude(world)
    assert world.cluster.dispatches["peak"].status["execution"]["activeSeconds"] == 7


async def test_nothing_of_what_a_late_device_has_shown_may_land_after_its_end(
    world: World,
) -> None:
    world.site.break_device("shows late")
    await _accept(world, start_seconds=1)
    await world.advance(50)
    (known,) = world.checker.known.values()
    (said,) = known.reports.values()
    assert (said.phase, said.pending_error) == (Phase.COMPLETE, "")
    await _conclude(world)


def test_writes_of_one_value_are_counted_for_the_same_dispatches_only() -> None:
    wear, value = Wear(), Setpoints(active_power_watts=1000)
    for second in range(3):
        wear.note(value, frozenset({"a", "b"} if second == 0 else {"a"}), second * SECOND_US)
    assert wear.most_writes == 3

    wear.note(value, frozenset({"c"}), 4 * SECOND_US)
    wear.note(Setpoints(active_power_watts=0), frozenset({"c"}), 5 * SECOND_US)
    wear.note(value, frozenset({"c"}), (4 + WORN_RETRY_SECONDS) * SECOND_US)
    wear.forget()
    wear.note(value, frozenset({"c"}), (5 + WORN_RETRY_SECONDS) * SECOND_US)
    assert wear.most_writes == 3


async def test_an_end_that_is_decided_again_while_it_is_stored_is_told_once(world: World) -> None:
    await _order_what_is_rejected(world)
    world.hold_api_server(True)
    await world.advance(2)
    world.change_asset(telemetry={"intervalSeconds": 2})
    await world.advance(2)
    world.hold_api_server(False)
    await world.advance(2)

    assert world.cluster.dispatches["peak"].status["phase"] == "Rejected"
    await _conclude(world)


async def test_an_end_that_the_api_server_refuses_is_not_told(world: World) -> None:
    await _order_what_is_rejected(world)
    world.hold_api_server(True)
    await world.advance(2)
    world.cancel("peak")
    world.hold_api_server(False)
    await world.advance(2)

    assert world.cluster.dispatches["peak"].status["phase"] == "Cancelled"
    await _conclude(world)


async def test_an_end_that_was_stored_and_not_told_is_told_at_the_next_start(world: World) -> None:
    await _order_what_is_rejected(world)
    assert world.operator is not None
    world.operator.fuse.left = 1
    await world.flow()

    (known,) = world.checker.known.values()
    assert [each.phase for each in known.told] == [world.cluster.dispatches["peak"].phase]


async def test_a_dispatch_that_is_to_live_so_long_is_deleted_then(world: World) -> None:
    world.apply("peak", 1, setpoint=SETPOINT, durationSeconds=10, ttlSecondsAfterFinished=20)
    await world.advance(25)
    assert world.cluster.dispatches["peak"].phase is Phase.COMPLETE

    await world.advance(20)
    assert not world.cluster.dispatches
    assert world.cluster.deleted_when_due == 1


def _count_sooner(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """Have an agent count each start from before the device was written."""
    hold = stages.hold

    def hold_sooner(execution: Execution, now: Moment, evidence: str) -> Execution:
        starts = execution.stage is Stage.APPLYING
        return hold(execution, now.back(seconds * SECOND_US) if starts else now, evidence)

    monkeypatch.setattr(stages, "hold", hold_sooner)


async def _apply(world: World, name: str, setpoint: dict[str, Any], *, seconds: int) -> None:
    """Have a dispatch start now."""
    world.apply(name, 0, setpoint=setpoint, durationSeconds=seconds)
    await world.flow()


async def _ignore_what_another_start_brings(world: World) -> None:
    await world.advance(1)
    world.site.break_device("ignores")
    await _apply(world, "limit", LIMIT, seconds=30)
    await world.advance(3)
    world.site.break_device("none")
    await _apply(world, "peak", SETPOINT, seconds=30)


async def _ignore_what_is_written_again(world: World) -> None:
    await world.advance(1)
    world.site.break_device("ignores")
    await _apply(world, "limit", LIMIT, seconds=30)
    await world.advance(3)
    world.site.break_device("none")
    await world.advance(4)


async def test_a_start_that_was_ignored_may_count_if_another_brings_it_while_it_is_awaited(
    world: World,
) -> None:
    await _ignore_what_another_start_brings(world)
    known = _known(world, "limit")
    assert known.stays == 1
    assert known.unsure_seconds == pytest.approx(3, abs=0.1)

    await _conclude(world)
    (said,) = known.reports.values()
    assert said.active_milliseconds == pytest.approx(30_000, abs=100)
    assert known.held_us == pytest.approx(27 * SECOND_US, abs=SECOND_US / 10)


async def test_an_end_that_was_ignored_may_count_if_another_write_brings_it_while_it_is_awaited(
    world: World,
) -> None:
    await world.advance(1)
    await _apply(world, "limit", LIMIT, seconds=10)
    await world.advance(9)
    world.site.break_device("ignores")
    await world.advance(4)
    world.site.break_device("none")
    await _apply(world, "peak", SETPOINT, seconds=30)

    assert _known(world, "limit").unsure_seconds == pytest.approx(3, abs=0.1)
    await _conclude(world)


async def test_an_agent_that_counts_more_than_what_was_ignored_is_found_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _count_sooner(monkeypatch, seconds=2)
    await _ignore_what_another_start_brings(world)

    with pytest.raises(AssertionError, match="claims"):
        await _conclude(world)


async def test_what_was_ignored_does_not_count_once_it_is_written_again(world: World) -> None:
    await _ignore_what_is_written_again(world)
    known = _known(world, "limit")
    assert (known.stays, known.unsure_seconds) == (1, 0)

    await _conclude(world)


async def test_an_agent_that_counts_what_was_ignored_and_written_again_is_found_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _count_sooner(monkeypatch, seconds=5)
    await _ignore_what_is_written_again(world)

    with pytest.raises(AssertionError, match="claims"):
        await _conclude(world)


async def _write_on_before_anything_is_shown(world: World, *, then_seconds: int) -> None:
    """Have a limit on the device whose write is followed by two others, three seconds apart."""
    world.site.break_device("shows late each time anew")
    await world.advance(1)
    for name, setpoint in {"limit": LIMIT, "load": LOAD, "peak": SETPOINT}.items():
        await _apply(world, name, setpoint, seconds=60)
        await world.advance(3)
    await world.advance(then_seconds)
    await _apply(world, "next", {**LIMIT, "maxGenerationWatts": 3000}, seconds=60)


async def test_what_is_written_over_again_and_again_may_be_unseen_all_the_time(
    world: World,
) -> None:
    await _write_on_before_anything_is_shown(world, then_seconds=0)
    await _conclude(world)

    (said,) = _known(world, "limit").reports.values()
    assert (said.active_milliseconds, said.evidence) == (0, Evidence.UNANSWERED)
    assert _known(world, "limit").held_us == pytest.approx(9 * SECOND_US, abs=SECOND_US / 10)


async def test_what_the_device_had_time_to_show_is_not_unseen(world: World) -> None:
    await _write_on_before_anything_is_shown(world, then_seconds=20)
    await _conclude(world)

    known = _known(world, "limit")
    (said,) = known.reports.values()
    assert said.active_milliseconds == pytest.approx(29_000, abs=100)
    said.applied_us, said.active_milliseconds, said.evidence = 0, 0, Evidence.UNANSWERED
    with pytest.raises(AssertionError, match="claims"):
        world.checker.conclude(world.cluster.dispatches)


def _known(world: World, name: str) -> Known:
    (known,) = (k for k in world.checker.known.values() if k.dispatch.meta.name == name)
    return known
