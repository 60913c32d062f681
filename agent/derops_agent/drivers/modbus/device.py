"""A device with a profile behind the agent's port."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from derops.errors import DeviceRefusedError, DeviceTimeoutError
from derops.wire.v1 import agent_pb2
from derops_agent.clock import Clock
from derops_agent.drivers.modbus.controls import (
    MODES,
    Rated,
    find_switch_without_value,
    held,
    held_controls,
    plan,
    registers_of,
    resolutions_of,
)
from derops_agent.drivers.modbus.image import Image, read_image, span_of, whole_of
from derops_agent.drivers.modbus.loading import load_profile
from derops_agent.drivers.modbus.points import Register
from derops_agent.drivers.modbus.profile import Profile, Rating
from derops_agent.drivers.modbus_tcp import Unit, take_unit
from derops_agent.drivers.options import DriverOptionError, explain
from derops_agent.drivers.plausible import what_cannot_be
from derops_agent.drivers.reading import Answers, Reader, join
from derops_agent.drivers.units import UnitOptions
from derops_agent.ports import BadPoint, Capability, Reading, Reversion, Setpoints


class ModbusOptions(UnitOptions):
    """Where a device is, and the file that says what its registers mean."""

    profile: Path


class ProfiledDevice:
    """One unit. Percentages are read together with the value that they refer to."""

    def __init__(self, profile: Profile, unit: Unit, clock: Clock, rated: Rated) -> None:
        self._profile, self._unit, self._clock, self._rated = profile, unit, clock, rated
        self._asked = Setpoints()
        self._local_control = self._sampled = False
        self._reader = Reader(unit, join(map(span_of, measured_registers(profile))), clock)
        controls = profile.controls.values().values()
        refers = any(control.unit == "percent" for control in controls)
        self._rating_registers = rating_registers(profile) if refers else []
        self._controls = whole_of(unit, [*registers_of(profile), *self._rating_registers])
        self._wrote_us: int | None = None
        self._capability = capability_of(profile, rated)

    @property
    def capability(self) -> Capability:
        """What the device can do; that it measures its power is known once it did."""
        return self._capability

    async def write(self, setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        """Hold ``setpoints``: first what is switched off or limited, then what is permitted.

        Raises:
            DeviceTimeoutError: It is not known whether the device acted.
            DeviceUnreachableError: Nothing was written.
            DeviceRefusedError: The device answered no, or a register cannot hold a value.
        """
        with self._unit.before_writing(setpoints):
            image, rated = await self._read_controls()
        writes, armed_seconds = plan(
            self._profile, rated, image, setpoints, reversion, may_lag=self._may_lag()
        )
        self._asked = setpoints
        if writes:
            self._wrote_us = self._clock.monotonic_us()
        for register, data in writes:
            await self._unit.write(register, data)
        return armed_seconds

    async def _read_controls(self) -> tuple[Image, Rated]:
        """Return the registers that control the device, and what percentages refer to now."""
        image = Image(await self._controls.read())
        problem = find_switch_without_value(self._profile, image)
        if problem:
            raise DeviceTimeoutError(
                f"{self._unit}: {problem}: the device does not say now what it holds"
            )
        if not self._rating_registers:
            return image, self._rated
        try:
            return image, rated_of(self._profile, image)
        except DeviceRefusedError as error:
            raise DeviceTimeoutError(f"{self._unit}: {error}") from error

    def _may_lag(self) -> bool:
        """Tell whether the registers may not show the last write yet."""
        if self._wrote_us is None or not held_controls(self._asked):
            return False
        passed_us = self._clock.monotonic_us() - self._wrote_us
        return passed_us < self._profile.read_back.patience_seconds * 1_000_000

    async def read_setpoints(self) -> Setpoints:
        """Return what the device says that it holds.

        Raises:
            DeviceError: It could not be asked, or answered what cannot be.
        """
        image, rated = await self._read_controls()
        return held(self._profile, rated, image, self._asked)

    async def sample(self) -> Reading:
        """Measure. While the device does not tell who has control, the last answer counts.

        Raises:
            DeviceTimeoutError: It answered nothing.
        """
        answers = await self._reader.read()
        values, bad = read_values(self._profile, answers, self._rated)
        local_control, bad_local = read_local_control(self._profile, answers)
        if local_control is not None:
            self._local_control = local_control
        measures = agent_pb2.ACTIVE_POWER_WATTS in values
        if measures or not self._sampled:
            self._capability = replace(self._capability, can_measure=measures)
        self._sampled = True
        return Reading(
            at_us=self._clock.now_us(),
            values=values,
            local_control=self._local_control,
            bad_points=(*bad, *bad_local),
        )

    async def close(self) -> None:
        """Give the connection back; the device keeps what it holds."""
        await self._unit.close()


async def open_modbus(options: Mapping[str, Any], clock: Clock) -> ProfiledDevice:
    """Open a device by its profile, and read once all that it will be asked for, if it answers.

    Raises:
        SettingError: An option or the profile is wrong.
        DeviceError: It did not answer what it can do, or lacks what it is controlled by.
    """
    parsed, profile = parse_options(options)
    unit = take_unit(parsed)
    try:
        rated = await read_rated(profile, unit)
        device = ProfiledDevice(profile, unit, clock, rated)
        with suppress(DeviceTimeoutError):  # what it can do is known: it is told as silent
            await device.sample()
            await device.read_setpoints()
    except BaseException:
        await unit.close()
        raise
    return device


def parse_options(options: Mapping[str, Any]) -> tuple[ModbusOptions, Profile]:
    """Check the options of a device and its profile.

    Raises:
        DriverOptionError: It names the option and what is allowed.
        SettingError: The profile is wrong; it names file, line and key.
    """
    try:
        parsed = ModbusOptions.model_validate(dict(options))
    except ValidationError as error:
        name, problem = explain(error, ModbusOptions)
        raise DriverOptionError(name, "modbus device", problem) from error
    return parsed, load_profile(parsed.profile)


async def read_rated(profile: Profile, unit: Unit) -> Rated:
    """Return what a device can do.

    Raises:
        DeviceError: It could not be asked, or cannot do anything.
    """
    return rated_of(profile, await read_image(unit, rating_registers(profile)))


def rating_registers(profile: Profile) -> list[Register]:
    """Return the registers that say what a device can do."""
    ratings = (profile.ratings.max_injection_watts, profile.ratings.max_absorption_watts)
    return [each.read for each in ratings if each.read is not None]


def rated_of(profile: Profile, image: Image) -> Rated:
    """Return what a device can do.

    Raises:
        DeviceRefusedError: It cannot do anything, or does not say.
    """
    ratings = (profile.ratings.max_injection_watts, profile.ratings.max_absorption_watts)
    injection, absorption = (_watts(each, image) for each in ratings)
    if not max(injection, absorption) > 0 or min(injection, absorption) < 0:
        raise DeviceRefusedError(
            f"the device's ratings are {injection} W of injection and {absorption} W of "
            f"absorption; none may be below 0 and one must be above"
        )
    return Rated(max_injection_watts=injection, max_absorption_watts=absorption)


def capability_of(profile: Profile, rated: Rated) -> Capability:
    """Return what a device can do by its profile."""
    names = profile.controls.names()
    return Capability(
        modes=frozenset(MODES[name] for name in names),
        driver="modbus",
        firmware=profile.name,
        max_injection_watts=rated.max_injection_watts,
        max_absorption_watts=rated.max_absorption_watts,
        can_measure=profile.measurements.active_power_watts is not None,
        reversion=any(profile.timer_of(name) is not None for name in names),
        resolutions=resolutions_of(profile, rated),
        read_back=profile.read_back.settings(),
    )


def measured_registers(profile: Profile) -> list[Register]:
    """Return the registers that are read for a sample."""
    found: list[Register] = list(profile.measurements.points().values())
    return found if profile.local_control is None else [*found, profile.local_control]


def read_values(
    profile: Profile, answers: Answers, rated: Rated
) -> tuple[dict[int, float], list[BadPoint]]:
    """Return a sample, keyed by quantity, and the points that are absent but should not be."""
    values: dict[int, float] = {}
    bad: list[BadPoint] = []
    most_watts = max(rated.max_injection_watts, rated.max_absorption_watts)
    fields, image = type(profile.measurements).model_fields, Image(answers.words)
    for name, point in profile.measurements.points().items():
        quantity = int(agent_pb2.Quantity.Value(name.upper()))
        raw, problem = "", answers.problems.get(span_of(point), "")
        if not problem:
            raw = f"0x{image.data(point).hex()}"
            try:
                value = point.measure(image.data(point))
            except DeviceRefusedError as error:
                problem = str(error)
            else:
                if value is None:
                    continue
                values[quantity] = value
                problem = what_cannot_be(quantity, value, most_watts)
        if problem:
            values.pop(quantity, None)
            key = str(fields[name].alias)
            bad.append(BadPoint(name=key, raw=raw, problem=problem, quantity=quantity))
    return values, bad


def read_local_control(profile: Profile, answers: Answers) -> tuple[bool | None, list[BadPoint]]:
    """Tell whether the device is in local control; None = it does not say now."""
    local = profile.local_control
    if local is None:
        return False, []
    problem = answers.problems.get(span_of(local))
    if problem is not None:
        return None, [BadPoint(name="localControl", raw="", problem=problem)]
    return Image(answers.words).word(local) in local.values, []


def _watts(rating: Rating, image: Image) -> int:
    if rating.read is None:
        return rating.watts or 0
    data = image.data(rating.read)
    if data in (b"\xff" * len(data), b"\x80".ljust(len(data), b"\0")):
        raise DeviceRefusedError(
            f"register {rating.read.address} holds 0x{data.hex()}, which is no rating: the device "
            "does not say now what it can do"
        )
    return int(rating.read.measure(data) or 0)
