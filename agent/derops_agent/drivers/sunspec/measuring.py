"""What a SunSpec device says of itself: measurements and ratings. Pure: blocks in, numbers out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from derops.errors import DeviceRefusedError
from derops.wire.v1 import agent_pb2
from derops_agent.drivers.plausible import refuse_nonsense
from derops_agent.drivers.sunspec.models import Block, Blocks

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
}
_CONTROL_SWITCH = {715: "LocRemCtl", 802: "LocRemCtl"}
_LOCAL = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """What a device can do, by its settings, else its nameplate; magnitudes in W."""

    max_watts: float
    """What percentages refer to."""

    max_injection_watts: int
    max_absorption_watts: int


def measuring_models(found: Mapping[int, object]) -> tuple[int, ...]:
    """Return the models to read for a sample: power, charge, local control."""
    power = next((each for each in _MEASURING if each in found), None)
    charge = next((each for each in _CHARGE if each in found), None)
    control = next((each for each in _CONTROL_SWITCH if each in found), None)
    return tuple(dict.fromkeys(each for each in (power, charge, control) if each is not None))


def rating_models(found: Mapping[int, object]) -> tuple[int, ...]:
    """Return the models to read for the ratings."""
    return tuple(each for each in (702, 120, 121, 124) if each in found)


def read_ratings(blocks: Blocks) -> Ratings:
    """Return what a device can do.

    Raises:
        DeviceRefusedError: It does not say, or says nonsense.
    """
    if 702 in blocks:
        block = blocks[702]
        most = _first(block, "WMax", "WMaxRtg")
        discharge = _first(block, "WDisChaRteMax", "WDisChaRteMaxRtg")
        charge = _first(block, "WChaRteMax", "WChaRteMaxRtg")
    else:
        most = _of(blocks, 121, "WMax") or _of(blocks, 120, "WRtg")
        discharge = _of(blocks, 120, "MaxDisChaRte")
        charge = _of(blocks, 120, "MaxChaRte") or _of(blocks, 124, "WChaMax")
    if most is None or most <= 0:
        raise DeviceRefusedError(
            f"the device's most power is {most}; model 702 (WMax) or 120 (WRtg) must say it"
        )
    injection = most if discharge is None else min(most, discharge)
    return Ratings(
        max_watts=most,
        max_injection_watts=int(injection),
        max_absorption_watts=int(charge or 0),
    )


def read_values(blocks: Blocks, most_watts: float) -> dict[int, float]:
    """Return a sample, keyed by quantity; what is not implemented is absent.

    Raises:
        DeviceRefusedError: A value cannot be; the message has it.
    """
    values: dict[int, float] = {}
    for model_id, points in _MEASURING.items():
        if model_id in blocks:
            for quantity, names in points.items():
                value = _first(blocks[model_id], *names)
                if value is not None:
                    values[int(quantity)] = value
            break
    models = (each for each in _CHARGE if each in blocks)
    charge = next((blocks[each].value(_CHARGE[each]) for each in models), None)
    if charge is not None:
        values[int(Q.STATE_OF_CHARGE_PERCENT)] = charge
    refuse_nonsense(values, most_watts)
    return values


def in_local_control(blocks: Blocks) -> bool:
    """Tell whether somebody on site has taken the device over."""
    return any(
        each in blocks and blocks[each].raw(name) == _LOCAL
        for each, name in _CONTROL_SWITCH.items()
    )


def _of(blocks: Blocks, model_id: int, name: str) -> float | None:
    return blocks[model_id].value(name) if model_id in blocks else None


def _first(block: Block, *names: str) -> float | None:
    return next((value for name in names if (value := block.value(name)) is not None), None)
