"""Safety checks of a dispatch against its asset, the same at operator and agent.

The operator refuses early, the agent trusts nobody and checks again. Pure functions: the caller
passes the facts in, no clock is read.
"""

from dataclasses import dataclass

from derops.lifecycle import Reason
from derops.modes import Mode

MODES_BY_TYPE: dict[str, frozenset[str]] = {
    "Battery": frozenset(
        {Mode.ACTIVE_POWER, Mode.GENERATION_LIMIT, Mode.LOAD_LIMIT, Mode.CEASE_TO_ENERGIZE}
    ),
    "Solar": frozenset({Mode.GENERATION_LIMIT, Mode.CEASE_TO_ENERGIZE}),
    "EVCharger": frozenset({Mode.LOAD_LIMIT, Mode.CEASE_TO_ENERGIZE}),
    "Generator": frozenset({Mode.ACTIVE_POWER, Mode.GENERATION_LIMIT, Mode.CEASE_TO_ENERGIZE}),
    "Load": frozenset({Mode.LOAD_LIMIT, Mode.CEASE_TO_ENERGIZE}),
}
"""What a type of asset can do at best; a device may offer less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What an asset may be asked for; magnitudes in W at the asset's terminals."""

    max_injection_watts: int
    max_absorption_watts: int
    max_dispatch_duration_seconds: int
    modes: frozenset[str]
    owner: str
    """Who set the limits, for the message: ``the asset's limits`` or ``the agent's own limits``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a dispatch is not carried out: a reason for programs and a sentence for people."""

    reason: Reason
    message: str


def check_dispatch(
    *, mode: str, watts: int, duration_seconds: int, envelope: Envelope
) -> Refusal | None:
    """Check one request against one envelope.

    Args:
        mode: Setpoint mode.
        watts: W; signed for ActivePower, a magnitude otherwise.
        duration_seconds: Length of the window, at least 1.
        envelope: What is allowed.

    Returns:
        The first rule that is broken, or None. Limits above the envelope bind nothing and are
        allowed: a limit can only reduce.
    """
    if mode not in envelope.modes:
        offered = ", ".join(sorted(envelope.modes)) or "none"
        return Refusal(
            reason=Reason.MODE_NOT_SUPPORTED,
            message=f"mode {mode} is not supported by this asset; it supports: {offered}",
        )
    if duration_seconds > envelope.max_dispatch_duration_seconds:
        return Refusal(
            reason=Reason.INVALID_SCHEDULE,
            message=(
                f"duration {duration_seconds} s is above {envelope.owner} "
                f"(maxDispatchDurationSeconds {envelope.max_dispatch_duration_seconds} s)"
            ),
        )
    if mode != Mode.ACTIVE_POWER:
        return None
    limit, direction, field = (
        (envelope.max_injection_watts, "injection", "maxInjectionWatts")
        if watts >= 0
        else (envelope.max_absorption_watts, "absorption", "maxAbsorptionWatts")
    )
    if abs(watts) > limit:
        return Refusal(
            reason=Reason.LIMIT_EXCEEDED,
            message=(
                f"{direction} of {abs(watts)} W is above {envelope.owner} ({field} {limit} W)"
            ),
        )
    return None


def check_energy(
    *,
    watts: int,
    duration_seconds: float,
    capacity_watt_hours: int,
    reserve_percent: int = 0,
    state_of_charge_percent: float | None = None,
) -> Refusal | None:
    """Check whether a battery has the energy, or the room, for a setpoint held for its window.

    Losses are not counted. What is refused here is impossible; what is allowed may still fall
    short, and verification finds that.

    Args:
        watts: Signed; positive is injection, which empties the battery.
        duration_seconds: For how long.
        capacity_watt_hours: Of the battery; 0 = no storage, nothing to check.
        reserve_percent: What must stay in it, as a share of the capacity.
        state_of_charge_percent: What is in it now; None = as good as it can be.
    """
    if capacity_watt_hours <= 0 or watts == 0:
        return None
    discharging = watts > 0
    charge = state_of_charge_percent
    if charge is None:
        charge = 100.0 if discharging else 0.0
    usable_percent = charge - reserve_percent if discharging else 100.0 - charge
    usable_watt_hours = max(0.0, usable_percent) / 100 * capacity_watt_hours
    needed_watt_hours = abs(watts) * duration_seconds / 3600
    if needed_watt_hours <= usable_watt_hours:
        return None
    source = (
        f"{usable_watt_hours:.0f} Wh above the reserve of {reserve_percent} %"
        if discharging
        else f"room for {usable_watt_hours:.0f} Wh"
    )
    at = "" if state_of_charge_percent is None else f" at {state_of_charge_percent:.1f} %"
    return Refusal(
        reason=Reason.INSUFFICIENT_ENERGY,
        message=(
            f"{abs(watts)} W for {duration_seconds:.0f} s are {needed_watt_hours:.0f} Wh; the "
            f"battery of {capacity_watt_hours} Wh{at} has {source}"
        ),
    )
