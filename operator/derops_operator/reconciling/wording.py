"""What status says of a Dispatch in words."""

from derops.lifecycle import Phase, Reason
from derops.schedules import SECOND_US
from derops.wire.v1 import dispatch_pb2
from derops_operator.reconciling.deadlines import DELETION_GRACE_US
from derops_operator.reconciling.reports import is_unreverted
from derops_operator.reconciling.withdrawal import Withdrawal
from derops_operator.resources.dispatches import Dispatch, DispatchCondition
from derops_operator.resources.instants import format_second

SENTENCES: dict[str, str] = {
    Reason.VALIDATED: "it is within the asset's limits, and waits for the agent",
    Reason.DELIVERED: "a gateway wrote it to the agent's stream; the agent has yet to accept it",
    Reason.ACCEPTED: "the agent checked and stored it, and runs it at its start, connected or not",
    Reason.APPLIED: "the device took the setpoint",
    Reason.CANCELLED_BEFORE_START: "it was cancelled before its start; the device was not touched",
    Reason.CANCELLED_WHILE_ACTIVE: "it was cancelled while it ran; the device was reverted",
}

STOPPED = {
    Reason.ASSET_DELETED: "its asset was deleted",
    Reason.ASSET_OUT_OF_SERVICE: "its asset was taken out of service",
    Reason.ASSET_QUARANTINED: "its asset was quarantined",
}


def describe_report(report: dispatch_pb2.DispatchReport, withdrawal: Withdrawal | None) -> str:
    """Return a sentence for people; where reason and phase say all, the agent's is too short."""
    if report.phase == Phase.CANCELLED and report.reason in STOPPED:
        return _describe_stopped(report, withdrawal)
    if report.ended_us and not Phase(report.phase).terminal:
        return "it has ended; the device is about to be reverted, or to take the next value"
    if report.reason == Reason.CANCELLED_BEFORE_START and report.ended_us:
        return "it was cancelled at its start; the device was reverted"
    return SENTENCES.get(report.reason) or report.message or report.reason


def _describe_stopped(report: dispatch_pb2.DispatchReport, withdrawal: Withdrawal | None) -> str:
    words = STOPPED[Reason(report.reason)]
    if withdrawal is not None and withdrawal.reason in STOPPED:
        words = withdrawal.words  # else what stopped it is over, as a quarantine that was lifted
    reverted = "reverted" if report.applied_us else "not touched"
    return f"{words}; the device was {reverted}"


def describe_early(early_us: int) -> str:
    """Return what may be wrong where a gateway heard of the end before it was due."""
    return (
        f"; but a gateway heard of that {early_us / SECOND_US:.0f} s before the end that was "
        "ordered: the agent's clock was ahead and it ended too early, or it says what is not so: "
        "check the clock at the site"
    )


def describe_news(
    dispatch: Dispatch, report: dispatch_pb2.DispatchReport, *, unreverted: bool
) -> str:
    """Return in words what the stored conditions of an ending do not say yet."""
    news = ""
    if report.applied_us and dispatch.status_of(DispatchCondition.APPLIED) != "True":
        news = f"; the device did take it, at {format_second(report.applied_us)}"
    elif is_unreverted(report) and not unreverted:
        news = "; the device took it again after its end"
    if report.reverted_us and (unreverted or news):
        news += f"; it was reverted at {format_second(report.reverted_us)}"
    return news


def describe_unknown_outcome(dispatch: Dispatch, deadline_us: int, *, written: bool) -> str:
    """Return what is known where no final report came; ``written`` says whether it was sent."""
    stored = dispatch.phase
    seen = f"its last known phase was {stored}"
    if stored is Phase.SUBMITTED and not written:
        seen = "whether the agent got it is not known"
    return (
        f"the agent sent no final report by {format_second(deadline_us)} "
        f"({dispatch.report_deadline_seconds} s after the latest end); {seen}: look at the device"
    )


def describe_withheld(report: dispatch_pb2.DispatchReport, deadline_us: int) -> str:
    """Return what an agent refuses while a gateway may contradict that."""
    return (
        f"ledger {report.ledger_id} of the agent refuses it ({report.reason}), and a gateway that "
        f"may have given it to an earlier one has yet to be heard: the operator waits for that "
        f"until {format_second(deadline_us)}"
    )


def describe_unknown_at_deletion(dispatch: Dispatch, phase: Phase, latest_end_us: int) -> str:
    """Return what is not known of one that is let go before its agent confirmed."""
    return (
        f"deleted in phase {phase}, and the agent of {dispatch.asset_name} did not confirm that "
        f"within {DELETION_GRACE_US // SECOND_US} s: whether the device was reverted is not known; "
        f"an agent that runs reverts it when it hears of the deletion, and at the planned end "
        f"{format_second(latest_end_us)} at the latest"
    )


def describe_unreverted_at_deletion(dispatch: Dispatch) -> str:
    """Return what is not known of one that is let go before its device was reverted."""
    return (
        f"deleted after its end ({dispatch.reason}), and the agent of {dispatch.asset_name} did "
        f"not say within {DELETION_GRACE_US // SECOND_US} s that the device was reverted: whether "
        f"it was is not known; an agent that runs goes on trying"
    )
