"""What is on the device: confirmed by it, in steps, armed, and looked at again."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.agent.fakes import T0, Agent, FakeClock, S, asset, order

from derops.errors import DeviceRefusedError
from derops_agent.drivers.simulated import open_device
from derops_agent.ports import Reading, Reversion, Setpoints

BATTERY = {
    "model": "battery",
    "maxInjectionWatts": 10_000,
    "maxAbsorptionWatts": 10_000,
    "energyCapacityWattHours": 20_000,
}


async def test_a_write_that_the_device_confirms_is_read_back(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(60)

    report = agent.report()
    assert (report.evidence, report.verified_reason) == ("ReadBack", "VerificationPending")


async def test_a_device_that_rounds_its_register_has_taken_the_setpoint(agent: Agent) -> None:
    await agent.give(order(watts=5033))
    write = agent.device.write

    async def rounded(setpoints: Setpoints, reversion: object = None) -> int | None:
        await write(setpoints)
        agent.device.held = Setpoints(active_power_watts=5000)
        return None

    agent.device.write = rounded  # type: ignore[method-assign]
    await agent.wait(60)

    assert agent.outcome() == ("Active", "Applied")


@pytest.mark.parametrize("held_watts", [0, -60])
async def test_a_small_setpoint_is_not_taken_for_its_fallback(
    agent: Agent, held_watts: int
) -> None:
    agent.device.fail = "ignore"
    agent.device.held = Setpoints(active_power_watts=held_watts)
    await agent.give(order(watts=60))
    await agent.wait(115, step=1)

    assert agent.outcome() == ("Failed", "ReadBackMismatch")
    assert agent.report().applied_us == 0


async def test_a_small_setpoint_that_stays_is_not_told_as_reverted(agent: Agent) -> None:
    await agent.give(order(watts=80))
    await agent.wait(70)
    agent.device.fail = "ignore"
    await agent.wait(120, step=1)

    assert agent.outcome() == ("Failed", "RevertFailed")
    assert agent.report().reverted_us == 0


async def test_a_limit_just_below_its_fallback_may_be_rounded_away_from_it(agent: Agent) -> None:
    await agent.give(asset(fallback_max_generation_watts=5000))
    await agent.give(order(mode="GenerationLimit", watts=4950))
    write = agent.device.write

    async def rounded(setpoints: Setpoints, reversion: object = None) -> int | None:
        await write(setpoints)
        agent.device.held = replace(setpoints, max_generation_watts=4900)
        return None

    agent.device.write = rounded  # type: ignore[method-assign]
    await agent.wait(60)

    assert agent.outcome() == ("Active", "Applied")


async def test_a_device_that_takes_a_value_after_it_was_given_up_did_hold_it(agent: Agent) -> None:
    agent.device.fail = "ignore"
    agent.device.held = Setpoints()
    await agent.give(order())
    await agent.wait(111, step=1)
    agent.device.held = Setpoints(active_power_watts=5000)
    await agent.wait(10, step=1)
    agent.device.fail = ""
    await agent.wait(20, step=1)

    report = agent.report()
    assert agent.outcome() == ("Failed", "ReadBackMismatch")
    assert "the device did take the setpoint" in report.message
    assert report.applied_us >= T0 + 111 * S
    assert report.active_milliseconds >= 9000


async def test_what_a_device_takes_long_after_it_was_told_is_undone(agent: Agent) -> None:
    agent.device.fail = "ignore"
    await agent.give(order())
    await agent.wait(115, step=1)
    assert agent.outcome() == ("Failed", "ReadBackMismatch")
    agent.device.fail = ""
    agent.device.held = Setpoints(active_power_watts=5000)
    await agent.wait(6, step=1)

    assert agent.device.held.active_power_watts == 0


async def test_a_device_that_says_yes_and_holds_nothing_was_never_applied(agent: Agent) -> None:
    agent.device.fail = "ignore"
    await agent.give(order())
    await agent.wait(115, step=1)

    report = agent.report()
    assert agent.outcome() == ("Failed", "ReadBackMismatch")
    assert "wrote an active power of 5000 W, the device says" in agent.report().message
    assert (report.applied_us, report.active_milliseconds) == (0, 0)
    assert "5000" in report.message


async def test_a_revert_that_the_device_ignores_is_not_told_as_done(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70)
    agent.device.fail = "ignore"
    await agent.wait(300, step=1)
    assert agent.outcome() == ("Failed", "RevertFailed")
    assert agent.report().reverted_us == 0
    assert "holds" in agent.report().message
    assert agent.device.writes[2:] == [Setpoints(active_power_watts=0)] * 5
    agent.device.fail = ""
    await agent.wait(476, step=1)

    assert agent.report().reverted_us
    assert agent.device.held.active_power_watts == 0


async def test_the_timer_of_a_device_that_ignores_its_revert_tells_until_when_it_held_it(
    agent: Agent,
) -> None:
    agent.device.timer_seconds = 118
    await agent.give(order(mode="GenerationLimit", watts=2000))
    await agent.wait(155, step=1)
    agent.device.fail = "ignore"
    await agent.wait(23, step=1)
    agent.device.held = Setpoints(active_power_watts=0)
    await agent.wait(60, step=1)

    assert agent.report().phase == "Failed"
    assert agent.report().active_milliseconds == 118_000


async def test_a_released_value_that_stays_is_not_told_as_reverted(agent: Agent) -> None:
    await agent.give(asset(), order(mode="GenerationLimit", watts=2000))
    await agent.wait(70)
    agent.device.fail = "ignore"
    await agent.wait(95, step=1)
    assert agent.report().phase == "Active"
    agent.device.fail = ""
    await agent.wait(5, step=1)

    assert agent.device.held.max_generation_watts is None
    assert agent.outcome() == ("Complete", "WindowEnded")


async def test_a_setpoint_that_the_device_drops_is_written_again(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.device.held = Setpoints(active_power_watts=0)
    await agent.wait(10, step=1)
    assert agent.device.held.active_power_watts == 5000
    await agent.wait(90, step=1)

    report = agent.report()
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert report.interruptions == 1
    # What the device did since it last confirmed the setpoint is not claimed.
    assert 90_000 <= report.active_milliseconds <= 98_000


async def test_power_that_only_the_setpoint_explains_confirms_it(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(60)
    held_seconds = 0
    for second in range(100):
        if second % 25 == 18:
            agent.device.held = Setpoints(active_power_watts=0)
        held_seconds += agent.device.held.active_power_watts == 5000
        await agent.sampled(float(agent.device.held.active_power_watts or 0), 1)

    report = agent.report()
    assert report.interruptions == 4
    assert report.active_milliseconds == held_seconds * 1000


async def test_energy_past_the_end_is_counted_while_the_device_still_holds_it(
    agent: Agent,
) -> None:
    await agent.give(order())
    await agent.wait(60)
    await agent.sampled(5000, 90)
    agent.device.fail = "local"
    await agent.sampled(5000, 30)
    agent.device.fail = ""
    await agent.sampled(5000, 60)

    report = agent.report()
    assert (report.phase, report.reason) == ("Failed", "RevertFailed")
    held_hours = report.active_milliseconds / 3.6e6
    assert report.delivered_watt_hours == pytest.approx(5000 * held_hours, rel=0.02)


async def test_that_a_device_holds_it_still_is_no_news(agent: Agent) -> None:
    await agent.give(order(mode="GenerationLimit", watts=6000))
    await agent.wait(60)
    await agent.sampled(5000, 20)
    reports = len(agent.reports)
    await agent.sampled(5000, 60)

    assert len(agent.reports) == reports


async def test_a_device_that_keeps_dropping_it_fails_the_dispatch(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(60, step=1)
    for _ in range(60):
        agent.device.held = Setpoints(active_power_watts=0)
        await agent.wait(1)

    assert agent.outcome() == ("Failed", "SetpointNotHeld")
    assert agent.device.held.active_power_watts == 0


async def test_a_write_that_lands_after_the_failure_is_undone(agent: Agent) -> None:
    agent.device.fail = "timeout"
    await agent.give(order())
    await agent.wait(112, step=1)
    agent.device.fail = ""
    await agent.wait(61, step=1)
    assert agent.outcome() == ("Failed", "DeviceOffline")
    agent.device.held = Setpoints(active_power_watts=5000)
    await agent.wait(10, step=1)

    assert agent.device.held.active_power_watts == 0


async def test_a_ramp_is_written_in_steps_and_judged_once_it_arrived(agent: Agent) -> None:
    await agent.give(asset(max_ramp_watts_per_second=1000), order(verify="Required"))
    await agent.wait(59, step=1)
    await agent.wait(1)
    assert agent.outcome() == ("Active", "Applied")
    assert agent.powers == [0, 1000]
    await agent.wait(5, step=0.5)
    assert agent.powers == [0, 1000, 2000, 3000, 4000, 5000]
    await agent.sampled(5000, 90)
    assert agent.report().verified == "True"
    await agent.wait(10, step=1)

    assert agent.powers == [0, 1000, 2000, 3000, 4000, 5000, 4000, 3000, 2000, 1000, 0]
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().reverted_us == pytest.approx(T0 + 164 * S, abs=2 * S)


async def test_a_ramp_down_that_has_begun_goes_on_although_a_next_window_is_near(
    agent: Agent,
) -> None:
    await agent.give(asset(max_ramp_watts_per_second=1000), order())
    await agent.wait(162, step=1)
    assert agent.powers[-1] == 2000
    await agent.give(order("b", watts=5000, start_us=T0 + 169 * S))
    await agent.wait(5, step=1)

    assert agent.powers[-3:] == [2000, 1000, 0]


async def test_a_long_ramp_down_is_not_a_late_revert(agent: Agent) -> None:
    await agent.give(asset(max_ramp_watts_per_second=100), order(duration_seconds=200))
    await agent.wait(400, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.device.held.active_power_watts == 0


async def test_the_next_setpoint_waits_until_the_device_may_be_written(agent: Agent) -> None:
    config = asset(min_seconds_between_writes=30)
    await agent.give(config, order("a"), order("b", watts=1000, start_us=T0 + 70 * S))
    await agent.wait(60)
    assert agent.powers == [0, 5000]
    await agent.wait(29, step=1)
    assert agent.powers == [0, 5000]
    assert "for another 20.0 s" in agent.report("b").pending_error
    assert "minSecondsBetweenWrites 30 s" in agent.report("b").pending_error
    await agent.wait(2, step=1)

    assert agent.powers == [0, 5000, 1000]
    assert agent.outcome("b") == ("Active", "Applied")


async def test_a_start_that_may_not_be_written_in_time_is_refused(agent: Agent) -> None:
    await agent.give(asset(min_seconds_between_writes=600), order("a"))
    await agent.wait(60)
    await agent.give(order("b", start_us=T0 + 70 * S))

    assert agent.outcome("b") == ("Rejected", "RateLimited")
    assert "minSecondsBetweenWrites 600 s" in agent.report("b").message


async def test_the_end_of_a_window_is_never_held_off(agent: Agent) -> None:
    await agent.give(asset(min_seconds_between_writes=600), order())
    await agent.wait(161, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")


async def test_a_gap_between_two_windows_makes_no_dip(agent: Agent) -> None:
    await agent.give(order("a"), order("b", watts=3000, start_us=T0 + 170 * S))
    await agent.wait(175, step=1)

    assert agent.powers == [0, 5000, 3000]
    assert agent.outcome("a") == ("Complete", "WindowEnded")
    assert agent.outcome("b") == ("Active", "Applied")


@pytest.mark.parametrize("fails", [False, True])
async def test_a_start_of_another_mode_makes_no_dip_in_a_gap(agent: Agent, fails: bool) -> None:
    limit = order("c", mode="GenerationLimit", watts=2000, start_us=T0 + 163 * S)
    await agent.give(order("a"), order("b", watts=3000, start_us=T0 + 168 * S), limit)
    await agent.wait(162, step=1)
    write = agent.device.write

    async def refused(setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        if setpoints.max_generation_watts is not None:
            raise DeviceRefusedError("no limits here")
        return await write(setpoints, reversion)

    if fails:
        agent.device.write = refused  # type: ignore[method-assign]
    await agent.wait(3, step=1)
    assert agent.report("a").phase == "Active"
    assert agent.report("c").phase == ("Failed" if fails else "Active")
    await agent.wait(10, step=1)

    assert agent.powers == [0, 5000, 3000]
    assert agent.outcome("a") == ("Complete", "WindowEnded")
    assert agent.report("a").active_milliseconds == pytest.approx(108_000, abs=1_000)
    assert agent.outcome("b") == ("Active", "Applied")


async def test_a_start_in_a_gap_waits_until_the_device_may_be_written(agent: Agent) -> None:
    limit = order("c", mode="GenerationLimit", watts=2000, start_us=T0 + 163 * S)
    config = asset(min_seconds_between_writes=105)
    await agent.give(config, order("a"), order("b", watts=3000, start_us=T0 + 170 * S), limit)
    await agent.wait(164.5, step=0.5)
    assert agent.outcome("c") == ("Acked", "Accepted")
    assert agent.controller.delay_seconds() == 0.5
    await agent.wait(1, step=0.5)

    assert agent.outcome("c") == ("Active", "Applied")
    assert agent.powers == [0, 5000]


async def test_a_value_that_the_device_dropped_in_a_gap_is_not_put_there_again(
    agent: Agent,
) -> None:
    limit = order("c", mode="GenerationLimit", watts=2000, start_us=T0 + 167 * S)
    await agent.give(order("a"), order("b", watts=3000, start_us=T0 + 169 * S), limit)
    await agent.wait(161, step=1)
    agent.device.held = Setpoints(active_power_watts=0)
    await agent.wait(7, step=1)

    assert agent.outcome("c") == ("Active", "Applied")
    assert agent.device.held.active_power_watts == 0


async def test_an_end_of_another_mode_makes_no_dip_in_a_gap(agent: Agent) -> None:
    agent.device.timer_seconds = 600
    limit = order("c", mode="GenerationLimit", watts=2000, duration_seconds=103)
    await agent.give(order("a"), order("b", watts=3000, start_us=T0 + 168 * S), limit)
    await agent.wait(165, step=1)
    assert agent.outcome("c") == ("Complete", "WindowEnded")
    assert agent.device.held.max_generation_watts is None
    # The agent may die in the gap.
    assert agent.device.reversions[-1] is not None
    await agent.wait(10, step=1)

    assert agent.powers == [0, 5000, 3000]


async def test_a_gap_of_ten_seconds_is_not_a_late_revert(agent: Agent) -> None:
    await agent.give(order("a"), order("b", watts=3000, start_us=T0 + 170 * S))
    await agent.wait(169.5, step=0.5)
    await agent.wait(1)

    assert agent.powers == [0, 5000, 3000]
    assert agent.outcome("a") == ("Complete", "WindowEnded")


async def test_a_longer_gap_falls_back(agent: Agent) -> None:
    await agent.give(order("a"), order("b", watts=3000, start_us=T0 + 171 * S))
    await agent.wait(175, step=1)

    assert agent.powers == [0, 5000, 0, 3000]


async def test_a_gap_ends_when_the_next_window_is_withdrawn(agent: Agent) -> None:
    await agent.give(order("a"), order("b", watts=3000, start_us=T0 + 168 * S))
    await agent.wait(162, step=1)
    await agent.give(order("b", watts=3000, start_us=T0 + 168 * S, cancelled=True, generation=2))

    assert agent.powers == [0, 5000, 0]
    assert agent.outcome("a") == ("Complete", "WindowEnded")


async def test_a_clock_set_back_in_a_gap_does_not_prolong_it(agent: Agent) -> None:
    await agent.give(order("a"), order("b", watts=3000, start_us=T0 + 168 * S))
    await agent.wait(162, step=1)
    agent.clock.wall_us -= 3600 * S
    await agent.wait(1)

    assert agent.powers == [0, 5000, 0]


async def test_a_device_with_a_timer_is_armed_for_the_window(agent: Agent) -> None:
    agent.device.timer_seconds = 65_535
    await agent.give(order())
    await agent.wait(61, step=1)

    reversion = agent.device.reversions[-1]
    assert reversion is not None
    assert (reversion.after_seconds, reversion.setpoints.active_power_watts) == (160, 0)
    assert agent.report().reversion_guard == "DeviceTimer"
    await agent.wait(100, step=1)
    assert agent.device.reversions[-1] is None


async def test_a_short_timer_is_refreshed_without_a_report(agent: Agent) -> None:
    agent.device.timer_seconds = 20
    await agent.give(order())
    await agent.wait(60)
    writes, reports = len(agent.device.writes), len(agent.reports)
    await agent.wait(90, step=1)

    assert len(agent.device.writes) - writes == 9
    assert len(agent.reports) == reports


@pytest.mark.parametrize("timer_seconds", [4, 20, 25])
async def test_a_timer_of_the_device_does_not_end_a_value_that_bridges_a_gap(
    tmp_path: Path, timer_seconds: int
) -> None:
    clock = FakeClock(ntp=True)
    options = {**BATTERY, "reversionMaxSeconds": timer_seconds}
    device = open_device(options, tmp_path / "device.json", clock.now_us)
    agent = Agent(tmp_path)
    agent.clock = clock
    await agent.use(device)
    await agent.start()
    for number, start in enumerate((0, 47)):
        chained = order(f"d{number}", start_us=T0 + start * S, duration_seconds=39)
        await agent.give(chained)

    for _ in range(60):
        clock.pass_seconds(1)
        await agent.give()
        assert (await device.read_setpoints()).active_power_watts == 5000

    assert agent.outcome("d0") == ("Complete", "WindowEnded")
    assert agent.report("d0").active_milliseconds == 47_000
    agent.ledger.close()


async def test_a_timer_that_cannot_be_set_again_does_not_keep_the_agent_busy(agent: Agent) -> None:
    agent.device.timer_seconds = 20
    await agent.give(order())
    await agent.wait(60)
    agent.device.fail = "timeout"
    await agent.wait(25, step=1)

    assert agent.controller.delay_seconds() > 0.01


async def test_a_retry_that_may_not_be_written_yet_does_not_keep_the_agent_busy(
    agent: Agent,
) -> None:
    agent.device.fail = "ignore"
    await agent.give(asset(min_seconds_between_writes=30), order())
    await agent.wait(60)
    await agent.wait(10, step=1)

    assert agent.report().phase == "Acked"
    assert agent.controller.delay_seconds() == 1


async def test_a_device_that_takes_no_write_is_still_asked_what_it_holds(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.device.held = Setpoints(active_power_watts=0)
    agent.device.fail = "refuse"
    await agent.give(order("d2", watts=1000, start_us=agent.clock.wall_us))
    await agent.wait(120, step=1)

    assert agent.outcome("d2") == ("Failed", "DeviceWriteFailed")
    assert agent.report().active_milliseconds <= 10_000


async def test_a_write_whose_answer_is_lost_is_applied_once_the_device_says_so(
    agent: Agent,
) -> None:
    await agent.give(order())
    agent.device.fail = "acted"
    await agent.wait(70, step=1)

    assert (agent.outcome(), agent.report().evidence) == (("Active", "Applied"), "ReadBack")
    agent.device.fail = ""
    await agent.wait(91, step=1)
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().active_milliseconds == 100_000


async def test_a_timer_that_may_not_have_been_armed_is_armed_again(agent: Agent) -> None:
    agent.device.timer_seconds = 30
    agent.device.capability = replace(agent.device.capability, reversion=True)
    await agent.give(order())
    agent.device.fail = "acted"
    await agent.wait(61, step=1)
    agent.device.fail = ""
    await agent.wait(6, step=1)

    assert agent.report().reversion_guard == "DeviceTimer"


async def test_what_local_control_refused_is_written_as_soon_as_that_ends(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.device.fail = "local"
    for _ in range(40):
        agent.clock.pass_seconds(1)
        await agent.give(Reading(at_us=agent.clock.wall_us, values={}, local_control=True))
    agent.device.fail = ""
    await agent.wait(1)

    assert agent.device.held.active_power_watts == 0
    assert agent.outcome() == ("Failed", "LocalOverride")


async def test_a_revert_that_local_control_refuses_is_over_when_the_device_reverted_itself(
    agent: Agent,
) -> None:
    agent.device.timer_seconds = 130
    await agent.give(order())
    await agent.wait(60)
    agent.device.fail = "local"
    for second in range(140):
        if second == 130:
            agent.device.held = Setpoints(active_power_watts=0)
        await agent.wait(1)
    report = agent.report()

    assert (agent.outcome(), report.active_milliseconds) == (("Failed", "RevertFailed"), 130_000)
    assert report.reverted_us - report.applied_us <= 136 * S


async def test_a_revert_that_was_refused_and_then_ignored_is_written_again_and_counted(
    agent: Agent,
) -> None:
    agent.device.timer_seconds = 20
    await agent.give(order(duration_seconds=35))
    await agent.wait(64, step=1)
    agent.device.fail = "local"
    for _ in range(6):
        agent.clock.pass_seconds(1)
        await agent.give(Reading(at_us=agent.clock.wall_us, values={}, local_control=True))
    agent.device.fail = "ignore"
    await agent.wait(8, step=1)
    ignored = len(agent.device.writes)
    agent.device.fail = ""
    await agent.wait(12, step=1)

    assert ignored == 4, "the fallback, the value, its end, and that again"
    assert agent.device.held.active_power_watts == 0


async def test_a_revert_that_failed_before_its_value_may_stay_does_not_keep_the_agent_busy(
    agent: Agent,
) -> None:
    await agent.give(order())
    await agent.wait(60)
    await agent.wait(99, step=1)
    agent.device.fail = "local"
    await agent.wait(1.1)
    await agent.give(order("d2", start_us=T0 + 166 * S))
    await agent.wait(1)

    assert agent.controller.delay_seconds() == 1


async def test_what_another_was_to_replace_is_told_as_long_as_the_device_held_it(
    agent: Agent,
) -> None:
    await agent.give(order(mode="GenerationLimit", watts=2000))
    await agent.wait(60)
    agent.device.fail = "ignore"
    await agent.give(order("d2", mode="GenerationLimit", watts=4000, start_us=T0 + 70 * S))
    await agent.wait(20, step=1)
    agent.device.held = Setpoints(active_power_watts=0)  # its own timer
    await agent.wait(20, step=1)
    agent.device.fail = ""
    await agent.wait(6, step=1)

    assert agent.outcome() == ("Superseded", "SupersededBy")
    assert 19_000 <= agent.report().active_milliseconds <= 20_000
