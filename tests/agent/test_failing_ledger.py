"""A ledger that takes nothing: windows that run end, nothing begins, and all is told later."""

import pytest
from tests.agent.fakes import T0, Agent, S, asset, order

from derops_agent.controller import Settled
from derops_agent.ports import Reading, Reversion, Setpoints


def refuse_writes(agent: Agent, *, refused: bool) -> None:
    """Let the file refuse what a full disk refuses."""
    agent.ledger._db.execute(f"PRAGMA query_only = {int(refused)}")


async def steps(agent: Agent, seconds: int) -> None:
    for _ in range(seconds):
        agent.clock.pass_seconds(1)
        agent.controller.take(Reading(at_us=agent.clock.wall_us, values={}))
        await agent.controller.step()


async def test_a_window_ends_on_time_though_it_cannot_be_stored(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    assert agent.device.held.active_power_watts == 5000
    told = len(agent.reports)
    refuse_writes(agent, refused=True)

    await steps(agent, 85)
    assert agent.device.held.active_power_watts == 5000
    await steps(agent, 10)
    assert agent.device.held.active_power_watts == 0
    writes = len(agent.device.writes)
    await steps(agent, 60)
    assert len(agent.device.writes) == writes
    assert len(agent.reports) == told, "nothing is told that is not stored"

    refuse_writes(agent, refused=False)
    await steps(agent, 15)
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().active_milliseconds == pytest.approx(100_000, abs=1000)
    assert agent.report().reverted_us == pytest.approx(T0 + 160 * S, abs=2 * S)
    assert agent.ledger.unsettled()[0].execution.stage == "Done"


async def test_nothing_begins_and_no_order_is_lost(agent: Agent) -> None:
    await agent.give(order())
    refuse_writes(agent, refused=True)
    later = order(uid="d2", start_us=T0 + 400 * S)
    with pytest.raises(Exception, match="readonly"):
        await agent.give(later)
    await steps(agent, 70)
    assert agent.device.held.active_power_watts in (None, 0)

    refuse_writes(agent, refused=False)
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
        refuse_writes(agent, refused=True)
        return await write(setpoints, reversion)

    agent.device.write = write_as_the_disk_fills  # type: ignore[method-assign]
    await steps(agent, 2)
    assert agent.device.held.active_power_watts == 5000
    await steps(agent, 100)
    assert agent.device.held.active_power_watts == 0

    agent.device.write = write  # type: ignore[method-assign]
    refuse_writes(agent, refused=False)
    await steps(agent, 5)
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().active_milliseconds == pytest.approx(100_000, abs=1000)


async def test_a_start_that_was_not_answered_does_not_stay_either(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(59)
    agent.device.fail, agent.device.held = "timeout", Setpoints(active_power_watts=5000)
    await agent.wait(3, step=1)
    refuse_writes(agent, refused=True)
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
    refuse_writes(agent, refused=True)
    await steps(agent, 45)
    refuse_writes(agent, refused=False)
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
    refuse_writes(agent, refused=True)
    agent.device.fail = ""
    await steps(agent, 65)
    assert agent.device.held.active_power_watts == 0

    refuse_writes(agent, refused=False)
    await steps(agent, 5)
    assert agent.outcome() == ("Cancelled", "CancelledWhileActive")


async def test_silence_of_the_gateway_ends_it_all_the_same(agent: Agent) -> None:
    await agent.snapshot(config=asset(on_comms_loss="Revert", failsafe_after_seconds=100))
    await agent.give(order(duration_seconds=1000))
    await agent.wait(70, step=1)
    refuse_writes(agent, refused=True)
    await steps(agent, 20)
    assert agent.device.held.active_power_watts == 5000
    await steps(agent, 15)
    assert agent.device.held.active_power_watts == 0

    refuse_writes(agent, refused=False)
    await steps(agent, 2)
    assert agent.outcome() == ("Failed", "CommsLossFailsafe")


async def test_what_a_device_dropped_meanwhile_is_not_said_to_have_been_held(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    refuse_writes(agent, refused=True)
    await steps(agent, 10)
    agent.device.fail, agent.device.held = "timeout", Setpoints()
    await steps(agent, 60)
    agent.device.fail = ""
    await steps(agent, 25)
    assert agent.device.held.active_power_watts == 0

    refuse_writes(agent, refused=False)
    await steps(agent, 2)
    assert agent.report().phase in ("Complete", "Failed")
    assert agent.report().active_milliseconds <= 42_000
