"""A solar inverter: the sun's day, clouds, more panel than inverter, curtailment."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from derops_agent.drivers.simulated.noise import smooth
from derops_agent.drivers.simulated.stepping import (
    DAY_SECONDS,
    HOUR_SECONDS,
    Flow,
    Stretch,
    integrate,
    least,
    ramp,
)
from derops_agent.ports import Setpoints

_DARKEST_CLOUD = 0.1
_CLOUD_SECONDS = 600.0
_WISP_SECONDS = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SolarState:
    """An inverter remembers nothing: its power follows from the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solar:
    """The ratings of a solar inverter, and its physics."""

    max_injection_watts: float
    panel_watts: float
    ramp_watts_per_second: float
    cloudiness: float
    sunrise_hour: float
    sunset_hour: float
    seed: int

    def begin(self) -> SolarState:
        """Return a new inverter."""
        return SolarState()

    def restore(self, fields: Mapping[str, Any]) -> SolarState:
        """Return a stored one."""
        return SolarState(**fields)

    def state_of_charge_percent(self, state: SolarState) -> None:
        """Return None: it stores nothing."""
        return

    def available_watts(self, state: SolarState, at_seconds: float) -> float:
        """Return what sun, clouds and inverter give without curtailment."""
        hour = at_seconds % DAY_SECONDS / HOUR_SECONDS
        day = self.sunset_hour - self.sunrise_hour
        height = math.sin(math.pi * (hour - self.sunrise_hour) / day)
        if not self.sunrise_hour < hour < self.sunset_hour or height <= 0:
            return 0.0
        panel = self.panel_watts * math.pow(height, 1.2) * self._clearness(at_seconds)
        return min(panel, self.max_injection_watts)

    def step(self, state: SolarState, span: Stretch) -> tuple[SolarState, Flow]:
        """Follow the sun; a curtailment and its end take the inverter's ramp."""
        if not span.orders.energized:
            return state, Flow(power_watts=0.0, watt_hours=0.0)
        available = self.available_watts(state, span.at_seconds + span.seconds / 2)
        wanted = least(available, span.orders.max_generation_watts)
        moved = ramp(span.power_watts, wanted, self.ramp_watts_per_second * span.seconds)
        power = min(moved, available)  # a cloud knows no ramp
        return state, Flow(power_watts=power, watt_hours=power * span.seconds / HOUR_SECONDS)

    def leap(self, state: SolarState, span: Stretch) -> tuple[SolarState, Flow]:
        """Add up the curve."""

        def power_at(at_seconds: float) -> float:
            return self._power_watts(state, span.orders, at_seconds)

        return state, Flow(
            power_watts=power_at(span.at_seconds + span.seconds),
            watt_hours=integrate(power_at, span.at_seconds, span.seconds),
        )

    def _power_watts(self, state: SolarState, orders: Setpoints, at_seconds: float) -> float:
        if not orders.energized:
            return 0.0
        return least(self.available_watts(state, at_seconds), orders.max_generation_watts)

    def _clearness(self, at_seconds: float) -> float:
        clouds = smooth(self.seed, at_seconds, _CLOUD_SECONDS)
        wisps = smooth(self.seed + 1, at_seconds, _WISP_SECONDS)
        cover = self.cloudiness * (1 + 0.75 * clouds + 0.25 * wisps)
        return max(_DARKEST_CLOUD, 1 - 0.8 * cover)
