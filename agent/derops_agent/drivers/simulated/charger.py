"""An EV charger: cars come, want energy, and leave, full or not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from derops_agent.drivers.simulated.filling import Knot, capped, flow, value_at
from derops_agent.drivers.simulated.noise import draw
from derops_agent.drivers.simulated.stepping import (
    DAY_SECONDS,
    HOUR_SECONDS,
    Flow,
    Stretch,
    least,
    ramp,
)
from derops_agent.ports import Setpoints

MINIMUM_WATTS = 1380.0
"""6 A at 230 V: below it IEC 61851 knows no charging, only a pause."""

_TAPER_SHARE = 0.2  # of the wanted energy, the last part, which goes in more slowly


@dataclass(frozen=True, slots=True, kw_only=True)
class CarVisit:
    """One car: when it is plugged in, and what it wants."""

    number: int
    arrives_seconds: float
    leaves_seconds: float
    wanted_watt_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargerState:
    """What a charger remembers: the session it counted last."""

    session: int = -1
    charged_watt_hours: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Charger:
    """The ratings of a charger, and its physics."""

    max_absorption_watts: float
    ramp_watts_per_second: float
    sessions_per_day: int
    seed: int

    def begin(self) -> ChargerState:
        """Return a charger that has seen no car."""
        return ChargerState()

    def restore(self, fields: Mapping[str, Any]) -> ChargerState:
        """Return a stored one."""
        return ChargerState(**fields)

    def state_of_charge_percent(self, state: ChargerState) -> None:
        """Return None: a charger does not know its car's state of charge."""
        return

    def available_watts(self, state: ChargerState, at_seconds: float) -> None:
        """Return None: it never injects."""
        return

    def session_at(self, at_seconds: float) -> CarVisit:
        """Return the session of this part of the day, whether the car is plugged in now or not."""
        slot = DAY_SECONDS / self.sessions_per_day
        number = math.floor(at_seconds / slot)
        arrives = (number + 0.3 * draw(self.seed, number, 1)) * slot
        leaves = (number + 0.65 + 0.33 * draw(self.seed, number, 2)) * slot
        # Some want more than fits into their stay.
        share = 0.3 + 0.8 * draw(self.seed, number, 3)
        wanted = share * self.max_absorption_watts * (leaves - arrives) / HOUR_SECONDS
        return CarVisit(
            number=number,
            arrives_seconds=arrives,
            leaves_seconds=leaves,
            wanted_watt_hours=wanted,
        )

    def step(self, state: ChargerState, span: Stretch) -> tuple[ChargerState, Flow]:
        """Charge the car that is there, if any."""
        session = self.session_at(span.at_seconds)
        state = _meet(state, session)
        most = self._most_watts(span.orders)
        left = max(0.0, session.wanted_watt_hours - state.charged_watt_hours)
        plugged = session.arrives_seconds <= span.at_seconds < session.leaves_seconds
        if not plugged or most == 0 or left == 0:
            return state, Flow(power_watts=0.0, watt_hours=0.0)
        ceiling = value_at(self._curve(session, most), state.charged_watt_hours)
        before = max(MINIMUM_WATTS, -span.power_watts)  # a charge begins at the minimum
        moved = ramp(before, ceiling, self.ramp_watts_per_second * span.seconds)
        power = min(moved, ceiling, left * HOUR_SECONDS / span.seconds)
        charged = min(left, power * span.seconds / HOUR_SECONDS)
        return (
            ChargerState(
                session=session.number,
                # Sums of many steps come near the wanted energy; min() above makes it met.
                charged_watt_hours=session.wanted_watt_hours - (left - charged),
            ),
            Flow(power_watts=-power, watt_hours=-charged),
        )

    def leap(self, state: ChargerState, span: Stretch) -> tuple[ChargerState, Flow]:
        """Pass session after session."""
        slot = DAY_SECONDS / self.sessions_per_day
        end = span.at_seconds + span.seconds
        most = self._most_watts(span.orders)
        total, power = 0.0, 0.0
        for number in range(math.floor(span.at_seconds / slot), math.floor(end / slot) + 1):
            session = self.session_at((number + 0.5) * slot)
            state = _meet(state, session)
            begin = max(span.at_seconds, session.arrives_seconds)
            seconds = min(end, session.leaves_seconds) - begin
            power = 0.0
            if seconds <= 0 or most == 0 or state.charged_watt_hours >= session.wanted_watt_hours:
                continue
            curve = self._curve(session, most)
            rates = [(content, watts / HOUR_SECONDS) for content, watts in curve]
            charged, used = flow(state.charged_watt_hours, seconds, rates)
            total += charged - state.charged_watt_hours
            state = ChargerState(session=session.number, charged_watt_hours=charged)
            if used == seconds and end < session.leaves_seconds:
                power = value_at(curve, charged)
        return state, Flow(power_watts=0.0 - power, watt_hours=0.0 - total)

    def _most_watts(self, orders: Setpoints) -> float:
        most = least(self.max_absorption_watts, orders.max_load_watts)
        return most if orders.energized and most >= MINIMUM_WATTS else 0.0

    def _curve(self, session: CarVisit, most_watts: float) -> list[Knot]:
        """Return the power that the car takes, by the energy that it has got."""
        wanted, full = session.wanted_watt_hours, self.max_absorption_watts
        weak_from = wanted * (1 - _TAPER_SHARE * MINIMUM_WATTS / full)
        knots = [(0.0, full), (wanted * (1 - _TAPER_SHARE), full)]
        if full > MINIMUM_WATTS:
            knots.append((weak_from, MINIMUM_WATTS))
        return capped([*knots, (wanted, MINIMUM_WATTS)], most_watts)


def _meet(state: ChargerState, session: CarVisit) -> ChargerState:
    return state if state.session == session.number else ChargerState(session=session.number)
