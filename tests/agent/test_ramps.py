"""Setpoints that are reached in steps: what a step shows, and what it does not."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from tests.agent.fakes import T0, Agent, FakeDevice, S, asset, order

from derops.wire.v1 import agent_pb2
from derops_agent.ports import Reading, Reversion, Setpoints


@dataclass
class Flipped(FakeDevice):
    """Takes every active power with the other sign."""

    async def write(self, setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        watts = setpoints.active_power_watts
        flipped = None if watts is None else -watts
        return await super().write(replace(setpoints, active_power_watts=flipped), reversion)


async def run(agent: Agent, seconds: int) -> None:
    """Let time pass, with a sample of what the device holds each second."""
    for _ in range(seconds):
        agent.clock.pass_seconds(1)
        power = float(agent.device.held.active_power_watts or 0)
        values = {int(agent_pb2.ACTIVE_POWER_WATTS): power}
        await agent.give(Reading(at_us=agent.clock.wall_us, values=values))


@pytest.mark.parametrize("pause_seconds", [0, 10])
@pytest.mark.parametrize("ramp", [100, 300, 2000])
@pytest.mark.parametrize("duration_seconds", [30, 100, 300])
async def test_a_device_of_another_sign_is_not_told_as_applied_for_a_step_of_nothing(
    agent: Agent, duration_seconds: int, ramp: int, pause_seconds: int
) -> None:
    await agent.use(Flipped())
    await agent.start(
        asset(max_ramp_watts_per_second=ramp, min_seconds_between_writes=pause_seconds)
    )
    await agent.give(order(duration_seconds=duration_seconds, start_deadline_seconds=300))
    await run(agent, 65 + duration_seconds + 60)

    assert agent.outcome() == ("Failed", "ReadBackMismatch")
    assert agent.report().applied_us == 0
    assert len([write for write in agent.device.writes if write.active_power_watts]) <= 5 + 1


@pytest.mark.parametrize("pause_seconds", [0, 10])
async def test_a_device_that_restarts_is_brought_back_in_steps_and_has_dropped_it_once(
    agent: Agent, pause_seconds: int
) -> None:
    await agent.give(
        asset(max_ramp_watts_per_second=100, min_seconds_between_writes=pause_seconds),
        order(duration_seconds=300),
    )
    await run(agent, 130)
    before = len(agent.device.writes)
    agent.device.held = Setpoints()
    await run(agent, 100)
    most_watts = 100 * max(1, pause_seconds)
    powers = [0, *[write.active_power_watts or 0 for write in agent.device.writes[before:]]]
    assert powers[-1] == 5000
    assert all(b - a <= most_watts for a, b in pairwise(powers))
    await run(agent, 250)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().interruptions == 1


async def test_a_ramp_through_nothing_began_with_its_first_step(agent: Agent) -> None:
    await agent.give(
        asset(max_ramp_watts_per_second=500, fallback_active_power_watts=-500),
    )
    await run(agent, 10)
    await agent.give(order(start_us=T0 + 60 * S, start_deadline_seconds=0))
    await run(agent, 80)

    assert agent.outcome() == ("Active", "Applied")
    assert agent.report().applied_us == T0 + 60 * S


async def test_a_ramp_on_a_device_with_a_timer_of_its_own_arrives(agent: Agent) -> None:
    agent.device.timer_seconds = 118
    await agent.give(asset(max_ramp_watts_per_second=1000), order())
    await run(agent, 180)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().verified == "True"


async def test_a_predecessor_that_ended_on_time_is_not_told_what_befell_its_successors_ramp(
    agent: Agent,
) -> None:
    next_one = order("d2", watts=-5000, start_us=T0 + 160 * S, duration_seconds=200)
    await agent.give(asset(max_ramp_watts_per_second=100), order(), next_one)
    await run(agent, 190)
    assert agent.outcome() == ("Complete", "WindowEnded")
    agent.device.fail = "ignore"
    await run(agent, 60)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().active_milliseconds == 100_000
