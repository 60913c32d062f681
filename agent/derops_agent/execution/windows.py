"""Start, end, bridge and supersede windows as the clock says. Pure: executions in, executions out.

``advance`` returns all executions; callers store those that differ. A write to the device carries
the whole wanted state, so one successful write activates, supersedes and reverts at once.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from derops.checks import Refusal
from derops.lifecycle import Phase, Reason
from derops.modes import LatePolicy
from derops.schedules import SECOND_US
from derops_agent.clock import Moment
from derops_agent.execution.state import Execution, Stage

GAP_TOLERANCE_US = 10 * SECOND_US
"""A value stays on the device over a gap up to this long before the next window of its mode."""

NOT_STARTED = Refusal(
    reason=Reason.START_DEADLINE_EXCEEDED, message="the agent did not write it in time"
)
"""Why a start was missed if nothing else is known."""

Executions = Mapping[str, Execution]
_STOOD_STILL_US = 5 * SECOND_US
_MAY_PASS = frozenset(
    {Reason.STALE_TELEMETRY, Reason.LOCAL_CONTROL_ACTIVE, Reason.COMMS_LOSS_FAILSAFE}
)


def advance(
    executions: Executions,
    now: Moment,
    *,
    refuse: Callable[[Execution], Refusal | None] = lambda _: None,
    held_off: str = "",
    awaited: Collection[str] = (),
    idle: Refusal = NOT_STARTED,
) -> dict[str, Execution]:
    """Return what the clock makes of the executions; nothing is written yet.

    A window that is over begins to end. A start that is due turns to Applying, the intent that is
    stored before the device is written. A start that was missed fails.

    Args:
        executions: All that are not settled, by uid.
        now: Both clocks.
        refuse: Returns why an execution may not start now, or None.
        held_off: Why the device takes no new value yet, in words; empty = it does.
        awaited: Uids of those that were written in time and that the device may yet show.
        idle: Why a start was missed if nothing is known to have delayed it.
    """
    result = {
        uid: _bridge_gap(_follow_clock(execution, now, awaited, idle), executions.values())
        for uid, execution in executions.items()
    }
    for mode in {execution.order.mode for execution in result.values()}:
        contenders = _contenders(result.values(), mode, now)
        if not contenders:
            continue
        best = max(contenders, key=lambda execution: execution.order.strength)
        if best.stage is Stage.WAITING:
            result[best.order.uid] = _start(best, refuse(best), now, held_off)
        others = [other for other in contenders if other is not best]
        if best.stage is Stage.HOLDING:
            supersede(result, best, others, now)
        elif executions[best.order.uid].stage is result[best.order.uid].stage:
            result |= _wait_for(best, others, now)
    return result


def _contenders(executions: Iterable[Execution], mode: str, now: Moment) -> list[Execution]:
    """Return those of a mode that own the device, or whose start has come."""
    return [
        execution
        for execution in executions
        if execution.order.mode == mode and (execution.owns_device or is_due(execution, now))
    ]


def owners(executions: Executions) -> dict[str, Execution]:
    """Return whose value each mode is to have, by mode; a mode without an owner is at fallback."""
    found: dict[str, Execution] = {}
    for execution in executions.values():
        mode = execution.order.mode
        if execution.owns_device and (
            mode not in found or found[mode].order.strength < execution.order.strength
        ):
            found[mode] = execution
    return found


def bridged(executions: Executions, now: Moment) -> bool:
    """Tell whether something ends, and all that ends waits for the next window of its mode."""
    ending = [e for e in executions.values() if e.stage is Stage.REVERTING]
    return bool(ending) and all(_waits_for_next(e, now) for e in ending)


def staying(executions: Executions, now: Moment) -> dict[str, Execution]:
    """Return whose value each mode keeps past its window until the next one, by mode."""
    modes_owned = owners(executions).keys()
    return {
        e.order.mode: e
        for e in executions.values()
        if e.stage is Stage.REVERTING
        and e.held_since is not None
        and e.order.mode not in modes_owned
        and _waits_for_next(e, now)
    }


def explain_missed(before: Moment | None, now: Moment, *, failing: bool) -> Refusal:
    """Return why a start was missed since starts were last looked at.

    Args:
        before: When that was; None = not since the agent started.
        now: Both clocks.
        failing: The ledger stored nothing in between.
    """
    if before is None:
        return Refusal(
            reason=Reason.AGENT_RESTARTED,
            message="the agent restarted and did not resume it in time",
        )
    stood_us = now.monotonic_us - before.monotonic_us
    set_us = now.wall_us - before.wall_us - stood_us
    if failing:
        words = f"the agent could store nothing for {stood_us / SECOND_US:.0f} s; check its disk"
    elif set_us > SECOND_US:
        words = f"the agent's clock was set forward by {set_us / SECOND_US:.0f} s"
    elif stood_us > _STOOD_STILL_US:
        words = f"the agent stood still for {stood_us / SECOND_US:.0f} s"
    else:
        return NOT_STARTED
    return replace(NOT_STARTED, message=words)


def next_wakeup_us(executions: Iterable[Execution], decided: Moment, now: Moment) -> int | None:
    """Return in how many microseconds something becomes due; None if nothing does.

    What was due at ``decided`` does not count: it waits for something else than the time.
    """
    ahead_us = [
        each_us
        for execution in executions
        for each_us in _instants_ahead_us(execution, decided)
        if each_us > 0
    ]
    passed_us = now.monotonic_us - decided.monotonic_us
    return max(0, min(ahead_us) - passed_us) if ahead_us else None


def _instants_ahead_us(execution: Execution, decided: Moment) -> Iterator[int]:
    """Yield how far ahead of ``decided`` the instants are at which its stage may change."""
    planned = execution.planned
    if planned is None:
        return
    match execution.stage:
        case Stage.WAITING:
            yield planned.start_us - decided.wall_us
        case Stage.HOLDING:
            yield planned.end_us - decided.wall_us
            yield execution.ends_monotonic_us - decided.monotonic_us
        case Stage.REVERTING if execution.bridged_us:
            yield execution.ended_us + execution.bridged_us - decided.wall_us


def supersede(
    result: dict[str, Execution], winner: Execution, losers: Iterable[Execution], now: Moment
) -> None:
    """Put ``winner`` in the place of ``losers``, in ``result``."""
    for loser in losers:
        ended = loser.stop_holding(now).step(
            Phase.SUPERSEDED,
            Reason.SUPERSEDED_BY,
            f"a dispatch of primacy {winner.order.primacy} took its place",
            now.wall_us,
        )
        touched = loser.may_be_on_device
        result[loser.order.uid] = replace(
            ended,
            superseded_by=winner.order.uid,
            ended_us=now.wall_us if touched else 0,
            reverted_us=now.wall_us if touched else 0,
        )
        holder = result[winner.order.uid]
        result[winner.order.uid] = replace(holder, supersedes=(*holder.supersedes, loser.order.uid))


def is_due(execution: Execution, now: Moment) -> bool:
    """Tell whether it waits and its start has come."""
    return (
        execution.stage is Stage.WAITING
        and execution.planned is not None
        and now.wall_us >= execution.planned.start_us
    )


def is_over(execution: Execution, now: Moment) -> bool:
    """Tell whether its window has ended, by either clock."""
    planned = execution.planned
    if planned is None or now.wall_us >= planned.end_us:
        return True
    return execution.stage is Stage.HOLDING and now.monotonic_us >= execution.ends_monotonic_us


def _waits_for_next(execution: Execution, now: Moment) -> bool:
    # A clock that is set back ends the wait: it must not prolong it.
    return execution.ended_us <= now.wall_us < execution.ended_us + execution.bridged_us


def _follow_clock(
    execution: Execution, now: Moment, awaited: Collection[str], idle: Refusal
) -> Execution:
    """Return it as one that begins to end, or that missed its start, if the clock says so."""
    if execution.stage is Stage.HOLDING and is_over(execution, now):
        return _end_window(execution, now)
    if execution.stage not in (Stage.WAITING, Stage.APPLYING):
        return execution
    missed = _explain_late(execution, now, was_written=execution.order.uid in awaited)
    if not missed:
        return execution
    reason = execution.last_error or idle.reason
    message = f"{missed}; {execution.last_message or idle.message}"
    return execution.withdraw(Phase.FAILED, reason, message, now.wall_us)


def _end_window(execution: Execution, now: Moment) -> Execution:
    early_us = execution.ends_monotonic_us - now.monotonic_us
    message = "the window ended as planned"
    if early_us > SECOND_US:
        message = (
            f"the agent's clock was set forward in the window, which ended "
            f"{early_us / SECOND_US:.0f} s early"
        )
    return execution.begin_ending(Phase.COMPLETE, Reason.WINDOW_ENDED, message, now.wall_us)


def _explain_late(execution: Execution, now: Moment, *, was_written: bool) -> str:
    """Return which bound of its start has passed, in words; empty = it may still start.

    Args:
        execution: One that waits, or is to be written.
        now: Both clocks.
        was_written: It was written in time, and the device may yet show it: only the end of its
            window counts then.
    """
    planned = execution.planned
    # A deadline of 0 asks for a start on time; that takes a device some milliseconds.
    allowed_seconds = max(1, execution.order.start_deadline_seconds)
    late = planned is None or now.wall_us > planned.start_us + allowed_seconds * SECOND_US
    if late and not was_written:
        return f"the start deadline passed ({allowed_seconds} s after the start)"
    moves = execution.order.late_policy == LatePolicy.KEEP_DURATION
    over = planned is None or (not moves and now.wall_us >= planned.end_us)
    return "the window passed" if over else ""


def _delay(execution: Execution, reason: Reason, message: str) -> Execution:
    """Note why it does not start although its time has come."""
    overdue = f"its start has come and waits: {message}"
    return replace(execution, last_error=reason, last_message=message, pending_error=overdue)


def _wait_for(best: Execution, others: Iterable[Execution], now: Moment) -> dict[str, Execution]:
    """Note of those that are due that a stronger one is to be on the device first."""
    words = f"dispatch {best.order.uid} goes first and is not on the device yet"
    return {
        other.order.uid: _delay(other, Reason.START_DEADLINE_EXCEEDED, words)
        for other in others
        if is_due(other, now)
    }


def _start(execution: Execution, refusal: Refusal | None, now: Moment, held_off: str) -> Execution:
    if refusal is not None and refusal.reason in _MAY_PASS:
        return _delay(execution, refusal.reason, refusal.message)
    if refusal is not None:
        return execution.step(Phase.FAILED, refusal.reason, refusal.message, now.wall_us)
    applying = replace(execution, stage=Stage.APPLYING, last_error="", last_message="")
    if not held_off:
        return applying
    return _delay(applying, Reason.RATE_LIMITED, held_off)


def _bridge_gap(execution: Execution, others: Iterable[Execution]) -> Execution:
    """Let a value that was just over stay until the next window of its mode, if that is near."""
    if execution.stage is not Stage.REVERTING or execution.ending is None:
        return execution
    was_let_go = execution.let_go_monotonic_us or execution.letting_go
    if execution.ending.phase is not Phase.COMPLETE or was_let_go:
        return execution
    return replace(execution, bridged_us=_gap_us(execution, others))


def _gap_us(execution: Execution, others: Iterable[Execution]) -> int:
    """Return how long after its end the next window of its mode starts; 0 = none is near."""
    gaps_us = [
        other.planned.start_us - execution.ended_us
        for other in others
        if other.planned is not None
        and other.stage in (Stage.WAITING, Stage.APPLYING)
        and other.order.mode == execution.order.mode
    ]
    near_us = [gap_us for gap_us in gaps_us if gap_us <= GAP_TOLERANCE_US]
    return max(0, min(near_us, default=0))
