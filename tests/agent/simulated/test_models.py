"""Solar, EV charger, generator, load; and what all models have in common."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agent.simulated.rig import (
    ALL,
    CHARGER,
    GENERATOR,
    LOAD,
    SOLAR,
    T0_SECONDS,
    powers,
    run,
)

from derops_agent.drivers.simulated.charger import CarVisit, Charger, ChargerState
from derops_agent.drivers.simulated.filling import capped, flow, value_at
from derops_agent.drivers.simulated.noise import draw, smooth
from derops_agent.drivers.simulated.options import parse_options
from derops_agent.drivers.simulated.stepping import DAY_SECONDS, Meter, Plant
from derops_agent.ports import Setpoints

MIDNIGHT = T0_SECONDS - T0_SECONDS % DAY_SECONDS
FREE = Setpoints()
CEASED = Setpoints(energized=False)


def build(options: dict[str, Any], **more: Any) -> Any:
    return parse_options({**options, **more}).build()


def full_order(options: dict[str, Any]) -> Setpoints:
    return Setpoints(
        active_power_watts=options.get("maxInjectionWatts", 0)
        if options["model"] in ("battery", "generator")
        else None
    )


class TestAll:
    @pytest.mark.parametrize("options", ALL, ids=lambda options: options["model"])
    @pytest.mark.parametrize("hour", [3, 12, 19])
    def test_ceasing_to_energize_is_no_power_at_once_and_for_good(
        self, options: dict[str, Any], hour: int
    ) -> None:
        model, start = build(options), MIDNIGHT + hour * 3600
        busy = run(model, full_order(options), 600, at_seconds=start, every_seconds=1)

        seen = powers(model, CEASED, 3, plant=busy, at_seconds=start + 600)
        after = run(model, CEASED, 7 * DAY_SECONDS, plant=busy, at_seconds=start + 600)

        assert seen == [0, 0, 0]
        assert after.meter.injected_watt_hours == busy.meter.injected_watt_hours
        assert after.meter.absorbed_watt_hours == busy.meter.absorbed_watt_hours

    @pytest.mark.parametrize("options", ALL, ids=lambda options: options["model"])
    def test_energy_of_a_leap_is_that_of_the_steps(self, options: dict[str, Any]) -> None:
        model, start = build(options, seed=3), MIDNIGHT + 9 * 3600
        wanted = Setpoints(
            active_power_watts=3_000 if options["model"] in ("battery", "generator") else None
        )

        leapt = run(model, wanted, 7200, at_seconds=start).meter
        walked = run(model, wanted, 7200, at_seconds=start, every_seconds=1).meter

        assert leapt.injected_watt_hours == pytest.approx(walked.injected_watt_hours, rel=0.05)
        assert leapt.absorbed_watt_hours == pytest.approx(walked.absorbed_watt_hours, rel=0.05)
        assert walked.injected_watt_hours + walked.absorbed_watt_hours > 500

    @pytest.mark.parametrize("options", [SOLAR, CHARGER, LOAD], ids=lambda o: o["model"])
    def test_the_seed_decides(self, options: dict[str, Any]) -> None:
        start = MIDNIGHT + 9 * 3600

        def story(seed: int) -> list[float]:
            model = build(options, seed=seed)
            return powers(model, FREE, DAY_SECONDS, every_seconds=900, at_seconds=start)

        assert story(1) == story(1)
        assert story(1) != story(2)

    @pytest.mark.parametrize("options", ALL, ids=lambda options: options["model"])
    def test_years_cost_no_more_than_a_year(self, options: dict[str, Any]) -> None:
        model = build(options)

        plant = run(model, full_order(options), 100 * 365 * DAY_SECONDS)

        assert plant.meter.injected_watt_hours < 366 * 24 * 50_001


class TestSolar:
    @pytest.mark.parametrize("hour", [0, 3, 5.99, 20.01, 23])
    def test_nothing_at_night(self, hour: float) -> None:
        model = build(SOLAR)

        assert powers(model, FREE, 30, at_seconds=MIDNIGHT + hour * 3600) == [0.0] * 30

    def test_noon_of_a_clear_day_is_clipped_by_the_inverter(self) -> None:
        model = build(SOLAR, cloudiness=0)

        assert powers(model, FREE, 10, at_seconds=MIDNIGHT + 13 * 3600)[-1] == 5_000

    def test_clouds_move_it(self) -> None:
        model = build(SOLAR, cloudiness=0.8)

        seen = powers(model, FREE, 7200, every_seconds=60, at_seconds=MIDNIGHT + 12 * 3600)

        assert max(seen) - min(seen) > 1_500
        assert min(seen) > 0
        assert max(seen) <= 5_000

    def test_a_limit_curtails_and_its_end_releases_by_the_ramp(self) -> None:
        model, noon = build(SOLAR, cloudiness=0, rampWattsPerSecond=1_000), MIDNIGHT + 13 * 3600
        full = run(model, FREE, 30, at_seconds=noon)

        limited = Setpoints(max_generation_watts=2_000)
        down = powers(model, limited, 4, plant=full, at_seconds=noon + 30)
        low = run(model, limited, 30, plant=full, at_seconds=noon + 30)
        up = powers(model, FREE, 4, plant=low, at_seconds=noon + 60)

        assert down == [4_000, 3_000, 2_000, 2_000]
        assert up == [3_000, 4_000, 5_000, 5_000]
        assert model.available_watts(low.state, noon) == 5_000

    def test_a_cloud_and_the_evening_wait_for_no_ramp(self) -> None:
        model = build(SOLAR, cloudiness=1, rampWattsPerSecond=0.5)
        over: list[float] = []

        run(
            model,
            FREE,
            6 * 3600,
            at_seconds=MIDNIGHT + 15 * 3600,
            every_seconds=5,
            see=lambda at, plant: over.append(
                plant.meter.power_watts - model.available_watts(plant.state, at - 0.5)
            ),
        )

        assert max(over) <= 1e-9

    def test_a_month_is_thirty_days(self) -> None:
        model = build(SOLAR, cloudiness=0)

        day = run(model, FREE, DAY_SECONDS, at_seconds=MIDNIGHT).meter.injected_watt_hours
        month = run(model, FREE, 30 * DAY_SECONDS, at_seconds=MIDNIGHT).meter.injected_watt_hours

        assert 30_000 < day < 60_000
        assert month == pytest.approx(30 * day, rel=0.001)


class TestLoad:
    def test_it_wavers_around_its_base(self) -> None:
        seen = powers(build(LOAD, baseWatts=2_000), FREE, 6 * 3600, every_seconds=60)

        assert -2_800 < min(seen) < -2_200
        assert -1_800 < max(seen) < -1_200

    def test_a_limit_binds(self) -> None:
        seen = powers(build(LOAD, baseWatts=2_000), Setpoints(max_load_watts=1_000), 60)

        assert seen == [-1_000] * 60

    def test_the_rating_binds(self) -> None:
        seen = powers(build(LOAD, baseWatts=20_000), FREE, 3)

        assert seen == [-5_000] * 3


class TestGenerator:
    wanted = Setpoints(active_power_watts=20_000)

    def test_it_delivers_nothing_before_it_has_started(self) -> None:
        seen = powers(build(GENERATOR), self.wanted, 20)

        assert seen[:10] == [0] * 10
        assert seen[10:16] == [5_000, 10_000, 15_000, 20_000, 20_000, 20_000]

    def test_the_start_takes_as_long_when_it_is_watched_closely(self) -> None:
        seen = powers(build(GENERATOR), self.wanted, 12, every_seconds=0.25)

        assert sum(watts == 0 for watts in seen) in (40, 41)

    def test_less_than_the_minimum_load_is_the_minimum_load(self) -> None:
        plant = run(build(GENERATOR), Setpoints(active_power_watts=1_000), 60)

        assert plant.meter.power_watts == 15_000

    def test_a_limit_below_the_minimum_load_stops_it(self) -> None:
        limited = Setpoints(active_power_watts=20_000, max_generation_watts=10_000)

        assert run(build(GENERATOR), limited, 60).meter.power_watts == 0

    def test_it_ramps_down_cools_and_starts_warm_within_that_time(self) -> None:
        model = build(GENERATOR)
        running = run(model, self.wanted, 60)

        down = powers(model, FREE, 5, plant=running)
        cooling = run(model, FREE, 15, plant=running)
        off = run(model, FREE, 60, plant=running)

        assert down == [15_000, 10_000, 5_000, 0, 0]
        assert (cooling.state.stage, off.state.stage) == ("Cooling", "Off")
        assert powers(model, self.wanted, 1, plant=cooling) == [5_000]
        assert powers(model, self.wanted, 1, plant=off) == [0]

    def test_ceasing_opens_the_breaker_and_the_engine_cools(self) -> None:
        model = build(GENERATOR)
        running = run(model, self.wanted, 60)

        after = run(model, CEASED, 1, plant=running)

        assert (after.meter.power_watts, after.state.stage) == (0, "Cooling")

    def test_a_start_that_is_called_off_is_over(self) -> None:
        model = build(GENERATOR)
        starting = run(model, self.wanted, 5)

        after = run(model, FREE, 1, plant=starting)

        assert (starting.state.stage, after.state.stage) == ("Starting", "Off")

    def test_a_leap_waits_for_the_end_of_a_long_start(self) -> None:
        model = build(GENERATOR, startUpSeconds=1_800)

        still = run(model, self.wanted, 1_700)
        there = run(model, self.wanted, 3_600)

        assert still.meter.injected_watt_hours == 0
        assert there.meter.injected_watt_hours == pytest.approx(20_000 / 2)


class TestCharger:
    model: Charger = build(CHARGER, seed=4)

    def first(self, *, left_full: bool) -> CarVisit:
        """Return a session whose car can, or cannot, get what it wants."""
        for number in itertools.count():
            session = self.model.session_at(T0_SECONDS + number * 6 * 3600)
            stay_hours = (session.leaves_seconds - session.arrives_seconds) / 3600
            share = session.wanted_watt_hours / (11_000 * stay_hours)
            if share < 0.6 if left_full else share > 1:
                return session
        raise AssertionError

    def test_no_car_no_power(self) -> None:
        session = self.first(left_full=True)

        before = powers(self.model, FREE, 5, at_seconds=session.arrives_seconds - 6)
        after = powers(self.model, FREE, 5, at_seconds=session.leaves_seconds + 1)

        assert before == after == [0] * 5

    def test_a_car_gets_what_it_wants_and_the_end_is_slower(self) -> None:
        session = self.first(left_full=True)
        stay = int(session.leaves_seconds - session.arrives_seconds) // 30 * 30

        seen = powers(
            self.model, FREE, stay, every_seconds=30, at_seconds=session.arrives_seconds + 1
        )
        leapt = run(self.model, FREE, stay, at_seconds=session.arrives_seconds + 1)

        assert seen[2] == -11_000
        charging = [watts for watts in seen if watts]
        assert charging == sorted(charging[:2], reverse=True) + sorted(charging[2:])
        assert -1_400 < charging[-2] <= -1_300
        assert seen[-1] == 0
        assert -sum(seen) * 30 / 3600 == pytest.approx(session.wanted_watt_hours, rel=0.02)
        assert leapt.meter.absorbed_watt_hours == pytest.approx(session.wanted_watt_hours)

    def test_the_last_energy_goes_in_and_no_more(self) -> None:
        session = self.first(left_full=True)
        state = ChargerState(
            session=session.number, charged_watt_hours=session.wanted_watt_hours - 0.1
        )
        plant = Plant(state=state, meter=Meter())

        seen = powers(self.model, FREE, 3, plant=plant, at_seconds=session.arrives_seconds + 1)

        assert seen == [pytest.approx(-360), 0, 0]

    def test_a_car_that_wants_too_much_leaves_with_less(self) -> None:
        session = self.first(left_full=False)

        whole = run(
            self.model,
            FREE,
            session.leaves_seconds - session.arrives_seconds + 60,
            at_seconds=session.arrives_seconds - 1,
        )

        assert 0 < whole.meter.absorbed_watt_hours < session.wanted_watt_hours
        assert whole.meter.power_watts == 0

    @pytest.mark.parametrize(
        ("limit", "watts"),
        [(20_000, -11_000), (5_000, -5_000), (1_380, -1_380), (1_379, 0), (0, 0)],
    )
    def test_a_limit_binds_and_below_the_minimum_it_pauses(self, limit: int, watts: float) -> None:
        session = self.first(left_full=True)

        plant = run(
            self.model,
            Setpoints(max_load_watts=limit),
            30,
            at_seconds=session.arrives_seconds + 1,
        )

        assert plant.meter.power_watts == watts

    def test_a_pause_loses_nothing(self) -> None:
        session = self.first(left_full=True)
        start = session.arrives_seconds + 1
        begun = run(self.model, FREE, 600, at_seconds=start)
        paused = run(
            self.model, Setpoints(max_load_watts=0), 600, plant=begun, at_seconds=start + 600
        )

        assert paused.state == begun.state
        assert powers(self.model, FREE, 1, plant=paused, at_seconds=start + 1200)[0] < -1_380


class TestNoise:
    @given(st.integers(), st.floats(-1e9, 4e9), st.floats(0.1, 1e5))
    def test_it_stays_in_its_bounds_and_is_smooth(
        self, seed: int, at: float, period: float
    ) -> None:
        here = smooth(seed, at, period)

        assert -1 <= here <= 1
        assert smooth(seed, at + period / 1000, period) == pytest.approx(here, abs=0.01)

    def test_neighbours_are_unrelated(self) -> None:
        drawn = [draw(seed, key) for seed in range(30) for key in range(30)]

        assert len(set(drawn)) == 900
        assert 0.45 < sum(drawn) / 900 < 0.55
        assert min(drawn) < 0.01
        assert max(drawn) > 0.99


class TestFilling:
    knots = ((0.0, 2.0), (10.0, 2.0), (20.0, 0.5), (30.0, 0.5))

    def test_a_curve_is_read_between_and_beyond_its_knots(self) -> None:
        seen = [value_at(self.knots, content) for content in (-1, 5, 15, 20, 99)]

        assert seen == [2, 2, 1.25, 0.5, 0.5]

    def test_cutting_a_curve_keeps_the_place_of_the_cut(self) -> None:
        assert capped(self.knots, 1.25) == [
            (0, 1.25), (10, 1.25), (15, 1.25), (20, 0.5), (30, 0.5),
        ]  # fmt: skip

    @given(st.floats(0, 30), st.floats(0.01, 100))
    def test_closed_form_is_what_small_steps_give(self, start: float, seconds: float) -> None:
        content = start
        for _ in range(4000):
            content = min(30.0, content + value_at(self.knots, content) * seconds / 4000)

        assert flow(start, seconds, self.knots)[0] == pytest.approx(content, abs=0.05)

    def test_it_tells_when_the_end_was_met(self) -> None:
        assert flow(0, 2, self.knots) == (4, 2)
        assert flow(28, 9, self.knots) == (30, 4)
        assert flow(30, 9, self.knots) == (30, 0)

    def test_it_comes_to_rest_where_the_rate_dies(self) -> None:
        knots = ((0.0, 1.0), (10.0, -1.0))

        assert flow(0, 1e6, knots)[0] == pytest.approx(5)
        assert flow(10, 1e6, knots)[0] == pytest.approx(5)
