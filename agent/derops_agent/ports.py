"""What the agent needs of a device: every driver implements it, and the agent knows nothing else.

Each write carries the whole wanted state, so that a repeated or resumed one is harmless.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, floor, inf, isclose
from typing import Protocol

from derops.modes import Mode


def whole_steps(steps: float) -> int:
    """Return ``steps`` rounded towards zero; an error in the last digits makes no step less."""
    near = round(steps)
    if isclose(steps, near, rel_tol=1e-12, abs_tol=1e-9):
        return near
    return floor(steps) if steps > 0 else ceil(steps)


def in_words(number: float) -> str:
    """Return a number for people, without the noise of its last digits."""
    return f"{round(number, 3) + 0.0:.15g}"


def whole_watts(watts: float) -> int:
    """Return what a device holds in whole watts, such that asking for these holds the same.

    Fractions are rounded away from zero: 50 % of 12,345 W is told as 6,173 W, as 6,172 W are 49 %.
    The result is never more than what was asked for, as that was in whole watts.
    """
    near = round(watts)
    if isclose(watts, near, rel_tol=1e-12, abs_tol=1e-6):
        return near
    return ceil(watts) if watts > 0 else floor(watts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Which values of one mode a device can hold: whole steps from zero, within a range."""

    step_watts: float = 0.0
    """Distance of two neighbouring values; 0 = the device rounds nothing."""

    least_watts: float = -inf
    """At most 0."""

    most_watts: float = inf
    """At least 0."""

    none_watts: float | None = None
    """The value by which the device says that it holds none; None = it says so otherwise."""

    def __str__(self) -> str:
        """Return it in words, for people who read a status or a probe."""
        words = f"steps of {in_words(self.step_watts)} W" if self.step_watts else "any value"
        if self.least_watts > -inf:
            words += f" from {in_words(self.least_watts)} W"
        if self.most_watts < inf:
            words += f" up to {in_words(self.most_watts)} W"
        return words

    def nearest(self, watts: int) -> float:
        """Return what the device holds of ``watts``: rounded towards zero, within the range."""
        return self.rounded(self.bounded(watts))

    def rounded(self, watts: float) -> float:
        """Return ``watts`` in whole steps, rounded towards zero."""
        if not self.step_watts:
            return watts
        return whole_steps(watts / self.step_watts) * self.step_watts

    def bounded(self, watts: int) -> float:
        """Return the value nearest to ``watts`` that is within the range."""
        return max(self.least_watts, min(watts, self.most_watts))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBack:
    """How soon a device shows a write, and how often it may be written."""

    delay_seconds: float = 0.0
    """The time from a write to the first question."""

    pace_seconds: float = 1.0
    """The time between two questions."""

    patience_seconds: float = 5.0
    """For how long the device is asked before the same is written again."""

    most_writes: int = 5
    """How often one setpoint is written: memory for settings wears out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """What a device can do, as the agent reports it to the headend."""

    modes: frozenset[str]
    driver: str
    firmware: str
    max_injection_watts: int
    max_absorption_watts: int
    can_measure: bool
    """Whether a sample had the active power, by which effects are verified."""

    reversion: bool = False
    """Whether the device has a timer of its own that reverts it."""

    resolutions: Mapping[str, Resolution] = field(default_factory=dict)
    """Which values the device can hold, by mode; a mode that is absent holds any value."""

    read_back: ReadBack = ReadBack()


VALUES: dict[str, str] = {
    Mode.ACTIVE_POWER: "active_power_watts",
    Mode.GENERATION_LIMIT: "max_generation_watts",
    Mode.LOAD_LIMIT: "max_load_watts",
}
"""The field of ``Setpoints`` with the value of a mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setpoints:
    """All that a device shall hold; None = released to the device's own control."""

    active_power_watts: int | None = None
    """Signed: positive is injection."""

    max_generation_watts: int | None = None
    max_load_watts: int | None = None
    energized: bool = True
    """False = cease to energize; True permits service and overrides no trip of the device."""

    def of(self, mode: str) -> int | None:
        """Return the value of a mode, in W; None = it has none, or is released."""
        return getattr(self, VALUES[mode]) if mode in VALUES else None

    def __str__(self) -> str:
        """Return it in words, for people who read a status or a log."""
        parts = {
            "an active power of {} W": self.active_power_watts,
            "at most {} W of generation": self.max_generation_watts,
            "at most {} W of load": self.max_load_watts,
        }
        held = [words.format(watts) for words, watts in parts.items() if watts is not None]
        if not self.energized:
            held.append("cease to energize")
        return ", ".join(held) or "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reversion:
    """What a device shall do by itself once nobody wrote to it for a while."""

    after_seconds: int
    """At least 1."""

    setpoints: Setpoints
    """What it shall hold then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadPoint:
    """A point of a device that could not be used in one sample."""

    name: str
    """As the profile or the SunSpec model calls it."""

    raw: str
    """What the device sent, in hexadecimal where it is registers; empty = it sent nothing."""

    problem: str
    """In words, with value, limit and unit."""

    quantity: int = 0
    """Number of ``agent_pb2.Quantity`` that is absent for it; 0 = none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One sample of a device."""

    at_us: int
    values: dict[int, float]
    """Keyed by the numbers of ``agent_pb2.Quantity``; an absent key was not measured."""

    local_control: bool = False
    """Whether somebody on site has switched the device to local control."""

    bad_points: tuple[BadPoint, ...] = ()
    """Points that are absent because the device sent nonsense, or refused them alone."""


NOT_WRITTEN = "nothing was written"
"""What a driver says in the CancelledError of a call that cannot have acted."""


class Device(Protocol):
    """One device behind a driver.

    Every method raises DeviceTimeoutError when it is not known whether the device acted,
    DeviceUnreachableError when it cannot have acted, and DeviceRefusedError when the device said
    no. A method that is cancelled may say in its CancelledError what it waited for.
    """

    @property
    def capability(self) -> Capability:
        """What the device can do; once it is open, only what it is found to measure changes."""
        ...

    async def write(self, setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        """Make the device hold ``setpoints``, all of them; writing the same again is harmless.

        Args:
            setpoints: What it shall hold.
            reversion: What it shall do if it is not written to again; None = nothing.

        Returns:
            After how many seconds it reverts by itself, at most ``reversion.after_seconds``; None
            if nothing in the device is armed.
        """
        ...

    async def read_setpoints(self) -> Setpoints:
        """Return what the device says that it holds."""
        ...

    async def sample(self) -> Reading:
        """Measure once."""
        ...

    async def close(self) -> None:
        """Give the connection back; the device keeps what it holds."""
        ...
