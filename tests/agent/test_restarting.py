"""kill -9 at every step: what the ledger has is enough to leave the device right and tell truly."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.agent.fakes import T0, Agent, S, asset, order

from derops.errors import SchemaTooNewError
from derops.sqlite import Schema
from derops_agent.asset.ledger import Ledger
from derops_agent.ports import Setpoints
from derops_agent.storage import open_database


async def test_what_the_timer_of_the_device_ended_meanwhile_counts_until_then(
    agent: Agent,
) -> None:
    agent.device.timer_seconds = 10
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.device.held = Setpoints(active_power_watts=0)
    await agent.restart(down_seconds=20)
    await agent.wait(80, step=1)
    report = agent.report()

    assert (report.phase, report.interruptions) == ("Complete", 1)
    # From 60 s to 80 s, ten after the last refresh, and from 90 s to 160 s.
    assert report.active_milliseconds == 90_000


async def test_an_accepted_order_survives_and_starts_on_time(agent: Agent) -> None:
    await agent.give(order())
    await agent.restart(down_seconds=30)
    await agent.wait(30)

    assert agent.outcome() == ("Active", "Applied")


@pytest.mark.parametrize(
    ("down_seconds", "outcome"), [(109, ("Active", "Applied")), (111, ("Failed", "AgentRestarted"))]
)
async def test_a_start_passed_while_down_runs_only_before_its_deadline(
    agent: Agent, down_seconds: float, outcome: tuple[str, str]
) -> None:
    await agent.give(order())
    await agent.restart(down_seconds=down_seconds)

    assert agent.outcome() == outcome


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("down_seconds", [1, 55])
async def test_death_between_intent_and_outcome_is_harmless(
    agent: Agent, written: bool, down_seconds: float
) -> None:
    await agent.give(order())
    agent.device.fail = "timeout"
    await agent.wait(60)
    assert agent.ledger.unsettled()[0].execution.stage == "Applying"
    if written:
        agent.device.held = Setpoints(active_power_watts=5000)
    agent.device.fail = ""
    await agent.restart(down_seconds=down_seconds)

    if down_seconds == 1 or written:
        assert agent.outcome() == ("Active", "Applied")
        await agent.wait(200, step=10)
    assert agent.report().phase in ("Complete", "Failed")
    assert agent.device.held.active_power_watts == 0


async def test_an_open_window_resumes_and_counts_the_interruption(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=10)
    await agent.restart(down_seconds=20)
    await agent.wait(70)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().interruptions == 1
    assert agent.report().active_milliseconds == 100_000
    assert agent.powers == [0, 5000, 0]


async def test_a_device_that_lost_the_setpoint_was_not_active_meanwhile(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.device.held = Setpoints()
    await agent.restart(down_seconds=40)
    await agent.wait(50)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().active_milliseconds == pytest.approx(60_000, abs=11_000)


async def test_on_restart_revert_reverts(tmp_path: Path) -> None:
    agent = await Agent(tmp_path).start(asset(on_restart="Revert"))
    await agent.give(order())
    await agent.wait(70)
    await agent.restart(down_seconds=1)

    assert agent.outcome() == ("Failed", "AgentRestarted")
    assert agent.device.held.active_power_watts == 0
    agent.ledger.close()


@pytest.mark.parametrize(
    ("late", "outcome"), [(9, ("Complete", "WindowEnded")), (11, ("Failed", "RevertedLate"))]
)
@pytest.mark.parametrize("reboot", [False, True])
async def test_a_window_that_ended_while_down_is_told_truly(
    agent: Agent, late: int, outcome: tuple[str, str], reboot: bool
) -> None:
    await agent.give(order())
    await agent.wait(60)
    agent.clock.ntp = True
    await agent.restart(down_seconds=100 + late, reboot=reboot)

    assert agent.outcome() == outcome
    assert agent.device.held.active_power_watts == 0
    assert agent.report().active_milliseconds == (100 + late) * 1000


async def test_a_revert_that_was_cut_off_is_finished(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(60)
    agent.device.fail = "timeout"
    await agent.give(order(cancelled=True, generation=2))
    agent.device.fail = ""
    await agent.restart(down_seconds=5)

    assert agent.outcome() == ("Cancelled", "CancelledWhileActive")
    assert agent.device.held.active_power_watts == 0


async def test_after_a_boot_nothing_resumes_until_the_clock_is_confirmed(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70)
    await agent.restart(down_seconds=10, reboot=True)
    assert agent.device.held.active_power_watts == 0
    agent.controller.measure_offset(20)
    await agent.wait(1)

    assert agent.device.held.active_power_watts == 5000
    await agent.wait(100, step=1)
    assert agent.outcome() == ("Complete", "WindowEnded")


async def test_what_the_device_held_until_an_unbelieved_clock_ended_it_counts(
    agent: Agent,
) -> None:
    await agent.give(order())
    await agent.wait(60)
    await agent.restart(down_seconds=70, reboot=True)
    assert agent.device.held.active_power_watts == 0
    await agent.wait(5, step=1)
    agent.controller.measure_offset(20)
    await agent.wait(30, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().active_milliseconds == (70 + 24) * 1000


@pytest.mark.parametrize("off_seconds", [-86_400, 86_400])
async def test_whether_a_revert_was_late_is_told_once_the_clock_is_believed(
    agent: Agent, off_seconds: int
) -> None:
    await agent.give(order())
    await agent.wait(60)
    agent.device.fail = "local"
    await agent.wait(105, step=1)
    agent.device.fail = ""
    agent.clock.wall_us += off_seconds * S
    await agent.restart(down_seconds=30, reboot=True)
    assert agent.device.held.active_power_watts == 0
    await agent.wait(5, step=1)
    assert agent.report().phase == "Active"

    agent.clock.wall_us -= off_seconds * S
    agent.controller.measure_offset(20)
    await agent.wait(1)
    assert agent.outcome() == ("Failed", "RevertedLate")
    assert agent.report().active_milliseconds == pytest.approx(135_000, abs=1_000)


@pytest.mark.parametrize("off_seconds", [-86_400, 86_400])
async def test_a_clock_that_is_not_believed_does_not_tell_for_how_long_a_device_held_it(
    agent: Agent, off_seconds: int
) -> None:
    await agent.give(order())
    await agent.wait(60)
    agent.device.fail = "local"
    await agent.wait(30, step=1)
    await agent.give(order(cancelled=True, generation=2))
    await agent.wait(5, step=1)
    agent.device.fail = ""
    agent.clock.wall_us += off_seconds * S
    await agent.restart(down_seconds=30, reboot=True)

    assert agent.outcome() == ("Cancelled", "CancelledWhileActive")
    # How long the agent was off is not known; until then it was 35 s.
    assert agent.report().active_milliseconds == pytest.approx(35_000, abs=5_000)


async def test_a_device_that_was_at_its_fallback_before_the_end_was_not_reverted_late(
    agent: Agent,
) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    await agent.restart(down_seconds=10, reboot=True)
    assert agent.device.held.active_power_watts == 0
    await agent.wait(200, step=1)
    agent.controller.measure_offset(20)
    await agent.wait(1)

    report = agent.report()
    assert (report.phase, report.reason) == ("Failed", "AgentRestarted")
    assert report.active_milliseconds == pytest.approx(20_000, abs=1_000)
    assert "held it 80 s before the end" in report.message


async def test_what_was_measured_is_stored_also_where_a_device_does_not_say_what_it_holds(
    agent: Agent,
) -> None:
    async def unreadable() -> Setpoints:
        raise TimeoutError

    agent.device.read_setpoints = unreadable  # type: ignore[method-assign]
    await agent.give(order())
    await agent.wait(60)
    await agent.sampled(5000, 60)
    await agent.restart()
    await agent.sampled(5000, 41)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().within_tolerance_milliseconds >= 85_000


class PowerCutError(BaseException):
    """The process ends in the middle of a write."""


@contextmanager
def power_cut_in_a_write(agent: Agent) -> Iterator[None]:
    """Have the device take the next write, and the process end before it hears of that."""
    write = agent.device.write

    async def cut(setpoints: Setpoints, reversion: object = None) -> int | None:
        await write(setpoints)
        raise PowerCutError

    agent.device.write = cut  # type: ignore[method-assign]
    with pytest.raises(PowerCutError):
        yield
    agent.device.write = write  # type: ignore[method-assign]


@pytest.mark.parametrize("kept", [True, False])
async def test_a_write_in_which_the_power_went_may_have_been_applied(
    agent: Agent, kept: bool
) -> None:
    await agent.give(order())
    with power_cut_in_a_write(agent):
        await agent.wait(60)
    if not kept:
        agent.device.held = Setpoints()
    await agent.restart(down_seconds=120)

    report = agent.report()
    assert agent.outcome() == ("Failed", "RevertedLate" if kept else "AgentRestarted")
    assert agent.device.held.active_power_watts == 0
    if kept:
        assert report.evidence == "ReadBack"
        assert report.applied_us == pytest.approx(T0 + 60 * S, abs=S)
        assert report.active_milliseconds == pytest.approx(120_000, abs=1_000)
    else:
        assert (report.evidence, report.applied_us) == ("Unanswered", 0)


async def test_what_a_device_took_as_the_agent_was_killed_counts_and_ends_from_then(
    agent: Agent,
) -> None:
    await agent.give(order(late_policy="KeepDuration"))
    with power_cut_in_a_write(agent):
        await agent.restart(down_seconds=80)
    began_us = agent.clock.wall_us
    await agent.restart(down_seconds=40)
    assert agent.outcome() == ("Active", "Applied")
    await agent.wait(70, step=1)

    report = agent.report()
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert report.applied_us == pytest.approx(began_us, abs=S)
    assert report.active_milliseconds == pytest.approx(100_000, abs=1_500)


async def test_nothing_resumes_before_the_last_stored_time(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70)
    agent.clock.wall_us -= 3600 * S
    agent.clock.ntp = True
    await agent.restart(down_seconds=1, reboot=True)

    assert agent.device.held.active_power_watts == 0


async def test_the_unsettled_reports_are_there_again_in_full(agent: Agent) -> None:
    await agent.give(order("a"), order("b", start_us=T0 + 900 * S))
    await agent.wait(165, step=1)
    before = {r.dispatch_uid: r for r in agent.controller.journal.reports()}
    await agent.restart()

    assert {r.dispatch_uid: r for r in agent.controller.journal.reports()} == before
    assert before["a"].phase == "Complete"


async def test_a_lost_ledger_releases_a_stray_setpoint_but_no_limit(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.device.held = Setpoints(active_power_watts=5000, max_load_watts=100)
    await agent.controller.boot()

    assert agent.device.held == Setpoints(max_load_watts=100)
    agent.ledger.close()


@pytest.mark.parametrize("fail", ["timeout", "local"])
async def test_a_stray_setpoint_is_released_however_long_it_takes(
    tmp_path: Path, fail: str
) -> None:
    agent = Agent(tmp_path)
    agent.device.held, agent.device.fail = Setpoints(active_power_watts=5000), fail
    await agent.controller.boot()
    await agent.wait(100, step=1)
    assert agent.device.held == Setpoints(active_power_watts=5000)
    agent.device.fail = ""
    agent.clock.pass_seconds(agent.controller.delay_seconds())
    assert agent.controller.delay_seconds() < 61
    await agent.controller.turn()

    assert agent.device.held == Setpoints()
    agent.ledger.close()


def test_epochs_rise_across_restarts_and_clocks_that_went_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    first, second = ledger.next_epoch(1000), ledger.next_epoch(10)
    ledger.close()
    again = Ledger(tmp_path / "ledger.db")

    assert (first, second, again.next_epoch(0)) == (1000, 1001, 1002)
    assert again.next_epoch(0, above=5000) == 5001
    assert again.ledger_id == ledger.ledger_id
    again.close()


def test_a_ledger_of_a_newer_agent_is_not_read(tmp_path: Path) -> None:
    later = Schema(99, readable_from=99)
    open_database(tmp_path / "ledger.db", "CREATE TABLE t (x)", later).close()

    with pytest.raises(SchemaTooNewError):
        Ledger(tmp_path / "ledger.db")


async def test_while_the_clock_is_not_believed_what_it_calls_due_does_not_keep_the_agent_busy(
    agent: Agent,
) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    await agent.restart(down_seconds=200, reboot=True)

    assert agent.outcome() == ("Active", "Applied")
    assert agent.controller.delay_seconds() == 1


@pytest.mark.parametrize("apart_watts", [1, 50, 1000])
async def test_a_start_that_was_not_written_is_not_taken_for_its_predecessor(
    agent: Agent, apart_watts: int
) -> None:
    """The power went between the intent to start and its write; the device held on to the other."""
    await agent.give(order(duration_seconds=600))
    await agent.wait(70)
    begins: dict[str, Any] = {"start_us": agent.clock.wall_us + 10 * S, "created_us": T0 + S}
    await agent.give(order("d2", watts=5000 - apart_watts, duration_seconds=20, **begins))

    async def cut(setpoints: Setpoints, reversion: object = None) -> int | None:
        raise PowerCutError

    write, agent.device.write = agent.device.write, cut  # type: ignore[method-assign]
    with pytest.raises(PowerCutError):
        await agent.wait(10)
    agent.device.write = write  # type: ignore[method-assign]
    await agent.restart(down_seconds=40)
    await agent.wait(5, step=1)

    report = agent.report("d2")
    assert agent.outcome("d2") == ("Failed", "AgentRestarted")
    assert (report.evidence, report.applied_us, report.active_milliseconds) == ("", 0, 0)
    assert agent.outcome("d1") == ("Active", "Applied")
