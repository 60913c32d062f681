"""A generator: it must start, has a minimum load, ramps, and cools down."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from derops_agent.drivers.simulated.stepping import HOUR_SECONDS, Flow, Stretch, least, ramp
from derops_agent.ports import Setpoints

MINIMUM_SHARE = 0.3
"""The least load as a share of the rating; with less the engine soots up."""

Stage = Literal["Off", "Starting", "Running", "Cooling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorState:
    """What a generator remembers."""

    stage: Stage = "Off"
    seconds_left: float = 0.0
    """Until a start or a cool-down is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """The ratings of a generator, and its physics."""

    max_injection_watts: float
    ramp_watts_per_second: float
    start_up_seconds: float
    cool_down_seconds: float

    def begin(self) -> GeneratorState:
        """Return a generator that stands still."""
        return GeneratorState()

    def restore(self, fields: Mapping[str, Any]) -> GeneratorState:
        """Return a stored one."""
        return GeneratorState(**fields)

    def state_of_charge_percent(self, state: GeneratorState) -> None:
        """Return None: its tank is not looked at."""
        return

    def available_watts(self, state: GeneratorState, at_seconds: float) -> float:
        """Return the rating, which it reaches after its start."""
        return self.max_injection_watts

    def step(self, state: GeneratorState, span: Stretch) -> tuple[GeneratorState, Flow]:
        """Start, run, ramp or cool down."""
        target = self._target_watts(span.orders)
        if not span.orders.energized and state.stage in ("Starting", "Running"):
            # The breaker opens at once; an engine that ran goes on without load.
            state = self._stop(state)
        elif target > 0 and state.stage == "Off":
            state = GeneratorState(stage="Starting", seconds_left=self.start_up_seconds)
        elif target > 0 and state.stage == "Cooling":
            state = GeneratorState(stage="Running")  # still turning: no start needed
        elif target == 0 and state.stage == "Starting":
            state = self._stop(state)
        if state.stage == "Running":
            return self._run(state, target, span.power_watts, span.seconds)
        return self._wait(state, target, span.seconds)

    def leap(self, state: GeneratorState, span: Stretch) -> tuple[GeneratorState, Flow]:
        """Hold what the orders lead to."""
        target = self._target_watts(span.orders)
        if target == 0:
            left = state.seconds_left if state.stage == "Cooling" else self.cool_down_seconds
            if state.stage in ("Cooling", "Running") and left > span.seconds:
                after = GeneratorState(stage="Cooling", seconds_left=left - span.seconds)
            else:
                after = GeneratorState()
            return after, Flow(power_watts=0.0, watt_hours=0.0)
        left = state.seconds_left if state.stage == "Starting" else 0.0
        if left > span.seconds:
            state = replace(state, seconds_left=left - span.seconds)
            return state, Flow(power_watts=0.0, watt_hours=0.0)
        hours = (span.seconds - left) / HOUR_SECONDS
        return GeneratorState(stage="Running"), Flow(power_watts=target, watt_hours=target * hours)

    def _target_watts(self, orders: Setpoints) -> float:
        wanted = orders.active_power_watts or 0
        if not orders.energized or wanted <= 0:
            return 0.0
        most = least(self.max_injection_watts, orders.max_generation_watts)
        minimum = MINIMUM_SHARE * self.max_injection_watts
        return max(minimum, min(wanted, most)) if most >= minimum else 0.0

    def _run(
        self, state: GeneratorState, target: float, before: float, seconds: float
    ) -> tuple[GeneratorState, Flow]:
        power = ramp(before, target, self.ramp_watts_per_second * seconds)
        if power == 0:
            state = self._stop(state)
        return state, Flow(power_watts=power, watt_hours=power * seconds / HOUR_SECONDS)

    def _wait(
        self, state: GeneratorState, target: float, seconds: float
    ) -> tuple[GeneratorState, Flow]:
        spare = seconds - state.seconds_left
        if spare <= 0:
            return (
                replace(state, seconds_left=state.seconds_left - seconds),
                Flow(power_watts=0.0, watt_hours=0.0),
            )
        if state.stage == "Starting":
            return self._run(GeneratorState(stage="Running"), target, 0.0, spare)
        return GeneratorState(), Flow(power_watts=0.0, watt_hours=0.0)

    def _stop(self, state: GeneratorState) -> GeneratorState:
        if state.stage != "Running":
            return GeneratorState()
        return GeneratorState(stage="Cooling", seconds_left=self.cool_down_seconds)
