"""A ledger that takes nothing: windows that run end, nothing begins, and all is told later."""

import pytest
from tests.agent.fakes import T0, Agent, S, order

from derops_agent.ports import Reading


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
