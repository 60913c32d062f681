"""What becomes of one order is never told of another; what holds one up is said as what it is."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.agent.fakes import T0, Agent, FakeDevice, S, asset, order

from derops.errors import DeviceRefusedError
from derops_agent.ports import Reversion, Setpoints


@dataclass
class FixedRest(FakeDevice):
    """Holds what it is told, and says of its fallback of 0 W that it is another value."""

    async def read_setpoints(self) -> Setpoints:
        held = await super().read_setpoints()
        return held if held.active_power_watts else replace(held, active_power_watts=1234)


async def stuck(agent: Agent, seconds: float = 300) -> FixedRest:
    """Have a device whose revert never reads back, and that was told to long ago."""
    device = FixedRest()
    await agent.use(device)
    await agent.start()
    first = order("first", start_us=T0 + S, duration_seconds=600)
    await agent.give(first, order("second", watts=4000, start_us=T0 + 700 * S))
    await agent.wait(10, step=1)
    gone = order("first", start_us=T0 + S, duration_seconds=600, cancelled=True, generation=2)
    await agent.give(gone)
    await agent.wait(seconds, step=1)
    return device


async def test_a_new_order_does_not_wait_for_a_revert_that_is_stuck(agent: Agent) -> None:
    device = await stuck(agent)
    now_us = agent.clock.wall_us
    await agent.give(order("third", watts=3000, start_us=now_us, duration_seconds=30))

    assert device.held.active_power_watts == 3000
    assert agent.outcome("third") == ("Active", "Applied")


async def test_a_new_order_of_the_value_that_is_stuck_is_written_at_once(agent: Agent) -> None:
    device = await stuck(agent)
    writes, now_us = len(device.writes), agent.clock.wall_us
    await agent.give(order("third", watts=0, start_us=now_us, start_deadline_seconds=4))
    assert len(device.writes) == writes + 1
    await agent.wait(12, step=1)

    assert agent.outcome("third") == ("Failed", "ReadBackMismatch")


async def test_a_window_that_is_over_is_told_within_seconds_though_a_revert_is_stuck(
    agent: Agent,
) -> None:
    device = await stuck(agent)
    now_us = agent.clock.wall_us
    device.fail = "ignore"
    await agent.give(
        order("third", watts=3000, start_us=now_us, duration_seconds=20),
        order("fourth", watts=2000, start_us=now_us + 25 * S, duration_seconds=20),
    )
    await agent.wait(36, step=1)
    assert agent.report("third").phase == "Failed"
    await agent.wait(25, step=1)

    assert agent.report("fourth").phase == "Failed"
    reasons = {step.reason for report in agent.reports for step in report.transitions}
    assert "AgentRestarted" not in reasons


async def test_what_was_never_on_the_device_has_nothing_to_revert(agent: Agent) -> None:
    await agent.give(order("a"))
    await agent.wait(70, step=1)
    agent.device.fail = "ignore"
    await agent.wait(150, step=1)
    assert agent.outcome("a") == ("Failed", "RevertFailed")
    now_us = agent.clock.wall_us
    await agent.give(order("b", watts=2000, start_us=now_us))
    await agent.wait(8, step=1)
    await agent.give(order("b", watts=2000, start_us=now_us, cancelled=True, generation=2))
    await agent.wait(30, step=1)

    assert agent.device.held.active_power_watts == 5000
    assert agent.outcome("b") == ("Cancelled", "CancelledBeforeStart")
    assert agent.report("b").applied_us == 0
    assert agent.report("a").reverted_us == 0


@pytest.mark.parametrize("gap_seconds", [0, 5])
@pytest.mark.parametrize("fault", ["refused", "ignored"])
async def test_a_predecessor_that_ended_on_time_is_complete_whatever_becomes_of_its_successor(
    agent: Agent, fault: str, gap_seconds: int
) -> None:
    write = agent.device.write

    async def fails(setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        if setpoints.active_power_watts == 3000 and fault == "refused":
            raise DeviceRefusedError("not 3000 W")
        if setpoints.active_power_watts != 3000:
            return await write(setpoints, reversion)
        agent.device.writes.append(setpoints)
        return None

    agent.device.write = fails  # type: ignore[method-assign]
    start_us = T0 + (160 + gap_seconds) * S
    await agent.give(order("a"), order("b", watts=3000, start_us=start_us))
    await agent.wait(240, step=1)

    a, b = agent.report("a"), agent.report("b")
    assert agent.outcome("a") == ("Complete", "WindowEnded")
    held_seconds = 100 + gap_seconds + (5 if fault == "ignored" else 0)
    assert a.active_milliseconds == pytest.approx(held_seconds * 1000, abs=1100)
    assert b.reason == ("DeviceWriteFailed" if fault == "refused" else "ReadBackMismatch")
    assert (b.applied_us, b.active_milliseconds) == (0, 0)
    tries = [each for each in agent.device.writes if each.active_power_watts == 3000]
    assert len(tries) <= 5


async def test_a_device_that_keeps_a_value_that_nobody_could_revert_is_told_of_its_dispatch(
    agent: Agent,
) -> None:
    await agent.give(order("a"), order("b", watts=3000, start_us=T0 + 160 * S))
    await agent.wait(159, step=1)
    agent.device.fail = "ignore"
    await agent.wait(100, step=1)

    assert agent.outcome("a") == ("Failed", "RevertFailed")
    assert agent.outcome("b") == ("Failed", "ReadBackMismatch")
    assert agent.report("b").applied_us == 0


async def test_of_two_starts_that_are_refused_at_once_each_is_judged_alone(agent: Agent) -> None:
    write = agent.device.write

    async def no_limits(setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        if setpoints.max_generation_watts is not None:
            raise DeviceRefusedError("no limits here")
        return await write(setpoints, reversion)

    agent.device.write = no_limits  # type: ignore[method-assign]
    await agent.give(order("a"), order("b", mode="GenerationLimit", watts=3000))
    await agent.give(order("c", start_us=T0 + 10 * S, watts=1000, duration_seconds=50))
    await agent.wait(65, step=1)

    assert agent.outcome("a") == ("Active", "Applied")
    assert agent.outcome("b") == ("Failed", "DeviceWriteFailed")
    assert agent.outcome("c") == ("Complete", "WindowEnded")


async def test_a_stuck_revert_of_one_mode_does_not_keep_the_timer_of_another_from_being_set(
    agent: Agent,
) -> None:
    write = agent.device.write

    async def keeps_limit(setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        kept = agent.device.held.max_generation_watts
        armed_seconds = await write(setpoints, reversion)
        if setpoints.max_generation_watts is None:
            agent.device.held = replace(setpoints, max_generation_watts=kept)
        return armed_seconds

    agent.device.write = keeps_limit  # type: ignore[method-assign]
    agent.device.timer_seconds = 40
    limit = order("limit", mode="GenerationLimit", watts=3000, duration_seconds=20)
    await agent.give(limit, order("power", duration_seconds=600))
    await agent.wait(90, step=1)
    for _ in range(300):
        before = len(agent.device.writes)
        for _ in range(30):
            await agent.wait(1)
        assert len(agent.device.writes) > before, "the timer would have run out"
        if agent.clock.wall_us > T0 + 600 * S:
            break

    assert agent.outcome("limit") == ("Failed", "RevertFailed")
    assert agent.outcome("power") == ("Active", "Applied")


async def test_a_start_that_a_restart_kept_from_being_made_says_so(agent: Agent) -> None:
    await agent.give(order())
    await agent.restart(down_seconds=115)
    await agent.wait(1)

    assert agent.outcome() == ("Failed", "AgentRestarted")


async def test_a_clock_that_is_set_after_a_restart_is_no_restart(agent: Agent) -> None:
    await agent.give(order())
    await agent.restart(down_seconds=1)
    await agent.wait(5, step=1)
    agent.clock.wall_us += 600 * S
    await agent.wait(1)

    assert agent.outcome() == ("Failed", "StartDeadlineExceeded")
    assert "clock was set forward by 600 s" in agent.report().message


async def test_a_start_that_a_full_disk_kept_from_being_made_says_so(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(55, step=1)
    agent.refuse_writes(refused=True)
    for _ in range(60):
        agent.clock.pass_seconds(1)
        await agent.controller.turn()
    agent.refuse_writes(refused=False)
    await agent.controller.turn()

    assert agent.outcome() == ("Failed", "StartDeadlineExceeded")
    assert "the agent could store nothing for" in agent.report().message


async def test_a_start_that_a_stronger_one_keeps_from_being_made_says_so(agent: Agent) -> None:
    agent.device.fail = "timeout"
    strong = order("strong", watts=1000, primacy=1, start_deadline_seconds=90)
    await agent.give(strong, order("weak", start_us=T0 + 61 * S, start_deadline_seconds=10))
    await agent.wait(65, step=1)
    assert "dispatch strong goes first" in agent.report("weak").pending_error
    await agent.wait(10, step=1)

    assert agent.outcome("weak") == ("Failed", "StartDeadlineExceeded")
    assert "dispatch strong goes first" in agent.report("weak").message


async def test_a_pause_between_writes_is_kept_beside_a_stuck_revert(agent: Agent) -> None:
    device = await stuck(agent)
    await agent.give(asset(min_seconds_between_writes=3600))
    await agent.give(order("third", watts=3000, start_us=agent.clock.wall_us))

    assert agent.outcome("third") == ("Rejected", "RateLimited")
    assert device.held.active_power_watts == 0


async def test_a_device_that_answers_that_it_failed_is_not_called_offline(agent: Agent) -> None:
    agent.device.fail = "broken"
    await agent.give(order())
    await agent.wait(115, step=1)

    assert agent.outcome() == ("Failed", "ReadBackMismatch")
    assert "exception 4; wrote an active power of 5000 W" in agent.report().message


def told(agent: Agent) -> tuple[str, bool]:
    facts = agent.controller.device_facts()
    assert facts is not None
    return facts.fallback_problem, facts.fallback_not_taken


@pytest.mark.parametrize("fault", ["ignore", "broken"])
async def test_a_device_that_is_not_at_its_fallback_is_told_though_nothing_is_ordered(
    agent: Agent, fault: str
) -> None:
    agent.controller.take(await agent.device.sample())
    await agent.wait(1)
    assert told(agent) == ("", False)
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.device.fail = fault
    await agent.wait(89, step=1)
    assert told(agent) == ("", False), "the order holds it"
    await agent.wait(10, step=1)
    problem, not_taken = told(agent)
    assert "wrote an active power of 0 W, the device says that it holds" in problem
    assert not_taken

    agent.device.fail = ""
    await agent.wait(60, step=1)
    assert told(agent) == ("", False)


async def test_a_device_that_refuses_its_fallback_from_the_start_is_told(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.device.held = Setpoints(active_power_watts=3000)
    agent.device.fail = "local"
    await agent.start(asset())
    agent.controller.take(await agent.device.sample())
    await agent.wait(10, step=1)

    assert told(agent) == ("local control", True)
    agent.ledger.close()
