"""A device that does not answer when its agent starts, and whose profile says what it can do."""

import asyncio
from pathlib import Path

import pytest
from tests.agent.fakes import T0, Agent, S, asset, order
from tests.agent.lines import PymodbusLine
from tests.agent.modbus.registers import battery, charger
from tests.agent.modbus.test_device import PROFILES

from derops.errors import DeviceTimeoutError
from derops_agent.drivers import open_device

CHARGER = asset(
    type="EVCharger",
    fallback_active_power_watts=None,
    limit_max_injection_watts=0,
    limit_max_absorption_watts=22_080,
)


def limit(uid: str, start_us: int) -> object:
    return order(uid, mode="LoadLimit", watts=4140, start_us=start_us, start_deadline_seconds=10)


async def look(agent: Agent, seconds: int) -> None:
    """Let time pass, with a sample each second as far as the device gives one."""
    for _ in range(seconds):
        agent.clock.pass_seconds(1)
        reading = await agent.controller._device.sample()
        if reading is None:
            agent.controller.note_missed_sample(agent.controller._device.complaint)
        else:
            agent.controller.take(reading)
        await agent.controller.turn()


async def test_it_is_told_as_silent_and_works_once_it_answers(tmp_path: Path) -> None:
    registers = charger()
    line = PymodbusLine({1: registers})
    await line.start()
    await line.stop()
    host, port = line.address
    config = {
        "kind": "modbus", "host": host, "port": port, "timeoutSeconds": 0.2,
        "profile": str(PROFILES / "ev-charger.yaml"),
    }  # fmt: skip
    agent = Agent(tmp_path)
    device = await open_device(config, tmp_path, agent.clock)
    await agent.use(device)
    await agent.start(CHARGER)

    await agent.give(limit("early", T0 + 5 * S))
    await look(agent, 14)
    silent = agent.controller.device_facts()
    assert agent.outcome("early")[0] == "Acked", "it waits until its deadline"
    await look(agent, 3)
    assert agent.outcome("early") == ("Failed", "DeviceOffline")
    assert agent.report("early").applied_us == 0
    assert registers.written == []

    await line.start()
    async with asyncio.timeout(20):  # it is backed off, by the clock of the wall
        while (well := agent.controller.device_facts()) is None or well.ByteSize():
            await asyncio.sleep(0.2)
            await look(agent, 1)
    await agent.give(limit("later", agent.clock.wall_us))
    await look(agent, 3)
    held = registers.holding[1000]
    await device.close()
    await line.stop()
    agent.ledger.close()

    assert silent is not None
    assert silent.silent_since_us > 0
    assert "no connection" in silent.silence
    assert well is not None
    assert not well.ByteSize()
    assert agent.outcome("later") == ("Active", "Applied")
    assert held == 6


async def test_one_that_has_to_say_what_it_can_do_is_waited_for(tmp_path: Path) -> None:
    line = PymodbusLine({1: battery()})
    await line.start()
    await line.stop()
    host, port = line.address
    config = {
        "kind": "modbus", "host": host, "port": port, "timeoutSeconds": 0.2,
        "profile": str(PROFILES / "battery.yaml"),
    }  # fmt: skip
    agent = Agent(tmp_path)
    with pytest.raises(DeviceTimeoutError):
        await open_device(config, tmp_path, agent.clock)
    agent.ledger.close()
