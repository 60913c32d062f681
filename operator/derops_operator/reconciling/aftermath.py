"""What is left to do after a Dispatch ended: its status is frozen, but for what came late."""

from typing import Any

from derops.lifecycle import MESSAGE_LIMIT, Phase, Reason
from derops.schedules import SECOND_US
from derops.transitions import Actor
from derops_operator.gateways.views import ReportedDispatch
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
    status = {**dispatch.status, "observedGeneration": dispatch.meta.generation}
    status["conditions"] = [
        {**each, "observedGeneration": dispatch.meta.generation} for each in dispatch.conditions
    ]
    status |= _what_was_missing(dispatch, view, now_us)
    late = _late_report(dispatch, view)
    if late is not None:
        status["lateReport"] = late
    waits = _waits_for_revert(dispatch, asset, view)
    watched_until_us = _watched_until_us(dispatch, asset, view)
    watched = waits or now_us < watched_until_us
    actions: list[DispatchAction] = [
        Submit(known_phase=dispatch.phase) if watched else Settle(),
    ]
    again_us = watched_until_us if now_us < watched_until_us else None
    deleting_us = dispatch.meta.deleting_us
    if waits and deleting_us is not None and now_us < deleting_us + DELETION_GRACE_US:
        again_us = deleting_us + DELETION_GRACE_US
    elif dispatch.meta.holds_finalizer:
        deserted = waits and deleting_us is not None
        actions.append(
            RemoveFinalizer(warning=describe_unreverted_at_deletion(dispatch) if deserted else "")
        )
    live_seconds = dispatch.ttl_seconds_after_finished
    if live_seconds is not None and deleting_us is None and not watched:
        ended_us = dispatch.completed_us
        due_us = ended_us + live_seconds * SECOND_US
        if now_us >= due_us:
            actions.append(Delete())
        else:
            again_us = due_us
    return DispatchDecision(actions=tuple(actions), status=status, again_us=again_us)


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
    stored, message = dispatch.conditions, dispatch.message
    unreverted = dispatch.status_of(DispatchCondition.REVERTED) == "False"
    if view.disk_lost and is_unreverted(report):
        words = "the agent lost its disk, and cannot say whether the device was reverted"
        wanted = [WantedCondition("Reverted", "Unknown", Reason.LEDGER_LOST, words)] * unreverted
        return {"conditions": conditions.fold(stored, wanted, dispatch.meta.generation, now_us)}
    ending = (report.phase, report.reason)
    applied = dispatch.status_of(DispatchCondition.APPLIED)
    found = report.applied_us > 0 and applied != "True"
    is_open = unreverted or is_unreverted(report) or found or applied == "Unknown"
    if is_open and ending == (dispatch.phase, dispatch.reason):
        kinds = None
        news = describe_news(dispatch, report, unreverted=unreverted)
        message = message[: MESSAGE_LIMIT - len(news)] + news
    elif dispatch.reason == Reason.OUTCOME_UNKNOWN and Phase(report.phase).terminal:
        kinds = _PROVEN_LATE
    else:
        return {}
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
        "conditions": conditions.fold(stored, kept, dispatch.meta.generation, now_us),
    }


def _late_report(dispatch: Dispatch, view: ReportedDispatch) -> dict[str, Any] | None:
    """Return what a report says that the frozen status does not, or None.

    Where the headend ended the dispatch, any word of the agent that status does not have is news;
    where the agent did, only a different ending is.
    """
    report = view.report
    if report is None or not report.phase:
        return None
    phase = Phase(report.phase)
    if (report.phase, report.reason) == (dispatch.phase, dispatch.reason):
        return None
    lines = dispatch.history
    ended_by = next((str(e["actor"]) for e in reversed(lines) if Phase(e["phase"]).terminal), "")
    heard = any((e["phase"], e["reason"]) == (report.phase, report.reason) for e in lines)
    if not phase.terminal and (ended_by == "Agent" or heard):
        return None
    at_us = report.transitions[-1].at_us if report.transitions else view.received_us
    return {
        "phase": report.phase,
        "reason": report.reason,
        "message": report.message[:MESSAGE_LIMIT],
        "at": format_instant(at_us),
    }
