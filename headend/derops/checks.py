"""Safety checks of a dispatch against its asset, the same at operator and agent.

The operator refuses early, the agent trusts nobody and checks again. Pure functions: the caller
passes the facts in, no clock is read.
"""

from dataclasses import dataclass

from derops.lifecycle import Reason

MODES_BY_TYPE: dict[str, frozenset[str]] = {
    "Battery": frozenset({"ActivePower", "GenerationLimit", "LoadLimit", "CeaseToEnergize"}),
    "Solar": frozenset({"GenerationLimit", "CeaseToEnergize"}),
    "EVCharger": frozenset({"LoadLimit", "CeaseToEnergize"}),
    "Generator": frozenset({"ActivePower", "GenerationLimit", "CeaseToEnergize"}),
    "Load": frozenset({"LoadLimit", "CeaseToEnergize"}),
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
    if mode != "ActivePower":
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
