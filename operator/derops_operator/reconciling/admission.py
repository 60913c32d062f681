"""Whether a dispatch may go to the gateways at all. What is refused here was never sent."""

from dataclasses import dataclass

from derops.admission import Target, refuse_order, refuse_target
from derops.checks import Refusal
from derops.lifecycle import Phase, Reason
from derops.schedules import SECOND_US
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.instants import format_second


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Submitted with the reason Validated lets it go; anything else keeps or ends it."""

    phase: Phase
    reason: Reason
    message: str
    again_us: int | None = None

    @property
    def admitted(self) -> bool:
        """Whether it goes to the gateways."""
        return self.phase is Phase.SUBMITTED and self.reason is Reason.VALIDATED


def admit(dispatch: Dispatch, asset: Asset | None, now_us: int, asset_grace_us: int) -> Admission:
    """Judge a dispatch that no gateway holds."""
    if dispatch.desired_state == "Cancelled":
        return Admission(
            phase=Phase.CANCELLED,
            reason=Reason.CANCELLED_BEFORE_DELIVERY,
            message="its requester cancelled it before any gateway had it; "
            "the device was not touched",
        )
    if asset is None:
        return _wait_for_asset(dispatch, now_us, asset_grace_us)
    refusal = refuse_order(
        mode=dispatch.mode,
        watts=dispatch.watts,
        duration_seconds=dispatch.duration_seconds,
        target=_target(asset),
    )
    if refusal is not None:
        return Admission(phase=Phase.REJECTED, reason=refusal.reason, message=refusal.message)
    if now_us > dispatch.accept_by_us:
        return Admission(
            phase=Phase.EXPIRED,
            reason=Reason.START_DEADLINE_EXCEEDED,
            message=(
                f"the operator could first check it at {format_second(now_us)}, after its "
                f"accept-by {format_second(dispatch.accept_by_us)} (start plus "
                f"{dispatch.start_deadline_seconds} s); no gateway sent it: order it anew, "
                f"with a later start"
            ),
        )
    return Admission(
        phase=Phase.SUBMITTED,
        reason=Reason.VALIDATED,
        message=f"it is within the limits of {asset.meta.name}, and waits for the agent",
    )


def refuse_for_asset(asset: Asset) -> Refusal | None:
    """Return why nothing may run on this asset now, or None."""
    return refuse_target(_target(asset))


def _wait_for_asset(dispatch: Dispatch, now_us: int, asset_grace_us: int) -> Admission:
    until_us = max(dispatch.meta.created_us + asset_grace_us, dispatch.accept_by_us)
    missing = f"asset {dispatch.asset_name} does not exist in namespace {dispatch.meta.namespace}"
    if now_us > until_us:
        return Admission(
            phase=Phase.REJECTED,
            reason=Reason.ASSET_NOT_FOUND,
            message=f"{missing}; the operator waited for it until {format_second(until_us)}: "
            "check spec.assetRef.name",
        )
    return Admission(
        phase=Phase.SUBMITTED,
        reason=Reason.ASSET_NOT_FOUND,
        message=f"{missing}; the operator waits for it until {format_second(until_us)}",
        again_us=until_us + SECOND_US // 100,
    )


def _target(asset: Asset) -> Target:
    return Target(
        name=asset.meta.name,
        deleting=asset.meta.deleting_us is not None,
        operating_state=asset.operating_state,
        quarantine_reason=asset.quarantine_reason,
        modes=asset.modes,
        max_injection_watts=asset.limit_max_injection_watts,
        max_absorption_watts=asset.limit_max_absorption_watts,
        max_dispatch_duration_seconds=asset.max_dispatch_duration_seconds,
        on_exceed=asset.on_exceed,
        energy_capacity_watt_hours=asset.energy_capacity_watt_hours,
        min_reserve_percent=asset.min_reserve_percent or 0,
    )
