"""SunSpec information models: where their points lie and what their registers mean.

Layouts and encodings are those of pysunspec2. Only the fixed block of a model is read; repeating
groups hold nothing that the agent needs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import floor
from typing import Any

from sunspec2 import mb
from sunspec2.device import get_model_def

from derops.errors import DeviceRefusedError
from derops_agent.drivers.modbus_tcp import Unit

BASE_REGISTERS = (40000, 0, 50000)
"""Where a map may begin; tried in this order, as the SunSpec Modbus specification has them."""

MARKER = b"SunS"
_END = 0xFFFF
_MOST_MODELS = 100
_SCALE_FACTORS = range(-10, 11)  # of the type sunssf


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of a model."""

    name: str
    at: int
    """Registers from the beginning of the model."""

    registers: int
    type: str
    scale: str | int | None
    """Name of the point with the scale factor, or the factor."""


@cache
def points_of(model_id: int) -> Mapping[str, Point]:
    """Return the fixed points of a model, by name, in order."""
    points, at = {}, 0
    for each in get_model_def(model_id)["group"]["points"]:
        info = mb.point_type_info[each["type"]]
        registers = int(each.get("size") or info.len)
        scale = each.get("sf")
        points[each["name"]] = Point(
            name=each["name"], at=at, registers=registers, type=each["type"], scale=scale
        )
        at += registers
    return points


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a device has a model."""

    model_id: int
    register: int
    length: int
    """Registers that follow ID and L."""


class Block:
    """A model as it was read."""

    def __init__(self, place: Place, data: bytes) -> None:
        self.place, self._data = place, data
        self._points = points_of(place.model_id)

    def after(self, writes: Iterable[tuple[int, bytes]]) -> "Block":
        """Return it as it is once the device shows ``writes``, where they are in it."""
        data = bytearray(self._data)
        for register, written in writes:
            at = 2 * (register - self.place.register)
            if 0 <= at <= len(data) - len(written):
                data[at : at + len(written)] = written
        return Block(self.place, bytes(data))

    def raw(self, name: str) -> Any:
        """Return the value of a point as the register has it; None where it is not implemented.

        A model that is shorter than its definition does not implement what is missing.
        """
        point = self._points[name]
        part = self._part(point)
        if part is None:
            return None
        info = mb.point_type_info[point.type]
        value = info.data_to(part)
        return value if info.is_impl(value) else None

    def text(self, name: str) -> str:
        """Return a point of type string, without what nobody could read; empty without one."""
        text = (self._part(self._points[name]) or b"").decode("utf-8", "replace")
        return "".join(each for each in text if each.isprintable()).strip()

    def _part(self, point: Point) -> bytes | None:
        part = self._data[2 * point.at : 2 * (point.at + point.registers)]
        return part if len(part) == 2 * point.registers else None

    def value(self, name: str) -> float | None:
        """Return a point in its unit; None where it or its scale factor is not implemented."""
        raw, factor = self.raw(name), self._factor(name)
        return None if raw is None or factor is None else float(raw) * 10.0**factor

    def encode(self, name: str, value: float) -> tuple[int, bytes]:
        """Return the register of a point and what to write there; fractions are cut off.

        Raises:
            DeviceRefusedError: The register cannot hold the value.
        """
        point, factor = self._points[name], self._factor(name)
        # A little more than half a part in a billion is the rounding of the division, no fraction.
        number = floor(abs(value) / 10.0 ** (factor or 0) + 1e-9) * (1 if value >= 0 else -1)
        info = mb.point_type_info[point.type]
        try:
            data: bytes = info.to_data(number, 2 * point.registers)
        except Exception as error:
            raise DeviceRefusedError(
                f"{self._where(name)} cannot hold {value:g} (register value {number}, {point.type})"
            ) from error
        if info.data_to(data) != number or not info.is_impl(number):
            raise DeviceRefusedError(
                f"{self._where(name)} cannot hold {value:g} (register value {number}, {point.type})"
            )
        return self.place.register + point.at, data

    def most(self, name: str) -> int:
        """Return the largest number that the register of an unsigned point can hold."""
        return int(2 ** (16 * self._points[name].registers) - 2)  # all ones: not implemented

    def _factor(self, name: str) -> int | None:
        scale = self._points[name].scale
        if scale is None or isinstance(scale, int):
            return scale or 0
        factor = self.raw(scale)
        if factor is None:
            return None
        if factor not in _SCALE_FACTORS:
            raise DeviceRefusedError(
                f"{self._where(scale)} is {factor}, a scale factor is within -10 and 10"
            )
        return int(factor)

    def _where(self, name: str) -> str:
        return f"{name} of model {self.place.model_id}"


Blocks = Mapping[int, Block]
Write = tuple[int, bytes]
"""Register, and what to write from there on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """What a function does by itself after a while; ``watts`` None = it is off then."""

    after_seconds: int
    watts: int | None


async def read_block(unit: Unit, place: Place) -> Block:
    """Read the fixed part of a model.

    Raises:
        DeviceError: It could not be read.
    """
    known = sum(point.registers for point in points_of(place.model_id).values())
    return Block(place, await unit.read(place.register, min(known, place.length + 2)))


async def find_models(unit: Unit) -> dict[int, Place]:
    """Return where a device has its models; of several with one number the first.

    Raises:
        DeviceTimeoutError: It did not answer.
        DeviceRefusedError: It has no SunSpec map, or one without an end.
    """
    register = await _find_map(unit) + 2
    found: dict[int, Place] = {}
    for _ in range(_MOST_MODELS):
        # Some devices have nothing behind the end mark, so its length is not asked for.
        model_id = int.from_bytes(await unit.read(register, 1))
        if model_id == _END:
            return found
        length = int.from_bytes(await unit.read(register + 1, 1))
        found.setdefault(model_id, Place(model_id=model_id, register=register, length=length))
        register += length + 2
        if register >= _END:
            break
    raise DeviceRefusedError(
        f"{unit}: the SunSpec map does not end by register {register}; its lengths cannot be right"
    )


async def _find_map(unit: Unit) -> int:
    answers = []
    for register in BASE_REGISTERS:
        try:
            marker = await unit.read(register, 2)
        except DeviceRefusedError as error:
            answers.append(str(error))
            continue
        if marker == MARKER:
            return register
        answers.append(f"{register} holds 0x{marker.hex()}")
    raise DeviceRefusedError(f"{unit} has no SunSpec map: {'; '.join(answers)}")
