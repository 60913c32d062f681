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

from derops.lifecycle import Phase
from derops.wire.v1 import dispatch_pb2
from derops_operator.facts import Asset, Dispatch
from derops_operator.fleet import DispatchView, Holding
from derops_operator.reconciling.actions import (
    AddFinalizer,
    Delete,
    RemoveFinalizer,
    Settle,
    Submit,
)
from derops_operator.reconciling.dispatches import reconcile_dispatch


def decide(
    subject: Dispatch, home: Asset | None, seconds: float, seen: DispatchView | None = None
) -> Any:
    return reconcile_dispatch(subject, home, seen or DispatchView(), at(seconds))


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
    assert story.conditions["Reverted"] == "False"


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


def test_supersession_is_told_by_uid() -> None:
    lost = ended("Superseded", "SupersededBy", superseded_by="uid-other")
    story = Story().look(0.1).look(5, view(report=lost))

    assert story.ending == ("Superseded", "SupersededBy")
    assert story.status["supersededBy"] == "uid-other"


# Proofs


def test_an_unsent_dispatch_is_withdrawn_after_accept_by_and_then_expires() -> None:
    story = Story().look(0.1)

    story.look(52, view(holding(accepted=False)))
    assert story.submit == Submit(cancelled=True, cancel_reason="AgentOffline")
    assert story.status["phase"] == "Submitted"

    story.look(52.1, view(holding(accepted=True)))
    assert story.ending == ("Expired", "AgentOffline")
    assert story.conditions["Delivered"] == "False"


def test_before_accept_by_nothing_is_withdrawn() -> None:
    story = Story().look(0.1).look(50.5)

    assert story.submit == Submit()
    assert story.status["phase"] == "Submitted"


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(DispatchView(), id="no gateway was heard"),
        pytest.param(view(holding(), complete=False), id="a configured gateway is not connected"),
        pytest.param(view(holding(connected=False)), id="the gateway that held it is lost"),
        pytest.param(view(holding(generation=None)), id="a gateway has not said where it stands"),
        pytest.param(view(holding(state_since_us=at(5))), id="the gateway began anew meanwhile"),
        pytest.param(view(holding(), holding(written_us=at(3))), id="one of two gateways wrote it"),
        pytest.param(view(report=acked()), id="the agent accepted it"),
    ],
)
def test_nothing_expires_without_proof(seen: DispatchView) -> None:
    story = Story().look(0.1).look(60, seen)

    assert story.status["phase"] != "Expired"
    assert story.submit is not None
    assert not story.submit.cancelled


def test_what_was_shown_as_sent_never_expires_by_the_operator() -> None:
    story = Story().look(0.1).look(1, view(holding(written_us=at(0.5)))).look(60, view(holding()))

    assert story.status["phase"] == "Sent"


def test_without_proof_the_outcome_is_unknown_after_the_report_deadline() -> None:
    story = Story().look(0.1).look(999, DispatchView())
    assert story.status["phase"] == "Submitted"

    story.look(1001, DispatchView())

    assert story.ending == ("Failed", "OutcomeUnknown")
    assert story.conditions["Reverted"] == "Unknown"
    assert "900 s" in story.status["message"]


def test_an_active_dispatch_without_an_ending_is_unknown_and_stays_applied() -> None:
    story = Story().look(0.1).look(3, view(report=active())).look(1001, view(report=active()))

    assert story.ending == ("Failed", "OutcomeUnknown")
    assert story.conditions["Applied"] == "True"
    assert "Active" in story.status["message"]


def test_the_agents_planned_end_moves_the_report_deadline() -> None:
    late = active(planned_end_us=at(160))
    story = Story(dispatch(latePolicy="KeepDuration")).look(0.1).look(3, view(report=late))

    assert story.look(1059, view(report=late)).status["phase"] == "Active"
    assert story.look(1061, view(report=late)).status["phase"] == "Failed"


def test_a_decision_names_the_time_of_the_next_one() -> None:
    story = Story().look(0.1)
    assert story.decision.again_us is not None
    assert at(51) <= story.decision.again_us < at(52)

    story.look(60, view(report=acked()))
    assert story.decision.again_us is not None
    assert at(1000) <= story.decision.again_us < at(1001)


# Cancelling


def test_a_cancel_before_delivery_needs_no_agent() -> None:
    story = Story().look(0.1).change(desired_state="Cancelled")

    story.look(1, view(holding(generation=1, accepted=False)))
    assert story.submit == Submit(cancelled=True)
    assert story.status["phase"] == "Submitted"

    story.look(1.1, view(holding(generation=2)))
    assert story.ending == ("Cancelled", "CancelledBeforeDelivery")
    assert story.status["observedGeneration"] == 2


def test_a_cancel_of_a_sent_dispatch_waits_for_the_agent() -> None:
    story = Story().look(0.1).look(1, view(holding(written_us=at(0.5))))
    story.change(desired_state="Cancelled").look(2, view(holding(written_us=at(0.5), generation=2)))
    assert story.status["phase"] == "Sent"
    assert "waiting for the agent to confirm" in story.status["message"]

    gone = report("Cancelled", "CancelledBeforeStart", accepted_us=at(1))
    story.look(3, view(report=gone))
    assert story.ending == ("Cancelled", "CancelledBeforeStart")
    assert story.conditions["Applied"] == "False"
    assert story.conditions["Reverted"] == "True"


@pytest.mark.parametrize(
    ("home", "reason"),
    [
        (asset(operatingState="OutOfService"), "AssetOutOfService"),
        (asset(operatingState="Quarantined"), "AssetQuarantined"),
        (asset(deleting=2, held=True), "AssetDeleted"),
        (None, "AssetDeleted"),
    ],
)
def test_an_asset_that_is_taken_out_cancels_what_is_in_flight(
    home: Asset | None, reason: str
) -> None:
    story = Story().look(0.1).look(2, view(report=active()))
    story.asset = home

    story.look(3, view(report=active()))
    assert story.submit == Submit(cancelled=True, cancel_reason=reason, known_phase=Phase.ACTIVE)

    story.look(4, view(report=ended("Cancelled", reason)))
    assert story.ending == ("Cancelled", reason)
    assert "the device was reverted" in story.status["message"]


def test_an_undelivered_dispatch_of_an_asset_taken_out_is_cancelled_with_its_reason() -> None:
    story = Story().look(0.1)
    story.asset = asset(operatingState="OutOfService")

    assert story.look(1).ending == ("Cancelled", "AssetOutOfService")


def test_an_asset_created_anew_under_the_name_is_another_asset() -> None:
    story = Story().look(0.1)
    old = asset()
    story.asset = replace(old, meta=replace(old.meta, uid="uid-new", created_us=at(5)))

    story.look(6, view(holding(accepted=False)))

    assert story.submit is not None
    assert story.submit.cancel_reason == "AssetDeleted"


# Deleting


def test_deletion_cancels_and_lets_go_when_the_ending_is_stored() -> None:
    story = Story().look(0.1).look(2, view(report=active())).change(deleting_us=at(5))

    story.look(5.1, view(report=active()))
    assert story.submit is not None
    assert story.submit.cancelled
    assert story.removal is None

    story.look(6, view(report=ended("Cancelled", "CancelledWhileActive")))
    assert story.removal is None
    story.look(6.1)
    assert story.decision.actions == (Settle(), RemoveFinalizer())


def test_deletion_without_an_answer_lets_go_after_the_grace_and_says_what_is_not_known() -> None:
    story = Story().look(0.1).look(2, view(report=active())).change(deleting_us=at(5))
    assert story.look(64, view(report=active())).removal is None

    story.look(66, view(report=active()))

    assert story.removal is not None
    assert "not known" in story.removal.warning
    assert "Active" in story.removal.warning


# After the end


def test_an_ending_is_settled_only_once_it_is_stored() -> None:
    story = Story().look(0.1).look(101, view(report=ended()))
    assert Settle() not in story.decision.actions

    story.look(102, view(report=ended()))
    assert story.decision.actions == (Settle(), RemoveFinalizer())
    assert story.look(103).decision.actions == (Settle(),)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ended(), ended("Failed", "DeviceOffline")),
        (ended("Failed", "DeviceOffline"), ended()),
        (ended("Cancelled", "CancelledWhileActive"), ended()),
    ],
)
def test_there_are_never_two_endings_and_the_later_word_is_kept_beside(
    first: dispatch_pb2.DispatchReport, second: dispatch_pb2.DispatchReport
) -> None:
    story = Story().look(0.1).look(101, view(report=first))
    frozen = story.status

    story.look(102, view(report=second))

    assert story.ending == (first.phase, first.reason)
    assert story.status["lateReport"]["phase"] == second.phase
    assert {k: v for k, v in story.status.items() if k != "lateReport"} == frozen


def test_the_same_ending_again_changes_nothing() -> None:
    story = Story().look(0.1).look(101, view(report=ended()))
    frozen = story.status

    assert story.look(200, view(report=ended(sequence=12))).status == frozen


def test_a_word_after_an_unknown_outcome_is_a_late_report() -> None:
    story = Story().look(0.1).look(1001, DispatchView())

    assert story.look(1100, view(report=active())).status["lateReport"]["phase"] == "Active"
    story.look(1200, view(report=ended()))

    assert story.ending == ("Failed", "OutcomeUnknown")
    assert story.status["lateReport"]["phase"] == "Complete"


def test_a_stale_report_after_the_agents_ending_is_no_news() -> None:
    story = Story().look(0.1).look(101, view(report=ended())).look(102, view(report=active()))

    assert "lateReport" not in story.status


def test_a_finished_dispatch_still_observes_its_generation() -> None:
    story = Story().look(0.1).look(101, view(report=ended()))
    story.change(ttl_seconds_after_finished=60).look(102)

    assert story.status["observedGeneration"] == 2
    assert {each["observedGeneration"] for each in story.status["conditions"]} == {2}


def test_the_time_to_live_begins_at_the_end() -> None:
    story = Story(dispatch(ttlSecondsAfterFinished=60)).look(0.1).look(101, view(report=ended()))

    story.look(150)
    assert Delete() not in story.decision.actions
    assert story.decision.again_us == at(161)

    story.look(161)
    assert Delete() in story.decision.actions


def test_two_replicas_both_need_to_prove() -> None:
    both: list[Holding] = [holding(), holding(replica="gateway-1", accepted=False)]
    story = Story().look(0.1).look(60, view(*both))
    assert story.status["phase"] == "Submitted"

    story.look(61, view(holding(), holding(replica="gateway-1")))
    assert story.status["phase"] == "Expired"
