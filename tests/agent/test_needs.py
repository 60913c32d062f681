"""An order waits for the points that it needs, and for no other."""

from typing import Any

import pytest
from tests.agent.fakes import T0, Agent, S, asset, order

from derops.errors import DeviceRefusedError
from derops.wire.v1 import agent_pb2
from derops_agent.ports import BadPoint, Reading

Q = agent_pb2.Quantity
CHARGE = BadPoint(
    name="stateOfChargePercent",
    raw="0x0065",
    problem="101 % is above 100 %",
    quantity=Q.STATE_OF_CHARGE_PERCENT,
)
POWER = BadPoint(
    name="activePowerWatts",
    raw="0x7fff",
    problem="32767 W is more than ten times the rating of 1000 W",
    quantity=Q.ACTIVE_POWER_WATTS,
)
SWITCH = BadPoint(name="localControl", raw="", problem="exception 2")
OTHER = BadPoint(name="voltageVolts", raw="0xffff", problem="no", quantity=Q.VOLTAGE_VOLTS)
RESERVE = asset(energy_capacity_watt_hours=10_000, min_reserve_percent=20)


async def sampled(
    agent: Agent, seconds: int, *bad: BadPoint, charge: float | None = None, watts: float = 0.0
) -> None:
    """Let a sample come each second, without what is bad."""
    values = {int(Q.ACTIVE_POWER_WATTS): watts}
    if charge is not None:
        values[int(Q.STATE_OF_CHARGE_PERCENT)] = charge
    for point in bad:
        values.pop(point.quantity, None)
    for _ in range(seconds):
        agent.clock.pass_seconds(1)
        reading = Reading(at_us=agent.clock.wall_us, values=values, bad_points=bad)
        await agent.give(reading)


NEEDED: list[Any] = [
    pytest.param(CHARGE, {"watts": 1000}, True, id="discharge over a reserve, charge"),
    pytest.param(CHARGE, {"watts": -1000}, False, id="charging, charge"),
    pytest.param(CHARGE, {"mode": "GenerationLimit"}, False, id="limit, charge"),
    pytest.param(POWER, {"watts": 1000}, True, id="power, power"),
    pytest.param(POWER, {"mode": "LoadLimit"}, False, id="limit, power"),
    pytest.param(
        POWER, {"mode": "LoadLimit", "verify": "Required"}, True, id="limit to be verified, power"
    ),
    pytest.param(POWER, {"mode": "CeaseToEnergize", "watts": 0}, False, id="cease, power"),
    pytest.param(SWITCH, {"mode": "CeaseToEnergize", "watts": 0}, True, id="cease, switch"),
    pytest.param(OTHER, {"watts": 1000}, False, id="power, voltage"),
]


@pytest.mark.parametrize(("bad", "facts", "waits"), NEEDED)
async def test_an_order_starts_without_the_points_that_it_does_not_need(
    agent: Agent, bad: BadPoint, facts: dict[str, Any], waits: bool
) -> None:
    await agent.give(RESERVE)
    await sampled(agent, 1, charge=80.0)
    await sampled(agent, 61, bad, charge=80.0)

    await agent.give(order("now", start_us=agent.clock.wall_us, **facts))

    if waits:
        assert agent.outcome("now") == ("Rejected", "StaleTelemetry")
        said = agent.report("now").message
        assert bad.name in said
        assert bad.raw in said
        assert bad.problem in said
        assert "for 61 s, 60 s are allowed" in said
    else:
        assert agent.outcome("now") == ("Active", "Applied")


async def test_a_later_start_waits_for_what_it_needs_until_it_is_good_again(agent: Agent) -> None:
    await agent.give(RESERVE)
    await sampled(agent, 1, charge=80.0)
    start_us = agent.clock.wall_us + 90 * S
    await agent.give(order(start_us=start_us), order("late", start_us=start_us, primacy=200))
    await sampled(agent, 100, CHARGE)
    assert agent.report().phase == "Acked"
    assert "state of charge has not been known for" in agent.report().pending_error

    await sampled(agent, 1, charge=80.0)

    assert agent.outcome() == ("Active", "Applied")


async def test_a_value_that_was_good_a_moment_ago_is_good_enough(agent: Agent) -> None:
    await agent.give(RESERVE)
    await sampled(agent, 1, charge=25.0)
    await sampled(agent, 5, CHARGE, POWER)

    await agent.give(
        order("fits", watts=1000, start_us=agent.clock.wall_us),
        order("too-much", watts=8000, duration_seconds=600, start_us=agent.clock.wall_us),
    )

    assert agent.outcome("fits") == ("Active", "Applied")
    assert agent.outcome("too-much") == ("Rejected", "InsufficientEnergy")
    assert "25.0 %" in agent.report("too-much").message


async def test_what_was_never_good_is_not_known(agent: Agent) -> None:
    await agent.give(RESERVE)
    await sampled(agent, 1, CHARGE)

    await agent.give(order("now", start_us=agent.clock.wall_us))

    assert agent.outcome("now") == ("Rejected", "StaleTelemetry")
    assert "has not been known since the agent started" in agent.report("now").message


async def test_a_discharge_ends_when_its_reserve_cannot_be_seen_any_more(agent: Agent) -> None:
    await agent.give(RESERVE, order("power", duration_seconds=600))
    await agent.give(order("limit", mode="LoadLimit", duration_seconds=600))
    await sampled(agent, 61, charge=80.0)
    assert agent.outcome("power") == ("Active", "Applied")

    await sampled(agent, 60, CHARGE)
    assert agent.outcome("power") == ("Active", "Applied")
    await sampled(agent, 2, CHARGE)

    assert agent.outcome("power") == ("Failed", "StaleTelemetry")
    assert "101 % is above 100 %" in agent.report("power").message
    assert agent.device.held.active_power_watts == 0
    assert agent.outcome("limit") == ("Active", "Applied")


@pytest.mark.parametrize(
    ("facts", "bad"),
    [({"watts": -1000}, CHARGE), ({"watts": 1000}, POWER), ({"watts": 1000}, SWITCH)],
)
async def test_what_runs_goes_on_without_what_only_a_start_needs(
    agent: Agent, facts: dict[str, Any], bad: BadPoint
) -> None:
    await agent.give(RESERVE, order(**facts))
    await sampled(agent, 61, charge=50.0)
    await sampled(agent, 101, bad, charge=50.0)

    assert agent.outcome() == ("Complete", "WindowEnded")


@pytest.mark.parametrize(
    ("facts", "waits"), [({"watts": 1000}, True), ({"mode": "LoadLimit"}, False)]
)
async def test_of_a_device_that_refuses_to_be_measured_only_what_it_had_is_missed(
    agent: Agent, facts: dict[str, Any], *, waits: bool
) -> None:
    await agent.give(RESERVE)
    await sampled(agent, 1, charge=80.0)
    for _ in range(62):
        agent.clock.pass_seconds(1)
        agent.controller.note_missed_sample(DeviceRefusedError("exception 4"))

    await agent.give(order("now", start_us=agent.clock.wall_us, **facts))

    expected = ("Rejected", "StaleTelemetry") if waits else ("Active", "Applied")
    assert agent.outcome("now") == expected


async def test_an_asset_without_a_reserve_discharges_without_its_charge(agent: Agent) -> None:
    await agent.give(asset(energy_capacity_watt_hours=10_000), order())
    await sampled(agent, 162, CHARGE)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().applied_us > T0
