"""How setpoints stand in the registers of a profile. Pure: registers as read in, writes out.

The order of writes is the device's safety: what it shall fall back to and when, then the values,
then what makes them count.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from derops.errors import DeviceRefusedError
from derops.modes import Mode
from derops_agent.drivers.modbus.image import Image
from derops_agent.drivers.modbus.points import Point, Register
from derops_agent.drivers.modbus.profile import Control, ControlName, Profile, Switch, Timer
from derops_agent.drivers.rounding import refuse_lost_value
from derops_agent.ports import Resolution, Reversion, Setpoints, whole_watts

Write = tuple[int, bytes]

_NO_VALUE = frozenset({0x8000, 0xFFFF})
"""What the registers of a device hold that has just started, or sleeps."""

MODES: Mapping[ControlName, str] = {
    "activePower": Mode.ACTIVE_POWER,
    "generationLimit": Mode.GENERATION_LIMIT,
    "loadLimit": Mode.LOAD_LIMIT,
    "energize": Mode.CEASE_TO_ENERGIZE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """What a device can do; magnitudes in W."""

    max_injection_watts: int
    max_absorption_watts: int

    def of(self, name: ControlName) -> int:
        """Return what a percentage of a control refers to."""
        return {
            "generationLimit": self.max_injection_watts,
            "loadLimit": self.max_absorption_watts,
        }.get(name, max(self.max_injection_watts, self.max_absorption_watts))


def resolutions_of(profile: Profile, rated: Rated) -> dict[str, Resolution]:
    """Return which values the device can hold, by mode."""
    return {
        MODES[name]: resolution_of(name, control, control.value, rated.of(name))
        for name, control in profile.controls.values().items()
    }


def resolution_of(
    name: ControlName, control: Control, point: Point, rated_watts: int
) -> Resolution:
    """Return which values of a control a register can hold.

    Args:
        name: Of the control.
        control: Whose value it is.
        point: Its value, or that which it falls back to.
        rated_watts: What a percentage refers to.
    """
    unit_watts = 1.0 if control.unit == "watts" else rated_watts / 100
    least, most = (each * unit_watts if unit_watts else 0.0 for each in point.limits)
    if control.unit == "percent" and name != "activePower":
        most = min(most, float(rated_watts))  # some devices refuse more than all
    step = max(control.step or 0.0, point.scale if point.is_whole else 0.0)
    return Resolution(
        step_watts=step * unit_watts or _float_step_watts(point, unit_watts, rated_watts),
        least_watts=least,
        most_watts=most,
        none_watts=None if control.release is None else control.release * unit_watts,
    )


def _float_step_watts(point: Point, unit_watts: float, rated_watts: int) -> float:
    """Return the step of a float of 32 bits, which has 24 digits, all the way to the rating.

    It is 0 where that is less than the whole watts that are told.
    """
    if point.type != "float32" or not unit_watts:
        return 0.0
    scale_watts = point.scale * unit_watts
    _, bits = math.frexp(rated_watts / scale_watts)
    step_watts = math.ldexp(scale_watts, bits - 24)
    return step_watts if step_watts >= 1 else 0.0


def watts_by_control(setpoints: Setpoints) -> dict[ControlName, int | None]:
    """Return what shall hold, by the control that holds it."""
    return {
        "activePower": setpoints.active_power_watts,
        "generationLimit": setpoints.max_generation_watts,
        "loadLimit": setpoints.max_load_watts,
    }


def held_controls(setpoints: Setpoints) -> frozenset[ControlName]:
    """Return which controls hold something."""
    names = {name for name, watts in watts_by_control(setpoints).items() if watts is not None}
    return frozenset(names if setpoints.energized else {*names, "energize"})


def registers_of(profile: Profile) -> list[Register]:
    """Return the registers to read before a write, and to know what is held."""
    return [register for _, register in profile.written()]


def find_switch_without_value(profile: Profile, image: Image) -> str:
    """Return which switch shows no value, as a device does that has just started; empty = none."""
    for path, register in profile.written():
        if not isinstance(register, Switch):
            continue
        word = image.word(register)
        if word in _NO_VALUE and word not in (register.on_value, register.off_value):
            name = ".".join(str(part) for part in path)
            return f"{name}, register {register.address}, is {word:#06x}"
    return ""


def held(profile: Profile, rated: Rated, image: Image, asked: Setpoints) -> Setpoints:
    """Return what the device says that it holds.

    Args:
        profile: Its registers.
        rated: What percentages refer to.
        image: The registers of ``registers_of``.
        asked: What was written last. Without ``enable`` a setpoint that equals ``release`` looks
            released; it counts as held if it was asked for.

    What is no number is nothing that the device holds; other modes are not touched by it.
    """
    remote = profile.remote_control
    if remote is not None and image.word(remote) != remote.on_value:
        return Setpoints()
    wanted = watts_by_control(asked)
    found = {
        name: _held_watts(name, control, image, rated.of(name), wanted[name])
        for name, control in profile.controls.values().items()
    }
    energize = profile.controls.energize
    return Setpoints(
        active_power_watts=found.get("activePower"),
        max_generation_watts=found.get("generationLimit"),
        max_load_watts=found.get("loadLimit"),
        energized=energize is None or image.word(energize) != energize.off_value,
    )


def plan(
    profile: Profile,
    rated: Rated,
    image: Image,
    setpoints: Setpoints,
    reversion: Reversion | None,
    *,
    may_lag: bool = False,
) -> tuple[list[Write], int | None]:
    """Return what to write, in order, and after how many seconds all of it falls back by itself.

    What is released and shall be released is not touched, unless the image ``may_lag`` behind what
    was written.

    Raises:
        DeviceRefusedError: The device does not have a mode, or a register cannot hold a value.
    """
    names = held_controls(setpoints)
    _refuse_others(profile, names)
    writes: list[Write] = []
    remote = profile.remote_control
    if remote is not None and image.word(remote) != remote.on_value:
        if not names and not may_lag:
            return [], None  # nothing counts now, and many devices refuse writes then
        writes.append(_switched(remote, on=True))
    armed, armed_seconds = _arm(profile, rated, image, names, reversion, may_lag=may_lag)
    writes += armed
    writes += _hold_all(profile, rated, image, setpoints, may_lag=may_lag)
    if remote is not None and not names and (may_lag or image.word(remote) == remote.on_value):
        writes.append(_switched(remote, on=False))
    return writes, armed_seconds


def _hold_all(
    profile: Profile, rated: Rated, image: Image, setpoints: Setpoints, *, may_lag: bool
) -> list[Write]:
    """Return the writes to the controls: first what switches off, last what permits."""
    writes: list[Write] = []
    energize = profile.controls.energize
    if energize is not None and not setpoints.energized:
        writes.append(_switched(energize, on=False))
    for name, control in profile.controls.values().items():
        watts = watts_by_control(setpoints)[name]
        writes += _hold(name, control, image, watts, rated.of(name), may_lag=may_lag)
    is_off = energize is not None and (may_lag or image.word(energize) == energize.off_value)
    if energize is not None and setpoints.energized and is_off:
        writes.append(_switched(energize, on=True))
    return writes


def _refuse_others(profile: Profile, names: frozenset[ControlName]) -> None:
    missing = sorted(MODES[name] for name in names - profile.controls.names())
    if missing:
        has = ", ".join(sorted(MODES[name] for name in profile.controls.names())) or "none"
        raise DeviceRefusedError(f"the device has no {missing[0]}; its profile has: {has}")


def _arm(
    profile: Profile,
    rated: Rated,
    image: Image,
    names: frozenset[ControlName],
    reversion: Reversion | None,
    *,
    may_lag: bool,
) -> tuple[list[Write], int | None]:
    writes: list[Write] = []
    armed: dict[ControlName, int] = {}
    for timer in profile.timers:
        if not names & set(timer.guards):
            # One that runs on would pull the device away from its own control later.
            if may_lag or (image.word(timer) and _holds_any(profile, image, timer)):
                writes.append((timer.address, timer.encode(0)))
            continue
        data = timer.encode(min(reversion.after_seconds, timer.most_seconds) if reversion else 0)
        seconds = int(timer.decode(data))  # what is left of it in the steps of the register
        if reversion and seconds:
            writes += _fall_back_to(profile, rated, timer, reversion.setpoints)
            armed |= dict.fromkeys(timer.guards, seconds)
        writes.append((timer.address, data))
    return writes, _least_seconds(names, armed)


def _least_seconds(names: frozenset[ControlName], armed: Mapping[ControlName, int]) -> int | None:
    """Return after how long the first control falls back; None if one of them does not."""
    if not names or not names <= armed.keys():
        return None
    return min(armed[name] for name in names)


def _holds_any(profile: Profile, image: Image, timer: Timer) -> bool:
    controls = profile.controls.values()
    energize = profile.controls.energize
    off = energize is not None and image.word(energize) == energize.off_value
    return ("energize" in timer.guards and off) or any(
        name in timer.guards and _is_held(control, image) for name, control in controls.items()
    )


def _fall_back_to(
    profile: Profile, rated: Rated, timer: Timer, setpoints: Setpoints
) -> list[Write]:
    writes: list[Write] = []
    for name, control in profile.controls.values().items():
        if control.fallback is None or name not in timer.guards:
            continue
        watts, rated_watts = watts_by_control(setpoints)[name], rated.of(name)
        if watts is None and control.release is not None:
            data = control.fallback.encode(control.release)
        else:
            # The timer does not switch off, so nothing to hold is said by what limits nothing.
            unlimited = 0 if name == "activePower" else rated_watts
            data = _encode(
                name,
                control,
                control.fallback,
                unlimited if watts is None else watts,
                rated_watts,
            )
        writes.append((control.fallback.address, data))
    return writes


def _hold(
    name: ControlName,
    control: Control,
    image: Image,
    watts: int | None,
    rated_watts: int,
    *,
    may_lag: bool,
) -> list[Write]:
    value, enable = control.value, control.enable
    if watts is not None:
        writes = [(value.address, _encode(name, control, value, watts, rated_watts))]
        return writes if enable is None else [*writes, _switched(enable, on=True)]
    if not _is_held(control, image) and not may_lag:
        return []
    if enable is not None:
        return [_switched(enable, on=False)]
    return [(value.address, _released(control))]


def _is_held(control: Control, image: Image) -> bool:
    if control.enable is not None:
        return image.word(control.enable) == control.enable.on_value
    return image.data(control.value) != _released(control)


def _held_watts(
    name: ControlName,
    control: Control,
    image: Image,
    rated_watts: int,
    asked_watts: int | None,
) -> int | None:
    value = control.value
    if not _is_held(control, image) and (
        control.enable is not None
        or asked_watts is None
        or _encode(name, control, value, asked_watts, rated_watts) != _released(control)
    ):
        return None
    try:
        number = value.decode(image.data(value))
    except DeviceRefusedError:
        return None
    return whole_watts(_watts(control, number, rated_watts))


def _released(control: Control) -> bytes:
    return control.value.encode(control.release or 0)


def _encode(
    name: ControlName, control: Control, point: Point, watts: int, rated_watts: int
) -> bytes:
    """Return the registers for a value: a power in whole steps, a limit within the range too."""
    resolution = resolution_of(name, control, point, rated_watts)
    asked_watts = watts if name == "activePower" else resolution.bounded(watts)
    data = point.encode(_number(control, resolution.rounded(asked_watts), rated_watts))
    refuse_lost_value(
        name, asked_watts, _watts(control, point.decode(data), rated_watts), resolution
    )
    return data


def _watts(control: Control, number: float, rated_watts: int) -> float:
    return number if control.unit == "watts" else number * rated_watts / 100


def _number(control: Control, watts: float, rated_watts: int) -> float:
    if control.unit == "watts":
        return watts
    if not rated_watts:
        raise DeviceRefusedError(f"{watts:g} W is no percentage of a rating of 0 W")
    return watts * 100 / rated_watts


def _switched(switch: Switch, *, on: bool) -> Write:
    return switch.address, (switch.on_value if on else switch.off_value).to_bytes(2)
