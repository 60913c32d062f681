"""Bringing the device to what the executions want, in steps where the asset says so.

A write counts once the device was asked what it holds. One that says something else may show it
late: it is asked again before it is written again, and written only so often. A device with a timer
of its own is armed with each write and written again before the timer runs out, so that it reverts
by itself if the agent dies.
"""

from dataclasses import replace
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
from derops_agent.asset.journal import Journal
from derops_agent.asset.setpoints.evidence import ReadBackJudge
from derops_agent.asset.setpoints.inquiry import Looker
from derops_agent.asset.setpoints.state import LOOK_EVERY_US, DeviceState
from derops_agent.clock import Clock, Moment, moment
from derops_agent.execution import claims, patience, ramp, readback, unconfirmed, windows
from derops_agent.execution.patience import Awaited
from derops_agent.execution.site import AssetSpec, Site, bounded, wanted_setpoints
from derops_agent.execution.state import Execution, Stage
from derops_agent.execution.windows import Executions
from derops_agent.ports import Reversion, Setpoints

REVERSION_MARGIN_SECONDS = 60
"""By how much a device's own timer outlasts the window, so that the agent ends it first."""


class DeviceWriter:
    """Writes one device, and finds out whether it took it."""

    def __init__(self, device: GuardedDevice, journal: Journal, clock: Clock, asset: str) -> None:
        self.state = DeviceState(clock=clock)
        self._device, self._journal, self._clock = device, journal, clock
        self._looker = Looker(device, journal, clock, self.state, asset)
        self._judge = ReadBackJudge(device, journal, clock, self.state, self._looker, asset)
        self.look = self._looker.look
        self._log = structlog.get_logger("holder").bind(asset=asset)

    def due_in_us(self, scope: Executions, asset: AssetSpec | None) -> int | None:
        """Return in how many microseconds this wants to act again; None = not by itself."""
        now_us, state = self._clock.monotonic_us(), self.state
        ahead = []
        ending = claims.without(scope, windows.staying(scope, moment(self._clock)))
        stages = {e.stage for e in ending.values()}
        waits = Stage.APPLYING in stages and Stage.REVERTING not in stages
        held_off_us = state.held_off_us(asset) if waits else 0
        if state.awaited is not None:
            again_us = max(state.retry_at_us - now_us, held_off_us)
            ask_us = state.awaited.ask_at_us - now_us
            ahead.append(min(ask_us, again_us) if state.awaited.is_over else ask_us)
        elif state.failed is not None:
            ahead.append(max(state.retry_at_us - now_us, held_off_us))
        elif state.refresh_at_us is not None:
            ahead.append(max(state.refresh_at_us - now_us, held_off_us))
        if state.ramping and state.stepped_at_us is not None and asset is not None:
            ahead.append(state.stepped_at_us + ramp.step_us(asset) - now_us)
        if held_off_us:
            ahead.append(held_off_us)
        return max(0, min(ahead)) if ahead else None

    async def hold(self, scope: Executions, site: Site) -> None:
        """Write what ``scope`` wants, if that is not what was written."""
        asset, now = site.asset, moment(self._clock)
        if asset is None:
            await self._release_stray(site)
            return
        refresh_at_us = self.state.refresh_at_us
        refresh = refresh_at_us is not None and now.monotonic_us >= refresh_at_us
        if not claims.starting(windows.owners(scope)) and windows.bridged(scope, now):
            self.state.failed = None  # what could not be reverted may stay until then as well
            await self._leave_awaited(scope)
            if refresh:
                await self._prolong(site)
            return
        staying = windows.staying(scope, now)
        scope = self._without_those_aside(scope)
        owners, changing = windows.owners(scope), claims.without(scope, staying)
        target = wanted_setpoints({**staying, **owners}, site.fallback, site.local)
        wanting = claims.wanting(changing, owners)
        same = self._awaits(target, wanting)
        if not refresh and self.state.awaited and self._keeps_waiting(changing, asset, same=same):
            await self._judge.ask_again(claims.without(changing, self._later(owners)), site)
            return
        if not same:
            changing = {**changing, **await self._leave_awaited(changing)}
        step = self._step(target, asset, site)
        on_the_way = step != target and step == self.state.written
        if not refresh and (on_the_way or (not wanting and step == self.state.written)):
            return
        again = target in self.state.tries and wanting <= self.state.tries[target].wanting
        if not again:
            self.state.begin_anew(target, wanting, scope)
        if not refresh and not await self._may_write(target, changing, asset):
            return
        counts = not (again and refresh)
        await self._write(
            changing, step, target, site, wanting=wanting, staying=staying, counts=counts
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

    async def _may_write(self, target: Setpoints, scope: Executions, asset: AssetSpec) -> bool:
        """Tell whether the device may be given ``target`` now; end what it dropped too often."""
        now_us, tries = self._clock.monotonic_us(), self.state.tries[target]
        if target == self.state.failed and now_us < self.state.retry_at_us:
            return False
        most_writes = self._device.capability.read_back.most_writes
        if tries.writes >= most_writes:
            await self._journal.commit(
                readback.wear_out(scope, moment(self._clock), tries.writes, most_writes)
            )
            next_us = tries.last_us + patience.WORN_RETRY_SECONDS * SECOND_US
            starts = claims.starting(windows.owners(scope))
            ends = any(e.stage is Stage.REVERTING for e in scope.values())
            if now_us < next_us or (starts and not ends):
                self.state.failed = target
                self.state.retry_at_us = max(next_us, now_us + LOOK_EVERY_US)
                return False
        return not self.state.pauses(scope, asset)

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

    async def _leave_awaited(self, scope: Executions) -> dict[str, Execution]:
        """Wait for the last write no more, as another follows; return whom that concerns."""
        awaited, self.state.awaited = self.state.awaited, None
        if awaited is None or awaited.is_over:
            return {}
        told = readback.overtaken(scope, awaited.modes, awaited.wrote, awaited.starting)
        await self._journal.commit(told)
        return told

    async def _release_stray(self, site: Site) -> None:
        """Release a setpoint that no ledger owns, however often it takes.

        Limits stay: without a configuration nothing tells what may be lifted.
        """
        if self.state.written is not None or self._clock.monotonic_us() < self.state.retry_at_us:
            return
        held = await self._device.read_setpoints()
        if held is None:
            self.state.try_again({}, Setpoints())
            return
        released = bounded(replace(held, active_power_watts=None), site.local)
        if held.active_power_watts is not None:
            try:
                await self._device.write(released)
            except DeviceError as error:
                delay_us = self.state.try_again({}, released)
                self._log.warning(
                    "setpoint.stray_kept", error=str(error), retry_seconds=delay_us / SECOND_US
                )
                return
            self._log.warning("setpoint.stray_released", watts=held.active_power_watts)
        self.state.written, self.state.failed, self.state.failures = released, None, 0
        self.state.held = released

    async def _write(
        self,
        scope: Executions,
        step: Setpoints,
        target: Setpoints,
        site: Site,
        *,
        wanting: frozenset[str],
        staying: Executions,
        counts: bool,
    ) -> None:
        shows_nothing = ramp.shows_nothing(
            step,
            target,
            site,
            from_watts=ramp.begins_at(self.state.written, site),
            held=self.state.held,
        )
        scope = await self._looker.ask_first(scope, site)
        if site.asset is not None and site.asset.max_ramp_watts_per_second is not None:
            scope = readback.judge_anew(scope, self.state.not_taken)
        owners, armed_seconds, answer = windows.owners(scope), None, "ok"
        failure, held = None, None
        try:
            armed_seconds = await self._device.write(
                step, _reversion(owners or staying, site, moment(self._clock))
            )
            self.state.note_answer()
        except DeviceError as error:
            refused = isinstance(error, DeviceRefusedError)
            answer = "refused" if refused else "timeout"
            held = None if refused and owners else await self._looker.ask()
            if refused:
                self.state.note_answer()
            failure = unconfirmed.WriteFailure(
                message=str(error),
                refused=refused,
                sent=not refused and not isinstance(error, DeviceUnreachableError),
                answers=refused or held is not None,
                is_silence=isinstance(error, DeviceTimeoutError) and not error.answered,
            )
            wrong = held is not None and patience.wrong_modes(scope, step, held, site)
            if held is None or (wrong and not failure.sent):
                await self._judge.note_failure(scope, target, failure, held, site)
                return
            # It acted and its answer is lost, or its own timer did what somebody on site keeps us
            # from: what it says that it holds is better evidence.
            if refused:
                scope = self._looker.look_again(scope, held, site)
        wrote = moment(self._clock)
        metrics.DEVICE_WRITES.labels(answer).inc()
        timer_ends_us, state = self.state.timer_ends_us, self.state
        state.passed = patience.passed(state.passed, state.written, state.held, step, site)
        self.state.note_write(step, target, owners, armed_seconds, pending=bool(wanting))
        if answer == "timeout":
            self.state.note_silence(owners, has_timer=self._device.capability.reversion)
            scope = {**scope, **unconfirmed.send_again(scope, wrote)}
        if counts:
            self.state.tries[target].writes += 1
            self.state.tries[target].last_us = wrote.monotonic_us
        before, read_back = self.state.awaited, self._device.capability.read_back
        repeats = before is not None and before.target == target and not before.is_over
        if before is not None and repeats:
            wrote = before.wrote  # written only to set the device's timer again
        starting = {u: e for u, e in scope.items() if e.stage is Stage.APPLYING}
        keys = {(u, e.target_watts) for u, e in starting.items() if owners.get(e.order.mode) is e}
        self.state.since = {key: self.state.since.get(key, wrote) for key in keys}
        delay_us = 0 if failure else round(read_back.delay_seconds * SECOND_US)
        self.state.awaited = Awaited(
            step=step,
            target=target,
            wrote=wrote,
            wanting=wanting,
            starting=frozenset(e.order.uid for e in owners.values() if e.stage is Stage.APPLYING),
            modes=before.modes if before and repeats else frozenset(),
            shown=before.shown if before and repeats else {},
            behind=before.behind if before and repeats else {},
            ask_at_us=wrote.monotonic_us + delay_us,
            failure=failure,
            timer_ends_us=timer_ends_us,
            shows_nothing=shows_nothing,
        )
        if failure is not None:
            await self._judge.judge(self.state.awaited, scope, held, site)
        else:
            await self._judge.ask_again(scope, site)

    async def _prolong(self, site: Site) -> None:
        """Have the device keep what it holds until the next window: its timer is about to end."""
        if self.state.written is None:
            self.state.refresh_at_us = None
            return
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


def _reversion(owners: Executions, site: Site, now: Moment) -> Reversion | None:
    ends_us = [e.planned.end_us for e in owners.values() if e.planned]
    if not ends_us or site.asset is None:
        return None
    remaining_seconds = max(0, ceil((min(ends_us) - now.wall_us) / SECOND_US))
    return Reversion(
        after_seconds=remaining_seconds + REVERSION_MARGIN_SECONDS,
        setpoints=site.fallback,
    )
