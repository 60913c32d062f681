"""A load that can be limited but not commanded: a base load, and people around it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from derops_agent.drivers.simulated.noise import smooth
from derops_agent.drivers.simulated.stepping import HOUR_SECONDS, Flow, Stretch, integrate, least
from derops_agent.ports import Setpoints

_SLOW_SHARE, _SLOW_SECONDS = 0.25, 1800.0
_FAST_SHARE, _FAST_SECONDS = 0.08, 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadState:
    """A load remembers nothing: its power follows from the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The ratings of a load, and its physics."""

    max_absorption_watts: float
    base_watts: float
    seed: int

    def begin(self) -> LoadState:
        """Return a new load."""
        return LoadState()

    def restore(self, fields: Mapping[str, Any]) -> LoadState:
        """Return a stored one."""
        return LoadState(**fields)

    def state_of_charge_percent(self, state: LoadState) -> None:
        """Return None: it stores nothing."""
        return

    def available_watts(self, state: LoadState, at_seconds: float) -> None:
        """Return None: it never injects."""
        return

    def step(self, state: LoadState, span: Stretch) -> tuple[LoadState, Flow]:
        """Take what is wanted, up to the limit."""
        power = self._power_watts(span.orders, span.at_seconds + span.seconds / 2)
        return state, Flow(power_watts=power, watt_hours=power * span.seconds / HOUR_SECONDS)

    def leap(self, state: LoadState, span: Stretch) -> tuple[LoadState, Flow]:
        """Add up the curve."""

        def power_at(at_seconds: float) -> float:
            return self._power_watts(span.orders, at_seconds)

        return state, Flow(
            power_watts=power_at(span.at_seconds + span.seconds),
            watt_hours=integrate(power_at, span.at_seconds, span.seconds),
        )

    def _power_watts(self, orders: Setpoints, at_seconds: float) -> float:
        if not orders.energized:
            return 0.0
        slow = _SLOW_SHARE * smooth(self.seed, at_seconds, _SLOW_SECONDS)
        fast = _FAST_SHARE * smooth(self.seed + 1, at_seconds, _FAST_SECONDS)
        wanted = self.base_watts * (1 + slow + fast)
        return 0.0 - least(wanted, self.max_absorption_watts, orders.max_load_watts)
