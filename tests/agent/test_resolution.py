"""What is refused, told and compared of values that a device cannot hold exactly."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from tests.agent.fakes import CAPABILITY, T0, Agent, asset, order
from tests.agent.rounding import RoundingDevice

from derops_agent.clock import Moment
from derops_agent.execution.acceptance import judge
from derops_agent.execution.resolution import explain_fallback, explain_rounding, refuse_value, sent
from derops_agent.execution.site import LocalLimits, Site
from derops_agent.execution.state import Stage
from derops_agent.execution.unconfirmed import find_held
from derops_agent.execution.wire import read_asset, read_order
from derops_agent.ports import Resolution, Setpoints

AMPERE = Resolution(step_watts=690)
UNSIGNED = Resolution(step_watts=10, least_watts=0, most_watts=655_350)
WORD = Resolution(step_watts=1, least_watts=0, most_watts=65_535)


def refused(mode: str, watts: int, resolution: Resolution, tolerance_watts: float = 100) -> str:
    capability = replace(CAPABILITY, resolutions={mode: resolution})
    refusal = refuse_value(mode, watts, capability, tolerance_watts)
    return "" if refusal is None else refusal.message


def test_limits_are_rounded_down_and_a_power_towards_zero() -> None:
    resolutions = dict.fromkeys(("ActivePower", "GenerationLimit", "LoadLimit"), AMPERE)
    wanted = Setpoints(
        active_power_watts=-5000, max_generation_watts=689, max_load_watts=11_000, energized=False
    )

    assert sent(wanted, resolutions) == Setpoints(
        active_power_watts=-4830, max_generation_watts=0, max_load_watts=10_350, energized=False
    )
    assert sent(wanted, {}) == wanted
    assert sent(Setpoints(), resolutions) == Setpoints()


@pytest.mark.parametrize(
    ("watts", "resolution", "words"),
    [
        (11_040, AMPERE, ""),
        (11_000, AMPERE, "the device holds steps of 690 W; rounded towards zero"),
        (70_000, WORD, "the device holds at most 65535 W"),
        (-5, WORD, "the device holds no less than 0 W"),
        (6173, Resolution(step_watts=123.45), ""),
        (6172, Resolution(step_watts=123.45), "the device holds steps of 123.45 W; rounded "),
    ],
)
def test_why_it_holds_another_value_is_told(watts: int, resolution: Resolution, words: str) -> None:
    told = explain_rounding(watts, resolution)

    assert told.startswith(words)
    assert bool(told) == bool(words)


@pytest.mark.parametrize(
    ("mode", "watts", "resolution", "words"),
    [
        ("LoadLimit", 11_000, AMPERE, ""),
        ("LoadLimit", 690, AMPERE, ""),
        ("LoadLimit", 689, AMPERE, "LoadLimit of 689 W would be 0 W on the device, which stops"),
        ("LoadLimit", 0, AMPERE, ""),
        ("LoadLimit", 70_000, WORD, ""),
        ("LoadLimit", 500, replace(AMPERE, most_watts=0), "would be 0 W"),
        ("LoadLimit", 5000, replace(AMPERE, none_watts=4830), "which the device takes for no limi"),
        ("LoadLimit", 10_000, replace(AMPERE, none_watts=9660), "takes for no limit"),
        ("LoadLimit", 10_000, replace(UNSIGNED, none_watts=10_000), ""),  # the rating: no limit
        ("LoadLimit", 0, replace(AMPERE, none_watts=0), "takes for no limit"),
        ("ActivePower", -5000, AMPERE, ""),
        ("ActivePower", -689, AMPERE, "ActivePower of -689 W would be 0 W on the device, no power"),
        ("ActivePower", 0, replace(AMPERE, none_watts=0), ""),
        ("ActivePower", -3000, UNSIGNED, "would be 0 W on the device, no power at all; it holds"),
        ("ActivePower", 66_000, WORD, "465 W from what was asked for, 100 W are allowed"),
        ("ActivePower", 65_600, WORD, ""),
        ("ActivePower", 700, replace(AMPERE, none_watts=690), "which releases the device"),
    ],
)
def test_what_a_device_cannot_hold_even_nearly_is_refused(
    mode: str, watts: int, resolution: Resolution, words: str
) -> None:
    message = refused(mode, watts, resolution)

    assert words in message
    assert bool(message) == bool(words)
    assert not message or f"{watts} W" in message


@pytest.mark.parametrize(
    ("changes", "resolutions", "words"),
    [
        ({}, {}, ""),
        ({"fallback_max_load_watts": 11_000}, {"LoadLimit": AMPERE}, ""),
        ({"fallback_max_load_watts": 500}, {"LoadLimit": AMPERE}, "LoadLimit of 500 W would be 0"),
        ({"fallback_active_power_watts": -3000}, {"ActivePower": UNSIGNED}, "no power at all"),
        ({"fallback_max_generation_watts": 5}, {"LoadLimit": AMPERE}, ""),
    ],
)
def test_a_fallback_that_the_device_cannot_hold_is_named(
    changes: dict[str, Any], resolutions: dict[str, Resolution], words: str
) -> None:
    capability = replace(CAPABILITY, resolutions=resolutions)
    site = Site(capability=capability, asset=read_asset(asset(**changes)))

    problem = explain_fallback(site)
    assert words in problem
    assert bool(problem) == bool(words)


def test_a_fallback_of_a_mode_that_the_device_lacks_is_named() -> None:
    capability = replace(CAPABILITY, modes=frozenset({"LoadLimit"}))
    site = Site(capability=capability, asset=read_asset(asset()))

    assert "has no ActivePower to hold 0 W by; it has: LoadLimit" in explain_fallback(site)
    assert not explain_fallback(Site(capability=capability))


@pytest.mark.parametrize(
    ("held_watts", "is_right"),
    [
        (10_350, True),
        (11_000, False),  # nearer to the next step
        (10_400, True),  # by itself, within 1 % of the rating
        (10_500, False),  # more than that
        (9660, False),
        (0, False),
        (None, False),
    ],
)
def test_a_device_is_compared_with_what_was_sent(held_watts: int | None, is_right: bool) -> None:
    capability = replace(CAPABILITY, resolutions={"LoadLimit": AMPERE}, max_absorption_watts=10_000)
    site = Site(capability=capability, asset=read_asset(asset()))
    wrong = site.mismatches(Setpoints(max_load_watts=11_000), Setpoints(max_load_watts=held_watts))

    assert (not wrong) is is_right


@pytest.mark.parametrize("step_watts", [2, 10, 50, 100, 123.45])
def test_no_limit_may_be_a_step_larger_than_it_was_sent(step_watts: float) -> None:
    capability = replace(CAPABILITY, resolutions={"LoadLimit": Resolution(step_watts=step_watts)})
    site = Site(capability=capability, asset=read_asset(asset()))
    for count in range(1, 80):
        wanted = Setpoints(max_load_watts=-int(-count * step_watts // 1))
        more = Setpoints(max_load_watts=round((count + 1) * step_watts))
        assert site.mismatches(wanted, more), f"step {count}"


@pytest.mark.parametrize(
    ("mode", "held_watts", "is_right"),
    [
        ("ActivePower", 1900, True),
        ("ActivePower", 2100, True),
        ("ActivePower", 1899, False),
        ("ActivePower", 2101, False),
        ("LoadLimit", 1900, True),
        ("LoadLimit", 1899, False),
        ("LoadLimit", 2001, True),
        ("LoadLimit", 2002, False),
    ],
)
def test_a_device_may_round_by_one_percent_of_its_own(
    mode: str, held_watts: int, is_right: bool
) -> None:
    """1 W steps, rated 10 kW: a device that holds whole percents says so, and is right."""
    capability = replace(CAPABILITY, resolutions={mode: Resolution(step_watts=1)})
    site = Site(capability=capability, asset=read_asset(asset(fallback_active_power_watts=None)))

    def setpoints(watts: int) -> Setpoints:
        if mode == "ActivePower":
            return Setpoints(active_power_watts=watts)
        return Setpoints(max_load_watts=watts)

    assert (not site.mismatches(setpoints(2000), setpoints(held_watts))) is is_right


@pytest.mark.parametrize("held_watts", [0, -40])
def test_a_small_power_is_not_told_apart_from_none_by_its_distance_alone(held_watts: int) -> None:
    site = Site(capability=CAPABILITY, asset=read_asset(asset(fallback_active_power_watts=None)))
    held = Setpoints(active_power_watts=held_watts)
    assert site.mismatches(Setpoints(active_power_watts=40), held)


def test_a_fallback_of_the_same_step_is_no_other_value() -> None:
    config = asset(fallback_max_load_watts=11_000)
    capability = replace(CAPABILITY, resolutions={"LoadLimit": AMPERE})
    site = Site(capability=capability, asset=read_asset(config), local=LocalLimits())
    same = Setpoints(active_power_watts=0, max_load_watts=10_350)

    assert not site.mismatches(Setpoints(max_load_watts=10_800), same)
    assert site.fallback == same


def test_a_write_that_lands_late_is_not_found_where_another_order_is_the_same_step() -> None:
    capability = replace(CAPABILITY, resolutions={"LoadLimit": AMPERE})
    site = Site(capability=capability, asset=read_asset(asset()))
    now = Moment(wall_us=T0, monotonic_us=0)
    late = judge(read_order(order("late", mode="LoadLimit", watts=5000)), site, now_us=T0, draw=0)
    late = replace(late, stage=Stage.DONE, sent=now)
    held = Setpoints(max_load_watts=4830)

    same, other = Setpoints(max_load_watts=5500), Setpoints(max_load_watts=5520)
    assert not find_held({"late": late}, held, same, site, now)
    assert find_held({"late": late}, held, other, site, now)


async def test_limits_that_change_are_looked_at_again(agent: Agent) -> None:
    capability = replace(CAPABILITY, resolutions={"ActivePower": AMPERE})
    await agent.use(RoundingDevice(capability=capability, step=Fraction(690)))
    await agent.start(asset(on_exceed="Clamp"))
    await agent.give(order("runs"), order("waits", start_us=agent.clock.wall_us + 10**9))
    await agent.wait(61, step=1)
    assert agent.report("runs").applied_watts == 4830
    lowered = asset(on_exceed="Clamp", limit_max_injection_watts=2000)
    await agent.snapshot(order("runs"), order("waits"), config=lowered)
    await agent.wait(5, step=1)
    clamped = agent.report("runs")
    assert (clamped.phase, clamped.applied_watts) == ("Active", 1380)
    assert (clamped.clamped_by, bool(clamped.rounding)) == ("AssetLimits", True)
    least = asset(on_exceed="Clamp", limit_max_injection_watts=600)
    await agent.snapshot(order("runs"), order("waits"), config=least)
    await agent.wait(5, step=1)
    assert agent.outcome("runs") == ("Failed", "NotRepresentable")
    await agent.wait(1000, step=5)

    assert agent.outcome("waits") == ("Failed", "NotRepresentable")
