"""A whole agent's link with its ledger, and a real gateway; device and clock are played."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from tests.agent.fakes import FakeClock, FakeDevice, inline
from tests.headend.gateway.rig import Rig
from tests.pki import Leaf

from derops.ids import AssetName
from derops.observability import Readiness
from derops_agent.asset.controller import AssetController
from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.ledger import Ledger
from derops_agent.execution.site import LocalLimits
from derops_agent.link.link import Endpoint, Link
from derops_agent.link.outlet import StreamOutlet
from derops_agent.telemetry.outbox_store import OutboxStore

NAME = AssetName("pilot", "battery")
SECOND_US = 1_000_000


class HonestAgent:
    """One site: its disk, its mounted key, and the process that runs now."""

    def __init__(self, rig: Rig, folder: Path, leaf: Leaf, *, clock_ahead_us: int = 0) -> None:
        self._rig, self.folder = rig, folder
        folder.mkdir()
        (folder / "ca.crt").write_bytes(rig.server_ca.pem)
        self.mount(leaf)
        self.clock = FakeClock()
        self.clock.wall_us = time.time_ns() // 1000 + clock_ahead_us
        self.processes = 0
        self.controller: AssetController | None = None
        self._close: list[Callable[[], None]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def mount(self, leaf: Leaf) -> None:
        """Put a key and its certificate where the agent reads them."""
        (self.folder / "tls.key").write_bytes(leaf.key)
        (self.folder / "tls.crt").write_bytes(leaf.pem)

    async def start(self) -> None:
        assert self._rig.gateway is not None
        self.processes += 1
        device = GuardedDevice(FakeDevice())
        ledger = Ledger(self.folder / "ledger.db")
        store = OutboxStore(self.folder / "outbox.db")
        self._close = [ledger.close, store.close]
        outlet = StreamOutlet(NAME, Readiness())
        self.controller = AssetController(
            NAME,
            device,
            ledger,
            self.clock,
            inline,
            outlet=outlet,
            local=LocalLimits(),
            draw=lambda: 0.0,
        )
        link = Link(
            NAME,
            Endpoint(
                gateways=(f"127.0.0.1:{self._rig.gateway.agent_port}",),
                server_name="derops-gateway",
                server_ca_file=self.folder / "ca.crt",
                certificate_directory=self.folder,
            ),
            controller=self.controller,
            device=device,
            ledger=ledger,
            outbox=store.open(NAME, outlet),
            outlet=outlet,
            clock=self.clock,
            run_ledger=inline,
            run_outbox=inline,
            instance_id=f"process-{self.processes}",
            software_version="1",
            readiness=Readiness(),
        )
        await self.controller.boot()
        self._tasks = [
            asyncio.create_task(self.controller.run()),
            asyncio.create_task(link.run()),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for close in self._close:
            close()
        self._tasks, self._close = [], []
