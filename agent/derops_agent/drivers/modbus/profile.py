"""The profile of a device: which register means what. A YAML file, checked whole at start."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from derops_agent.drivers.modbus.points import MeasuredPoint, Point, ProfileSection, Register
from derops_agent.drivers.modbus_tcp import Table
from derops_agent.drivers.read_back import ReadBackOptions

ControlName = Literal["activePower", "generationLimit", "loadLimit", "energize"]
CONTROL_NAMES: tuple[ControlName, ...] = get_args(ControlName)
Word = Annotated[int, Field(ge=0, le=65535)]


class Rating(ProfileSection):
    """What a device can do in one direction: a constant, or what a register says."""

    watts: int | None = Field(default=None, ge=0)
    read: MeasuredPoint | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.watts is None) == (self.read is None):
            raise ValueError("must have either watts or read")
        return self


class Ratings(ProfileSection):
    """What a device can do; a direction that is absent is 0 W."""

    max_injection_watts: Rating = Rating(watts=0)
    max_absorption_watts: Rating = Rating(watts=0)


class Measurements(ProfileSection):
    """What a device measures; scales make the unit that the key names."""

    active_power_watts: MeasuredPoint | None = None
    """Positive is injection into the grid; needed to verify effects."""

    reactive_power_vars: MeasuredPoint | None = None
    voltage_volts: MeasuredPoint | None = None
    frequency_hertz: MeasuredPoint | None = None
    state_of_charge_percent: MeasuredPoint | None = None
    energy_injected_watt_hours: MeasuredPoint | None = None
    energy_absorbed_watt_hours: MeasuredPoint | None = None
    temperature_celsius: MeasuredPoint | None = None
    available_power_watts: MeasuredPoint | None = None

    def points(self) -> dict[str, MeasuredPoint]:
        """Return what is measured, by field name."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: point for name, point in found.items() if point is not None}


class Switch(Register):
    """A holding register that switches something on and off; any other value counts as off."""

    on_value: Word = 1
    off_value: Word = 0

    @model_validator(mode="after")
    def _two_values(self) -> Self:
        if self.on_value == self.off_value:
            raise ValueError(f"onValue and offValue must differ; both are {self.on_value}")
        return self


class Control(ProfileSection):
    """A power or a limit that a device can hold, in holding registers that can be read too."""

    value: Point
    unit: Literal["watts", "percent"] = "watts"
    """Percent: of the rating in the direction that is limited; of the larger one for a power."""

    step: float | None = Field(default=None, gt=0)
    """To what the device itself rounds, in ``unit``, where that is more than the register does: a
    multiple of the scales. The agent then writes such values only."""

    enable: Switch | None = None
    """What makes the value count. Its ``offValue`` releases the control."""

    release: float | None = None
    """Without ``enable``: the value, in ``unit``, that leaves the device to itself."""

    fallback: Point | None = None
    """Where the value goes that holds after a timer ran out, in ``unit``."""

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Self:
        points = {"value": self.value, "fallback": self.fallback}
        for name, point in points.items():
            if self.step is None or point is None or not point.is_whole:
                continue
            count = round(self.step / point.scale)
            if count < 1 or not math.isclose(count * point.scale, self.step):
                raise ValueError(
                    f"step {self.step:g} must be a multiple of the scale {point.scale:g} of {name}"
                )
        return self

    @model_validator(mode="after")
    def _can_be_released(self) -> Self:
        if (self.enable is None) == (self.release is None):
            raise ValueError("must have either enable or release, to let go of it by")
        return self


class Controls(ProfileSection):
    """By which registers a device is controlled; what is absent it does not offer."""

    active_power: Control | None = None
    generation_limit: Control | None = None
    load_limit: Control | None = None
    energize: Switch | None = None
    """Off ceases to energize, on permits service."""

    def values(self) -> dict[ControlName, Control]:
        """Return the controls that hold a number, limits first."""
        found: dict[ControlName, Control | None] = {
            "generationLimit": self.generation_limit,
            "loadLimit": self.load_limit,
            "activePower": self.active_power,
        }
        return {name: control for name, control in found.items() if control is not None}

    def names(self) -> frozenset[ControlName]:
        """Return which there are."""
        energize: set[ControlName] = set() if self.energize is None else {"energize"}
        return frozenset({*self.values(), *energize})


class Timer(Point):
    """Seconds after which the device falls back by itself; 0 = never. Each write begins anew."""

    type: Literal["uint16", "uint32"]
    max_seconds: int | None = Field(default=None, ge=1)
    """The most that the device takes; absent = what the register can hold."""

    guards: list[ControlName] = Field(default=list(CONTROL_NAMES), min_length=1)
    """What falls back; absent = all controls of the profile."""

    @property
    def most_seconds(self) -> int:
        """The most that it can be set to."""
        return int(self.most) if self.max_seconds is None else min(int(self.most), self.max_seconds)


class LocalControl(Register):
    """A register that says whether somebody on site has taken the device over; only read."""

    table: Table = "holding"
    values: list[Word] = Field(min_length=1)
    """What it holds then."""


class Profile(ProfileSection):
    """The registers of one type of device."""

    name: str = Field(min_length=1, max_length=100)
    """What the headend is told as the device's name and firmware."""

    ratings: Ratings
    measurements: Measurements = Measurements()
    controls: Controls = Controls()
    timers: list[Timer] = []
    remote_control: Switch | None = None
    """On while the agent holds anything, off else; needed by some devices before they obey."""

    local_control: LocalControl | None = None
    read_back: ReadBackOptions = ReadBackOptions()

    def written(self) -> Iterator[tuple[tuple[int | str, ...], Register]]:
        """Yield path and register of everything that the agent writes."""
        for name, control in self.controls.values().items():
            for part in ("value", "enable", "fallback"):
                register = getattr(control, part)
                if register is not None:
                    yield ("controls", name, part), register
        if self.controls.energize is not None:
            yield ("controls", "energize"), self.controls.energize
        for index, timer in enumerate(self.timers):
            yield ("timers", index), timer
        if self.remote_control is not None:
            yield ("remoteControl",), self.remote_control

    def timer_of(self, name: ControlName) -> Timer | None:
        """Return what guards a control."""
        return next((timer for timer in self.timers if name in timer.guards), None)
