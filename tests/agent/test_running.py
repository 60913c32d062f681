"""The life of an execution on time: apply, end, cancel, supersede, fall back, verify."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.agent.fakes import T0, Agent, S, asset, order

from derops.lifecycle import MESSAGE_LIMIT
from derops_agent.asset.inbox import Settled
from derops_agent.asset.ledger import Alive
from derops_agent.ports import Reading, Setpoints


async def test_a_window_is_applied_on_time_and_reverted_on_time(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(59.9)
    assert agent.powers == [0]
    await agent.wait(0.1)
    assert agent.outcome() == ("Active", "Applied")
    await agent.wait(99.9)
    assert agent.powers == [0, 5000]
    await agent.wait(0.1)

    report = agent.report()
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.powers == [0, 5000, 0]
    assert [step.phase for step in report.transitions] == ["Acked", "Active", "Complete"]
    assert [step.at_us for step in report.transitions] == [T0, T0 + 60 * S, T0 + 160 * S]
    assert report.active_milliseconds == 100_000
    assert (report.applied_us, report.reverted_us) == (T0 + 60 * S, T0 + 160 * S)
    assert report.applied_watts == 5000


async def test_keep_duration_moves_the_end_of_a_late_start(agent: Agent) -> None:
    agent.device.fail = "timeout"
    await agent.give(order(late_policy="KeepDuration"))
    await agent.wait(80, step=1)
    agent.device.fail = ""
    await agent.wait(99, step=1)
    assert agent.report().phase == "Active"
    await agent.wait(3, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.report().active_milliseconds == pytest.approx(100_000, abs=1000)


async def test_a_clock_set_back_does_not_prolong_the_window(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(60)
    agent.clock.wall_us -= 3600 * S
    await agent.wait(100)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.device.held.active_power_watts == 0
    assert agent.report().active_milliseconds == 100_000


async def test_cancel_before_the_start_never_touches_the_device(agent: Agent) -> None:
    await agent.give(order())
    await agent.give(order(cancelled=True, generation=2))
    await agent.wait(200, step=10)

    assert agent.outcome() == ("Cancelled", "CancelledBeforeStart")
    assert agent.report().observed_generation == 2
    assert agent.powers == [0]


async def test_an_older_order_that_comes_late_changes_nothing(agent: Agent) -> None:
    await agent.give(order(generation=3))
    await agent.give(order(generation=2, cancelled=True))

    assert agent.outcome() == ("Acked", "Accepted")
    assert agent.report().observed_generation == 3


async def test_cancel_while_active_reverts_first(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70)
    agent.device.fail = "timeout"
    await agent.give(order(cancelled=True, generation=2))
    assert agent.report().phase == "Active"
    agent.device.fail = ""
    await agent.wait(1)

    assert agent.outcome() == ("Cancelled", "CancelledWhileActive")
    assert agent.powers == [0, 5000, 0]


async def test_a_failing_revert_is_told_and_retried_until_it_works(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(60)
    agent.device.fail = "local"
    await agent.wait(109, step=1)
    assert agent.report().phase == "Active"
    await agent.wait(12, step=1)
    told = agent.report()
    assert agent.outcome() == ("Failed", "RevertFailed")
    assert told.reverted_us == 0
    assert told.active_milliseconds == pytest.approx(115_000, abs=5_000)
    assert "local control" in told.message
    await agent.wait(579, step=1)
    agent.device.fail = ""
    await agent.wait(61, step=1)

    assert agent.outcome() == ("Failed", "RevertFailed")
    assert agent.report().reverted_us > told.transitions[-1].at_us
    assert agent.device.held.active_power_watts == 0
    assert agent.report().active_milliseconds >= 700_000


async def test_what_failed_before_its_revert_failed_keeps_its_reason(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(60)
    agent.device.fail = "local"
    await agent.give(Reading(at_us=agent.clock.wall_us, values={}, local_control=True))
    await agent.wait(20, step=1)

    assert agent.outcome() == ("Failed", "LocalOverride")
    assert agent.report().reverted_us == 0
    agent.device.fail = ""
    await agent.wait(61, step=1)
    assert agent.outcome() == ("Failed", "LocalOverride")
    assert agent.report().reverted_us


async def test_a_withdrawn_setpoint_that_stays_has_failed(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(60)
    agent.device.fail = "ignore"
    await agent.give(order(cancelled=True, generation=2))
    await agent.wait(20, step=1)
    assert agent.outcome() == ("Failed", "RevertFailed")
    await agent.restart(down_seconds=5)
    agent.device.fail = ""
    await agent.wait(61, step=1)

    assert agent.outcome() == ("Failed", "RevertFailed")
    assert agent.device.held.active_power_watts == 0
    assert agent.report().reverted_us


async def test_a_device_that_stays_away_fails_the_dispatch_at_its_deadline(agent: Agent) -> None:
    agent.device.fail = "timeout"
    await agent.give(order())
    await agent.wait(109, step=1)
    assert agent.report().phase == "Acked"
    await agent.wait(2, step=1)
    assert agent.report().pending_error == "", "a revert that has not failed for long is no news"
    await agent.wait(3, step=1)
    agent.device.fail = ""
    await agent.wait(61, step=1)

    assert agent.outcome() == ("Failed", "DeviceOffline")
    assert 5000 not in agent.powers


async def test_nothing_is_applied_after_the_end_although_the_start_deadline_is_later(
    agent: Agent,
) -> None:
    agent.device.fail = "timeout"
    await agent.give(order(duration_seconds=20))
    await agent.wait(85, step=1)
    agent.device.fail = ""
    await agent.wait(30, step=1)

    assert agent.outcome() == ("Failed", "DeviceOffline")
    assert agent.powers == [0]


async def test_a_device_that_does_not_let_go_is_told_while_it_lasts(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.device.fail = "local"
    await agent.wait(95, step=1)
    held = agent.report()
    assert held.phase == "Active"
    assert held.pending_error == (
        "it ended (WindowEnded), and the device is not reverted yet: local control"
    )
    sent = len(agent.reports)
    await agent.wait(60, step=1)
    assert len(agent.reports) == sent + 1, "once is enough, and once that it has failed"
    agent.device.fail = ""
    await agent.wait(61, step=1)

    assert agent.report().phase == "Failed"
    assert agent.report().pending_error == ""


async def test_a_device_that_ignores_the_end_is_told_while_it_lasts(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.device.fail = "ignore"
    await agent.wait(95, step=1)

    assert agent.report().pending_error.startswith(
        "it ended (WindowEnded), and the device is not reverted yet: wrote an active power of 0 W"
    )


async def test_a_start_that_the_device_does_not_take_is_told_before_its_deadline(
    agent: Agent,
) -> None:
    await agent.give(order())
    agent.device.fail = "timeout"
    await agent.wait(62, step=1)
    waiting = agent.report()
    assert waiting.phase == "Acked"
    assert waiting.pending_error == "its start has come, and the device has not taken it: no answer"
    agent.device.fail = ""
    await agent.wait(3, step=1)

    assert agent.report().phase == "Active"
    assert agent.report().pending_error == ""


@pytest.mark.parametrize(
    ("silent_seconds", "words"),
    [
        (55, "the device did take the setpoint, and held it until it was reverted"),
        (90, "is not known"),
    ],
)
async def test_a_device_that_took_a_start_and_fell_silent_is_found_holding_it(
    agent: Agent, silent_seconds: int, words: str
) -> None:
    await agent.give(order())
    agent.device.fail = "timeout"
    await agent.wait(60)
    agent.device.held = Setpoints(active_power_watts=5000)
    await agent.wait(silent_seconds, step=1)
    agent.device.fail = ""
    await agent.wait(61, step=1)
    report = agent.report()

    assert (report.phase, report.reason) == ("Failed", "DeviceOffline")
    assert words in report.message
    assert report.applied_us == T0 + 60 * S
    assert report.evidence == "ReadBack"
    held_milliseconds = (report.reverted_us - report.applied_us) // 1000
    assert report.active_milliseconds == held_milliseconds > 50_000


async def test_a_device_that_was_never_reached_fails_at_the_deadline_and_was_not_touched(
    agent: Agent,
) -> None:
    await agent.give(order())
    agent.device.fail = "unreachable"
    await agent.wait(111, step=1)
    report = agent.report()

    assert (report.phase, report.reason) == ("Failed", "DeviceOffline")
    assert report.message == "the start deadline passed (50 s after the start); no connection"
    assert (report.applied_us, report.ended_us, report.reverted_us) == (0, 0, 0)
    agent.device.held = Setpoints(active_power_watts=1234)
    agent.device.fail = ""
    await agent.wait(61, step=1)
    assert agent.device.held.active_power_watts == 0, "it is put to its fallback all the same"


async def test_a_device_that_answers_nothing_until_it_was_reverted_leaves_it_unknown(
    agent: Agent,
) -> None:
    await agent.give(order())
    agent.device.fail = "timeout"
    await agent.wait(115, step=1)
    agent.device.fail = ""
    await agent.wait(3, step=1)
    report = agent.report()

    assert (report.phase, report.reason) == ("Failed", "DeviceOffline")
    assert report.reverted_us
    assert report.evidence == "Unanswered"


async def test_a_device_that_says_all_the_time_that_it_did_not_take_it_is_believed(
    agent: Agent,
) -> None:
    await agent.give(order())
    agent.device.fail, agent.device.held = "deaf", Setpoints(active_power_watts=1234)
    await agent.wait(115, step=1)
    agent.device.fail = ""
    await agent.wait(61, step=1)

    assert agent.outcome() == ("Failed", "DeviceOffline")
    assert (agent.report().applied_us, agent.report().evidence) == (0, "")
    assert "may land yet" in agent.report().pending_error
    await agent.wait(120, step=1)

    assert agent.outcome() == ("Failed", "DeviceOffline")
    assert (agent.report().applied_us, agent.report().evidence) == (0, "")
    assert agent.report().pending_error == ""


async def test_a_device_that_was_silent_before_it_says_that_it_did_not_take_it_proves_nothing(
    agent: Agent,
) -> None:
    await agent.give(order())
    agent.device.fail = "timeout"
    await agent.wait(100, step=1)
    agent.device.fail, agent.device.held = "deaf", Setpoints(active_power_watts=1234)
    await agent.wait(15, step=1)
    agent.device.fail = ""
    await agent.wait(240, step=1)

    assert agent.outcome() == ("Failed", "DeviceOffline")
    assert agent.report().applied_us == 0
    assert agent.report().evidence == "Unanswered", "it may have held it, and let go of it"
    assert agent.report().pending_error == ""


async def test_a_cancel_of_a_start_that_never_reached_the_device_is_at_once(
    agent: Agent,
) -> None:
    await agent.give(order())
    agent.device.fail = "unreachable"
    await agent.wait(70, step=1)
    await agent.give(order(generation=2, cancelled=True))

    assert agent.outcome() == ("Cancelled", "CancelledBeforeStart")
    assert agent.report().ended_us == 0


async def test_a_refused_write_fails_at_once_and_the_fallback_is_written(agent: Agent) -> None:
    agent.device.fail = "refuse"
    await agent.give(order())
    await agent.wait(60)
    await agent.wait(1)

    assert agent.outcome() == ("Failed", "DeviceWriteFailed")
    assert "not now" in agent.report().message
    assert agent.powers == [0]


async def test_a_refused_write_is_not_applied_because_the_device_holds_the_same(
    agent: Agent,
) -> None:
    await agent.give(order())
    await agent.wait(59)
    agent.device.fail, agent.device.held = "refuse", Setpoints(active_power_watts=5000)
    await agent.wait(2, step=1)

    assert agent.outcome() == ("Failed", "DeviceWriteFailed")


async def test_what_a_device_says_at_length_is_cut_to_what_status_takes(agent: Agent) -> None:
    agent.device.fail, agent.device.refusal = "refuse", "no! " * 1000
    await agent.give(order())
    await agent.wait(60)
    await agent.wait(1)

    report = agent.report()

    texts = [report.message, *(step.message for step in report.transitions)]
    assert report.phase == "Failed"
    assert max(len(text) for text in texts) == MESSAGE_LIMIT


@pytest.mark.parametrize(
    ("second", "winner"),
    [
        ({"primacy": 99}, "b"),
        ({"primacy": 101}, "a"),
        ({"created_us": T0 + 1}, "b"),
        ({"created_us": T0 - 1}, "a"),
        ({}, "b"),
    ],
)
async def test_the_stronger_supersedes_when_it_activates(
    agent: Agent, second: dict[str, Any], winner: str
) -> None:
    await agent.give(order("a"), order("b", watts=-2000, start_us=T0 + 90 * S, **second))
    await agent.wait(89)
    assert agent.report("a").phase == "Active"
    await agent.wait(2)

    loser = "a" if winner == "b" else "b"
    assert agent.outcome(loser) == ("Superseded", "SupersededBy")
    assert agent.report(loser).superseded_by == winner
    assert list(agent.report(winner).supersedes) == [loser]
    assert agent.device.held.active_power_watts == {"a": 5000, "b": -2000}[winner]


async def test_the_weaker_stays_when_the_stronger_cannot_be_written(agent: Agent) -> None:
    await agent.give(order("a"), order("b", watts=1, start_us=T0 + 90 * S, primacy=1))
    await agent.wait(89)
    agent.device.fail = "refuse"
    await agent.wait(2)
    agent.device.fail = ""
    await agent.wait(2)

    assert agent.outcome("b") == ("Failed", "DeviceWriteFailed")
    assert agent.outcome("a") == ("Active", "Applied")
    assert agent.device.held.active_power_watts == 5000


async def test_each_mode_reverts_to_its_own_fallback(agent: Agent) -> None:
    config = asset(fallback_max_generation_watts=4000)
    config.ClearField("fallback_active_power_watts")
    await agent.give(
        config,
        order("p", duration_seconds=10),
        order("g", mode="GenerationLimit", watts=0, duration_seconds=20),
        order("c", mode="CeaseToEnergize", watts=0, duration_seconds=30),
    )
    await agent.wait(60)
    all_of_it = Setpoints(active_power_watts=5000, max_generation_watts=0, energized=False)
    assert agent.device.held == all_of_it
    await agent.wait(10)
    assert agent.device.held == Setpoints(max_generation_watts=0, energized=False)
    await agent.wait(10)
    assert agent.device.held == Setpoints(max_generation_watts=4000, energized=False)
    await agent.wait(10)
    assert agent.device.held == Setpoints(max_generation_watts=4000)


async def test_back_to_back_windows_leave_no_hole(agent: Agent) -> None:
    await agent.give(order("a"), order("b", watts=3000, start_us=T0 + 160 * S))
    await agent.wait(170, step=1)

    assert agent.powers == [0, 5000, 3000]
    assert agent.outcome("a") == ("Complete", "WindowEnded")


async def test_absent_from_a_complete_snapshot_is_an_implied_cancel(agent: Agent) -> None:
    await agent.give(order("running"), order("later", start_us=T0 + 900 * S))
    await agent.wait(70)
    await agent.snapshot()

    assert agent.outcome("running") == ("Cancelled", "CancelledWhileActive")
    assert agent.outcome("later") == ("Cancelled", "CancelledBeforeStart")
    assert agent.powers == [0, 5000, 0]


async def test_reports_are_kept_until_acknowledged_and_settled(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(160, step=10)
    await agent.acknowledge_all()
    assert [r.phase for r in agent.controller.journal.reports()] == ["Complete"]
    await agent.give(Settled(uid="d1"))
    await agent.wait(1)

    assert agent.controller.journal.reports() == []


async def test_what_is_settled_is_forgotten_with_the_next_commit(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(160, step=10)
    await agent.give(order("d2", start_us=T0 + 400 * S))
    await agent.acknowledge_all()
    await agent.give(Settled(uid="d1"))
    waiting = {stored.report.dispatch_uid for stored in agent.ledger.unsettled()}
    await agent.give(order("d3", start_us=T0 + 600 * S))

    assert waiting == {"d1", "d2"}
    assert {stored.report.dispatch_uid for stored in agent.ledger.unsettled()} == {"d2", "d3"}
    assert agent.ledger.tombstone("d1") is not None
    assert set(agent.controller.journal) == {"d2", "d3"}


async def test_what_is_ordered_again_before_it_is_forgotten_is_kept(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(160, step=10)
    await agent.acknowledge_all()
    await agent.give(Settled(uid="d1"), order(generation=9))
    await agent.wait(5, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert [r.dispatch_uid for r in agent.controller.journal.reports()] == ["d1"]


async def test_what_is_settled_but_not_acknowledged_is_kept(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(160, step=10)
    await agent.snapshot()
    await agent.wait(2)
    assert len(agent.controller.journal.reports()) == 1
    await agent.acknowledge_all()

    assert agent.controller.journal.reports() == []


@pytest.mark.parametrize("restarts", [True, False])
async def test_a_settled_uid_is_never_run_again(agent: Agent, restarts: bool) -> None:
    await agent.give(order())
    await agent.wait(160, step=10)
    await agent.give(Settled(uid="d1"))
    await agent.acknowledge_all()
    if restarts:
        await agent.restart()
    writes = len(agent.device.writes)
    await agent.snapshot(order(start_us=agent.clock.wall_us + S, generation=9))
    await agent.wait(100, step=1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert len(agent.device.writes) == writes


async def test_a_tombstone_is_forgotten_after_its_time(agent: Agent) -> None:
    await agent.give(order(), order("d2"))
    ledger = agent.ledger

    ledger.save([], alive=Alive(at_us=T0, boot_id=""), settled={"d1": T0 + 10})
    kept = ledger.may_have_tombstone("d1"), ledger.tombstone("d1") is not None
    ledger.save([], alive=Alive(at_us=T0 + 20, boot_id=""), settled={"d2": T0 + 30})

    assert kept == (True, True)
    assert not ledger.may_have_tombstone("d1")
    assert ledger.tombstone("d1") is None
    assert ledger.may_have_tombstone("d2")
    assert not ledger.may_have_tombstone("never heard of")


async def test_silence_reverts_only_where_it_is_asked_for(tmp_path: Path) -> None:
    config = asset(on_comms_loss="Revert", failsafe_after_seconds=30)
    agent = await Agent(tmp_path).start(config)
    await agent.give(order(), order("next", start_us=T0 + 400 * S))
    await agent.wait(25)
    agent.controller.note_contact()
    await agent.wait(25)
    agent.controller.note_contact()
    await agent.wait(10)
    agent.controller.note_contact()
    await agent.wait(30, step=1)
    assert agent.report().phase == "Active"
    await agent.wait(1)
    assert agent.outcome() == ("Failed", "CommsLossFailsafe")
    assert "no gateway was heard for 30 s" in agent.report().message
    assert agent.powers == [0, 5000, 0]
    agent.controller.note_contact()
    await agent.wait(310, step=10)
    assert agent.report("next").phase == "Acked"
    await agent.snapshot(order(), order("next", start_us=T0 + 400 * S))
    assert agent.report("next").phase == "Active"
    agent.ledger.close()


async def test_a_start_missed_in_failsafe_says_that_no_gateway_was_heard(tmp_path: Path) -> None:
    agent = await Agent(tmp_path).start(asset(on_comms_loss="Revert", failsafe_after_seconds=30))
    await agent.give(order())
    await agent.wait(120, step=1)

    assert agent.outcome() == ("Failed", "CommsLossFailsafe")
    assert "no gateway was heard for 110 s" in agent.report().message
    assert "failsafeAfterSeconds 30 s" in agent.report().message
    assert 5000 not in agent.powers
    agent.ledger.close()


@pytest.mark.parametrize(
    ("watts", "verify", "outcome", "verified"),
    [
        (4900.0, "Required", ("Complete", "WindowEnded"), "True"),
        (4000.0, "Report", ("Complete", "WindowEnded"), "False"),
        (4000.0, "Required", ("Failed", "EffectNotObserved"), "False"),
    ],
)
async def test_verification_judges_the_samples(
    agent: Agent, watts: float, verify: str, outcome: tuple[str, str], verified: str
) -> None:
    await agent.give(order(verify=verify))
    await agent.wait(60)
    await agent.sampled(watts, 100)

    assert agent.outcome() == outcome
    assert agent.report().verified == verified
    assert agent.report().evidence == ("Effect" if verified == "True" else "ReadBack")
    assert agent.report().delivered_watt_hours == pytest.approx(watts * 100 / 3600, rel=0.02)


async def test_a_missing_effect_is_told_in_numbers(agent: Agent) -> None:
    await agent.give(order(verify="Required"))
    await agent.wait(60)
    await agent.sampled(5000, 50)
    await agent.sampled(0, 50)

    assert agent.report().message == (
        "verification was required and is False: of 95 s after settling the measured power was "
        "within tolerance for 45 s and beyond it for 50 s; 80% must be within"
    )


@pytest.mark.parametrize("set_seconds", [0, 3600, -3600, 4, -4])
async def test_a_short_window_is_verified_whatever_becomes_of_the_clock(
    agent: Agent, set_seconds: int
) -> None:
    await agent.give(order(verify="Required", duration_seconds=8))
    await agent.wait(60)
    await agent.wait(0.2)
    await agent.sampled(5000, 3)
    agent.clock.wall_us += min(0, set_seconds) * S
    await agent.sampled(5000, 4)
    agent.clock.wall_us += max(0, set_seconds) * S
    await agent.wait(0.8)

    report = agent.report()
    assert (*agent.outcome(), report.verified) == ("Complete", "WindowEnded", "True")
    assert report.within_tolerance_milliseconds == 7200
    assert report.delivered_watt_hours == pytest.approx(5000 * 7.2 / 3600)


async def test_a_device_that_does_not_measure_cannot_be_verified(agent: Agent) -> None:
    agent.device.capability = replace(agent.device.capability, can_measure=False)
    await agent.use(agent.device)
    await agent.start()
    await agent.give(order())
    await agent.wait(160, step=10)

    assert (agent.report().verified, agent.report().verified_reason) == ("Unknown", "NotVerifiable")


async def test_a_start_deadline_of_nothing_is_met_by_a_start_on_time(agent: Agent) -> None:
    await agent.give(order(start_deadline_seconds=0))
    await agent.wait(60.02)

    assert agent.outcome() == ("Active", "Applied")


async def test_a_window_cut_short_by_its_clock_does_not_say_as_planned(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.clock.wall_us += 600 * S
    await agent.wait(1)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert "set forward in the window, which ended 89 s early" in agent.report().message
    assert agent.report().active_milliseconds == 11_000


@pytest.mark.parametrize("set_seconds", [3600, -3600])
async def test_a_clock_that_was_set_takes_nothing_new_before_it_is_compared_again(
    agent: Agent, set_seconds: int
) -> None:
    agent.controller.measure_offset(20)
    agent.clock.wall_us += set_seconds * S
    await agent.give(order())

    assert agent.outcome() == ("Rejected", "ClockSkewTooLarge")
    assert "3600" in agent.report().message or "3599" in agent.report().message


async def test_a_few_seconds_less_are_told_too(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(70, step=1)
    agent.clock.wall_us += 4 * S
    await agent.wait(86, step=1)

    assert "set forward in the window, which ended 4 s early" in agent.report().message


async def test_a_start_missed_by_a_clock_that_was_set_says_so(agent: Agent) -> None:
    await agent.give(order())
    agent.clock.wall_us += 600 * S
    await agent.wait(1)

    assert agent.outcome() == ("Failed", "StartDeadlineExceeded")
    assert "the agent's clock was set forward by 600 s" in agent.report().message


async def test_a_battery_that_ran_empty_is_not_verified(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(60)
    await agent.sampled(5000, 50)
    assert agent.report().verified == "True"
    await agent.sampled(0, 50)

    assert agent.report().verified == "False"
    assert agent.report().verified_us == 0


async def test_without_samples_the_effect_is_unknown(agent: Agent) -> None:
    await agent.give(order())
    await agent.wait(160, step=10)

    assert (agent.report().verified, agent.report().evidence) == ("Unknown", "ReadBack")


async def test_a_superseded_dispatch_that_never_reached_its_device_has_nothing_to_revert(
    agent: Agent,
) -> None:
    agent.device.fail = "unreachable"
    await agent.give(order(), order("b", watts=3000, primacy=10, start_us=T0 + 70 * S))
    await agent.wait(70, step=1)
    agent.device.fail = ""
    await agent.wait(2, step=1)

    assert agent.outcome("b") == ("Active", "Applied")
    assert agent.outcome() == ("Superseded", "SupersededBy")
    assert (agent.report().applied_us, agent.report().reverted_us) == (0, 0)


async def test_what_a_superseded_dispatch_did_is_judged_over_its_whole_time(agent: Agent) -> None:
    await agent.give(order(), order("b", watts=3000, primacy=10, start_us=T0 + 120 * S))
    await agent.wait(60)
    await agent.sampled(5000, 10)
    assert agent.report().verified == "True"
    await agent.sampled(0, 50)

    assert agent.outcome() == ("Superseded", "SupersededBy")
    assert (agent.report().verified, agent.report().verified_reason) == (
        "False",
        "EffectNotObserved",
    )
