"""A battery behind an inverter: charge, losses, tapers at both ends, a reserve."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from derops_agent.drivers.simulated.filling import Knot, capped, flow, value_at
from derops_agent.drivers.simulated.stepping import HOUR_SECONDS, Flow, Stretch, least, ramp
from derops_agent.ports import Setpoints

_EMPTY_TAPER_SHARE = 0.10  # of the capacity, below which discharging gets weaker
_LEAST_DISCHARGE = 0.10  # of the rating, what is left just above empty
_FULL_TAPER_SHARE = 0.90
_LEAST_CHARGE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class BatteryState:
    """What a battery remembers."""

    stored_watt_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """The ratings of a battery, and its physics."""

    max_injection_watts: float
    max_absorption_watts: float
    capacity_watt_hours: float
    initial_percent: float
    reserve_percent: float
    ramp_watts_per_second: float
    idle_watts: float
    charge_efficiency: float
    discharge_efficiency: float

    def begin(self) -> BatteryState:
        """Return a new battery at its initial charge."""
        return BatteryState(stored_watt_hours=self.capacity_watt_hours * self.initial_percent / 100)

    def restore(self, fields: Mapping[str, Any]) -> BatteryState:
        """Return a stored battery; a smaller one loses what no longer fits."""
        stored = BatteryState(**fields).stored_watt_hours
        return BatteryState(stored_watt_hours=min(float(stored), self.capacity_watt_hours))

    def state_of_charge_percent(self, state: BatteryState) -> float:
        """Return the state of charge."""
        return 100 * state.stored_watt_hours / self.capacity_watt_hours

    def available_watts(self, state: BatteryState, at_seconds: float) -> float:
        """Return the power that it can discharge with now."""
        if state.stored_watt_hours <= self._reserve_watt_hours:
            return 0.0
        return value_at(self._discharge_curve(), state.stored_watt_hours)

    def step(self, state: BatteryState, span: Stretch) -> tuple[BatteryState, Flow]:
        """Ramp towards the order, as far as the charge allows."""
        if not span.orders.energized:
            return self._idle(state, span)
        target = self._target_watts(span.orders)
        wanted = ramp(span.power_watts, target, self.ramp_watts_per_second * span.seconds)
        if wanted > 0:
            return self._discharge(state, wanted, span.seconds)
        return self._charge(state, -wanted, span.seconds)

    def leap(self, state: BatteryState, span: Stretch) -> tuple[BatteryState, Flow]:
        """Hold the order until the battery is empty or full, and stay there."""
        target = self._target_watts(span.orders)
        if target == 0:
            return self._idle(state, span)
        if target > 0:
            return self._leap_discharging(state, target, span.seconds)
        return self._leap_charging(state, -target, span.seconds)

    @property
    def _reserve_watt_hours(self) -> float:
        return self.capacity_watt_hours * self.reserve_percent / 100

    def _target_watts(self, orders: Setpoints) -> float:
        if not orders.energized:
            return 0.0
        wanted = orders.active_power_watts or 0
        if wanted > 0:
            return least(wanted, self.max_injection_watts, orders.max_generation_watts)
        return -least(-wanted, self.max_absorption_watts, orders.max_load_watts)

    def _discharge_curve(self) -> list[Knot]:
        full, weak = self.max_injection_watts, _LEAST_DISCHARGE * self.max_injection_watts
        taper = self.capacity_watt_hours * _EMPTY_TAPER_SHARE
        return [
            (0.0, weak),
            (taper * _LEAST_DISCHARGE, weak),
            (taper, full),
            (self.capacity_watt_hours, full),
        ]

    def _charge_curve(self) -> list[Knot]:
        full, weak = self.max_absorption_watts, _LEAST_CHARGE * self.max_absorption_watts
        capacity = self.capacity_watt_hours
        taper = capacity * (1 - _FULL_TAPER_SHARE)
        return [
            (0.0, full),
            (capacity - taper, full),
            (capacity - taper * _LEAST_CHARGE, weak),
            (capacity, weak),
        ]

    def _idle(self, state: BatteryState, span: Stretch) -> tuple[BatteryState, Flow]:
        lost = self.idle_watts * span.seconds / HOUR_SECONDS
        stored = max(0.0, state.stored_watt_hours - lost)
        return BatteryState(stored_watt_hours=stored), Flow(power_watts=0.0, watt_hours=0.0)

    def _discharge(
        self, state: BatteryState, wanted: float, seconds: float
    ) -> tuple[BatteryState, Flow]:
        hours = seconds / HOUR_SECONDS
        usable = max(0.0, state.stored_watt_hours - self._reserve_watt_hours)
        most = value_at(self._discharge_curve(), state.stored_watt_hours)
        power = min(wanted, most, usable * self.discharge_efficiency / hours)
        drawn = (power / self.discharge_efficiency + self.idle_watts) * hours
        stored = max(0.0, state.stored_watt_hours - drawn)
        return (
            BatteryState(stored_watt_hours=stored),
            Flow(power_watts=power, watt_hours=power * hours),
        )

    def _charge(
        self, state: BatteryState, wanted: float, seconds: float
    ) -> tuple[BatteryState, Flow]:
        hours = seconds / HOUR_SECONDS
        room = self.capacity_watt_hours - state.stored_watt_hours
        most = value_at(self._charge_curve(), state.stored_watt_hours)
        power = min(wanted, most, (room / hours + self.idle_watts) / self.charge_efficiency)
        gained = (power * self.charge_efficiency - self.idle_watts) * hours
        stored = min(max(0.0, state.stored_watt_hours + gained), self.capacity_watt_hours)
        return (
            BatteryState(stored_watt_hours=stored),
            # 0.0 -: a power of nothing is 0, not -0.
            Flow(power_watts=0.0 - power, watt_hours=0.0 - power * hours),
        )

    def _leap_discharging(
        self, state: BatteryState, wanted: float, seconds: float
    ) -> tuple[BatteryState, Flow]:
        before, reserve = state.stored_watt_hours, self._reserve_watt_hours
        curve = capped(self._discharge_curve(), wanted)
        knots = [(content, self._drain(watts)) for content, watts in curve if content > reserve]
        after, used = before, 0.0
        if before > reserve:
            knots.insert(0, (reserve, self._drain(value_at(curve, reserve))))
            after, used = flow(before, seconds, knots)
        idle_hours = self.idle_watts * used / HOUR_SECONDS
        injected = max(0.0, before - after - idle_hours) * self.discharge_efficiency
        # What is left of the time at the reserve: only the losses go on.
        stored = max(0.0, after - self.idle_watts * (seconds - used) / HOUR_SECONDS)
        power = value_at(curve, stored) if used == seconds and stored > reserve else 0.0
        return (
            BatteryState(stored_watt_hours=stored),
            Flow(power_watts=power, watt_hours=injected),
        )

    def _leap_charging(
        self, state: BatteryState, wanted: float, seconds: float
    ) -> tuple[BatteryState, Flow]:
        before = state.stored_watt_hours
        curve = capped(self._charge_curve(), wanted)
        gains = [
            (content, (watts * self.charge_efficiency - self.idle_watts) / HOUR_SECONDS)
            for content, watts in curve
        ]
        after, used = flow(before, seconds, gains)
        power = value_at(curve, after)
        absorbed = (after - before + self.idle_watts * used / HOUR_SECONDS) / self.charge_efficiency
        if used < seconds:
            # Full: from now on it covers its losses. (Empty: its losses take all that comes.)
            power = min(power, self.idle_watts / self.charge_efficiency) if after > 0 else power
            absorbed += power * (seconds - used) / HOUR_SECONDS
        return (
            BatteryState(stored_watt_hours=after),
            Flow(power_watts=0.0 - power, watt_hours=0.0 - max(0.0, absorbed)),
        )

    def _drain(self, watts: float) -> float:
        return -(watts / self.discharge_efficiency + self.idle_watts) / HOUR_SECONDS
