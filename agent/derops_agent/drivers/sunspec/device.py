"""A SunSpec device behind the agent's port."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, ValidationError

from derops.errors import DeviceRefusedError, DeviceTimeoutError
from derops.wire.v1 import agent_pb2
from derops_agent.clock import Clock
from derops_agent.drivers.modbus_tcp import Unit, take_unit
from derops_agent.drivers.options import DriverOptionError, explain
from derops_agent.drivers.read_back import ReadBackOptions
from derops_agent.drivers.reading import Answers, Reader, Run, read_all
from derops_agent.drivers.sunspec.controls import Controls, controls_of
from derops_agent.drivers.sunspec.measuring import (
    MEASURING_MODELS,
    Ratings,
    Sources,
    rating_models,
    read_local_control,
    read_ratings,
    read_values,
    sources_of,
)
from derops_agent.drivers.sunspec.models import (
    BASE_REGISTERS,
    Block,
    Fallback,
    Place,
    Write,
    find_models,
    runs_of,
    runs_without,
)
from derops_agent.drivers.units import UnitOptions
from derops_agent.ports import Capability, ReadBack, Reading, Reversion, Setpoints

CONTROL_MODELS = (704, 703, 123, 124)


class SunSpecOptions(UnitOptions):
    """Where a device is, and what is peculiar to it."""

    toggle_enable: bool = False
    """Switch a function off before its value changes: some devices keep the old value else."""

    base_register: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Where its map begins; None = it is searched for."""

    @property
    def base_registers(self) -> tuple[int, ...]:
        """Where to look for the map."""
        return BASE_REGISTERS if self.base_register is None else (self.base_register,)

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
        control_runs: Mapping[int, list[Run]],
        sources: Sources,
        ratings: Ratings,
        capability: Capability,
    ) -> None:
        self._options, self._unit, self._clock = options, unit, clock
        self._places, self._controls, self._ratings = places, controls, ratings
        self._control_runs, self._sources = control_runs, sources
        self._capability = capability
        self._local_control = False
        runs = [
            run
            for model_id, names in sources.names().items()
            for run in runs_of(places[model_id], names)
        ]
        self._reader = Reader(unit, runs, clock)
        self._written: list[Write] = []
        """Of a setpoint that was written last, and that the device may not show yet."""

        self._wrote_us = 0

    @property
    def capability(self) -> Capability:
        """What the device can do; that it measures its power is known once it did."""
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
        with self._unit.before_writing(setpoints):
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
                    resolution=self._capability.resolutions[function.mode],
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
        """Measure. While nobody can tell who has control, it counts as it was last told.

        Raises:
            DeviceTimeoutError: It answered nothing.
        """
        answers = await self._reader.read()
        blocks = {each: Block(self._places[each], answers) for each in self._sources.names()}
        values, bad = read_values(blocks, self._sources, self._ratings.max_watts)
        local_control, bad_local = read_local_control(blocks, self._sources)
        if local_control is not None:
            self._local_control = local_control
        if agent_pb2.ACTIVE_POWER_WATTS in values:
            self._capability = replace(self._capability, can_measure=True)
        return Reading(
            at_us=self._clock.now_us(),
            values=values,
            local_control=self._local_control,
            bad_points=(*bad, *bad_local),
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
        found = {}
        for each in model_ids:
            words = await read_all(self._unit, self._control_runs[each])
            found[each] = Block(self._places[each], Answers(words, {}))
        return found


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


async def read_used_models(
    unit: Unit, places: Mapping[int, Place], clock: Clock
) -> tuple[dict[int, Block], Answers]:
    """Read every model of a device that the agent makes use of.

    What it refuses of them is as if it were not implemented.

    Raises:
        DeviceTimeoutError: It did not answer, be it what it is controlled by alone: a lost answer
            must not look like a function that it does not have.
    """
    deciding = {*rating_models(places), *CONTROL_MODELS} & set(places)
    used = [each for each in places if each in {1, *deciding, *MEASURING_MODELS}]
    runs = [run for each in used for run in runs_without(places[each], ())]
    answers = await Reader(unit, runs, clock).read(is_there=True)
    for each in deciding:
        spans = (span for run in runs_without(places[each], ()) for span in run)
        silent = next((span for span in spans if span in answers.silent), None)
        if silent is not None:
            raise DeviceTimeoutError(answers.problems[silent])
    return {each: Block(places[each], answers) for each in used}, answers


async def _open(options: SunSpecOptions, unit: Unit, clock: Clock) -> SunSpecDevice:
    places = await find_models(unit, options.base_registers)
    blocks, answers = await read_used_models(unit, places, clock)
    ratings, controls, sources = read_ratings(blocks), controls_of(blocks), sources_of(blocks)
    values, _ = read_values(blocks, sources, ratings.max_watts)
    return SunSpecDevice(
        options,
        unit,
        clock,
        places,
        controls=controls,
        control_runs={
            each: runs_without(places[each], answers.problems) for each in controls.model_ids
        },
        sources=sources,
        ratings=ratings,
        capability=capability_of(blocks, controls, ratings, values, options.read_back.settings()),
    )


def capability_of(
    blocks: Mapping[int, Block],
    controls: Controls,
    ratings: Ratings,
    values: Mapping[int, float],
    read_back: ReadBack,
) -> Capability:
    """Return what a device can do by its models and its first sample."""
    functions = [each for each in (controls.power, controls.limit, controls.switch) if each]
    return Capability(
        modes=controls.modes,
        driver="sunspec",
        firmware=device_name(blocks),
        max_injection_watts=ratings.max_injection_watts,
        max_absorption_watts=ratings.max_absorption_watts,
        can_measure=agent_pb2.ACTIVE_POWER_WATTS in values,
        reversion=any(each.has_timer(blocks[each.model_id]) for each in functions),
        resolutions=controls.resolutions(blocks, ratings.max_watts),
        read_back=read_back,
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
