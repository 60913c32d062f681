"""What a SunSpec device offers, before anybody controls it. Nothing is written to the device."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sunspec2.device import get_model_def
from sunspec2.mdef import ModelDefinitionError

from derops.errors import DeviceError
from derops.modes import Mode
from derops.wire.v1 import agent_pb2
from derops_agent.clock import SystemClock
from derops_agent.drivers.findings import Findings, OfferedMode, limits_of, values_of
from derops_agent.drivers.modbus_tcp import take_unit
from derops_agent.drivers.reading import Answers
from derops_agent.drivers.sunspec.capability import (
    CONTROL_MODELS,
    capability_of,
    device_name,
    read_used_models,
)
from derops_agent.drivers.sunspec.controls import Controls, controls_of
from derops_agent.drivers.sunspec.measuring import (
    read_local_control,
    read_ratings,
    read_values,
    sources_of,
)
from derops_agent.drivers.sunspec.models import Blocks, ModelPlace, find_models, points_of, span_of
from derops_agent.drivers.sunspec.options import SunSpecOptions
from derops_agent.ports import Resolution


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A model of the device."""

    id: int
    label: str
    register: int
    length: int
    used: bool
    """Whether the agent reads or writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe(Findings):
    """All that a probe found."""

    models: list[FoundModel]

    def parts(self) -> list[str]:
        """Return a line for each model."""
        lines = []
        for model in self.models:
            mark = "used" if model.used else "-"
            lines.append(f"  {model.id:>5}  at {model.register:<6} {mark:<5} {model.label}")
        return ["models", *lines]


async def probe(options: SunSpecOptions) -> Probe:
    """Look at a device.

    Raises:
        DeviceError: It did not answer, or has no SunSpec map.
    """
    unit = take_unit(options)
    try:
        places = await find_models(unit, options.base_registers)
        blocks, answers = await read_used_models(unit, places, SystemClock())
    finally:
        await unit.close()
    return _describe(options, places, blocks, answers)


def _describe(
    options: SunSpecOptions, places: Mapping[int, ModelPlace], blocks: Blocks, answers: Answers
) -> Probe:
    problems: list[str] = []
    ratings: dict[str, float] = {}
    measured: dict[str, float] = {}
    held: dict[str, Any] = {}
    limits = [*_not_offered(places, answers)]
    controls, sources = controls_of(blocks), sources_of(blocks)
    local_control, bad_local = read_local_control(blocks, sources)
    resolutions: Mapping[str, Resolution] = {}
    try:
        found = read_ratings(blocks)
        ratings = asdict(found)
        values, bad = read_values(blocks, sources, found.max_watts)
        measured = {agent_pb2.Quantity.Name(each): value for each, value in values.items()}
        capability = capability_of(blocks, controls, found, values, options.read_back.settings())
        resolutions = capability.resolutions
        limits += limits_of(capability, values, [*bad, *bad_local])
        held = asdict(controls.held(blocks, found.max_watts))
    except DeviceError as error:
        problems.append(str(error))
    modes = _modes(controls, blocks, resolutions)
    if not modes:
        problems.append("no mode can be held: the device has no function to control it by")
    return Probe(
        device=device_name(blocks),
        models=[
            FoundModel(
                id=place.model_id,
                label=_label(place.model_id),
                register=place.register,
                length=place.length,
                used=place.model_id in blocks,
            )
            for place in places.values()
        ],
        modes=modes,
        ratings=ratings,
        measured=measured,
        held=held,
        local_control=bool(local_control),
        problems=problems,
        limits=limits,
    )


def _not_offered(places: Mapping[int, ModelPlace], answers: Answers) -> Iterator[str]:
    """Yield the points of control models that the device has and does not let be read."""
    for model_id in CONTROL_MODELS:
        if model_id in places:
            for name in points_of(model_id):
                problem = answers.problems.get(span_of(places[model_id], name))
                if problem is not None:
                    yield f"{model_id} {name}: what needs it is not offered: {problem}"


def _modes(
    controls: Controls, blocks: Blocks, resolutions: Mapping[str, Resolution]
) -> list[OfferedMode]:
    modes = [
        OfferedMode(
            mode=function.mode,
            by=f"{function.model_id} {function.value}",
            timer=function.timer if function.has_timer(blocks[function.model_id]) else "",
            **values_of(resolutions.get(function.mode)),
        )
        for function in (controls.power, controls.limit)
        if function is not None
    ]
    switch = controls.switch
    if switch is not None:
        timer = switch.timer if switch.has_timer(blocks[switch.model_id]) else None
        by = f"{switch.model_id} {switch.point}"
        modes.append(OfferedMode(mode=Mode.CEASE_TO_ENERGIZE, by=by, timer=timer or ""))
    return modes


def _label(model_id: int) -> str:
    try:
        return str(get_model_def(model_id)["group"].get("label", ""))
    except ModelDefinitionError:
        return "not a model that SunSpec defines"
