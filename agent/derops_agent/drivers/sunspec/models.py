"""SunSpec information models: where their points lie and what their registers mean.

Layouts and encodings are those of pysunspec2. Only the fixed block of a model is read; repeating
groups hold nothing that the agent needs.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import isfinite
from typing import Any

from sunspec2 import mb
from sunspec2.device import get_model_def

from derops.errors import DeviceError, DeviceRefusedError, DeviceTimeoutError
from derops_agent.drivers.modbus_answers import NotAskedError
from derops_agent.drivers.modbus_tcp import Unit
from derops_agent.drivers.reading import Answers, RegisterSpan, Run, join
from derops_agent.ports import whole_steps

BASE_REGISTERS = (40000, 0, 50000)
"""Where a map may begin, as the SunSpec Modbus specification has it; tried in this order."""

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
class ModelPlace:
    """Where a device has a model."""

    model_id: int
    register: int
    length: int
    """Registers that follow ID and L."""


class Block:
    """A model as it was read."""

    def __init__(self, place: ModelPlace, answers: Answers) -> None:
        self.place, self._answers = place, answers
        self._points = points_of(place.model_id)

    def after(self, writes: Iterable[tuple[int, bytes]]) -> "Block":
        """Return the block as it is once the device shows those of ``writes`` that lie in it."""
        shown = {
            ("holding", register + at // 2): written[at : at + 2]
            for register, written in writes
            for at in range(0, len(written), 2)
        }
        words = {each: shown.get(each, word) for each, word in self._answers.words.items()}
        return Block(self.place, replace(self._answers, words=words))

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
        """Return a point of type string without unprintable characters; empty = it has none."""
        text = (self._part(self._points[name]) or b"").decode("utf-8", "replace")
        return "".join(each for each in text if each.isprintable()).strip()

    def _part(self, point: Point) -> bytes | None:
        if point.at + point.registers > self.place.length + 2:
            return None
        registers = range(self.place.register + point.at, self._end_of(point))
        words = [self._answers.words.get(("holding", each)) for each in registers]
        found = [word for word in words if word is not None]
        return b"".join(found) if len(found) == len(words) else None

    def _end_of(self, point: Point) -> int:
        return self.place.register + point.at + point.registers

    def hex(self, name: str) -> str:
        """Return the registers of a point in hexadecimal; empty where it was not read."""
        part = self._part(self._points[name])
        return "" if part is None else f"0x{part.hex()}"

    def problem(self, name: str) -> str:
        """Return why a point, or its scale factor, could not be read; empty = it was."""
        scale = self._points[name].scale
        for each in (name, *([scale] if isinstance(scale, str) else [])):
            problem = self._answers.problems.get(span_of(self.place, each))
            if problem:
                return problem
        return ""

    @property
    def is_elsewhere(self) -> bool:
        """Tell whether another model, or nothing at all, begins where this one was."""
        model_id, length = self.place.model_id.to_bytes(2), self.place.length.to_bytes(2)
        return any(
            found is not None and found != should
            for found, should in (
                (self._part(self._points["ID"]), model_id),
                (self._part(self._points["L"]), length),
            )
        )

    def value(self, name: str) -> float | None:
        """Return a point in its unit; None where it or its scale factor is not implemented.

        Raises:
            DeviceRefusedError: It, or its scale factor, is none that there can be.
        """
        raw, factor = self.raw(name), self._factor(name)
        if raw is None or factor is None:
            self._refuse_strange_nan(name)
            return None
        value = float(raw) * 10.0**factor
        if not isfinite(value):
            raise DeviceRefusedError(f"{self._where(name)} is {self.hex(name)}, no number")
        return value

    def _refuse_strange_nan(self, name: str) -> None:
        """Refuse a NaN, unless it is the one that says that the point is not implemented."""
        point = self._points[name]
        part = self._part(point)
        if point.type != "float32" or part is None or part == mb.create_unimpl_value(point.type):
            return
        raise DeviceRefusedError(f"{self._where(name)} is {self.hex(name)}, no number")

    def encode(self, name: str, value: float) -> tuple[int, bytes]:
        """Return the register of a point and what to write there; fractions are cut off.

        Raises:
            DeviceRefusedError: The register cannot hold the value.
        """
        point, factor = self._points[name], self._factor(name)
        if factor is None:
            raise DeviceRefusedError(
                f"{self._where(name)} cannot be set to {value:g}: its scale factor {point.scale} "
                f"is {self.hex(str(point.scale))}, not implemented"
            )
        number = whole_steps(value / 10.0**factor)
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

    def decode(self, name: str, data: bytes) -> float:
        """Return what the register of a point means that holds ``data``, in the point's unit."""
        raw = mb.point_type_info[self._points[name].type].data_to(data)
        return float(raw) * self.step(name)

    def scale_of(self, name: str) -> str | None:
        """Return which point has the scale factor of a point; None = none has."""
        scale = self._points[name].scale
        return scale if isinstance(scale, str) else None

    def step(self, name: str) -> float:
        """Return the distance of two neighbouring values of a point, in its unit."""
        return float(10.0 ** (self._factor(name) or 0))

    def limits(self, name: str) -> tuple[float, float]:
        """Return the least and the most that a point of whole steps can hold, in its unit."""
        point, step = self._points[name], self.step(name)
        if point.type.startswith("u"):
            return 0.0, self.most(name) * step
        most = 2 ** (16 * point.registers - 1) - 1  # one less below: not implemented
        return -most * step, most * step

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
                f"{self._where(scale)} is {factor} ({self.hex(scale)}), a scale factor is within "
                "-10 and 10"
            )
        return int(factor)

    def _where(self, name: str) -> str:
        return f"{name} of model {self.place.model_id}"


Blocks = Mapping[int, Block]
Write = tuple[int, bytes]
"""Register, and what to write from there on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionReversion:
    """What a function does by itself after a while; ``watts`` None = it is off then."""

    after_seconds: int
    watts: int | None


def span_of(place: ModelPlace, name: str) -> RegisterSpan:
    """Return which registers hold a point."""
    point = points_of(place.model_id)[name]
    return RegisterSpan("holding", place.register + point.at, point.registers)


def runs_of(place: ModelPlace, names: Iterable[str]) -> list[Run]:
    """Return what to ask for to read some points with their scale factors, and what is in between.

    A model that is shorter than its definition does not implement what is missing.
    """
    points = points_of(place.model_id)
    wanted = {name for name in names if name in points}
    wanted |= {str(points[name].scale) for name in wanted if isinstance(points[name].scale, str)}
    return join(_spans(place, wanted), over_gaps=True)


def runs_to_measure(place: ModelPlace, names: Iterable[str]) -> list[Run]:
    """Return the same, and the registers that tell whether the model is still there.

    In one request with the points if they are near enough: they are never read apart for it.
    """
    wanted, head = list(names), ("ID", "L")
    apart, joined = runs_of(place, wanted), runs_of(place, (*head, *wanted))
    return joined if len(joined) <= len(apart) else [*runs_of(place, head), *apart]


def runs_without(place: ModelPlace, missing: Container[str]) -> list[Run]:
    """Return what to ask for to read the fixed part of a model, but for the points missing."""
    return join(_spans(place, (each for each in points_of(place.model_id) if each not in missing)))


def _spans(place: ModelPlace, names: Iterable[str]) -> list[RegisterSpan]:
    end = place.register + place.length + 2
    spans = (span_of(place, name) for name in names)
    return [each for each in spans if each.start + each.length <= end]


async def find_models(unit: Unit, bases: Sequence[int] = BASE_REGISTERS) -> dict[int, ModelPlace]:
    """Return where a device has its models; of several with one number the first.

    Args:
        unit: The device.
        bases: Where its map may begin.

    Raises:
        DeviceTimeoutError: It did not answer.
        DeviceRefusedError: It has no SunSpec map, or one without an end.
    """
    register = await _find_map(unit, bases) + 2
    found: dict[int, ModelPlace] = {}
    for _ in range(_MOST_MODELS):
        # Some devices have nothing behind the end mark, so its length is not asked for.
        model_id = await _model_at(unit, register, is_first=not found)
        if model_id == _END:
            return found
        length = int.from_bytes(await unit.read(register + 1, 1))
        found.setdefault(model_id, ModelPlace(model_id=model_id, register=register, length=length))
        register += length + 2
        if register >= _END:
            break
    raise DeviceRefusedError(
        f"{unit}: the SunSpec map does not end by register {register}; its lengths cannot be right"
    )


async def _model_at(unit: Unit, register: int, *, is_first: bool) -> int:
    """Return which model begins there; some devices end without an end mark."""
    try:
        return int.from_bytes(await unit.read(register, 1))
    except DeviceRefusedError:
        if is_first:
            raise
        return _END
    except DeviceTimeoutError:
        # Asked once more, since a lost answer must not hide the models that follow.
        if is_first:
            raise
    try:
        return int.from_bytes(await unit.read(register, 1))
    except NotAskedError:
        raise
    except DeviceError:
        return _END


async def _find_map(unit: Unit, bases: Sequence[int]) -> int:
    answers: list[DeviceError | str] = []
    for register in bases:
        try:
            marker = await unit.read(register, 2)
        except NotAskedError:
            raise
        except DeviceError as error:  # what is elsewhere in the device may well answer
            answers.append(error)
            continue
        if marker == MARKER:
            return register
        answers.append(f"{register} holds 0x{marker.hex()}")
    text = "; ".join(map(str, answers))
    if all(isinstance(each, DeviceTimeoutError) for each in answers):
        raise DeviceTimeoutError(text)
    raise DeviceRefusedError(f"{unit} has no SunSpec map: {text}")
