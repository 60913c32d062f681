"""What to do about one Dispatch, and what its status says.

Three cases: no gateway holds it (it is judged), gateways may hold it (reports, proofs and deadlines
decide), it ended (frozen; what is left is to tidy up).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from derops.lifecycle import MESSAGE_LIMIT, Phase, Reason
from derops.schedules import SECOND_US
from derops.transitions import Actor, fold
from derops.wire.v1 import dispatch_pb2
from derops_operator.gateways.replicas import ReportedDispatch
from derops_operator.reconciling import conditions, dispatch_status
from derops_operator.reconciling.actions import (
    AddFinalizer,
    Delete,
    DispatchAction,
    RemoveFinalizer,
    Settle,
    Submit,
)
from derops_operator.reconciling.admission import Admission, admit, refuse_for_asset
from derops_operator.reconciling.conditions import WantedCondition, status_of
from derops_operator.reconciling.dispatch_conditions import Outcome, is_silent, is_unreverted, judge
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.instants import format_second, parse_instant

DELETION_GRACE_US = 60 * SECOND_US
"""How long a deleted object waits for the agent to confirm."""

WITHDRAW_AFTER_US = SECOND_US
"""After accept-by, before an unsent dispatch is withdrawn: word of a write may be on its way."""

ASSET_GRACE_US = 60 * SECOND_US
"""How long after its creation a dispatch waits for its asset, if its accept-by is not later."""

_EARLY_US = 5 * SECOND_US
"""By how much the clocks of agent, gateway and API server may differ without a word about it."""

_REPORT_GRACE_US = 30 * SECOND_US
"""How long after the end a report is no news yet; then status says that it is missing."""

_WATCH_US = 180 * SECOND_US
"""For how long what the device may take yet is not settled: two minutes, and for a report."""

_PROOF_LOOK_US = 10 * SECOND_US
"""How often a proof is looked for that depends on which replicas there are."""

_OPERATOR, _GATEWAY, _AGENT = Actor.OPERATOR, Actor.GATEWAY, Actor.AGENT
_PROVEN_LATE = frozenset({"Delivered", "Accepted", "Applied", "Verified", "Reverted"})
_STOPPED = {
    Reason.ASSET_DELETED: "its asset was deleted",
    Reason.ASSET_OUT_OF_SERVICE: "its asset was taken out of service",
    Reason.ASSET_QUARANTINED: "its asset was quarantined",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchDecision:
    """What to do, in this order, and then the status to show."""

    actions: tuple[DispatchAction, ...] = ()
    status: dict[str, Any]
    again_us: int | None = None
    """When time alone may change the decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Withdrawal:
    """Why an order is cancelled; an empty reason is the requester."""

    reason: str
    words: str


def reconcile_dispatch(
    dispatch: Dispatch,
    asset: Asset | None,
    view: ReportedDispatch,
    now_us: int,
    *,
    asset_grace_us: int = ASSET_GRACE_US,
    guarded_since_us: int | None = None,
) -> DispatchDecision:
    """Decide about one Dispatch.

    Args:
        dispatch: As last heard from the API server.
        asset: The asset it names, if there is one.
        view: What the gateways know of it.
        now_us: The time.
        asset_grace_us: How long after its creation it waits for its asset.
        guarded_since_us: Since when nobody can forge who ordered it; None = anybody can.
    """
    if dispatch.phase.terminal:
        return _tidy_up(dispatch, asset, view, now_us)
    if not dispatch.in_flight and dispatch.meta.deleting_us is not None:
        return DispatchDecision(status=dict(dispatch.status))
    decision = (
        _follow(dispatch, asset, view, now_us)
        if dispatch.in_flight
        else _begin(dispatch, asset, view, now_us, asset_grace_us)
    )
    decision.status["createdBy"] = dispatch.creator(guarded_since_us)
    return decision


def _begin(
    dispatch: Dispatch,
    asset: Asset | None,
    view: ReportedDispatch,
    now_us: int,
    asset_grace_us: int,
) -> DispatchDecision:
    verdict = admit(dispatch, asset, now_us, asset_grace_us)
    outcome = Outcome(
        phase=verdict.phase,
        reason=verdict.reason,
        message=verdict.message,
        actor=_OPERATOR,
        at_us=now_us,
    )
    status = _status(dispatch, outcome, view, now_us, submitted=verdict.admitted)
    if not verdict.admitted:
        return DispatchDecision(status=status, again_us=verdict.again_us)
    return DispatchDecision(
        actions=(AddFinalizer(), Submit()),
        status=status,
        again_us=_next_look(replace(dispatch, status=status), now_us),
    )


def _follow(
    dispatch: Dispatch, asset: Asset | None, view: ReportedDispatch, now_us: int
) -> DispatchDecision:
    withdrawal = _withdrawal(dispatch, asset, view, now_us)
    outcome = _outcome(dispatch, view, withdrawal, now_us)
    status = _status(dispatch, outcome, view, now_us, submitted=True)
    deleting_us = dispatch.meta.deleting_us
    actions: list[DispatchAction] = []
    if not dispatch.meta.holds_finalizer and deleting_us is None:
        actions.append(AddFinalizer())
    actions.append(
        Submit(
            cancelled=withdrawal is not None,
            cancel_reason=withdrawal.reason if withdrawal else "",
            known_phase=dispatch.phase,
        )
    )
    overdue = deleting_us is not None and now_us > deleting_us + DELETION_GRACE_US
    if overdue and not outcome.phase.terminal:
        actions.append(RemoveFinalizer(warning=_unknown_at_deletion(dispatch, outcome.phase, view)))
    return DispatchDecision(
        actions=tuple(actions),
        status=status,
        again_us=_next_look(replace(dispatch, status=status), now_us),
    )


def _tidy_up(
    dispatch: Dispatch, asset: Asset | None, view: ReportedDispatch, now_us: int
) -> DispatchDecision:
    status = {**dispatch.status, "observedGeneration": dispatch.meta.generation}
    status["conditions"] = [
        {**each, "observedGeneration": dispatch.meta.generation}
        for each in dispatch.status.get("conditions", [])
    ]
    status |= _what_was_missing(dispatch, view, now_us)
    late = dispatch_status.late_report(dispatch, view)
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
            RemoveFinalizer(warning=_unreverted_at_deletion(dispatch) if deserted else "")
        )
    live_seconds = dispatch.ttl_seconds_after_finished
    if live_seconds is not None and deleting_us is None and not watched:
        ended_us = parse_instant(dispatch.status["completionTime"])
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
    told = dispatch.status.get("reason") in (report.reason, Reason.OUTCOME_UNKNOWN)
    return told and is_unreverted(report)


def _watched_until_us(dispatch: Dispatch, asset: Asset | None, view: ReportedDispatch) -> int:
    """Return until when gateways keep it, as its agent says that the device may take it yet.

    After that it may be heard all the same: the agent goes on by itself. 0 = it says no such thing.
    """
    if asset is None or dispatch.is_of_an_earlier(asset) or view.report is None:
        return 0
    if not Phase(view.report.phase).terminal or not view.report.pending_error:
        return 0
    return parse_instant(dispatch.status["completionTime"]) + _WATCH_US


def _what_was_missing(dispatch: Dispatch, view: ReportedDispatch, now_us: int) -> dict[str, Any]:
    """Return what an agent learnt, or could tell, only after the end; the phase stays."""
    report = view.report
    if report is None:
        return {}
    status, ending = dispatch.status, (report.phase, report.reason)
    stored = status.get("conditions", [])
    message = str(status.get("message", ""))
    unreverted = status_of(stored, "Reverted") == "False"
    if view.disk_lost and is_unreverted(report):
        words = "the agent lost its disk, and cannot say whether the device was reverted"
        wanted = [WantedCondition("Reverted", "Unknown", Reason.LEDGER_LOST, words)] * unreverted
        return {"conditions": conditions.fold(stored, wanted, dispatch.meta.generation, now_us)}
    applied = status_of(stored, "Applied")
    found = report.applied_us > 0 and applied != "True"
    is_open = unreverted or is_unreverted(report) or found or applied == "Unknown"
    if is_open and ending == (status.get("phase"), status.get("reason")):
        kinds = None
        news = _news(report, stored, unreverted=unreverted)
        message = message[: MESSAGE_LIMIT - len(news)] + news
    elif status.get("reason") == Reason.OUTCOME_UNKNOWN and Phase(report.phase).terminal:
        kinds = _PROVEN_LATE
    else:
        return {}
    outcome = Outcome(
        phase=Phase(report.phase),
        reason=report.reason,
        message=message if kinds is None else _words(report, None),
        actor=_AGENT,
        at_us=view.received_us,
        early=status_of(stored, "Succeeded") == "Unknown",
    )
    wanted = judge(dispatch, outcome, report, written=bool(view.written_us))
    kept = [each for each in wanted if kinds is None or each.type in kinds]
    return {
        "message": message,
        "timeline": dispatch_status.timeline(dispatch, view, 0),
        "execution": dispatch_status.execution(dispatch, report),
        "conditions": conditions.fold(stored, kept, dispatch.meta.generation, now_us),
    }


def _news(
    report: dispatch_pb2.DispatchReport, stored: list[Mapping[str, Any]], *, unreverted: bool
) -> str:
    """Return in words what the stored conditions of an ending do not say yet."""
    news = ""
    if report.applied_us and status_of(stored, "Applied") != "True":
        news = f"; the device did take it, at {format_second(report.applied_us)}"
    elif is_unreverted(report) and not unreverted:
        news = "; the device took it again after its end"
    if report.reverted_us and (unreverted or news):
        news += f"; it was reverted at {format_second(report.reverted_us)}"
    return news


def _withdrawal(
    dispatch: Dispatch, asset: Asset | None, view: ReportedDispatch, now_us: int
) -> _Withdrawal | None:
    if dispatch.desired_state == "Cancelled":
        return _Withdrawal(reason="", words="cancelled by its requester")
    if dispatch.meta.deleting_us is not None:
        return _Withdrawal(reason="", words="the Dispatch is being deleted")
    if asset is None or dispatch.is_of_an_earlier(asset):
        return _Withdrawal(
            reason=Reason.ASSET_DELETED, words=f"asset {dispatch.asset_name} was deleted"
        )
    refusal = refuse_for_asset(asset)
    if refusal is not None:
        deaf = "; its agent gets no stream meanwhile, and ends what it runs at its planned end"
        words = refusal.message + deaf * bool(asset.quarantine_reason)
        return _Withdrawal(reason=refusal.reason, words=words)
    late = now_us > dispatch.accept_by_us + WITHDRAW_AFTER_US
    if late and _is_unsent(dispatch, view):
        # Gateways that hold it cancelled will not write it any more: that makes the proof final.
        return _Withdrawal(reason=Reason.AGENT_OFFLINE, words="its accept-by has passed")
    return None


def _is_unsent(dispatch: Dispatch, view: ReportedDispatch) -> bool:
    return (
        dispatch.phase is Phase.SUBMITTED
        and status_of(dispatch.status.get("conditions", []), "Delivered") != "True"
        and view.is_unsent(dispatch.meta.created_us)
    )


def _outcome(
    dispatch: Dispatch, view: ReportedDispatch, withdrawal: _Withdrawal | None, now_us: int
) -> Outcome:
    report = view.report
    reported = Phase(report.phase) if report is not None and report.phase else Phase.SUBMITTED
    if report is not None and reported.terminal:
        at_us = report.transitions[-1].at_us if report.transitions else view.received_us
        if view.lost_ledger_id and report.reason != Reason.LEDGER_LOST:
            return Outcome(
                phase=Phase.FAILED,
                reason=Reason.LEDGER_LOST,
                message=f"it was given to ledger {view.lost_ledger_id} first, which may have run "
                f"it; the agent has ledger {report.ledger_id} now, and says: "
                f"{_words(report, withdrawal)}",
                actor=_OPERATOR,
                at_us=at_us,
            )
        early_us = dispatch.end_us - view.received_us if view.received_us else 0
        early = reported is Phase.COMPLETE and early_us > _EARLY_US
        return Outcome(
            phase=reported,
            reason=report.reason,
            message=_words(report, withdrawal) + _explain_early(early_us) * early,
            actor=_AGENT,
            at_us=at_us,
            early=early,
        )
    proven = _proven(dispatch, view, withdrawal, now_us)
    if proven is not None:
        return proven
    deadline_us = _deadline_us(dispatch, view)
    if now_us > deadline_us:
        return Outcome(
            phase=Phase.FAILED,
            reason=Reason.OUTCOME_UNKNOWN,
            message=_unknown_outcome(dispatch, view, deadline_us),
            actor=_OPERATOR,
            at_us=now_us,
        )
    on_its_way = _on_its_way(dispatch, view, reported, withdrawal, now_us)
    end_us = _latest_end_us(dispatch, view)
    ended = view.report is not None and view.report.ended_us
    if ended or now_us <= end_us + _REPORT_GRACE_US:
        return on_its_way
    overdue = (
        f"{on_its_way.message}; its end {format_second(end_us)} has passed and the agent has not "
        f"reported it: that is waited for until {format_second(deadline_us)}"
    )
    return replace(on_its_way, message=overdue)


def _proven(
    dispatch: Dispatch, view: ReportedDispatch, withdrawal: _Withdrawal | None, now_us: int
) -> Outcome | None:
    """Return the end of a dispatch that provably reached no agent."""
    if withdrawal is None or not _is_unsent(dispatch, view):
        return None
    if not view.is_never_delivered(dispatch.meta.generation, dispatch.meta.created_us):
        return None
    if withdrawal.reason == Reason.AGENT_OFFLINE:
        phase, reason = Phase.EXPIRED, str(Reason.AGENT_OFFLINE)
        message = (
            f"the agent of {dispatch.asset_name} was not connected by accept-by "
            f"{format_second(dispatch.accept_by_us)} (start plus "
            f"{dispatch.start_deadline_seconds} s); no gateway ever sent it, nothing was applied"
        )
    else:
        stopped = withdrawal.reason in _STOPPED
        phase = Phase.CANCELLED
        reason = withdrawal.reason if stopped else str(Reason.CANCELLED_BEFORE_DELIVERY)
        message = f"{withdrawal.words}; no gateway ever sent it, the device was not touched"
    return Outcome(phase=phase, reason=reason, message=message, actor=_OPERATOR, at_us=now_us)


def _on_its_way(
    dispatch: Dispatch,
    view: ReportedDispatch,
    reported: Phase,
    withdrawal: _Withdrawal | None,
    now_us: int,
) -> Outcome:
    stored, status, report = dispatch.phase, dispatch.status, view.report
    waiting = (
        f"; {withdrawal.words}: waiting for the agent to confirm" if withdrawal is not None else ""
    )
    told = fold(stored, reported) is reported and reported.rank >= Phase.ACKED.rank
    if report is not None and told:
        unheard = "; it does not answer, what it holds is not known" if is_silent(report) else ""
        return Outcome(
            phase=reported,
            reason=report.reason,
            message=(report.pending_error or _words(report, None) + unheard) + waiting,
            actor=_AGENT,
            at_us=view.received_us,
        )
    if stored.rank < Phase.SENT.rank and view.written_us:
        return Outcome(
            phase=Phase.SENT,
            reason=Reason.DELIVERED,
            message=f"{_SENTENCES[Reason.DELIVERED]}{waiting}",
            actor=_GATEWAY,
            at_us=view.written_us,
        )
    known = str(status.get("reason") or "")
    reason = known if known and known != Reason.ASSET_NOT_FOUND else str(Reason.VALIDATED)
    message = _SENTENCES.get(reason, reason) + waiting
    return Outcome(phase=stored, reason=reason, message=message, actor=_OPERATOR, at_us=now_us)


def _words(report: dispatch_pb2.DispatchReport, withdrawal: _Withdrawal | None) -> str:
    """Return a sentence for people; where reason and phase say all, the agent's is too short."""
    if report.phase == Phase.CANCELLED and report.reason in _STOPPED:
        # What stopped it may be over, as a quarantine that was lifted.
        stopped = withdrawal is not None and withdrawal.reason in _STOPPED
        words = withdrawal.words if withdrawal and stopped else _STOPPED[Reason(report.reason)]
        reverted = "reverted" if report.applied_us else "not touched"
        return f"{words}; the device was {reverted}"
    if report.ended_us and not Phase(report.phase).terminal:
        return "it has ended; the device is about to be reverted, or to take the next value"
    if report.reason == Reason.CANCELLED_BEFORE_START and report.ended_us:
        return "cancelled at its start; the device was reverted"
    return _SENTENCES.get(report.reason) or report.message or report.reason


def _explain_early(early_us: int) -> str:
    return (
        f"; but a gateway heard so {early_us / SECOND_US:.0f} s before the end that was ordered: "
        "the agent's clock was ahead and it ended too early, or it says what is not so"
    )


def _status(
    dispatch: Dispatch, outcome: Outcome, view: ReportedDispatch, now_us: int, *, submitted: bool
) -> dict[str, Any]:
    stored, report = dispatch.status, view.report
    times = stored.get("timeline", {})
    known = parse_instant(times["submittedAt"]) if "submittedAt" in times else now_us
    own = []
    if submitted:
        line = dispatch_status.entry(
            Phase.SUBMITTED, Reason.VALIDATED, _SENTENCES[Reason.VALIDATED], known, _OPERATOR
        )
        own.append(line)
    if view.written_us:
        sentence = _SENTENCES[Reason.DELIVERED]
        own.append(
            dispatch_status.entry(Phase.SENT, Reason.DELIVERED, sentence, view.written_us, _GATEWAY)
        )
    if outcome.phase.terminal and outcome.actor == _OPERATOR:
        own.append(
            dispatch_status.entry(
                outcome.phase, outcome.reason, outcome.message, outcome.at_us, _OPERATOR
            )
        )
    status: dict[str, Any] = {
        "phase": str(outcome.phase),
        "reason": str(outcome.reason),
        "message": outcome.message[:MESSAGE_LIMIT],
        "observedGeneration": dispatch.meta.generation,
        "timeline": dispatch_status.timeline(dispatch, view, known if submitted else 0),
        "execution": dispatch_status.execution(dispatch, report),
        **dispatch_status.lineage(dispatch, report),
        "conditions": conditions.fold(
            stored.get("conditions", []),
            judge(dispatch, outcome, report, written=bool(view.written_us)),
            dispatch.meta.generation,
            now_us,
        ),
        "history": dispatch_status.history(stored.get("history", []), own, report),
    }
    if outcome.phase.terminal:
        status["completionTime"] = format_second(now_us)
    return status


def _deadline_us(dispatch: Dispatch, view: ReportedDispatch) -> int:
    """Return until when a final report is waited for."""
    return _latest_end_us(dispatch, view) + dispatch.report_deadline_seconds * SECOND_US


def _latest_end_us(dispatch: Dispatch, view: ReportedDispatch) -> int:
    """Return the end as the agent planned it, else the latest that it may plan."""
    times = dispatch.status.get("timeline", {})
    planned_us = view.report.planned_end_us if view.report is not None else 0
    stored_us = parse_instant(times["plannedEnd"]) if "plannedEnd" in times else 0
    return max(planned_us or dispatch.latest_end_us, stored_us)


def _next_look(dispatch: Dispatch, now_us: int) -> int | None:
    ends = [dispatch.end_us, dispatch.latest_end_us]
    if "plannedEnd" in dispatch.status.get("timeline", {}):
        ends.append(parse_instant(dispatch.status["timeline"]["plannedEnd"]))
    looks = [dispatch.accept_by_us + WITHDRAW_AFTER_US]
    looks += [end_us + dispatch.report_deadline_seconds * SECOND_US for end_us in ends]
    looks += [end_us + _REPORT_GRACE_US for end_us in ends]
    if dispatch.meta.deleting_us is not None:
        looks.append(dispatch.meta.deleting_us + DELETION_GRACE_US)
    if dispatch.phase is Phase.SUBMITTED and now_us > dispatch.accept_by_us + WITHDRAW_AFTER_US:
        looks.append(now_us + _PROOF_LOOK_US)
    # A hundredth of a second later, as each of these bounds must have passed.
    return min((look + SECOND_US // 100 for look in looks if look >= now_us), default=None)


def _unknown_outcome(dispatch: Dispatch, view: ReportedDispatch, deadline_us: int) -> str:
    stored = dispatch.phase
    seen = f"its last known phase was {stored}"
    if stored is Phase.SUBMITTED and not view.written_us:
        seen = "whether it reached the agent could not be established"
    return (
        f"no final report by {format_second(deadline_us)} "
        f"({dispatch.report_deadline_seconds} s after the latest end); {seen}"
    )


def _unknown_at_deletion(dispatch: Dispatch, phase: Phase, view: ReportedDispatch) -> str:
    return (
        f"deleted in phase {phase} and the agent of {dispatch.asset_name} did not confirm "
        f"within {DELETION_GRACE_US // SECOND_US} s: whether the device was reverted is not known; "
        f"an agent that runs reverts it when it hears of this, at the latest at the planned end "
        f"{format_second(_latest_end_us(dispatch, view))}"
    )


def _unreverted_at_deletion(dispatch: Dispatch) -> str:
    return (
        f"deleted after it had ended ({dispatch.status['reason']}), and the agent of "
        f"{dispatch.asset_name} did not say within {DELETION_GRACE_US // SECOND_US} s that the "
        f"device was reverted: whether it was is not known; an agent that runs tries on"
    )


_SENTENCES: dict[str, str] = {
    Reason.VALIDATED: "within the asset's limits; waiting for its agent",
    Reason.DELIVERED: "written to the stream of the agent; waiting for it to accept",
    Reason.ACCEPTED: "the agent checked and stored it; it runs at its start, connected or not",
    Reason.APPLIED: "the device took the setpoint",
    Reason.CANCELLED_BEFORE_START: "cancelled before its start; the device was not touched",
    Reason.CANCELLED_WHILE_ACTIVE: "cancelled while it ran; the device was reverted",
}

__all__ = ["Admission", "DispatchDecision", "reconcile_dispatch"]
