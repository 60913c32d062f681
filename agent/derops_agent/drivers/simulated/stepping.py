"""How a simulated device gets from one moment to another, however far apart they are.

Every model is a set of pure functions. The first minute of a span is walked in steps of at most a
second, since that is where ramps and starts happen; the rest is one leap in closed form. So a
device that nobody asked for a month costs no more than one that was asked a minute ago.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from derops_agent.ports import Setpoints

DAY_SECONDS = 86_400.0
HOUR_SECONDS = 3_600.0
STEP_SECONDS = 1.0
WALKED_SECONDS = 60.0
LONGEST_SECONDS = 366 * DAY_SECONDS
"""The most time that a device catches up with; what lay before is skipped."""

AMBIENT_CELSIUS = 20.0
_FULL_LOAD_RISE_CELSIUS = 25.0
_WARMING_SECONDS = 600.0
_PIECE_SECONDS = 300.0

S = TypeVar("S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A stretch of simulated time under constant orders."""

    at_seconds: float
    """Its begin, in simulated seconds since 1970."""

    seconds: float
    power_watts: float
    """The power just before it, where a ramp starts."""

    orders: Setpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The flow through the terminals in a span; positive = injection."""

    power_watts: float
    """At its end."""

    watt_hours: float
    """Over the whole span."""


class Physics(Protocol[S]):
    """The physics of one kind of device; ``S`` is what it remembers."""

    def begin(self) -> S:
        """Return the state of a new device."""
        ...

    def restore(self, fields: Mapping[str, Any]) -> S:
        """Return the state that was stored as ``fields``.

        Raises:
            TypeError: The fields are not those of this model.
        """
        ...

    def step(self, state: S, span: Stretch) -> tuple[S, Flow]:
        """Pass a span of at most ``STEP_SECONDS``."""
        ...

    def leap(self, state: S, span: Stretch) -> tuple[S, Flow]:
        """Pass a span of any length whose ramps are over, at bounded cost."""
        ...

    def available_watts(self, state: S, at_seconds: float) -> float | None:
        """Return what it could inject now if nothing limited it; None = it never injects."""
        ...

    def state_of_charge_percent(self, state: S) -> float | None:
        """Return how full it is; None = it stores nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """What every device counts, of whatever kind it is."""

    power_watts: float = 0.0
    injected_watt_hours: float = 0.0
    absorbed_watt_hours: float = 0.0
    temperature_celsius: float = AMBIENT_CELSIUS


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant(Generic[S]):
    """A device at one moment: its own state and its meter."""

    state: S
    meter: Meter


def advance(
    model: Physics[S],
    plant: Plant[S],
    orders: Setpoints,
    *,
    from_seconds: float,
    to_seconds: float,
    rated_watts: float,
) -> Plant[S]:
    """Return the device at ``to_seconds`` if it held ``orders`` all the way.

    Args:
        model: The physics.
        plant: The device at ``from_seconds``.
        orders: What it holds.
        from_seconds: Simulated seconds since 1970.
        to_seconds: The same; a time before ``from_seconds`` changes nothing.
        rated_watts: Full load, at which the device gets warmest.
    """
    seconds = min(to_seconds - from_seconds, LONGEST_SECONDS)
    if seconds <= 0:
        return plant
    at = to_seconds - seconds
    state, meter = plant.state, plant.meter
    walked = min(seconds, WALKED_SECONDS)
    count = math.ceil(walked / STEP_SECONDS)
    for number in range(count):
        span = Stretch(
            at_seconds=at + walked * number / count,
            seconds=walked / count,
            power_watts=meter.power_watts,
            orders=orders,
        )
        state, flow = model.step(state, span)
        meter = _count(meter, flow, span.seconds, rated_watts)
    if seconds > walked:
        span = Stretch(
            at_seconds=at + walked,
            seconds=seconds - walked,
            power_watts=meter.power_watts,
            orders=orders,
        )
        state, flow = model.leap(state, span)
        meter = _count(meter, flow, span.seconds, rated_watts)
    return Plant(state=state, meter=meter)


def ramp(power_watts: float, target_watts: float, most_watts: float) -> float:
    """Return the power that is ``most_watts`` nearer to the target, or the target."""
    return max(power_watts - most_watts, min(power_watts + most_watts, target_watts))


def least(watts: float, *limits: float | None) -> float:
    """Return the smallest of ``watts`` and the limits that are set, not below 0."""
    return max(0.0, min(watts, *(limit for limit in limits if limit is not None), watts))


def integrate(power_at: Callable[[float], float], begin: float, seconds: float) -> float:
    """Return the Wh of a power that depends on the time alone and is alike from day to day.

    Five-minute pieces; of many whole days only the last one is looked at, so that the cost does
    not grow with the time.
    """
    days = max(0, math.floor(seconds / DAY_SECONDS) - 1)
    rest = seconds - days * DAY_SECONDS
    total = _pieces(power_at, begin + days * DAY_SECONDS, rest)
    if days:
        total += days * _pieces(power_at, begin + (days - 1) * DAY_SECONDS, DAY_SECONDS)
    return total


def _pieces(power_at: Callable[[float], float], begin: float, seconds: float) -> float:
    count = math.ceil(seconds / _PIECE_SECONDS)
    width = seconds / count
    watts = math.fsum(power_at(begin + (number + 0.5) * width) for number in range(count))
    return watts * width / HOUR_SECONDS


def _count(meter: Meter, flow: Flow, seconds: float, rated_watts: float) -> Meter:
    mean_watts = flow.watt_hours * HOUR_SECONDS / seconds
    warm = AMBIENT_CELSIUS + _FULL_LOAD_RISE_CELSIUS * min(1.0, abs(mean_watts) / rated_watts)
    near = math.exp(-seconds / _WARMING_SECONDS)
    return Meter(
        power_watts=flow.power_watts,
        injected_watt_hours=meter.injected_watt_hours + max(0.0, flow.watt_hours),
        absorbed_watt_hours=meter.absorbed_watt_hours + max(0.0, -flow.watt_hours),
        temperature_celsius=warm + (meter.temperature_celsius - warm) * near,
    )
