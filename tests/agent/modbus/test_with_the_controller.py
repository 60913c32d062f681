"""A dispatch on a device with a profile, from the order to the device's own registers."""

from pathlib import Path

from tests.agent.fakes import Agent, asset, order
from tests.agent.lines import GoLine
from tests.agent.modbus.registers import Registers, charger
from tests.agent.modbus.test_device import PROFILES

from derops_agent.drivers import open_device


async def wait(agent: Agent, registers: Registers, seconds: int) -> None:
    for _ in range(seconds):
        agent.clock.pass_seconds(1)
        registers.now_seconds += 1
        registers.live()
        drawn = min(11_040, registers.holding[1000] * 690)
        registers.input[11] = drawn
        agent.controller.take(await agent.device.sample())
        await agent.controller.turn()


async def test_a_charger_is_limited_verified_and_let_go(tmp_path: Path) -> None:
    registers = charger()
    async with GoLine({1: registers}) as line:
        agent = Agent(tmp_path)
        host, port = line.address
        profile = str(PROFILES / "ev-charger.yaml")
        config = {"kind": "modbus", "host": host, "port": port, "profile": profile}
        device = await open_device(config, tmp_path, agent.clock)
        await agent.use(device)
        await agent.start(
            asset(
                type="EVCharger",
                fallback_active_power_watts=None,
                limit_max_injection_watts=0,
                limit_max_absorption_watts=22_080,
                verification_settle_seconds=5,
            )
        )
        await agent.give(order(mode="LoadLimit", watts=4200))
        await wait(agent, registers, 60)
        during = (registers.holding[1000], agent.outcome())
        await wait(agent, registers, 102)
        await device.close()

    report = agent.report()
    assert during == (6, ("Active", "Applied")), "6 A of each phase are 4140 W"
    assert registers.holding[1000] == 32
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert (report.evidence, report.verified) == ("Effect", "True")
    assert report.reversion_guard == "DeviceTimer"
