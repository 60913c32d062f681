"""A device in memory that holds whole steps of a value, and can be late, forgetful or wrong.

What it holds is computed in fractions, not by the code that is judged.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from typing import Any

from tests.agent.fakes import FakeClock, FakeDevice, S

from derops_agent.ports import Reversion, Setpoints

FIELDS = {
    "ActivePower": "active_power_watts",
    "GenerationLimit": "max_generation_watts",
    "LoadLimit": "max_load_watts",
}


def rounded(watts: int, step: Fraction, most: int | None) -> int:
    """Return what a device of such steps holds, in the whole watts that ask for it again."""
    within = watts if most is None else max(-most, min(watts, most))
    steps = abs(within) // step
    return ceil(steps * step) * (1 if within >= 0 else -1)


@dataclass
class RoundingDevice(FakeDevice):
    """It holds whole steps, and shows what it holds some time after it took it."""

    clock: FakeClock = field(default_factory=FakeClock)
    step: Fraction = Fraction(1)
    most_watts: int | None = None
    distort: Callable[[int, int], int] = lambda watts, step: watts
    """What it does of its own to what it was told; steps and watts are whole."""

    lag_seconds: float = 0.0
    dropped: int = 0
    """How many of the next writes it answers and forgets."""

    lost: int = 0
    """How many of its last writes it had forgotten when it could be asked for them."""

    most_lost: int = 0

    powers_held: list[tuple[int, int | None]] = field(default_factory=list)
    """Its active powers, each with the wall time from which on it held it."""

    _shown: Setpoints = field(default_factory=Setpoints)
    _shown_from_us: int = 0
    _forgot: bool = False
    """The last write."""

    async def write(self, setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        before = await self._look()
        if self.clock.mono_us >= self._shown_from_us and not self._forgot:
            self.lost = 0
        dropped, self.dropped = self.dropped, max(0, self.dropped - 1)
        changes: dict[str, Any] = {
            name: self.distort(rounded(watts, self.step, self.most_watts), ceil(self.step))
            for name in FIELDS.values()
            if (watts := getattr(setpoints, name)) is not None
        }
        kept = self.held
        seconds = await super().write(replace(setpoints, **changes), reversion)
        self._forgot = False
        if dropped:
            self.held = kept
            self._forget()
        self._shown, self._shown_from_us = before, self.clock.mono_us + round(self.lag_seconds * S)
        self._note_power()
        return seconds

    async def read_setpoints(self) -> Setpoints:
        await super().read_setpoints()
        return await self._look()

    def restart(self) -> None:
        """Forget everything, as after a power cut."""
        if self.clock.mono_us < self._shown_from_us and not self._forgot:
            self._forget()
        self.held = self._shown = Setpoints()
        self._note_power()

    def powers_within(self, start_us: int, end_us: int) -> list[int | None]:
        """Return the active powers that it held from ``start_us`` until ``end_us``, in their order.

        The first is what it held before it was written at ``start_us``.
        """
        before = [watts for at_us, watts in self.powers_held if at_us < start_us]
        then = [watts for at_us, watts in self.powers_held if start_us <= at_us < end_us]
        return [*(before[-1:] or [None]), *then]

    def _note_power(self) -> None:
        self.powers_held.append((self.clock.wall_us, self.held.active_power_watts))

    def _forget(self) -> None:
        self._forgot, self.lost = True, self.lost + 1
        self.most_lost = max(self.most_lost, self.lost)

    async def _look(self) -> Setpoints:
        return self._shown if self.clock.mono_us < self._shown_from_us else self.held

    @property
    def measured_watts(self) -> float:
        """Return its power: all that it may, out if nothing says another direction."""
        held = self.held
        if held.active_power_watts is not None:
            return held.active_power_watts
        if held.max_load_watts is not None:
            return -min(held.max_load_watts, 8000)
        return min(8000, 8000 if held.max_generation_watts is None else held.max_generation_watts)
