"""Bringing the device to what the executions want, in steps where the asset says so.

A write counts once the device was asked what it holds: one that says something else has not been
written. A device with a timer of its own is armed with each write and written again before the
timer runs out, so that it reverts by itself if the agent dies.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil

import structlog

from derops.errors import DeviceError, DeviceRefusedError, DeviceUnreachableError
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2
from derops_agent import metrics
from derops_agent.clock import Clock, moment
from derops_agent.control import deciding, outcomes
from derops_agent.control.execution import Execution, Moment, Stage
from derops_agent.control.silence import Silence
from derops_agent.control.site import Asset, Site, bounded, wanted_setpoints
from derops_agent.device import GuardedDevice
from derops_agent.journal import Journal
from derops_agent.ports import Reversion, Setpoints

LOOK_EVERY_US = 5 * SECOND_US
"""How often a device that holds a setpoint is asked whether it still does."""

REVERSION_MARGIN_SECONDS = 60
"""By how much a device's own timer outlasts the window, so that the agent ends it first."""

_MISSED_LOOKS = 2
_SUSPECT_US = 120 * SECOND_US  # how long after an unanswered write it may still land
_FIRST_RETRY_US = 250_000
_APPLY_RETRY_US = 1 * SECOND_US
_REVERT_RETRY_US = 60 * SECOND_US

Scope = Mapping[str, Execution]


class Holder:
    """What one device was told, and the next thing to tell it."""

    def __init__(self, device: GuardedDevice, journal: Journal, clock: Clock, asset: str) -> None:
        self._device, self._journal, self._clock = device, journal, clock
        self._written: Setpoints | None = None
        self._held: Setpoints | None = None
        self._failed: Setpoints | None = None
        self._failures = 0
        self._retry_at_us = 0
        self._wrote_at_us: int | None = None
        self._stepped_at_us: int | None = None
        self._refresh_at_us: int | None = None
        self._timer_ends_us: int | None = None
        self._look_at_us = 0
        # What an earlier process has sent may land yet.
        self._suspect_until_us = clock.monotonic_us() + _SUSPECT_US
        self._unanswered = 0
        self._answered: Moment | None = None
        self._heard_us = clock.monotonic_us()
        self._ramping = False
        self._guard = "AgentTimer"
        self._log = structlog.get_logger("holder").bind(asset=asset)

    def try_now(self) -> None:
        """Write again what failed: why it did is over."""
        self._failures, self._retry_at_us = 0, 0

    def note_answer(self) -> None:
        """Note that the device answered, whatever it was asked."""
        if self._unanswered >= _MISSED_LOOKS:
            self._look_at_us = 0
            self.try_now()
        self._answered = moment(self._clock)
        self._unanswered, self._heard_us = 0, self._answered.monotonic_us

    @property
    def silence(self) -> Silence | None:
        """What there is to say of a device that left more than one question without an answer."""
        silent_us = self._clock.monotonic_us() - self._heard_us
        if self._unanswered < _MISSED_LOOKS or silent_us < _MISSED_LOOKS * LOOK_EVERY_US:
            return None
        return Silence(since_us=self._heard_us, last_answer=self._answered)

    def held_off_us(self, asset: Asset | None) -> int:
        """Return for how long the device may not be given a new setpoint."""
        if asset is None or self._wrote_at_us is None:
            return 0
        until_us = self._wrote_at_us + asset.min_seconds_between_writes * SECOND_US
        return max(0, until_us - self._clock.monotonic_us())

    def due_in_us(self, scope: Scope, asset: Asset | None) -> int | None:
        """Return in how many microseconds this wants to act again; None = not by itself."""
        now_us = self._clock.monotonic_us()
        ahead = []
        ending = _without(scope, deciding.staying(scope, moment(self._clock)))
        stages = {e.stage for e in ending.values()}
        waits = Stage.APPLYING in stages and Stage.REVERTING not in stages
        held_off_us = self.held_off_us(asset) if waits else 0
        if self._failed is not None:
            ahead.append(max(self._retry_at_us - now_us, held_off_us))
        elif self._refresh_at_us is not None:
            ahead.append(max(self._refresh_at_us - now_us, held_off_us))
        if self._ramping and self._stepped_at_us is not None and asset is not None:
            ahead.append(self._stepped_at_us + _step_us(asset) - now_us)
        if held_off_us:
            ahead.append(held_off_us)
        return max(0, min(ahead)) if ahead else None

    async def hold(self, scope: Scope, site: Site) -> None:
        """Write what ``scope`` wants, if that is not what was written."""
        asset, now = site.asset, moment(self._clock)
        if asset is None:
            await self._release_stray(site)
            return
        owners, staying = deciding.owners(scope), deciding.staying(scope, now)
        target = wanted_setpoints({**staying, **owners}, site.fallback, site.local)
        refresh = self._refresh_at_us is not None and now.monotonic_us >= self._refresh_at_us
        if not _starting(owners) and deciding.bridged(scope, now):
            self._failed = None  # what could not be reverted may stay until then as well
            if refresh:
                await self._prolong(site)
            return
        changing = _without(scope, staying)
        pending = _pending(changing, owners)
        step = self._step(target, asset, site, now)
        on_the_way = step != target and step == self._written
        if not refresh and (on_the_way or (not pending and step == self._written)):
            return
        if target == self._failed and now.monotonic_us < self._retry_at_us:
            return
        reverting = any(e.stage is Stage.REVERTING for e in changing.values())
        if _starting(owners) and not reverting and self.held_off_us(asset):
            return
        if target != self._failed:
            self._failures = 0  # those were of another target: a revert must not wait for a start's
        await self._write(changing, step, target, site, pending=pending, staying=staying)

    async def _release_stray(self, site: Site) -> None:
        """Release a setpoint that no ledger owns, however often it takes.

        Limits stay: without a configuration nothing tells what may be lifted.
        """
        if self._written is not None or self._clock.monotonic_us() < self._retry_at_us:
            return
        held = await self._device.read_setpoints()
        if held is None:
            self._try_again({}, Setpoints())
            return
        released = bounded(replace(held, active_power_watts=None), site.local)
        if held.active_power_watts is not None:
            try:
                await self._device.write(released)
            except DeviceError as error:
                delay_us = self._try_again({}, released)
                self._log.warning(
                    "setpoint.stray_kept", error=str(error), retry_seconds=delay_us / SECOND_US
                )
                return
            self._log.warning("setpoint.stray_released", watts=held.active_power_watts)
        self._written, self._failed, self._failures = released, None, 0

    async def look(self, scope: Scope, site: Site) -> None:
        """Ask the device whether it still holds what it was told, now and then."""
        now_us = self._clock.monotonic_us()
        holding = any(e.held_since or e.may_land for e in scope.values())
        due = now_us >= self._look_at_us or self._asks_before_writing(scope)
        if not due or not (holding or now_us < self._suspect_until_us):
            return
        self._look_at_us = now_us + LOOK_EVERY_US
        if self._written is None and not holding:
            return
        held = await self._ask()
        if held is None:
            await self._journal.commit(outcomes.miss_answer(scope))
            return
        suspect = now_us < self._suspect_until_us
        if suspect and self._written is not None and self._held is not None and held != self._held:
            self._log.warning("setpoint.landed_late", held=str(held), wanted=str(self._written))
            self._written = self._held = None
        scope = {**scope, **await self._find_late(scope, held, site)}
        after = self._look_again(scope, held, site)
        if not suspect:
            after |= outcomes.rule_out(after)
        if any(e.held_since and not after[u].held_since for u, e in scope.items()):
            self.try_now()
        for uid, execution in after.items():
            # That all is as it was is no news: it is stored with the progress.
            if execution == replace(scope[uid], confirmed=execution.confirmed):
                self._journal.set_in_memory(execution)
        await self._journal.commit(after)

    def _asks_before_writing(self, scope: Scope) -> bool:
        """Tell whether a device that was silent is to be written: before, it may have let go."""
        if not self._unanswered:
            return False
        if self._failed is not None and self._clock.monotonic_us() >= self._retry_at_us:
            return True
        owners = deciding.owners(scope)
        return _starting(owners) or (self._failed is None and _pending(scope, owners))

    async def _ask(self) -> Setpoints | None:
        held = await self._device.read_setpoints()
        if held is None:
            self._unanswered += 1
        else:
            self.note_answer()
        return held

    def _look_at_others(
        self, scope: Scope, wrong: Mapping[str, str], held: Setpoints, site: Site
    ) -> dict[str, Execution]:
        """Return those that still hold the device where what was to take their place did not."""
        owners = deciding.owners(scope)
        others = {
            uid: execution
            for uid, execution in scope.items()
            if execution.order.mode in wrong and uid not in {e.order.uid for e in owners.values()}
        }
        return self._look_again(others, held, site)

    def _look_again(self, scope: Scope, held: Setpoints, site: Site) -> dict[str, Execution]:
        return outcomes.look_again(
            scope, held, site, moment(self._clock), timer_ends_us=self._timer_ends_us
        )

    def _step(self, target: Setpoints, asset: Asset, site: Site, now: Moment) -> Setpoints:
        """Return the part of the way to ``target`` that the ramp allows now."""
        ramp, goal_watts = asset.max_ramp_watts_per_second, target.active_power_watts
        if ramp is None or goal_watts is None:
            return target
        from_watts = self._power_watts(site)
        if from_watts == goal_watts:
            return target
        step_us, last_us = _step_us(asset), self._stepped_at_us
        if last_us is not None and now.monotonic_us - last_us < step_us:
            return replace(target, active_power_watts=from_watts)
        most_watts = ramp * step_us // SECOND_US
        way_watts = max(-most_watts, min(goal_watts - from_watts, most_watts))
        return bounded(replace(target, active_power_watts=from_watts + way_watts), site.local)

    def _power_watts(self, site: Site) -> int:
        """Return where a ramp begins: the value that was written, else the measured power."""
        if self._written is not None and self._written.active_power_watts is not None:
            return self._written.active_power_watts
        if site.reading is None or site.is_silent:
            return 0
        return round(site.reading.values.get(agent_pb2.Quantity.ACTIVE_POWER_WATTS, 0.0))

    async def _write(
        self,
        scope: Scope,
        step: Setpoints,
        target: Setpoints,
        site: Site,
        *,
        pending: bool,
        staying: Scope,
    ) -> None:
        scope = await self._ask_first(scope, site)
        owners, armed_seconds, answer = deciding.owners(scope), None, "ok"
        try:
            armed_seconds = await self._device.write(
                step, _reversion(owners or staying, site, moment(self._clock))
            )
            self.note_answer()
            held = await self._device.read_setpoints()
        except DeviceError as error:
            refused = isinstance(error, DeviceRefusedError)
            answer = "refused" if refused else "timeout"
            held = None if refused and owners else await self._ask()
            if refused:
                self.note_answer()
            if held is None or _wrong(scope, step, held, site):
                failure = outcomes.WriteFailure(
                    message=str(error),
                    refused=refused,
                    sent=not refused and not isinstance(error, DeviceUnreachableError),
                    answers=refused or held is not None,
                )
                await self._note_failure(scope, target, failure, site)
                return
            # It acted and its answer is lost, or its own timer did what somebody on site keeps us
            # from: what it says that it holds is better evidence.
            if refused:
                scope = self._look_again(scope, held, site)
        metrics.DEVICE_WRITES.labels(answer).inc()
        timer_ends_us = self._timer_ends_us
        self._note_write(step, target, owners, armed_seconds, pending=pending)
        if _wrong(scope, step, held, site):
            # What the device did not take did not set its timer either.
            self._timer_ends_us = timer_ends_us
        if answer == "timeout":
            self._note_silence(owners)
            scope = {**scope, **outcomes.send_again(scope, moment(self._clock))}
        await self._note_success(scope, step, target, held, site)

    async def _ask_first(self, scope: Scope, site: Site) -> Scope:
        """Ask a device what it took of what it left unanswered, before that is written over."""
        if not any(e.is_doubtful or e.may_land for e in scope.values()):
            return scope
        held = await self._ask()
        if held is None:
            missed = outcomes.miss_answer(scope)
            await self._journal.commit(missed)
            return {**scope, **missed}
        return {**scope, **await self._find_late(scope, held, site)}

    async def _find_late(self, scope: Scope, held: Setpoints, site: Site) -> Scope:
        """Return, and store, those that the device is found to hold although they had ended."""
        on_the_way = self._ramping and held == self._held  # a step, whoever wanted the same
        if site.asset is None or on_the_way:
            return {}
        now = moment(self._clock)
        keepers = {**deciding.staying(scope, now), **deciding.owners(scope)}
        wanted = wanted_setpoints(keepers, site.fallback, site.local)
        found = outcomes.find_held(scope, held, wanted, site, now)
        if found:
            self._written = None
        await self._journal.commit(found, happened=True)
        return found

    async def _prolong(self, site: Site) -> None:
        """Have the device keep what it holds until the next window: its timer is about to end."""
        if self._written is None:
            self._refresh_at_us = None
            return
        reversion = Reversion(after_seconds=REVERSION_MARGIN_SECONDS, setpoints=site.fallback)
        armed_seconds = None
        try:
            armed_seconds = await self._device.write(self._written, reversion)
        except DeviceError as error:
            self._log.warning("setpoint.not_prolonged", error=str(error))
        wait_us = armed_seconds * SECOND_US // 2 if armed_seconds else _APPLY_RETRY_US
        now_us = self._clock.monotonic_us()
        self._refresh_at_us = now_us + wait_us
        if armed_seconds:
            self._timer_ends_us = now_us + armed_seconds * SECOND_US

    def _note_write(
        self,
        step: Setpoints,
        target: Setpoints,
        owners: Scope,
        armed_seconds: int | None,
        *,
        pending: bool,
    ) -> None:
        now_us = self._clock.monotonic_us()
        before = self._written.active_power_watts if self._written else None
        if step.active_power_watts != before:
            self._stepped_at_us = now_us
        self._ramping = step != target
        self._written, self._failed = step, None
        if pending:
            self._wrote_at_us = now_us
        self._look_at_us = now_us + LOOK_EVERY_US
        self._refresh_at_us = None
        self._timer_ends_us = now_us + armed_seconds * SECOND_US if armed_seconds else None
        ends_us = [e.planned.end_us for e in owners.values() if e.planned]
        if armed_seconds and ends_us:
            runs_out_us = self._clock.now_us() + armed_seconds * SECOND_US
            # What ended may have to stay until the next window.
            if runs_out_us < min(ends_us) + deciding.GAP_TOLERANCE_US + SECOND_US:
                self._refresh_at_us = now_us + armed_seconds * SECOND_US // 2
        self._guard = "DeviceTimer" if armed_seconds else "AgentTimer"

    def _timer_ends_at(self, now: Moment) -> int:
        """Return when the device's own timer runs out, by the wall clock; 0 = none runs."""
        if self._timer_ends_us is None:
            return 0
        return now.wall_us + self._timer_ends_us - now.monotonic_us

    def _note_silence(self, owners: Scope) -> None:
        """Note that the device acted and did not answer: nobody knows to what its timer is set."""
        now_us = self._clock.monotonic_us()
        self._suspect_until_us = now_us + _SUSPECT_US
        if self._device.capability.reversion and owners:
            self._refresh_at_us = now_us + LOOK_EVERY_US

    async def _note_success(
        self,
        scope: Scope,
        step: Setpoints,
        target: Setpoints,
        held: Setpoints | None,
        site: Site,
    ) -> None:
        now = moment(self._clock)
        self._held = held
        wrong = _wrong(scope, step, held, site)
        if wrong and held is not None:
            scope = {**scope, **self._look_at_others(scope, wrong, held, site)}
        after = outcomes.written(
            scope,
            now,
            rule=site.rule,
            wrong=wrong,
            ramping=self._ramping,
            evidence="Written" if held is None else "ReadBack",
            guard=self._guard,
            timer_ends_us=self._timer_ends_at(now),
        )
        for execution in after.values():
            if execution.applied_us == now.wall_us and execution.planned:
                late_us = now.wall_us - execution.planned.start_us
                metrics.START_LATENESS.observe(late_us / SECOND_US)
        if wrong:
            self._log.warning("setpoint.not_held", modes=sorted(wrong), held=str(held))
            metrics.DEVICE_WRITES.labels("ignored").inc()
            self._suspect_until_us = now.monotonic_us + _SUSPECT_US  # it may take it yet
            self._try_again(scope, target)
        else:
            self._failures = 0
        await self._journal.commit(after, happened=True)

    async def _note_failure(
        self, scope: Scope, wanted: Setpoints, failure: outcomes.WriteFailure, site: Site
    ) -> None:
        now = moment(self._clock)
        reverting = [u for u, e in scope.items() if e.stage is Stage.REVERTING]
        if failure.sent:
            self._suspect_until_us = now.monotonic_us + _SUSPECT_US
        delay_us = self._try_again(scope, wanted)
        metrics.DEVICE_WRITES.labels("refused" if failure.refused else "timeout").inc()
        event = "revert.failed" if reverting else "setpoint.write_failed"
        if reverting:
            metrics.REVERT_FAILURES.inc()
        self._log.warning(
            event,
            error=failure.message,
            retry_seconds=delay_us / SECOND_US,
            dispatch_uids=reverting,
        )
        after = outcomes.write_failed(scope, now, failure, rule=site.rule)
        await self._journal.commit(after, happened=True)

    def _try_again(self, scope: Scope, wanted: Setpoints) -> int:
        """Note that ``wanted`` is not on the device; return when it is tried again, in us."""
        applying = any(e.stage is Stage.APPLYING for e in scope.values())
        most_us = _APPLY_RETRY_US if applying else _REVERT_RETRY_US
        delay_us = min(most_us, _FIRST_RETRY_US << min(self._failures, 16))
        # Whatever was on the device before, nobody knows what is there now.
        self._written, self._failed = None, wanted
        self._failures += 1
        self._retry_at_us = self._clock.monotonic_us() + delay_us
        return delay_us


def _step_us(asset: Asset) -> int:
    return max(1, asset.min_seconds_between_writes) * SECOND_US


def _without(scope: Scope, others: Scope) -> dict[str, Execution]:
    uids = {e.order.uid for e in others.values()}
    return {uid: execution for uid, execution in scope.items() if uid not in uids}


def _starting(owners: Scope) -> bool:
    return any(e.stage is Stage.APPLYING for e in owners.values())


def _pending(scope: Scope, owners: Scope) -> bool:
    return any(e.stage is Stage.REVERTING for e in scope.values()) or any(
        e.stage is Stage.APPLYING or e.held_since is None for e in owners.values()
    )


def _reversion(owners: Scope, site: Site, now: Moment) -> Reversion | None:
    ends_us = [e.planned.end_us for e in owners.values() if e.planned]
    if not ends_us or site.asset is None:
        return None
    remaining_seconds = max(0, ceil((min(ends_us) - now.wall_us) / SECOND_US))
    return Reversion(
        after_seconds=remaining_seconds + REVERSION_MARGIN_SECONDS,
        setpoints=site.fallback,
    )


def _wrong(scope: Scope, wanted: Setpoints, held: Setpoints | None, site: Site) -> dict[str, str]:
    """Return the modes that the device says are not as they were written, with the words for it."""
    if held is None:
        return {}
    modes, wanted = set(site.mismatches(wanted, held)), site.sent(wanted)
    for execution in scope.values():
        # A released value is not compared, but one that is to end must not still be there.
        kept = site.holds(held, execution) and not site.holds(wanted, execution)
        if execution.stage is Stage.REVERTING and kept:
            modes.add(execution.order.mode)
    return dict.fromkeys(modes, f"wrote {wanted}, the device says that it holds {held}")
