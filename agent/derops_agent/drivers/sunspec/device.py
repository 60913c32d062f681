"""A SunSpec device behind the agent's port."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from derops.errors import DeviceRefusedError
from derops_agent.clock import Clock
from derops_agent.drivers.modbus_tcp import Unit, before_writing, take_unit
from derops_agent.drivers.options import DriverOptionError, explain
from derops_agent.drivers.read_back import ReadBackOptions
from derops_agent.drivers.sunspec.controls import Controls, controls_of
from derops_agent.drivers.sunspec.measuring import (
    Ratings,
    in_local_control,
    measuring_models,
    rating_models,
    read_ratings,
    read_values,
)
from derops_agent.drivers.sunspec.models import (
    Block,
    Fallback,
    Place,
    Write,
    find_models,
    read_block,
)
from derops_agent.drivers.units import UnitOptions
from derops_agent.ports import Capability, Reading, Reversion, Setpoints

_CONTROL_MODELS = (704, 703, 123, 124)


class SunSpecOptions(UnitOptions):
    """Where a device is, and what is peculiar to it."""

    toggle_enable: bool = False
    """Switch a function off before its value changes: some devices keep the old value else."""

    read_back: ReadBackOptions = ReadBackOptions()


class SunSpecDevice:
    """One unit. Its models were found when it was opened; their values are read each time."""

    def __init__(
        self,
        options: SunSpecOptions,
        unit: Unit,
        clock: Clock,
        places: Mapping[int, Place],
        *,
        controls: Controls,
        ratings: Ratings,
        capability: Capability,
    ) -> None:
        self._options, self._unit, self._clock = options, unit, clock
        self._places, self._controls, self._ratings = places, controls, ratings
        self._capability = capability
        self._measuring = measuring_models(places)
        self._written: list[Write] = []
        """Of a setpoint that was written last, and that the device may not show yet."""

        self._wrote_us = 0

    @property
    def capability(self) -> Capability:
        """What the device can do."""
        return self._capability

    async def write(self, setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        """Hold ``setpoints``: first what is switched off or limited, then what is permitted.

        A function that is off and shall be off is not touched.

        Raises:
            DeviceTimeoutError: It is not known whether the device acted.
            DeviceUnreachableError: Nothing was written.
            DeviceRefusedError: The device answered no, or a register cannot hold a value.
        """
        self._refuse_modes(setpoints)
        with before_writing():
            blocks = await self._read(self._controls.model_ids)
        patience_us = self._options.read_back.patience_seconds * 1_000_000
        if self._clock.monotonic_us() - self._wrote_us < patience_us:
            blocks = {each: block.after(self._written) for each, block in blocks.items()}
        after_seconds = reversion.after_seconds if reversion else None
        falls_to = reversion.setpoints if reversion else Setpoints()
        steps: list[tuple[list[Write], int | None]] = []
        for function, watts, falls_to_watts in (
            (
                self._controls.limit,
                setpoints.max_generation_watts,
                falls_to.max_generation_watts,
            ),
            (self._controls.power, setpoints.active_power_watts, falls_to.active_power_watts),
        ):
            if function is None:
                continue
            fallback = after_seconds and Fallback(after_seconds=after_seconds, watts=falls_to_watts)
            steps.append(
                function.writes(
                    blocks[function.model_id],
                    watts,
                    fallback or None,
                    most_watts=self._ratings.max_watts,
                    toggle=self._options.toggle_enable,
                )
            )
        switch = self._controls.switch
        if switch is not None:
            permit = switch.writes(
                blocks[switch.model_id],
                energized=setpoints.energized,
                after_seconds=after_seconds,
            )
            steps.insert(len(steps) if setpoints.energized else 0, permit)
        holds = setpoints != Setpoints()
        self._written, self._wrote_us = [], self._clock.monotonic_us()
        for writes, _ in steps:
            self._written += writes if holds else []
            for register, data in writes:
                await self._unit.write(register, data)
        return _least(steps, setpoints)

    async def read_setpoints(self) -> Setpoints:
        """Return what the device says that it holds.

        Raises:
            DeviceError: It could not be asked.
        """
        blocks = await self._read(self._controls.model_ids)
        return self._controls.held(blocks, self._ratings.max_watts)

    async def sample(self) -> Reading:
        """Measure.

        Raises:
            DeviceError: It could not be asked, or answered what cannot be.
        """
        blocks = await self._read(self._measuring)
        return Reading(
            at_us=self._clock.now_us(),
            values=read_values(blocks, self._ratings.max_watts),
            local_control=in_local_control(blocks),
        )

    async def close(self) -> None:
        """Give the connection back; the device keeps what it holds."""
        await self._unit.close()

    def _refuse_modes(self, setpoints: Setpoints) -> None:
        wanted = {
            "ActivePower": setpoints.active_power_watts is not None,
            "GenerationLimit": setpoints.max_generation_watts is not None,
            "LoadLimit": setpoints.max_load_watts is not None,
            "CeaseToEnergize": not setpoints.energized,
        }
        for mode, is_wanted in wanted.items():
            if is_wanted and mode not in self._controls.modes:
                has = ", ".join(sorted(self._controls.modes)) or "none"
                raise DeviceRefusedError(f"the device has no {mode}; it has: {has}")

    async def _read(self, model_ids: Iterable[int]) -> dict[int, Block]:
        return {each: await read_block(self._unit, self._places[each]) for each in model_ids}


async def open_sunspec(options: Mapping[str, Any], clock: Clock) -> SunSpecDevice:
    """Find out what a device is and open it.

    Raises:
        DriverOptionError: An option is wrong.
        DeviceError: It did not answer, or is none that can be used.
    """
    parsed = parse_options(options)
    unit = take_unit(parsed)
    try:
        return await _open(parsed, unit, clock)
    except BaseException:
        await unit.close()
        raise


async def read_used_models(unit: Unit, places: Mapping[int, Place]) -> dict[int, Block]:
    """Read every model of a device that the agent makes use of.

    Raises:
        DeviceError: One could not be read.
    """
    used = {1, *rating_models(places), *_CONTROL_MODELS, *measuring_models(places)}
    return {each: await read_block(unit, place) for each, place in places.items() if each in used}


async def _open(options: SunSpecOptions, unit: Unit, clock: Clock) -> SunSpecDevice:
    places = await find_models(unit)
    blocks = await read_used_models(unit, places)
    ratings, controls = read_ratings(blocks), controls_of(blocks)
    values = read_values(blocks, ratings.max_watts)
    functions = [each for each in (controls.power, controls.limit, controls.switch) if each]
    capability = Capability(
        modes=controls.modes,
        driver="sunspec",
        firmware=device_name(blocks),
        max_injection_watts=ratings.max_injection_watts,
        max_absorption_watts=ratings.max_absorption_watts,
        can_measure=bool(values),
        reversion=any(each.has_timer(blocks[each.model_id]) for each in functions),
        read_back=options.read_back.settings(),
    )
    return SunSpecDevice(
        options,
        unit,
        clock,
        places,
        controls=controls,
        ratings=ratings,
        capability=capability,
    )


def parse_options(options: Mapping[str, Any]) -> SunSpecOptions:
    """Check the options of a SunSpec device.

    Raises:
        DriverOptionError: It names the option and what is allowed.
    """
    try:
        return SunSpecOptions.model_validate(dict(options))
    except ValidationError as error:
        name, problem = explain(error, SunSpecOptions)
        raise DriverOptionError(name, "sunspec device", problem) from error


def device_name(blocks: Mapping[int, Block]) -> str:
    """Return maker, model and version as model 1 says them; empty without one."""
    if 1 not in blocks:
        return ""
    return " ".join(filter(None, map(blocks[1].text, ("Mn", "Md", "Vr"))))


def _least(steps: list[tuple[list[Write], int | None]], setpoints: Setpoints) -> int | None:
    """Return when the first function falls back; None if one that is held has no timer."""
    held = [
        setpoints.active_power_watts is not None,
        setpoints.max_generation_watts is not None,
        not setpoints.energized,
    ]
    armed = [seconds for _, seconds in steps if seconds]
    return min(armed) if armed and len(armed) == sum(held) else None
