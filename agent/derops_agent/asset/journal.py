"""Executions in memory, the same on the disk, and the reports of them.

A change counts only once it is durable, and is reported only then. Where the ledger takes nothing,
``execution.durability`` says what counts all the same; it is still reported only once it is stored.
"""

import asyncio
import sqlite3
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import structlog

from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_agent import metrics
from derops_agent.asset.ledger import Alive, Entry, Ledger
from derops_agent.asset.outlet import Outlet
from derops_agent.clock import Clock
from derops_agent.execution.durability import counts_unstored, is_progress, under_way
from derops_agent.execution.state import Execution, Stage
from derops_agent.execution.wire import write_report
from derops_agent.storage import Runner

TOMBSTONE_US = 24 * 3600 * SECOND_US
FORGET_AFTER_US = SECOND_US
"""For so long what is settled waits for a commit to go with."""


class Journal(Mapping[str, Execution]):
    """All executions that are not settled, by uid."""

    def __init__(self, ledger: Ledger, clock: Clock, run: Runner, outlet: Outlet) -> None:
        self.clock_offset_milliseconds: int | None = None
        self.believes_clock = False
        """Whether the wall clock may become the last time that is known to be good."""
        self.alive = Alive(at_us=0, boot_id="")
        """When the agent last stored anything before this start."""
        self._ledger, self._clock, self._run = ledger, clock, run
        self._outlet = outlet
        self._executions: dict[str, Execution] = {}
        self._reports: dict[str, dispatch_pb2.DispatchReport] = {}
        self._sequence = 0
        self._acknowledged: set[str] = set()
        self._absent: set[str] = set()
        self._saved_us = 0
        self.problem = ""
        """Why the ledger took nothing; empty = it took the last. No more is tried until
        ``catch_up``."""
        self._unstored: dict[str, Execution] = {}
        """What the ledger has of those that went on without it."""
        self._log = structlog.get_logger("journal")

    def __getitem__(self, uid: str) -> Execution:
        return self._executions[uid]

    def __iter__(self) -> Iterator[str]:
        return iter(self._executions)

    def __len__(self) -> int:
        return len(self._executions)

    @property
    def failing(self) -> bool:
        """Whether the ledger took nothing when it was last tried."""
        return bool(self.problem)

    @property
    def scope(self) -> Mapping[str, Execution]:
        """What goes on: all, or what may while the ledger takes nothing."""
        return under_way(self) if self.failing else self

    @property
    def idle_us(self) -> int:
        """For how long nothing was stored."""
        return self._clock.monotonic_us() - self._saved_us

    async def load(self) -> None:
        """Read the ledger."""
        stored = await self._run(self._ledger.unsettled)
        self.alive = await self._run(lambda: self._ledger.alive)
        self._sequence = await self._run(lambda: self._ledger.report_sequence)
        for entry in stored:
            self._executions[entry.execution.order.uid] = entry.execution
            self._reports[entry.execution.order.uid] = entry.report

    def reread(self, executions: Mapping[str, Execution]) -> None:
        """Take what was stored as it is known now. It is not stored: whoever reads it finds it."""
        self._executions |= executions

    def reports(self) -> list[dispatch_pb2.DispatchReport]:
        """Return the latest report of each, oldest first."""
        return sorted(self._reports.values(), key=lambda report: report.sequence)

    async def recall(self, uid: str) -> None:
        """Bring a settled execution back, if its tombstone is there: the headend asks again.

        While the ledger cannot be read that is not known.
        """
        if self.failing or not self._ledger.may_have_tombstone(uid):
            return
        try:
            stored = await self._run(self._ledger.tombstone, uid)
        except sqlite3.Error as error:
            self._note_failure(error)
            return
        if stored is not None:
            self._executions[uid] = stored.execution
            self._reports[uid] = stored.report
            self._outlet.report(stored.report)

    async def commit(
        self,
        result: Mapping[str, Execution],
        *,
        orders: Mapping[str, dispatch_pb2.Dispatch] = MappingProxyType({}),
        asset: dispatch_pb2.Asset | None = None,
        revision: agent_pb2.Revision | None = None,
    ) -> None:
        """Store what differs, then let it count and report it.

        Progress needs no disk. Where the ledger takes nothing, what counts unstored does so, and
        is told once it is stored; of the rest it is as if nobody had asked for it.

        Args:
            result: Executions, by uid.
            orders: Those that came with it.
            asset: The configuration that came with it.
            revision: The desired state that it is from.
        """
        changed = self._take_progress(result, orders)
        if not changed and asset is None and revision is None:
            return
        if await self._store(changed, orders, asset, revision):
            return
        for uid, execution in changed.items():
            before = self._executions.get(uid)
            if before is not None and counts_unstored(before, execution):
                self._unstored.setdefault(uid, before)
                self._executions[uid] = execution

    async def commit_whole(self, result: Mapping[str, Execution]) -> bool:
        """Store what differs, as ``commit``, or have none of it count; return whether it does."""
        changed = self._take_progress(result, {})
        return not changed or await self._store(changed)

    async def catch_up(self) -> bool:
        """Store and tell what could not be stored; return whether the ledger takes it again."""
        if not self.failing:
            return False
        self.problem = ""
        return await self._store({uid: self._executions[uid] for uid in self._unstored})

    def _take_progress(
        self, result: Mapping[str, Execution], orders: Mapping[str, dispatch_pb2.Dispatch]
    ) -> dict[str, Execution]:
        """Let progress count; return what is to be stored: what else differs, and what came."""
        changed = {}
        for uid, execution in result.items():
            before = self._executions.get(uid)
            if before is not None and execution != before and is_progress(before, execution):
                before = self._executions[uid] = execution
            if uid in orders or execution != before:
                changed[uid] = execution
        return changed

    async def _store(
        self,
        changed: Mapping[str, Execution],
        orders: Mapping[str, dispatch_pb2.Dispatch] = MappingProxyType({}),
        asset: dispatch_pb2.Asset | None = None,
        revision: agent_pb2.Revision | None = None,
    ) -> bool:
        """Store all of it and tell it, or do nothing; return which."""
        entries = [
            Entry(execution=execution, order=orders.get(uid), report=self._report(execution))
            for uid, execution in changed.items()
        ]
        if not await self._save(entries, asset, revision):
            return False
        await self._tell(entries)
        return True

    def _note_failure(self, error: sqlite3.Error) -> None:
        self.problem = str(error) or type(error).__name__

    async def _tell(self, entries: list[Entry]) -> None:
        before = {
            entry.uid: self._unstored.pop(entry.uid, None) or self._executions.get(entry.uid)
            for entry in entries
        }
        for entry in entries:
            self._executions[entry.uid] = entry.execution
            if entry.report is not None:
                self._reports[entry.uid] = entry.report
                self._acknowledged.discard(entry.uid)
                self._outlet.report(entry.report)
        await asyncio.sleep(0)  # the reports leave first: people wait for them
        for entry in entries:
            self._note_steps(before[entry.uid], entry.execution)

    async def save_progress(self) -> None:
        """Store all as they stand, without a report."""
        await self._save([Entry(execution=execution) for execution in self.values()])

    def acknowledge(self, sequence: int) -> None:
        """Note that a report is durable at the gateway."""
        for uid, report in self._reports.items():
            if report.sequence == sequence:
                self._acknowledged.add(uid)

    def mark_present(self, uids: set[str]) -> None:
        """Note that the headend has these, after all."""
        self._absent -= uids

    def mark_absent(self, uids: set[str]) -> None:
        """Note that the headend no longer has these."""
        self._absent |= uids

    @property
    def forgettable(self) -> set[str]:
        """What is finished here, absent there, and whose last report has arrived."""
        told = (self._absent & self._acknowledged) - self._unstored.keys()
        return {uid for uid in told if self[uid].stage is Stage.DONE and not self[uid].may_land}

    async def forget(self) -> None:
        """Forget what can be, where no commit came that it could have gone with.

        Whoever waits for an answer is not to wait for this.
        """
        if self.forgettable and self.idle_us >= FORGET_AFTER_US:
            await self._save([])

    async def _save(
        self,
        entries: list[Entry],
        asset: dispatch_pb2.Asset | None = None,
        revision: agent_pb2.Revision | None = None,
    ) -> bool:
        """Have the ledger take it, and what can be forgotten with it; return whether it did."""
        if self.failing:
            return False
        alive = self.alive
        if self.believes_clock:
            alive = Alive(at_us=self._clock.now_us(), boot_id=self._clock.boot_id())
        self._saved_us = self._clock.monotonic_us()
        settled = self._settled_with({entry.uid for entry in entries})
        try:
            await self._run(
                lambda: self._ledger.save(
                    entries, alive=alive, asset=asset, revision=revision, settled=settled
                )
            )
        except sqlite3.Error as error:
            self._note_failure(error)
            return False
        for uid in settled:
            del self._executions[uid], self._reports[uid]
        self._absent -= settled.keys()
        self._acknowledged -= settled.keys()
        return True

    def _settled_with(self, changed: set[str]) -> dict[str, int]:
        """Return until when a tombstone is kept of what can be forgotten in the same commit."""
        now_us = self._clock.now_us()
        ends_us = {
            uid: planned.end_us if (planned := self._executions[uid].planned) else now_us
            for uid in self.forgettable - changed
        }
        return {uid: max(end_us, now_us) + TOMBSTONE_US for uid, end_us in ends_us.items()}

    def _report(self, execution: Execution) -> dispatch_pb2.DispatchReport | None:
        """Return a new report if it says something that the last one did not."""
        last = self._reports.get(execution.order.uid)
        offset = self.clock_offset_milliseconds
        report = write_report(
            execution,
            sequence=last.sequence if last else 0,
            ledger_id=self._ledger.ledger_id,
            clock_offset_milliseconds=offset,
        )
        if last is not None:
            known = dispatch_pb2.DispatchReport()
            known.CopyFrom(last)
            known.ClearField("clock_offset_milliseconds")
            if offset is not None:
                known.clock_offset_milliseconds = offset
            if report == known:
                return None
        self._sequence += 1
        report.sequence = self._sequence
        return report

    def _note_steps(self, before: Execution | None, execution: Execution) -> None:
        if execution.reverted_us and not (before and before.reverted_us):
            late_seconds = (execution.reverted_us - execution.ended_us) / SECOND_US
            self._log.info(
                "dispatch.reverted", **execution.order.log_fields, late_seconds=late_seconds
            )
        for step in execution.steps[len(before.steps) if before else 0 :]:
            metrics.count_transition(step.phase, step.reason)
            self._log.info(
                "dispatch.moved",
                **execution.order.log_fields,
                phase=step.phase,
                reason=step.reason,
                why=step.message,
            )
