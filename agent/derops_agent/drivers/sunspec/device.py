"""A SunSpec device behind the agent's port."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from derops.errors import DeviceRefusedError, DeviceTimeoutError
from derops.modes import Mode
from derops.wire.v1 import agent_pb2
from derops_agent.clock import Clock
from derops_agent.drivers.modbus_tcp import Unit, take_unit
from derops_agent.drivers.reading import Answers, Reader, Whole
from derops_agent.drivers.sunspec.capability import capability_of, read_used_models
from derops_agent.drivers.sunspec.controls import Controls, controls_of
from derops_agent.drivers.sunspec.measuring import (
    Ratings,
    Sources,
    most_power_points,
    read_local_control,
    read_most_watts,
    read_ratings,
    read_values,
    sources_of,
)
from derops_agent.drivers.sunspec.models import (
    Block,
    Blocks,
    FunctionReversion,
    ModelPlace,
    Write,
    find_models,
    points_of,
    runs_to_measure,
    runs_without,
    span_of,
)
from derops_agent.drivers.sunspec.options import SunSpecOptions, parse_options
from derops_agent.ports import Capability, Reading, Reversion, Setpoints

FunctionWrites: TypeAlias = tuple[list[Write], int | None]
"""The writes of one function, and after how many seconds it falls back; None = it does not."""


class MovedError(DeviceTimeoutError):
    """The models of a device are no longer where they were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Where a device has its models, and what reads them there."""

    places: Mapping[int, ModelPlace]
    controls: Mapping[int, Whole]
    reader: Reader


class SunSpecDevice:
    """One unit. Its capability was found when it was opened; its values are read each time.

    Maps change: by an update, or at night. Where a model is, is looked at with its values, and
    nothing is taken from what is something else by now, nor written to it.
    """

    def __init__(
        self,
        options: SunSpecOptions,
        unit: Unit,
        clock: Clock,
        places: Mapping[int, ModelPlace],
        *,
        controls: Controls,
        missing: Mapping[int, frozenset[str]],
        implemented: frozenset[tuple[int, str]],
        sources: Sources,
        ratings: Ratings,
        capability: Capability,
    ) -> None:
        self._options, self._unit, self._clock = options, unit, clock
        self._controls, self._ratings, self._sources = controls, ratings, sources
        self._implemented = implemented
        self._capability = capability
        self._local_control = False
        self._factors: Mapping[tuple[int, str], Any] = {}
        self._missing = missing
        self._found = self._at(places)
        self._finding: asyncio.Task[None] | None = None
        self._written: list[Write] = []
        """The writes of the last setpoint, which the device may not show yet."""

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
            blocks, most_watts = await self._read_controls()
        patience_us = self._options.read_back.patience_seconds * 1_000_000
        if self._clock.monotonic_us() - self._wrote_us < patience_us:
            blocks = {each: block.after(self._written) for each, block in blocks.items()}
        steps = self._plan(blocks, most_watts, setpoints, reversion)
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
        return self._controls.held(*await self._read_controls())

    async def sample(self) -> Reading:
        """Measure. While the device does not tell who has control, the last answer counts.

        Raises:
            DeviceTimeoutError: It answered nothing.
        """
        try:
            blocks = await self._measure()
        except MovedError:
            await self._find_anew()
            blocks = await self._measure()
        factors = self._sources.factors(blocks)
        if factors != self._factors and self._factors:
            # Where they were read after the values, those may be of the earlier ones.
            blocks = await self._measure()
        self._factors = self._sources.factors(blocks)
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
        if self._finding is not None:
            self._finding.cancel()
        await self._unit.close()

    def _plan(
        self, blocks: Blocks, most_watts: float, setpoints: Setpoints, reversion: Reversion | None
    ) -> list[FunctionWrites]:
        """Return what to write, function by function, in the order in which it is safe."""
        after_seconds = reversion.after_seconds if reversion else None
        falls_to = reversion.setpoints if reversion else Setpoints()
        steps: list[FunctionWrites] = []
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
            fallback = after_seconds and FunctionReversion(
                after_seconds=after_seconds, watts=falls_to_watts
            )
            steps.append(
                function.writes(
                    blocks[function.model_id],
                    watts,
                    fallback or None,
                    most_watts=most_watts,
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
        return steps

    def _refuse_modes(self, setpoints: Setpoints) -> None:
        wanted = {
            Mode.ACTIVE_POWER: setpoints.active_power_watts is not None,
            Mode.GENERATION_LIMIT: setpoints.max_generation_watts is not None,
            Mode.LOAD_LIMIT: setpoints.max_load_watts is not None,
            Mode.CEASE_TO_ENERGIZE: not setpoints.energized,
        }
        for mode, is_wanted in wanted.items():
            if is_wanted and mode not in self._controls.modes:
                has = ", ".join(sorted(self._controls.modes)) or "none"
                raise DeviceRefusedError(f"the device has no {mode}; it has: {has}")

    def _at(self, places: Mapping[int, ModelPlace]) -> _Found:
        return _Found(
            places=places,
            controls={
                each: Whole(self._unit, runs_without(places[each], self._missing[each]))
                for each in self._missing
            },
            reader=Reader(
                self._unit,
                [
                    run
                    for each, names in self._sources.names().items()
                    for run in runs_to_measure(places[each], names)
                ],
                self._clock,
            ),
        )

    async def _find_anew(self) -> None:
        """Search for the models once for all callers that wait, longer than one of them may."""
        if self._finding is None or self._finding.done():
            self._finding = asyncio.create_task(self._find())
        await asyncio.shield(self._finding)

    async def _find(self) -> None:
        places = await find_models(self._unit, self._options.base_registers)
        for each in (*self._missing, *self._sources.names()):
            if each not in places:
                raise MovedError(f"{self._unit} no longer has model {each}")
        self._found = self._at(places)

    async def _measure(self) -> dict[int, Block]:
        found = self._found
        answers = await found.reader.read()
        blocks = {each: Block(found.places[each], answers) for each in self._sources.names()}
        self._refuse_moved(blocks)
        return blocks

    async def _read_controls(self) -> tuple[Blocks, float]:
        """Return the blocks that control the device, and the most power, which is a setting too."""
        try:
            blocks = await self._read_controls_there()
        except MovedError:
            await self._find_anew()
            blocks = await self._read_controls_there()
        for model_id, name in sorted(self._implemented):
            if blocks[model_id].raw(name) is None:
                raise DeviceTimeoutError(
                    f"{self._unit}: {name} of model {model_id} is {blocks[model_id].hex(name)}, "
                    "not implemented, which it was: the device does not say now what it holds"
                )
        try:
            return blocks, read_most_watts(blocks)
        except DeviceRefusedError as error:
            raise DeviceTimeoutError(f"{self._unit}: {error}") from error

    async def _read_controls_there(self) -> dict[int, Block]:
        found, blocks = self._found, {}
        for each, whole in found.controls.items():
            blocks[each] = Block(found.places[each], Answers(await whole.read(), {}))
        self._refuse_moved(blocks)
        return blocks

    def _refuse_moved(self, blocks: Blocks) -> None:
        for each, block in blocks.items():
            if block.is_elsewhere:
                raise MovedError(
                    f"{self._unit} no longer has model {each} at register {block.place.register}"
                )


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


async def _open(options: SunSpecOptions, unit: Unit, clock: Clock) -> SunSpecDevice:
    places = await find_models(unit, options.base_registers)
    blocks, answers = await read_used_models(unit, places, clock)
    ratings, controls, sources = read_ratings(blocks), controls_of(blocks), sources_of(blocks)
    values, _ = read_values(blocks, sources, ratings.max_watts)
    if not controls.modes and not values:
        raise DeviceTimeoutError(f"{unit} shows no value now, so what it can do is not known")
    most_points = most_power_points(blocks)
    return SunSpecDevice(
        options,
        unit,
        clock,
        places,
        controls=controls,
        missing={
            each: frozenset(
                name for name in points_of(each) if span_of(places[each], name) in answers.problems
            )
            for each in {*controls.model_ids, *(model_id for model_id, _ in most_points)}
        },
        implemented=controls.implemented(blocks) | most_points,
        sources=sources,
        ratings=ratings,
        capability=capability_of(blocks, controls, ratings, values, options.read_back.settings()),
    )


def _least(steps: list[FunctionWrites], setpoints: Setpoints) -> int | None:
    """Return when the first function falls back; None if one that is held has no timer."""
    held = [
        setpoints.active_power_watts is not None,
        setpoints.max_generation_watts is not None,
        not setpoints.energized,
    ]
    armed = [seconds for _, seconds in steps if seconds]
    return min(armed) if armed and len(armed) == sum(held) else None
