"""Whether an order may go to an asset; the operator and a dry run of the API judge alike.

Pure functions; nothing here knows where the facts came from.
"""

from dataclasses import dataclass

from derops.checks import MODES_BY_TYPE, Envelope, Refusal, check_dispatch, check_energy
from derops.lifecycle import Reason
from derops.modes import Mode, OperatingState

OWNER = "the asset's limits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is known of the asset that an order is for."""

    name: str
    deleting: bool
    operating_state: str
    quarantine_reason: str
    """Why its identity is quarantined; empty = it is not."""

    modes: frozenset[str]
    max_injection_watts: int
    """Limits are resolved: an absent one is the rating."""

    max_absorption_watts: int
    max_dispatch_duration_seconds: int
    on_exceed: str
    energy_capacity_watt_hours: int
    """0 = no storage."""

    min_reserve_percent: int


def modes_of(asset_type: str, offered: object) -> frozenset[str]:
    """Return what may be asked of an asset: its type's modes, narrowed by what its agent offers.

    Args:
        asset_type: As in its spec.
        offered: An iterable of modes; whatever is empty narrows nothing.
    """
    modes = MODES_BY_TYPE.get(asset_type, frozenset())
    return modes & frozenset(offered) if offered else modes  # type: ignore[call-overload]


def refuse_target(target: Target) -> Refusal | None:
    """Return why nothing may run on an asset now, or None."""
    name = target.name
    if target.deleting:
        return Refusal(reason=Reason.ASSET_DELETED, message=f"asset {name} is being deleted")
    by_spec = target.operating_state == OperatingState.QUARANTINED
    if by_spec or target.quarantine_reason:
        why = "spec.operatingState is Quarantined" if by_spec else target.quarantine_reason
        return Refusal(
            reason=Reason.ASSET_QUARANTINED, message=f"asset {name} is quarantined: {why}"
        )
    if target.operating_state == OperatingState.OUT_OF_SERVICE:
        return Refusal(
            reason=Reason.ASSET_OUT_OF_SERVICE,
            message=f"asset {name} is out of service (spec.operatingState is OutOfService)",
        )
    return None


def refuse_order(
    *,
    mode: str,
    watts: int,
    duration_seconds: int,
    target: Target,
    state_of_charge_percent: float | None = None,
) -> Refusal | None:
    """Return why an order is not carried out by an asset, or None.

    Args:
        mode: Setpoint mode.
        watts: W; signed for ActivePower, a magnitude otherwise.
        duration_seconds: Length of the window.
        target: The asset.
        state_of_charge_percent: Of its battery; None = as good as it can be.
    """
    refusal = refuse_target(target) or check_dispatch(
        mode=mode,
        watts=watts,
        duration_seconds=duration_seconds,
        envelope=Envelope(
            max_injection_watts=target.max_injection_watts,
            max_absorption_watts=target.max_absorption_watts,
            max_dispatch_duration_seconds=target.max_dispatch_duration_seconds,
            modes=target.modes,
            owner=OWNER,
        ),
    )
    clamps = target.on_exceed == "Clamp"
    if refusal is not None and refusal.reason is Reason.LIMIT_EXCEEDED and clamps:
        refusal = None
    if refusal is not None or mode != Mode.ACTIVE_POWER:
        return refusal
    return check_energy(
        watts=max(-target.max_absorption_watts, min(watts, target.max_injection_watts)),
        duration_seconds=duration_seconds,
        capacity_watt_hours=target.energy_capacity_watt_hours,
        reserve_percent=target.min_reserve_percent,
        state_of_charge_percent=state_of_charge_percent,
    )
