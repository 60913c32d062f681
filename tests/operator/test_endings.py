"""How a dispatch ends: proofs, cancels, deletions, and that an ending stays."""

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
from derops_operator.gateways.views import Holding, ReportedDispatch
from derops_operator.reconciling.actions import (
    Delete,
    RemoveFinalizer,
    Settle,
    Submit,
)
from derops_operator.reconciling.conditions import find
from derops_operator.resources.assets import Asset
from derops_operator.resources.instants import format_second

# Proofs


def test_an_unsent_dispatch_is_withdrawn_after_accept_by_and_then_expires() -> None:
    story = Story().look(0.1)

    story.look(52, view(holding(accepted=False)))
    assert story.submit == Submit(cancelled=True, cancel_reason="AgentOffline")
    assert story.status["phase"] == "Submitted"

    story.look(52.1, view(holding(accepted=True)))
    assert story.ending == ("Expired", "AgentOffline")
    assert story.conditions["Delivered"] == "False"


@pytest.mark.parametrize("state", ["InService", "OutOfService"])
def test_gateways_that_hold_the_order_as_it_was_prove_nothing(state: str) -> None:
    story = Story().look(0.1)
    if state == "OutOfService":
        story.asset = asset(operatingState=state)

    story.look(52, view(holding(accepted=True), cancelled=False))

    assert story.submit is not None
    assert story.submit.cancelled
    assert story.status["phase"] == "Submitted"


def test_before_accept_by_nothing_is_withdrawn() -> None:
    story = Story().look(0.1).look(50.5)

    assert story.submit == Submit()
    assert story.status["phase"] == "Submitted"


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(ReportedDispatch(), id="no gateway was heard"),
        pytest.param(view(holding(), complete=False), id="a configured gateway is not connected"),
        pytest.param(view(holding(connected=False)), id="the gateway that held it is lost"),
        pytest.param(view(holding(generation=None)), id="a gateway has not said where it stands"),
        pytest.param(view(holding(state_since_us=at(5))), id="the gateway began anew meanwhile"),
        pytest.param(view(holding(), holding(written_us=at(3))), id="one of two gateways wrote it"),
        pytest.param(view(report=acked()), id="the agent accepted it"),
    ],
)
def test_nothing_expires_without_proof(seen: ReportedDispatch) -> None:
    story = Story().look(0.1).look(60, seen)

    assert story.status["phase"] != "Expired"
    assert story.submit is not None
    assert not story.submit.cancelled


def test_what_was_shown_as_sent_never_expires_by_the_operator() -> None:
    story = Story().look(0.1).look(1, view(holding(written_us=at(0.5)))).look(60, view(holding()))

    assert story.status["phase"] == "Sent"


def test_without_proof_the_outcome_is_unknown_after_the_report_deadline() -> None:
    story = Story().look(0.1).look(999, ReportedDispatch())
    assert story.status["phase"] == "Submitted"

    story.look(1001, ReportedDispatch())

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

    assert story.look(1058, view()).status["phase"] == "Active"
    assert story.look(1059, view(report=late)).status["phase"] == "Active"
    assert story.look(1061, view(report=late)).status["phase"] == "Failed"


def test_a_decision_names_the_time_of_the_next_one() -> None:
    story = Story().look(0.1)
    assert story.decision.again_us is not None
    assert at(51) <= story.decision.again_us < at(52)

    story.look(60, view(report=acked()))
    assert story.decision.again_us is not None
    assert at(130) <= story.decision.again_us < at(131)

    story.look(131, view(report=acked()))
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


def test_what_a_quarantine_ended_says_so_also_once_it_is_lifted() -> None:
    story = Story().look(0.1).look(2, view(report=active()))
    quarantine = {"identity": {"quarantine": {"reason": "SetInSpec", "at": format_second(at(3))}}}
    story.asset = asset(operatingState="Quarantined", status=quarantine)
    story.look(70, view(report=active()))
    assert "spec.operatingState is Quarantined; its agent gets no stream" in story.status["message"]

    story.asset = asset()
    story.look(80, view(report=ended("Cancelled", "AssetQuarantined")))
    assert story.status["message"] == "its asset was quarantined; the device was reverted"


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


def test_the_end_that_a_deletion_names_is_the_latest_that_the_agent_may_have_planned() -> None:
    drawn = Story(dispatch(randomizeStartSeconds=3600)).look(0.1).change(deleting_us=at(5))
    drawn.look(66, view(holding(written_us=at(1))))
    assert drawn.removal is not None
    assert format_second(at(3700)) in drawn.removal.warning

    planned = Story(dispatch(randomizeStartSeconds=3600)).look(0.1).change(deleting_us=at(5))
    planned.look(66, view(report=acked(planned_end_us=at(200))))
    assert planned.removal is not None
    assert format_second(at(200)) in planned.removal.warning


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
    story = Story().look(0.1).look(1001, ReportedDispatch())

    assert story.look(1100, view(report=active())).status["lateReport"]["phase"] == "Active"
    story.look(1200, view(report=ended()))

    assert story.ending == ("Failed", "OutcomeUnknown")
    assert story.status["lateReport"]["phase"] == "Complete"


def test_what_was_known_when_the_outcome_became_unknown_is_no_late_report() -> None:
    known = view(report=active(transitions=ended().transitions[:2]))
    story = Story().look(0.1).look(2, known).look(1001, known)
    assert story.ending == ("Failed", "OutcomeUnknown")

    assert "lateReport" not in story.look(1002, known).status


@pytest.mark.parametrize(
    ("late", "applied", "seconds"),
    [
        (ended(), "True", 98),
        (ended("Cancelled", "CancelledBeforeStart", applied_us=0, ended_us=0), "False", None),
    ],
)
def test_what_the_agent_proves_after_an_unknown_outcome_is_in_the_status_beside_the_phase(
    late: dispatch_pb2.DispatchReport, applied: str, seconds: int | None
) -> None:
    story = Story().look(0.1).look(1001, ReportedDispatch())
    assert story.conditions["Applied"] == "Unknown"

    story.look(1200, view(report=late))
    assert story.ending == ("Failed", "OutcomeUnknown")
    assert (story.conditions["Applied"], story.conditions["Reverted"]) == (applied, "True")
    assert story.status["execution"].get("activeSeconds") == seconds
    assert (story.conditions["Succeeded"], story.conditions["Stalled"]) == ("False", "True")
    assert Settle() in story.decision.actions


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


def test_the_time_to_live_waits_for_the_device() -> None:
    story = Story(dispatch(ttlSecondsAfterFinished=60)).look(0.1)
    story.look(111, view(report=unreverted()))

    story.look(900, view(report=unreverted()))
    assert Delete() not in story.decision.actions

    story.look(901, view(report=unreverted(sequence=10, reverted_us=at(900))))
    assert Delete() in story.decision.actions


def test_two_replicas_both_need_to_prove() -> None:
    both: list[Holding] = [holding(), holding(replica="gateway-1", accepted=False)]
    story = Story().look(0.1).look(60, view(*both))
    assert story.status["phase"] == "Submitted"

    story.look(61, view(holding(), holding(replica="gateway-1")))
    assert story.status["phase"] == "Expired"


# A device that does not answer


def unreverted(reason: str = "DeviceOffline", **fields: Any) -> dispatch_pb2.DispatchReport:
    known = {"reverted_us": 0, "active_milliseconds": 40_000, "message": "not known"}
    return ended("Failed", reason, **{**known, **fields})


def test_a_silent_device_is_told_while_the_window_goes_on() -> None:
    story = Story().look(0.1).look(2, view(report=active(verified="True")))
    assert story.conditions["Verified"] == "True"

    silent = active(sequence=2, verified="Unknown", verified_reason="DeviceOffline")
    story.look(20, view(report=silent))
    assert story.status["phase"] == "Active"
    assert story.conditions["Verified"] == "Unknown"
    assert "does not answer" in story.status["message"]

    story.look(30, view(report=active(sequence=3, verified="True")))
    assert story.conditions["Verified"] == "True"
    assert "does not answer" not in story.status["message"]


@pytest.mark.parametrize("reason", ["DeviceOffline", "RevertFailed", "LocalOverride"])
def test_an_end_before_the_revert_says_so_and_is_completed_by_it(reason: str) -> None:
    story = Story().look(0.1).look(111, view(report=unreverted(reason)))
    assert story.ending == ("Failed", reason)
    assert story.conditions["Applied"] == "True"
    assert story.conditions["Reverted"] == "False"

    story.look(112, view(report=unreverted(reason)))
    assert Settle() not in story.decision.actions
    assert RemoveFinalizer() in story.decision.actions

    reverted = unreverted(reason, sequence=10, reverted_us=at(700), active_milliseconds=698_000)
    story.look(701, view(report=reverted))
    assert Settle() in story.decision.actions
    assert story.ending == ("Failed", reason)
    assert story.conditions["Reverted"] == "True"
    assert story.status["execution"]["activeSeconds"] == 698
    assert "revertedAt" in story.status["timeline"]
    assert story.status["message"] == "not known; it was reverted at 2027-01-15T08:11:40Z"
    assert "lateReport" not in story.status


def test_a_deleted_dispatch_waits_for_its_revert_for_as_long_as_for_its_end() -> None:
    story = Story().look(0.1).look(2, view(report=active()))
    story.change(deleting_us=at(20))
    left = unreverted("RevertFailed", sequence=9)
    story.look(40, view(report=left)).look(79, view(report=left))
    assert story.ending == ("Failed", "RevertFailed")
    assert RemoveFinalizer() not in story.decision.actions
    assert story.decision.again_us == at(80)

    story.look(81, view(report=left))
    assert story.removal is not None
    assert "not known" in story.removal.warning
    assert "RevertFailed" in story.removal.warning


def test_an_operator_that_starts_anew_has_gateways_keep_what_is_unreverted() -> None:
    story = Story().look(0.1).look(111, view(report=unreverted()))

    story.look(120, ReportedDispatch())
    assert story.submit == Submit(known_phase=Phase.FAILED)
    assert Settle() not in story.decision.actions

    story.look(701, view(report=unreverted(sequence=10, reverted_us=at(700))))
    assert story.conditions["Reverted"] == "True"
    assert Settle() in story.decision.actions
    assert Settle() in story.look(702, ReportedDispatch()).decision.actions


def test_without_its_asset_nobody_is_left_to_revert_a_device() -> None:
    story = Story().look(0.1).look(111, view(report=unreverted()))
    story.asset = None

    assert Settle() in story.look(120, view(report=unreverted())).decision.actions


def test_an_unknown_outcome_is_settled_also_when_the_device_was_silent_at_last() -> None:
    silent = active(verified="Unknown", verified_reason="DeviceOffline")
    story = Story().look(0.1).look(1001, view(report=silent)).look(1002, view(report=silent))

    assert story.ending == ("Failed", "OutcomeUnknown")
    assert Settle() in story.decision.actions


DEAD: dict[str, Any] = {"applied_us": 0, "active_milliseconds": 0, "evidence": "Unanswered"}


@pytest.mark.parametrize("reason", ["DeviceOffline", "DeviceWriteFailed", "CommsLossFailsafe"])
def test_of_a_device_that_was_dead_at_the_start_it_is_not_known_whether_it_took_it(
    reason: str,
) -> None:
    story = Story().look(0.1).look(111, view(report=unreverted(reason, **DEAD)))
    assert story.conditions["Applied"] == "Unknown"
    assert story.conditions["Reverted"] == "False"

    story.look(112, view(report=unreverted(reason, **DEAD)))
    assert Settle() not in story.decision.actions

    story.look(701, view(report=unreverted(reason, **DEAD, sequence=10, reverted_us=at(700))))
    assert story.conditions["Applied"] == "Unknown"
    assert story.conditions["Reverted"] == "True"


def test_a_device_that_took_something_else_is_reverted_before_it_counts_as_unchanged() -> None:
    mismatch = {**DEAD, "evidence": ""}
    story = Story().look(0.1).look(111, view(report=unreverted("ReadBackMismatch", **mismatch)))
    assert (story.conditions["Applied"], story.conditions["Reverted"]) == ("False", "False")

    story.look(112, view(report=unreverted("ReadBackMismatch", **mismatch)))
    assert Settle() not in story.decision.actions


def test_a_device_that_says_later_that_it_took_nothing_leaves_nothing_open() -> None:
    story = Story().look(0.1).look(111, view(report=unreverted(**DEAD)))
    assert story.status["execution"]["evidence"] == "Unanswered"

    answered = {**DEAD, "evidence": "", "reverted_us": at(700)}
    story.look(701, view(report=unreverted(**answered, sequence=10)))
    assert story.conditions["Applied"] == "False"
    assert "evidence" not in story.status["execution"]


def doubtful(**fields: Any) -> dispatch_pb2.DispatchReport:
    """A start that was given up, whose write may land yet."""
    facts = {**DEAD, "reverted_us": at(112), "pending_error": "a write of it may land yet"}
    return unreverted(**{**facts, **fields})


def test_what_may_land_yet_is_not_settled_and_not_called_unapplied() -> None:
    story = Story().look(0.1).look(113, view(report=doubtful()))
    assert story.conditions["Applied"] == "Unknown"
    words = find(story.status["conditions"], "Applied")["message"]
    assert words.endswith("; a write of it may land yet")
    assert story.conditions["Reverted"] == "True"

    story.look(114, view(report=doubtful()))
    assert story.submit == Submit(known_phase=Phase.FAILED)
    assert RemoveFinalizer() in story.decision.actions

    story.look(240, view(report=doubtful(sequence=10, evidence="", pending_error="")))
    assert story.conditions["Applied"] == "False"
    assert story.ending == ("Failed", "DeviceOffline")
    assert Settle() in story.decision.actions


def test_what_landed_after_the_end_was_told_turns_applied_true_and_is_reverted_again() -> None:
    story = Story().look(0.1).look(113, view(report=doubtful())).look(114, view(report=doubtful()))
    found = {"applied_us": at(117), "evidence": "ReadBack", "pending_error": ""}
    story.look(118, view(report=doubtful(sequence=10, **found, reverted_us=0)))
    assert story.ending == ("Failed", "DeviceOffline")
    assert (story.conditions["Applied"], story.conditions["Reverted"]) == ("True", "False")
    assert f"the device did take it, at {format_second(at(117))}" in story.status["message"]
    assert "revertedAt" not in story.status["timeline"]
    assert Settle() not in story.decision.actions

    undone = {**found, "reverted_us": at(119), "active_milliseconds": 2000}
    story.look(120, view(report=doubtful(sequence=11, **undone)))
    assert (story.conditions["Applied"], story.conditions["Reverted"]) == ("True", "True")
    assert story.status["execution"]["activeSeconds"] == 2
    assert "revertedAt" in story.status["timeline"]
    assert story.status["message"].endswith(f"; it was reverted at {format_second(at(119))}")
    assert "lateReport" not in story.status
    assert Settle() in story.decision.actions


def test_what_landed_after_it_was_settled_is_told_all_the_same() -> None:
    settled = doubtful(pending_error="")
    story = Story().look(0.1).look(113, view(report=settled)).look(114, view(report=settled))
    assert Settle() in story.decision.actions

    found = {"applied_us": at(117), "evidence": "ReadBack", "active_milliseconds": 2000}
    undone = doubtful(sequence=10, **found, pending_error="", reverted_us=at(119))
    story.look(120, view(report=undone))
    assert (story.conditions["Applied"], story.conditions["Reverted"]) == ("True", "True")
    assert story.ending == ("Failed", "DeviceOffline")


def test_a_lost_disk_ends_the_wait_for_a_revert_that_nobody_will_tell() -> None:
    story = Story().look(0.1).look(113, view(report=unreverted()))
    story.look(114, view(report=unreverted()))
    assert Settle() not in story.decision.actions

    for seconds in (120, 121):
        story.look(seconds, view(report=unreverted(), disk_lost=True))
        assert story.conditions["Reverted"] == "Unknown"
        assert Settle() in story.decision.actions
    assert find(story.status["conditions"], "Reverted")["reason"] == "LedgerLost"
    assert story.ending[0] == "Failed"


def test_what_a_device_took_after_it_had_said_no_turns_applied_true() -> None:
    refused = doubtful(evidence="")
    story = Story().look(0.1).look(113, view(report=refused)).look(114, view(report=refused))
    assert story.conditions["Applied"] == "False"
    assert "may land yet" in find(story.status["conditions"], "Applied")["message"]

    found = {"applied_us": at(117), "evidence": "ReadBack", "active_milliseconds": 2000}
    undone = doubtful(sequence=10, **found, pending_error="", reverted_us=at(119))
    story.look(120, view(report=undone))
    assert (story.conditions["Applied"], story.conditions["Reverted"]) == ("True", "True")
    assert "the device did take it" in story.status["message"]


def test_a_completed_window_that_landed_again_is_not_reverted_until_it_is() -> None:
    done = ended("Complete", "WindowEnded", pending_error="a write of it may land yet")
    story = Story().look(0.1).look(102, view(report=done)).look(103, view(report=done))
    assert (story.conditions["Applied"], story.conditions["Reverted"]) == ("True", "True")
    assert Settle() not in story.decision.actions

    again = ended("Complete", "WindowEnded", sequence=10, reverted_us=0)
    story.look(110, view(report=again))
    assert (story.ending, story.conditions["Reverted"]) == (("Complete", "WindowEnded"), "False")
    assert "the device took it again after its end" in story.status["message"]

    story.look(112, view(report=ended("Complete", "WindowEnded", sequence=11)))
    assert story.conditions["Reverted"] == "True"


def test_a_deletion_does_not_wait_for_what_may_land() -> None:
    story = Story().look(0.1).look(2, view(report=active()))
    story.change(deleting_us=at(20))
    story.look(40, view(report=doubtful())).look(41, view(report=doubtful()))

    assert story.removal == RemoveFinalizer()


def test_what_may_land_is_settled_in_time_though_nobody_says_what_became_of_it() -> None:
    story = Story().look(0.1).look(113, view(report=doubtful())).look(114, view(report=doubtful()))
    assert story.decision.again_us == at(113 + 180)

    story.look(294, view(report=doubtful()))
    assert Settle() in story.decision.actions
    assert story.conditions["Applied"] == "Unknown"


# Too early


def test_what_is_complete_before_its_end_by_the_gateways_clock_is_no_certain_success() -> None:
    story = Story().look(0.1).look(2, view(report=active()))

    story.look(40, view(report=ended(), received_us=at(40)))

    assert story.ending == ("Complete", "WindowEnded")
    assert story.conditions["Succeeded"] == "Unknown"
    assert "heard of that 60 s before the end that was ordered" in story.status["message"]
    story.look(41, view(report=ended(sequence=99, reverted_us=at(41)), received_us=at(141)))
    assert story.conditions["Succeeded"] == "Unknown"


def test_what_is_complete_at_its_end_is_a_success_whatever_a_second_the_clocks_differ() -> None:
    story = Story().look(0.1).look(2, view(report=active()))

    story.look(97, view(report=ended(), received_us=at(97)))

    assert story.conditions["Succeeded"] == "True"
