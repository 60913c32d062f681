"""A ledger that takes nothing: what must end does, nothing begins, and all is told later."""

from collections.abc import Awaitable, Callable

import pytest
from tests.agent.fakes import T0, Agent, S, asset, order

from derops.wire.v1 import agent_pb2
from derops_agent.asset.inbox import Change, Settled, Snapshot
from derops_agent.ports import Reading, Reversion, Setpoints


async def steps(agent: Agent, seconds: int) -> None:
    for _ in range(seconds):
        agent.clock.pass_seconds(1)
        agent.controller.take(Reading(at_us=agent.clock.wall_us, values={}))
        await agent.controller.turn()


async def test_a_window_ends_on_time_though_it_cannot_be_stored(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    assert agent.device.held.active_power_watts == 5000
    told = len(agent.reports)
    agent.refuse_writes(refused=True)

    await steps(agent, 85)
    assert agent.device.held.active_power_watts == 5000
    await steps(agent, 10)
    assert agent.device.held.active_power_watts == 0
    writes = len(agent.device.writes)
    await steps(agent, 60)
    assert len(agent.device.writes) == writes
    assert len(agent.reports) == told, "nothing is told that is not stored"

    agent.refuse_writes(refused=False)
    await steps(agent, 15)
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().active_milliseconds == pytest.approx(100_000, abs=1000)
    assert agent.report().reverted_us == pytest.approx(T0 + 160 * S, abs=2 * S)
    assert agent.ledger.unsettled()[0].execution.stage == "Done"


async def test_nothing_begins_and_no_order_is_lost(agent: Agent) -> None:
    await agent.give(order())
    agent.refuse_writes(refused=True)
    later = order(uid="d2", start_us=T0 + 400 * S)
    await agent.give(later)
    assert "readonly" in agent.ledger_complaints[-1]
    assert [r for r in agent.reports if r.dispatch_uid == "d2"] == []
    await steps(agent, 70)
    assert agent.device.held.active_power_watts in (None, 0)

    agent.refuse_writes(refused=False)
    await steps(agent, 5)
    assert agent.outcome("d2") == ("Acked", "Accepted")
    assert agent.outcome("d1")[0] == "Active"


async def test_what_was_started_as_the_ledger_failed_ends_on_time(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(59)
    write = agent.device.write

    async def write_as_the_disk_fills(
        setpoints: Setpoints, reversion: Reversion | None = None
    ) -> int | None:
        agent.refuse_writes(refused=True)
        return await write(setpoints, reversion)

    agent.device.write = write_as_the_disk_fills  # type: ignore[method-assign]
    await steps(agent, 2)
    assert agent.device.held.active_power_watts == 5000
    await steps(agent, 100)
    assert agent.device.held.active_power_watts == 0

    agent.device.write = write  # type: ignore[method-assign]
    agent.refuse_writes(refused=False)
    await steps(agent, 5)
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().active_milliseconds == pytest.approx(100_000, abs=1000)


async def test_a_start_that_was_not_answered_does_not_stay_either(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(59)
    agent.device.fail, agent.device.held = "timeout", Setpoints(active_power_watts=5000)
    await agent.wait(3, step=1)
    agent.refuse_writes(refused=True)
    await steps(agent, 60)
    agent.device.fail = ""
    await steps(agent, 10)

    assert agent.device.held.active_power_watts == 0


async def test_a_weaker_dispatch_that_comes_due_meanwhile_is_superseded_once(
    agent: Agent,
) -> None:
    weaker = order("d2", primacy=200, start_us=T0 + 100 * S)
    await agent.give(order(duration_seconds=1000), weaker)
    await agent.wait(70, step=1)
    agent.refuse_writes(refused=True)
    await steps(agent, 45)
    agent.refuse_writes(refused=False)
    await steps(agent, 5)

    assert list(agent.report().supersedes) == ["d2"]
    assert agent.outcome("d2")[0] == "Superseded"


async def test_what_the_headend_has_forgotten_is_reverted_and_told_as_well(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.device.fail = "local"
    await agent.give(Settled(uid="d1"))
    await agent.wait(3, step=1)
    await agent.acknowledge_all()
    agent.refuse_writes(refused=True)
    agent.device.fail = ""
    await steps(agent, 65)
    assert agent.device.held.active_power_watts == 0

    agent.refuse_writes(refused=False)
    await steps(agent, 5)
    assert agent.outcome() == ("Cancelled", "CancelledWhileActive")


async def test_silence_of_the_gateway_ends_it_all_the_same(agent: Agent) -> None:
    await agent.snapshot(config=asset(on_comms_loss="Revert", failsafe_after_seconds=100))
    await agent.give(order(duration_seconds=1000))
    await agent.wait(70, step=1)
    agent.refuse_writes(refused=True)
    await steps(agent, 20)
    assert agent.device.held.active_power_watts == 5000
    await steps(agent, 15)
    assert agent.device.held.active_power_watts == 0

    agent.refuse_writes(refused=False)
    await steps(agent, 2)
    assert agent.outcome() == ("Failed", "CommsLossFailsafe")


async def test_what_a_device_dropped_meanwhile_is_not_said_to_have_been_held(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.refuse_writes(refused=True)
    await steps(agent, 10)
    agent.device.fail, agent.device.held = "timeout", Setpoints()
    await steps(agent, 60)
    agent.device.fail = ""
    await steps(agent, 25)
    assert agent.device.held.active_power_watts == 0

    agent.refuse_writes(refused=False)
    await steps(agent, 2)
    assert agent.report().phase in ("Complete", "Failed")
    assert agent.report().active_milliseconds <= 42_000


async def cancel(agent: Agent) -> None:
    agent.controller.take(Change(part=order(cancelled=True, generation=2)))


async def forget(agent: Agent) -> None:
    agent.controller.take(Settled(uid="d1"))


async def leave_out(agent: Agent) -> None:
    revision = agent_pb2.Revision(operator_start_ms=1, counter=99)
    agent.controller.take(Snapshot(revision=revision, asset=asset(), dispatches=[]))


async def lower_the_limit(agent: Agent) -> None:
    agent.controller.take(Change(part=asset(limit_max_injection_watts=4000)))


async def lower_it_in_a_snapshot(agent: Agent) -> None:
    revision = agent_pb2.Revision(operator_start_ms=1, counter=99)
    lower = asset(limit_max_injection_watts=4000)
    agent.controller.take(Snapshot(revision=revision, asset=lower, dispatches=[order()]))


async def reach_the_reserve(agent: Agent) -> None:
    values = {int(agent_pb2.STATE_OF_CHARGE_PERCENT): 9.0}
    agent.controller.take(Reading(at_us=agent.clock.wall_us, values=values))


async def switch_to_local(agent: Agent) -> None:
    agent.controller.take(Reading(at_us=agent.clock.wall_us, values={}, local_control=True))


@pytest.mark.parametrize(
    ("happen", "outcome"),
    [
        (cancel, ("Cancelled", "CancelledWhileActive")),
        (forget, ("Cancelled", "CancelledWhileActive")),
        (leave_out, ("Cancelled", "CancelledWhileActive")),
        (lower_the_limit, ("Failed", "LimitExceeded")),
        (lower_it_in_a_snapshot, ("Failed", "LimitExceeded")),
        (reach_the_reserve, ("Failed", "InsufficientEnergy")),
        (switch_to_local, ("Failed", "LocalOverride")),
    ],
)
async def test_what_must_end_does_so_at_once_and_is_told_later(
    agent: Agent,
    happen: Callable[[Agent], Awaitable[None]],
    outcome: tuple[str, str],
) -> None:
    await agent.snapshot(order(), config=asset(min_reserve_percent=10))
    await agent.wait(70, step=1)
    told = len(agent.reports)
    agent.refuse_writes(refused=True)
    await steps(agent, 10)
    assert agent.device.held.active_power_watts == 5000

    await happen(agent)
    await agent.controller.turn()
    assert agent.device.held.active_power_watts == 0
    await steps(agent, 10)
    assert len(agent.reports) == told, "nothing is told that is not stored"

    agent.refuse_writes(refused=False)
    await steps(agent, 2)
    assert agent.device.held.active_power_watts == 0
    assert agent.outcome() == outcome
    assert agent.report().active_milliseconds == pytest.approx(20_000, abs=1000)
    assert agent.report().ended_us == pytest.approx(T0 + 80 * S, abs=2 * S)
    assert agent.ledger.unsettled()[0].execution.stage == "Done"


async def test_a_lower_limit_holds_back_what_runs_at_once(agent: Agent) -> None:
    clamped = asset(limit_max_injection_watts=4000, on_exceed="Clamp")
    await agent.snapshot(order(), config=asset(on_exceed="Clamp"))
    await agent.wait(70, step=1)
    agent.refuse_writes(refused=True)
    agent.controller.take(Change(part=clamped))
    await steps(agent, 1)
    assert agent.device.held.active_power_watts == 4000
    assert agent.ledger.asset() != clamped

    agent.refuse_writes(refused=False)
    await steps(agent, 2)
    assert agent.report().clamped_by == "AssetLimits"
    assert agent.ledger.asset() == clamped


async def test_a_cancel_of_an_order_that_waits_for_room_holds_as_well(agent: Agent) -> None:
    agent.refuse_writes(refused=True)
    agent.controller.take(Change(part=order()))
    await steps(agent, 1)
    await cancel(agent)
    await steps(agent, 1)
    agent.refuse_writes(refused=False)
    await steps(agent, 70)

    assert agent.outcome()[0] == "Cancelled"
    assert agent.device.held.active_power_watts in (None, 0)


@pytest.mark.parametrize("held", [5000, 0])
async def test_an_agent_that_starts_without_room_has_the_device_at_its_fallback(
    agent: Agent, held: int
) -> None:
    await agent.give(order())
    await agent.wait(75, step=1)
    agent.device.held = Setpoints(active_power_watts=held)
    agent.refuse_writes(refused=True)
    await agent.restart(down_seconds=5, full=True)
    told = len(agent.reports)
    assert agent.device.held.active_power_watts == 0
    assert agent.ledger_complaints[-1]
    await steps(agent, 10)
    assert agent.device.held.active_power_watts == 0
    assert len(agent.reports) == told

    agent.refuse_writes(refused=False)
    await steps(agent, 2)
    assert agent.ledger_complaints[-1] == ""
    assert agent.device.held.active_power_watts == 5000
    await steps(agent, 80)
    report = agent.report()
    assert (report.phase, report.reason) == ("Complete", "WindowEnded")
    assert report.interruptions == 1
    off_seconds = 12 if held else 17
    assert report.active_milliseconds == pytest.approx((100 - off_seconds) * 1000, abs=6_000)


async def test_what_was_withdrawn_before_a_kill_does_not_come_back_while_there_is_no_room(
    agent: Agent,
) -> None:
    await agent.give(order())
    await agent.wait(75, step=1)
    agent.refuse_writes(refused=True)
    await cancel(agent)
    await steps(agent, 1)
    await agent.restart(full=True)
    await steps(agent, 5)
    assert agent.device.held.active_power_watts == 0
    await cancel(agent)
    await steps(agent, 5)
    agent.refuse_writes(refused=False)
    await steps(agent, 5)

    assert agent.outcome() == ("Cancelled", "CancelledWhileActive")
    assert 5000 not in agent.powers[2:]
    assert agent.report().active_milliseconds == pytest.approx(15_000, abs=6_000)
