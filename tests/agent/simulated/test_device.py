"""The device as the agent meets it: registers, readings, and a life beyond the process."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.agent.fakes import FakeClock
from tests.agent.simulated.rig import ALL, BATTERY, CHARGE, GENERATOR, POWER, SOLAR, T0, Rig

from derops.errors import DeviceRefusedError
from derops.wire.v1 import agent_pb2
from derops_agent.drivers import open_device
from derops_agent.drivers.simulated import storing
from derops_agent.ports import Device, Resolution, Reversion, Setpoints

FIVE = Setpoints(active_power_watts=5_000)


@pytest.fixture
def battery(tmp_path: Path) -> Rig:
    return Rig(tmp_path, BATTERY)


async def test_the_agent_opens_it_by_its_kind(tmp_path: Path) -> None:
    device: Device = await open_device({"kind": "simulated", **BATTERY}, tmp_path, FakeClock())

    await device.write(FIVE)

    assert await device.read_setpoints() == FIVE
    assert (tmp_path / "device.writes.jsonl").exists()
    await device.close()


@pytest.mark.parametrize(
    ("options", "modes", "ratings"),
    [
        (0, {"ActivePower", "GenerationLimit", "LoadLimit", "CeaseToEnergize"}, (10_000, 8_000)),
        (1, {"GenerationLimit", "CeaseToEnergize"}, (5_000, 0)),
        (2, {"LoadLimit", "CeaseToEnergize"}, (0, 11_000)),
        (3, {"ActivePower", "GenerationLimit", "CeaseToEnergize"}, (50_000, 0)),
        (4, {"LoadLimit", "CeaseToEnergize"}, (0, 5_000)),
    ],
)
def test_capability(
    tmp_path: Path, options: int, modes: set[str], ratings: tuple[int, int]
) -> None:
    capability = Rig(tmp_path, ALL[options]).device.capability

    assert capability.modes == modes
    assert (capability.max_injection_watts, capability.max_absorption_watts) == ratings
    assert capability.can_measure


async def test_a_reading_has_what_was_measured_and_no_more(battery: Rig) -> None:
    await battery.device.write(Setpoints(active_power_watts=5_000, max_load_watts=700))
    values = await battery.values(after_seconds=60)

    assert values[POWER] == pytest.approx(5_000, rel=0.003)
    assert values[agent_pb2.SETPOINT_WATTS] == 5_000
    assert values[agent_pb2.MAX_LOAD_WATTS] == 700
    assert agent_pb2.MAX_GENERATION_WATTS not in values
    assert values[agent_pb2.REACTIVE_POWER_VARS] == 0
    assert 225 < values[agent_pb2.VOLTAGE_VOLTS] < 235
    assert 49.9 < values[agent_pb2.FREQUENCY_HERTZ] < 50.1
    assert 49 < values[CHARGE] < 50
    assert 75 < values[agent_pb2.ENERGY_INJECTED_WATT_HOURS] < 84
    assert values[agent_pb2.ENERGY_ABSORBED_WATT_HOURS] == 0
    assert 20 < values[agent_pb2.TEMPERATURE_CELSIUS] < 25
    assert values[agent_pb2.AVAILABLE_POWER_WATTS] == 10_000


async def test_a_reading_of_what_stores_nothing_has_no_charge(tmp_path: Path) -> None:
    values = await Rig(tmp_path, SOLAR).values(after_seconds=60)

    assert CHARGE not in values
    assert agent_pb2.SETPOINT_WATTS not in values


async def test_a_release_lets_go(battery: Rig) -> None:
    await battery.device.write(FIVE)
    await battery.power(after_seconds=10)

    await battery.device.write(Setpoints())
    values = await battery.values(after_seconds=10)

    assert values[POWER] == 0
    assert agent_pb2.SETPOINT_WATTS not in values


@pytest.mark.parametrize(
    ("options", "wanted", "words"),
    [
        (BATTERY, Setpoints(active_power_watts=10_001), ["10001 W", "-8000 W to 10000 W"]),
        (BATTERY, Setpoints(active_power_watts=-8_001), ["-8001 W"]),
        (BATTERY, Setpoints(max_load_watts=-1), ["LoadLimit", "-1 W"]),
        (GENERATOR, Setpoints(active_power_watts=-1), ["-1 W", "0 W to 50000 W"]),
        (SOLAR, Setpoints(active_power_watts=0), ["solar has no ActivePower", "GenerationLimit"]),
    ],
)
async def test_what_it_cannot_do_it_refuses(
    tmp_path: Path, options: dict[str, Any], wanted: Setpoints, words: list[str]
) -> None:
    rig = Rig(tmp_path, options)

    with pytest.raises(DeviceRefusedError) as raised:
        await rig.device.write(wanted)

    assert all(word in str(raised.value) for word in words)
    assert await rig.device.read_setpoints() == Setpoints()
    assert rig.entries() == []


async def test_its_account_tells_every_write(battery: Rig) -> None:
    assert battery.entries() == []

    await battery.device.write(FIVE)
    battery.pass_seconds(2)
    await battery.device.write(Setpoints(active_power_watts=0, energized=False))

    first, second = battery.entries()
    assert first == {
        "number": 1,
        "at_us": T0,
        "active_power_watts": 5_000,
        "max_generation_watts": None,
        "max_load_watts": None,
        "energized": True,
    }
    assert (second["number"], second["at_us"]) == (2, T0 + 2_000_000)
    assert not second["energized"]


async def test_the_account_is_bounded(battery: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "ROTATE_BYTES", 1_000)

    for watts in range(40):
        await battery.device.write(Setpoints(active_power_watts=watts))
    battery.restart()
    await battery.device.write(Setpoints(active_power_watts=40))

    files = sorted(battery.state_file.parent.glob("device.writes.*"))
    assert [file.name for file in files] == ["device.writes.jsonl", "device.writes.jsonl.1"]
    assert all(file.stat().st_size <= 1_000 for file in files)
    kept = [json.loads(line) for file in reversed(files) for line in file.read_text().splitlines()]
    numbers = [entry["number"] for entry in kept]
    assert numbers == list(range(numbers[0], 42))


async def test_it_goes_on_while_nobody_looks(battery: Rig) -> None:
    await battery.device.write(FIVE)

    battery.pass_seconds(3600)
    battery.restart()
    values = await battery.values()

    assert await battery.device.read_setpoints() == FIVE
    assert values[POWER] == pytest.approx(5_000, rel=0.003)
    assert values[agent_pb2.ENERGY_INJECTED_WATT_HOURS] == pytest.approx(5_000, rel=0.001)
    assert values[CHARGE] == pytest.approx(50 - 100 * (5_000 / 0.95 + 10) / 20_000, abs=0.05)


async def test_it_is_where_it_would_be_if_the_agent_had_lived(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    lived, died = Rig(tmp_path / "a", BATTERY), Rig(tmp_path / "b", BATTERY)
    for rig in (lived, died):
        await rig.device.write(FIVE)
    for _ in range(1800):
        await lived.values(after_seconds=1)
    for _ in range(3):
        died.pass_seconds(600)
        died.restart()

    seen, caught_up = await lived.values(), await died.values()

    assert caught_up == pytest.approx(seen, rel=1e-3)


_CHILD = """
import asyncio, json, sys, time
from pathlib import Path
from derops_agent.drivers.simulated import open_device
from derops_agent.ports import Setpoints

async def main():
    now_us = lambda: time.time_ns() // 1000
    device = open_device(json.loads(sys.argv[1]), Path(sys.argv[2]), now_us)
    await device.write(Setpoints(active_power_watts=-4000))
    print("held", flush=True)
    while True:
        await device.sample()

asyncio.run(main())
"""


async def test_a_kill_keeps_what_was_written(tmp_path: Path) -> None:
    state_file = tmp_path / "device.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _CHILD,
        json.dumps(BATTERY),
        str(state_file),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"held\n"
    process.send_signal(signal.SIGKILL)
    await process.communicate()

    rig = Rig(tmp_path, BATTERY)

    assert await rig.device.read_setpoints() == Setpoints(active_power_watts=-4_000)
    assert rig.told() == [-4_000]


async def test_it_stores_itself_every_ten_seconds_only(battery: Rig) -> None:
    stored: list[bytes] = []
    for _ in range(40):
        await battery.values(after_seconds=1)
        content = battery.state_file.read_bytes()
        if content not in stored:
            stored.append(content)

    assert 4 <= len(stored) <= 5


async def test_an_entry_that_a_crash_kept_out_is_added(battery: Rig) -> None:
    await battery.device.write(FIVE)
    await battery.device.write(Setpoints(active_power_watts=7))
    first, second = battery.account.read_text().splitlines()
    battery.account.write_text(f"{first}\n{second[:20]}")

    battery.restart()

    assert battery.told() == [5_000, 7]


async def test_a_close_keeps_the_setpoint(battery: Rig) -> None:
    await battery.device.write(FIVE)
    battery.pass_seconds(4)
    await battery.device.close()

    assert json.loads(battery.state_file.read_text())["wall_us"] == battery.now_us
    battery.restart()
    assert await battery.device.read_setpoints() == FIVE
    assert len(battery.entries()) == 1


async def test_a_clock_set_back_undoes_no_energy(battery: Rig) -> None:
    await battery.device.write(FIVE)
    before = await battery.values(after_seconds=100)

    after = await battery.values(after_seconds=-50)
    later = await battery.values(after_seconds=60)

    injected = agent_pb2.ENERGY_INJECTED_WATT_HOURS
    assert after[injected] == before[injected]
    assert later[injected] - after[injected] == pytest.approx(5_000 / 60, rel=0.01)


async def test_the_sun_follows_a_clock_that_is_set_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path, SOLAR)

    noon = await rig.power(after_seconds=5 * 3600)
    night = await rig.power(after_seconds=-12 * 3600)
    still_night = await rig.power(after_seconds=10)

    assert noon > 0
    assert night == pytest.approx(noon, rel=0.005)  # no time has passed
    assert still_night == 0


async def test_a_write_reaches_the_disk_before_it_returns(
    battery: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)

    await battery.values(after_seconds=11)
    assert synced == []
    await battery.device.write(FIVE)
    assert synced == ["device.json.new", battery.state_file.parent.name]


def test_a_state_that_was_overtaken_is_not_stored(tmp_path: Path) -> None:
    store = storing.DeviceFiles(tmp_path / "device.json")
    store.load()

    store.save(2, {"state": "new"}, durable=False)
    store.save(1, {"state": "old"}, {"number": 1}, durable=False)

    assert store.load() == {"state": "new"}
    assert store.last_entry() == {"number": 1}


async def test_speed_and_hour_of_the_simulated_day(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {**SOLAR, "speed": 3600, "startAtHour": 0, "cloudiness": 0})

    seen = [round(await rig.power(after_seconds=1)) for _ in range(24)]

    assert seen[:6] == [0] * 6
    assert max(seen[11:15]) > 4_900
    assert seen[20:] == [0] * 4


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 9}', '{"version": 1}'])
async def test_a_state_that_cannot_be_read_is_kept_aside(battery: Rig, content: str) -> None:
    await battery.device.write(FIVE)
    battery.state_file.write_text(content)

    battery.restart()

    assert await battery.device.read_setpoints() == Setpoints()
    assert battery.state_file.with_name("device.json.damaged").read_text() == content


async def test_another_model_is_another_device(battery: Rig) -> None:
    await battery.device.write(FIVE)
    battery.options = GENERATOR

    battery.restart()

    assert await battery.device.read_setpoints() == Setpoints()
    await battery.device.write(FIVE)
    assert [entry["number"] for entry in battery.entries()] == [1, 2]


async def test_a_smaller_battery_keeps_what_fits(battery: Rig) -> None:
    battery.restart(energyCapacityWattHours=4_000)

    assert (await battery.values())[CHARGE] == 100


async def test_its_own_timer_reverts_it_also_while_the_agent_is_away(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {**BATTERY, "reversionMaxSeconds": 60})
    zero = Setpoints(active_power_watts=0)

    armed = await rig.device.write(FIVE, Reversion(after_seconds=100, setpoints=zero))
    rig.pass_seconds(59)
    assert await rig.device.read_setpoints() == FIVE
    rig.pass_seconds(500)
    rig.restart()

    assert armed == 60
    assert await rig.device.read_setpoints() == zero
    assert rig.told() == [5_000, 0]
    assert rig.entries()[-1]["at_us"] == T0 + 60_000_000


async def test_a_later_write_disarms_its_timer(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {**BATTERY, "reversionMaxSeconds": 60})
    await rig.device.write(FIVE, Reversion(after_seconds=10, setpoints=Setpoints()))

    assert await rig.device.write(FIVE) is None
    rig.pass_seconds(100)

    assert await rig.device.read_setpoints() == FIVE


async def test_it_rounds_what_it_is_told_to_its_steps_towards_zero(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {**BATTERY, "stepWatts": 690, "reversionMaxSeconds": 60})
    asked = Setpoints(active_power_watts=-5000, max_load_watts=689)
    zero = Setpoints(active_power_watts=-1400)
    await rig.device.write(asked, Reversion(after_seconds=60, setpoints=zero))

    assert rig.device.capability.resolutions["ActivePower"] == Resolution(step_watts=690)
    held = Setpoints(active_power_watts=-4830, max_load_watts=0)
    assert await rig.device.read_setpoints() == held
    rig.pass_seconds(60)
    assert await rig.device.read_setpoints() == Setpoints(active_power_watts=-1380)
