"""What a device offers by a profile, before anybody controls it. Nothing is written to it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from derops.errors import DeviceError, DeviceTimeoutError
from derops.wire.v1 import agent_pb2
from derops_agent.clock import SystemClock
from derops_agent.drivers.findings import Findings, OfferedMode, limits_of, values_of
from derops_agent.drivers.modbus.controls import MODES, Rated, held, registers_of
from derops_agent.drivers.modbus.device import (
    ModbusOptions,
    capability_of,
    measured_registers,
    read_local_control,
    read_rated,
    read_values,
)
from derops_agent.drivers.modbus.image import read_image, span_of, table_of
from derops_agent.drivers.modbus.points import Register
from derops_agent.drivers.modbus.profile import ControlName, Profile
from derops_agent.drivers.modbus_tcp import Unit, take_unit
from derops_agent.drivers.reading import Answers, Reader, join
from derops_agent.ports import Resolution, Setpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A register of the profile, as the device has it."""

    key: str
    table: str
    address: int
    raw: str
    """In hexadecimal; empty if the device did not tell it."""

    problem: str
    """Why it did not; empty if it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileProbe(Findings):
    """All that a probe found."""

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
    registers = await _find_all(unit, profile)
    problems = [*_not_controlled(profile, registers)]
    rated = local_control = None
    measured: dict[str, float] = {}
    limits: list[str] = []
    holds: dict[str, Any] = {}
    resolutions: Mapping[str, Resolution] = {}
    try:
        rated = await read_rated(profile, unit)
    except DeviceError as error:
        problems.append(str(error))
    if rated is not None:
        answers = await _sample(unit, profile)
        values, bad = read_values(profile, answers, rated)
        local_control, bad_local = read_local_control(profile, answers)
        measured = {agent_pb2.Quantity.Name(each): value for each, value in values.items()}
        capability = capability_of(profile, rated)
        resolutions = capability.resolutions
        limits = limits_of(capability, values, [*bad, *bad_local])
        holds = await _held(unit, profile, rated, problems)
    modes = [_mode(profile, name, resolutions) for name in sorted(profile.controls.names())]
    if not modes:
        problems.append("no mode can be held: the profile has no control")
    return ProfileProbe(
        device=profile.name,
        registers=registers,
        modes=modes,
        ratings={} if rated is None else asdict(rated),
        measured=measured,
        held=holds,
        local_control=bool(local_control),
        problems=problems,
        limits=limits,
    )


async def _find_all(unit: Unit, profile: Profile) -> list[Found]:
    """Read each register alone, so that every missing one is found.

    Raises:
        DeviceTimeoutError: It answered neither of the first two.
    """
    found: list[Found] = []
    silent = 0
    for key, register in _keys(profile):
        problem, raw = "", ""
        try:
            data = await unit.read(register.address, register.registers, table_of(register))
            raw = f"0x{data.hex()}"
        except DeviceError as error:
            problem = str(error)
            silent += isinstance(error, DeviceTimeoutError)
            if silent == len(found) + 1 == 2:
                raise
        found.append(
            Found(
                key=key,
                table=table_of(register),
                address=register.address,
                raw=raw,
                problem=problem,
            )
        )
    return found


async def _sample(unit: Unit, profile: Profile) -> Answers:
    spans = [span_of(each) for each in measured_registers(profile)]
    try:
        return await Reader(unit, join(spans), SystemClock()).read()
    except DeviceTimeoutError as error:
        return Answers({}, dict.fromkeys(spans, str(error)))


async def _held(unit: Unit, profile: Profile, rated: Rated, problems: list[str]) -> dict[str, Any]:
    try:
        image = await read_image(unit, registers_of(profile))
    except DeviceError as error:
        if not problems:  # each alone was read, and together they are not
            problems.append(str(error))
        return {}
    return asdict(held(profile, rated, image, Setpoints()))


def _not_controlled(profile: Profile, registers: list[Found]) -> Iterator[str]:
    """Yield the registers that are written and cannot be read, and the modes that need them."""
    found = {each.key: each for each in registers}
    for path, _ in profile.written():
        each = found[_key(path)]
        if not each.problem:
            continue
        modes = ", ".join(sorted(MODES[name] for name in _needing(profile, path)))
        yield f"{modes}: {each.key} cannot be read: {each.problem}"


def _needing(profile: Profile, path: tuple[int | str, ...]) -> Iterable[ControlName]:
    """Return the controls that need a register."""
    names = profile.controls.names()
    match path[0]:
        case "controls":
            return [name for name in names if name == path[1]]
        case "timers":
            return [name for name in names if name in profile.timers[int(path[1])].guards]
        case _:
            return names


def _key(path: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in path)


def _keys(profile: Profile) -> Iterator[tuple[str, Register]]:
    for name, field in type(profile.ratings).model_fields.items():
        read = getattr(profile.ratings, name).read
        if read is not None:
            yield f"ratings.{field.alias}.read", read
    fields = type(profile.measurements).model_fields
    for name, point in profile.measurements.points().items():
        yield f"measurements.{fields[name].alias}", point
    for path, register in profile.written():
        yield _key(path), register
    if profile.local_control is not None:
        yield "localControl", profile.local_control


def _mode(
    profile: Profile, name: ControlName, resolutions: Mapping[str, Resolution]
) -> OfferedMode:
    control = profile.controls.values().get(name)
    register = profile.controls.energize if control is None else control.value
    timer = profile.timer_of(name)
    return OfferedMode(
        mode=MODES[name],
        by=f"holding {register.address}" if register is not None else "",
        timer="" if timer is None else f"holding {timer.address}",
        **values_of(resolutions.get(MODES[name])),
    )
