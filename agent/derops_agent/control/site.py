"""What an order is judged against: the asset's configuration and the site's own limits."""

from dataclasses import dataclass, field, replace

from derops_agent.control.execution import Execution
from derops_agent.ports import Capability, Setpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """The parts of a DERAsset that an agent acts on."""

    uid: str
    generation: int
    type: str
    max_injection_watts: int
    max_absorption_watts: int
    max_dispatch_duration_seconds: int
    fallback: Setpoints
    revert_on_comms_loss: bool
    failsafe_after_seconds: int
    revert_on_restart: bool
    telemetry_interval_seconds: int
    operating_state: str
    clamp: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalLimits:
    """Hard limits from the agent's own file; None = none."""

    max_injection_watts: int | None = None
    max_absorption_watts: int | None = None

    def bound(self, watts: int) -> int:
        """Return the active power nearest to ``watts`` that is allowed."""
        if self.max_injection_watts is not None:
            watts = min(watts, self.max_injection_watts)
        if self.max_absorption_watts is not None:
            watts = max(watts, -self.max_absorption_watts)
        return watts


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Everything that an order is judged against, at one moment."""

    capability: Capability
    asset: Asset | None = None
    local: LocalLimits = field(default_factory=LocalLimits)
    clock_offset_milliseconds: int | None = None
    max_clock_offset_milliseconds: int = 5000
    settle_us: int = 5_000_000


def wanted_setpoints(
    owners: dict[str, Execution], fallback: Setpoints, local: LocalLimits
) -> Setpoints:
    """Return all that the device shall hold: each mode its owner's value, else its fallback.

    The local limits bound the result, wherever a value comes from. A released mode stays
    released: the device's own control is not ours to limit.
    """
    held = {mode: owner.target_watts for mode, owner in owners.items()}
    wanted = replace(
        fallback,
        active_power_watts=held.get("ActivePower", fallback.active_power_watts),
        max_generation_watts=held.get("GenerationLimit", fallback.max_generation_watts),
        max_load_watts=held.get("LoadLimit", fallback.max_load_watts),
        energized="CeaseToEnergize" not in held,
    )
    return bounded(wanted, local)


def bounded(setpoints: Setpoints, local: LocalLimits) -> Setpoints:
    """Return ``setpoints`` with every value within the local limits."""
    power = setpoints.active_power_watts
    return replace(
        setpoints,
        active_power_watts=None if power is None else local.bound(power),
        max_generation_watts=_least(setpoints.max_generation_watts, local.max_injection_watts),
        max_load_watts=_least(setpoints.max_load_watts, local.max_absorption_watts),
    )


def holds(setpoints: Setpoints, execution: Execution) -> bool:
    """Tell whether what a device says that it holds contains the execution's value."""
    match execution.order.mode:
        case "ActivePower":
            return setpoints.active_power_watts == execution.target_watts
        case "GenerationLimit":
            return setpoints.max_generation_watts == execution.target_watts
        case "LoadLimit":
            return setpoints.max_load_watts == execution.target_watts
    return not setpoints.energized


def _least(watts: int | None, limit: int | None) -> int | None:
    if watts is None or limit is None:
        return watts
    return min(watts, limit)
