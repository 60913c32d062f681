"""Whether a dispatch may go to the gateways at all. What is refused here was never sent."""

from dataclasses import dataclass

from derops.checks import Envelope, Refusal, check_dispatch, check_energy
from derops.lifecycle import Phase, Reason
from derops.schedules import SECOND_US
from derops_operator.facts import Asset, Dispatch
from derops_operator.instants import format_second


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Submitted with the reason Validated lets it go; anything else keeps or ends it."""

    phase: Phase
    reason: Reason
    message: str
    again_us: int | None = None

    @property
    def admitted(self) -> bool:
        """Whether it goes to the gateways."""
        return self.phase is Phase.SUBMITTED and self.reason is Reason.VALIDATED


def admit(dispatch: Dispatch, asset: Asset | None, now_us: int, asset_grace_us: int) -> Verdict:
    """Judge a dispatch that no gateway holds."""
    if dispatch.desired_state == "Cancelled":
        return Verdict(
            phase=Phase.CANCELLED,
            reason=Reason.CANCELLED_BEFORE_DELIVERY,
            message="cancelled before it was given to any gateway; the device was not touched",
        )
    if asset is None:
        return _wait_for_asset(dispatch, now_us, asset_grace_us)
    refusal = refuse_for_asset(asset) or _refuse_for_limits(dispatch, asset)
    if refusal is not None:
        return Verdict(phase=Phase.REJECTED, reason=refusal.reason, message=refusal.message)
    if now_us > dispatch.accept_by_us:
        return Verdict(
            phase=Phase.EXPIRED,
            reason=Reason.START_DEADLINE_EXCEEDED,
            message=(
                f"could first be checked at {format_second(now_us)}, after its accept-by "
                f"{format_second(dispatch.accept_by_us)} (start plus "
                f"{dispatch.start_deadline_seconds} s); it was never sent to the agent"
            ),
        )
    return Verdict(
        phase=Phase.SUBMITTED,
        reason=Reason.VALIDATED,
        message=f"within the limits of {asset.meta.name}; waiting for its agent",
    )


def refuse_for_asset(asset: Asset) -> Refusal | None:
    """Return why nothing may run on this asset now, or None."""
    name = asset.meta.name
    if asset.meta.deleting_us is not None:
        return Refusal(reason=Reason.ASSET_DELETED, message=f"asset {name} is being deleted")
    if asset.operating_state == "Quarantined" or asset.quarantine_reason:
        by_spec = asset.operating_state == "Quarantined"
        why = "spec.operatingState is Quarantined" if by_spec else asset.quarantine_reason
        return Refusal(
            reason=Reason.ASSET_QUARANTINED, message=f"asset {name} is quarantined: {why}"
        )
    if asset.operating_state == "OutOfService":
        return Refusal(
            reason=Reason.ASSET_OUT_OF_SERVICE,
            message=f"asset {name} is out of service (spec.operatingState is OutOfService)",
        )
    return None


def _wait_for_asset(dispatch: Dispatch, now_us: int, asset_grace_us: int) -> Verdict:
    until_us = max(dispatch.meta.created_us + asset_grace_us, dispatch.accept_by_us)
    missing = f"asset {dispatch.asset_name} does not exist in namespace {dispatch.meta.namespace}"
    if now_us > until_us:
        return Verdict(
            phase=Phase.REJECTED,
            reason=Reason.ASSET_NOT_FOUND,
            message=f"{missing}; waited for it until {format_second(until_us)}",
        )
    return Verdict(
        phase=Phase.SUBMITTED,
        reason=Reason.ASSET_NOT_FOUND,
        message=f"{missing}; waiting for it until {format_second(until_us)}",
        again_us=until_us + SECOND_US // 100,
    )


def _refuse_for_limits(dispatch: Dispatch, asset: Asset) -> Refusal | None:
    refusal = check_dispatch(
        mode=dispatch.mode,
        watts=dispatch.watts,
        duration_seconds=dispatch.duration_seconds,
        envelope=Envelope(
            max_injection_watts=asset.limit_max_injection_watts,
            max_absorption_watts=asset.limit_max_absorption_watts,
            max_dispatch_duration_seconds=asset.max_dispatch_duration_seconds,
            modes=asset.modes,
            owner="the asset's limits",
        ),
    )
    clamps = asset.on_exceed == "Clamp"
    if refusal is not None and refusal.reason is Reason.LIMIT_EXCEEDED and clamps:
        refusal = None
    if refusal is not None or dispatch.mode != "ActivePower":
        return refusal
    watts = max(
        -asset.limit_max_absorption_watts, min(dispatch.watts, asset.limit_max_injection_watts)
    )
    return check_energy(
        watts=watts,
        duration_seconds=dispatch.duration_seconds,
        capacity_watt_hours=asset.energy_capacity_watt_hours,
        reserve_percent=asset.min_reserve_percent or 0,
    )
