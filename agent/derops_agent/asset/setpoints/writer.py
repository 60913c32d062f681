"""Bringing the device to what the executions want, in steps where the asset says so.

What changes by that is returned, and stored by whoever calls: before a write what was found by
asking, as it is written over; after it the outcome.

A write counts once the device was asked what it holds. One that says something else may show it
late: it is asked again before it is written again, and written only so often. A device with a timer
of its own is armed with each write and written again before the timer runs out, so that it reverts
by itself if the agent dies.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil

import structlog

from derops.errors import (
    DeviceError,
    DeviceRefusedError,
    DeviceTimeoutError,
    DeviceUnreachableError,
)
from derops.schedules import SECOND_US
from derops_agent import metrics
from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.setpoints.evidence import ReadBackJudge
from derops_agent.asset.setpoints.inquiry import Looker
from derops_agent.asset.setpoints.state import LOOK_EVERY_US, DeviceState
from derops_agent.clock import Clock, Moment, moment
from derops_agent.execution import claims, patience, ramp, readback, unconfirmed, windows
from derops_agent.execution.patience import Awaited
from derops_agent.execution.site import AssetSpec, Site, bounded, wanted_setpoints
from derops_agent.execution.state import Stage
from derops_agent.execution.windows import Executions
from derops_agent.ports import Reversion, Setpoints

REVERSION_MARGIN_SECONDS = 60
"""By how much a device's own timer outlasts the window, so that the agent ends it first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What comes before a write, and the write."""

    changed: Executions = field(default_factory=dict)
    """To be stored before: what was found by asking may be written over."""

    write: Callable[[], Awaitable[Executions]] | None = None
    """Writes the device, and returns what changed by it; None = nothing is to be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A write that is due."""

    step: Setpoints
    target: Setpoints
    """What the device is to hold in the end."""

    site: Site
    wanting: frozenset[str]
    staying: Executions
    ramps: bool
    """The asset limits how fast its power may change."""

    counts: bool
    """It was not written before, or not only to set the device's timer again."""

    shows_nothing: bool
    """See ``Awaited``."""


class DeviceWriter:
    """Writes one device, and finds out whether it took it."""

    def __init__(self, device: GuardedDevice, clock: Clock, asset: str) -> None:
        self.state = DeviceState(clock=clock)
        self._device, self._clock = device, clock
        self._looker = Looker(device, clock, self.state, asset)
        self._judge = ReadBackJudge(device, clock, self.state, self._looker, asset)
        self.look = self._looker.look
        self._log = structlog.get_logger("holder").bind(asset=asset)

    # Branches: what may keep a device from being written, one after the other.
    async def prepare(self, scope: Executions, site: Site) -> Prepared:
        """Find out what ``scope`` wants of the device next, and ask first what that would undo."""
        asset, now, state = site.asset, moment(self._clock), self.state
        if asset is None:
            return Prepared(write=partial(self._release_stray, site))
        refresh = state.refresh_at_us is not None and now.monotonic_us >= state.refresh_at_us
        if not claims.starting(windows.owners(scope)) and windows.bridged(scope, now):
            state.failed = None  # what could not be reverted may stay until then as well
            write = partial(self._prolong, site) if refresh else None
            return Prepared(changed=self._leave_awaited(scope), write=write)
        staying = windows.staying(scope, now)
        scope = self._without_those_aside(scope)
        owners, changing = windows.owners(scope), claims.without(scope, staying)
        target = wanted_setpoints({**staying, **owners}, site.fallback, site.local)
        wanting = claims.wanting(changing, owners)
        same = self._awaits(target, wanting)
        if not refresh and state.awaited and self._keeps_waiting(changing, asset, same=same):
            asked = claims.without(changing, self._later(owners))
            return Prepared(changed=await self._judge.ask_again(asked, site))
        changed = {} if same else self._leave_awaited(changing)
        changing = {**changing, **changed}
        step = self._step(target, asset, site)
        on_the_way = step != target and step == state.written
        if not refresh and (on_the_way or (not wanting and step == state.written)):
            return Prepared(changed=changed)
        again = target in state.tries and wanting <= state.tries[target].wanting
        if not again:
            state.begin_anew(target, wanting, scope)
        if not refresh:
            worn = self._worn_out(target, changing)
            if worn or not self._may_write(target, changing, asset):
                return Prepared(changed={**changed, **worn})
        plan = _Plan(
            step=step,
            target=target,
            site=site,
            wanting=wanting,
            staying=staying,
            ramps=asset.max_ramp_watts_per_second is not None,
            counts=not (again and refresh and state.tries[target].writes),
            shows_nothing=self._shows_nothing(step, target, site),
        )
        found = await self._looker.ask_first(changing, site)
        return Prepared(
            changed={**changed, **found}, write=partial(self._write, plan, {**changing, **found})
        )

    def _awaits(self, target: Setpoints, wanting: frozenset[str]) -> bool:
        """Tell whether this was written for the same, and is waited for."""
        awaited = self.state.awaited
        return awaited is not None and awaited.target == target and wanting <= awaited.wanting

    def _keeps_waiting(self, scope: Executions, asset: AssetSpec, *, same: bool) -> bool:
        """Tell whether what is waited for is not to be followed by another write yet."""
        if self.state.pauses(scope, asset):
            return True
        over = self.state.awaited is not None and self.state.awaited.is_over
        return same and not (over and self._clock.monotonic_us() >= self.state.retry_at_us)

    def _later(self, owners: Executions) -> Executions:
        """Return the starts that are not in the write that is waited for."""
        written = self.state.awaited.starting if self.state.awaited is not None else frozenset()
        return {
            mode: e
            for mode, e in owners.items()
            if e.stage is Stage.APPLYING and e.order.uid not in written
        }

    def _step(self, target: Setpoints, asset: AssetSpec, site: Site) -> Setpoints:
        last_us = self.state.stepped_at_us
        return ramp.next_step(
            target,
            asset,
            site,
            from_watts=ramp.begins_at(self.state.written, site),
            passed_us=None if last_us is None else self._clock.monotonic_us() - last_us,
        )

    def _shows_nothing(self, step: Setpoints, target: Setpoints, site: Site) -> bool:
        from_watts = ramp.begins_at(self.state.written, site)
        return ramp.shows_nothing(step, target, site, from_watts=from_watts, held=self.state.held)

    def _worn_out(self, target: Setpoints, scope: Executions) -> Executions:
        """Return those that the device dropped too often, as ended."""
        tries, most_writes = self.state.tries[target], self._device.capability.read_back.most_writes
        if self._is_held_back(target) or tries.writes < most_writes:
            return {}
        return readback.wear_out(scope, moment(self._clock), tries.writes, most_writes)

    def _may_write(self, target: Setpoints, scope: Executions, asset: AssetSpec) -> bool:
        """Tell whether the device may be given ``target`` now."""
        if self._is_held_back(target):
            return False
        now_us, tries = self._clock.monotonic_us(), self.state.tries[target]
        if tries.writes >= self._device.capability.read_back.most_writes:
            next_us = tries.last_us + patience.WORN_RETRY_SECONDS * SECOND_US
            starts = claims.starting(windows.owners(scope))
            ends = any(e.stage is Stage.REVERTING for e in scope.values())
            if now_us < next_us or (starts and not ends):
                self.state.failed = target
                self.state.retry_at_us = max(next_us, now_us + LOOK_EVERY_US)
                return False
        return not self.state.pauses(scope, asset)

    def _is_held_back(self, target: Setpoints) -> bool:
        """Tell whether the device has not taken this, and is to be left alone for a while."""
        return target == self.state.failed and self._clock.monotonic_us() < self.state.retry_at_us

    def _without_those_aside(self, scope: Executions) -> Executions:
        """Return ``scope`` without the starts that are to wait for another write."""
        starting, state = claims.starts(scope), self.state
        uids = {e.order.uid for e in starting}
        state.not_taken = {uid: n for uid, n in state.not_taken.items() if uid in uids}
        state.kept &= claims.ending(scope.values())
        state.apart = state.apart and bool(starting)
        aside = claims.to_put_aside(
            scope,
            windows.staying(scope, moment(self._clock)),
            not_taken=state.not_taken,
            kept=state.kept,
            apart=state.apart,
        )
        return claims.without(scope, {e.order.uid: e for e in aside})

    def _leave_awaited(self, scope: Executions) -> Executions:
        """Wait for the last write no more, as another follows; return whom that concerns."""
        awaited, self.state.awaited = self.state.awaited, None
        if awaited is None or awaited.is_over:
            return {}
        return readback.overtaken(scope, awaited.modes, awaited.wrote, awaited.starting)

    async def _release_stray(self, site: Site) -> Executions:
        """Release a setpoint that no ledger owns, however often it takes.

        Limits stay: without a configuration nothing tells what may be lifted.
        """
        if self.state.written is not None or self._clock.monotonic_us() < self.state.retry_at_us:
            return {}
        held = await self._device.read_setpoints()
        if held is None:
            self.state.try_again({}, Setpoints())
            return {}
        released = bounded(replace(held, active_power_watts=None), site.local)
        if held.active_power_watts is not None:
            try:
                await self._device.write(released)
            except DeviceError as error:
                delay_us = self.state.try_again({}, released)
                self._log.warning(
                    "setpoint.stray_kept", error=str(error), retry_seconds=delay_us / SECOND_US
                )
                return {}
            self._log.warning("setpoint.stray_released", watts=held.active_power_watts)
        self.state.written, self.state.failed, self.state.failures = released, None, 0
        self.state.held = released
        return {}

    async def _write(self, plan: _Plan, scope: Executions) -> Executions:
        """Write the device, and return what it makes of ``scope`` as far as the device shows it."""
        site = plan.site
        if plan.ramps:
            scope = readback.judge_anew(scope, self.state.not_taken)
        owners, armed_seconds, failure, held = windows.owners(scope), None, None, None
        try:
            armed_seconds = await self._device.write(
                plan.step, _reversion(owners or plan.staying, site, moment(self._clock))
            )
            self.state.note_answer()
        except DeviceError as error:
            held, failure = await self._ask_what_it_did(error, owners)
            wrong = held is not None and patience.wrong_modes(scope, plan.step, held, site)
            if held is None or (wrong and not failure.sent):
                return self._judge.note_failure(scope, plan.target, failure, held, site)
            # It acted and its answer is lost, or its own timer did what somebody on site keeps us
            # from: what it says that it holds is better evidence.
            if failure.refused:
                scope = self._looker.look_again(scope, held, site)
        scope, awaited = self._note_written(plan, scope, armed_seconds, failure)
        if failure is not None:
            return self._judge.judge(awaited, scope, held, site)
        return await self._judge.ask_again(scope, site)

    async def _ask_what_it_did(
        self, error: DeviceError, owners: Executions
    ) -> tuple[Setpoints | None, unconfirmed.WriteFailure]:
        """Ask a device that did not confirm a write what it holds now."""
        refused = isinstance(error, DeviceRefusedError)
        held = None if refused and owners else await self._looker.ask()
        if refused:
            self.state.note_answer()
        return held, unconfirmed.WriteFailure(
            message=str(error),
            refused=refused,
            sent=not refused and not isinstance(error, DeviceUnreachableError),
            answers=refused or held is not None,
            is_silence=isinstance(error, DeviceTimeoutError) and not error.answered,
        )

    def _note_written(
        self,
        plan: _Plan,
        scope: Executions,
        armed_seconds: int | None,
        failure: unconfirmed.WriteFailure | None,
    ) -> tuple[Executions, Awaited]:
        """Note that the device was told a step; return ``scope`` by that, and what is awaited.

        Args:
            plan: What was written.
            scope: All.
            armed_seconds: When its own timer reverts it; None = it has none.
            failure: What it answered instead of confirming the write; None = it confirmed it.
        """
        wrote, owners = moment(self._clock), windows.owners(scope)
        state, target = self.state, plan.target
        timer_ends_us = state.timer_ends_us
        state.passed = patience.passed(
            state.passed, state.written, state.held, plan.step, plan.site
        )
        state.note_write(plan.step, target, owners, armed_seconds, pending=bool(plan.wanting))
        answer = "ok" if failure is None else "refused" if failure.refused else "timeout"
        metrics.DEVICE_WRITES.labels(answer).inc()
        if answer == "timeout":
            state.note_silence(owners, has_timer=self._device.capability.reversion)
            scope = {**scope, **unconfirmed.send_again(scope, wrote)}
        if plan.counts:
            state.tries[target].writes += 1
            state.tries[target].last_us = wrote.monotonic_us
        delay_seconds = 0 if failure else self._device.capability.read_back.delay_seconds
        awaited = Awaited(
            step=plan.step,
            target=target,
            wrote=wrote,
            first_us=wrote.monotonic_us,
            wanting=plan.wanting,
            starting=frozenset(e.order.uid for e in claims.starts(scope)),
            ask_at_us=wrote.monotonic_us + round(delay_seconds * SECOND_US),
            failure=failure,
            timer_ends_us=timer_ends_us,
            shows_nothing=plan.shows_nothing,
        )
        before = state.awaited
        if before is not None and before.target == target and not before.is_over:
            scope, awaited = self._repeat(scope, before, awaited)
        state.note_starting(scope, awaited.wrote)
        state.awaited = awaited
        return scope, awaited

    def _repeat(
        self, scope: Executions, before: Awaited, again: Awaited
    ) -> tuple[Executions, Awaited]:
        """Note that a write only repeats one that is waited for, to set the device's timer."""
        awaited = patience.written_again(before, again)
        if awaited.wrote != before.wrote:
            self.state.forget_starting(before.wrote)
            scope = readback.forget_letting_go(scope, before.wrote)
        return scope, awaited

    async def _prolong(self, site: Site) -> Executions:
        """Have the device keep what it holds until the next window: its timer is about to end."""
        if self.state.written is None:
            self.state.refresh_at_us = None
            return {}
        reversion = Reversion(after_seconds=REVERSION_MARGIN_SECONDS, setpoints=site.fallback)
        armed_seconds = None
        try:
            armed_seconds = await self._device.write(self.state.written, reversion)
        except DeviceError as error:
            self._log.warning("setpoint.not_prolonged", error=str(error))
        wait_us = armed_seconds * SECOND_US // 2 if armed_seconds else patience.LEAST_RETRY_US
        now_us = self._clock.monotonic_us()
        self.state.refresh_at_us = now_us + wait_us
        if armed_seconds:
            self.state.timer_ends_us = now_us + armed_seconds * SECOND_US
        return {}


def _reversion(owners: Executions, site: Site, now: Moment) -> Reversion | None:
    ends_us = [e.planned.end_us for e in owners.values() if e.planned]
    if not ends_us or site.asset is None:
        return None
    remaining_seconds = max(0, ceil((min(ends_us) - now.wall_us) / SECOND_US))
    return Reversion(
        after_seconds=remaining_seconds + REVERSION_MARGIN_SECONDS,
        setpoints=site.fallback,
    )
