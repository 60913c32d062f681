"""What happens to one dispatch, look by look."""

from dataclasses import replace
from typing import Any

import pytest
from tests.operator.making import (
    Story,
    acked,
    active,
    asset,
    at,
    dispatch,
    ended,
    holding,
    report,
    view,
)

from derops.wire.v1 import dispatch_pb2
from derops_operator.gateways.views import ReportedDispatch
from derops_operator.reconciling.actions import (
    AddFinalizer,
    Submit,
)
from derops_operator.reconciling.conditions import find
from derops_operator.reconciling.dispatches import reconcile_dispatch
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch, DispatchCondition


def decide(
    subject: Dispatch, home: Asset | None, seconds: float, seen: ReportedDispatch | None = None
) -> Any:
    return reconcile_dispatch(subject, home, seen or ReportedDispatch(), at(seconds))


# Before any gateway holds it


def test_a_good_dispatch_gets_its_finalizer_before_it_is_submitted() -> None:
    decision = decide(dispatch(), asset(), 1)

    assert decision.actions == (AddFinalizer(), Submit())
    assert decision.status["phase"] == "Submitted"
    assert decision.status["reason"] == "Validated"
    assert decision.status["timeline"]["submittedAt"].startswith("2027-")
    assert [line["phase"] for line in decision.status["history"]] == ["Submitted"]


@pytest.mark.parametrize(
    ("spec", "home", "reason", "words"),
    [
        pytest.param(
            {"setpoint": {"mode": "ActivePower", "activePowerWatts": 9000}},
            asset(),
            "LimitExceeded",
            ["9000 W", "8000 W", "maxInjectionWatts"],
            id="injection above the limit",
        ),
        pytest.param(
            {"setpoint": {"mode": "ActivePower", "activePowerWatts": -8001}},
            asset(),
            "LimitExceeded",
            ["8001 W", "8000 W", "absorption"],
            id="absorption above the rating that stands in for an absent limit",
        ),
        pytest.param(
            {"durationSeconds": 7200},
            asset(),
            "InvalidSchedule",
            ["7200 s", "3600 s"],
            id="longer than the asset allows",
        ),
        pytest.param(
            {"durationSeconds": 3600},
            asset(
                ratings={
                    "maxInjectionWatts": 10000,
                    "maxAbsorptionWatts": 8000,
                    "energyCapacityWattHours": 6000,
                },
                limits={"minReservePercent": 20},
            ),
            "InsufficientEnergy",
            ["5000 Wh", "4800 Wh", "20 %"],
            id="more energy than the battery has above its reserve",
        ),
        pytest.param(
            {},
            asset(type="Solar"),
            "ModeNotSupported",
            ["ActivePower", "GenerationLimit"],
            id="a mode its type lacks",
        ),
        pytest.param(
            {},
            asset(status={"capability": {"modes": ["GenerationLimit"]}}),
            "ModeNotSupported",
            ["ActivePower", "GenerationLimit"],
            id="a mode its agent does not offer",
        ),
        pytest.param(
            {}, asset(operatingState="OutOfService"), "AssetOutOfService", ["battery"], id="out"
        ),
        pytest.param(
            {}, asset(operatingState="Quarantined"), "AssetQuarantined", ["battery"], id="by spec"
        ),
        pytest.param(
            {},
            asset(status={"identity": {"quarantine": {"reason": "CloneSuspected"}}}),
            "AssetQuarantined",
            ["CloneSuspected"],
            id="quarantined as a clone",
        ),
        pytest.param(
            {}, asset(deleting=0, held=True), "AssetDeleted", ["battery"], id="asset being deleted"
        ),
    ],
)
def test_what_breaks_a_rule_is_rejected_with_the_facts_and_never_sent(
    spec: dict[str, Any], home: Asset, reason: str, words: list[str]
) -> None:
    decision = decide(dispatch(**spec), home, 1)

    assert decision.actions == ()
    assert (decision.status["phase"], decision.status["reason"]) == ("Rejected", reason)
    assert all(word in decision.status["message"] for word in words)
    assert decision.status["completionTime"]


def test_an_asset_that_clamps_takes_what_is_above_its_limit() -> None:
    home = asset(limits={"maxInjectionWatts": 1000, "onExceed": "Clamp"})

    assert Submit() in decide(dispatch(), home, 1).actions


def test_a_dispatch_waits_for_its_asset_through_the_grace() -> None:
    subject = dispatch(durationSeconds=10)

    early = decide(subject, None, 59)
    late = decide(subject, None, 61)

    assert (early.status["phase"], early.status["reason"]) == ("Submitted", "AssetNotFound")
    assert early.again_us is not None
    assert at(60) < early.again_us < at(61)
    assert early.actions == ()
    assert (late.status["phase"], late.status["reason"]) == ("Rejected", "AssetNotFound")
    assert "battery" in late.status["message"]


def test_a_dispatch_in_the_future_waits_for_its_asset_until_accept_by() -> None:
    subject = replace(dispatch(), start_us=at(500))

    assert decide(subject, None, 549).status["phase"] == "Submitted"
    assert decide(subject, None, 551).status["phase"] == "Rejected"


def test_an_asset_that_appears_in_time_lets_the_dispatch_go() -> None:
    waiting = decide(dispatch(), None, 20)
    subject = replace(dispatch(), status=waiting.status)

    decision = decide(subject, asset(), 30)

    assert decision.actions == (AddFinalizer(), Submit())
    assert decision.status["reason"] == "Validated"


def test_what_is_first_seen_after_accept_by_expires_unsent() -> None:
    decision = decide(dispatch(), asset(), 51)

    assert decision.actions == ()
    assert decision.status["phase"] == "Expired"
    assert decision.status["reason"] == "StartDeadlineExceeded"


def test_what_is_cancelled_before_submission_is_cancelled_at_once() -> None:
    decision = decide(dispatch(desiredState="Cancelled"), None, 1)

    assert decision.actions == ()
    assert decision.status["reason"] == "CancelledBeforeDelivery"


def test_a_deleted_dispatch_that_nobody_holds_is_left_alone() -> None:
    decision = decide(dispatch(deleting=1), asset(), 2)

    assert decision.actions == ()
    assert decision.status == {}


# On its way


def test_the_phases_follow_delivery_and_reports() -> None:
    story = Story()
    phases = [story.look(0.1).status["phase"]]
    phases.append(story.look(0.5, view(holding(written_us=at(0.4)))).status["phase"])
    phases.append(story.look(1.1, view(report=acked())).status["phase"])
    phases.append(story.look(2.1, view(report=active())).status["phase"])
    phases.append(story.look(101, view(report=ended())).status["phase"])

    assert phases == ["Submitted", "Sent", "Acked", "Active", "Complete"]
    assert [line["phase"] for line in story.status["history"]] == phases
    assert [line["actor"] for line in story.status["history"]] == [
        "Operator",
        "Gateway",
        "Agent",
        "Agent",
        "Agent",
    ]
    times = story.status["timeline"]
    assert times["sentAt"] < times["ackedAt"] < times["appliedAt"] < times["revertedAt"]
    assert story.status["execution"]["applied"] == {"mode": "ActivePower", "watts": 5000}
    assert story.status["execution"]["activeSeconds"] == 98


def test_conditions_tell_the_stages() -> None:
    story = Story().look(0.1)
    assert (story.conditions["Ready"], story.conditions["Reconciling"]) == ("False", "True")
    assert story.conditions["Delivered"] == "False"

    story.look(1.1, view(report=acked()))
    assert (story.conditions["Ready"], story.conditions["Reconciling"]) == ("True", "False")
    assert (story.conditions["Delivered"], story.conditions["Accepted"]) == ("True", "True")
    assert (story.conditions["Applied"], story.conditions["Succeeded"]) == ("Unknown", "Unknown")

    story.look(2.1, view(report=active(verified="True", verified_reason="ReadBackMatch")))
    assert (story.conditions["Applied"], story.conditions["Verified"]) == ("True", "True")

    story.look(101, view(report=ended(verified="False", verified_reason="SetpointNotHeld")))
    assert story.conditions["Verified"] == "False"
    assert (story.conditions["Reverted"], story.conditions["Succeeded"]) == ("True", "True")


@pytest.mark.parametrize(
    ("phase", "ready", "stalled", "succeeded"),
    [
        ("Complete", "True", "False", "True"),
        ("Cancelled", "True", "False", "False"),
        ("Superseded", "True", "False", "False"),
        ("Failed", "False", "True", "False"),
        ("Rejected", "False", "True", "False"),
        ("Expired", "False", "True", "False"),
    ],
)
def test_kstatus_of_each_ending(phase: str, ready: str, stalled: str, succeeded: str) -> None:
    story = Story().look(0.1).look(101, view(report=ended(phase, "Because")))

    held = story.conditions
    assert (held["Ready"], held["Stalled"], held["Succeeded"]) == (ready, stalled, succeeded)
    assert held["Reconciling"] == "False"


def test_transition_times_move_only_with_the_status() -> None:
    story = Story().look(0.1)
    first = {each["type"]: each["lastTransitionTime"] for each in story.status["conditions"]}

    story.look(10, view(report=acked()))
    second = {each["type"]: each["lastTransitionTime"] for each in story.status["conditions"]}

    assert second["Accepted"] > first["Accepted"]
    assert second["Stalled"] == first["Stalled"]


def test_a_refusal_of_the_agent_is_final() -> None:
    refusal = report("Rejected", "LocalLimitExceeded", message="5000 W is above 3000 W")
    story = Story().look(0.1).look(1, view(holding(written_us=at(0.5)), report=refusal))

    assert story.ending == ("Rejected", "LocalLimitExceeded")
    assert "3000 W" in story.status["message"]
    assert story.conditions["Reverted"] == "True"


def test_a_report_of_a_lost_ledger_takes_nothing_away() -> None:
    story = Story().look(0.1).look(3, view(report=active()))

    lost = report("Failed", "LedgerLost", ledger_id="new", message="the ledger was lost")
    story.look(5, view(report=lost))

    assert story.ending == ("Failed", "LedgerLost")
    assert story.status["timeline"]["appliedAt"]
    assert story.conditions["Applied"] == "True"
    assert story.conditions["Reverted"] == "Unknown"


def test_of_what_a_lost_disk_had_accepted_nobody_knows_whether_it_ran() -> None:
    story = Story().look(0.1).look(3, view(report=acked()))
    story.look(50, view(report=report("Failed", "LedgerLost", ledger_id="new")))

    assert story.conditions["Accepted"] == "True"
    assert story.conditions["Applied"] == "Unknown"
    assert story.conditions["Reverted"] == "Unknown"
    assert story.conditions["Stalled"] == "True"


def test_what_a_ledger_says_that_never_accepted_it_does_not_speak_for_the_one_before() -> None:
    end = dispatch_pb2.Transition(phase="Cancelled", reason="CancelledBeforeStart", at_us=at(4))
    refused = report("Cancelled", "CancelledBeforeStart", ledger_id="new", transitions=[end])
    elsewhere = holding(written_us=at(1), ledger_id="old")
    story = Story().look(0.1).look(5, view(holding(), elsewhere, report=refused))

    assert story.ending == ("Failed", "LedgerLost")
    assert "old" in story.status["message"]
    assert [line["phase"] for line in story.status["history"]] == ["Submitted", "Sent", "Failed"]
    assert story.conditions["Applied"] == "Unknown"
    assert story.conditions["Reverted"] == "Unknown"


def _never_applied_by_a_new_ledger(*, old_written_us: int, new_written_us: int) -> Story:
    """Return what is told where two gateways wrote a dispatch, each to another ledger."""
    old = holding(replica="gateway-0", written_us=old_written_us, ledger_id="old")
    new = holding(replica="gateway-1", written_us=new_written_us, ledger_id="new")
    end = dispatch_pb2.Transition(phase="Failed", reason="DeviceWriteFailed", at_us=at(5))
    failed = report(
        "Failed",
        "DeviceWriteFailed",
        ledger_id="new",
        accepted_us=at(3),
        transitions=[end],
        message="the device refuses",
    )
    return Story().look(0.1).look(6, view(old, new, report=failed))


def test_a_ledger_that_accepted_and_did_not_apply_does_not_speak_for_the_one_before() -> None:
    story = _never_applied_by_a_new_ledger(old_written_us=at(1), new_written_us=at(2))

    assert story.ending == ("Failed", "LedgerLost")
    assert "ledger old first" in story.status["message"]
    assert "the device refuses" in story.status["message"]
    assert story.conditions["Accepted"] == "True"
    assert story.conditions["Applied"] == "Unknown"


def test_what_was_written_to_a_lost_ledger_only_later_cannot_have_run() -> None:
    story = _never_applied_by_a_new_ledger(old_written_us=at(4), new_written_us=at(2))

    assert story.ending == ("Failed", "DeviceWriteFailed")
    assert story.conditions["Applied"] == "False"


def test_what_the_only_ledger_says_stands() -> None:
    refused = report("Cancelled", "CancelledBeforeStart")
    story = Story().look(0.1)
    story.look(5, view(holding(written_us=at(1), ledger_id="ledger"), report=refused))

    assert story.ending == ("Cancelled", "CancelledBeforeStart")
    assert story.conditions["Applied"] == "False"


def test_an_earlier_phase_never_comes_back() -> None:
    story = Story().look(0.1).look(3, view(report=active())).look(4, view(report=acked()))

    assert story.ending == ("Active", "Applied")


def test_the_order_carries_the_phase_the_resource_has_shown() -> None:
    story = Story().look(0.1).look(3, view(report=active())).look(4, view(report=active()))

    assert story.submit is not None
    assert story.submit.known_phase == "Active"


def test_an_interruption_is_a_line_of_its_own() -> None:
    again = [
        dispatch_pb2.Transition(phase="Active", reason="Applied", at_us=at(2)),
        dispatch_pb2.Transition(phase="Active", reason="AgentRestarted", at_us=at(9)),
    ]
    story = Story().look(0.1)
    story.look(3, view(report=active(transitions=again[:1])))
    story.look(10, view(report=active(transitions=again, interruptions=1)))

    assert [line["reason"] for line in story.status["history"]][-2:] == [
        "Applied",
        "AgentRestarted",
    ]
    assert story.status["execution"]["interruptions"] == 1


def test_a_setpoint_that_is_held_back_is_degraded_as_long_as_it_is() -> None:
    story = Story(dispatch(setpoint={"mode": "ActivePower", "activePowerWatts": 9000}))
    story.asset = asset(limits={"maxInjectionWatts": 8000, "onExceed": "Clamp"})
    story.look(0.1)
    assert "Degraded" not in story.conditions

    story.look(1, view(report=acked(clamped_by="AssetLimits")))
    assert story.conditions["Degraded"] == "True"

    held_back = active(clamped_by="AssetLimits", applied_watts=8000)
    story.look(2, view(report=held_back))
    (degraded,) = [c for c in story.status["conditions"] if c["type"] == "Degraded"]
    assert degraded["reason"] == "Clamped"
    assert "8000 W instead of the 9000 W" in degraded["message"]
    assert story.status["execution"]["clampedBy"] == "AssetLimits"

    raised = active(sequence=3, applied_watts=9000)
    story.look(3, view(report=raised))
    assert story.conditions["Degraded"] == "False"
    assert "clampedBy" not in story.status["execution"]


def test_what_the_device_rounds_is_told_as_long_as_it_does() -> None:
    why = "the device holds steps of 690 W; rounded towards zero"
    story = Story(dispatch(setpoint={"mode": "ActivePower", "activePowerWatts": 5000})).look(0.1)
    story.look(2, view(report=active(applied_watts=4830, rounding=why)))
    told = story.status["execution"]
    assert told["requested"] == {"mode": "ActivePower", "watts": 5000}
    assert told["applied"] == {"mode": "ActivePower", "watts": 4830}
    assert told["rounding"] == why
    (applied,) = [c for c in story.status["conditions"] if c["type"] == "Applied"]
    assert applied["message"] == f"the device took the setpoint as 4830 W: {why}"
    assert "Degraded" not in story.conditions, "no limit changed it"

    story.look(3, view(report=active(sequence=3, applied_watts=5000)))
    assert "rounding" not in story.status["execution"]


def test_a_lost_ledger_does_not_take_back_that_a_setpoint_was_held_back() -> None:
    story = Story().look(0.1).look(2, view(report=active(clamped_by="AssetLimits")))
    story.look(3, view(report=report("Failed", "LedgerLost")))

    assert story.conditions["Degraded"] == "True"
    assert story.status["execution"]["clampedBy"] == "AssetLimits"


def test_supersession_is_told_by_uid() -> None:
    lost = ended("Superseded", "SupersededBy", superseded_by="uid-other")
    story = Story().look(0.1).look(5, view(report=lost))

    assert story.ending == ("Superseded", "SupersededBy")
    assert story.status["supersededBy"] == "uid-other"


def test_a_start_that_is_overdue_says_why_it_waits() -> None:
    overdue = "its start has come, and the device has not taken it: no answer"
    story = Story(dispatch(submitted=True)).look(2, view(report=acked(pending_error=overdue)))
    applied = find(story.status["conditions"], "Applied")

    assert story.status["phase"] == "Acked"
    assert story.status["message"] == overdue
    assert (applied["status"], applied["reason"]) == ("Unknown", "WaitingForDevice")
    assert applied["message"] == overdue


def test_a_revert_that_does_not_succeed_is_told_until_it_does() -> None:
    stuck = "it ended (WindowEnded), and the device is not reverted yet: local control"
    report = active(ended_us=at(100), pending_error=stuck, sequence=3)
    story = Story(dispatch(submitted=True)).look(2, view(report=active()))
    assert story.conditions["Reverted"] == "Unknown"
    story.look(103, view(report=report))
    reverted = find(story.status["conditions"], "Reverted")

    assert story.status["phase"] == "Active"
    assert story.status["message"] == stuck
    assert (reverted["status"], reverted["reason"]) == ("False", "RevertFailed")
    assert reverted["message"] == stuck
    assert story.look(120, view(report=ended())).conditions["Reverted"] == "True"


def test_a_cancel_at_the_start_does_not_claim_that_the_device_was_not_touched() -> None:
    facts = {"applied_us": 0, "applied_watts": 0}
    cancelled = ended("Cancelled", "CancelledBeforeStart", **facts)
    story = Story(dispatch(submitted=True)).look(2, view(report=acked()))

    assert story.look(103, view(report=cancelled)).status["message"] == (
        "it was cancelled at its start; the device was reverted"
    )


def test_a_device_that_answered_no_write_leaves_open_whether_it_was_applied() -> None:
    facts = {"applied_us": 0, "applied_watts": 0, "evidence": "Unanswered"}
    failed = ended("Failed", "DeviceOffline", **facts)
    story = Story(dispatch(submitted=True)).look(2, view(report=acked()))
    story.look(103, view(report=failed))

    assert story.conditions["Applied"] == "Unknown"
    assert story.conditions["Reverted"] == "True"


def test_a_device_that_was_never_reached_was_not_touched() -> None:
    facts = {"applied_us": 0, "applied_watts": 0, "ended_us": 0, "reverted_us": 0}
    failed = ended("Failed", "DeviceOffline", **facts)
    story = Story(dispatch(submitted=True)).look(2, view(report=acked()))
    story.look(51, view(report=failed))

    assert story.conditions["Applied"] == "False"
    assert find(story.status["conditions"], "Reverted")["reason"] == "NothingToRevert"


def test_an_end_that_is_not_reported_is_told_while_it_is_waited_for() -> None:
    story = Story(dispatch(submitted=True)).look(2, view(report=active()))
    assert (
        story.look(129, view(report=active())).status["message"] == "the device took the setpoint"
    )
    assert story.decision.again_us == at(130.01)
    story.look(131, view(report=active()))

    assert story.status["phase"] == "Active"
    assert "its end 2027-01-15T08:01:40Z has passed" in story.status["message"]
    assert "waits for that until 2027-01-15T08:16:40Z" in story.status["message"]
    told = story.status
    assert story.look(500, view(report=active())).status == told


def test_an_end_that_waits_for_the_device_is_not_called_unreported() -> None:
    stuck = active(ended_us=at(100), pending_error="not reverted yet", sequence=3)
    story = Story(dispatch(submitted=True)).look(2, view(report=active()))

    assert story.look(500, view(report=stuck)).status["message"] == "not reverted yet"


def test_an_end_that_the_device_is_about_to_follow_is_told() -> None:
    ending = active(ended_us=at(100), sequence=3)
    story = Story(dispatch(submitted=True)).look(2, view(report=active()))

    message = story.look(101, view(report=ending)).status["message"]
    assert message == "it has ended; the device is about to be reverted, or to take the next value"
    assert story.conditions["Reverted"] == "Unknown"


def test_the_same_word_again_is_no_new_line_of_history() -> None:
    told = ended().transitions[:2]
    story = Story().look(0.1).look(2, view(report=active(transitions=told)))
    lines = story.status["history"]
    assert [line["phase"] for line in lines] == ["Submitted", "Acked", "Active"]

    story.look(3, view(report=active(transitions=told, sequence=2)))
    assert story.status["history"] == lines


def test_what_a_lost_disk_does_not_know_stays_in_status() -> None:
    story = Story().look(0.1).look(2, view(report=active(evidence="ReadBack")))
    known = story.status["execution"]

    story.look(50, view(report=report("Failed", "LedgerLost", ledger_id="new")))
    assert story.ending == ("Failed", "LedgerLost")
    assert story.status["execution"] == known
    assert story.conditions["Applied"] == "True"


def test_what_a_decision_asks_of_stored_conditions_is_what_status_shows() -> None:
    shown = decide(
        dispatch(submitted=True), asset(), 3, view(report=active(clamped_by="limits"))
    ).status["conditions"]
    subject = dispatch(submitted=True, status={"phase": "Active", "conditions": shown})

    for kind in DispatchCondition:
        assert subject.status_of(kind) == find(shown, kind)["status"]
