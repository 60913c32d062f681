"""The SunSpec driver on real Modbus TCP: what it offers, writes and makes of the answers."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from pymodbus.constants import ExcCodes
from tests.agent import lines
from tests.agent.fakes import T0, FakeClock
from tests.agent.lines import Answer
from tests.agent.sunspec.inverter import BASE, BATTERY, SOLAR, STORAGE, Inverter

from derops.errors import DeviceRefusedError, DeviceTimeoutError, DeviceUnreachableError
from derops.wire.v1 import agent_pb2
from derops_agent.drivers.modbus_tcp import Table
from derops_agent.drivers.sunspec import SunSpecDevice, open_sunspec
from derops_agent.ports import ReadBack, Resolution, Reversion, Setpoints

Q = agent_pb2.Quantity
TIMEOUT_SECONDS = 0.8
Line: type[lines.Line] = lines.PymodbusLine


@pytest.fixture(params=lines.LINES, autouse=True)
def on_servers_of_two_origins(request: pytest.FixtureRequest) -> None:
    global Line
    Line = request.param


@asynccontextmanager
async def opened(inverter: Inverter, **options: Any) -> AsyncIterator[SunSpecDevice]:
    async with Line({1: inverter}) as line:
        device = await connect(line, **options)
        yield device
        await device.close()


async def connect(line: lines.Line, **options: Any) -> SunSpecDevice:
    host, port = line.address
    facts = {"host": host, "port": port, "timeoutSeconds": TIMEOUT_SECONDS, **options}
    return await open_sunspec(facts, FakeClock())


async def test_a_battery_offers_what_its_models_have() -> None:
    async with opened(Inverter(BATTERY)) as device:
        capability = device.capability

    assert capability.modes == {"ActivePower", "GenerationLimit", "CeaseToEnergize"}
    assert (capability.driver, capability.firmware) == ("sunspec", "Maker Battery 10 1.2")
    assert (capability.max_injection_watts, capability.max_absorption_watts) == (10_000, 8_000)
    assert capability.can_measure
    assert capability.reversion


async def test_an_older_inverter_offers_what_its_models_have() -> None:
    async with opened(Inverter(SOLAR)) as device:
        capability = device.capability

    assert capability.modes == {"GenerationLimit", "CeaseToEnergize"}
    assert (capability.max_injection_watts, capability.max_absorption_watts) == (5_000, 0)


async def test_a_sample_has_units_and_leaves_out_what_is_not_implemented() -> None:
    inverter = Inverter(BATTERY)
    async with opened(inverter) as device:
        await device.write(Setpoints(active_power_watts=-3000))
        reading = await device.sample()

    assert reading.at_us == T0
    assert reading.values == {
        Q.ACTIVE_POWER_WATTS: -3000,
        Q.VOLTAGE_VOLTS: pytest.approx(230.1),
        Q.FREQUENCY_HERTZ: pytest.approx(50),
        Q.ENERGY_INJECTED_WATT_HOURS: 7_000_000,
        Q.STATE_OF_CHARGE_PERCENT: pytest.approx(50.5),
    }
    assert not reading.local_control


async def test_local_control_is_seen() -> None:
    inverter = Inverter(BATTERY)
    async with opened(inverter) as device:
        inverter.set(715, "LocRemCtl", 1)
        assert (await device.sample()).local_control


async def test_a_power_is_armed_first_and_enabled_last() -> None:
    inverter = Inverter(BATTERY)
    async with opened(inverter) as device:
        armed_seconds = await device.write(
            Setpoints(active_power_watts=5000),
            Reversion(after_seconds=90, setpoints=Setpoints(active_power_watts=-100)),
        )
        held = await device.read_setpoints()

    assert armed_seconds == 90
    assert held == Setpoints(active_power_watts=5000)
    assert inverter.written == [
        (704, "WSetRvrt", -100),
        (704, "WSetEnaRvrt", 1),
        (704, "WSetRvrtTms", 90),
        (704, "WSetMod", 1),
        (704, "WSet", 5000),
        (704, "WSetEna", 1),
    ]


async def test_the_timer_of_the_device_reverts_it_to_the_fallback() -> None:
    inverter = Inverter(BATTERY)
    async with opened(inverter) as device:
        zero = Setpoints(active_power_watts=0)
        await device.write(
            Setpoints(active_power_watts=5000, max_generation_watts=2000),
            Reversion(after_seconds=90, setpoints=zero),
        )
        inverter.now_seconds = 89
        assert (await device.read_setpoints()).active_power_watts == 5000
        inverter.now_seconds = 90
        assert await device.read_setpoints() == zero


async def test_all_setpoints_are_written_and_released() -> None:
    inverter = Inverter(BATTERY)
    wanted = Setpoints(active_power_watts=-700, max_generation_watts=2500, energized=False)
    async with opened(inverter) as device:
        await device.write(wanted)
        assert await device.read_setpoints() == wanted
        assert inverter.written[0] == (703, "ES", 0)
        await device.write(Setpoints())
        assert await device.read_setpoints() == Setpoints()
        assert inverter.written[-1] == (703, "ES", 1)
        writes = len(inverter.written)
        await device.write(Setpoints())
        assert len(inverter.written) == writes, "what is off is not touched"


async def test_a_switch_without_a_timer_means_that_nothing_guards_the_whole() -> None:
    async with opened(Inverter(BATTERY)) as device:
        reversion = Reversion(after_seconds=90, setpoints=Setpoints())
        off = Setpoints(active_power_watts=1000, energized=False)
        assert await device.write(off, reversion) is None


async def test_a_limit_is_rounded_down_to_what_the_register_holds() -> None:
    inverter = Inverter(SOLAR)
    async with opened(inverter) as device:
        await device.write(Setpoints(max_generation_watts=2999))
        assert await device.read_setpoints() == Setpoints(max_generation_watts=2950)


@pytest.mark.parametrize(
    ("models", "mode", "resolution"),
    [
        (
            BATTERY,
            "ActivePower",
            Resolution(step_watts=1, least_watts=-(2**31 - 1), most_watts=2**31 - 1),
        ),
        (BATTERY, "GenerationLimit", Resolution(step_watts=10, least_watts=0, most_watts=10_000)),
        (SOLAR, "GenerationLimit", Resolution(step_watts=50, least_watts=0, most_watts=5_000)),
        (
            STORAGE,
            "ActivePower",
            Resolution(step_watts=0.4, least_watts=-13_106.8, most_watts=13_106.8),
        ),
    ],
)
async def test_steps_are_those_of_scale_factors_and_ranges_those_of_types(
    models: dict[int, dict[str, Any]], mode: str, resolution: Resolution
) -> None:
    async with opened(Inverter(models)) as device:
        found = device.capability.resolutions[mode]

    assert found.step_watts == pytest.approx(resolution.step_watts)
    assert found.least_watts == pytest.approx(resolution.least_watts)
    assert found.most_watts == pytest.approx(resolution.most_watts)


@pytest.mark.parametrize(
    ("models", "place", "asked"),
    [
        (BATTERY, (704, "WSet_SF", 3), Setpoints(active_power_watts=2500)),
        (BATTERY, (704, "WMaxLimPct_SF", 1), Setpoints(max_generation_watts=2500)),
        (SOLAR, (123, "WMaxLimPct_SF", 1), Setpoints(max_generation_watts=2600)),
        (STORAGE, (124, "InOutWRte_SF", 1), Setpoints(active_power_watts=-1500)),
    ],
)
async def test_a_scale_factor_that_has_changed_makes_no_other_value_of_a_setpoint(
    models: dict[int, dict[str, Any]], place: tuple[int, str, int], asked: Setpoints
) -> None:
    inverter = Inverter(models)
    async with opened(inverter) as device:
        inverter.set(*place)
        with pytest.raises(
            DeviceRefusedError, match=r"W would be written as .* W, and the two must differ by less"
        ):
            await device.write(asked)

    assert inverter.written == []


async def test_a_limit_above_the_most_power_is_lowered_to_that() -> None:
    inverter = Inverter(SOLAR)
    async with opened(inverter) as device:
        await device.write(Setpoints(max_generation_watts=4_000_000))
        assert await device.read_setpoints() == Setpoints(max_generation_watts=5_000)


async def test_the_older_models_fall_back_to_off_within_their_register() -> None:
    inverter = Inverter(SOLAR)
    async with opened(inverter) as device:
        reversion = Reversion(after_seconds=100_000, setpoints=Setpoints(max_generation_watts=10))
        armed = await device.write(Setpoints(max_generation_watts=1000, energized=False), reversion)
        inverter.now_seconds = 65_534
        held = await device.read_setpoints()

    assert armed == 65_534
    assert held == Setpoints()


async def test_a_battery_without_model_704_is_told_a_window_without_width() -> None:
    inverter = Inverter(STORAGE)
    async with opened(inverter) as device:
        reversion = Reversion(after_seconds=90, setpoints=Setpoints(active_power_watts=100))
        armed_seconds = await device.write(Setpoints(active_power_watts=-1000), reversion)
        held = await device.read_setpoints()
        written = list(inverter.written)
        inverter.now_seconds = 90
        reverted = await device.read_setpoints()

    assert device.capability.modes == {"ActivePower"}
    assert (armed_seconds, held.active_power_watts) == (90, -1000)
    assert written == [
        (124, "InOutWRte_RvrtTms", 90),
        (124, "OutWRte", -2500),
        (124, "InWRte", 2500),
        (124, "StorCtl_Mod", 3),
    ]
    assert reverted == Setpoints()


async def test_rates_that_only_limit_are_not_a_setpoint() -> None:
    inverter = Inverter(STORAGE)
    async with opened(inverter) as device:
        inverter.set(124, "StorCtl_Mod", 2)
        await device.write(Setpoints())
        assert inverter.written == [], "a limit of somebody else stays"
        inverter.set(124, "StorCtl_Mod", 3)
        assert await device.read_setpoints() == Setpoints()
        await device.write(Setpoints())
        assert inverter.written == [(124, "StorCtl_Mod", 0)]


async def test_a_battery_with_both_is_told_by_model_704() -> None:
    inverter = Inverter({**BATTERY, 124: STORAGE[124]})
    async with opened(inverter) as device:
        await device.write(Setpoints(active_power_watts=-1000))

    assert {model_id for model_id, _, _ in inverter.written} == {704}


async def test_a_device_that_keeps_the_old_value_is_switched_off_first() -> None:
    inverter = Inverter(BATTERY, keeps_value_while_enabled=True)
    async with opened(inverter, toggleEnable=True) as device:
        await device.write(Setpoints(max_generation_watts=5000))
        await device.write(Setpoints(max_generation_watts=4000))
        assert (await device.read_setpoints()).max_generation_watts == 4000


async def test_a_device_that_says_yes_and_does_nothing_is_seen_by_reading_back() -> None:
    async with opened(Inverter(BATTERY, ignores_values=True)) as device:
        await device.write(Setpoints(active_power_watts=5000))
        assert await device.read_setpoints() == Setpoints()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (ExcCodes.ILLEGAL_FUNCTION, DeviceRefusedError),
        (ExcCodes.ILLEGAL_ADDRESS, DeviceRefusedError),
        (ExcCodes.ILLEGAL_VALUE, DeviceRefusedError),
        (ExcCodes.DEVICE_FAILURE, DeviceTimeoutError),
        (ExcCodes.DEVICE_BUSY, DeviceTimeoutError),
        (ExcCodes.GATEWAY_NO_RESPONSE, DeviceTimeoutError),
    ],
)
async def test_an_exception_is_a_no_or_may_pass(code: ExcCodes, error: type[Exception]) -> None:
    inverter = Inverter(BATTERY)
    async with opened(inverter) as device:
        inverter.refuse = code
        with pytest.raises(error, match=rf"exception {code.value} ") as raised:
            await device.write(Setpoints(active_power_watts=5000))

    assert not isinstance(raised.value, DeviceUnreachableError), "some of it may have been written"
    if isinstance(raised.value, DeviceTimeoutError):
        assert raised.value.answered == (code is not ExcCodes.GATEWAY_NO_RESPONSE)


async def test_a_mode_that_it_has_not_is_refused_before_anything_is_written() -> None:
    inverter = Inverter(SOLAR)
    async with opened(inverter) as device:
        with pytest.raises(DeviceRefusedError, match=r"ActivePower.*CeaseToEnergize"):
            await device.write(Setpoints(active_power_watts=1, max_generation_watts=1))

    assert inverter.written == []


async def test_a_value_that_no_register_holds_is_refused() -> None:
    async with opened(Inverter(BATTERY)) as device:
        with pytest.raises(DeviceRefusedError, match="WSet of model 704 cannot hold"):
            await device.write(Setpoints(active_power_watts=2**31))


async def test_a_silent_device_times_out_and_its_late_answer_is_nobodys() -> None:
    inverter = Inverter(BATTERY)
    async with opened(inverter) as device:
        inverter.hold = asyncio.Event()
        with pytest.raises(DeviceTimeoutError):
            await device.sample()
        inverter.hold.set()
        assert (await device.read_setpoints()) == Setpoints()


async def test_a_device_that_is_gone_before_anything_was_written_cannot_have_acted() -> None:
    inverter = Inverter(BATTERY)
    async with Line({1: inverter}) as line:
        device = await connect(line)
        await line.stop()
        with pytest.raises(DeviceUnreachableError):
            await device.write(Setpoints(active_power_watts=5000))
        await device.close()

    assert inverter.written == []


async def test_a_link_that_drops_is_dialled_again() -> None:
    inverter = Inverter(BATTERY)
    async with Line({1: inverter}) as line:
        device = await connect(line)
        await line.stop()
        with pytest.raises(DeviceTimeoutError):
            await device.sample()
        await line.start()
        assert (await device.sample()).values[Q.FREQUENCY_HERTZ] == pytest.approx(50)
        await device.close()


async def test_units_on_one_line_do_not_mix() -> None:
    first, second = Inverter(BATTERY), Inverter(BATTERY)
    async with Line({1: first, 7: second}) as line:
        devices = [await connect(line), await connect(line, unitId=7)]
        await asyncio.gather(
            *(
                device.write(Setpoints(active_power_watts=watts))
                for device, watts in zip(devices, (1000, -2000), strict=True)
            )
        )
        held = [await device.read_setpoints() for device in devices]
        for device in devices:
            await device.close()

    assert [each.active_power_watts for each in held] == [1000, -2000]
    assert (first.get(704, "WSet"), second.get(704, "WSet")) == (1000, -2000)


async def test_units_on_one_line_keep_their_own_timeouts() -> None:
    first, second = Inverter(BATTERY), Inverter(BATTERY)
    async with Line({1: first, 7: second}) as line:
        devices = [
            await connect(line, timeoutSeconds=5),
            await connect(line, unitId=7, timeoutSeconds=1),
        ]
        second.hold = asyncio.Event()
        async with asyncio.timeout(4):  # less than that of the one that was opened first
            with pytest.raises(DeviceTimeoutError, match=r"connected, but no answer within 1 s"):
                await devices[1].sample()
        second.hold.set()
        for device in devices:
            await device.close()


async def test_a_wrong_unit_id_is_silence() -> None:
    async with Line({1: Inverter(BATTERY)}) as line:
        with pytest.raises(DeviceTimeoutError) as silence:
            await connect(line, unitId=2, timeoutSeconds=0.2)

    assert f"at 40000, unit 2, {line.address}: " in str(silence.value)  # then the raw answer


async def test_a_host_that_does_not_answer_is_no_wrong_unit_id() -> None:
    with socket.socket() as full, socket.socket() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting.connect(full.getsockname())  # now it takes nobody, as behind a firewall that drops
        host, port = full.getsockname()
        options = {"host": host, "port": port, "timeoutSeconds": 0.2}
        with pytest.raises(DeviceTimeoutError, match=r"no connection within 0\.2 s"):
            await open_sunspec(options, FakeClock())


async def test_nobody_there_is_a_timeout() -> None:
    line = Line({1: Inverter(BATTERY)})
    await line.start()
    await line.stop()
    with pytest.raises(DeviceTimeoutError, match="no connection"):
        await connect(line)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({702: {"W_SF": 0}}, "most power is None"),
        ({702: {**BATTERY[702], "W_SF": 300}}, "W_SF of model 702 is 300"),
    ],
)
async def test_nonsense_in_the_ratings_is_told_with_its_value(
    changes: dict[int, Any], words: str
) -> None:
    async with Line({1: Inverter({**BATTERY, **changes})}) as line:
        with pytest.raises(DeviceRefusedError, match=words):
            await connect(line)


async def test_a_name_that_nobody_can_read_does_not_keep_a_device_away() -> None:
    inverter = Inverter(BATTERY)
    for register, value in ((4, 0x4DE9), (5, 0x0003), (19, 0xFFFF)):  # Latin-1, control, filling
        inverter.registers[register] = value
    async with opened(inverter) as device:
        assert device.capability.firmware == "M\ufffdr\ufffd\ufffd Battery 10 1.2"


async def test_what_is_no_sunspec_device_says_what_was_found() -> None:
    inverter = Inverter(BATTERY)
    inverter.registers[0] = 0x1234
    async with Line({1: inverter}) as line:
        with pytest.raises(DeviceRefusedError, match=f"{BASE} holds 0x12346e53"):
            await connect(line)


async def test_lengths_that_lead_nowhere_are_told() -> None:
    inverter = Inverter({1: {}})
    inverter.registers[2:4] = [0, 0xFFFE]
    inverter.registers += [0] * 300
    async with Line({1: inverter}) as line:
        with pytest.raises(DeviceRefusedError):
            await connect(line)


@dataclass
class LateInverter(Inverter):
    """Shows what it held before, while that is kept here."""

    shown: list[int] = field(default_factory=list)

    async def answer(
        self, table: Table, address: int, count: int, values: list[int] | None
    ) -> Answer:
        answer = await super().answer(table, address, count, values)
        first = address - BASE
        return self.shown[first : first + count] if self.shown and values is None else answer


@pytest.mark.parametrize(
    ("models", "model_id", "point"), [(BATTERY, 704, "WSetEna"), (STORAGE, 124, "StorCtl_Mod")]
)
async def test_what_is_not_shown_yet_is_switched_off_all_the_same(
    models: Mapping[int, Mapping[str, Any]], model_id: int, point: str
) -> None:
    inverter = LateInverter(models)
    inverter.shown = list(inverter.registers)
    async with opened(inverter) as device:
        await device.write(Setpoints(active_power_watts=1000))
        assert inverter.get(model_id, point)
        await device.write(Setpoints())

    assert inverter.get(model_id, point) == 0


async def test_an_option_says_how_late_a_device_shows_it() -> None:
    late = {"patienceSeconds": 12, "mostWrites": 3}
    async with opened(Inverter(BATTERY), readBack=late) as device:
        read_back = device.capability.read_back
    assert read_back == ReadBack(patience_seconds=12, most_writes=3)
