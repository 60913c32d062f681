"""One bad point of a device with a profile is one absent quantity, on real Modbus TCP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymodbus.constants import ExcCodes
from tests.agent import lines
from tests.agent.fakes import FakeClock
from tests.agent.modbus.registers import Registers, battery
from tests.agent.modbus.test_device import PROFILES

from derops.errors import DeviceTimeoutError
from derops.wire.v1 import agent_pb2
from derops_agent.asset.device import GuardedDevice
from derops_agent.drivers.modbus import ProfiledDevice, open_modbus
from derops_agent.drivers.modbus_tcp import Table
from derops_agent.ports import Reading, Setpoints

Q = agent_pb2.Quantity
GOOD = {
    Q.ACTIVE_POWER_WATTS: -1500,
    Q.STATE_OF_CHARGE_PERCENT: pytest.approx(50.5),
    Q.VOLTAGE_VOLTS: pytest.approx(230.1),
    Q.FREQUENCY_HERTZ: pytest.approx(50),
    Q.ENERGY_INJECTED_WATT_HOURS: 7000,
}
Line: type[lines.Line] = lines.PymodbusLine


@pytest.fixture(params=lines.LINES, autouse=True)
def on_servers_of_two_origins(request: pytest.FixtureRequest) -> None:
    global Line
    Line = request.param


# The other server holds up a whole connection for one request that its device does not answer.
silently = pytest.mark.parametrize("on_servers_of_two_origins", [lines.PymodbusLine], indirect=True)


@asynccontextmanager
async def opened(
    registers: Registers,
    clock: FakeClock,
    profile: Path = PROFILES / "battery.yaml",
    *,
    is_silent: bool = False,
) -> AsyncIterator[ProfiledDevice]:
    async with Line({1: registers}) as line:
        host, port = line.address
        # Short only where it is waited for in vain: a busy machine may be slow to answer.
        seconds = 0.5 if is_silent else 2.0
        options = {"host": host, "port": port, "profile": str(profile), "timeoutSeconds": seconds}
        device = await open_modbus(options, clock)
        yield device
        await device.close()
        registers.over.set()


def without(*quantities: int) -> dict[int, object]:
    return {each: value for each, value in GOOD.items() if each not in quantities}


def names(reading: Reading) -> list[str]:
    return [bad.name for bad in reading.bad_points]


@pytest.mark.parametrize(
    ("change", "name", "quantity", "raw", "words"),
    [
        (
            {8: 0x7FC0},
            "energyInjectedWattHours",
            Q.ENERGY_INJECTED_WATT_HOURS,
            "0x7fc00000",
            "register 8 holds 0x7fc00000, no number",
        ),
        (
            {8: 0x7F80},
            "energyInjectedWattHours",
            Q.ENERGY_INJECTED_WATT_HOURS,
            "0x7f800000",
            "register 8 holds 0x7f800000, no number",
        ),
        (
            {8: 0xC0E0},
            "energyInjectedWattHours",
            Q.ENERGY_INJECTED_WATT_HOURS,
            "0xc0e00000",
            "injected energy is -7000 Wh; it can be 0 to 1e+15 Wh",
        ),
        (
            {2: 1010},
            "stateOfChargePercent",
            Q.STATE_OF_CHARGE_PERCENT,
            "0x03f2",
            "state of charge is 101 %; it can be 0 to 100 %",
        ),
        (
            {4: 0xFFFF},
            "frequencyHertz",
            Q.FREQUENCY_HERTZ,
            "0xffff",
            "frequency is 655.35 Hz; it can be 0 to 500 Hz",
        ),
        (
            {1: 1},
            "activePowerWatts",
            Q.ACTIVE_POWER_WATTS,
            "0x05dc0001",
            "power is -67036 W; it is rated 10000 W",
        ),
    ],
)
async def test_nonsense_is_one_absent_quantity_with_its_raw_value(
    change: dict[int, int], name: str, quantity: int, raw: str, words: str
) -> None:
    registers = battery()
    async with opened(registers, FakeClock()) as device:
        registers.input |= change
        reading = await device.sample()
        registers.input |= battery().input
        after = await device.sample()

    assert reading.values == without(quantity)
    (bad,) = reading.bad_points
    assert (bad.name, bad.quantity, bad.raw) == (name, quantity, raw)
    assert words in bad.problem
    assert (after.values, after.bad_points) == (GOOD, ())


async def test_nonsense_does_not_keep_a_device_from_being_opened() -> None:
    registers = battery()
    registers.input |= {1: 1}
    async with opened(registers, FakeClock()) as device:
        at_first = device.capability.can_measure
        registers.input |= {1: 0}
        await device.sample()
        later = device.capability.can_measure

    assert not at_first, "it has measured no power yet"
    assert later


@pytest.mark.parametrize("code", [ExcCodes.ILLEGAL_ADDRESS, ExcCodes.DEVICE_FAILURE])
async def test_a_register_that_is_refused_alone_leaves_the_others_and_few_questions(
    code: ExcCodes,
) -> None:
    registers, clock = battery(), FakeClock()
    async with opened(registers, clock) as device:
        registers.asked.clear()
        await device.sample()
        usual = len(registers.asked)
        registers.instead = {3: code}
        reading = await device.sample()
        registers.asked.clear()
        again = await device.sample()
        asked = len(registers.asked)
        registers.instead = {}
        for _ in range(5):
            clock.pass_seconds(1)
            after = await device.sample()
        registers.asked.clear()
        await device.sample()

    assert reading.values == again.values == without(Q.VOLTAGE_VOLTS)
    assert names(reading) == names(again) == ["voltageVolts"]
    assert f"exception {code.value}" in again.bad_points[0].problem
    assert asked == usual + 1, "what is left and right of it"
    assert (after.values, after.bad_points) == (GOOD, ())
    assert len(registers.asked) == usual


async def test_a_device_that_refuses_a_run_as_a_whole_is_asked_for_its_parts_from_then_on() -> None:
    registers = battery()
    answer = registers.answer

    async def answer_at_most_three(
        table: Table, address: int, count: int, values: list[int] | None
    ) -> lines.Answer:
        if table == "input" and count > 3:
            registers.asked.append((table, address, count))
            return ExcCodes.ILLEGAL_VALUE
        return await answer(table, address, count, values)

    registers.answer = answer_at_most_three  # type: ignore[method-assign]
    async with opened(registers, FakeClock()) as device:
        registers.asked.clear()
        reading = await device.sample()

    assert (reading.values, reading.bad_points) == (GOOD, ())
    assert all(count <= 3 for _, _, count in registers.asked), "it has learnt"


@silently
async def test_a_run_that_is_not_answered_is_absent_and_does_not_slow_the_others() -> None:
    registers, clock = battery(), FakeClock()
    async with opened(registers, clock, is_silent=True) as device:
        registers.instead = {8: None}
        reading = await device.sample()
        registers.asked.clear()
        again = await device.sample()
        first = list(registers.asked)
        questions = 0
        for _ in range(60):
            clock.pass_seconds(1)
            registers.asked.clear()
            assert (await device.sample()).values == without(Q.ENERGY_INJECTED_WATT_HOURS)
            questions += any(start <= 8 < start + count for _, start, count in registers.asked)
        registers.instead = {}
        clock.pass_seconds(60)
        after = await device.sample()

    assert reading.values == again.values == without(Q.ENERGY_INJECTED_WATT_HOURS)
    assert names(again) == ["energyInjectedWattHours"]
    assert "no answer within 0.5 s" in again.bad_points[0].problem
    assert not any(start == 8 for _, start, _ in first)
    assert questions <= 6, "ever more rarely"
    assert (after.values, after.bad_points) == (GOOD, ())


@silently
async def test_one_register_that_silences_a_run_is_found() -> None:
    registers, clock = battery(), FakeClock()
    async with opened(registers, clock, is_silent=True) as device:
        registers.instead = {3: None}
        with pytest.raises(DeviceTimeoutError):  # it may be the unit that is silent
            await device.sample()
        for _ in range(20):
            reading = await device.sample()
            clock.pass_seconds(1)

    assert reading.values == without(Q.VOLTAGE_VOLTS)
    assert names(reading) == ["voltageVolts"]


@silently
async def test_one_register_that_silences_the_only_run_is_found(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(
        "name: one run\n"
        "ratings: {maxInjectionWatts: {watts: 10000}}\n"
        "measurements:\n"
        "  activePowerWatts: {address: 0, type: int32, wordOrder: little, table: input}\n"
        "  stateOfChargePercent: {address: 2, type: uint16, scale: 0.1, table: input}\n"
        "  voltageVolts: {address: 3, type: uint16, scale: 0.1, table: input}\n"
    )
    registers, clock = battery(), FakeClock()
    silences, found = 0, Reading(at_us=0, values={})
    async with opened(registers, clock, profile, is_silent=True) as device:
        registers.instead = {2: None}
        for _ in range(20):
            clock.pass_seconds(1)
            try:
                found = await device.sample()
            except DeviceTimeoutError:
                silences += 1

    assert set(found.values) == {Q.ACTIVE_POWER_WATTS, Q.VOLTAGE_VOLTS}
    assert names(found) == ["stateOfChargePercent"]
    assert silences <= 3


@silently
async def test_a_unit_that_answers_nothing_is_silent_and_asked_little() -> None:
    registers = battery()
    async with opened(registers, FakeClock(), is_silent=True) as device:
        registers.instead = dict.fromkeys(registers.input, None)
        for _ in range(3):
            registers.asked.clear()
            with pytest.raises(DeviceTimeoutError):
                await device.sample()
            assert len(registers.asked) == 1
        registers.instead = {}
        after = await device.sample()

    assert (after.values, after.bad_points) == (GOOD, ())


@silently
async def test_a_unit_of_which_all_was_bad_before_it_fell_silent_is_silent() -> None:
    registers = battery()
    async with opened(registers, FakeClock(), is_silent=True) as device:
        registers.instead = dict.fromkeys(registers.input, ExcCodes.ILLEGAL_ADDRESS)
        reading = await device.sample()
        registers.instead = dict.fromkeys(registers.input, None)
        with pytest.raises(DeviceTimeoutError):
            await device.sample()

    assert reading.values == {}
    assert len(reading.bad_points) == len(GOOD) + 2, "temperature and local control too"


async def test_local_control_that_is_not_told_is_as_it_was_told_last() -> None:
    registers = battery()
    async with opened(registers, FakeClock()) as device:
        registers.input[20] = 1
        before = await device.sample()
        registers.instead = {20: ExcCodes.ILLEGAL_ADDRESS}
        during = await device.sample()

    assert (before.local_control, before.bad_points) == (True, ())
    assert during.local_control
    assert names(during) == ["localControl"]
    assert during.values == GOOD


async def test_nonsense_in_one_control_is_nothing_held_by_that_one(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    text = (PROFILES / "battery.yaml").read_text()
    assert "value: {address: 200, type: int16, scale: 10, sign: -1}" in text
    profile.write_text(
        text.replace(
            "value: {address: 200, type: int16, scale: 10, sign: -1}",
            "value: {address: 300, type: float32}",
        )
    )
    registers = battery()
    registers.holding |= {300: 0, 301: 0}
    async with opened(registers, FakeClock(), profile) as device:
        await device.write(Setpoints(active_power_watts=100, max_generation_watts=2500))
        registers.holding |= {300: 0x7FC0}
        held = await device.read_setpoints()

    assert held == Setpoints(max_generation_watts=2500)


@given(words=st.lists(st.integers(0, 0xFFFF), min_size=8, max_size=8))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_whatever_is_in_the_registers_what_is_good_is_there(words: list[int]) -> None:
    registers = battery()
    async with opened(registers, FakeClock()) as device:
        # Power is good, and all else may be anything.
        registers.input |= dict(zip((2, 3, 4, 5, 8, 9, 20), words, strict=False))
        reading = await device.sample()

    assert reading.values[Q.ACTIVE_POWER_WATTS] == -1500
    told = {bad.quantity for bad in reading.bad_points} | set(reading.values)
    assert not {bad.quantity for bad in reading.bad_points} & set(reading.values)
    expected = set(GOOD) | (set() if words[3] == 0x8000 else {Q.TEMPERATURE_CELSIUS})
    assert told == expected
    if words[0] <= 1000:
        assert reading.values[Q.STATE_OF_CHARGE_PERCENT] == pytest.approx(words[0] / 10)


@silently
async def test_a_time_out_that_is_longer_than_a_sample_takes_costs_few_samples() -> None:
    registers, clock = battery(), FakeClock()
    async with Line({1: registers}) as line:
        host, port = line.address
        profile = str(PROFILES / "battery.yaml")
        options = {"host": host, "port": port, "profile": profile, "timeoutSeconds": 5}
        device = GuardedDevice(await open_modbus(options, clock))
        registers.instead = {8: None}
        first = await device.sample()
        clock.pass_seconds(1)
        second = await device.sample()
        clock.pass_seconds(1)
        third = await device.sample()
        await device.close()
        registers.over.set()

    assert first is None, "its time was over"
    assert second is not None
    assert second.values == without(Q.ENERGY_INJECTED_WATT_HOURS)
    assert third is not None
    assert third.values == without(Q.ENERGY_INJECTED_WATT_HOURS)
