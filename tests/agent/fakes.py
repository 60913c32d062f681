"""Behind the agent's ports in tests: clocks that are set by hand, a device in memory."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from derops.errors import DeviceRefusedError, DeviceTimeoutError, DeviceUnreachableError
from derops.ids import AssetName
from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_agent.asset.controller import AssetController
from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.inbox import Acknowledged, Change, Snapshot
from derops_agent.asset.ledger import Ledger
from derops_agent.clock import SystemClock
from derops_agent.execution.site import LocalLimits
from derops_agent.execution.state import Stage
from derops_agent.ports import Capability, Reading, Reversion, Setpoints

T0 = 1_800_000_000_000_000
S = 1_000_000
CAPABILITY = Capability(
    modes=frozenset({"ActivePower", "GenerationLimit", "LoadLimit", "CeaseToEnergize"}),
    driver="fake",
    firmware="1",
    max_injection_watts=10_000,
    max_absorption_watts=10_000,
    can_measure=True,
)


@dataclass
class FakeListener:
    """What an outbox told."""

    stored: int = 0
    replaced: int = 0

    def note_stored(self) -> None:
        self.stored += 1

    def note_replaced(self) -> None:
        self.replaced += 1


@dataclass
class FakeClock:
    wall_us: int = T0
    mono_us: int = 5_000_000_000
    boot: str = "boot-1"
    ntp: bool = False

    def now_us(self) -> int:
        return self.wall_us

    def monotonic_us(self) -> int:
        return self.mono_us

    def boot_id(self) -> str:
        return self.boot

    def synchronised(self) -> bool:
        return self.ntp

    def pass_seconds(self, seconds: float) -> None:
        self.wall_us += round(seconds * S)
        self.mono_us += round(seconds * S)


class LoopClock(SystemClock):
    """The machine's clocks, as far as the loop that the test runs in has noticed."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._ahead_us = super().now_us() - self.monotonic_us()

    def now_us(self) -> int:
        return self.monotonic_us() + self._ahead_us

    def monotonic_us(self) -> int:
        return round(self._loop.time() * S)


@dataclass
class FakeDevice:
    capability: Capability = CAPABILITY
    held: Setpoints = field(default_factory=Setpoints)
    writes: list[Setpoints] = field(default_factory=list)
    fail: str = ""
    refusal: str = "not now"
    power_watts: float = 0.0
    timer_seconds: int | None = None
    reversions: list[Reversion | None] = field(default_factory=list)

    async def write(self, setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        if self.fail in ("timeout", "deaf"):
            raise DeviceTimeoutError("no answer")
        if self.fail == "broken":
            error = DeviceTimeoutError("exception 4")
            error.answered = True
            raise error
        if self.fail == "unreachable":
            raise DeviceUnreachableError("no connection")
        if self.fail == "local":
            raise DeviceRefusedError("local control")
        if self.fail == "refuse" and setpoints.active_power_watts:
            raise DeviceRefusedError(self.refusal)
        if self.fail != "ignore":
            self.held = setpoints
        self.writes.append(setpoints)
        self.reversions.append(reversion)
        if self.fail == "acted":
            raise DeviceTimeoutError("the answer was lost")
        if reversion is None or self.timer_seconds is None:
            return None
        return min(reversion.after_seconds, self.timer_seconds)

    async def read_setpoints(self) -> Setpoints:
        if self.fail in ("timeout", "unreachable"):
            raise DeviceTimeoutError("no answer")
        return self.held

    async def sample(self) -> Reading:
        return Reading(at_us=0, values={agent_pb2.ACTIVE_POWER_WATTS: self.power_watts})

    async def close(self) -> None:
        return None


async def inline(call: Callable[..., Any], /, *arguments: Any) -> Any:
    return call(*arguments)


def asset(**changes: Any) -> dispatch_pb2.Asset:
    facts: dict[str, Any] = {
        "id": dispatch_pb2.AssetId(uid="asset-1", namespace="ns", name="battery"),
        "type": "Battery",
        "limit_max_injection_watts": 8000,
        "limit_max_absorption_watts": 8000,
        "max_dispatch_duration_seconds": 3600,
        "fallback_active_power_watts": 0,
        "on_comms_loss": "Continue",
        "on_restart": "Resume",
        "telemetry_interval_seconds": 1,
        "operating_state": "InService",
        "on_exceed": "Reject",
    }
    return dispatch_pb2.Asset(**{**facts, **changes})


def order(uid: str = "d1", *, mode: str = "ActivePower", watts: int = 5000, **changes: Any) -> Any:
    facts: dict[str, Any] = {
        "uid": uid,
        "asset_uid": "asset-1",
        "generation": 1,
        "setpoint": dispatch_pb2.Setpoint(mode=mode, watts=watts),
        "start_us": T0 + 60 * S,
        "duration_seconds": 100,
        "start_deadline_seconds": 50,
        "late_policy": "KeepEnd",
        "primacy": 100,
        "verify": "Report",
        "created_us": T0,
    }
    return dispatch_pb2.Dispatch(**{**facts, **changes})


@dataclass
class FakeOutlet:
    """What a test has done with what a controller tells."""

    report: Callable[[dispatch_pb2.DispatchReport], None] = lambda _: None
    note_ledger: Callable[[str], None] = lambda _: None
    note_failsafe: Callable[[], None] = lambda: None
    note_overrun: Callable[[], None] = lambda: None


class Agent:
    """One asset's controller over a real ledger; ``restart`` is what kill -9 leaves."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.options = folder, options
        self.clock, self.device = FakeClock(), FakeDevice()
        self.reports: list[dispatch_pb2.DispatchReport] = []
        self.ledger_complaints: list[str] = []
        self.outlet = FakeOutlet(
            report=self.reports.append, note_ledger=self.ledger_complaints.append
        )
        self.counter = 0
        self.local: LocalLimits = options.pop("local", LocalLimits())
        self._open()

    def _open(self) -> None:
        self.ledger = Ledger(self.folder / "ledger.db")
        self.controller = AssetController(
            AssetName("ns", "battery"),
            GuardedDevice(self.device),
            self.ledger,
            self.clock,
            inline,
            outlet=self.outlet,
            local=self.local,
            draw=lambda: 0.0,
            **self.options,
        )

    async def use(self, device: Any) -> None:
        """Control another device than the one in memory, from the next start on."""
        self.device = device
        self.ledger.close()
        self._open()

    async def start(self, config: dispatch_pb2.Asset | None = None) -> "Agent":
        await self.controller.boot()
        await self.snapshot(config=config or asset())
        return self

    async def restart(
        self, *, down_seconds: float = 0, reboot: bool = False, full: bool = False
    ) -> None:
        self.ledger.close()
        self.clock.pass_seconds(down_seconds)
        if reboot:
            self.clock.boot, self.clock.mono_us = self.clock.boot + "+", 7 * S
        self._open()
        self.refuse_writes(refused=full)
        await self.controller.boot()

    def refuse_writes(self, *, refused: bool) -> None:
        """Let the ledger's file refuse what a full disk refuses."""
        self.ledger._db.execute(f"PRAGMA query_only = {int(refused)}")

    async def snapshot(self, *orders: Any, config: dispatch_pb2.Asset | None = None) -> None:
        self.counter += 1
        self.controller.take(
            Snapshot(
                revision=agent_pb2.Revision(operator_start_ms=1, counter=self.counter),
                asset=config or self.ledger.asset() or asset(),
                dispatches=list(orders),
            )
        )
        await self.controller.turn()

    async def give(self, *events: Any) -> None:
        for event in events:
            part = isinstance(event, dispatch_pb2.Asset | dispatch_pb2.Dispatch)
            self.controller.take(Change(part=event) if part else event)
        await self.controller.turn()

    async def wait(self, seconds: float, *, step: float | None = None) -> None:
        passed = 0.0
        while passed < seconds:
            part = min(step or seconds, seconds - passed)
            self.clock.pass_seconds(part)
            passed += part
            if self.device.fail not in ("timeout", "unreachable"):
                self.controller.take(Reading(at_us=self.clock.wall_us, values={}))
            await self.controller.turn()

    async def sampled(self, watts: float, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.pass_seconds(1)
            values = {int(agent_pb2.ACTIVE_POWER_WATTS): watts}
            await self.give(Reading(at_us=self.clock.wall_us, values=values))

    async def acknowledge_all(self) -> None:
        await self.give(*[Acknowledged(sequence=r.sequence) for r in self.reports])

    def report(self, uid: str = "d1") -> dispatch_pb2.DispatchReport:
        return [r for r in self.reports if r.dispatch_uid == uid][-1]

    def outcome(self, uid: str = "d1") -> tuple[str, str]:
        return self.report(uid).phase, self.report(uid).reason

    @property
    def has_settled(self) -> bool:
        """Whether nothing is under way: all has ended, and the device is where it is to be."""
        state = self.controller._writer.state
        told = all(each.stage is Stage.DONE for each in self.controller.journal.values())
        return told and not state.ramping and state.awaited is None and state.failed is None

    @property
    def powers(self) -> list[int | None]:
        changes: list[int | None] = []
        for write in self.device.writes:
            if not changes or changes[-1] != write.active_power_watts:
                changes.append(write.active_power_watts)
        return changes
