"""Devices that show late what was written: asked again before they are written again."""

from dataclasses import dataclass, field, replace

import pytest
from tests.agent.fakes import CAPABILITY, T0, Agent, FakeClock, FakeDevice, S, asset, order

from derops.errors import DeviceTimeoutError
from derops_agent.ports import ReadBack, Reversion, Setpoints

BLAMES = {"ReadBackMismatch", "RevertFailed", "RevertedLate", "SetpointNotHeld"}


@dataclass
class LateDevice(FakeDevice):
    """Takes a write at once and shows it ``lag_seconds`` later."""

    clock: FakeClock = field(default_factory=FakeClock)
    lag_seconds: float = 3.0
    begins_anew: bool = True
    """Whether each write begins the time anew, also of what was written before."""

    shown: Setpoints = field(default_factory=Setpoints)
    unshown: list[tuple[int, Setpoints]] = field(default_factory=list)

    async def write(self, setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        try:
            return await super().write(setpoints, reversion)
        finally:
            due_us = self.clock.mono_us + round(self.lag_seconds * S)
            self.unshown = [*([] if self.begins_anew else self.unshown), (due_us, self.held)]

    async def read_setpoints(self) -> Setpoints:
        await super().read_setpoints()
        if self.fail == "mute":
            raise DeviceTimeoutError("no answer")
        for due_us, setpoints in self.unshown:
            self.shown = setpoints if due_us <= self.clock.mono_us else self.shown
        self.unshown = [each for each in self.unshown if each[0] > self.clock.mono_us]
        return self.shown


async def late(
    agent: Agent, *, read_back: ReadBack = CAPABILITY.read_back, **fields: object
) -> LateDevice:
    device = LateDevice(clock=agent.clock, **fields)  # type: ignore[arg-type]
    device.capability = replace(device.capability, read_back=read_back)
    await agent.use(device)
    await agent.start()
    return device


def blames(agent: Agent) -> set[str]:
    """What any report said that a device which only shows things late is never told."""
    words = {report.reason for report in agent.reports}
    words |= {step.reason for report in agent.reports for step in report.transitions}
    return words & BLAMES


@pytest.mark.parametrize("begins_anew", [True, False])
@pytest.mark.parametrize("lag_seconds", [0.5, 3.0, 4.5])
async def test_a_device_that_shows_it_late_held_it_from_the_write_on(
    agent: Agent, lag_seconds: float, begins_anew: bool
) -> None:
    device = await late(agent, lag_seconds=lag_seconds, begins_anew=begins_anew)
    await agent.give(order(start_deadline_seconds=50))
    await agent.wait(60, step=1)
    assert agent.report().phase == "Acked"
    assert "the agent asks again for 5 s after the write" in agent.report().pending_error
    await agent.wait(5, step=1)
    assert agent.outcome() == ("Active", "Applied")
    assert agent.report().pending_error == ""
    await agent.wait(110, step=1)

    report = agent.report()
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert (report.applied_us, report.ended_us) == (T0 + 60 * S, T0 + 160 * S)
    assert report.active_milliseconds == 100_000
    assert report.interruptions == 0
    assert len(device.writes) == 3, "the fallback, the value, the fallback"
    assert not blames(agent)


async def test_a_patience_longer_than_a_late_revert_is_no_late_revert(agent: Agent) -> None:
    slow = ReadBack(delay_seconds=10, pace_seconds=5, patience_seconds=60)
    device = await late(agent, read_back=slow, lag_seconds=40)
    await agent.give(order(duration_seconds=200))
    await agent.wait(315, step=1)

    report = agent.report()
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert report.active_milliseconds == 200_000
    assert len(device.writes) == 3
    assert not blames(agent)


@pytest.mark.parametrize("deadline_seconds", [0, 1, 2])
async def test_a_start_that_was_written_in_time_may_be_shown_after_its_deadline(
    agent: Agent, deadline_seconds: int
) -> None:
    await late(agent)
    await agent.give(order(start_deadline_seconds=deadline_seconds))
    await agent.wait(64, step=1)

    assert agent.outcome() == ("Active", "Applied")


async def test_a_window_that_ends_before_it_is_shown_may_have_been_held(agent: Agent) -> None:
    device = await late(agent, lag_seconds=4)
    await agent.give(order(duration_seconds=2))
    await agent.wait(62, step=1)
    assert device.held.active_power_watts == 0
    await agent.wait(10, step=1)

    report = agent.report()
    assert agent.outcome() == ("Failed", "StartDeadlineExceeded")
    assert report.message.startswith("the window passed; wrote an active power of ")
    assert (report.applied_us, report.evidence) == (0, "Unanswered")
    assert not blames(agent)


async def test_what_is_withdrawn_while_it_is_awaited_is_undone_at_once(agent: Agent) -> None:
    device = await late(agent, read_back=ReadBack(patience_seconds=600))
    await agent.give(order())
    await agent.wait(61, step=1)
    assert device.held.active_power_watts == 5000
    await agent.give(order(cancelled=True, generation=2))
    assert device.held.active_power_watts == 0
    await agent.wait(10, step=1)

    assert agent.outcome() == ("Cancelled", "CancelledBeforeStart")
    assert (agent.report().applied_us, agent.report().evidence) == (0, "Unanswered")


async def test_a_limit_that_is_lowered_while_a_write_is_awaited_acts_at_once(agent: Agent) -> None:
    device = await late(agent)
    await agent.give(asset(on_exceed="Clamp"), order())
    await agent.wait(61, step=1)
    await agent.give(asset(on_exceed="Clamp", limit_max_injection_watts=2000))
    assert device.held.active_power_watts == 2000
    await agent.wait(5, step=1)

    assert agent.outcome() == ("Active", "Applied")
    assert agent.report().applied_watts == 2000


async def test_a_new_order_does_not_wait_for_what_another_waits_for(agent: Agent) -> None:
    device = await late(agent, read_back=ReadBack(patience_seconds=600), lag_seconds=4)
    limit = order("limit", mode="GenerationLimit", watts=3000, start_us=T0 + 61 * S)
    await agent.give(order(), limit)
    await agent.wait(61, step=1)
    assert device.held == Setpoints(active_power_watts=5000, max_generation_watts=3000)
    await agent.wait(5, step=1)

    assert agent.outcome() == agent.outcome("limit") == ("Active", "Applied")


async def test_a_start_that_others_follow_before_it_is_shown_was_held_from_its_write_on(
    agent: Agent,
) -> None:
    await late(agent)
    limit = order("limit", mode="GenerationLimit", watts=3000, start_us=T0 + 62 * S)
    await agent.give(order(), limit)
    await agent.wait(70, step=1)

    assert agent.report().applied_us == T0 + 60 * S
    assert agent.report("limit").applied_us == T0 + 62 * S


async def test_a_start_that_a_pause_holds_up_does_not_keep_another_from_being_shown(
    agent: Agent,
) -> None:
    await late(agent)
    limit = order("limit", mode="GenerationLimit", watts=3000, start_us=T0 + 61 * S)
    await agent.give(asset(min_seconds_between_writes=30), order(start_deadline_seconds=5), limit)
    await agent.wait(70, step=1)
    assert (agent.outcome(), agent.report("limit").phase) == (("Active", "Applied"), "Acked")
    assert agent.report().applied_us == T0 + 60 * S
    await agent.wait(25, step=1)

    assert agent.outcome("limit") == ("Active", "Applied")


async def test_a_predecessor_is_replaced_when_its_successor_is_written(agent: Agent) -> None:
    await late(agent)
    await agent.give(order(), order("d2", watts=2000, start_us=T0 + 100 * S))
    await agent.wait(110, step=1)

    assert agent.outcome() == ("Superseded", "SupersededBy")
    assert agent.report().active_milliseconds == 40_000
    assert agent.report("d2").applied_us == T0 + 100 * S


async def test_an_end_that_others_follow_before_it_is_shown_counts_from_its_write(
    agent: Agent,
) -> None:
    await late(agent, lag_seconds=4.0)
    await agent.give(order(duration_seconds=20))
    await agent.wait(80, step=1)
    await agent.give(order("next", watts=4000, start_us=T0 + 82 * S))
    await agent.wait(4, step=1)
    await agent.give(order("other", mode="LoadLimit", watts=3000, start_us=T0 + 84 * S))
    await agent.wait(10, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().reverted_us == T0 + 80 * S
    assert agent.report().active_milliseconds == 20_000
    assert agent.report("next").applied_us == T0 + 82 * S


async def test_a_chain_of_windows_on_a_late_device_completes(agent: Agent) -> None:
    device = await late(agent)
    for number in range(3):
        start_us = T0 + (60 + 30 * number) * S
        chained = order(
            f"d{number}", watts=1000 + 500 * number, start_us=start_us, duration_seconds=30
        )
        await agent.give(chained)
    await agent.wait(170, step=1)

    for number in range(3):
        assert agent.outcome(f"d{number}") == ("Complete", "WindowEnded")
        assert agent.report(f"d{number}").active_milliseconds == 30_000
    assert len(device.writes) == 5


async def test_a_ramp_on_a_late_device_goes_on_when_a_step_is_shown(agent: Agent) -> None:
    await late(agent)
    await agent.give(asset(max_ramp_watts_per_second=2000), order(duration_seconds=100))
    await agent.wait(190, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.powers == [0, 2000, 4000, 5000, 3000, 1000, 0]
    assert not blames(agent)


async def test_a_restart_while_a_write_is_awaited_blames_nobody(agent: Agent) -> None:
    device = await late(agent)
    await agent.give(order())
    await agent.wait(61, step=1)
    await agent.restart(down_seconds=1)
    await agent.wait(5, step=1)
    assert agent.outcome() == ("Active", "Applied")
    await agent.wait(93, step=1)
    assert device.held.active_power_watts == 0
    await agent.restart(down_seconds=1)
    await agent.wait(10, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().active_milliseconds == pytest.approx(100_000, abs=2_000)
    assert not blames(agent)


async def test_a_revert_before_a_long_restart_counts_from_its_write_on(agent: Agent) -> None:
    slow = ReadBack(patience_seconds=60)
    await late(agent, read_back=slow, lag_seconds=30, begins_anew=False)
    await agent.give(order())
    await agent.wait(161, step=1)
    await agent.restart(down_seconds=20)
    await agent.wait(70, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().active_milliseconds == 100_000


async def test_a_device_that_never_shows_a_start_is_written_so_often_and_no_more(
    agent: Agent,
) -> None:
    agent.device.fail = "ignore"
    await agent.give(order(start_deadline_seconds=3000, late_policy="KeepDuration"))
    await agent.wait(3059, step=1)
    tries = [write for write in agent.device.writes if write.active_power_watts == 5000]
    assert len(tries) == 5
    assert agent.report().phase == "Acked"
    assert "written 5 of at most 5 times" in agent.report().pending_error
    await agent.wait(2, step=1)

    assert agent.outcome() == ("Failed", "ReadBackMismatch")
    assert "written 5 of at most 5 times" in agent.report().message
    assert (agent.report().applied_us, agent.report().evidence) == (0, "")


async def test_a_device_that_shows_a_start_after_its_last_write_holds_it(agent: Agent) -> None:
    agent.device.fail = "ignore"
    await agent.give(order(start_deadline_seconds=300, duration_seconds=400))
    await agent.wait(200, step=1)
    agent.device.held = Setpoints(active_power_watts=5000)
    await agent.wait(6, step=1)

    assert agent.outcome() == ("Active", "Applied")
    assert agent.report().applied_us >= T0 + 200 * S


async def test_a_device_that_never_lets_go_is_written_rarely(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.device.fail = "ignore"
    before = len(agent.device.writes)
    await agent.wait(3600, step=1)

    assert agent.outcome() == ("Failed", "RevertFailed")
    assert len(agent.device.writes) - before == 5 + 5, "five, then one in ten minutes"


async def test_what_a_device_drops_again_and_again_is_written_so_often_and_no_more(
    agent: Agent,
) -> None:
    capability = replace(agent.device.capability, read_back=ReadBack(most_writes=2))
    agent.device.capability = capability
    await agent.give(order())
    await agent.wait(60, step=1)
    for _ in range(40):
        agent.device.held = Setpoints(active_power_watts=0)
        await agent.wait(1)

    tries = [write for write in agent.device.writes if write.active_power_watts == 5000]
    assert len(tries) == 2
    assert agent.outcome() == ("Failed", "SetpointNotHeld")
    assert (
        "dropped the setpoint after 2 writes; 2 are allowed (mostWrites)" in agent.report().message
    )


async def test_a_write_that_is_not_answered_is_asked_for_before_it_is_written_again(
    agent: Agent,
) -> None:
    device = await late(agent)
    await agent.give(order())
    device.fail = "acted"
    await agent.wait(60, step=1)
    device.fail = ""
    await agent.wait(4, step=1)

    assert agent.outcome() == ("Active", "Applied")
    assert [write.active_power_watts for write in device.writes] == [0, 5000]


async def test_a_release_that_a_device_does_not_take_is_called_one(agent: Agent) -> None:
    await agent.start(asset(fallback_active_power_watts=None))
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.device.fail = "ignore"
    await agent.wait(1000, step=1)

    assert agent.outcome() == ("Failed", "RevertFailed")
    assert "released it, the device says that it holds an active power of" in agent.report().message


async def measure(agent: Agent, device: LateDevice, seconds: int) -> None:
    """Let time pass, with a sample of what the device really holds each second."""
    for _ in range(seconds):
        await agent.sampled(float(device.held.active_power_watts or 0), 1)


async def test_what_is_measured_while_a_successor_is_awaited_is_not_its_predecessors(
    agent: Agent,
) -> None:
    slow = ReadBack(patience_seconds=60)
    device = await late(agent, read_back=slow, lag_seconds=40)
    first = order(duration_seconds=600, start_us=T0 + 60 * S)
    await agent.give(first, order("d2", watts=2000, start_us=T0 + 180 * S))
    await measure(agent, device, 300)

    assert agent.outcome() == ("Superseded", "SupersededBy")
    assert agent.report().verified == "True"
    assert agent.report().active_milliseconds == 120_000
    # Since the device showed it, and until its successor was written.
    assert agent.report().delivered_watt_hours == pytest.approx(5000 * 80 / 3600, abs=10)


async def test_a_predecessor_whose_successor_is_not_taken_is_judged_on(agent: Agent) -> None:
    device = await late(agent, lag_seconds=0)
    first = order(duration_seconds=200, start_us=T0 + 60 * S)
    await agent.give(first, order("d2", watts=2000, start_us=T0 + 100 * S))
    await measure(agent, device, 95)
    device.fail = "ignore"
    await measure(agent, device, 120)
    device.fail = ""
    await measure(agent, device, 60)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().verified == "True"


async def test_the_effect_on_a_device_that_shows_late_is_verified(agent: Agent) -> None:
    slow = ReadBack(patience_seconds=60)
    device = await late(agent, read_back=slow, lag_seconds=40)
    await agent.give(order(verify="Required"))
    await measure(agent, device, 230)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().verified == "True"


async def test_a_write_that_is_repeated_for_the_timer_leaves_what_was_shown_before(
    agent: Agent,
) -> None:
    slow = ReadBack(patience_seconds=60, pace_seconds=2)
    device = await late(agent, read_back=slow, lag_seconds=1000, timer_seconds=20)
    await agent.give(order(start_deadline_seconds=50))
    await agent.wait(69.5, step=0.5)
    device.fail = "mute"
    await agent.wait(4, step=0.5)
    assert len(device.writes) == 3, "the fallback, the value, and again for the timer"
    assert agent.report().phase == "Acked"


async def test_what_a_late_device_showed_of_the_step_before_is_not_told_for_long(
    agent: Agent,
) -> None:
    await late(agent, lag_seconds=4)
    await agent.give(asset(max_ramp_watts_per_second=300, fallback_active_power_watts=132))
    await agent.wait(10, step=1)
    await agent.give(order(watts=455))
    await agent.wait(90, step=1)

    assert agent.outcome() == ("Active", "Applied")
    assert (agent.report().applied_watts, agent.report().rounding) == (455, "")
