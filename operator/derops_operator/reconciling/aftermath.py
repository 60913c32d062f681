"""What is left to do after a Dispatch ended: its status is frozen, but for what came late."""

from collections.abc import Collection
from typing import Any

from derops.lifecycle import MESSAGE_LIMIT, Phase, Reason
from derops.schedules import SECOND_US
from derops.transitions import Actor
from derops.wire.v1 import dispatch_pb2
from derops_operator.gateways.views import Doubt, ReportedDispatch
from derops_operator.reconciling import conditions, dispatch_status
from derops_operator.reconciling.actions import (
    Delete,
    DispatchAction,
    DispatchDecision,
    RemoveFinalizer,
    Settle,
    Submit,
)
from derops_operator.reconciling.conditions import WantedCondition
from derops_operator.reconciling.deadlines import DELETION_GRACE_US
from derops_operator.reconciling.dispatch_conditions import judge
from derops_operator.reconciling.outcomes import Outcome
from derops_operator.reconciling.reports import is_unreverted
from derops_operator.reconciling.wording import (
    describe_news,
    describe_report,
    describe_unreverted_at_deletion,
)
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch, DispatchCondition
from derops_operator.resources.instants import format_instant

_WATCH_US = 180 * SECOND_US
"""For how long what the device may take yet is not settled: two minutes, and for a report."""

_PROVEN_LATE = frozenset({"Delivered", "Accepted", "Applied", "Verified", "Reverted"})


def tidy_up(
    dispatch: Dispatch, asset: Asset | None, view: ReportedDispatch, now_us: int
) -> DispatchDecision:
    """Decide about a Dispatch that has ended."""
    waits = _waits_for_revert(dispatch, asset, view)
    watched_until_us = _watched_until_us(dispatch, asset, view)
    watched = waits or now_us < watched_until_us
    actions: list[DispatchAction] = [
        Submit(known_phase=dispatch.phase) if watched else Settle(),
    ]
    again_us = watched_until_us if now_us < watched_until_us else None
    held_until_us = _held_until_us(dispatch, waits=waits)
    if now_us < held_until_us:
        again_us = held_until_us
    elif dispatch.meta.holds_finalizer:
        warning = describe_unreverted_at_deletion(dispatch) if held_until_us else ""
        actions.append(RemoveFinalizer(warning=warning))
    delete_us = _delete_us(dispatch, watched=watched)
    if delete_us is not None and now_us >= delete_us:
        actions.append(Delete())
    elif delete_us is not None:
        again_us = delete_us
    status = _complete_status(dispatch, view, now_us)
    return DispatchDecision(actions=tuple(actions), status=status, again_us=again_us)


def _complete_status(dispatch: Dispatch, view: ReportedDispatch, now_us: int) -> dict[str, Any]:
    """Return the frozen status with what came late."""
    generation = dispatch.meta.generation
    status = {**dispatch.status, "observedGeneration": generation}
    status["conditions"] = [
        {**each, "observedGeneration": generation} for each in dispatch.conditions
    ]
    status |= _what_was_missing(dispatch, view, now_us)
    late = _late_report(dispatch, view)
    if late is not None:
        status["lateReport"] = late
    return status


def _held_until_us(dispatch: Dispatch, *, waits: bool) -> int:
    """Return until when a deleted dispatch waits for its device to be reverted; 0 = it does not."""
    deleting_us = dispatch.meta.deleting_us
    return deleting_us + DELETION_GRACE_US if waits and deleting_us is not None else 0


def _delete_us(dispatch: Dispatch, *, watched: bool) -> int | None:
    """Return when an ended dispatch is to be deleted; None = not, or not while it is watched."""
    live_seconds = dispatch.ttl_seconds_after_finished
    if live_seconds is None or dispatch.meta.deleting_us is not None or watched:
        return None
    return dispatch.completed_us + live_seconds * SECOND_US


def _waits_for_revert(dispatch: Dispatch, asset: Asset | None, view: ReportedDispatch) -> bool:
    """Tell whether its agent has yet to revert its device: gateways keep what it says of it."""
    if asset is None or dispatch.is_of_an_earlier(asset) or view.disk_lost:
        return False
    report = view.report
    if report is None:  # as after a start of the operator
        return dispatch.is_unreverted
    told = dispatch.reason in (report.reason, Reason.OUTCOME_UNKNOWN)
    return told and is_unreverted(report)


def _watched_until_us(dispatch: Dispatch, asset: Asset | None, view: ReportedDispatch) -> int:
    """Return until when gateways keep it, as its agent says that the device may take it yet.

    After that it may be heard all the same: the agent goes on by itself. 0 = it says no such thing.
    """
    if asset is None or dispatch.is_of_an_earlier(asset) or view.report is None:
        return 0
    if not Phase(view.report.phase).terminal or not view.report.pending_error:
        return 0
    return dispatch.completed_us + _WATCH_US


def _what_was_missing(dispatch: Dispatch, view: ReportedDispatch, now_us: int) -> dict[str, Any]:
    """Return what an agent learnt, or could tell, only after the end; the phase stays."""
    report = view.report
    if report is None:
        return {}
    unreverted = dispatch.status_of(DispatchCondition.REVERTED) == "False"
    if view.disk_lost and is_unreverted(report):
        words = "the agent lost its disk, and cannot say whether the device was reverted"
        lost = [WantedCondition("Reverted", "Unknown", Reason.LEDGER_LOST, words)] * unreverted
        generation = dispatch.meta.generation
        return {"conditions": conditions.fold(dispatch.conditions, lost, generation, now_us)}
    if _is_open(dispatch, report, unreverted=unreverted):
        news = describe_news(dispatch, report, unreverted=unreverted)
        message = dispatch.message[: MESSAGE_LIMIT - len(news)] + news
        return _with_report(dispatch, view, report, message, now_us)
    forerun = bool(view.lost_ledger_id) and report.reason != Reason.LEDGER_LOST
    proves = not forerun and view.doubt(dispatch.meta.created_us) is Doubt.NONE
    if dispatch.reason == Reason.OUTCOME_UNKNOWN and Phase(report.phase).terminal and proves:
        return _with_report(dispatch, view, report, dispatch.message, now_us, kinds=_PROVEN_LATE)
    return {}


def _is_open(dispatch: Dispatch, report: dispatch_pb2.DispatchReport, *, unreverted: bool) -> bool:
    """Tell whether the agent that ended it may still have something to say of its device."""
    if (report.phase, report.reason) != (dispatch.phase, dispatch.reason):
        return False
    applied = dispatch.status_of(DispatchCondition.APPLIED)
    found = report.applied_us > 0 and applied != "True"
    return unreverted or is_unreverted(report) or found or applied == "Unknown"


def _with_report(
    dispatch: Dispatch,
    view: ReportedDispatch,
    report: dispatch_pb2.DispatchReport,
    message: str,
    now_us: int,
    *,
    kinds: Collection[str] | None = None,
) -> dict[str, Any]:
    """Return the fields of status that a report fills in after the end.

    Args:
        dispatch: As it ended.
        view: What the gateways know of it.
        report: The one that is filled in.
        message: That status is to have.
        now_us: The time.
        kinds: The conditions that the report proves; None = all.
    """
    outcome = Outcome(
        phase=Phase(report.phase),
        reason=report.reason,
        message=message if kinds is None else describe_report(report, None),
        actor=Actor.AGENT,
        at_us=view.received_us,
        early=dispatch.status_of(DispatchCondition.SUCCEEDED) == "Unknown",
    )
    wanted = judge(dispatch, outcome, report, written=bool(view.written_us))
    kept = [each for each in wanted if kinds is None or each.type in kinds]
    return {
        "message": message,
        "timeline": dispatch_status.timeline(dispatch, view, 0),
        "execution": dispatch_status.execution(dispatch, report),
        "conditions": conditions.fold(dispatch.conditions, kept, dispatch.meta.generation, now_us),
    }


def _late_report(dispatch: Dispatch, view: ReportedDispatch) -> dict[str, Any] | None:
    """Return what a report says that the frozen status does not, or None."""
    report = view.report
    if report is None or not report.phase or _is_told(dispatch, report):
        return None
    at_us = report.transitions[-1].at_us if report.transitions else view.received_us
    return {
        "phase": report.phase,
        "reason": report.reason,
        "message": report.message[:MESSAGE_LIMIT],
        "at": format_instant(at_us),
    }


def _is_told(dispatch: Dispatch, report: dispatch_pb2.DispatchReport) -> bool:
    """Tell whether the frozen status has what a report says.

    Where the headend ended the dispatch, any word of the agent that status does not have is news;
    where the agent did, only a different ending is.
    """
    if (report.phase, report.reason) == (dispatch.phase, dispatch.reason):
        return True
    if Phase(report.phase).terminal:
        return False
    lines = dispatch.history
    ended_by = next((e["actor"] for e in reversed(lines) if Phase(e["phase"]).terminal), "")
    heard = any((e["phase"], e["reason"]) == (report.phase, report.reason) for e in lines)
    return ended_by == Actor.AGENT or heard
