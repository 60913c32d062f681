"""Deciding by what a device shows whether it has taken a write, and telling the executions."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import structlog

from derops.lifecycle import Reason
from derops.schedules import SECOND_US
from derops_agent import metrics
from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.setpoints.inquiry import Looker
from derops_agent.asset.setpoints.state import LOOK_EVERY_US, SUSPECT_US, DeviceState
from derops_agent.clock import Clock, moment
from derops_agent.execution import claims, patience, readback, unconfirmed, windows
from derops_agent.execution.patience import Awaited
from derops_agent.execution.site import Site
from derops_agent.execution.windows import Executions
from derops_agent.ports import Setpoints


class ReadBackJudge:
    """Asks one device for what was written until it shows it, or for long enough."""

    def __init__(
        self,
        device: GuardedDevice,
        clock: Clock,
        state: DeviceState,
        looker: Looker,
        asset: str,
    ) -> None:
        self._device, self._clock = device, clock
        self._state, self._looker = state, looker
        self._log = structlog.get_logger("read_back").bind(asset=asset)

    async def ask_again(self, scope: Executions, site: Site) -> Executions:
        """Ask the device whether it shows what was written, if that is due; return what changed."""
        awaited = self._state.awaited
        if awaited is None:
            return {}
        if self._clock.monotonic_us() >= awaited.ask_at_us:
            return self.judge(awaited, scope, await self._looker.ask(), site)
        if awaited.modes:
            return {}
        words = patience.explain_wait(self._device.capability.read_back)
        modes = {e.order.mode for u, e in scope.items() if u in awaited.wanting}
        self._state.awaited = replace(awaited, modes=frozenset(modes))
        return readback.await_read_back(
            scope, modes, awaited.wrote, Reason.START_DEADLINE_EXCEEDED, words
        )

    # Branches: each thing that a device may show of a write, one after the other.
    def judge(
        self, awaited: Awaited, scope: Executions, held: Setpoints | None, site: Site
    ) -> Executions:
        """Decide by what the device shows, or does not say, whether it has taken a write.

        Returns:
            The executions that this changes.
        """
        wrong = patience.wrong_modes(scope, awaited.step, held, site)
        behind = self._behind(awaited, held, site)
        if held is None:
            wrong = dict(awaited.shown)  # it may well show that still
        elif wrong and (found := self._looker.find_late(scope, held, site)):
            return found  # it was overwritten by what is undone now
        if wrong and awaited.is_over:
            return self._look_on(awaited, scope, held, wrong, site)
        if (wrong or behind) and (ask_at_us := self._ask_again_at_us(awaited)) is not None:
            awaited = replace(awaited, ask_at_us=ask_at_us)
            if held is None:
                self._state.awaited = awaited
                return {}
            asked = replace(awaited, shown=wrong, behind=behind)
            return self._wait_on(asked, scope, held, {**behind, **wrong}, site)
        self._state.awaited = None
        if wrong:
            return self._note_not_taken(awaited, scope, held, wrong, site)
        if behind and held is not None and self._may_repeat(awaited, scope, site):
            self._state.stay(awaited.step, held, behind)
            return {}
        return self._note_taken(awaited, scope, held, site)

    def _ask_again_at_us(self, awaited: Awaited) -> int | None:
        """Return when a device is asked again that may show it yet; None = for long enough."""
        read_back, now_us = self._device.capability.read_back, self._clock.monotonic_us()
        next_us = now_us + round(read_back.pace_seconds * SECOND_US)
        until_us = awaited.first_us + round(read_back.patience_seconds * SECOND_US)
        return min(next_us, until_us) if now_us < until_us else None

    def _behind(self, awaited: Awaited, held: Setpoints | None, site: Site) -> Mapping[str, str]:
        """Return the modes that the device may show as they were before, with the words for it."""
        if awaited.is_over or self._state.ramping:
            return {}  # a step need not be seen: the next one follows
        if held is None:
            return awaited.behind
        return patience.behind(self._state.passed, awaited.step, held, site)

    def _may_repeat(self, awaited: Awaited, scope: Executions, site: Site) -> bool:
        """Tell whether what was lost, or rounded to what was there before, is written again."""
        most_writes = min(2, self._device.capability.read_back.most_writes)
        once = self._state.tries[awaited.target].writes < most_writes
        return once and site.asset is not None and not self._state.pauses(scope, site.asset)

    def _look_on(
        self,
        awaited: Awaited,
        scope: Executions,
        held: Setpoints | None,
        wrong: Mapping[str, str],
        site: Site,
    ) -> Executions:
        """Note what a device shows that was waited for long enough, until it is written again."""
        read_back, now = self._device.capability.read_back, moment(self._clock)
        pace_us = round(read_back.pace_seconds * SECOND_US)
        if self._state.tries[awaited.target].writes >= read_back.most_writes:
            pace_us = max(pace_us, LOOK_EVERY_US)
        self._state.awaited = replace(awaited, ask_at_us=now.monotonic_us + pace_us)
        if held is None:
            return {}
        seen = self._looker.look_at_others(scope, wrong, held, site)
        gone = {uid for uid, e in scope.items() if not site.holds(held, e)}
        seen |= readback.finish_never_held({**scope, **seen}, gone, now, site.rule)
        self._looker.note_looked(scope, seen)
        return seen

    def _wait_on(
        self,
        awaited: Awaited,
        scope: Executions,
        held: Setpoints | None,
        wrong: Mapping[str, str],
        site: Site,
    ) -> Executions:
        """Note what the device has taken of a write, and wait for the rest of it."""
        read_back, now = self._device.capability.read_back, moment(self._clock)
        uids = frozenset(u for u in awaited.wanting if u in scope and scope[u].order.mode in wrong)
        self._state.awaited = replace(
            awaited,
            modes=frozenset(wrong),
            wanting=uids,
            starting=awaited.starting & uids,
        )
        self._state.tries[awaited.target].wanting &= uids
        for uid, execution in scope.items():
            shown = held is not None and site.holds(held, execution)
            if shown and execution.held_since and execution.order.mode in wrong:
                scope = {**scope, uid: replace(execution, confirmed=now)}
        failure = awaited.failure
        words = f"{failure.message}; " if failure else ""
        words += f"{next(iter(wrong.values()))}; {patience.explain_wait(read_back)}"
        error = patience.explained(failure, Reason.START_DEADLINE_EXCEEDED)
        waiting = {
            **scope,
            **readback.await_read_back(scope, wrong.keys(), awaited.wrote, error, words),
        }
        return self._note_success(waiting, awaited, held, site, wrong={}, awaits=wrong.keys())

    def _note_taken(
        self, awaited: Awaited, scope: Executions, held: Setpoints | None, site: Site
    ) -> Executions:
        """Note that the device has taken all of a write."""
        writes = self._state.tries[awaited.target].writes
        unknown = patience.not_known_by(awaited, scope)
        if unknown:
            self._state.tries[awaited.target].writes -= 1
            scope = {**scope, **unknown}
        elif self._state.ramping:
            self._state.tries.pop(awaited.target, None)
        since = moment(self._clock) if awaited.is_over else awaited.wrote
        if (ran_out := patience.ran_out(awaited, writes, moment(self._clock))) is not None:
            since = ran_out
            scope = {uid: replace(e, letting_go=None) for uid, e in scope.items()}
        self._state.failed, self._state.written, self._state.stuck = None, awaited.step, {}
        self._state.unheld = ""
        if not self._state.ramping:
            self._state.passed = patience.passed({}, None, None, awaited.step, site)
            self._state.stuck_us = 0
        elif held and not patience.behind(self._state.passed, awaited.step, held, site):
            self._state.stuck_us = 0  # it moves
        return self._note_success(
            scope,
            replace(awaited, wrote=since),
            held,
            site,
            wrong={},
            awaits={},
            unknown=unknown.keys(),
        )

    def _note_not_taken(
        self,
        awaited: Awaited,
        scope: Executions,
        held: Setpoints | None,
        wrong: Mapping[str, str],
        site: Site,
    ) -> Executions:
        """Note what the device has not taken of a write for long enough."""
        tries = self._state.tries[awaited.target]
        tries.wanting &= frozenset(u for u in scope if scope[u].order.mode in wrong)
        most_writes = self._device.capability.read_back.most_writes
        count = f"written {tries.writes} of at most {most_writes} times"
        said = f"{awaited.failure.message}; " if awaited.failure else ""
        told = {mode: f"{said}{words}; {count}" for mode, words in wrong.items()}
        if held is None:
            scope = {
                **scope,
                **readback.overtaken(scope, told.keys(), awaited.wrote, awaited.starting),
            }
        self._state.timer_ends_us = awaited.timer_ends_us
        after = self._note_success(scope, awaited, held, site, wrong=told, awaits=())
        for uid in awaited.starting & tries.wanting:
            self._state.not_taken[uid] = self._state.not_taken.get(uid, 0) + 1
        self._state.since = {}
        self._note_stuck(awaited, scope, told)
        now, read_back = moment(self._clock), self._device.capability.read_back
        self._state.retry_at_us = tries.last_us + patience.again_after_us(read_back, tries.writes)
        self._state.awaited = replace(
            awaited,
            modes=frozenset(wrong),
            shown=wrong,
            wanting=tries.wanting,
            starting=awaited.starting & tries.wanting,
            ask_at_us=now.monotonic_us + round(read_back.pace_seconds * SECOND_US),
            is_over=True,
        )
        if tries.writes < most_writes:
            return after
        return {**after, **readback.wear_out(after, now, tries.writes, most_writes)}

    def _note_stuck(self, awaited: Awaited, scope: Executions, told: Mapping[str, str]) -> None:
        """Note what the device says of the modes that it does not let go, and of whose."""
        self._state.stuck = dict(told)
        self._state.stuck_us = self._state.stuck_us or awaited.wrote.wall_us
        ordered = windows.owners(scope)
        unordered = {told[mode]: None for mode in sorted(told) if mode not in ordered}
        self._state.unheld = "; ".join(unordered)
        starting = {scope[uid].order.mode for uid in awaited.starting & scope.keys()}
        self._state.kept |= claims.ending(e for e in scope.values() if e.order.mode not in starting)

    def _note_success(
        self,
        scope: Executions,
        awaited: Awaited,
        held: Setpoints | None,
        site: Site,
        *,
        wrong: Mapping[str, str],
        awaits: Collection[str],
        unknown: Collection[str] = (),
    ) -> Executions:
        now = moment(self._clock)
        self._state.held = held
        gone: set[str] = set()
        if wrong and held is not None:
            scope = {**scope, **self._looker.look_at_others(scope, wrong, held, site)}
            gone = {uid for uid, execution in scope.items() if not site.holds(held, execution)}
        first = {uid: at for (uid, _), at in self._state.since.items()}
        after = readback.written(
            scope,
            now,
            rule=site.rule,
            since=awaited.wrote,
            first={} if awaited.is_over else first,
            wrong=wrong,
            gone=gone,
            awaited=awaits,
            unknown=unknown,
            error=patience.explained(awaited.failure, Reason.READ_BACK_MISMATCH),
            ramping=self._state.ramping,
            held=held,
            guard=self._state.guard,
            timer_ends_us=self._state.timer_ends_at(now),
        )
        _count_starts(scope, after)
        if wrong:
            self._log.warning("setpoint.not_held", modes=sorted(wrong), held=str(held))
            metrics.DEVICE_WRITES.labels("ignored").inc()
            self._state.suspect_until_us = now.monotonic_us + SUSPECT_US  # it may take it yet
            self._state.written, self._state.failed = None, awaited.target
        elif not awaits and not unknown:
            self._state.failures = 0
        return after

    def note_failure(
        self,
        scope: Executions,
        wanted: Setpoints,
        failure: unconfirmed.WriteFailure,
        held: Setpoints | None,
        site: Site,
    ) -> Executions:
        """Note that a write was not confirmed; return what that makes of the executions.

        Args:
            scope: All.
            wanted: What was to be held in the end.
            failure: What the device answered, or did not.
            held: What it says that it holds; None = nothing.
            site: For how much registers may round.
        """
        now = moment(self._clock)
        reverting = claims.ending(scope.values())
        if failure.sent:
            self._state.suspect_until_us = now.monotonic_us + SUSPECT_US
        self._tell_failure(failure, reverting, self._state.try_again(scope, wanted))
        self._state.awaited, self._state.since = None, {}
        starts = len(claims.starts(scope))
        several = starts > 1 or (starts and reverting)
        if failure.refused and several and not self._state.apart:
            self._state.apart, self._state.retry_at_us = True, now.monotonic_us
            return {}
        self._note_kept(failure, scope, reverting, alone=not starts)
        after = unconfirmed.write_failed(scope, now, failure)
        if held is not None:
            gone = {uid for uid in reverting if not site.holds(held, scope[uid])}
            after |= readback.finish_never_held(after, gone, now, site.rule)
        return after

    def _note_kept(
        self,
        failure: unconfirmed.WriteFailure,
        scope: Executions,
        reverting: set[str],
        *,
        alone: bool,
    ) -> None:
        """Note what a device keeps that did not confirm the write by which it was to let go.

        Args:
            failure: What it answered, or did not.
            scope: All.
            reverting: Those to be taken off, by uid.
            alone: Nothing was to be put on the device by the same write.
        """
        self._state.stuck = {}
        if failure.answers:
            self._state.stuck = {scope[uid].order.mode: failure.message for uid in reverting}
            self._state.stuck_us = self._state.stuck_us or self._clock.now_us()
        if alone:
            self._state.kept |= reverting
        if alone and failure.answers:
            self._state.unheld = failure.message

    def _tell_failure(
        self, failure: unconfirmed.WriteFailure, reverting: Collection[str], delay_us: int
    ) -> None:
        metrics.DEVICE_WRITES.labels("refused" if failure.refused else "timeout").inc()
        if reverting:
            metrics.REVERT_FAILURES.inc()
        self._log.warning(
            "revert.failed" if reverting else "setpoint.write_failed",
            error=failure.message,
            retry_seconds=delay_us / SECOND_US,
            dispatch_uids=sorted(reverting),
        )


def _count_starts(before: Executions, after: Executions) -> None:
    """Count how late each start was that the device shows now."""
    for uid, execution in after.items():
        if execution.applied_us and not before[uid].applied_us and execution.planned:
            late_us = execution.applied_us - execution.planned.start_us
            metrics.START_LATENESS.observe(late_us / SECOND_US)
