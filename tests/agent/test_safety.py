"""What the agent refuses because of the state of its device, and what it ends."""

from typing import Any

import pytest
from tests.agent.fakes import T0, Agent, S, asset, order

from derops.wire.v1 import agent_pb2
from derops_agent.ports import Reading

Q = agent_pb2.Quantity


def reading(agent: Agent, charge: float | None = None, **others: Any) -> Reading:
    values = {} if charge is None else {int(Q.STATE_OF_CHARGE_PERCENT): charge}
    return Reading(at_us=agent.clock.wall_us, values=values, **others)


@pytest.mark.parametrize(
    ("watts", "charge", "reserve", "refused"),
    [
        (3600, 50.0, 0, False),
        (3600, 9.0, 0, True),
        (3600, 20.0, 15, True),
        (-3600, 50.0, 0, False),
        (-3600, 95.0, 0, True),
    ],
)
async def test_a_battery_without_the_energy_is_refused(
    agent: Agent, watts: int, charge: float, reserve: int, refused: bool
) -> None:
    # 3600 W for 100 s are 100 Wh, a tenth of this battery.
    config = asset(energy_capacity_watt_hours=1000, min_reserve_percent=reserve)
    await agent.give(config, reading(agent, charge), order(watts=watts, start_us=T0))

    expected = ("Rejected", "InsufficientEnergy") if refused else ("Active", "Applied")
    assert agent.outcome() == expected
    assert not refused or "100 Wh" in agent.report().message


async def test_the_charge_is_looked_at_again_at_the_start(agent: Agent) -> None:
    config = asset(energy_capacity_watt_hours=1000)
    await agent.give(config, reading(agent, 100.0), order(watts=7200, start_us=T0 + 300 * S))
    assert agent.report().phase == "Acked"
    await agent.wait(299, step=10)
    agent.clock.pass_seconds(1)
    await agent.give(reading(agent, 10.0))

    assert agent.outcome() == ("Failed", "InsufficientEnergy")
    assert agent.powers == [0]


async def test_more_than_the_battery_could_ever_hold_is_refused_at_once(agent: Agent) -> None:
    config = asset(energy_capacity_watt_hours=1000)
    await agent.give(config, order(start_us=T0 + 900 * S, duration_seconds=3600))

    assert agent.outcome() == ("Rejected", "InsufficientEnergy")


async def test_a_start_above_limits_that_were_lowered_meanwhile_fails(agent: Agent) -> None:
    await agent.give(order())
    await agent.give(asset(limit_max_injection_watts=2000))
    assert agent.report().phase == "Acked"
    await agent.wait(61, step=1)

    assert agent.outcome() == ("Failed", "LimitExceeded")
    assert "5000 W" in agent.report().message
    assert "2000 W" in agent.report().message
    assert agent.powers == [0]


async def test_limits_lowered_below_a_running_setpoint_end_it(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    await agent.snapshot(order(), config=asset(limit_max_injection_watts=2000))

    assert agent.outcome() == ("Failed", "LimitExceeded")
    assert "2000 W" in agent.report().message
    assert agent.powers == [0, 5000, 0]
    assert agent.report().active_milliseconds == 10_000


async def test_limits_that_change_while_it_runs_clamp_it_where_the_asset_says_so(
    agent: Agent,
) -> None:
    await agent.give(asset(on_exceed="Clamp"), order())
    await agent.wait(70, step=1)
    await agent.give(asset(on_exceed="Clamp", limit_max_injection_watts=2000))
    assert agent.device.held.active_power_watts == 2000
    clamped = agent.report()
    assert (clamped.phase, clamped.applied_watts) == ("Active", 2000)
    assert clamped.clamped_by == "AssetLimits"
    await agent.give(asset(on_exceed="Clamp", limit_max_injection_watts=6000))
    await agent.wait(100, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.powers == [0, 5000, 2000, 5000, 0]
    assert agent.report().interruptions == 0
    assert agent.report().active_milliseconds == 100_000


async def test_the_reserve_is_kept_while_a_window_runs(agent: Agent) -> None:
    config = asset(energy_capacity_watt_hours=1000, min_reserve_percent=20)
    await agent.give(config, reading(agent, 60.0), order())
    await agent.wait(61, step=1)
    await agent.give(reading(agent, 20.0))

    assert agent.outcome() == ("Failed", "InsufficientEnergy")
    assert agent.device.held.active_power_watts == 0


async def test_a_device_in_local_control_is_not_asked(agent: Agent) -> None:
    await agent.give(reading(agent, local_control=True), order(start_us=T0))

    assert agent.outcome() == ("Rejected", "LocalControlActive")


async def test_a_start_waits_for_remote_control_until_its_deadline(agent: Agent) -> None:
    await agent.give(order(start_us=T0 + 90 * S))
    for _ in range(100):
        agent.clock.pass_seconds(1)
        await agent.give(reading(agent, local_control=True))
    assert agent.report().phase == "Acked"
    await agent.give(reading(agent))
    assert agent.outcome() == ("Active", "Applied")

    await agent.give(order("never", start_us=agent.clock.wall_us + 90 * S, primacy=1))
    for _ in range(142):
        agent.clock.pass_seconds(1)
        await agent.give(reading(agent, local_control=True))
    assert agent.outcome("never") == ("Failed", "LocalControlActive")


async def test_a_switch_to_local_control_ends_what_runs(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(61, step=1)
    await agent.give(reading(agent, local_control=True))

    assert agent.outcome() == ("Failed", "LocalOverride")
    assert agent.device.held.active_power_watts == 0


async def test_power_is_not_set_on_a_device_that_nobody_has_measured(agent: Agent) -> None:
    agent.clock.pass_seconds(61)
    await agent.give(
        order("power", start_us=agent.clock.wall_us),
        order("limit", start_us=agent.clock.wall_us, mode="GenerationLimit", watts=0),
    )

    assert agent.outcome("power") == ("Rejected", "StaleTelemetry")
    assert "61 s, 60 s are allowed" in agent.report("power").message
    assert agent.outcome("limit") == ("Active", "Applied")


async def test_the_asset_says_how_its_effect_is_judged(agent: Agent) -> None:
    config = asset(
        verification_tolerance_watts=600, verification_settle_seconds=2, verification_samples=10
    )
    await agent.give(config, order())
    await agent.wait(60)
    await agent.sampled(4500, 11)
    assert agent.report().verified == "Unknown"
    await agent.sampled(4500, 2)
    assert agent.report().verified == "True"
    await agent.sampled(4300, 80)
    await agent.wait(10, step=1)

    assert agent.report().verified == "False"
    assert agent.report().verified_reason == "EffectNotObserved"


async def test_a_start_that_waits_for_the_device_does_not_keep_the_agent_busy(
    agent: Agent,
) -> None:
    await agent.give(order())
    await agent.wait(59)
    await agent.give(reading(agent, local_control=True))
    assert agent.controller.delay_seconds() == 1
    agent.clock.pass_seconds(0.995)
    assert agent.controller.delay_seconds() == pytest.approx(0.005)
    agent.clock.pass_seconds(0.005)
    await agent.give(reading(agent, local_control=True))

    assert agent.report().phase == "Acked"
    assert agent.controller.delay_seconds() == 1
