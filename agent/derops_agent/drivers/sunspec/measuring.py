"""Measurements and ratings of a SunSpec device. Pure: blocks in, numbers out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from derops.errors import DeviceRefusedError
from derops.wire.v1 import agent_pb2
from derops_agent.drivers.plausible import what_cannot_be
from derops_agent.drivers.sunspec.models import Block, Blocks, points_of
from derops_agent.ports import BadPoint

Q: TypeAlias = agent_pb2.Quantity

_OF_INVERTER = {
    Q.ACTIVE_POWER_WATTS: ("W",),
    Q.REACTIVE_POWER_VARS: ("VAr",),
    Q.VOLTAGE_VOLTS: ("PhVphA",),
    Q.FREQUENCY_HERTZ: ("Hz",),
    Q.ENERGY_INJECTED_WATT_HOURS: ("WH",),
    Q.TEMPERATURE_CELSIUS: ("TmpCab",),
}
_OF_DER = {
    Q.ACTIVE_POWER_WATTS: ("W",),
    Q.REACTIVE_POWER_VARS: ("Var",),
    Q.VOLTAGE_VOLTS: ("LNV", "LLV"),
    Q.FREQUENCY_HERTZ: ("Hz",),
    Q.ENERGY_INJECTED_WATT_HOURS: ("TotWhInj",),
    Q.ENERGY_ABSORBED_WATT_HOURS: ("TotWhAbs",),
    Q.TEMPERATURE_CELSIUS: ("TmpCab", "TmpAmb"),
}
_CHARGE = {713: "SoC", 802: "SoC", 124: "ChaState"}
_MEASURING: Mapping[int, Mapping[Q, tuple[str, ...]]] = {
    701: _OF_DER,
    103: _OF_INVERTER,
    102: _OF_INVERTER,
    101: _OF_INVERTER,
    # The same in floats, without scale factors.
    113: _OF_INVERTER,
    112: _OF_INVERTER,
    111: _OF_INVERTER,
}
_MOST_POWER = ((702, ("WMax", "WMaxRtg")), (121, ("WMax",)), (120, ("WRtg",)))
_CONTROL_SWITCH = {715: "LocRemCtl", 802: "LocRemCtl"}
_REMOTE, _LOCAL = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """What a device can do, by its settings, else its nameplate; magnitudes in W."""

    max_watts: float
    """What percentages refer to."""

    max_injection_watts: int
    max_absorption_watts: int


MEASURING_MODELS = frozenset({*_MEASURING, *_CHARGE, *_CONTROL_SWITCH})
"""The models that a sample may come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The models that samples of one device come from; None = it has none."""

    power: int | None
    charge: int | None
    control: int | None

    def names(self) -> dict[int, set[str]]:
        """Return the points to read, by model."""
        found: dict[int, set[str]] = {}
        if self.power is not None:
            names = {name for each in _MEASURING[self.power].values() for name in each}
            found.setdefault(self.power, set()).update(names)
        if self.charge is not None:
            found.setdefault(self.charge, set()).add(_CHARGE[self.charge])
        if self.control is not None:
            found.setdefault(self.control, set()).add(_CONTROL_SWITCH[self.control])
        return found

    def factors(self, blocks: Blocks) -> dict[tuple[int, str], Any]:
        """Return the scale factors of what is measured, by model and point."""
        found = {}
        for model_id, names in self.names().items():
            for scale in {
                blocks[model_id].scale_of(name) for name in names if name in points_of(model_id)
            }:
                if scale is not None:
                    found[model_id, scale] = blocks[model_id].raw(scale)
        return found


def sources_of(blocks: Blocks) -> Sources:
    """Choose the models of a sample: of several, the first that implements what is needed."""
    return Sources(
        power=_choose(blocks, dict.fromkeys(_MEASURING, "W")),
        charge=_choose(blocks, _CHARGE),
        control=_choose(blocks, _CONTROL_SWITCH),
    )


def rating_models(found: Mapping[int, object]) -> tuple[int, ...]:
    """Return the models to read for the ratings."""
    return tuple(each for each in (702, 120, 121, 124) if each in found)


def most_power_points(blocks: Blocks) -> frozenset[tuple[int, str]]:
    """Return the points, by model, that say what percentages refer to, with scale factors."""
    return frozenset(
        (model_id, name)
        for model_id, names in _MOST_POWER
        if model_id in blocks
        for point in names
        for name in (point, blocks[model_id].scale_of(point))
        if name is not None and blocks[model_id].raw(name) is not None
    )


def read_most_watts(blocks: Blocks) -> float:
    """Return what percentages refer to: a setting that somebody may change at any time.

    Raises:
        DeviceRefusedError: It does not say, or says nonsense.
    """
    if 702 in blocks:
        most = _first(blocks[702], "WMax", "WMaxRtg")
    else:
        most = _of(blocks, 121, "WMax") or _of(blocks, 120, "WRtg")
    if most is None or most <= 0:
        raise DeviceRefusedError(
            f"the device's most power is {most}; model 702 (WMax) or 120 (WRtg) must say it"
        )
    return most


def read_ratings(blocks: Blocks) -> Ratings:
    """Return what a device can do.

    Raises:
        DeviceRefusedError: It does not say, or says nonsense.
    """
    most = read_most_watts(blocks)
    if 702 in blocks:
        block = blocks[702]
        discharge = _first(block, "WDisChaRteMax", "WDisChaRteMaxRtg")
        charge = _first(block, "WChaRteMax", "WChaRteMaxRtg")
    else:
        discharge = _of(blocks, 120, "MaxDisChaRte")
        charge = _of(blocks, 120, "MaxChaRte") or _of(blocks, 124, "WChaMax")
    injection = most if discharge is None else min(most, discharge)
    return Ratings(
        max_watts=most,
        max_injection_watts=int(injection),
        max_absorption_watts=int(charge or 0),
    )


def read_values(
    blocks: Blocks, sources: Sources, most_watts: float
) -> tuple[dict[int, float], list[BadPoint]]:
    """Return a sample, keyed by quantity, and the points that are absent but should not be.

    A point that the device does not implement is not told.
    """
    wanted: list[tuple[int, Q, tuple[str, ...]]] = []
    if sources.power is not None:
        wanted += [(sources.power, *each) for each in _MEASURING[sources.power].items()]
    if sources.charge is not None:
        wanted.append((sources.charge, Q.STATE_OF_CHARGE_PERCENT, (_CHARGE[sources.charge],)))
    values: dict[int, float] = {}
    bad: list[BadPoint] = []
    for model_id, quantity, names in wanted:
        found = _measure(blocks[model_id], int(quantity), names, most_watts)
        if isinstance(found, BadPoint):
            bad.append(found)
        elif found is not None:
            values[int(quantity)] = found
    return values, bad


def read_local_control(blocks: Blocks, sources: Sources) -> tuple[bool | None, list[BadPoint]]:
    """Tell whether the device is in local control; None = it does not say now."""
    if sources.control is None:
        return False, []
    block, name = blocks[sources.control], _CONTROL_SWITCH[sources.control]
    raw, problem = block.raw(name), block.problem(name)
    if not problem and raw in (None, _REMOTE, _LOCAL):
        return raw == _LOCAL, []
    problem = problem or f"it is {raw}; it can be {_REMOTE} (remote) or {_LOCAL} (local)"
    problem = f"{_called(block, name)}: {problem}"
    return None, [BadPoint(name="localControl", raw=block.hex(name), problem=problem)]


def _measure(
    block: Block, quantity: int, names: tuple[str, ...], most_watts: float
) -> float | BadPoint | None:
    """Return the first point that is implemented; None if none is."""
    for name in names:
        problem = block.problem(name)
        if not problem:
            try:
                value = block.value(name)
            except DeviceRefusedError as error:
                problem = str(error)
            else:
                if value is None:
                    continue
                problem = what_cannot_be(quantity, value, most_watts)
                if not problem:
                    return value
        return BadPoint(
            name=_called(block, name), raw=block.hex(name), problem=problem, quantity=quantity
        )
    return None


def _called(block: Block, name: str) -> str:
    return f"{block.place.model_id} {name}"


def _choose(blocks: Blocks, names: Mapping[int, str]) -> int | None:
    present = [each for each in names if each in blocks]
    implemented = (
        each
        for each in present
        if blocks[each].raw(names[each]) is not None or blocks[each].problem(names[each])
    )
    return next(implemented, present[0] if present else None)


def _of(blocks: Blocks, model_id: int, name: str) -> float | None:
    return blocks[model_id].value(name) if model_id in blocks else None


def _first(block: Block, *names: str) -> float | None:
    return next((value for name in names if (value := block.value(name)) is not None), None)
