"""The battery: no Wh appears from nowhere, and both ends of the charge are felt."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agent.simulated.rig import BATTERY, powers, run

from derops_agent.drivers.simulated.battery import Battery, BatteryState
from derops_agent.drivers.simulated.options import parse_options
from derops_agent.drivers.simulated.stepping import Meter, Plant
from derops_agent.ports import Setpoints


def battery(**options: Any) -> Battery:
    model = parse_options({**BATTERY, **options}).build()
    assert isinstance(model, Battery)
    return model


def at(percent: float, model: Battery) -> Plant[BatteryState]:
    state = BatteryState(stored_watt_hours=model.capacity_watt_hours * percent / 100)
    return Plant(state=state, meter=Meter())


orders = st.builds(
    Setpoints,
    active_power_watts=st.none() | st.integers(-8_000, 10_000),
    max_generation_watts=st.none() | st.integers(0, 10_000),
    max_load_watts=st.none() | st.integers(0, 8_000),
    energized=st.booleans(),
)
spans = st.one_of(st.floats(0.001, 3), st.floats(1, 200), st.floats(60, 1e6), st.floats(1e6, 1e7))


@given(
    percent=st.floats(0, 100),
    reserve=st.floats(0, 50),
    idle=st.sampled_from([0.0, 10.0, 500.0]),
    story=st.lists(st.tuples(orders, spans), min_size=1, max_size=6),
)
def test_energy_is_balanced_whatever_happens(
    percent: float, reserve: float, idle: float, story: list[tuple[Setpoints, float]]
) -> None:
    model = battery(reservePercent=reserve, idleWatts=idle)
    plant = at(percent, model)

    for wanted, seconds in story:
        before, plant = plant, run(model, wanted, seconds, plant=plant)

        stored = plant.state.stored_watt_hours - before.state.stored_watt_hours
        absorbed = plant.meter.absorbed_watt_hours - before.meter.absorbed_watt_hours
        injected = plant.meter.injected_watt_hours - before.meter.injected_watt_hours
        lost = absorbed * 0.95 - injected / 0.95 - stored
        slack = 1e-6 * (1 + absorbed + injected)
        assert -slack <= lost <= idle * seconds / 3600 + slack
        assert 0 <= plant.state.stored_watt_hours <= 20_000
        assert absorbed >= 0
        assert injected >= 0
        assert -8_000 <= plant.meter.power_watts <= 10_000
        if not wanted.energized:
            assert (plant.meter.power_watts, absorbed, injected) == (0, 0, 0)
        if injected:
            floor = min(before.state.stored_watt_hours, reserve * 200)
            assert plant.state.stored_watt_hours >= floor - idle * seconds / 3600 - slack


@given(
    percent=st.floats(0, 100),
    watts=st.sampled_from([-8_000, -5_000, -300, -5, 0, 5, 300, 5_000, 10_000]),
    reserve=st.sampled_from([0.0, 0.5, 7.0, 30.0]),
    seconds=st.integers(61, 8_000),
)
def test_a_leap_ends_where_many_steps_end(
    percent: float, watts: int, reserve: float, seconds: int
) -> None:
    # Without a ramp: a look at every second starts from the power of the second before.
    model = battery(reservePercent=reserve, rampWattsPerSecond=1e6)
    wanted = Setpoints(active_power_watts=watts)

    leapt = run(model, wanted, seconds, plant=at(percent, model))
    walked = run(model, wanted, seconds, plant=at(percent, model), every_seconds=1)

    tolerance = 10.0  # Wh of 20,000: the steps see the taper a second late
    assert leapt.state.stored_watt_hours == pytest.approx(
        walked.state.stored_watt_hours, abs=tolerance
    )
    for counter in ("injected_watt_hours", "absorbed_watt_hours"):
        assert getattr(leapt.meter, counter) == pytest.approx(
            getattr(walked.meter, counter), abs=tolerance
        )


def test_it_ramps_and_then_holds() -> None:
    seen = powers(battery(rampWattsPerSecond=2_000), Setpoints(active_power_watts=5_000), 5)

    assert seen == [2_000, 4_000, 5_000, 5_000, 5_000]


def test_it_ramps_through_zero() -> None:
    model = battery(rampWattsPerSecond=3_000)
    plant = run(model, Setpoints(active_power_watts=3_000), 10)

    seen = powers(model, Setpoints(active_power_watts=-3_000), 3, plant=plant)

    assert seen == [0, -3_000, -3_000]


@pytest.mark.parametrize(
    ("percent", "wanted", "got"),
    [
        (50, 10_000, 10_000),
        (10, 10_000, 10_000),
        (5, 10_000, 5_000),
        (2, 10_000, 2_000),
        (0.5, 10_000, 1_000),
        (0.5, 800, 800),
        (0, 10_000, 0),
        (50, -8_000, -8_000),
        (90, -8_000, -8_000),
        (95, -8_000, -4_000),
        (98, -8_000, -1_600),
        (99.9, -8_000, -400),
        (99.9, -300, -300),
    ],
)
def test_both_ends_of_the_charge_taper(percent: float, wanted: int, got: float) -> None:
    model = battery(rampWattsPerSecond=1e9, idleWatts=0)

    (seen,) = powers(
        model,
        Setpoints(active_power_watts=wanted),
        0.001,
        every_seconds=0.001,
        plant=at(percent, model),
    )

    assert seen == pytest.approx(got)


def test_an_empty_battery_holds_its_order_and_delivers_nothing() -> None:
    model = battery()
    plant = run(model, Setpoints(active_power_watts=10_000), 3 * 3600)

    after = run(model, Setpoints(active_power_watts=10_000), 600, plant=plant)

    # Half of 20 kWh was in it; its idle losses took a little.
    assert plant.meter.injected_watt_hours == pytest.approx(10_000 * 0.95, rel=0.01)
    assert after.meter.injected_watt_hours == plant.meter.injected_watt_hours
    assert after.meter.power_watts == 0
    assert model.available_watts(after.state, 0) == 0
    assert model.state_of_charge_percent(after.state) == 0


def test_the_reserve_is_not_touched_but_by_idle_losses() -> None:
    model = battery(reservePercent=20, idleWatts=0)

    plant = run(model, Setpoints(active_power_watts=10_000), 24 * 3600)

    assert model.state_of_charge_percent(plant.state) == pytest.approx(20)
    assert plant.meter.power_watts == 0


def test_a_full_battery_takes_only_what_it_loses() -> None:
    model = battery(idleWatts=19)

    plant = run(model, Setpoints(active_power_watts=-8_000), 24 * 3600)

    assert model.state_of_charge_percent(plant.state) == pytest.approx(100)
    assert plant.meter.power_watts == pytest.approx(-20)


def test_left_alone_it_loses_its_idle_losses() -> None:
    model = battery(idleWatts=10)

    plant = run(model, Setpoints(), 100 * 3600)

    assert plant.state.stored_watt_hours == pytest.approx(10_000 - 1_000)
    assert plant.meter == Meter()


def test_limits_bind_the_order() -> None:
    model = battery()

    out = run(model, Setpoints(active_power_watts=9_000, max_generation_watts=2_000), 30)
    back = run(model, Setpoints(active_power_watts=-9_000, max_load_watts=1_000), 30)

    assert (out.meter.power_watts, back.meter.power_watts) == (2_000, -1_000)


def test_work_makes_it_warm() -> None:
    plant = run(battery(), Setpoints(active_power_watts=10_000), 1800)

    assert 40 < plant.meter.temperature_celsius < 45
