"""Whether a Dispatch that gateways may hold is cancelled, and why."""

from dataclasses import dataclass

from derops.lifecycle import Phase, Reason
from derops_operator.gateways.views import ReportedDispatch
from derops_operator.reconciling.admission import refuse_for_asset
from derops_operator.reconciling.deadlines import WITHDRAW_AFTER_US
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch, DispatchCondition
from derops_operator.resources.instants import format_second


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """Why an order is cancelled; an empty reason is the requester."""

    reason: str
    words: str


def find_withdrawal(
    dispatch: Dispatch, asset: Asset | None, view: ReportedDispatch, now_us: int
) -> Withdrawal | None:
    """Return why it is to be cancelled, or None."""
    if dispatch.desired_state == "Cancelled":
        return Withdrawal(reason="", words="its requester cancelled it")
    if dispatch.meta.deleting_us is not None:
        return Withdrawal(reason="", words="the Dispatch is being deleted")
    if asset is None or dispatch.is_of_an_earlier(asset):
        return Withdrawal(
            reason=Reason.ASSET_DELETED, words=f"asset {dispatch.asset_name} was deleted"
        )
    refusal = refuse_for_asset(asset)
    if refusal is not None:
        deaf = "; its agent gets no stream meanwhile, and ends at its planned end what it runs"
        words = refusal.message + deaf * bool(asset.quarantine_reason)
        return Withdrawal(reason=refusal.reason, words=words)
    late = now_us > dispatch.accept_by_us + WITHDRAW_AFTER_US
    if late and is_unsent(dispatch, view):
        # Gateways that hold it cancelled will not write it any more: that makes the proof final.
        words = f"its accept-by {format_second(dispatch.accept_by_us)} has passed"
        return Withdrawal(reason=Reason.AGENT_OFFLINE, words=words)
    return None


def is_unsent(dispatch: Dispatch, view: ReportedDispatch) -> bool:
    """Tell whether it is known that no agent has got it, and status never said otherwise."""
    return (
        dispatch.phase is Phase.SUBMITTED
        and dispatch.status_of(DispatchCondition.DELIVERED) != "True"
        and view.is_unsent(dispatch.meta.created_us)
    )
