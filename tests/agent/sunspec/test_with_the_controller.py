"""A dispatch on a Modbus device, from the order to the device's own registers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.agent.fakes import Agent, S, asset, order
from tests.agent.lines import PymodbusLine as Line
from tests.agent.sunspec.inverter import BATTERY, Inverter

from derops_agent.drivers.sunspec import open_sunspec


class Site:
    """An agent and its inverter, whose clocks go together."""

    def __init__(self, agent: Agent, inverter: Inverter) -> None:
        self.agent, self.inverter = agent, inverter

    async def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.agent.clock.pass_seconds(1)
            self.inverter.now_seconds += 1
            self.agent.controller.take(await self.agent.device.sample())
            await self.agent.controller.turn()

    @property
    def held(self) -> int | None:
        """What the registers say."""
        self.inverter.live()
        return self.inverter.get(704, "WSet") if self.inverter.get(704, "WSetEna") else None


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    inverter = Inverter(BATTERY)
    async with Line({1: inverter}) as line:
        agent = Agent(tmp_path)
        host, port = line.address
        device = await open_sunspec({"host": host, "port": port}, agent.clock)
        await agent.use(device)
        await agent.start(asset(energy_capacity_watt_hours=20_000, verification_settle_seconds=5))
        yield Site(agent, inverter)
        await device.close()


async def test_a_dispatch_is_applied_verified_and_reverted(site: Site) -> None:
    await site.agent.give(order())
    await site.wait(59)
    assert site.held == 0
    await site.wait(1)
    assert site.held == 5000
    assert site.agent.outcome() == ("Active", "Applied")
    await site.wait(100)

    report = site.agent.report()
    assert site.held == 0
    assert site.agent.outcome() == ("Complete", "WindowEnded")
    assert (report.evidence, report.verified) == ("Effect", "True")
    assert report.reversion_guard == "DeviceTimer"


async def test_the_device_ends_it_when_the_agent_never_comes_back(site: Site) -> None:
    await site.agent.give(order())
    await site.wait(70)
    ended_at = site.inverter.now_seconds + 90
    site.inverter.now_seconds = ended_at + 59
    assert site.held == 5000
    site.inverter.now_seconds = ended_at + 61

    assert site.held == 0


async def test_a_device_that_takes_every_write_and_holds_none(site: Site) -> None:
    site.inverter.ignores_values = True
    await site.agent.give(order())
    await site.wait(112)

    assert site.agent.outcome() == ("Failed", "ReadBackMismatch")
    assert site.agent.report().applied_us == 0


async def test_local_control_in_the_window_ends_it(site: Site) -> None:
    await site.agent.give(order())
    await site.wait(70)
    site.inverter.set(715, "LocRemCtl", 1)
    await site.wait(2)

    assert site.agent.outcome() == ("Failed", "LocalOverride")
    assert site.agent.report().active_milliseconds == pytest.approx(11_000, abs=S // 1000)
