"""The shell around the decisions for one asset: it stores, writes the device and reports.

One task runs it, so that nothing happens between a decision and its commit. The order is always:
take what came, decide, intent on the disk, device, outcome on the disk, report. The journal knows
what goes on where the disk takes nothing.
"""

import asyncio
import random
from collections.abc import Callable

import structlog

from derops.checks import Refusal
from derops.errors import DeviceError
from derops.ids import AssetName
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_agent.asset.contact import Contact
from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.inbox import Acknowledged, Change, Event, Inbox, Settled, Snapshot
from derops_agent.asset.journal import Journal
from derops_agent.asset.ledger import Ledger
from derops_agent.asset.orders import Orders
from derops_agent.asset.outlet import Outlet
from derops_agent.asset.revisions import Revisions
from derops_agent.asset.setpoints.schedule import due_in_us
from derops_agent.asset.setpoints.writer import DeviceWriter
from derops_agent.asset.site_state import SiteState
from derops_agent.asset.startup import Startup
from derops_agent.asset.writes import write_what_is_due
from derops_agent.clock import Clock, Moment, moment
from derops_agent.execution import (
    reversion,
    silence,
    verification,
    windows,
    withdrawal,
)
from derops_agent.execution.acceptance import refuse_power
from derops_agent.execution.site import LocalLimits, Site
from derops_agent.execution.state import Execution, Stage
from derops_agent.ports import Reading
from derops_agent.storage import Runner

_LEDGER_RETRY_SECONDS = 1.0
_ALIVE_EVERY_US = 10 * SECOND_US


class AssetController:
    """One asset's dispatches. Events come in by ``take``; the outlet is told what happened."""

    def __init__(
        self,
        name: AssetName,
        device: GuardedDevice,
        ledger: Ledger,
        clock: Clock,
        run: Runner,
        *,
        outlet: Outlet,
        local: LocalLimits,
        max_clock_offset_milliseconds: int = 5000,
        settle_us: int = 5 * SECOND_US,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.journal = Journal(ledger, clock, run, outlet)
        self.revisions = Revisions(ledger.revision, clock)
        self.inbox = Inbox()
        self._device, self._ledger, self._clock, self._run = device, ledger, clock, run
        self._outlet = outlet
        self._writer = DeviceWriter(device, clock)
        site = Site(
            capability=device.capability,
            local=local,
            max_clock_offset_milliseconds=max_clock_offset_milliseconds,
            settle_us=settle_us,
        )
        self._known = SiteState(site, clock)
        self._orders = Orders(self.journal, ledger, self._known, self._writer, clock, draw)
        self._startup = Startup(self.journal, device, self._writer, clock)
        self._contact = Contact(clock)
        self._wakeup = asyncio.Event()
        self._ledger_failing = False
        self._decided = moment(clock)
        self._advanced: Moment | None = None
        """When starts were last looked at; None = not since this process began."""

        self._log = structlog.get_logger("controller")

    @property
    def holding(self) -> bool:
        """Whether the device may hold a setpoint, which is to be measured."""
        return any(e.stage in (Stage.HOLDING, Stage.REVERTING) for e in self.journal.values())

    @property
    def telemetry_interval_seconds(self) -> int:
        """How often the asset wants a sample."""
        return self._site.asset.telemetry_interval_seconds if self._site.asset else 10

    def take(self, event: Event) -> None:
        """Have an event handled in its turn."""
        if not self.inbox.put(event):
            self._outlet.note_overrun()
            return
        if isinstance(event, Snapshot | Change):
            self.revisions.note_heard(event.revision)
        self._wakeup.set()

    def note_contact(self) -> None:
        """Note that the gateway was heard."""
        self._contact.note()

    def note_missed_sample(self, error: DeviceError | None) -> None:
        """Note that the device was asked for a sample and gave none."""
        self._known.note_missed_sample(error)

    def device_facts(self) -> agent_pb2.DeviceFacts | None:
        """Return what is wrong with the device now; None = not everything is known yet."""
        return self._known.device_facts(self._writer.state.unheld)

    def measure_offset(self, milliseconds: int) -> None:
        """Note by how much the gateway's clock is ahead of this one."""
        self._known.note_offset(milliseconds)
        self.journal.clock_offset_milliseconds = milliseconds
        if not self._startup.done:
            self._wakeup.set()

    async def boot(self) -> None:
        """Load the ledger and put the device where it belongs, whether or not that is stored."""
        await self._startup.load(self._site)
        asset = await self._run(self._ledger.asset)
        if asset is not None:
            self._known.configure(asset)
        await self.turn()

    async def run(self) -> None:
        """Do what is due, for ever."""
        while True:
            self._wakeup.clear()
            await self.turn()
            if self.inbox and not self._ledger_failing:
                continue
            try:
                async with asyncio.timeout(self.delay_seconds()):
                    await self._wakeup.wait()
            except TimeoutError:
                continue

    def _note_ledger(self, problem: str) -> None:
        if bool(problem) == self._ledger_failing:
            return
        self._ledger_failing = bool(problem)
        self._outlet.note_ledger(problem)
        if problem:
            self._log.error("ledger.failed", why=problem)
        else:
            self._log.info("ledger.recovered")

    async def turn(self) -> None:
        """Handle all events that came, then do what the clock says.

        What the ledger does not take is handled again once it does; what counts without it, does.
        """
        if await self.journal.catch_up():
            self.inbox.take_up_again()
        while self.inbox:
            await self._handle(self.inbox.first)
            if self.journal.failing:
                self.inbox.put_off_first()
            else:
                self.inbox.remove_first()
        self.inbox.recount()
        self._decided = self._moment()
        if self._startup.done or await self._startup.resume(self._site):
            await self._do_what_is_due()
        else:
            await self._startup.put_to_fallback(self._site)
        self._note_ledger(self.journal.problem)

    async def _do_what_is_due(self) -> None:
        journal = self.journal
        await journal.commit(self._without_points(self._without_contact(journal.scope)))
        self._decided = self._moment()
        await journal.commit(
            windows.advance(
                journal.scope,
                self._decided,
                refuse=self._refuse_start,
                held_off=self._site_now().explain_hold_off(self._decided.wall_us),
                awaited=self._writer.state.starts_awaited,
                idle=windows.explain_missed(
                    self._advanced, self._decided, failing=self._ledger_failing
                ),
            )
        )
        if not journal.failing:
            self._advanced = self._decided
        await journal.commit(await self._writer.look(journal.scope, self._site))
        await write_what_is_due(journal, self._writer, journal.scope, self._site)
        state, now = self._writer.state, self._moment()
        await journal.commit(silence.mark_silent(journal, state.silence(now), now, self._site.rule))
        await journal.commit(
            reversion.mark_unreverted(
                journal, state.stuck, state.stuck_us, self._moment(), self._site.rule
            )
        )
        if self.holding and journal.idle_us > _ALIVE_EVERY_US:
            await journal.save_progress()
        await journal.forget()

    async def _handle(self, event: Event) -> None:
        match event:
            case Snapshot():
                await self._take_snapshot(event)
            case Acknowledged():
                self.journal.acknowledge(event.sequence)
            case Settled():
                await self._orders.drop({event.uid})
            case Reading():
                await self._observe(event)
            case Change():
                await self._take_change(event)

    async def _take_snapshot(self, snapshot: Snapshot) -> None:
        self._known.configure(snapshot.asset)
        await self._orders.take(
            snapshot.dispatches,
            asset=snapshot.asset,
            revision=snapshot.revision if self.revisions.keeps(snapshot.revision) else None,
        )
        await self._orders.bind()
        present = {order.uid for order in snapshot.dispatches}
        await self._orders.drop(self.journal.keys() - present)
        if not self.journal.failing:
            self.revisions.handled = snapshot.revision
            self._contact.restore()

    async def _take_change(self, change: Change) -> None:
        newer = self.revisions.is_news(change.revision)
        revision = change.revision if newer and self.revisions.keeps(change.revision) else None
        if isinstance(change.part, dispatch_pb2.Asset):
            self._known.configure(change.part)
            await self.journal.commit({}, asset=change.part, revision=revision)
            await self._orders.bind()
        else:
            await self._orders.take([change.part], revision=revision)
        if newer and not self.journal.failing:
            self.revisions.handled = change.revision

    async def _observe(self, reading: Reading) -> None:
        left_local_control = self._known.note_sample(reading, self._device.capability)
        self._writer.note_sample(left_local_control=left_local_control)
        rule, asset = self._site.rule, self._site.asset
        displaced = self._writer.state.displaced(self.journal)  # whose power it is, is not known
        observed = {
            uid: execution
            if uid in displaced
            else verification.observe(execution, reading, rule, self._moment())
            for uid, execution in self.journal.items()
        }
        seen = {
            uid: verification.tell_first_verdict(execution, now_us=reading.at_us, rule=rule)
            for uid, execution in observed.items()
        }
        reserve_percent = asset.min_reserve_percent if asset else None
        await self.journal.commit(
            withdrawal.check_running(seen, reading, reserve_percent, self._moment())
        )

    @property
    def _site(self) -> Site:
        return self._known.site

    def _site_now(self) -> Site:
        return self._known.now(self._writer.state)

    def _refuse_start(self, execution: Execution) -> Refusal | None:
        planned = execution.planned
        seconds = (planned.end_us - self._clock.now_us()) / SECOND_US if planned else 0
        site = self._site_now()
        return (
            self._contact.refuse_start(site.asset)
            or refuse_power(execution.order, site)
            or site.refuse_start(
                execution.order.mode,
                execution.target_watts,
                seconds,
                verify_required=execution.order.verify_required,
            )
        )

    def _without_contact(self, scope: windows.Executions) -> windows.Executions:
        """Return ``scope`` as it is after a look at for how long no gateway was heard."""
        if self._contact.enters_failsafe(self._site.asset):
            self._outlet.note_failsafe()
        if not self._contact.failsafe or self._site.asset is None:
            return scope
        seconds = self._site.asset.failsafe_after_seconds
        return withdrawal.lose_contact(scope, self._moment(), seconds)

    def _without_points(self, scope: windows.Executions) -> windows.Executions:
        """Return ``scope`` as it is after a look at which points the device does not tell."""
        return withdrawal.check_points(scope, self._site_now(), self._moment())

    def delay_seconds(self) -> float:
        """Return how long nothing can be due; short, so that a step of the clock is seen."""
        now = self._moment()
        if self._ledger_failing:
            return _LEDGER_RETRY_SECONDS
        unfinished = [e for e in self.journal.values() if e.stage is not Stage.DONE or e.may_land]
        wait_us = (1 if unfinished or self.journal.forgettable else 30) * SECOND_US
        for due_us in (
            windows.next_wakeup_us(unfinished, self._decided, now),
            due_in_us(self._writer.state, self.journal, self._site.asset, now),
        ):
            if due_us is not None:
                wait_us = min(wait_us, due_us)
        return max(0.001, wait_us / SECOND_US)

    def _moment(self) -> Moment:
        return moment(self._clock)
