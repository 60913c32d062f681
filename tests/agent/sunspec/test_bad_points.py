"""One bad point of a SunSpec device is one absent quantity, and its map is found; real Modbus."""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymodbus.constants import ExcCodes
from tests.agent import lines
from tests.agent.fakes import FakeClock
from tests.agent.sunspec.inverter import BATTERY, SOLAR, STORAGE, Inverter

from derops.errors import DeviceRefusedError, DeviceTimeoutError
from derops.wire.v1 import agent_pb2
from derops_agent.drivers.sunspec import SunSpecDevice, open_sunspec
from derops_agent.drivers.sunspec.models import points_of
from derops_agent.ports import Setpoints

Q = agent_pb2.Quantity
FLOAT: dict[int, dict[str, Any]] = {
    **STORAGE,
    113: {"W": 1250.5, "Hz": 50.0, "PhVphA": 230.0, "VAr": 0.0, "WH": 1000.0, "St": 4},
}
del FLOAT[103]
Line: type[lines.Line] = lines.PymodbusLine


@pytest.fixture(params=lines.LINES, autouse=True)
def on_servers_of_two_origins(request: pytest.FixtureRequest) -> None:
    global Line
    Line = request.param


# The other server holds up a whole connection for one request that its device does not answer.
silently = pytest.mark.parametrize("on_servers_of_two_origins", [lines.PymodbusLine], indirect=True)


@asynccontextmanager
async def opened(
    inverter: Inverter, clock: FakeClock | None = None, *, is_silent: bool = False, **options: Any
) -> AsyncIterator[SunSpecDevice]:
    async with Line({1: inverter}) as line:
        host, port = line.address
        # Short only where it is waited for in vain: a busy machine may be slow to answer.
        seconds = 0.5 if is_silent else 2.0
        facts = {"host": host, "port": port, "timeoutSeconds": seconds, **options}
        try:
            device = await open_sunspec(facts, clock or FakeClock())
            yield device
            await device.close()
        finally:
            inverter.over.set()


@pytest.mark.parametrize(
    ("model_id", "change", "name", "quantity", "raw", "words"),
    [
        (701, {"W_SF": 300}, "701 W", Q.ACTIVE_POWER_WATTS, "0x0000", "W_SF of model 701 is 300"),
        (701, {"Hz_SF": 99}, "701 Hz", Q.FREQUENCY_HERTZ, "0x00001388", "is 99 (0x0063)"),
        (713, {"SoC": 2000}, "713 SoC", Q.STATE_OF_CHARGE_PERCENT, "0x07d0", "200 %"),
        (701, {"V_SF": 10}, "701 LNV", Q.VOLTAGE_VOLTS, "0x08fd", "2.301e+13 V"),
    ],
)
async def test_nonsense_is_one_absent_quantity_with_its_raw_value(
    model_id: int, change: dict[str, int], name: str, quantity: int, raw: str, words: str
) -> None:
    inverter = Inverter(BATTERY)
    async with opened(inverter) as device:
        good = await device.sample()
        before = {each: inverter.get(model_id, each) for each in change}
        for each, value in change.items():
            inverter.set(model_id, each, value)
        reading = await device.sample()
        for each, value in before.items():
            inverter.set(model_id, each, value)
        after = await device.sample()

    assert good.bad_points == ()
    assert set(reading.values) == set(good.values) - {quantity}
    (bad,) = reading.bad_points
    assert (bad.name, bad.quantity, bad.raw) == (name, quantity, raw)
    assert words in bad.problem
    assert (after.values, after.bad_points) == (good.values, ())


async def test_nonsense_does_not_keep_a_device_from_being_opened() -> None:
    inverter = Inverter({**SOLAR, 103: {**SOLAR[103], "W": 32_000}})
    async with opened(inverter) as device:
        at_first = device.capability.can_measure
        (bad,) = (await device.sample()).bad_points
        inverter.set(103, "W", 3_000)
        await device.sample()
        later = device.capability.can_measure

    assert not at_first
    assert "32000 W; it is rated 5000 W" in bad.problem
    assert later


@pytest.mark.parametrize("code", [ExcCodes.ILLEGAL_ADDRESS, ExcCodes.DEVICE_FAILURE])
async def test_a_block_that_is_partly_refused_leaves_the_rest(code: ExcCodes) -> None:
    await leaves_the_rest(code)


@silently
async def test_a_block_that_is_partly_not_answered_leaves_the_rest() -> None:
    await leaves_the_rest(None)


async def leaves_the_rest(code: ExcCodes | None) -> None:
    inverter, clock = Inverter(BATTERY), FakeClock()
    async with opened(inverter, clock, is_silent=code is None) as device:
        good = await device.sample()
        inverter.instead = {inverter.at(701, "Hz"): code}
        for _ in range(15):
            reading = await device.sample()
            clock.pass_seconds(1)
        inverter.instead = {}
        clock.pass_seconds(60)
        after = await device.sample()

    assert reading.values == {
        each: value for each, value in good.values.items() if each != Q.FREQUENCY_HERTZ
    }
    assert [bad.name for bad in reading.bad_points] == ["701 Hz"]
    assert (after.values, after.bad_points) == (good.values, ())


async def test_a_control_block_that_is_partly_refused_offers_the_rest() -> None:
    inverter = Inverter(BATTERY)
    inverter.instead = {inverter.at(704, "WSetEna"): ExcCodes.ILLEGAL_ADDRESS}
    async with opened(inverter) as device:
        modes = device.capability.modes
        await device.write(Setpoints(max_generation_watts=5000))
        held = await device.read_setpoints()

    assert modes == {"GenerationLimit", "CeaseToEnergize"}
    assert held == Setpoints(max_generation_watts=5000)


@silently
async def test_a_control_block_that_is_not_answered_is_no_lack_of_a_mode() -> None:
    inverter = Inverter(BATTERY)
    inverter.instead = {inverter.at(704, "WSetEna"): None}
    with pytest.raises(DeviceTimeoutError):
        async with opened(inverter, is_silent=True):
            pass


async def test_local_control_that_is_not_told_is_as_it_was_told_last() -> None:
    inverter = Inverter(BATTERY)
    async with opened(inverter) as device:
        inverter.set(715, "LocRemCtl", 1)
        before = await device.sample()
        inverter.set(715, "LocRemCtl", 7)
        during = await device.sample()

    assert before.local_control
    assert during.local_control
    assert [(bad.name, bad.raw) for bad in during.bad_points] == [("localControl", "0x0007")]


async def test_nonsense_in_one_control_is_nothing_held_by_that_one() -> None:
    inverter = Inverter(BATTERY)
    async with opened(inverter) as device:
        await device.write(Setpoints(active_power_watts=100, max_generation_watts=5000))
        inverter.set(704, "WSet_SF", 99)
        held = await device.read_setpoints()

    assert held == Setpoints(max_generation_watts=5000)


async def test_what_is_not_implemented_now_is_absent_without_a_word() -> None:
    inverter = Inverter(BATTERY)
    async with opened(inverter) as device:
        inverter.set(701, "W", -32768)
        inverter.live = lambda: None  # type: ignore[method-assign]
        reading = await device.sample()

    assert Q.ACTIVE_POWER_WATTS not in reading.values
    assert reading.bad_points == ()


async def test_a_model_that_is_shorter_than_its_definition_lacks_what_is_missing() -> None:
    inverter = Inverter(SOLAR)
    short = points_of(103)["TmpCab"].at
    inverter.set(103, "L", short - 2)
    at = inverter.at(103, "TmpCab") - inverter.base
    rest = inverter.at(120, "ID") - inverter.base
    del inverter.registers[at:rest]
    cut = rest - at
    for model_id in (120, 121, 123):
        inverter._places[model_id] -= cut
    async with opened(inverter) as device:
        reading = await device.sample()
        modes = device.capability.modes

    assert set(reading.values) == {Q.ACTIVE_POWER_WATTS, Q.FREQUENCY_HERTZ}
    assert reading.bad_points == ()
    assert modes == {"GenerationLimit", "CeaseToEnergize"}


async def test_float_models_are_measured() -> None:
    inverter = Inverter(FLOAT)
    async with opened(inverter) as device:
        can_measure = device.capability.can_measure
        good = await device.sample()
        at = inverter.at(113, "Hz") - inverter.base
        inverter.registers[at : at + 2] = struct.unpack(">2H", struct.pack(">f", float("inf")))
        infinite = await device.sample()
        inverter.registers[at : at + 2] = [0xFFC0, 0]
        strange = await device.sample()
        inverter.registers[at : at + 2] = [0x7FC0, 0]
        absent = await device.sample()

    assert can_measure
    assert good.values == {
        Q.ACTIVE_POWER_WATTS: 1250.5,
        Q.REACTIVE_POWER_VARS: 0,
        Q.VOLTAGE_VOLTS: 230,
        Q.FREQUENCY_HERTZ: 50,
        Q.ENERGY_INJECTED_WATT_HOURS: 1000,
        Q.STATE_OF_CHARGE_PERCENT: pytest.approx(50.5),
    }
    assert [bad.raw for bad in infinite.bad_points] == ["0x7f800000"]
    assert [bad.raw for bad in strange.bad_points] == ["0xffc00000"]
    assert Q.FREQUENCY_HERTZ not in absent.values
    assert absent.bad_points == ()


async def test_the_model_that_implements_the_power_is_the_one_that_is_read() -> None:
    inverter = Inverter({**FLOAT, 103: {"Hz": 5000, "Hz_SF": -2}})
    async with opened(inverter) as device:
        assert (await device.sample()).values[Q.ACTIVE_POWER_WATTS] == 1250.5


async def test_what_has_no_power_measures_none() -> None:
    async with opened(Inverter({**SOLAR, 103: {"Hz": 5000, "Hz_SF": -2}})) as device:
        reading = await device.sample()
        can_measure = device.capability.can_measure

    assert reading.values == {Q.FREQUENCY_HERTZ: 50}
    assert not can_measure


@pytest.mark.parametrize("base", [0, 40000, 50000])
async def test_a_map_is_found_wherever_it_begins(base: int) -> None:
    async with opened(Inverter(BATTERY, base=base)) as device:
        assert device.capability.can_measure


@silently
@pytest.mark.parametrize("base", [0, 40000, 50000])
async def test_a_map_is_found_beyond_silence(base: int) -> None:
    async with opened(Inverter(BATTERY, base=base, beyond=None), is_silent=True) as device:
        assert device.capability.can_measure


async def test_a_map_at_another_place_is_found_if_it_is_told() -> None:
    async with opened(Inverter(BATTERY, base=30_000), baseRegister=30_000) as device:
        assert device.capability.can_measure
    with pytest.raises(DeviceRefusedError, match="no SunSpec map"):
        async with opened(Inverter(BATTERY), baseRegister=30_000):
            pass


async def test_a_map_may_end_without_a_mark() -> None:
    await ends_without_a_mark(ExcCodes.ILLEGAL_ADDRESS)


@silently
async def test_a_map_may_end_in_silence() -> None:
    await ends_without_a_mark(None)


async def ends_without_a_mark(beyond: ExcCodes | None) -> None:
    inverter = Inverter(BATTERY, beyond=beyond)
    del inverter.registers[-2:]
    async with opened(inverter, is_silent=beyond is None) as device:
        assert device.capability.modes == {"ActivePower", "GenerationLimit", "CeaseToEnergize"}


@given(data=st.binary(min_size=400, max_size=400))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_whatever_is_in_the_registers_what_is_good_is_there(data: bytes) -> None:
    inverter = Inverter(BATTERY)
    async with opened(inverter) as device:
        good = await device.sample()
        words = struct.unpack(">200H", data)
        kept = {
            inverter.at(701, name) - inverter.base
            for name in ("ID", "L", "W", "W_SF", "LNV", "V_SF")
        }
        start = inverter.at(701, "ID") - inverter.base
        length = sum(point.registers for point in points_of(701).values())
        for at in range(start, start + length):
            if at not in kept:
                inverter.registers[at] = words[at - start]
        reading = await device.sample()

    bad = {each.quantity for each in reading.bad_points}
    assert not bad & set(reading.values)
    for quantity in (Q.ACTIVE_POWER_WATTS, Q.VOLTAGE_VOLTS, Q.STATE_OF_CHARGE_PERCENT):
        assert reading.values[quantity] == good.values[quantity]
