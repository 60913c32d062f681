"""What a device can hold of a value. Pure.

Registers have steps and ranges, so a device is sent something else than was asked for. It is
judged by what was sent; whoever asked is told both.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from derops.checks import Refusal
from derops.lifecycle import Reason
from derops.modes import Mode
from derops_agent.ports import Capability, Resolution, Setpoints, in_words, whole_watts

if TYPE_CHECKING:
    from derops_agent.execution.site import Site
    from derops_agent.execution.state import Execution

ANY = Resolution()
"""Of a mode that the driver says nothing about."""


def sent(setpoints: Setpoints, resolutions: Mapping[str, Resolution]) -> Setpoints:
    """Return what a device holds of ``setpoints``, in whole watts; no value is larger than asked.

    Args:
        setpoints: As they are asked for.
        resolutions: By mode, see ``Capability``.
    """

    def held(mode: str, watts: int | None) -> int | None:
        return None if watts is None else sent_watts(watts, resolutions.get(mode, ANY))

    return replace(
        setpoints,
        active_power_watts=held(Mode.ACTIVE_POWER, setpoints.active_power_watts),
        max_generation_watts=held(Mode.GENERATION_LIMIT, setpoints.max_generation_watts),
        max_load_watts=held(Mode.LOAD_LIMIT, setpoints.max_load_watts),
    )


def sent_watts(watts: int, resolution: Resolution) -> int:
    """Return what a device holds of one value, in whole watts."""
    return whole_watts(resolution.nearest(watts))


def explain_rounding(watts: int, resolution: Resolution) -> str:
    """Return why a device holds something else than ``watts``; empty = it holds them."""
    if sent_watts(watts, resolution) == watts:
        return ""
    reasons = []
    if watts > resolution.most_watts:
        reasons.append(f"the device holds at most {in_words(resolution.most_watts)} W")
    if watts < resolution.least_watts:
        reasons.append(f"the device holds no less than {in_words(resolution.least_watts)} W")
    if resolution.nearest(watts) != resolution.bounded(watts):
        step = in_words(resolution.step_watts)
        reasons.append(f"the device holds steps of {step} W; rounded towards zero")
    return "; ".join(reasons)


def rounded(mode: str, watts: int, capability: Capability) -> dict[str, Any]:
    """Return the fields of an execution that say what the device holds of its value, and why."""
    resolution = capability.resolutions.get(mode, ANY)
    return {
        "sent_watts": sent_watts(watts, resolution),
        "rounding": explain_rounding(watts, resolution),
    }


def shown(
    execution: "Execution", held: Setpoints, resolutions: Mapping[str, Resolution]
) -> "Execution":
    """Return it with what the device says that it holds, where that is not what was sent.

    Args:
        execution: One that the device holds.
        held: What the device says.
        resolutions: By mode, see ``Capability``.
    """
    mode, target_watts = execution.order.mode, execution.target_watts
    watts = held.of(mode)
    resolution = resolutions.get(mode, ANY)
    sent_ = sent_watts(target_watts, resolution)
    if watts is None or watts == sent_:
        return execution
    words = f"the device was sent {sent_} W, and says that it holds {watts} W"
    why = explain_rounding(target_watts, resolution)
    return replace(execution, sent_watts=watts, rounding=f"{why}; {words}" if why else words)


def refuse_value(
    mode: str, watts: int, capability: Capability, tolerance_watts: float
) -> Refusal | None:
    """Return why a device cannot hold a value, not even nearly, or None.

    A limit that is rounded down limits all the same. One that becomes 0 stops the device, and one
    that becomes what releases it limits nothing: both are something else than was asked for.

    Args:
        mode: Of the value.
        watts: Within all limits.
        capability: Of the device.
        tolerance_watts: By how much an active power may differ, if that is more than a step.
    """
    resolution = capability.resolutions.get(mode, ANY)
    held_watts = resolution.nearest(watts)
    problem = (
        _explain_other_power(watts, resolution, tolerance_watts)
        if mode == Mode.ACTIVE_POWER
        else _explain_no_limit(watts, resolution, _rated_watts(mode, capability))
    )
    if not problem:
        return None
    return Refusal(
        reason=Reason.NOT_REPRESENTABLE,
        message=(
            f"{mode} of {watts} W would be {in_words(held_watts)} W on the device, {problem}; "
            f"it holds {resolution}"
        ),
    )


def _explain_other_power(watts: int, resolution: Resolution, tolerance_watts: float) -> str:
    """Return why what a device holds of an active power is another one; empty = it is not."""
    held_watts = resolution.nearest(watts)
    off_watts = abs(watts - held_watts)
    allowed_watts = max(tolerance_watts, resolution.step_watts)
    if watts and not held_watts:
        return "no power at all"
    if watts and held_watts == resolution.none_watts:
        return "which releases the device"
    if off_watts > allowed_watts:
        allowed = in_words(allowed_watts)
        return f"{in_words(off_watts)} W from what was asked for, {allowed} W are allowed"
    return ""


def _explain_no_limit(watts: int, resolution: Resolution, rated_watts: int) -> str:
    """Return why what a device holds of a limit is none; empty = it is one."""
    held_watts = resolution.nearest(watts)
    if watts and not held_watts:
        return "which stops the device and does not limit it"
    if held_watts == resolution.none_watts and held_watts < rated_watts:
        return "which the device takes for no limit"
    return ""


def explain_fallback(site: "Site") -> str:
    """Return why the device cannot hold the asset's fallback; empty = it can, or has none."""
    if site.asset is None:
        return ""
    problems = []
    for mode, watts in site.fallback_watts.items():
        if watts is None:
            continue
        if mode not in site.capability.modes:
            has = ", ".join(sorted(site.capability.modes)) or "none"
            problems.append(f"the device has no {mode} to hold {watts} W by; it has: {has}")
            continue
        tolerance_watts = site.rule.tolerance_for(mode, watts)
        refusal = refuse_value(mode, watts, site.capability, tolerance_watts)
        if refusal is not None:
            problems.append(refusal.message)
    return "; ".join(problems)


def _rated_watts(mode: str, capability: Capability) -> int:
    if mode == Mode.LOAD_LIMIT:
        return capability.max_absorption_watts
    return capability.max_injection_watts
