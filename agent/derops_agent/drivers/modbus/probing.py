"""What a device offers by a profile, before anybody controls it. Nothing is written to it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from derops.errors import DeviceRefusedError
from derops.wire.v1 import agent_pb2
from derops_agent.drivers.findings import Findings, Mode, values_of
from derops_agent.drivers.modbus.controls import MODES, held, registers_of, resolutions_of
from derops_agent.drivers.modbus.device import (
    ModbusOptions,
    in_local_control,
    measured_registers,
    read_rated,
    read_values,
)
from derops_agent.drivers.modbus.image import read_image, table_of
from derops_agent.drivers.modbus.points import Register
from derops_agent.drivers.modbus.profile import ControlName, Profile
from derops_agent.drivers.modbus_tcp import Unit, take_unit
from derops_agent.ports import Resolution, Setpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A register of the profile, as the device has it."""

    key: str
    table: str
    address: int
    raw: str
    """In hexadecimal; empty if the device does not have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileProbe(Findings):
    """All that was found."""

    registers: list[Found]

    def parts(self) -> list[str]:
        """Return a line for each register."""
        lines = [
            f"  {each.table:<7} {each.address:<6} {each.raw or 'refused':<18}  {each.key}"
            for each in self.registers
        ]
        return ["registers", *lines]


async def probe(options: ModbusOptions, profile: Profile) -> ProfileProbe:
    """Look at a device.

    Raises:
        DeviceTimeoutError: It did not answer.
    """
    unit = take_unit(options)
    try:
        return await _look(unit, profile)
    finally:
        await unit.close()


async def _look(unit: Unit, profile: Profile) -> ProfileProbe:
    registers = [await _find(unit, key, register) for key, register in _keys(profile)]
    ratings: dict[str, float] = {}
    measured: dict[str, float] = {}
    holds: dict[str, Any] = {}
    local_control, problems = False, []
    resolutions: Mapping[str, Resolution] = {}
    try:
        rated = await read_rated(profile, unit)
        ratings, resolutions = asdict(rated), resolutions_of(profile, rated)
        image = await read_image(unit, measured_registers(profile))
        local_control = in_local_control(profile, image)
        for quantity, value in read_values(profile, image, rated).items():
            measured[agent_pb2.Quantity.Name(quantity)] = value
        image = await read_image(unit, registers_of(profile))
        holds = asdict(held(profile, rated, image, Setpoints()))
    except DeviceRefusedError as error:
        problems.append(str(error))
    modes = [_mode(profile, name, resolutions) for name in sorted(profile.controls.names())]
    if not modes:
        problems.append("the profile has no control")
    return ProfileProbe(
        device=profile.name,
        registers=registers,
        modes=modes,
        ratings=ratings,
        measured=measured,
        held=holds,
        local_control=local_control,
        problems=problems,
    )


def _keys(profile: Profile) -> Iterator[tuple[str, Register]]:
    for name, field in type(profile.ratings).model_fields.items():
        read = getattr(profile.ratings, name).read
        if read is not None:
            yield f"ratings.{field.alias}.read", read
    fields = type(profile.measurements).model_fields
    for name, point in profile.measurements.points().items():
        yield f"measurements.{fields[name].alias}", point
    for path, register in profile.written():
        yield ".".join(str(part) for part in path), register
    if profile.local_control is not None:
        yield "localControl", profile.local_control


async def _find(unit: Unit, key: str, register: Register) -> Found:
    table = table_of(register)
    try:
        raw = "0x" + (await unit.read(register.address, register.registers, table)).hex()
    except DeviceRefusedError:
        raw = ""
    return Found(key=key, table=table, address=register.address, raw=raw)


def _mode(profile: Profile, name: ControlName, resolutions: Mapping[str, Resolution]) -> Mode:
    control = profile.controls.values().get(name)
    register = profile.controls.energize if control is None else control.value
    timer = profile.timer_of(name)
    return Mode(
        mode=MODES[name],
        by=f"holding {register.address}" if register is not None else "",
        timer="" if timer is None else f"holding {timer.address}",
        **values_of(resolutions.get(MODES[name])),
    )
