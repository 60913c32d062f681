"""The conditions of a Dispatch: what people and programs decide by."""

from dataclasses import dataclass

from derops.lifecycle import Phase, Reason
from derops.modes import Evidence
from derops.wire.v1 import dispatch_pb2
from derops_operator.reconciling.conditions import WantedCondition, truth
from derops_operator.reconciling.outcomes import Outcome
from derops_operator.reconciling.reports import is_silent, is_unreverted
from derops_operator.resources.dispatches import Dispatch, DispatchCondition

_STALLED = frozenset({Phase.FAILED, Phase.REJECTED, Phase.EXPIRED})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    outcome: Outcome
    report: dispatch_pb2.DispatchReport | None
    delivered: bool
    accepted: bool
    applied: bool
    reverted: bool
    silent: bool
    """The device does not answer: nobody knows what it holds."""

    unreverted: bool
    """It has ended, and the device may hold it still."""

    @property
    def overdue(self) -> str:
        """Why a start or a revert that is due has not happened yet; empty = nothing is overdue."""
        if self.report is None or self.outcome.phase.terminal:
            return ""
        return self.report.pending_error


def judge(
    dispatch: Dispatch,
    outcome: Outcome,
    report: dispatch_pb2.DispatchReport | None,
    *,
    written: bool,
) -> list[WantedCondition]:
    """Return the conditions that follow; Delivered, Accepted and Applied never go back."""
    said = report if report is not None else dispatch_pb2.DispatchReport()

    def was(condition: DispatchCondition) -> bool:
        return dispatch.status_of(condition) == "True"

    facts = _Facts(
        outcome=outcome,
        report=report,
        delivered=written or report is not None or was(DispatchCondition.DELIVERED),
        accepted=max(said.accepted_us, said.applied_us) > 0 or was(DispatchCondition.ACCEPTED),
        applied=said.applied_us > 0 or was(DispatchCondition.APPLIED),
        reverted=said.reverted_us > 0,
        silent=is_silent(said),
        unreverted=is_unreverted(said),
    )
    return [
        _delivered(facts),
        _accepted(facts),
        _applied(facts),
        _verified(facts),
        _reverted(facts),
        _succeeded(facts),
        *_kstatus(facts),
        *_degraded(dispatch, report),
    ]


def _delivered(facts: _Facts) -> WantedCondition:
    if facts.delivered:
        return WantedCondition(
            "Delivered", "True", Reason.DELIVERED, "a gateway wrote it to the agent's stream"
        )
    if facts.outcome.unknown:
        return WantedCondition("Delivered", "Unknown", facts.outcome.reason, facts.outcome.message)
    if facts.outcome.phase.terminal:
        return WantedCondition("Delivered", "False", facts.outcome.reason, facts.outcome.message)
    return WantedCondition("Delivered", "False", "WaitingForAgent", facts.outcome.message)


def _accepted(facts: _Facts) -> WantedCondition:
    if facts.accepted:
        return WantedCondition(
            "Accepted", "True", Reason.ACCEPTED, "the agent checked and stored it"
        )
    return _if_never(facts, "Accepted", "WaitingForAgent")


def _applied(facts: _Facts) -> WantedCondition:
    if facts.applied:
        return WantedCondition("Applied", "True", Reason.APPLIED, _taken(facts.report))
    if facts.overdue:
        return WantedCondition("Applied", "Unknown", "WaitingForDevice", facts.overdue)
    unanswered = facts.report is not None and facts.report.evidence == Evidence.UNANSWERED
    if facts.report is None or not facts.outcome.phase.terminal or facts.outcome.unknown:
        return _if_never(facts, "Applied", "WaitingForStart")
    words = "; ".join(filter(None, (facts.outcome.message, facts.report.pending_error)))
    return WantedCondition(
        "Applied", "Unknown" if unanswered else "False", facts.outcome.reason, words
    )


def _taken(report: dispatch_pb2.DispatchReport | None) -> str:
    """Return what the device took, where that is something else than was asked for."""
    words = "the device took the setpoint"
    if report is None or not report.rounding:
        return words
    return f"{words} as {report.applied_watts} W: {report.rounding}"


def _if_never(facts: _Facts, kind: str, pending: str) -> WantedCondition:
    outcome = facts.outcome
    if outcome.phase.terminal and not outcome.unknown:
        return WantedCondition(kind, "False", outcome.reason, outcome.message)
    return WantedCondition(kind, "Unknown", outcome.reason if outcome.unknown else pending)


def _verified(facts: _Facts) -> WantedCondition:
    report = facts.report
    if report is not None and report.verified in {"True", "False"}:
        within_seconds = report.within_tolerance_milliseconds / 1000
        words = f"the measured power was within tolerance for {within_seconds:.0f} s"
        reason = report.verified_reason or "VerificationPending"
        return WantedCondition("Verified", report.verified, reason, words)
    if facts.outcome.phase.terminal and not facts.applied:
        return WantedCondition("Verified", "Unknown", "NotApplied")
    reason = report.verified_reason if report is not None else ""
    words = "the device does not answer, so what it holds is not known" if facts.silent else ""
    return WantedCondition("Verified", "Unknown", reason or "VerificationPending", words)


def _reverted(facts: _Facts) -> WantedCondition:
    outcome = facts.outcome
    if facts.reverted:
        words = "the device let go of it, for the asset's fallback or for another dispatch"
        return WantedCondition("Reverted", "True", "Reverted", words)
    if facts.overdue and facts.report is not None and facts.report.ended_us:
        return WantedCondition("Reverted", "False", Reason.REVERT_FAILED, facts.overdue)
    if not outcome.phase.terminal or outcome.unknown:
        return WantedCondition(
            "Reverted", "Unknown", outcome.reason if outcome.unknown else "WaitingForEnd"
        )
    if facts.applied or facts.unreverted:
        return WantedCondition("Reverted", "False", outcome.reason, outcome.message)
    return WantedCondition("Reverted", "True", "NothingToRevert", "the device was never changed")


def _succeeded(facts: _Facts) -> WantedCondition:
    outcome = facts.outcome
    if not outcome.phase.terminal:
        return WantedCondition("Succeeded", "Unknown", outcome.reason, outcome.message)
    done = "Unknown" if outcome.early else truth(outcome.phase is Phase.COMPLETE)
    return WantedCondition("Succeeded", done, outcome.reason, outcome.message)


def _kstatus(facts: _Facts) -> list[WantedCondition]:
    outcome = facts.outcome
    terminal, stalled = outcome.phase.terminal, outcome.phase in _STALLED
    ready = not stalled and (facts.accepted or terminal)
    moving = not terminal and not facts.accepted
    message = outcome.message
    return [
        WantedCondition("Ready", truth(ready), outcome.reason, message),
        WantedCondition("Reconciling", truth(moving), outcome.reason, message if moving else ""),
        WantedCondition("Stalled", truth(stalled), outcome.reason, message if stalled else ""),
    ]


def _degraded(
    dispatch: Dispatch, report: dispatch_pb2.DispatchReport | None
) -> list[WantedCondition]:
    if report is not None and report.clamped_by:
        given = f"{report.applied_watts} W instead of" if report.applied_us else "less than"
        words = f"{given} the {dispatch.watts} W asked for, by {report.clamped_by}"
        return [WantedCondition("Degraded", "True", "Clamped", words)]
    was = dispatch.status_of(DispatchCondition.DEGRADED)
    if was == "True" and report is not None and report.accepted_us:
        return [
            WantedCondition(
                "Degraded", "False", "NotClamped", "the limits allow the whole of it now"
            )
        ]
    return []
