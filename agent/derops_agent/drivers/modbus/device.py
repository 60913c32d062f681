"""A device with a profile behind the agent's port."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from derops.errors import DeviceRefusedError
from derops.wire.v1 import agent_pb2
from derops_agent.clock import Clock
from derops_agent.drivers.modbus.controls import (
    MODES,
    Rated,
    held,
    held_controls,
    plan,
    registers_of,
)
from derops_agent.drivers.modbus.image import Image, read_image
from derops_agent.drivers.modbus.loading import load_profile
from derops_agent.drivers.modbus.points import Register
from derops_agent.drivers.modbus.profile import Profile, Rating
from derops_agent.drivers.modbus_tcp import Unit, before_writing, take_unit
from derops_agent.drivers.options import DriverOptionError, explain
from derops_agent.drivers.plausible import refuse_nonsense
from derops_agent.drivers.units import UnitOptions
from derops_agent.ports import Capability, Reading, Reversion, Setpoints


class ModbusOptions(UnitOptions):
    """Where a device is, and the file that says what its registers mean."""

    profile: Path


class ProfiledDevice:
    """One unit. What percentages refer to was read when it was opened."""

    def __init__(self, profile: Profile, unit: Unit, clock: Clock, rated: Rated) -> None:
        self._profile, self._unit, self._clock, self._rated = profile, unit, clock, rated
        self._asked = Setpoints()
        self._wrote_us: int | None = None
        self._capability = capability_of(profile, rated)

    @property
    def capability(self) -> Capability:
        """What the device can do."""
        return self._capability

    async def write(self, setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        """Hold ``setpoints``: first what is switched off or limited, then what is permitted.

        Raises:
            DeviceTimeoutError: It is not known whether the device acted.
            DeviceUnreachableError: Nothing was written.
            DeviceRefusedError: The device answered no, or a register cannot hold a value.
        """
        with before_writing():
            image = await read_image(self._unit, registers_of(self._profile))
        writes, armed_seconds = plan(
            self._profile, self._rated, image, setpoints, reversion, may_lag=self._may_lag()
        )
        self._asked = setpoints
        if writes:
            self._wrote_us = self._clock.monotonic_us()
        for register, data in writes:
            await self._unit.write(register, data)
        return armed_seconds

    def _may_lag(self) -> bool:
        """Tell whether the registers may not show yet what was written last."""
        if self._wrote_us is None or not held_controls(self._asked):
            return False
        passed_us = self._clock.monotonic_us() - self._wrote_us
        return passed_us < self._profile.read_back.patience_seconds * 1_000_000

    async def read_setpoints(self) -> Setpoints:
        """Return what the device says that it holds.

        Raises:
            DeviceError: It could not be asked, or answered what cannot be.
        """
        image = await read_image(self._unit, registers_of(self._profile))
        return held(self._profile, self._rated, image, self._asked)

    async def sample(self) -> Reading:
        """Measure.

        Raises:
            DeviceError: It could not be asked, or answered what cannot be.
        """
        image = await read_image(self._unit, measured_registers(self._profile))
        return Reading(
            at_us=self._clock.now_us(),
            values=read_values(self._profile, image, self._rated),
            local_control=in_local_control(self._profile, image),
        )

    async def close(self) -> None:
        """Give the connection back; the device keeps what it holds."""
        await self._unit.close()


async def open_modbus(options: Mapping[str, Any], clock: Clock) -> ProfiledDevice:
    """Open a device by its profile; all that will be read is read once.

    Raises:
        SettingError: An option or the profile is wrong.
        DeviceError: It did not answer, or is none that the profile describes.
    """
    parsed, profile = parse_options(options)
    unit = take_unit(parsed)
    try:
        rated = await read_rated(profile, unit)
        device = ProfiledDevice(profile, unit, clock, rated)
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
    ratings = (profile.ratings.max_injection_watts, profile.ratings.max_absorption_watts)
    image = await read_image(unit, [each.read for each in ratings if each.read is not None])
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
        read_back=profile.read_back.settings(),
    )


def measured_registers(profile: Profile) -> list[Register]:
    """Return what must be read for a sample."""
    found: list[Register] = list(profile.measurements.points().values())
    return found if profile.local_control is None else [*found, profile.local_control]


def read_values(profile: Profile, image: Image, rated: Rated) -> dict[int, float]:
    """Return a sample, keyed by quantity; what the device does not measure is absent.

    Raises:
        DeviceRefusedError: A value cannot be; the message has it.
    """
    values = {}
    for name, point in profile.measurements.points().items():
        value = point.measure(image.data(point))
        if value is not None:
            values[int(agent_pb2.Quantity.Value(name.upper()))] = value
    refuse_nonsense(values, max(rated.max_injection_watts, rated.max_absorption_watts))
    return values


def in_local_control(profile: Profile, image: Image) -> bool:
    """Tell whether somebody on site has taken the device over."""
    local = profile.local_control
    return local is not None and image.word(local) in local.values


def _watts(rating: Rating, image: Image) -> int:
    if rating.read is None:
        return rating.watts or 0
    return int(rating.read.measure(image.data(rating.read)) or 0)
