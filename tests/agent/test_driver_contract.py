"""What the agent relies on, of every driver: the promises of ``ports.Device``."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.agent.fakes import FakeClock
from tests.agent.lines import LINES, Answering, Line
from tests.agent.modbus.registers import battery, charger
from tests.agent.modbus.test_device import PROFILES
from tests.agent.sunspec.inverter import BATTERY, SOLAR, STORAGE, Inverter

from derops.errors import DeviceRefusedError
from derops.wire.v1 import agent_pb2
from derops_agent.drivers import KINDS, open_device
from derops_agent.execution.resolution import sent
from derops_agent.ports import Device, Reversion, Setpoints

OF_MODE = {
    "ActivePower": Setpoints(active_power_watts=-1380),
    "GenerationLimit": Setpoints(max_generation_watts=1300),
    "LoadLimit": Setpoints(max_load_watts=1380),
    "CeaseToEnergize": Setpoints(energized=False),
}
SIMULATED: dict[str, dict[str, Any]] = {
    "simulated battery": {
        "model": "battery",
        "maxInjectionWatts": 5000,
        "maxAbsorptionWatts": 5000,
        "energyCapacityWattHours": 10_000,
        "reversionMaxSeconds": 3600,
    },
    "simulated charger in steps": {
        "model": "evCharger",
        "maxAbsorptionWatts": 11_000,
        "stepWatts": 690,
    },
    "simulated charger": {"model": "evCharger", "maxAbsorptionWatts": 11_000},
}
ON_A_LINE: dict[str, tuple[dict[str, Any], Callable[[], Answering]]] = {
    "sunspec battery": ({"kind": "sunspec"}, lambda: Inverter(BATTERY)),
    "sunspec solar": ({"kind": "sunspec"}, lambda: Inverter(SOLAR)),
    "sunspec storage": ({"kind": "sunspec"}, lambda: Inverter(STORAGE)),
    "modbus battery": ({"kind": "modbus", "profile": str(PROFILES / "battery.yaml")}, battery),
    "modbus charger": ({"kind": "modbus", "profile": str(PROFILES / "ev-charger.yaml")}, charger),
}
DEVICES: list[tuple[str, type[Line] | None]] = [
    *((name, None) for name in SIMULATED),
    *((name, line) for name in ON_A_LINE for line in LINES),
]


@asynccontextmanager
async def opened(name: str, line_type: type[Line] | None, folder: Path) -> AsyncIterator[Device]:
    if line_type is None:
        device = await open_device({"kind": "simulated", **SIMULATED[name]}, folder, FakeClock())
        yield device
        await device.close()
        return
    config, make = ON_A_LINE[name]
    async with line_type({1: make()}) as line:
        host, port = line.address
        device = await open_device({**config, "host": host, "port": port}, folder, FakeClock())
        yield device
        await device.close()


@pytest.fixture(params=DEVICES, ids=lambda each: f"{each[0]} {each[1].__name__ if each[1] else ''}")
async def device(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Device]:
    name, line_type = request.param
    async with opened(name, line_type, tmp_path) as each:
        yield each


def test_every_kind_is_here() -> None:
    kinds = {"simulated", *(str(config["kind"]) for config, _ in ON_A_LINE.values())}

    assert kinds == set(KINDS)


async def test_it_holds_what_it_offers_and_lets_go(device: Device) -> None:
    assert device.capability.modes
    for mode in sorted(device.capability.modes):
        for _ in range(2):  # the same again is harmless
            await device.write(OF_MODE[mode])
            assert await device.read_setpoints() == OF_MODE[mode]
        await device.write(Setpoints())
        assert await device.read_setpoints() == Setpoints()


@pytest.mark.parametrize("watts", [1, 7, 333, 1379, 2999, 3999])
async def test_it_holds_of_any_value_what_it_said_that_it_could(device: Device, watts: int) -> None:
    values = {
        "ActivePower": Setpoints(active_power_watts=-watts),
        "GenerationLimit": Setpoints(max_generation_watts=watts),
        "LoadLimit": Setpoints(max_load_watts=watts),
    }
    for mode in sorted(device.capability.modes & values.keys()):
        held = sent(values[mode], device.capability.resolutions)
        await device.write(values[mode])
        assert await device.read_setpoints() == held
        await device.write(held)
        assert await device.read_setpoints() == held, "what it holds asks for the same"
        await device.write(Setpoints())


async def test_it_refuses_what_it_does_not_offer_and_holds_what_it_held(device: Device) -> None:
    before = await device.read_setpoints()
    for mode in sorted(set(OF_MODE) - device.capability.modes):
        with pytest.raises(DeviceRefusedError):
            await device.write(OF_MODE[mode])
        assert await device.read_setpoints() == before


async def test_it_says_when_it_reverts_by_itself(device: Device) -> None:
    for mode in sorted(device.capability.modes):
        reversion = Reversion(after_seconds=60, setpoints=Setpoints())
        armed_seconds = await device.write(OF_MODE[mode], reversion)
        assert armed_seconds is None or 1 <= armed_seconds <= 60
        assert armed_seconds is None or device.capability.reversion
        assert await device.write(OF_MODE[mode]) is None, "nothing is armed without being asked"


async def test_it_measures_what_it_says(device: Device) -> None:
    values = (await device.sample()).values

    assert set(values) <= set(agent_pb2.Quantity.values())
    assert (int(agent_pb2.ACTIVE_POWER_WATTS) in values) == device.capability.can_measure


async def test_its_ratings_are_magnitudes(device: Device) -> None:
    capability = device.capability

    assert min(capability.max_injection_watts, capability.max_absorption_watts) >= 0
    assert max(capability.max_injection_watts, capability.max_absorption_watts) > 0
    assert capability.driver
