"""What a write leaves behind: what is waited for, or that the device did not confirm it. Pure."""

from dataclasses import replace

from derops.errors import (
    DeviceError,
    DeviceRefusedError,
    DeviceTimeoutError,
    DeviceUnreachableError,
)
from derops.schedules import SECOND_US
from derops_agent.asset.setpoints import evidence, inquiry
from derops_agent.asset.setpoints.decided import Decided, NotConfirmed
from derops_agent.asset.setpoints.evidence import Shown
from derops_agent.asset.setpoints.plan import PlannedWrite
from derops_agent.asset.setpoints.state import SUSPECT_US, DeviceState
from derops_agent.clock import Moment
from derops_agent.execution import claims, patience, readback, unconfirmed, windows
from derops_agent.execution.patience import Awaited
from derops_agent.execution.unconfirmed import WriteFailure
from derops_agent.execution.windows import Executions
from derops_agent.ports import Capability, Setpoints


def note_written(
    state: DeviceState,
    write: PlannedWrite,
    scope: Executions,
    *,
    armed_seconds: int | None,
    failure: WriteFailure | None,
    capability: Capability,
    now: Moment,
) -> tuple[DeviceState, Executions]:
    """Note that the device was told a step, and what is awaited by that; return ``scope`` too.

    Args:
        state: Of the device.
        write: What was written.
        scope: Those whom it concerns.
        armed_seconds: When its own timer reverts it; None = it has none.
        failure: What it answered instead of confirming the write; None = it confirmed it.
        capability: Of the device.
        now: When it was written, by both clocks.
    """
    owners, target, before = windows.owners(scope), write.target, state
    passed = patience.passed(state.passed, state.written, state.held, write.step, write.site)
    state = replace(state, passed=passed).note_write(
        write.step, target, owners, armed_seconds, now, pending=bool(write.wanting)
    )
    if failure is not None and not failure.refused:
        state = state.note_silence(owners, now, has_timer=capability.reversion)
        scope = {**scope, **unconfirmed.send_again(scope, now)}
    if write.counts:
        tries = state.tries[target]
        counted = replace(tries, writes=tries.writes + 1, last_us=now.monotonic_us)
        state = state.with_tries(target, counted)
    delay_seconds = 0 if failure else capability.read_back.delay_seconds
    awaited = Awaited(
        step=write.step,
        target=target,
        wrote=now,
        first_us=now.monotonic_us,
        wanting=write.wanting,
        starting=frozenset(e.order.uid for e in claims.starts(scope)),
        ask_at_us=now.monotonic_us + round(delay_seconds * SECOND_US),
        failure=failure,
        timer_ends_us=before.timer_ends_us,
        shows_nothing=write.shows_nothing,
    )
    last = before.awaited
    if last is not None and last.target == target and not last.is_over:
        # It only repeats one that is waited for, to set the device's timer.
        awaited = patience.written_again(last, awaited)
        if awaited.wrote != last.wrote:
            state = state.forget_starting(last.wrote)
            scope = readback.forget_letting_go(scope, last.wrote)
    return replace(state, awaited=awaited).note_starting(scope, awaited.wrote), scope


def read_failure(error: DeviceError, held: Setpoints | None) -> WriteFailure:
    """Return what a device meant that answered a write with an error, and then showed ``held``."""
    refused = isinstance(error, DeviceRefusedError)
    return WriteFailure(
        message=str(error),
        refused=refused,
        sent=not refused and not isinstance(error, DeviceUnreachableError),
        answers=refused or held is not None,
        is_silence=isinstance(error, DeviceTimeoutError) and not error.answered,
    )


def judge_unconfirmed(
    state: DeviceState,
    write: PlannedWrite,
    scope: Executions,
    failure: WriteFailure,
    shown: Shown,
) -> Decided:
    """Decide by what a device shows that did not confirm a write what became of it."""
    held, site, now = shown.held, shown.site, shown.now
    wrong = patience.wrong_modes(scope, write.step, held, site)
    if held is None or (wrong and not failure.sent):
        return _note_failure(state, write, scope, failure, shown)
    # It acted and its answer is lost, or its own timer did what somebody on site keeps us
    # from: what it says that it holds is better evidence.
    if failure.refused:
        scope = inquiry.look_again(state, scope, held, site, now)
    state, scope = note_written(
        state,
        write,
        scope,
        armed_seconds=None,
        failure=failure,
        capability=shown.capability,
        now=now,
    )
    return evidence.judge(state, scope, shown)


def _note_failure(
    state: DeviceState,
    write: PlannedWrite,
    scope: Executions,
    failure: WriteFailure,
    shown: Shown,
) -> Decided:
    """Note that the device has not taken a write, or nobody knows."""
    now, held, site = shown.now, shown.held, shown.site
    reverting = claims.ending(scope.values())
    if failure.sent:
        state = replace(state, suspect_until_us=now.monotonic_us + SUSPECT_US)
    state = replace(state.try_again(scope, write.target, now), awaited=None, since={})
    told = NotConfirmed(
        message=failure.message,
        retry_us=state.retry_at_us - now.monotonic_us,
        reverting=frozenset(reverting),
    )
    starts = len(claims.starts(scope))
    several = starts > 1 or (starts and reverting)
    if failure.refused and several and not state.apart:
        state = replace(state, apart=True, retry_at_us=now.monotonic_us)
        return Decided(state=state, to_tell=(told,))
    state = _note_kept(state, failure, scope, now, alone=not starts)
    after = unconfirmed.write_failed(scope, now, failure)
    if held is not None:
        gone = {uid for uid in reverting if not site.holds(held, scope[uid])}
        after |= readback.finish_never_held(after, gone, now, site.rule)
    return Decided(state=state, changed=after, to_tell=(told,))


def _note_kept(
    state: DeviceState, failure: WriteFailure, scope: Executions, now: Moment, *, alone: bool
) -> DeviceState:
    """Note what a device keeps that did not confirm the write by which it was to let go.

    Args:
        state: Of the device.
        failure: What it answered, or did not.
        scope: Those whom the write concerned.
        now: Both clocks.
        alone: Nothing was to be put on the device by the same write.
    """
    reverting = claims.ending(scope.values())
    stuck = {scope[uid].order.mode: failure.message for uid in reverting} if failure.answers else {}
    return replace(
        state,
        stuck=stuck,
        stuck_us=state.stuck_us or now.wall_us if failure.answers else state.stuck_us,
        kept=state.kept | reverting if alone else state.kept,
        unheld=failure.message if alone and failure.answers else state.unheld,
    )
