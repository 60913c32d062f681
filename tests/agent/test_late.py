"""Writes that land after their dispatch was given up, or had ended: undone, counted and told."""

from typing import Any

import pytest
from tests.agent.fakes import T0, Agent, S, asset, order

from derops_agent.asset.inbox import Change, Settled
from derops_agent.ports import Setpoints

LANDED = Setpoints(active_power_watts=5000)


async def give_up(agent: Agent, fail: str = "deaf", **fields: Any) -> None:
    """Have a start whose writes the device answered too late, or not as it should, fail."""
    await agent.give(order(start_deadline_seconds=10, **fields))
    agent.device.fail = fail
    await agent.wait(72, step=1)
    agent.device.fail = ""
    await agent.wait(5, step=1)
    assert agent.report().phase == "Failed"
    assert agent.report().reverted_us
    assert agent.report().applied_us == 0
    assert agent.report().evidence == "", "the device says that it does not hold it"
    assert "may land yet" in agent.report().pending_error


@pytest.mark.parametrize(
    ("fail", "reason"), [("deaf", "DeviceOffline"), ("ignore", "ReadBackMismatch")]
)
async def test_what_lands_after_its_end_was_told_was_applied_and_is_reverted(
    agent: Agent, fail: str, reason: str
) -> None:
    await give_up(agent, fail)
    sent = len(agent.reports)
    agent.device.held, agent.device.fail = LANDED, "local"
    await agent.wait(10, step=1)
    found = agent.report()
    assert (found.phase, found.reason) == ("Failed", reason), "what was told stays"
    assert found.applied_us > T0 + 72 * S
    assert found.reverted_us == 0
    assert found.evidence == "ReadBack"
    agent.device.fail = ""
    await agent.wait(61, step=1)

    undone = agent.report()
    assert agent.device.held.active_power_watts == 0
    assert (undone.phase, undone.reason) == ("Failed", reason)
    assert undone.reverted_us > found.applied_us
    held_milliseconds = (undone.reverted_us - undone.applied_us) // 1000
    assert undone.active_milliseconds == held_milliseconds >= 5000
    assert len(agent.reports) == sent + 2


async def test_what_is_settled_before_its_write_can_land_no_more_is_remembered_until_then(
    agent: Agent,
) -> None:
    await give_up(agent)
    await agent.give(Settled(uid="d1"))
    await agent.acknowledge_all()
    await agent.wait(10, step=1)
    assert "d1" in agent.controller.journal
    agent.device.held = LANDED
    await agent.wait(6, step=1)
    assert agent.report().applied_us
    assert agent.report().reverted_us
    await agent.wait(130, step=1)
    await agent.acknowledge_all()
    await agent.wait(2, step=1)

    assert "d1" not in agent.controller.journal


async def test_what_did_not_land_in_time_is_settled_as_not_applied(agent: Agent) -> None:
    await give_up(agent)
    await agent.give(Settled(uid="d1"))
    await agent.wait(130, step=1)
    assert (agent.report().applied_us, agent.report().evidence) == (0, "")
    await agent.acknowledge_all()
    await agent.wait(2, step=1)

    assert "d1" not in agent.controller.journal


async def test_a_device_is_looked_at_though_nothing_else_is_due(agent: Agent) -> None:
    await give_up(agent)

    assert agent.controller.delay_seconds() <= 5


async def test_a_device_that_says_nothing_while_it_may_land_leaves_it_unknown(
    agent: Agent,
) -> None:
    await give_up(agent)
    agent.device.fail = "timeout"
    await agent.wait(20, step=1)
    agent.device.fail = ""
    await agent.wait(120, step=1)

    assert agent.outcome() == ("Failed", "DeviceOffline")
    assert (agent.report().applied_us, agent.report().evidence) == (0, "Unanswered")
    assert agent.report().pending_error == ""


async def test_what_lands_after_a_restart_is_undone_and_told(agent: Agent) -> None:
    await give_up(agent)
    await agent.restart(down_seconds=3)
    await agent.wait(3, step=1)
    agent.device.held = LANDED
    await agent.wait(7, step=1)

    assert agent.device.held.active_power_watts == 0
    assert agent.outcome() == ("Failed", "DeviceOffline")
    assert agent.report().reverted_us >= agent.report().applied_us > T0


async def test_what_lands_while_the_disk_is_full_is_undone_at_once_and_told_later(
    agent: Agent,
) -> None:
    await give_up(agent)
    agent.refuse_writes(refused=True)
    agent.device.held = LANDED
    agent.controller.take(Change(part=order("later", start_us=T0 + 600 * S)))
    for _ in range(8):
        agent.clock.pass_seconds(1)
        await agent.controller.turn()
    assert agent.report().applied_us == 0, "nothing is told that is not stored"
    assert agent.device.held.active_power_watts == 0
    agent.refuse_writes(refused=False)
    await agent.controller.turn()

    assert agent.report().reverted_us >= agent.report().applied_us > T0


async def test_what_was_to_be_written_before_a_restart_and_is_withdrawn_after_it_is_not_unapplied(
    agent: Agent,
) -> None:
    await agent.give(order())
    agent.device.fail = "timeout"
    await agent.wait(60)
    agent.device.held, agent.device.fail = Setpoints(), ""  # its own timer, or somebody on site
    await agent.restart(down_seconds=5, reboot=True)
    await agent.give(Settled(uid="d1"))
    await agent.wait(5, step=1)

    assert agent.outcome() == ("Cancelled", "CancelledBeforeStart")
    assert agent.report().applied_us == 0
    assert agent.report().evidence == "Unanswered"


async def test_a_window_that_was_held_and_lands_again_after_its_end_counts_both(
    agent: Agent,
) -> None:
    await agent.give(order(duration_seconds=20))
    agent.device.fail = "deaf"
    await agent.wait(60)
    agent.device.fail = ""
    await agent.wait(22, step=1)
    done = agent.report()
    assert (done.phase, done.evidence) == ("Complete", "ReadBack")
    assert "may land yet" in done.pending_error
    agent.device.held = LANDED
    agent.device.fail = "local"
    await agent.wait(15, step=1)
    assert agent.report().reverted_us == 0
    agent.device.fail = ""
    await agent.wait(61, step=1)

    again = agent.report()
    assert (again.phase, again.reason) == ("Complete", "WindowEnded")
    assert (again.applied_us, again.planned_end_us) == (done.applied_us, done.planned_end_us)
    assert again.reverted_us > done.reverted_us
    assert again.active_milliseconds >= done.active_milliseconds + 10_000


async def test_what_lands_is_found_before_the_next_start_writes_over_it(agent: Agent) -> None:
    await give_up(agent)
    agent.clock.pass_seconds(0.2)
    agent.device.held = LANDED
    await agent.give(order("d2", watts=2000, start_us=agent.clock.wall_us))
    await agent.wait(0.1)

    assert agent.outcome("d2") == ("Active", "Applied")
    assert agent.device.held.active_power_watts == 2000
    assert agent.report("d1").applied_us


async def test_what_a_running_dispatch_wants_is_not_taken_for_what_landed_late(
    agent: Agent,
) -> None:
    await give_up(agent)
    await agent.give(order("d2", start_us=agent.clock.wall_us, duration_seconds=10))
    await agent.wait(20, step=1)

    assert agent.outcome("d2") == ("Complete", "WindowEnded")
    assert agent.report("d1").applied_us == 0


async def test_what_takes_the_place_of_a_running_one_is_undone_and_the_other_written_again(
    agent: Agent,
) -> None:
    await give_up(agent)
    await agent.give(order("d2", watts=2000, start_us=agent.clock.wall_us, duration_seconds=60))
    await agent.wait(3, step=1)
    agent.device.held = LANDED
    await agent.wait(7, step=1)

    assert agent.device.held.active_power_watts == 2000
    assert agent.report("d1").applied_us
    assert agent.report("d1").reverted_us
    assert agent.outcome("d2") == ("Active", "Applied")
    assert agent.controller.journal["d2"].interruptions == 1


async def test_a_step_of_a_ramp_is_not_taken_for_what_landed_late(agent: Agent) -> None:
    await agent.give(asset(max_ramp_watts_per_second=1000))
    await give_up(agent, watts=1000)
    await agent.give(order("d2", start_us=agent.clock.wall_us, duration_seconds=20))
    await agent.wait(40, step=0.5)

    assert agent.outcome("d2") == ("Complete", "WindowEnded")
    assert 1000 in agent.powers
    assert agent.report("d1").applied_us == 0


async def test_a_step_before_a_restart_is_not_taken_for_what_landed_late(agent: Agent) -> None:
    await agent.give(asset(max_ramp_watts_per_second=1000))
    await give_up(agent, watts=1000)
    await agent.give(order("d2", start_us=agent.clock.wall_us, duration_seconds=20))
    while agent.device.held.active_power_watts != 1000:
        await agent.wait(0.5, step=0.5)
    await agent.restart(down_seconds=3)
    await agent.wait(40, step=0.5)

    assert agent.outcome("d2") == ("Complete", "WindowEnded")
    assert agent.report("d1").applied_us == 0


async def test_what_lands_over_one_that_has_arrived_on_its_ramp_is_found(agent: Agent) -> None:
    await agent.give(asset(max_ramp_watts_per_second=1000))
    await give_up(agent)
    await agent.give(order("d2", watts=2000, start_us=agent.clock.wall_us))
    await agent.wait(10, step=1)
    agent.device.held = LANDED
    await agent.wait(10, step=1)

    assert agent.device.held.active_power_watts == 2000
    assert agent.report("d1").reverted_us >= agent.report("d1").applied_us > T0
    assert agent.outcome("d2") == ("Active", "Applied")


async def test_what_lands_between_a_write_and_the_question_after_it_is_found(
    agent: Agent,
) -> None:
    await give_up(agent)
    write, landed = agent.device.write, [LANDED]

    async def overtaken(setpoints: Setpoints, reversion: Any = None) -> int | None:
        await write(setpoints)
        agent.device.held = landed.pop() if landed else agent.device.held
        return None

    agent.device.write = overtaken  # type: ignore[method-assign]
    await agent.give(order("d2", watts=2000, start_us=agent.clock.wall_us))
    await agent.wait(3, step=0.25)

    assert agent.outcome("d2") == ("Active", "Applied")
    assert agent.report("d1").reverted_us >= agent.report("d1").applied_us > T0


async def test_what_was_written_again_in_its_window_and_lands_after_its_end_is_counted(
    agent: Agent,
) -> None:
    await agent.give(order(duration_seconds=20))
    await agent.wait(62, step=1)
    agent.device.held, agent.device.fail = Setpoints(active_power_watts=0), "deaf"
    await agent.wait(8, step=1)
    agent.device.fail = ""
    agent.device.held = LANDED
    await agent.wait(12, step=1)
    done = agent.report()
    assert done.phase == "Complete"
    agent.device.held = LANDED
    await agent.wait(6, step=1)

    assert agent.device.held.active_power_watts == 0
    assert agent.report().reverted_us > done.reverted_us
