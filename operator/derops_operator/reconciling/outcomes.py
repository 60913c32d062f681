"""Where a Dispatch that gateways may hold stands: by reports, proofs and deadlines."""

from dataclasses import dataclass, replace

from derops.lifecycle import Phase, Reason
from derops.schedules import SECOND_US
from derops.transitions import Actor, fold
from derops.wire.v1 import dispatch_pb2
from derops_operator.gateways.views import Doubt, ReportedDispatch
from derops_operator.reconciling.deadlines import REPORT_GRACE_US, latest_end_us, report_deadline_us
from derops_operator.reconciling.reports import is_silent
from derops_operator.reconciling.withdrawal import Withdrawal, is_unsent
from derops_operator.reconciling.wording import (
    SENTENCES,
    STOPPED,
    describe_early,
    describe_report,
    describe_unknown_outcome,
    describe_withheld,
)
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.instants import format_second

_EARLY_US = 5 * SECOND_US
"""By how much the clocks of agent, gateway and API server may differ without a word about it."""

_UNKNOWN = frozenset({Reason.OUTCOME_UNKNOWN, Reason.LEDGER_LOST})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Where a dispatch stands, why, and who says so."""

    phase: Phase
    reason: str
    message: str
    actor: str
    at_us: int
    early: bool = False
    """Whether it was told as complete before its end, by the gateway's clock: that is no certain
    success."""

    @property
    def unknown(self) -> bool:
        """Whether it ended without anybody knowing how."""
        return self.reason in _UNKNOWN


def find_outcome(
    dispatch: Dispatch, view: ReportedDispatch, withdrawal: Withdrawal | None, now_us: int
) -> Outcome:
    """Return where it stands: by its report, else by a proof, else by a deadline."""
    report = view.report
    reported = Phase(report.phase) if report is not None and report.phase else Phase.SUBMITTED
    if report is not None and reported.terminal:
        return _reported_end(dispatch, view, report, withdrawal)
    proven = _proven(dispatch, view, withdrawal, now_us)
    if proven is not None:
        return proven
    deadline_us = report_deadline_us(dispatch, view)
    if now_us > deadline_us:
        return Outcome(
            phase=Phase.FAILED,
            reason=Reason.OUTCOME_UNKNOWN,
            message=_describe_unknown(dispatch, view, deadline_us),
            actor=Actor.OPERATOR,
            at_us=now_us,
        )
    on_its_way = _on_its_way(dispatch, view, reported, withdrawal, now_us)
    awaited = _describe_awaited(dispatch, view, deadline_us, now_us)
    return replace(on_its_way, message="; ".join(filter(None, (on_its_way.message, awaited))))


def _describe_awaited(
    dispatch: Dispatch, view: ReportedDispatch, deadline_us: int, now_us: int
) -> str:
    """Return for what the operator waits that should be there; empty = nothing."""
    if view.withheld is not None:
        return describe_withheld(view.withheld, deadline_us)
    end_us = latest_end_us(dispatch, view)
    ended = view.report is not None and view.report.ended_us
    if ended or now_us <= end_us + REPORT_GRACE_US:
        return ""
    return (
        f"its end {format_second(end_us)} has passed, and the agent has not "
        f"reported it: the operator waits for that until {format_second(deadline_us)}"
    )


def _describe_unknown(dispatch: Dispatch, view: ReportedDispatch, deadline_us: int) -> str:
    if view.withheld is not None:
        return f"{describe_withheld(view.withheld, deadline_us)}, and that has passed"
    return describe_unknown_outcome(dispatch, deadline_us, written=bool(view.written_us))


def _reported_end(
    dispatch: Dispatch,
    view: ReportedDispatch,
    report: dispatch_pb2.DispatchReport,
    withdrawal: Withdrawal | None,
) -> Outcome:
    """Return the end that the agent tells, unless another ledger may have had the dispatch."""
    at_us = report.transitions[-1].at_us if report.transitions else view.received_us
    message = describe_report(report, withdrawal)
    if view.lost_ledger_id and report.reason != Reason.LEDGER_LOST:
        earlier = f"a gateway gave it to ledger {view.lost_ledger_id} first, and the agent of that"
    elif view.doubt(dispatch.meta.created_us) is not Doubt.NONE:
        earlier = (
            "a gateway does not remember back to its creation, and an earlier ledger of the agent"
        )
    else:
        earlier = ""
    if earlier:
        return Outcome(
            phase=Phase.FAILED,
            reason=Reason.LEDGER_LOST,
            message=f"{earlier} may have run it; the agent has ledger {report.ledger_id} now, and "
            f"says: {message}",
            actor=Actor.OPERATOR,
            at_us=at_us,
        )
    reported = Phase(report.phase)
    early_us = dispatch.end_us - view.received_us if view.received_us else 0
    early = reported is Phase.COMPLETE and early_us > _EARLY_US
    return Outcome(
        phase=reported,
        reason=report.reason,
        message=message + describe_early(early_us) * early,
        actor=Actor.AGENT,
        at_us=at_us,
        early=early,
    )


def _proven(
    dispatch: Dispatch, view: ReportedDispatch, withdrawal: Withdrawal | None, now_us: int
) -> Outcome | None:
    """Return the end of a dispatch that provably reached no agent."""
    if withdrawal is None or not is_unsent(dispatch, view):
        return None
    if not view.is_never_delivered(dispatch.meta.generation, dispatch.meta.created_us):
        return None
    if withdrawal.reason == Reason.AGENT_OFFLINE:
        phase, reason = Phase.EXPIRED, str(Reason.AGENT_OFFLINE)
        message = (
            f"the agent of {dispatch.asset_name} was not connected by accept-by "
            f"{format_second(dispatch.accept_by_us)} (start plus "
            f"{dispatch.start_deadline_seconds} s); no gateway ever sent it, and the device was "
            f"not touched"
        )
    else:
        stopped = withdrawal.reason in STOPPED
        phase = Phase.CANCELLED
        reason = withdrawal.reason if stopped else str(Reason.CANCELLED_BEFORE_DELIVERY)
        message = f"{withdrawal.words}; no gateway ever sent it, and the device was not touched"
    return Outcome(phase=phase, reason=reason, message=message, actor=Actor.OPERATOR, at_us=now_us)


def _on_its_way(
    dispatch: Dispatch,
    view: ReportedDispatch,
    reported: Phase,
    withdrawal: Withdrawal | None,
    now_us: int,
) -> Outcome:
    stored, report = dispatch.phase, view.report
    waiting = (
        f"; {withdrawal.words}: waiting for the agent to confirm" if withdrawal is not None else ""
    )
    told = fold(stored, reported) is reported and reported.rank >= Phase.ACKED.rank
    if report is not None and told:
        return Outcome(
            phase=reported,
            reason=report.reason,
            message=_describe_progress(report) + waiting,
            actor=Actor.AGENT,
            at_us=view.received_us,
        )
    if stored.rank < Phase.SENT.rank and view.written_us:
        return Outcome(
            phase=Phase.SENT,
            reason=Reason.DELIVERED,
            message=f"{SENTENCES[Reason.DELIVERED]}{waiting}",
            actor=Actor.GATEWAY,
            at_us=view.written_us,
        )
    reason = dispatch.reason
    if not reason or reason == Reason.ASSET_NOT_FOUND:
        reason = str(Reason.VALIDATED)
    message = SENTENCES.get(reason, reason) + waiting
    return Outcome(phase=stored, reason=reason, message=message, actor=Actor.OPERATOR, at_us=now_us)


def _describe_progress(report: dispatch_pb2.DispatchReport) -> str:
    if report.pending_error:
        return report.pending_error
    unheard = (
        "; the device does not answer, so what it holds is not known" if is_silent(report) else ""
    )
    return describe_report(report, None) + unheard
