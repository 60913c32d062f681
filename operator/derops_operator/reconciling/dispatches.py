"""What to do about one Dispatch, and what its status says.

Three cases: no gateway holds it (it is judged), gateways may hold it (reports, proofs and deadlines
decide), it ended (frozen; what is left is to tidy up).
"""

from dataclasses import replace

from derops.transitions import Actor
from derops_operator.gateways.views import ReportedDispatch
from derops_operator.reconciling import dispatch_status
from derops_operator.reconciling.actions import (
    AddFinalizer,
    DispatchAction,
    DispatchDecision,
    RemoveFinalizer,
    Submit,
)
from derops_operator.reconciling.admission import admit
from derops_operator.reconciling.aftermath import tidy_up
from derops_operator.reconciling.deadlines import (
    ASSET_GRACE_US,
    DELETION_GRACE_US,
    PROOF_LOOK_US,
    latest_end_us,
    next_look_us,
)
from derops_operator.reconciling.outcomes import Outcome, find_outcome
from derops_operator.reconciling.withdrawal import find_withdrawal
from derops_operator.reconciling.wording import describe_unknown_at_deletion
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch


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
    view = view.without_open_doubt(dispatch.meta.created_us)
    if dispatch.phase.terminal:
        return tidy_up(dispatch, asset, view, now_us)
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
        actor=Actor.OPERATOR,
        at_us=now_us,
    )
    status = dispatch_status.compose(dispatch, outcome, view, now_us, submitted=verdict.admitted)
    if not verdict.admitted:
        return DispatchDecision(status=status, again_us=verdict.again_us)
    return DispatchDecision(
        actions=(AddFinalizer(), Submit()),
        status=status,
        again_us=next_look_us(replace(dispatch, status=status), now_us),
    )


def _follow(
    dispatch: Dispatch, asset: Asset | None, view: ReportedDispatch, now_us: int
) -> DispatchDecision:
    withdrawal = find_withdrawal(dispatch, asset, view, now_us)
    outcome = find_outcome(dispatch, view, withdrawal, now_us)
    status = dispatch_status.compose(dispatch, outcome, view, now_us, submitted=True)
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
        end_us = latest_end_us(dispatch, view)
        warning = describe_unknown_at_deletion(dispatch, outcome.phase, end_us)
        actions.append(RemoveFinalizer(warning=warning))
    again_us = next_look_us(replace(dispatch, status=status), now_us)
    if view.withheld is not None:
        again_us = min(again_us or now_us + PROOF_LOOK_US, now_us + PROOF_LOOK_US)
    return DispatchDecision(actions=tuple(actions), status=status, again_us=again_us)
