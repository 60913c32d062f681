"""Devices with a profile on real Modbus TCP: what they offer, are told and make of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.agent import lines
from tests.agent.fakes import T0, FakeClock
from tests.agent.modbus.registers import Registers, battery, charger

from derops.errors import DeviceRefusedError, DeviceTimeoutError, DeviceUnreachableError
from derops.wire.v1 import agent_pb2
from derops_agent.drivers.modbus import ProfiledDevice, open_modbus
from derops_agent.ports import Reversion, Setpoints

Q = agent_pb2.Quantity
PROFILES = Path(__file__).resolve().parents[3] / "examples" / "profiles"
Line: type[lines.Line] = lines.PymodbusLine


@pytest.fixture(params=lines.LINES, autouse=True)
def on_servers_of_two_origins(request: pytest.FixtureRequest) -> None:
    global Line
    Line = request.param


@asynccontextmanager
async def opened(
    registers: Registers, profile: Path = PROFILES / "battery.yaml", unit_id: int = 1
) -> AsyncIterator[ProfiledDevice]:
    async with Line({1: registers}) as line:
        host, port = line.address
        options = {"host": host, "port": port, "unitId": unit_id, "profile": str(profile)}
        device = await open_modbus(options | {"timeoutSeconds": 0.8}, FakeClock())
        yield device
        await device.close()


@asynccontextmanager
async def opened_charger(registers: Registers) -> AsyncIterator[ProfiledDevice]:
    async with opened(registers, PROFILES / "ev-charger.yaml") as device:
        yield device


async def test_a_battery_offers_what_its_profile_says() -> None:
    async with opened(battery()) as device:
        capability = device.capability

    assert capability.modes == {"ActivePower", "GenerationLimit", "CeaseToEnergize"}
    assert (capability.driver, capability.firmware) == ("modbus", "Example battery")
    assert (capability.max_injection_watts, capability.max_absorption_watts) == (10_000, 8_000)
    assert capability.can_measure
    assert capability.reversion


async def test_a_charger_offers_what_its_profile_says() -> None:
    async with opened_charger(charger()) as device:
        capability = device.capability

    assert capability.modes == {"LoadLimit"}
    assert (capability.max_injection_watts, capability.max_absorption_watts) == (0, 22_080)


async def test_a_sample_has_units_signs_and_leaves_out_what_is_absent() -> None:
    registers = battery()
    async with opened(registers) as device:
        reading = await device.sample()
        registers.input[20] = 3
        local = (await device.sample()).local_control

    assert reading.at_us == T0
    assert reading.values == {
        Q.ACTIVE_POWER_WATTS: -1500,
        Q.STATE_OF_CHARGE_PERCENT: pytest.approx(50.5),
        Q.VOLTAGE_VOLTS: pytest.approx(230.1),
        Q.FREQUENCY_HERTZ: pytest.approx(50),
        Q.ENERGY_INJECTED_WATT_HOURS: 7000,
    }
    assert not reading.local_control
    assert local


async def test_a_power_is_armed_first_and_enabled_last() -> None:
    registers = battery()
    async with opened(registers) as device:
        armed_seconds = await device.write(
            Setpoints(active_power_watts=5000),
            Reversion(after_seconds=90, setpoints=Setpoints(active_power_watts=-100)),
        )
        held = await device.read_setpoints()

    assert armed_seconds == 90
    assert held == Setpoints(active_power_watts=5000)
    assert registers.written == [
        (240, [1]),
        (202, [10]),
        (230, [90]),
        (200, [0x10000 - 500]),
        (201, [2]),
    ]


async def test_the_timer_of_the_device_reverts_it() -> None:
    registers = battery()
    async with opened(registers) as device:
        fallback = Setpoints(active_power_watts=0)
        reversion = Reversion(after_seconds=90, setpoints=fallback)
        wanted = Setpoints(active_power_watts=5000, max_generation_watts=2000)
        assert await device.write(wanted, reversion) == 90
        registers.now_seconds = 89
        assert await device.read_setpoints() == wanted
        registers.now_seconds = 90
        assert await device.read_setpoints() == fallback


async def test_a_timer_is_set_to_no_more_than_the_device_takes() -> None:
    async with opened(battery()) as device:
        reversion = Reversion(after_seconds=9000, setpoints=Setpoints())
        assert await device.write(Setpoints(active_power_watts=1), reversion) == 3600


async def test_a_control_without_a_timer_means_that_nothing_guards_the_whole() -> None:
    async with opened(battery()) as device:
        reversion = Reversion(after_seconds=90, setpoints=Setpoints())
        off = Setpoints(active_power_watts=1000, energized=False)
        assert await device.write(off, reversion) is None


async def test_all_setpoints_are_written_and_released() -> None:
    registers = battery()
    wanted = Setpoints(active_power_watts=-700, max_generation_watts=2500, energized=False)
    async with opened(registers) as device:
        await device.write(wanted, Reversion(after_seconds=90, setpoints=Setpoints()))
        assert await device.read_setpoints() == wanted
        assert registers.written[:4] == [(240, [1]), (202, [0]), (230, [90]), (220, [0])], (
            "what switches off comes before values"
        )
        registers.written.clear()
        await device.write(Setpoints())
        assert await device.read_setpoints() == Setpoints()
        assert registers.written == [(230, [0]), (211, [0]), (201, [0]), (220, [1]), (240, [0])]
        registers.written.clear()
        await device.write(Setpoints())
        assert registers.written == [], "what is released is not touched"


async def test_a_limit_without_an_enable_is_released_by_its_value() -> None:
    registers = charger()
    async with opened_charger(registers) as device:
        assert await device.read_setpoints() == Setpoints()
        await device.write(Setpoints(max_load_watts=7000))
        assert await device.read_setpoints() == Setpoints(max_load_watts=6900)
        await device.write(Setpoints())
        assert registers.holding[1000] == 32
        assert await device.read_setpoints() == Setpoints()


async def test_a_setpoint_that_equals_the_release_is_held_if_it_was_asked_for() -> None:
    async with opened_charger(charger()) as device:
        await device.write(Setpoints(max_load_watts=22_080))
        assert await device.read_setpoints() == Setpoints(max_load_watts=22_080)
        await device.write(Setpoints())
        assert await device.read_setpoints() == Setpoints()


async def test_a_charger_falls_back_by_its_own_timer() -> None:
    registers = charger()
    async with opened_charger(registers) as device:
        reversion = Reversion(after_seconds=95, setpoints=Setpoints())
        armed_seconds = await device.write(Setpoints(max_load_watts=7000), reversion)
        registers.now_seconds = 90
        held = await device.read_setpoints()

    assert armed_seconds == 90, "what the register holds, in its steps"
    assert held == Setpoints()


async def test_a_fallback_of_an_earlier_dispatch_does_not_stay() -> None:
    registers = battery()
    async with opened(registers) as device:
        for fallback in (Setpoints(active_power_watts=-100), Setpoints()):
            reversion = Reversion(after_seconds=90, setpoints=fallback)
            await device.write(Setpoints(active_power_watts=5000), reversion)
        registers.now_seconds = 90
        assert await device.read_setpoints() == Setpoints(active_power_watts=0)


async def test_a_device_that_obeys_somebody_else_is_left_alone() -> None:
    registers = battery()
    registers.holding |= {201: 2, 200: 100, 240: 0}
    async with opened(registers) as device:
        await device.write(Setpoints())
        assert registers.written == []
        assert await device.read_setpoints() == Setpoints()
        await device.write(Setpoints(max_generation_watts=5000))
        assert (201, [0]) in registers.written, "what it was left with counts from then on"
        assert await device.read_setpoints() == Setpoints(max_generation_watts=5000)


async def test_a_time_below_one_step_of_the_timer_arms_nothing() -> None:
    async with opened_charger(charger()) as device:
        reversion = Reversion(after_seconds=9, setpoints=Setpoints())
        assert await device.write(Setpoints(max_load_watts=7000), reversion) is None


async def test_a_device_that_takes_every_write_and_holds_none_is_seen() -> None:
    registers = battery()
    registers.ignores_values = True
    async with opened(registers) as device:
        await device.write(Setpoints(active_power_watts=5000))
        assert await device.read_setpoints() == Setpoints()


async def test_a_mode_that_it_has_not_is_refused_before_anything_is_written() -> None:
    registers = charger()
    async with opened_charger(registers) as device:
        with pytest.raises(DeviceRefusedError, match="no ActivePower; its profile has: LoadLimit"):
            await device.write(Setpoints(active_power_watts=1, max_load_watts=1))

    assert registers.written == []


async def test_a_value_that_no_register_holds_is_refused_before_anything_is_written() -> None:
    registers = battery()
    async with opened(registers) as device:
        with pytest.raises(DeviceRefusedError, match=r"register 200: .* int16 cannot hold"):
            await device.write(Setpoints(active_power_watts=400_000))

    assert registers.written == []


async def test_a_rating_that_cannot_be_is_told() -> None:
    registers = battery()
    registers.holding |= {100: 0, 101: 0}
    with pytest.raises(DeviceRefusedError, match="ratings are 0 W"):
        async with opened(registers):
            pass


async def test_a_register_that_the_device_does_not_have_is_told() -> None:
    registers = battery()
    del registers.holding[211]
    with pytest.raises(
        DeviceRefusedError, match=r"read of 1 holding registers at 211.*exception 2"
    ):
        async with opened(registers):
            pass


async def test_a_device_that_is_gone_before_anything_was_written_cannot_have_acted() -> None:
    registers = battery()
    line = Line({1: registers})
    await line.start()
    options = {"host": line.address.host, "port": line.address.port}
    profile = {"profile": str(PROFILES / "battery.yaml"), "timeoutSeconds": 0.8}
    device = await open_modbus(options | profile, FakeClock())
    await line.stop()
    with pytest.raises(DeviceUnreachableError):
        await device.write(Setpoints(active_power_watts=5000))
    await device.close()

    assert registers.written == []


async def test_a_wrong_unit_id_may_pass() -> None:
    with pytest.raises(DeviceTimeoutError, match="unit 2"):
        async with opened(battery(), unit_id=2):
            pass
