"""The shell around the decisions for one asset: it stores, writes the device and reports.

One task runs it, so that nothing happens between a decision and its commit. The order is always:
intent on the disk, device, outcome on the disk, report.
"""

import asyncio
import random
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field, replace

import structlog

from derops.checks import Refusal
from derops.errors import DeviceError, DeviceRefusedError
from derops.ids import AssetName
from derops.lifecycle import Reason
from derops.revisions import is_too_far_ahead, seconds_ahead
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_agent import metrics
from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.journal import Journal
from derops_agent.asset.ledger import Alive, Ledger
from derops_agent.asset.setpoints.writer import DeviceWriter
from derops_agent.clock import Clock, Moment, moment
from derops_agent.execution import (
    health,
    resolution,
    restart,
    reversion,
    silence,
    verification,
    windows,
    withdrawal,
)
from derops_agent.execution.acceptance import judge, refuse_power
from derops_agent.execution.site import LocalLimits, Site, whose_values
from derops_agent.execution.state import Execution, Stage
from derops_agent.execution.wire import read_asset, read_order
from derops_agent.ports import Reading, Setpoints
from derops_agent.storage import Runner

_LEDGER_RETRY_SECONDS = 1.0
_STOOD_STILL_US = 5 * SECOND_US
_ALIVE_EVERY_US = 10 * SECOND_US
_MAX_COUNTER = 2**63 - 1  # what a ledger can hold

MAX_HEARD_BYTES = 32 * 1024**2
"""Of what a gateway said and was not handled yet. Beyond, the stream ends; a snapshot tells it."""

MAX_ORDERS = 20_000
"""Dispatches that a ledger remembers, tombstones too. Beyond, no new one is taken."""

MAX_ORDER_BYTES = 4096

EVENT_BYTES = 1024
"""What an event costs beside its messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything between SyncBegin and SyncEnd."""

    revision: agent_pb2.Revision
    asset: dispatch_pb2.Asset
    dispatches: list[dispatch_pb2.Dispatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What changed, and the state that it is from; an older gateway does not say which."""

    part: dispatch_pb2.Asset | dispatch_pb2.Dispatch
    revision: agent_pb2.Revision = field(default_factory=agent_pb2.Revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """A report is durable at the gateway."""

    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The headend is done with a dispatch."""

    uid: str


Event = Snapshot | Change | Acknowledged | Settled | Reading


def order_of(revision: agent_pb2.Revision) -> tuple[int, int, int]:
    """Return what is greater for a newer revision."""
    return revision.era, revision.operator_start_ms, revision.counter


def may_be_kept(revision: agent_pb2.Revision, now_us: int) -> bool:
    """Tell whether a revision may be remembered as the newest.

    One from the future would have all that come later taken for old. It is obeyed all the same: an
    agent whose clock is years slow has to work.
    """
    ahead = is_too_far_ahead(
        era=revision.era, operator_start_ms=revision.operator_start_ms, now_us=now_us
    )
    return not ahead and revision.counter <= _MAX_COUNTER


def weigh(event: Event) -> int:
    """Return about how many bytes of memory an event takes."""
    match event:
        case Snapshot():
            messages = [event.asset, *event.dispatches]
            return sum(EVENT_BYTES + message.ByteSize() for message in messages)
        case Change():
            return EVENT_BYTES + event.part.ByteSize()
        case _:
            return EVENT_BYTES


class AssetController:
    """One asset's dispatches. Events come in by ``take``; the journal reports what happened."""

    def __init__(
        self,
        name: AssetName,
        device: GuardedDevice,
        ledger: Ledger,
        clock: Clock,
        run: Runner,
        *,
        local: LocalLimits,
        max_clock_offset_milliseconds: int = 5000,
        settle_us: int = 5 * SECOND_US,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.on_failsafe: Callable[[], None] = lambda: None
        """Told when failsafe is entered: only a new snapshot ends it."""

        self.on_overrun: Callable[[], None] = lambda: None
        """Told when what came has no room any more: only a new snapshot makes up for it."""

        self.on_ledger: Callable[[str], None] = lambda _: None
        """Told why the ledger takes nothing; empty = it does again."""

        self.journal = Journal(ledger, clock, run, str(name))
        self.revision = self._handled = ledger.revision
        """The newest that was heard; while the ledger takes nothing, ahead of what is handled."""
        self._not_kept = (0, 0)
        self._device, self._ledger, self._clock, self._run = device, ledger, clock, run
        self._draw = draw
        self._holder = DeviceWriter(device, self.journal, clock, str(name))
        self._site = Site(
            capability=device.capability,
            local=local,
            max_clock_offset_milliseconds=max_clock_offset_milliseconds,
            settle_us=settle_us,
        )
        self._inbox: deque[Event] = deque()
        self._unstored: dict[str, Event] = {}
        """The newest of each thing that came while the ledger took nothing: it is handled again."""
        self._heard_bytes = 0
        self._wakeup = asyncio.Event()
        self._resumed = False
        self._found: tuple[Moment, Setpoints] | None = None
        self._measured: Moment | None = None
        self._failsafe = False
        self._ledger_failing = False
        self._contact_us = clock.monotonic_us()
        self._sampled_us = clock.monotonic_us()
        self._health = health.Health()
        self._decided = moment(clock)
        self._advanced: Moment | None = None
        """When starts were last looked at; None = not since this process began."""

        self._log = structlog.get_logger("controller").bind(asset=str(name))

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
        self._heard_bytes += weigh(event)
        if self._heard_bytes > MAX_HEARD_BYTES:
            self.on_overrun()
            return
        if isinstance(event, Snapshot | Change) and self._keeps(event.revision):
            self.revision = max(self.revision, event.revision, key=order_of)
        self._inbox.append(event)
        self._wakeup.set()

    def note_contact(self) -> None:
        """Note that the gateway was heard."""
        self._contact_us = self._clock.monotonic_us()

    def note_missed_sample(self, error: DeviceError | None) -> None:
        """Note that the device was asked for a sample and gave none."""
        fold = health.note_refusal if isinstance(error, DeviceRefusedError) else health.note_missed
        self._health = fold(self._health, str(error), self._moment())

    def device_facts(self) -> agent_pb2.DeviceFacts | None:
        """Return what is wrong with the device now; None = not everything is known yet."""
        if self._site.asset is None:
            return None
        problem = resolution.explain_fallback(self._site)
        return health.write_facts(
            self._health, problem, self._moment(), unheld=self._holder.state.unheld
        )

    def measure_offset(self, milliseconds: int) -> None:
        """Note by how much the gateway's clock is ahead of this one."""
        self._measured = self._moment()
        self._site = replace(self._site, clock_offset_milliseconds=milliseconds)
        self.journal.clock_offset_milliseconds = milliseconds
        if not self._resumed:
            self._wakeup.set()

    async def boot(self) -> None:
        """Load the ledger and put the device where it belongs, whether or not that is stored."""
        await self.journal.load()
        self._rebase()
        for execution in list(self.journal.values()):
            self.journal.set_in_memory(restart.after_restart(execution, self._last_stored()))
        asset = await self._run(self._ledger.asset)
        if asset is not None:
            self._site = replace(self._site, asset=read_asset(asset))
        await self.step()

    async def run(self) -> None:
        """Do what is due, for ever."""
        while True:
            self._wakeup.clear()
            await self.step()
            if self._inbox and not self._ledger_failing:
                continue
            try:
                async with asyncio.timeout(self.delay_seconds()):
                    await self._wakeup.wait()
            except TimeoutError:
                continue

    async def step(self) -> None:
        """Do a turn; where the ledger takes nothing, end what is to end and wait for it."""
        try:
            if self._ledger_failing:
                await self.journal.catch_up()
                self._inbox.extendleft(reversed(self._unstored.values()))
                self._unstored.clear()
            await self.turn()
        except sqlite3.Error as error:
            self._note_ledger(str(error))
            with self.journal.outliving():
                await self._end_what_is_to_end()
        else:
            self._note_ledger("")

    def _note_ledger(self, problem: str) -> None:
        if bool(problem) == self._ledger_failing:
            return
        self._ledger_failing = bool(problem)
        self.on_ledger(problem)
        if problem:
            self._log.error("ledger.failed", error=problem)
        else:
            self._log.info("ledger.recovered")

    async def _end_what_is_to_end(self) -> None:
        """End what is over or withdrawn though it cannot be stored; nothing begins."""
        while self._inbox:
            await self._foresee(self._inbox[0])
            self._put_off(self._inbox.popleft())
        self._heard_bytes = sum(weigh(event) for event in self._unstored.values())
        if not self._resumed:
            await self._put_to_fallback()
            return
        held = {uid: e for uid, e in self.journal.items() if e.may_be_on_device or e.may_land}
        if not held:
            return
        after = self._without_points(self._without_contact(held))
        awaited = self._holder.state.starts_awaited
        await self.journal.commit(windows.advance(after, self._moment(), awaited=awaited))
        await self._holder.look({uid: self.journal[uid] for uid in held}, self._site)
        await self._holder.hold({uid: self.journal[uid] for uid in held}, self._site)

    def _put_off(self, event: Event) -> None:
        """Keep an event that was foreseen until it can be stored, and none that it makes void."""
        match event:
            case Snapshot():
                self._unstored = {"": event}
            case Change(part=dispatch_pb2.Asset()):
                self._unstored.pop("asset", None)
                self._unstored["asset"] = event
            case Change(part=dispatch_pb2.Dispatch(uid=uid)) | Settled(uid=uid):
                self._unstored.pop(f"dispatch {uid}", None)
                self._unstored[f"dispatch {uid}"] = event
            case Acknowledged():
                self.journal.acknowledge(event.sequence)

    async def _foresee(self, event: Event) -> None:
        """Have an event that cannot be stored end what it ends; the rest of it waits."""
        match event:
            case Snapshot():
                await self._foresee_asset(event.asset)
                await self._order_again(event.dispatches)
                present = {order.uid for order in event.dispatches}
                await self._withdraw(self.journal.keys() - present)
            case Change(part=dispatch_pb2.Asset() as part):
                await self._foresee_asset(part)
            case Change(part=dispatch_pb2.Dispatch() as part):
                await self._order_again([part])
            case Settled():
                await self._withdraw(self.journal.keys() & {event.uid})
            case Reading():
                await self._observe(event)

    async def _foresee_asset(self, asset: dispatch_pb2.Asset) -> None:
        self._site = replace(self._site, asset=read_asset(asset))
        await self._bind()

    async def _order_again(self, messages: Iterable[dispatch_pb2.Dispatch]) -> None:
        """Fold repeated orders into those that were accepted."""
        orders = [read_order(message) for message in messages if message.uid in self.journal]
        await self.journal.commit(
            {
                order.uid: withdrawal.order_again(self.journal[order.uid], order, self._moment())
                for order in orders
            }
        )

    async def turn(self) -> None:
        """Handle all events that came, then do what the clock says."""
        while self._inbox:
            await self._handle(self._inbox[0])
            self._inbox.popleft()  # now: what could not be stored is to be handled again
        self._heard_bytes = 0
        self._decided = self._moment()
        if not self._resumed and not await self._resume():
            await self._put_to_fallback()
            return
        await self.journal.commit(self._without_points(self._without_contact(self.journal)))
        self._decided = self._moment()
        await self.journal.commit(
            windows.advance(
                self.journal,
                self._decided,
                refuse=self._refuse_start,
                held_off=self._look_around().explain_hold_off(self._decided.wall_us),
                awaited=self._holder.state.starts_awaited,
                idle=self._explain_idle(self._decided),
            )
        )
        self._advanced = self._decided
        await self._holder.look(self.journal, self._site)
        await self._holder.hold(self.journal, self._site)
        state = self._holder.state
        await self.journal.commit(
            silence.mark_silent(self.journal, state.silence, self._moment(), self._site.rule)
        )
        await self.journal.commit(
            reversion.mark_unreverted(
                self.journal, state.stuck, state.stuck_us, self._moment(), self._site.rule
            )
        )
        if self.holding and self.journal.idle_us > _ALIVE_EVERY_US:
            await self.journal.save_progress()
        await self.journal.forget()

    async def _handle(self, event: Event) -> None:
        match event:
            case Snapshot():
                await self._take_snapshot(event)
            case Acknowledged():
                self.journal.acknowledge(event.sequence)
            case Settled():
                await self._drop({event.uid})
            case Reading():
                await self._observe(event)
            case Change():
                await self._take_change(event)

    async def _take_snapshot(self, snapshot: Snapshot) -> None:
        self._site = replace(self._site, asset=read_asset(snapshot.asset))
        self._handled = snapshot.revision
        self._failsafe = False
        self.note_contact()
        await self._take_orders(
            snapshot.dispatches,
            asset=snapshot.asset,
            revision=snapshot.revision if self._keeps(snapshot.revision) else None,
        )
        await self._bind()
        present = {order.uid for order in snapshot.dispatches}
        await self._drop(self.journal.keys() - present)

    async def _take_change(self, change: Change) -> None:
        newer = order_of(change.revision) > order_of(self._handled)
        revision = change.revision if newer and self._keeps(change.revision) else None
        if isinstance(change.part, dispatch_pb2.Asset):
            self._site = replace(self._site, asset=read_asset(change.part))
            await self.journal.commit({}, asset=change.part, revision=revision)
            await self._bind()
        else:
            await self._take_orders([change.part], revision=revision)
        if newer:
            self._handled = change.revision

    def _keeps(self, revision: agent_pb2.Revision) -> bool:
        """Tell whether a revision may be kept; one that may not is counted and told once."""
        now_us = self._clock.now_us()
        if may_be_kept(revision, now_us):
            return True
        era, start_ms = revision.era, revision.operator_start_ms
        if self._not_kept != (era, start_ms):
            self._not_kept = (era, start_ms)
            metrics.REVISIONS_AHEAD.inc()
            seconds = seconds_ahead(era=era, operator_start_ms=start_ms, now_us=now_us)
            self._log.warning(
                "revision.not_kept", era=era, start_ms=start_ms, ahead_seconds=seconds
            )
        return False

    async def _bind(self) -> None:
        """Hold what was accepted to the asset's limits as they are now."""
        bound = withdrawal.bind(
            self.journal, self._site, self._moment(), self._holder.state.silence
        )
        await self.journal.commit(bound)

    async def _drop(self, uids: set[str]) -> None:
        """End what the headend no longer has; it is forgotten once its last report arrived."""
        known = uids & self.journal.keys()
        self.journal.mark_absent(known)
        await self._withdraw(known)

    async def _withdraw(self, uids: Set[str]) -> None:
        now = self._moment()
        await self.journal.commit({uid: withdrawal.cancel(self.journal[uid], now) for uid in uids})

    async def _take_orders(
        self,
        messages: list[dispatch_pb2.Dispatch],
        *,
        asset: dispatch_pb2.Asset | None = None,
        revision: agent_pb2.Revision | None = None,
    ) -> None:
        result: dict[str, Execution] = {}
        messages = [message for message in messages if self._has_room(message)]
        for message in messages:
            order, now = read_order(message), self._moment()
            if order.uid not in self.journal:
                await self.journal.recall(order.uid)
            known = self.journal.get(order.uid)
            result[order.uid] = (
                judge(order, self._look_around(), now_us=now.wall_us, draw=self._draw())
                if known is None
                else withdrawal.order_again(known, order, now)
            )
        self.journal.mark_present(set(result))
        await self.journal.commit(
            result,
            orders={message.uid: message for message in messages},
            asset=asset,
            revision=revision,
        )

    def _has_room(self, message: dispatch_pb2.Dispatch) -> bool:
        """Tell whether an order can be remembered; no honest headend has so many, or so great."""
        uid, ledger = message.uid, self._ledger
        known = uid in self.journal or ledger.may_have_tombstone(uid)
        full = len(self.journal) + ledger.tombstones >= MAX_ORDERS
        if known or not (full or message.ByteSize() > MAX_ORDER_BYTES):
            return True
        metrics.ORDERS_NOT_TAKEN.inc()
        self._log.error("order.not_taken", dispatch_uid=uid[:64], size=message.ByteSize())
        return False

    async def _observe(self, reading: Reading) -> None:
        self._sampled_us = self._clock.monotonic_us()
        for point in reading.bad_points:
            if point.name not in self._health.bad:
                self._log.warning(
                    "point.bad", point=point.name, raw=point.raw, problem=point.problem
                )
        self._health = health.note_sample(self._health, reading, self._moment())
        metrics.BAD_POINTS.inc(len(reading.bad_points))
        self._holder.state.note_answer()
        before = self._site.reading
        if before is not None and before.local_control and not reading.local_control:
            self._holder.state.try_now()
        self._site = replace(self._site, reading=reading, capability=self._device.capability)
        rule, asset = self._site.rule, self._site.asset
        displaced = self._holder.state.displaced(self.journal)
        for execution in list(self.journal.values()):
            if execution.order.uid in displaced:
                continue  # it is not known whose power this is
            observed = verification.observe(execution, reading, rule, self._moment())
            self.journal.set_in_memory(observed)
        seen = {
            uid: verification.tell_first_verdict(execution, now_us=reading.at_us, rule=rule)
            for uid, execution in self.journal.items()
        }
        reserve_percent = asset.min_reserve_percent if asset else None
        await self.journal.commit(
            withdrawal.check_running(seen, reading, reserve_percent, self._moment())
        )

    def _look_around(self) -> Site:
        """Return the site with what time alone changes."""
        now = self._moment()
        held_off_us = self._holder.state.held_off_us(self._site.asset)
        offset, measured = self._site.clock_offset_milliseconds, self._measured
        if offset is not None and measured is not None:
            # The clock may have been set since it was compared.
            set_us = (now.wall_us - measured.wall_us) - (now.monotonic_us - measured.monotonic_us)
            offset -= round(set_us / 1000)
        return replace(
            self._site,
            clock_offset_milliseconds=offset,
            health=self._health,
            monotonic_us=now.monotonic_us,
            silent_us=now.monotonic_us - self._sampled_us,
            next_write_us=now.wall_us + held_off_us if held_off_us else 0,
        )

    def _refuse_start(self, execution: Execution) -> Refusal | None:
        planned = execution.planned
        seconds = (planned.end_us - self._clock.now_us()) / SECOND_US if planned else 0
        site = self._look_around()
        return (
            self._refuse_silence()
            or refuse_power(execution.order, site)
            or site.refuse_start(
                execution.order.mode,
                execution.target_watts,
                seconds,
                verify_required=execution.order.verify_required,
            )
        )

    def _explain_idle(self, now: Moment) -> Refusal:
        """Return why a start that has been missed since the last look was missed."""
        before = self._advanced
        if before is None:
            return Refusal(
                reason=Reason.AGENT_RESTARTED,
                message="the agent restarted, and did not take it up until then",
            )
        stood_us = now.monotonic_us - before.monotonic_us
        set_us = now.wall_us - before.wall_us - stood_us
        if self._ledger_failing:
            words = f"for {stood_us / SECOND_US:.0f} s the agent could not store anything"
        elif set_us > SECOND_US:
            words = f"the agent's clock was set forward by {set_us / SECOND_US:.0f} s"
        elif stood_us > _STOOD_STILL_US:
            words = f"the agent stood still for {stood_us / SECOND_US:.0f} s"
        else:
            return windows.NOT_STARTED
        return replace(windows.NOT_STARTED, message=words)

    def _refuse_silence(self) -> Refusal | None:
        if not self._failsafe or self._site.asset is None:
            return None
        limit_us = self._site.asset.failsafe_after_seconds * SECOND_US
        # It lasts until the snapshot is whole, when a gateway is heard again.
        silent_us = max(limit_us, self._clock.monotonic_us() - self._contact_us)
        return Refusal(
            reason=Reason.COMMS_LOSS_FAILSAFE,
            message=(
                f"no gateway was heard for {silent_us / SECOND_US:.0f} s (failsafeAfterSeconds "
                f"{limit_us // SECOND_US} s)"
            ),
        )

    async def _resume(self) -> bool:
        """Take up what was stored, once the clock can be believed; return whether it is done."""
        alive = self.journal.alive
        pending = any(e.stage is not Stage.DONE for e in self.journal.values())
        if pending and not self._clock_is_good(self._moment(), alive):
            return False
        if pending:
            self._rebase()
            held = await self._device.read_setpoints()
            revert = self._site.asset is not None and self._site.asset.revert_on_restart
            whose = {} if held is None else whose_values(self.journal, held, self._site)
            await self.journal.commit(
                {
                    uid: restart.resume(
                        execution,
                        self._moment(),
                        revert=revert,
                        held=None if held is None else uid in whose.get(execution.order.mode, ()),
                        another=bool(whose.get(execution.order.mode, frozenset()) - {uid}),
                        last_held_us=self._last_held(execution).wall_us,
                    )
                    for uid, execution in self.journal.items()
                }
            )
        self._resumed = True
        self.journal.believes_clock = True
        return True

    async def _put_to_fallback(self) -> None:
        """Leave nothing on the device before what was stored is taken up; note what it held.

        Of a window that had ended as planned nothing is told before: whether that was late is not
        known yet.
        """
        reverting = {
            uid: execution
            for uid, execution in self.journal.items()
            if execution.stage is Stage.REVERTING and not execution.awaits_clock
        }
        if self._found is None or any(e.held_since for e in reverting.values()):
            held = await self._device.read_setpoints()
            if held is not None:
                self._found = self._found or (self._moment(), held)
                for uid, execution in reverting.items():
                    if not self._site.holds(held, execution):
                        reverting[uid] = execution.stop_holding(self._last_held(execution))
                        self.journal.set_in_memory(reverting[uid])
        await self._holder.hold(reverting, self._site)

    def _last_held(self, execution: Execution) -> Moment:
        """Return when the device, which holds it no more, is last known to have held it.

        While the wall clock is not believed, that is at the latest as the agent started.
        """
        now, alive = self._moment(), self.journal.alive
        if self._found is not None:
            found_at, held = self._found
            if self._site.holds(held, execution) or not self._clock_is_good(now, alive):
                return now.back(now.monotonic_us - found_at.monotonic_us)
        return now.back_to(alive.at_us)

    def _last_stored(self) -> Moment:
        """Return when the agent last stored anything, on this boot's clock as it is believed."""
        now, alive = self._moment(), self.journal.alive
        if alive.boot_id != self._clock.boot_id() and not self._clock_is_good(now, alive):
            return replace(now, wall_us=alive.at_us)
        return now.back_to(alive.at_us)

    def _rebase(self) -> None:
        """After a boot, count on this boot's monotonic clock.

        Before the wall clock is believed nobody knows for how long it was off: that is not counted.
        """
        alive = self.journal.alive
        if alive.boot_id != self._clock.boot_id():
            now = self._moment()
            if not self._clock_is_good(now, alive):
                now = replace(now, wall_us=alive.at_us)
            for execution in list(self.journal.values()):
                self.journal.set_in_memory(restart.rebase(execution, now))

    def _clock_is_good(self, now: Moment, alive: Alive) -> bool:
        offset = self._site.clock_offset_milliseconds
        confirmed = (
            alive.boot_id == self._clock.boot_id()
            or self._clock.synchronised()
            or (offset is not None and abs(offset) <= self._site.max_clock_offset_milliseconds)
        )
        return confirmed and now.wall_us >= alive.at_us

    def _without_contact(self, scope: windows.Executions) -> windows.Executions:
        """Return ``scope`` as it is after a look at for how long no gateway was heard."""
        self._check_contact()
        if not self._failsafe or self._site.asset is None:
            return scope
        seconds = self._site.asset.failsafe_after_seconds
        return withdrawal.lose_contact(scope, self._moment(), seconds)

    def _without_points(self, scope: windows.Executions) -> windows.Executions:
        """Return ``scope`` as it is after a look at which points the device does not tell."""
        return withdrawal.check_points(scope, self._look_around(), self._moment())

    def _check_contact(self) -> None:
        asset = self._site.asset
        if asset is None or not asset.revert_on_comms_loss or self._failsafe:
            return
        silent_us = self._clock.monotonic_us() - self._contact_us
        if asset.failsafe_after_seconds and silent_us > asset.failsafe_after_seconds * SECOND_US:
            self._failsafe = True
            self._log.warning("failsafe.entered", silent_seconds=silent_us / SECOND_US)
            self.on_failsafe()

    def delay_seconds(self) -> float:
        """Return how long nothing can be due; short, so that a step of the clock is seen."""
        now = self._moment()
        if self._ledger_failing:
            return _LEDGER_RETRY_SECONDS
        unfinished = [e for e in self.journal.values() if e.stage is not Stage.DONE or e.may_land]
        wait_us = (1 if unfinished or self.journal.forgettable else 30) * SECOND_US
        for due_us in (
            windows.next_wakeup_us(unfinished, self._decided, now),
            self._holder.due_in_us(self.journal, self._site.asset),
        ):
            if due_us is not None:
                wait_us = min(wait_us, due_us)
        return max(0.001, wait_us / SECOND_US)

    def _moment(self) -> Moment:
        return moment(self._clock)
