"""How long decisions wait, and when time alone may change one."""

from derops.lifecycle import Phase
from derops.schedules import SECOND_US
from derops_operator.gateways.views import ReportedDispatch
from derops_operator.resources.dispatches import Dispatch

ASSET_GRACE_US = 60 * SECOND_US
"""How long after its creation a dispatch waits for its asset, if its accept-by is not later."""

DELETION_GRACE_US = 60 * SECOND_US
"""How long a deleted object waits for the agent to confirm."""

WITHDRAW_AFTER_US = SECOND_US
"""How long after its accept-by an unsent dispatch is left: word of a write may be on its way."""

REPORT_GRACE_US = 30 * SECOND_US
"""How long after the end a report may take to come; then status says that it is missing."""

PROOF_LOOK_US = 10 * SECOND_US
"""How often a proof is looked for that depends on which replicas there are."""


def report_deadline_us(dispatch: Dispatch, view: ReportedDispatch) -> int:
    """Return until when a final report is waited for."""
    return latest_end_us(dispatch, view) + dispatch.report_deadline_seconds * SECOND_US


def latest_end_us(dispatch: Dispatch, view: ReportedDispatch) -> int:
    """Return the end as the agent planned it, else the latest that it may plan."""
    planned_us = view.report.planned_end_us if view.report is not None else 0
    return max(planned_us or dispatch.latest_end_us, dispatch.planned_end_us or 0)


def next_look_us(dispatch: Dispatch, now_us: int) -> int | None:
    """Return when time alone may change what is decided; None = never."""
    ends = [dispatch.end_us, dispatch.latest_end_us]
    if dispatch.planned_end_us is not None:
        ends.append(dispatch.planned_end_us)
    looks = [dispatch.accept_by_us + WITHDRAW_AFTER_US]
    looks += [end_us + dispatch.report_deadline_seconds * SECOND_US for end_us in ends]
    looks += [end_us + REPORT_GRACE_US for end_us in ends]
    if dispatch.meta.deleting_us is not None:
        looks.append(dispatch.meta.deleting_us + DELETION_GRACE_US)
    if dispatch.phase is Phase.SUBMITTED and now_us > dispatch.accept_by_us + WITHDRAW_AFTER_US:
        looks.append(now_us + PROOF_LOOK_US)
    # A hundredth of a second later, as each of these bounds must have passed.
    return min((look + SECOND_US // 100 for look in looks if look >= now_us), default=None)
