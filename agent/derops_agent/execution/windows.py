"""What follows from the time. Pure: executions in, executions out.

Every function returns the whole map; callers store what differs. A write to the device carries the
whole wanted state, so one successful write activates, supersedes and reverts at once.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
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
    reason=Reason.START_DEADLINE_EXCEEDED, message="the agent did not come to write it in time"
)
"""Why a start was missed of which nothing else is known."""

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

    Windows that are over begin to end, starts that are due turn to Applying (the intent that is
    stored before the device is written), starts that were missed fail.

    Args:
        executions: All that are not settled, by uid.
        now: Both clocks.
        refuse: Why an execution may not start now, or None.
        held_off: Why the device may not be given a new value yet, in words; empty = it may.
        awaited: Those that were written in time and that the device may yet show, by uid.
        idle: Why a start was missed that nothing is known to have held up.
    """
    result = {
        uid: _bridge(_by_time(execution, now, awaited, idle), executions.values())
        for uid, execution in executions.items()
    }
    for mode in {execution.order.mode for execution in result.values()}:
        due = [
            execution
            for execution in result.values()
            if execution.order.mode == mode and (execution.owns_device or is_due(execution, now))
        ]
        if not due:
            continue
        best = max(due, key=lambda execution: execution.order.strength)
        if best.stage is Stage.WAITING:
            result[best.order.uid] = _start(best, refuse(best), now, held_off)
        others = [other for other in due if other is not best]
        if best.stage is Stage.HOLDING:
            supersede(result, best, others, now)
        elif executions[best.order.uid].stage is result[best.order.uid].stage:
            result |= {e.order.uid: _stand_back(e, best) for e in others if is_due(e, now)}
    return result


def owners(executions: Executions) -> dict[str, Execution]:
    """Return which execution's value each mode is to have; a mode without one is at fallback."""
    found: dict[str, Execution] = {}
    for execution in executions.values():
        mode = execution.order.mode
        if execution.owns_device and (
            mode not in found or found[mode].order.strength < execution.order.strength
        ):
            found[mode] = execution
    return found


def bridged(executions: Executions, now: Moment) -> bool:
    """Tell whether nothing ends now but what waits for the next window of its mode."""
    ending = [e for e in executions.values() if e.stage is Stage.REVERTING]
    return bool(ending) and all(_waits_for_next(e, now) for e in ending)


def staying(executions: Executions, now: Moment) -> dict[str, Execution]:
    """Return whose value each mode keeps past its window, until the next one of the mode."""
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
    """Return why a start that has been missed since the last look was missed.

    Args:
        before: When starts were last looked at; None = not since the agent began.
        now: Both clocks.
        failing: The ledger took nothing meanwhile.
    """
    if before is None:
        return Refusal(
            reason=Reason.AGENT_RESTARTED,
            message="the agent restarted, and did not take it up until then",
        )
    stood_us = now.monotonic_us - before.monotonic_us
    set_us = now.wall_us - before.wall_us - stood_us
    if failing:
        words = f"for {stood_us / SECOND_US:.0f} s the agent could not store anything"
    elif set_us > SECOND_US:
        words = f"the agent's clock was set forward by {set_us / SECOND_US:.0f} s"
    elif stood_us > _STOOD_STILL_US:
        words = f"the agent stood still for {stood_us / SECOND_US:.0f} s"
    else:
        return NOT_STARTED
    return replace(NOT_STARTED, message=words)


def next_wakeup_us(executions: Iterable[Execution], decided: Moment, now: Moment) -> int | None:
    """Return in how many microseconds something becomes due; None if nothing does.

    What was due when it was last decided is not counted: it waits for something else than the time.
    """
    ahead: list[int] = []
    for execution in executions:
        planned = execution.planned
        if planned is None or execution.stage is Stage.DONE:
            continue
        if execution.stage is Stage.WAITING:
            ahead.append(planned.start_us - decided.wall_us)
        elif execution.stage is Stage.HOLDING:
            ahead.append(planned.end_us - decided.wall_us)
            ahead.append(execution.ends_monotonic_us - decided.monotonic_us)
        elif execution.stage is Stage.REVERTING and execution.bridged_us:
            ahead.append(execution.ended_us + execution.bridged_us - decided.wall_us)
    ahead = [each for each in ahead if each > 0]
    passed_us = now.monotonic_us - decided.monotonic_us
    return max(0, min(ahead) - passed_us) if ahead else None


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


def _by_time(
    execution: Execution, now: Moment, awaited: Collection[str], idle: Refusal
) -> Execution:
    if execution.stage is Stage.HOLDING and is_over(execution, now):
        early_us = execution.ends_monotonic_us - now.monotonic_us
        message = "the window ended as planned"
        if early_us > SECOND_US:
            message = (
                f"the agent's clock was set forward in the window, which ended "
                f"{early_us / SECOND_US:.0f} s early"
            )
        return execution.begin_ending(Phase.COMPLETE, Reason.WINDOW_ENDED, message, now.wall_us)
    if execution.stage not in (Stage.WAITING, Stage.APPLYING):
        return execution
    over, late = _missed(execution, now)
    if not (over or (late and execution.order.uid not in awaited)):
        return execution
    reason = execution.last_error or idle.reason
    passed = "start deadline" if late and execution.order.uid not in awaited else "window"
    message = f"the {passed} passed; {execution.last_message or idle.message}"
    return execution.withdraw(Phase.FAILED, reason, message, now.wall_us)


def _missed(execution: Execution, now: Moment) -> tuple[bool, bool]:
    """Return whether its window is over, and whether its start deadline has passed."""
    planned = execution.planned
    if planned is None:
        return True, True
    # A deadline of 0 asks for a start on time; that takes a device some milliseconds.
    allowed_us = max(1, execution.order.start_deadline_seconds) * SECOND_US
    deadline_us = planned.start_us + allowed_us
    over = execution.order.late_policy != LatePolicy.KEEP_DURATION and now.wall_us >= planned.end_us
    return over, now.wall_us > deadline_us


def _delay(execution: Execution, reason: Reason, message: str) -> Execution:
    """Note why it does not start although its time has come."""
    overdue = f"its start has come, and waits: {message}"
    return replace(execution, last_error=reason, last_message=message, pending_error=overdue)


def _stand_back(execution: Execution, best: Execution) -> Execution:
    words = f"the dispatch {best.order.uid} goes before it, and is not on the device yet"
    return _delay(execution, Reason.START_DEADLINE_EXCEEDED, words)


def _start(execution: Execution, refusal: Refusal | None, now: Moment, held_off: str) -> Execution:
    if refusal is not None and refusal.reason in _MAY_PASS:
        return _delay(execution, refusal.reason, refusal.message)
    if refusal is not None:
        return execution.step(Phase.FAILED, refusal.reason, refusal.message, now.wall_us)
    applying = replace(execution, stage=Stage.APPLYING, last_error="", last_message="")
    if not held_off:
        return applying
    return _delay(applying, Reason.RATE_LIMITED, held_off)


def _bridge(execution: Execution, all_of_them: Iterable[Execution]) -> Execution:
    """Let a value that was just over stay until the next window of its mode, if that is near."""
    if execution.stage is not Stage.REVERTING or execution.ending is None:
        return execution
    let_go = execution.let_go_monotonic_us or execution.letting_go
    if execution.ending.phase is not Phase.COMPLETE or let_go:
        return execution
    gaps_us = [
        other.planned.start_us - execution.ended_us
        for other in all_of_them
        if other.planned is not None
        and other.stage in (Stage.WAITING, Stage.APPLYING)
        and other.order.mode == execution.order.mode
    ]
    near_us = [gap_us for gap_us in gaps_us if gap_us <= GAP_TOLERANCE_US]
    return replace(execution, bridged_us=max(0, min(near_us, default=0)))
