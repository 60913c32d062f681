"""What a SunSpec device is and can do, by its models."""

from collections.abc import Mapping

from derops.errors import DeviceTimeoutError
from derops.wire.v1 import agent_pb2
from derops_agent.clock import Clock
from derops_agent.drivers.modbus_tcp import Unit
from derops_agent.drivers.reading import Answers, Reader
from derops_agent.drivers.sunspec.controls import Controls
from derops_agent.drivers.sunspec.measuring import MEASURING_MODELS, Ratings, rating_models
from derops_agent.drivers.sunspec.models import Block, ModelPlace, runs_without
from derops_agent.ports import Capability, ReadBack

CONTROL_MODELS = (704, 703, 123, 124)


async def read_used_models(
    unit: Unit, places: Mapping[int, ModelPlace], clock: Clock
) -> tuple[dict[int, Block], Answers]:
    """Read every model of a device that the agent makes use of.

    A model that the device refuses counts as not implemented.

    Raises:
        DeviceTimeoutError: It did not answer, be it what it is controlled by alone: a lost answer
            must not look like a function that it does not have.
    """
    deciding = {*rating_models(places), *CONTROL_MODELS} & set(places)
    used = [each for each in places if each in {1, *deciding, *MEASURING_MODELS}]
    runs = [run for each in used for run in runs_without(places[each], ())]
    answers = await Reader(unit, runs, clock).read(is_there=True)
    for each in deciding:
        _refuse_silent(places[each], answers)
    return {each: Block(places[each], answers) for each in used}, answers


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


def device_name(blocks: Mapping[int, Block]) -> str:
    """Return maker, model and version as model 1 says them; empty without one."""
    if 1 not in blocks:
        return ""
    return " ".join(filter(None, map(blocks[1].text, ("Mn", "Md", "Vr"))))


def _refuse_silent(place: ModelPlace, answers: Answers) -> None:
    spans = (span for run in runs_without(place, ()) for span in run)
    silent = next((span for span in spans if span in answers.silent), None)
    if silent is not None:
        raise DeviceTimeoutError(answers.problems[silent])
