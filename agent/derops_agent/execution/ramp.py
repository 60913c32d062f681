"""Ramps: the way from one active power to another, in steps where the asset says so. Pure."""

from dataclasses import replace

from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2
from derops_agent.execution.site import AssetSpec, Site, bounded
from derops_agent.ports import Setpoints


def step_us(asset: AssetSpec) -> int:
    """Return how long a step takes at least, in microseconds."""
    return max(1, asset.min_seconds_between_writes) * SECOND_US


def begins_at(written: Setpoints | None, site: Site) -> int:
    """Return the watts at which a ramp begins: what was written last, else the measured power."""
    if written is not None and written.active_power_watts is not None:
        return written.active_power_watts
    if site.reading is None or site.is_silent:
        return 0
    return round(site.reading.values.get(agent_pb2.Quantity.ACTIVE_POWER_WATTS, 0.0))


def next_step(
    target: Setpoints, asset: AssetSpec, site: Site, *, from_watts: int, passed_us: int | None
) -> Setpoints:
    """Return the next step of the way to ``target``; ``target`` itself where there is no ramp.

    Args:
        target: Where the ramp is to arrive.
        asset: With its ramp.
        site: With its own limits.
        from_watts: Where the ramp is.
        passed_us: Time since the last step; None = there was none.
    """
    ramp, goal_watts = asset.max_ramp_watts_per_second, target.active_power_watts
    if ramp is None or goal_watts is None or from_watts == goal_watts:
        return target
    if passed_us is not None and passed_us < step_us(asset):
        return replace(target, active_power_watts=from_watts)
    most_watts = ramp * step_us(asset) // SECOND_US
    way_watts = max(-most_watts, min(goal_watts - from_watts, most_watts))
    return bounded(replace(target, active_power_watts=from_watts + way_watts), site.local)


def shows_nothing(
    step: Setpoints, target: Setpoints, site: Site, *, from_watts: int, held: Setpoints | None
) -> bool:
    """Tell whether a device that holds a step may be one that does not take setpoints.

    A device that stays where it is may obey nobody, and 0 W is 0 W by a wrong sign or scale too.
    One that was released and holds a value now has taken it.

    Args:
        step: What the device is told.
        target: Where the ramp is to arrive.
        site: For what the device can hold.
        from_watts: Where the ramp is.
        held: What the device last said that it holds; None = nothing is known.
    """
    if step == target or step.active_power_watts is None:
        return False
    watts = site.sent(step).active_power_watts
    if held is not None and held.active_power_watts is None:
        return not watts
    before = replace(step, active_power_watts=from_watts)
    return not watts or watts == site.sent(before).active_power_watts
