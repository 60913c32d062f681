"""One site: the real controller on its real ledger, and the simulated device with its account."""

import contextlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tests.agent.fakes import FakeClock, FakeOutlet

from derops.errors import DeviceError, DeviceTimeoutError
from derops.ids import AssetName
from derops.schedules import SECOND_US
from derops.wire.v1 import dispatch_pb2
from derops_agent.asset.controller import AssetController
from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.ledger import Ledger
from derops_agent.drivers.simulated import open_device
from derops_agent.drivers.simulated.faults import write_faults
from derops_agent.execution.patience import WORN_RETRY_SECONDS
from derops_agent.execution.site import LocalLimits
from derops_agent.execution.state import Stage
from derops_agent.ports import Capability, Reading, Reversion, Setpoints

BATTERY = {
    "model": "battery",
    "maxInjectionWatts": 10_000,
    "maxAbsorptionWatts": 10_000,
    "energyCapacityWattHours": 20_000,
}
FAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "refuses": {"refuseWrites": True},
    "ignores": {"ignoreWrites": True},
    "silent": {"writeTimeout": {"probability": 1.0}},
    "acts and is silent": {"writeTimeout": {"probability": 1.0, "acts": True}},
    "acts and is not heard": {"writeTimeout": {"probability": 1.0, "acts": True}},
    "answers the next write not": {"writeTimeout": {"nextWrites": 1, "acts": True}},
    "no effect": {"ignoreSetpoints": True},
    "local control": {"localControl": True},
    "offline": {"offlineFrom": "2000-01-01T00:00:00Z"},
    "acts late": {},
    "shows late": {"lateReadBack": {"seconds": 3}},
    "shows late each time anew": {"lateReadBack": {"seconds": 4, "beginsAnew": True}},
}
LATE_US = 3 * SECOND_US
"""After how long a device that "acts late" does what it was told; until then it is silent on it."""

UNHEARD = {"acts and is not heard"}
"""Faults under which what the device says does not arrive."""

BENIGN = {"none", "no effect", "shows late", "shows late each time anew"}
"""Faults under which a device takes each write at once and answers."""

SILENT = {"silent", "acts and is silent", "offline"} | UNHEARD
"""Faults under which nobody but the device knows what it holds."""


class PowerCutError(BaseException):
    """The process is gone, whatever it was about to do."""


class Fuse:
    """Ends a process at an instruction that is counted from now on."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self) -> None:
        """Pass one instruction."""
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            raise PowerCutError


class Wired:
    """The device as the agent's process reaches it: the power may go before or after a write."""

    def __init__(self, site: "Site") -> None:
        self._site, self._device = site, site.device
        self._clock, self._fuse = site.clock, site.fuse

    @property
    def capability(self) -> Capability:
        return self._device.capability

    async def write(self, setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        self._fuse.burn()
        if self._site.fault == "acts late":
            self._site.late.append((self._site.now_us() + LATE_US, setpoints, reversion))
            raise DeviceTimeoutError("no answer yet")
        told = Told(self._site.now_us(), setpoints, ignored=self._site.fault == "ignores")
        self._site.told.append(told)
        armed_seconds = await self._device.write(setpoints, reversion)
        self._site.wear.note(setpoints, self._site.wanting(), self._site.now_us())
        self._fuse.burn()
        return armed_seconds

    async def read_setpoints(self) -> Setpoints:
        self._fuse.burn()
        self._answer()
        return await self._device.read_setpoints()

    async def sample(self) -> Reading:
        self._answer()
        # A sample is stamped by the agent, whose clock is not the device's.
        return replace(await self._device.sample(), at_us=self._clock.now_us())

    async def close(self) -> None:
        return None

    def _answer(self) -> None:
        if self._site.fault in UNHEARD:
            raise DeviceTimeoutError("the answer does not arrive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the device's account says that it held from ``at_us`` on, by the true time."""

    at_us: int
    setpoints: Setpoints


class Told(NamedTuple):
    """A write of the agent."""

    at_us: int
    setpoints: Setpoints
    ignored: bool
    """The device said yes and did nothing."""


class Wear:
    """How often the device has answered writes of one value, for the same dispatches each time."""

    def __init__(self) -> None:
        self.most_writes = 0
        """Of any value, for the same."""

        self._writes: dict[Setpoints, tuple[frozenset[str], int, int]] = {}

    def forget(self) -> None:
        """Count anew, as a new process of the agent does."""
        self._writes = {}

    def note(self, setpoints: Setpoints, wanting: frozenset[str], now_us: int) -> None:
        """Count one write for those that want a start, an end or what the device dropped."""
        before, writes, last_us = self._writes.get(setpoints, (frozenset(), 0, 0))
        again = wanting <= before and now_us - last_us < WORN_RETRY_SECONDS * SECOND_US
        writes = writes + 1 if again else 1
        self._writes[setpoints] = (before if again else wanting, writes, now_us)
        self.most_writes = max(self.most_writes, writes)


class Site:
    """A device, and the agent that controls it; the device outlives the agent's process."""

    def __init__(
        self,
        folder: Path,
        now_us: Callable[[], int],
        on_report: Callable[[dispatch_pb2.DispatchReport], None],
        **device: Any,
    ) -> None:
        self.clock = FakeClock(wall_us=now_us(), ntp=True)
        self.fuse = Fuse()
        self.fault = "none"
        self.disk_full = False
        self.disk_fills_after: int | None = None
        """Calls of the ledger until the disk is full; None = it does not fill by itself."""

        self.disk_clears_after: int | None = None
        """Calls that a full disk refuses until there is room again; None = somebody makes room."""

        self._refused = False
        """Whether the disk has refused a call since time last passed."""

        self.seen_us: dict[str, int] = {"none": now_us()}
        """When each fault, and what befell the agent, was last there, by the true time."""

        self.fog_us = 0
        """For how long nobody but the device could know what it holds."""

        self.awake_us = 0
        """For how long the agent's process has run with a clock and a disk to go on with."""

        self.late: list[tuple[int, Setpoints, Reversion | None]] = []
        """What the device will do yet, and when, by the true time."""

        self.told: list[Told] = []
        """In the order in which the agent wrote, but for what the device does late."""

        self.wear = Wear()
        self.processes = self.ledgers = 0
        self.account: list[Entry] = []
        self.controller: AssetController | None = None
        self._folder, self.now_us, self._on_report = folder, now_us, on_report
        self.step_watts: int = device.get("stepWatts", 1)
        """To what the device rounds what it is told, towards zero."""

        self._state_file = folder / "device.json"
        self.device = open_device({**BATTERY, **device}, self._state_file, now_us)
        self._account_file = folder / "device.writes.jsonl"
        self._read_bytes = 0

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @property
    def held(self) -> Setpoints:
        """What the device holds, by its own account."""
        return self.account[-1].setpoints if self.account else Setpoints()

    @property
    def at_fallback(self) -> bool:
        """Whether the device holds nothing of anybody's."""
        return self.held in (Setpoints(), Setpoints(active_power_watts=0))

    async def start(self) -> None:
        """Start the agent's process with what its disk has."""
        self.fuse.left = None
        self.fill_disk(False)
        self.processes += 1
        self.seen_us["start"] = self.now_us()
        self.awake_us = 0
        self.wear.forget()
        self._ledger = Ledger(self._folder / f"ledger-{self.ledgers}.db")
        self._guarded = GuardedDevice(Wired(self))
        self.controller = AssetController(
            AssetName("pilot", "battery"),
            self._guarded,
            self._ledger,
            self.clock,
            self._run,
            outlet=FakeOutlet(report=self._on_report),
            local=LocalLimits(),
            draw=lambda: 0.5,
        )
        await self.controller.boot()

    def wanting(self) -> frozenset[str]:
        """Return whose start or end is due, and whose value the device has dropped, by uid."""
        assert self.controller is not None
        return frozenset(
            uid
            for uid, each in self.controller.journal.items()
            if each.stage in {Stage.APPLYING, Stage.REVERTING}
            or (each.stage is Stage.HOLDING and each.held_since is None)
        )

    def cut(self) -> None:
        """End the process; what is not on the disk is gone."""
        if self.controller is not None:
            self._ledger.close()
        self.controller = None

    def lose_disk(self) -> None:
        """Have the next process begin with an empty ledger."""
        self.cut()
        self.ledgers += 1

    def reboot(self) -> None:
        """Restart the clock that nobody can set."""
        self.clock.boot, self.clock.mono_us = self.clock.boot + "+", 7 * SECOND_US

    def fill_disk(self, full: bool) -> None:
        """Have the disk take nothing, or all again."""
        self.disk_full, self.disk_fills_after, self.disk_clears_after = full, None, None

    def fill_disk_soon(self, after: int, refused: int | None) -> None:
        """Have the disk fill after some calls, most likely within a turn, and be cleared later."""
        self.fill_disk(False)
        self.disk_fills_after, self.disk_clears_after = after, refused

    def break_device(self, fault: str) -> None:
        """Have the device behave like this from now on."""
        self.seen_us[self.fault] = self.seen_us[fault] = self.now_us()
        self.fault = fault
        write_faults(self._state_file, **FAULTS[fault])

    async def drop_setpoints(self) -> None:
        """Have somebody at the device put it back, behind the agent's back."""
        self.seen_us["drop"] = self.now_us()
        with contextlib.suppress(DeviceError):
            await self.device.write(Setpoints(active_power_watts=0))

    async def land(self) -> bool:
        """Have the device do what it was told too long ago; return whether there was any."""
        due = [each for each in self.late if each[0] <= self.now_us()]
        self.late = self.late[len(due) :]
        if due:
            self.seen_us["acts late"] = self.now_us()
        for _, setpoints, reversion in due:
            with contextlib.suppress(DeviceError):
                await self.device.write(setpoints, reversion)
        return bool(due)

    async def turn(self) -> None:
        """Let the agent do what is due."""
        assert self.controller is not None
        await self.controller.turn()

    async def sample(self) -> None:
        """Measure, as the agent does each second."""
        reading = await self._guarded.sample()
        if reading is not None and self.controller is not None:
            self.controller.take(reading)

    def due_us(self) -> int:
        """Return in how many microseconds the agent's loop wakes up by itself."""
        assert self.controller is not None
        return max(1000, round(self.controller.delay_seconds() * SECOND_US))

    def pass_us(self, span_us: int) -> None:
        """Let time pass on the agent's clocks."""
        self.clock.wall_us += span_us
        self.clock.mono_us += span_us
        self.seen_us[self.fault] = self.now_us()
        full, self._refused = self.disk_full or self._refused, False
        if full:
            self.seen_us["disk full"] = self.now_us()
        if self.controller is None:
            self.seen_us["down"] = self.now_us()
        elif self.clock.ntp and not full:
            self.awake_us += span_us
        if self.fault in SILENT or full or self.controller is None:
            self.fog_us += span_us

    def read_account(self) -> list[Entry]:
        """Take what is new in the device's account, and return that."""
        self.device._catch_up()
        with self._account_file.open("rb") as stream:
            stream.seek(self._read_bytes)
            lines = stream.readlines()
        self._read_bytes += sum(map(len, lines))
        fresh = [_entry(json.loads(line)) for line in lines]
        self.account += fresh
        return fresh

    def close(self) -> None:
        self.cut()

    async def _run(self, call: Callable[..., Any], /, *arguments: Any) -> Any:
        self.fuse.burn()
        if self._is_refused():
            raise sqlite3.OperationalError("database or disk is full")
        answer = call(*arguments)
        self.fuse.burn()
        return answer

    def _is_refused(self) -> bool:
        """Pass one call of the ledger; tell whether the disk refuses it."""
        if self.disk_fills_after is not None:
            self.disk_fills_after -= 1
            if self.disk_fills_after < 0:
                self.disk_full, self.disk_fills_after = True, None
        elif self.disk_full and self.disk_clears_after is not None:
            self.disk_clears_after -= 1
            if self.disk_clears_after <= 0:
                self.fill_disk(False)
        if self.disk_full:
            self._refused = True
            self.seen_us["disk full"] = self.now_us()
        return self.disk_full


def _entry(line: dict[str, Any]) -> Entry:
    at_us = line.pop("at_us")
    del line["number"]
    return Entry(at_us=at_us, setpoints=Setpoints(**line))
