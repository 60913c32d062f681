"""Bringing the device to what the executions want, in steps where the asset says so.

A write counts once the device was asked what it holds. One that says something else may show it
late: it is asked again before it is written again, and written only so often. A device with a timer
of its own is armed with each write and written again before the timer runs out, so that it reverts
by itself if the agent dies.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil

import structlog

from derops.errors import DeviceError, DeviceRefusedError, DeviceUnreachableError
from derops.lifecycle import Reason
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
from derops_agent.ports import ReadBack, Reversion, Setpoints

LOOK_EVERY_US = 5 * SECOND_US
"""How often a device that holds a setpoint is asked whether it still does."""

REVERSION_MARGIN_SECONDS = 60
"""By how much a device's own timer outlasts the window, so that the agent ends it first."""

_MISSED_LOOKS = 2
_SUSPECT_US = 120 * SECOND_US  # how long after an unanswered write it may still land
_FIRST_RETRY_US = 250_000
_APPLY_RETRY_US = 1 * SECOND_US
_REVERT_RETRY_US = 60 * SECOND_US

WORN_RETRY_SECONDS = 600
"""How often a device that does not let go is still told to, once it was written often enough."""

Scope = Mapping[str, Execution]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Awaited:
    """A write that the device took, and does not show yet."""

    step: Setpoints
    target: Setpoints
    wrote: Moment
    wanting: frozenset[str]
    """Whose start, end or loss it was written for and is not shown, by uid."""

    starting: frozenset[str]
    """Of these, what was to start."""

    modes: frozenset[str] = frozenset()
    """That are waited for."""

    shown: Mapping[str, str] = field(default_factory=dict)
    """What the device last said of them, in words; empty = it was not asked yet."""

    ask_at_us: int
    failure: outcomes.WriteFailure | None = None
    """Of a write that was not answered."""

    timer_ends_us: int | None = None
    """When the device's own timer runs out if it has not taken this."""

    shows_nothing: bool = False
    """It is a step of a ramp that a device may hold which does not take the setpoint."""

    is_over: bool = False
    """It was waited for long enough to be told; it is asked on until it is written again."""


@dataclass(slots=True)
class _Tries:
    """How often one setpoint was written for the same executions."""

    wanting: frozenset[str] = frozenset()
    writes: int = 0
    last_us: int = 0


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
        self._awaited: _Awaited | None = None
        self._tries: dict[Setpoints, _Tries] = {}
        self._since: dict[tuple[str, int], Moment] = {}
        """When each start was first written, by uid and watts, unless that is known to be void."""

        self._not_taken: set[str] = set()
        """Starts that the device has not taken, whose predecessor is reverted first, by uid."""

        self._kept: set[str] = set()
        """Those to end that the device kept when it was told nothing else, by uid."""

        self._apart = False
        """Starts are written one by one: the device refused several at once."""

        self.stuck: dict[str, str] = {}
        """What the device says of modes that it does not let go, in words."""

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

    @property
    def awaited(self) -> frozenset[str]:
        """Starts that were written a moment ago, and that the device may show yet, by uid."""
        awaited = self._awaited
        begun = frozenset(uid for uid, _ in self._since) if self._ramping else frozenset()
        if awaited is None or awaited.is_over:
            return begun
        return awaited.starting | begun

    def displaced(self, scope: Scope) -> frozenset[str]:
        """Return those over which a start was written that the device does not show yet, by uid."""
        awaited = self._awaited
        if awaited is None or awaited.is_over:
            return frozenset()
        starting = awaited.starting & scope.keys()
        modes = {scope[uid].order.mode for uid in starting} & awaited.modes
        return frozenset(u for u, e in scope.items() if e.order.mode in modes) - starting

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
        if self._awaited is not None:
            again_us = max(self._retry_at_us - now_us, held_off_us)
            ask_us = self._awaited.ask_at_us - now_us
            ahead.append(min(ask_us, again_us) if self._awaited.is_over else ask_us)
        elif self._failed is not None:
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
        refresh = self._refresh_at_us is not None and now.monotonic_us >= self._refresh_at_us
        if not _starting(deciding.owners(scope)) and deciding.bridged(scope, now):
            self._failed = None  # what could not be reverted may stay until then as well
            await self._leave_awaited(scope)
            if refresh:
                await self._prolong(site)
            return
        staying = deciding.staying(scope, now)
        scope = self._without_those_aside(scope)
        owners, changing = deciding.owners(scope), _without(scope, staying)
        target = wanted_setpoints({**staying, **owners}, site.fallback, site.local)
        wanting = _wanting(changing, owners)
        same = self._awaits(target, wanting)
        if not refresh and self._awaited and self._keeps_waiting(changing, asset, same=same):
            await self._ask_again(_without(changing, self._later(owners)), site)
            return
        if not same:
            changing = {**changing, **await self._leave_awaited(changing)}
        step = self._step(target, asset, site, now)
        on_the_way = step != target and step == self._written
        if not refresh and (on_the_way or (not wanting and step == self._written)):
            return
        again = target in self._tries and wanting <= self._tries[target].wanting
        if not again:
            self._begin_anew(target, wanting, scope)
        if not refresh and not await self._may_write(target, changing, asset):
            return
        counts = not (again and refresh)
        await self._write(
            changing, step, target, site, wanting=wanting, staying=staying, counts=counts
        )

    def _awaits(self, target: Setpoints, wanting: frozenset[str]) -> bool:
        """Tell whether this was written for the same, and is waited for."""
        awaited = self._awaited
        return awaited is not None and awaited.target == target and wanting <= awaited.wanting

    def _keeps_waiting(self, scope: Scope, asset: Asset, *, same: bool) -> bool:
        """Tell whether what is waited for is not to be followed by another write yet."""
        if self._pauses(scope, asset):
            return True
        over = self._awaited is not None and self._awaited.is_over
        return same and not (over and self._clock.monotonic_us() >= self._retry_at_us)

    def _later(self, owners: Scope) -> Scope:
        """Return the starts that are not in the write that is waited for."""
        written = self._awaited.starting if self._awaited is not None else frozenset()
        return {
            mode: e
            for mode, e in owners.items()
            if e.stage is Stage.APPLYING and e.order.uid not in written
        }

    def _pauses(self, scope: Scope, asset: Asset) -> bool:
        """Tell whether it is too soon for a start; an end is never too soon."""
        starts = _starting(deciding.owners(scope))
        ends = any(e.stage is Stage.REVERTING for e in scope.values())
        return starts and not ends and self.held_off_us(asset) > 0

    async def _may_write(self, target: Setpoints, scope: Scope, asset: Asset) -> bool:
        """Tell whether the device may be given ``target`` now; end what it dropped too often."""
        now_us, tries = self._clock.monotonic_us(), self._tries[target]
        if target == self._failed and now_us < self._retry_at_us:
            return False
        most_writes = self._device.capability.read_back.most_writes
        if tries.writes >= most_writes:
            await self._journal.commit(
                outcomes.wear_out(scope, moment(self._clock), tries.writes, most_writes)
            )
            next_us = tries.last_us + WORN_RETRY_SECONDS * SECOND_US
            starts = _starting(deciding.owners(scope))
            ends = any(e.stage is Stage.REVERTING for e in scope.values())
            if now_us < next_us or (starts and not ends):
                self._failed = target
                self._retry_at_us = max(next_us, now_us + LOOK_EVERY_US)
                return False
        return not self._pauses(scope, asset)

    def _without_those_aside(self, scope: Scope) -> Scope:
        """Return ``scope`` without the starts that are to wait for another write.

        What a device does not take must not keep its predecessor on it; and of several starts that
        it refuses at once, each is to be judged by its own value.
        """
        starting = sorted(
            (e for e in deciding.owners(scope).values() if e.stage is Stage.APPLYING),
            key=lambda e: e.order.uid,
        )
        self._not_taken &= {e.order.uid for e in starting}
        self._kept &= _ending(scope.values())
        staying = deciding.staying(scope, moment(self._clock))
        leaving = _ending(_without(scope, staying).values()) - self._kept
        modes = {scope[uid].order.mode for uid in leaving if scope[uid].held_since}
        aside = [e for e in starting if e.order.uid in self._not_taken and e.order.mode in modes]
        self._apart = self._apart and bool(starting)
        if self._apart:
            aside += starting[0 if leaving else 1 :]
        return _without(scope, {e.order.uid: e for e in aside})

    def _begin_anew(self, target: Setpoints, wanting: frozenset[str], scope: Scope) -> None:
        """Begin to count, as nobody who wants this now has had it written."""
        self._failures, self._retry_at_us = 0, 0
        self.stuck = {}
        self._tries = {
            setpoints: tries
            for setpoints, tries in self._tries.items()
            if tries.wanting & scope.keys()
        }
        self._tries[target] = _Tries(wanting=wanting)

    async def _leave_awaited(self, scope: Scope) -> dict[str, Execution]:
        """Wait for the last write no more, as another follows; return whom that concerns."""
        awaited, self._awaited = self._awaited, None
        if awaited is None or awaited.is_over:
            return {}
        told = outcomes.overtaken(scope, awaited.modes, awaited.wrote, awaited.starting)
        await self._journal.commit(told, happened=True)
        return told

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
        if (
            self._awaited is None
            and suspect
            and self._written
            and self._held
            and held != self._held
        ):
            self._log.warning("setpoint.landed_late", held=str(held), wanted=str(self._written))
            self._written = self._held = None
        scope = {**scope, **await self._find_late(scope, held, site)}
        after = {**scope, **self._look_again(self._without_awaited(scope), held, site)}
        if not suspect:
            after |= outcomes.rule_out(after)
        await self._note_looked(scope, after)

    async def _note_looked(self, before: Scope, after: Scope) -> None:
        if any(before[u].held_since and not e.held_since for u, e in after.items()):
            self.try_now()
        for uid, execution in after.items():
            # That all is as it was is no news: it is stored with the progress.
            if execution == replace(before[uid], confirmed=execution.confirmed):
                self._journal.set_in_memory(execution)
        await self._journal.commit(after)

    def _without_awaited(self, scope: Scope) -> Scope:
        """Return ``scope`` without those of which the device may show what it held before."""
        awaited = self._awaited
        if awaited is None or awaited.is_over:
            return scope
        return {u: e for u, e in scope.items() if e.order.mode not in awaited.modes}

    def _asks_before_writing(self, scope: Scope) -> bool:
        """Tell whether a device that was silent is to be written: before, it may have let go."""
        if not self._unanswered:
            return False
        if self._failed is not None and self._clock.monotonic_us() >= self._retry_at_us:
            return True
        owners = deciding.owners(scope)
        pending = bool(_wanting(scope, owners))
        return _starting(owners) or (self._failed is None and pending)

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

    def _shows_nothing(self, step: Setpoints, target: Setpoints, site: Site) -> bool:
        """Tell whether a step tells nothing of a device that holds it.

        One that stays where it is obeys nobody; and 0 W is 0 W with another sign or scale too.
        """
        if step == target or step.active_power_watts is None:
            return False
        before = replace(step, active_power_watts=self._power_watts(site))
        watts = site.sent(step).active_power_watts
        return not watts or watts == site.sent(before).active_power_watts

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
        wanting: frozenset[str],
        staying: Scope,
        counts: bool,
    ) -> None:
        shows_nothing = self._shows_nothing(step, target, site)
        scope = await self._ask_first(scope, site)
        owners, armed_seconds, answer = deciding.owners(scope), None, "ok"
        failure, held = None, None
        try:
            armed_seconds = await self._device.write(
                step, _reversion(owners or staying, site, moment(self._clock))
            )
            self.note_answer()
        except DeviceError as error:
            refused = isinstance(error, DeviceRefusedError)
            answer = "refused" if refused else "timeout"
            held = None if refused and owners else await self._ask()
            if refused:
                self.note_answer()
            failure = outcomes.WriteFailure(
                message=str(error),
                refused=refused,
                sent=not refused and not isinstance(error, DeviceUnreachableError),
                answers=refused or held is not None,
            )
            wrong = held is not None and _wrong(scope, step, held, site)
            if held is None or (wrong and not failure.sent):
                await self._note_failure(scope, target, failure, held, site)
                return
            # It acted and its answer is lost, or its own timer did what somebody on site keeps us
            # from: what it says that it holds is better evidence.
            if refused:
                scope = self._look_again(scope, held, site)
        wrote = moment(self._clock)
        metrics.DEVICE_WRITES.labels(answer).inc()
        timer_ends_us = self._timer_ends_us
        self._note_write(step, target, owners, armed_seconds, pending=bool(wanting))
        if answer == "timeout":
            self._note_silence(owners)
            scope = {**scope, **outcomes.send_again(scope, wrote)}
        if counts:
            self._tries[target].writes += 1
            self._tries[target].last_us = wrote.monotonic_us
        before, read_back = self._awaited, self._device.capability.read_back
        repeats = before is not None and before.target == target and not before.is_over
        if before is not None and repeats:
            wrote = before.wrote  # written only to set the device's timer again
        starting = {u: e for u, e in scope.items() if e.stage is Stage.APPLYING}
        keys = {(u, e.target_watts) for u, e in starting.items() if owners.get(e.order.mode) is e}
        self._since = {key: self._since.get(key, wrote) for key in keys}
        delay_us = 0 if failure else round(read_back.delay_seconds * SECOND_US)
        self._awaited = _Awaited(
            step=step,
            target=target,
            wrote=wrote,
            wanting=wanting,
            starting=frozenset(e.order.uid for e in owners.values() if e.stage is Stage.APPLYING),
            modes=before.modes if before and repeats else frozenset(),
            shown=before.shown if before and repeats else {},
            ask_at_us=wrote.monotonic_us + delay_us,
            failure=failure,
            timer_ends_us=timer_ends_us,
            shows_nothing=shows_nothing,
        )
        if failure is not None:
            await self._judge(self._awaited, scope, held, site)
        else:
            await self._ask_again(scope, site)

    async def _ask_again(self, scope: Scope, site: Site) -> None:
        """Ask the device whether it shows what was written, if that is due."""
        awaited = self._awaited
        if awaited is None:
            return
        if self._clock.monotonic_us() >= awaited.ask_at_us:
            await self._judge(awaited, scope, await self._ask(), site)
        elif not awaited.modes:
            words = _explain_wait(self._device.capability.read_back)
            modes = {e.order.mode for u, e in scope.items() if u in awaited.wanting}
            self._awaited = replace(awaited, modes=frozenset(modes))
            await self._journal.commit(
                outcomes.await_read_back(
                    scope, modes, awaited.wrote, Reason.START_DEADLINE_EXCEEDED, words
                ),
                happened=True,
            )

    async def _judge(
        self, awaited: _Awaited, scope: Scope, held: Setpoints | None, site: Site
    ) -> None:
        """Decide by what the device shows, or does not say, whether it has taken a write."""
        read_back, now = self._device.capability.read_back, moment(self._clock)
        next_us = now.monotonic_us + round(read_back.pace_seconds * SECOND_US)
        until_us = awaited.wrote.monotonic_us + round(read_back.patience_seconds * SECOND_US)
        patient = now.monotonic_us < until_us
        wrong = _wrong(scope, awaited.step, held, site)
        if held is None:
            wrong = dict(awaited.shown)  # it may well show that still
        elif wrong and await self._find_late(scope, held, site):
            return  # it was overwritten by what is undone now
        if wrong and awaited.is_over:
            worn = self._tries[awaited.target].writes >= read_back.most_writes
            later_us = max(next_us, now.monotonic_us + LOOK_EVERY_US) if worn else next_us
            self._awaited = replace(awaited, ask_at_us=later_us)
            if held is not None:
                seen = self._look_at_others(scope, wrong, held, site)
                gone = {uid for uid, e in scope.items() if not site.holds(held, e)}
                seen |= outcomes.let_go({**scope, **seen}, gone, now, site.rule)
                await self._note_looked(scope, seen)
            return
        if wrong and patient and held is None:
            self._awaited = replace(awaited, ask_at_us=min(next_us, until_us))
            return
        if not (wrong and patient):
            self._awaited = None
            await self._note_shown(awaited, scope, held, wrong, site)
            return
        uids = frozenset(u for u in awaited.wanting if u in scope and scope[u].order.mode in wrong)
        self._awaited = replace(
            awaited,
            modes=frozenset(wrong),
            shown=wrong,
            wanting=uids,
            starting=awaited.starting & uids,
            ask_at_us=min(next_us, until_us),
        )
        self._tries[awaited.target].wanting &= uids
        for uid, execution in scope.items():
            shown = held is not None and site.holds(held, execution)
            if shown and execution.held_since and execution.order.mode in wrong:
                scope = {**scope, uid: replace(execution, confirmed=now)}
                self._journal.set_in_memory(scope[uid])
        failure = awaited.failure
        words = f"{failure.message}; " if failure else ""
        words += f"{next(iter(wrong.values()))}; {_explain_wait(read_back)}"
        error = Reason.DEVICE_OFFLINE if failure else Reason.START_DEADLINE_EXCEEDED
        waiting = {
            **scope,
            **outcomes.await_read_back(scope, wrong.keys(), awaited.wrote, error, words),
        }
        await self._note_success(waiting, awaited, held, site, wrong={}, awaits=wrong.keys())

    def _ran_out(self, awaited: _Awaited) -> Moment | None:
        """Return when the device's own timer did what it had not done when it was told before."""
        now, ends_us = moment(self._clock), awaited.timer_ends_us
        if ends_us is None or self._tries[awaited.target].writes <= 1:
            return None
        if not awaited.wrote.monotonic_us < ends_us <= now.monotonic_us:
            return None
        return now.back(now.monotonic_us - ends_us)

    def _not_known_by(self, awaited: _Awaited, scope: Scope) -> Scope:
        """Return the start, or what was dropped, that the step of a ramp shows nothing of."""
        owner = deciding.owners(scope).get("ActivePower")
        if not awaited.shows_nothing or owner is None or owner.held_since is not None:
            return {}
        waiting = outcomes.await_read_back(
            scope,
            {"ActivePower"},
            awaited.wrote,
            Reason.START_DEADLINE_EXCEEDED,
            "a step of the ramp is on the device that does not show yet whether it is taken",
        )
        return {owner.order.uid: waiting.get(owner.order.uid, owner)}

    async def _note_shown(
        self,
        awaited: _Awaited,
        scope: Scope,
        held: Setpoints | None,
        wrong: Mapping[str, str],
        site: Site,
    ) -> None:
        """Note what the device has taken of a write, and what it has not for long enough."""
        if not wrong:
            unknown = self._not_known_by(awaited, scope)
            if unknown:
                self._tries[awaited.target].writes -= 1
                scope = {**scope, **unknown}
            elif self._ramping:
                self._tries.pop(awaited.target, None)
            since = moment(self._clock) if awaited.is_over else awaited.wrote
            if (ran_out := self._ran_out(awaited)) is not None:
                since = ran_out
                scope = {uid: replace(e, letting_go=None) for uid, e in scope.items()}
            self._failed, self._written, self.stuck = None, awaited.step, {}
            await self._note_success(
                scope,
                replace(awaited, wrote=since),
                held,
                site,
                wrong={},
                awaits={e.order.mode for e in unknown.values()},
            )
            return
        tries = self._tries[awaited.target]
        tries.wanting &= frozenset(u for u in scope if scope[u].order.mode in wrong)
        most_writes = self._device.capability.read_back.most_writes
        count = f"written {tries.writes} of at most {most_writes} times"
        told = {mode: f"{words}; {count}" for mode, words in wrong.items()}
        failure = awaited.failure
        if failure is not None:
            told = {mode: f"{failure.message}; {words}" for mode, words in told.items()}
        if held is None:
            scope = {
                **scope,
                **outcomes.overtaken(scope, told.keys(), awaited.wrote, awaited.starting),
            }
        self._timer_ends_us = awaited.timer_ends_us
        await self._note_success(scope, awaited, held, site, wrong=told, awaits=())
        self._not_taken |= awaited.starting & tries.wanting
        self._since = {}
        self.stuck = told
        starting = {scope[uid].order.mode for uid in awaited.starting & scope.keys()}
        self._kept |= _ending(e for e in scope.values() if e.order.mode not in starting)
        now, read_back = moment(self._clock), self._device.capability.read_back
        self._retry_at_us = tries.last_us + _again_after_us(read_back, tries.writes)
        self._awaited = replace(
            awaited,
            modes=frozenset(wrong),
            shown=wrong,
            wanting=tries.wanting,
            starting=awaited.starting & tries.wanting,
            ask_at_us=now.monotonic_us + round(read_back.pace_seconds * SECOND_US),
            is_over=True,
        )
        if tries.writes >= most_writes:
            known = {uid: self._journal[uid] for uid in scope}
            await self._journal.commit(outcomes.wear_out(known, now, tries.writes, most_writes))

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
        awaited: _Awaited,
        held: Setpoints | None,
        site: Site,
        *,
        wrong: Mapping[str, str],
        awaits: Collection[str],
    ) -> None:
        now = moment(self._clock)
        self._held = held
        gone: set[str] = set()
        if wrong and held is not None:
            scope = {**scope, **self._look_at_others(scope, wrong, held, site)}
            gone = {uid for uid, execution in scope.items() if not site.holds(held, execution)}
        after = outcomes.written(
            scope,
            now,
            rule=site.rule,
            since=awaited.wrote,
            first={} if awaited.is_over else {uid: at for (uid, _), at in self._since.items()},
            wrong=wrong,
            gone=gone,
            awaited=awaits,
            error=Reason.DEVICE_OFFLINE if awaited.failure else Reason.READ_BACK_MISMATCH,
            ramping=self._ramping,
            held=held,
            guard=self._guard,
            timer_ends_us=self._timer_ends_at(now),
        )
        for execution in after.values():
            fresh = execution.applied_us and not scope[execution.order.uid].applied_us
            if fresh and execution.planned:
                late_us = execution.applied_us - execution.planned.start_us
                metrics.START_LATENESS.observe(late_us / SECOND_US)
        if wrong:
            self._log.warning("setpoint.not_held", modes=sorted(wrong), held=str(held))
            metrics.DEVICE_WRITES.labels("ignored").inc()
            self._suspect_until_us = now.monotonic_us + _SUSPECT_US  # it may take it yet
            self._written, self._failed = None, awaited.target
        elif not awaits:
            self._failures = 0
        await self._journal.commit(after, happened=True)

    async def _note_failure(
        self,
        scope: Scope,
        wanted: Setpoints,
        failure: outcomes.WriteFailure,
        held: Setpoints | None,
        site: Site,
    ) -> None:
        now = moment(self._clock)
        reverting = _ending(scope.values())
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
            dispatch_uids=sorted(reverting),
        )
        starting = [e for e in deciding.owners(scope).values() if e.stage is Stage.APPLYING]
        self._awaited, self._since = None, {}
        several = len(starting) > 1 or (starting and reverting)
        if failure.refused and several and not self._apart:
            self._apart, self._retry_at_us = True, now.monotonic_us
            return
        self.stuck = {}
        if failure.answers:
            self.stuck = {scope[uid].order.mode: failure.message for uid in reverting}
        if not starting:
            self._kept |= reverting
        after = outcomes.write_failed(scope, now, failure)
        if held is not None:
            gone = {uid for uid in reverting if not site.holds(held, scope[uid])}
            after |= outcomes.let_go(after, gone, now, site.rule)
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


def _wanting(scope: Scope, owners: Scope) -> frozenset[str]:
    """Return whose start or end has not happened, or whose value was dropped, by uid."""
    lacking = {
        e.order.uid for e in owners.values() if e.stage is Stage.APPLYING or e.held_since is None
    }
    return frozenset(_ending(scope.values()) | lacking)


def _ending(executions: Iterable[Execution]) -> set[str]:
    return {e.order.uid for e in executions if e.stage is Stage.REVERTING}


def _again_after_us(read_back: ReadBack, writes: int) -> int:
    """Return how long after the last of ``writes`` the same may be written again."""
    if writes >= read_back.most_writes:
        return WORN_RETRY_SECONDS * SECOND_US
    # Longer each time: fewer writes outlast a longer trouble.
    wait_us = round(read_back.patience_seconds * SECOND_US) << writes - 1
    return min(max(wait_us, _APPLY_RETRY_US), WORN_RETRY_SECONDS * SECOND_US)


def _explain_wait(read_back: ReadBack) -> str:
    return (
        f"it is asked again for {read_back.patience_seconds:g} s after the write before it is "
        f"written again"
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
