"""A device that falls silent: told while it lasts, and not mistaken for one that has let go."""

from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
from tests.agent.fakes import T0, Agent, S, asset, order

from derops_agent.ports import Reading, Setpoints


def said(agent: Agent) -> tuple[str, str, str]:
    report = agent.report()
    return report.phase, report.verified, report.verified_reason


async def fall_silent(agent: Agent, **changes: Any) -> None:
    """Have the device, ten seconds into its window, answer nothing any more."""
    await agent.give(order(**changes))
    await agent.wait(60)
    await agent.sampled(5000, 10)
    assert said(agent) == ("Active", "True", "EffectWithinTolerance")
    agent.device.fail = "timeout"


async def test_a_silence_is_told_soon_and_the_window_goes_on(
    agent: Agent,
) -> None:
    await fall_silent(agent)
    await agent.wait(9, step=1)
    assert said(agent) == ("Active", "True", "EffectWithinTolerance")
    await agent.wait(6, step=1)

    assert said(agent) == ("Active", "Unknown", "DeviceOffline")
    # What was confirmed last is counted so far.
    assert 5_000 <= agent.report().active_milliseconds <= 10_000
    reports = len(agent.reports)
    await agent.wait(60, step=1)
    assert len(agent.reports) == reports


async def test_a_device_that_answers_samples_and_no_look_is_not_silent(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(60)

    async def unreadable() -> Setpoints:
        raise TimeoutError

    agent.device.read_setpoints = unreadable  # type: ignore[method-assign]
    await agent.sampled(5000, 60)

    assert said(agent) == ("Active", "True", "EffectWithinTolerance")


async def test_a_device_that_comes_back_with_its_setpoint_goes_on(agent: Agent) -> None:
    await fall_silent(agent)
    await agent.wait(20, step=1)
    agent.device.fail = ""
    await agent.sampled(5000, 20)
    assert said(agent) == ("Active", "True", "EffectWithinTolerance")
    await agent.sampled(5000, 60)

    report = agent.report()
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert report.interruptions == 0
    assert report.active_milliseconds == pytest.approx(100_000, abs=1_000)
    # Nobody measured while it was silent.
    assert report.within_tolerance_milliseconds <= 90_000


async def test_a_device_that_comes_back_without_it_is_written_again(agent: Agent) -> None:
    await fall_silent(agent)
    await agent.wait(20, step=1)
    agent.device.fail, agent.device.held = "", Setpoints()
    await agent.sampled(0, 1)
    await agent.sampled(5000, 80)

    report = agent.report()
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.powers == [0, 5000, 0]
    assert report.interruptions == 1
    # The silence is not claimed: it had been confirmed at most 10 s into the window.
    assert 70_000 <= report.active_milliseconds <= 82_000


async def test_a_device_without_measurement_that_comes_back_is_no_longer_told_silent(
    agent: Agent,
) -> None:
    await agent.give(order())
    await agent.wait(60)
    agent.device.fail = "timeout"
    await agent.wait(20, step=1)
    assert said(agent) == ("Active", "Unknown", "DeviceOffline")
    agent.device.fail = ""
    await agent.wait(5, step=1)

    assert said(agent) == ("Active", "Unknown", "VerificationPending")


async def test_a_silent_device_that_is_held_back_is_not_credited_with_what_nobody_knows(
    agent: Agent,
) -> None:
    await agent.give(asset(on_exceed="Clamp"))
    await fall_silent(agent)
    await agent.wait(40, step=1)
    await agent.give(asset(on_exceed="Clamp", limit_max_injection_watts=2000))
    agent.device.fail, agent.device.held = "", Setpoints()
    await agent.sampled(2000, 60)

    assert agent.powers == [0, 5000, 2000, 0]
    assert agent.outcome() == ("Complete", "WindowEnded")
    # Ten seconds before it fell silent, fifty after it answered.
    assert agent.report().active_milliseconds == pytest.approx(60_000, abs=3_000)


async def test_the_second_silence_of_a_window_stands_until_its_end(agent: Agent) -> None:
    await fall_silent(agent, duration_seconds=300)
    for _ in range(3):
        agent.device.fail = "timeout"
        await agent.wait(20, step=1)
        agent.device.fail = ""
        await agent.sampled(5000, 20)

    reasons = [r.verified_reason for r in agent.reports if r.phase == "Active"]
    assert [reason for reason, _ in groupby(reasons)] == [
        "VerificationPending",
        "EffectWithinTolerance",
        "DeviceOffline",
        "EffectWithinTolerance",
        "DeviceOffline",
    ]
    await agent.sampled(5000, 200)
    assert agent.report().phase == "Complete"
    assert agent.report().verified_reason != "DeviceOffline"


async def test_a_device_that_never_answers_again_has_failed_soon_after_the_end(
    agent: Agent,
) -> None:
    await fall_silent(agent)
    await agent.wait(100, step=1)
    assert agent.report().phase == "Active"
    await agent.wait(2, step=1)

    report = agent.report()
    assert agent.outcome() == ("Failed", "DeviceOffline")
    assert report.reverted_us == 0
    assert 5_000 <= report.active_milliseconds <= 10_000
    assert "not known" in report.message


async def test_what_had_failed_before_the_silence_keeps_its_reason(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.device.fail = "timeout"
    await agent.give(Reading(at_us=agent.clock.wall_us, values={}, local_control=True))
    await agent.wait(125, step=1)

    report = agent.report()
    assert (report.phase, report.reason, report.reverted_us) == ("Failed", "LocalOverride", 0)
    assert "the device has not answered" in report.message
    agent.device.fail = ""
    await agent.wait(61, step=1)
    assert agent.outcome() == ("Failed", "LocalOverride")
    assert agent.report().reverted_us


async def test_it_is_reverted_as_soon_as_it_answers_and_what_it_held_is_told(agent: Agent) -> None:
    await fall_silent(agent)
    await agent.wait(600, step=1)
    assert agent.outcome() == ("Failed", "DeviceOffline")
    agent.device.fail = ""
    await agent.wait(5, step=1)

    report = agent.report()
    assert agent.device.held.active_power_watts == 0
    assert agent.outcome() == ("Failed", "DeviceOffline")
    assert [step.phase for step in report.transitions] == ["Acked", "Active", "Failed"]
    assert report.reverted_us == pytest.approx(T0 + 672 * S, abs=5 * S)
    # It said that it had held it all the time.
    assert report.active_milliseconds == pytest.approx(612_000, abs=6_000)


async def test_one_that_let_go_meanwhile_is_not_said_to_have_held_it(agent: Agent) -> None:
    await fall_silent(agent)
    await agent.wait(600, step=1)
    agent.device.fail, agent.device.held = "", Setpoints(active_power_watts=0)
    await agent.wait(60, step=1)

    report = agent.report()
    assert agent.outcome() == ("Failed", "DeviceOffline")
    assert report.reverted_us > 0
    assert report.active_milliseconds <= 10_000


@pytest.mark.parametrize("late_seconds", [1, 2, 3])
async def test_it_is_asked_what_it_held_before_a_retry_ends_that(
    agent: Agent, late_seconds: int
) -> None:
    await fall_silent(agent)
    await agent.wait(90 + late_seconds - 1, step=1)
    agent.device.fail, agent.device.held = "", Setpoints(active_power_watts=0)
    agent.clock.pass_seconds(1)
    await agent.controller.turn()
    assert agent.device.writes[-1].active_power_watts == 0

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().active_milliseconds <= 10_000


@pytest.mark.parametrize("late_seconds", range(5))
@pytest.mark.parametrize("mode", ["ActivePower", "GenerationLimit"])
async def test_it_is_asked_what_it_held_before_another_dispatch_starts(
    agent: Agent, mode: str, late_seconds: int
) -> None:
    start_us = T0 + (100 + late_seconds) * S
    await agent.give(order("b", mode=mode, watts=3000, primacy=10, start_us=start_us))
    await fall_silent(agent)
    await agent.wait(29 + late_seconds, step=1)
    agent.device.fail, agent.device.held = "", Setpoints()
    agent.clock.pass_seconds(1)
    await agent.controller.turn()
    assert agent.outcome("b") == ("Active", "Applied")
    await agent.sampled(3000, 70)

    # From its start until it fell silent; and, where it was not superseded, since it came back.
    most_seconds = 12 if mode == "ActivePower" else 72 - late_seconds
    assert agent.report().phase in ("Complete", "Superseded")
    assert agent.report().active_milliseconds <= most_seconds * 1000


@pytest.mark.parametrize("late_seconds", range(5))
async def test_it_is_asked_what_it_held_before_its_end_is_first_tried(
    agent: Agent, late_seconds: int
) -> None:
    await fall_silent(agent, duration_seconds=100 + late_seconds)
    await agent.wait(89 + late_seconds, step=1)
    agent.device.fail, agent.device.held = "", Setpoints(active_power_watts=0)
    agent.clock.pass_seconds(1)
    await agent.controller.turn()

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().active_milliseconds <= 12_000


async def test_its_own_timer_tells_until_when_it_held_it(agent: Agent) -> None:
    agent.device.timer_seconds = 30
    await fall_silent(agent)
    await agent.wait(50, step=1)
    agent.device.fail, agent.device.held = "", Setpoints(active_power_watts=0)
    await agent.wait(41, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    # 30 s to the timer's end, and from the return at 60 s to the end at 100 s.
    assert agent.report().active_milliseconds == pytest.approx(70_000, abs=2_000)


async def test_a_silence_over_a_gap_between_two_windows_is_no_failure_of_the_first(
    agent: Agent,
) -> None:
    await agent.give(order("b", watts=3000, start_us=T0 + 170 * S))
    await fall_silent(agent)
    await agent.wait(105, step=1)
    agent.device.fail = ""
    await agent.wait(5, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.outcome("b") == ("Active", "Applied")
    assert agent.powers == [0, 5000, 3000]


async def test_what_is_left_of_a_gap_is_no_lateness(agent: Agent) -> None:
    await agent.give(order(), order("b", watts=3000, start_us=T0 + 169 * S))
    await agent.wait(168, step=1)
    agent.device.fail = "timeout"
    await agent.wait(3, step=1)
    agent.device.fail = ""
    await agent.wait(3, step=1)

    # 9 s of gap and 3 s of silence: it was late by these alone.
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.outcome("b") == ("Active", "Applied")


async def test_the_revert_is_tried_on_after_a_restart(agent: Agent) -> None:
    await fall_silent(agent)
    await agent.wait(120, step=1)
    await agent.acknowledge_all()
    await agent.snapshot()
    await agent.restart(down_seconds=30)
    await agent.wait(30, step=1)
    agent.device.fail = ""
    await agent.wait(60, step=1)

    assert agent.device.held.active_power_watts == 0
    assert agent.outcome() == ("Failed", "DeviceOffline")
    assert agent.report().reverted_us > 0


async def test_a_cancel_of_a_silent_device_waits_until_the_window_is_over(agent: Agent) -> None:
    await fall_silent(agent)
    await agent.give(order(cancelled=True, generation=2))
    await agent.wait(60, step=1)
    assert agent.report().phase == "Active"
    agent.device.fail = ""
    await agent.wait(5, step=1)

    assert agent.outcome() == ("Cancelled", "CancelledWhileActive")


async def test_a_device_that_was_dead_at_its_start_has_failed_soon_after_the_deadline(
    agent: Agent,
) -> None:
    agent.device.fail = "timeout"
    await agent.give(order())
    await agent.wait(110, step=1)
    assert agent.report().phase == "Acked"
    await agent.wait(12, step=1)

    report = agent.report()
    assert agent.outcome() == ("Failed", "DeviceOffline")
    assert (report.applied_us, report.reverted_us, report.active_milliseconds) == (0, 0, 0)
    agent.device.fail, agent.device.held = "", Setpoints(active_power_watts=5000)
    await agent.wait(5, step=1)
    assert agent.device.held.active_power_watts == 0
    assert agent.report().reverted_us > 0


async def test_what_was_confirmed_before_a_reboot_is_what_a_silent_device_is_credited_with(
    agent: Agent,
) -> None:
    agent.clock.ntp = True
    await agent.give(order())
    await agent.wait(60)
    await agent.sampled(5000, 30)
    agent.device.fail = "timeout"
    await agent.restart(down_seconds=10, reboot=True)
    await agent.wait(30, step=1)
    agent.device.fail, agent.device.held = "", Setpoints()
    await agent.wait(5, step=1)

    assert 15_000 <= agent.report().active_milliseconds <= 31_000


@pytest.mark.parametrize("second", ["", "acted"])
async def test_a_start_counts_from_the_write_after_the_one_that_the_device_left_unanswered(
    agent: Agent, second: str
) -> None:
    agent.device.timer_seconds = 20
    agent.device.capability = replace(agent.device.capability, reversion=True)
    await agent.give(order())
    agent.device.fail = "deaf"
    await agent.wait(64, step=1)
    assert agent.device.held.active_power_watts == 0
    agent.device.fail = second
    await agent.wait(4, step=1)
    agent.device.fail = ""
    await agent.wait(93, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    # Written at 60 s, and at 65 s to be sure of the timer.
    assert agent.report().applied_us == T0 + 65 * S
    assert agent.report().active_milliseconds == 95_000


async def test_an_end_counts_from_the_write_after_the_one_that_the_device_left_unanswered(
    agent: Agent,
) -> None:
    agent.device.timer_seconds = 20
    agent.device.capability = replace(agent.device.capability, reversion=True)
    limit = order("limit", mode="GenerationLimit", watts=2000, duration_seconds=50)
    await agent.give(order(), limit)
    await agent.wait(109, step=1)
    agent.device.fail = "deaf"
    await agent.wait(5, step=1)
    assert agent.device.held.max_generation_watts == 2000
    agent.device.fail = ""
    await agent.wait(4, step=1)

    assert agent.outcome("limit") == ("Complete", "WindowEnded")
    # Told at 110 s, and at 115 s to be sure of the timer.
    assert agent.report("limit").reverted_us == T0 + 115 * S
    assert agent.report("limit").active_milliseconds == 55_000
