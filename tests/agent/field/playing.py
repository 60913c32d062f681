"""An agent and a device on a real line, second by second, on clocks that go together."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.agent.fakes import Agent, asset
from tests.agent.lines import Answering, GoLine
from tests.agent.modbus.test_device import PROFILES

from derops.errors import DeviceError
from derops_agent.drivers import open_device
from derops_agent.ports import Reading


@dataclass
class Play:
    """What goes on between an agent and its device."""

    agent: Agent
    live: Callable[[], None]
    """One second of the device's life."""

    readings: list[Reading] = field(default_factory=list)

    async def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.agent.clock.pass_seconds(1)
            self.live()
            reading = await self.agent.controller._device.sample()
            if reading is not None:
                self.readings.append(reading)
                self.agent.controller.take(reading)
            await self.agent.controller.turn()

    def told(self, uid: str = "d1") -> set[str]:
        """Return every reason that was ever given."""
        found: set[str] = set()
        for report in self.agent.reports:
            if report.dispatch_uid == uid:
                found |= {report.reason, *(step.reason for step in report.transitions)}
        return found


@asynccontextmanager
async def played(
    folder: Path,
    device: Answering,
    live: Callable[[], None],
    *,
    profile: str | Path = "",
    options: dict[str, Any] | None = None,
    **config: Any,
) -> AsyncIterator[Play]:
    """Open the device, by a profile of the examples or as SunSpec, and let an agent have it."""
    async with GoLine({1: device}) as line:
        host, port = line.address
        facts: dict[str, Any] = {"kind": "sunspec", "host": host, "port": port, **(options or {})}
        if profile:
            facts |= {"kind": "modbus", "profile": str(PROFILES / profile)}
        agent = Agent(folder)
        try:
            opened = await open_device(facts, folder, agent.clock)
        except DeviceError:
            agent.ledger.close()
            raise
        await agent.use(opened)
        await agent.start(asset(**{"verification_settle_seconds": 5, **config}))
        yield Play(agent, live)
        await opened.close()
        agent.ledger.close()
