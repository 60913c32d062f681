"""What follows from the time, a cancel, a write or a restart. Pure: executions in, executions out.

Every function returns the whole map; callers store what differs. A write to the device carries the
whole wanted state, so one successful write activates, supersedes and reverts at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from derops.lifecycle import Phase, Reason
from derops.schedules import SECOND_US, Window
from derops_agent.control import verifying
from derops_agent.control.execution import LATE_REVERT_US, Execution, Moment, Order, Stage
from derops_agent.control.site import holds
from derops_agent.ports import Setpoints

Executions = Mapping[str, Execution]
_KEEP_END_SLACK_US = SECOND_US  # an ordinary start is some milliseconds late and moves nothing


def advance(executions: Executions, now: Moment, *, failsafe: bool) -> dict[str, Execution]:
    """Return what the clock makes of the executions; nothing is written yet.

    Windows that are over begin to end, starts that are due turn to Applying (the intent that is
    stored before the device is written), starts that were missed fail.

    Args:
        executions: All that are not settled, by uid.
        now: Both clocks.
        failsafe: The headend was silent for too long; nothing new starts.
    """
    result = {uid: _by_time(execution, now) for uid, execution in executions.items()}
    for mode in {execution.order.mode for execution in result.values()}:
        due = [
            execution
            for execution in result.values()
            if execution.order.mode == mode and (execution.owns_device or _due(execution, now))
        ]
        if not due:
            continue
        best = max(due, key=lambda execution: execution.order.strength)
        if best.stage is Stage.WAITING and not failsafe:
            result[best.order.uid] = replace(best, stage=Stage.APPLYING)
        elif best.stage is Stage.HOLDING:
            _supersede(result, best, [other for other in due if other is not best], now)
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


def written(executions: Executions, now: Moment, *, settle_us: int) -> dict[str, Execution]:
    """Return what a successful write of the owners' values makes of the executions."""
    result = dict(executions)
    for mode, owner in owners(executions).items():
        active = _hold(owner, now)
        result[owner.order.uid] = active
        losers = [
            other
            for other in executions.values()
            if other.order.mode == mode
            and other is not owner
            and (other.owns_device or _due(other, now))
        ]
        _supersede(result, active, losers, now)
    for uid, execution in result.items():
        if execution.stage is Stage.REVERTING:
            result[uid] = _finish(execution, now, settle_us)
    return result


def write_failed(
    executions: Executions, now: Moment, *, refused: bool, message: str
) -> dict[str, Execution]:
    """Return what a failed write makes of those that wanted it; a refusal is not tried again."""
    result = dict(executions)
    for execution in owners(executions).values():
        if execution.stage is Stage.APPLYING:
            uid = execution.order.uid
            reason = Reason.DEVICE_WRITE_FAILED if refused else Reason.DEVICE_OFFLINE
            failed = replace(execution, last_error=reason)
            result[uid] = (
                failed.begin_ending(Phase.FAILED, reason, message, now.wall_us)
                if refused
                else failed
            )
    return result


def read_back(executions: Executions, held: Setpoints | None) -> dict[str, Execution]:
    """Note for all that were just written whether the device says that it holds them."""
    result = dict(executions)
    for uid, execution in executions.items():
        if execution.stage is Stage.HOLDING and execution.evidence == "Written":
            if held is None:
                result[uid] = replace(execution, verified_reason="ReadBackFailed")
            elif holds(held, execution):
                result[uid] = replace(
                    execution, evidence="ReadBack", verified_reason="VerificationPending"
                )
            else:
                result[uid] = replace(execution, verified_reason="ReadBackMismatch")
    return result


def order_again(execution: Execution, order: Order, now: Moment) -> Execution:
    """Fold a repeated order into its execution: only the generation and a cancel count."""
    if order.generation < execution.observed_generation:
        return execution
    seen = replace(execution, observed_generation=order.generation)
    return cancel(seen, now, order.cancel_reason) if order.cancelled else seen


def cancel(execution: Execution, now: Moment, reason: str = "") -> Execution:
    """Withdraw it: at once if the device was never touched, else when it is reverted."""
    match execution.stage:
        case Stage.WAITING:
            reason = reason or Reason.CANCELLED_BEFORE_START
            return execution.step(
                Phase.CANCELLED, reason, "withdrawn before its start", now.wall_us
            )
        case Stage.APPLYING:
            reason = reason or Reason.CANCELLED_BEFORE_START
        case Stage.HOLDING:
            reason = reason or Reason.CANCELLED_WHILE_ACTIVE
    return execution.begin_ending(Phase.CANCELLED, reason, "withdrawn", now.wall_us)


def lose_contact(executions: Executions, now: Moment) -> dict[str, Execution]:
    """End all that the device holds because the headend was silent for too long."""
    return {
        uid: execution.begin_ending(
            Phase.FAILED,
            Reason.COMMS_LOSS_FAILSAFE,
            "no gateway was heard for longer than failsafeAfterSeconds",
            now.wall_us,
        )
        if execution.owns_device
        else execution
        for uid, execution in executions.items()
    }


def resume(
    execution: Execution,
    now: Moment,
    *,
    revert: bool,
    held: Setpoints | None,
    last_alive_us: int,
) -> Execution:
    """Decide what becomes of a stored execution when the agent starts.

    Args:
        execution: As it was stored, on this boot's monotonic clock.
        now: Both clocks, confirmed.
        revert: ``fallback.onRestart`` is Revert.
        held: What the device holds, None if it does not say.
        last_alive_us: The last time that the agent is known to have run.
    """
    if execution.stage in (Stage.WAITING, Stage.DONE):
        return execution
    if held is not None and not holds(held, execution):
        died_ago_us = max(0, now.wall_us - last_alive_us)
        execution = execution.stop_holding(
            Moment(wall_us=last_alive_us, monotonic_us=now.monotonic_us - died_ago_us)
        )
    if execution.stage is Stage.REVERTING:
        return execution
    if revert and not _over(execution, now):
        return execution.begin_ending(
            Phase.FAILED,
            Reason.AGENT_RESTARTED,
            "the agent restarted in the window and fallback.onRestart is Revert",
            now.wall_us,
        )
    if execution.stage is Stage.HOLDING and not _over(execution, now):
        return replace(execution, interruptions=execution.interruptions + 1)
    return replace(execution, last_error="")


def next_wakeup_us(executions: Iterable[Execution], now: Moment) -> int | None:
    """Return in how many microseconds something is due; None if nothing is."""
    ahead = []
    for execution in executions:
        planned = execution.planned
        if planned is None or execution.stage is Stage.DONE:
            continue
        if execution.stage is Stage.WAITING:
            ahead.append(planned.start_us - now.wall_us)
        elif execution.stage is Stage.HOLDING:
            ahead.append(planned.end_us - now.wall_us)
            ahead.append(execution.ends_monotonic_us - now.monotonic_us)
    return max(0, min(ahead)) if ahead else None


def _by_time(execution: Execution, now: Moment) -> Execution:
    if execution.stage is Stage.HOLDING and _over(execution, now):
        return execution.begin_ending(
            Phase.COMPLETE, Reason.WINDOW_ENDED, "the window ended", now.wall_us
        )
    if execution.stage is Stage.WAITING and _missed(execution, now):
        return execution.step(
            Phase.FAILED,
            Reason.AGENT_RESTARTED,
            "its start and its start deadline passed while the agent could not act",
            now.wall_us,
        )
    if execution.stage is Stage.APPLYING and _missed(execution, now):
        return execution.begin_ending(
            Phase.FAILED,
            execution.last_error or Reason.AGENT_RESTARTED,
            "the device was not written before the start deadline",
            now.wall_us,
        )
    return execution


def _due(execution: Execution, now: Moment) -> bool:
    return (
        execution.stage is Stage.WAITING
        and execution.planned is not None
        and now.wall_us >= execution.planned.start_us
    )


def _missed(execution: Execution, now: Moment) -> bool:
    planned = execution.planned
    if planned is None:
        return True
    deadline_us = planned.start_us + execution.order.start_deadline_seconds * SECOND_US
    over = execution.order.late_policy != "KeepDuration" and now.wall_us >= planned.end_us
    return now.wall_us > deadline_us or over


def _over(execution: Execution, now: Moment) -> bool:
    planned = execution.planned
    if planned is None or now.wall_us >= planned.end_us:
        return True
    return execution.stage is Stage.HOLDING and now.monotonic_us >= execution.ends_monotonic_us


def _hold(execution: Execution, now: Moment) -> Execution:
    if execution.stage is Stage.HOLDING:
        return execution if execution.held_since else replace(execution, held_since=now)
    planned = execution.planned or Window(start_us=now.wall_us, end_us=now.wall_us)
    late = now.wall_us - planned.start_us > _KEEP_END_SLACK_US
    if execution.order.late_policy == "KeepDuration" and late:
        end_us = now.wall_us + execution.order.duration_seconds * SECOND_US
        planned = Window(start_us=planned.start_us, end_us=end_us)
    active = execution.step(Phase.ACTIVE, Reason.APPLIED, "written to the device", now.wall_us)
    return replace(
        active,
        stage=Stage.HOLDING,
        planned=planned,
        applied_us=now.wall_us,
        held_since=now,
        ends_monotonic_us=now.monotonic_us + max(0, planned.end_us - now.wall_us),
        evidence="Written",
        verified_reason="VerificationPending",
    )


def _supersede(
    result: dict[str, Execution], winner: Execution, losers: Iterable[Execution], now: Moment
) -> None:
    for loser in losers:
        ended = loser.stop_holding(now).step(
            Phase.SUPERSEDED,
            Reason.SUPERSEDED_BY,
            f"a dispatch of primacy {winner.order.primacy} took its place",
            now.wall_us,
        )
        touched = loser.owns_device
        result[loser.order.uid] = replace(
            ended,
            superseded_by=winner.order.uid,
            ended_us=now.wall_us if touched else 0,
            reverted_us=now.wall_us if touched else 0,
        )
        holder = result[winner.order.uid]
        result[winner.order.uid] = replace(holder, supersedes=(*holder.supersedes, loser.order.uid))


def _finish(execution: Execution, now: Moment, settle_us: int) -> Execution:
    ending = execution.ending
    if ending is None:
        raise ValueError(f"execution {execution.order.uid} is reverting without an ending")
    found = verifying.verdict(execution, until_us=execution.ended_us, settle_us=settle_us)
    done = verifying.conclude(execution, found, now.wall_us) if execution.applied_us else execution
    done = replace(done.stop_holding(now), reverted_us=now.wall_us)
    phase, reason, message = ending.phase, ending.reason, ending.message
    late_us = now.monotonic_us - execution.ends_monotonic_us
    if phase is Phase.COMPLETE and late_us > LATE_REVERT_US:
        phase, reason = Phase.FAILED, str(Reason.REVERTED_LATE)
        message = f"the device was reverted {late_us / SECOND_US:.1f} s after the end"
    elif phase is Phase.COMPLETE and execution.order.verify_required and done.verified != "True":
        phase, reason = Phase.FAILED, str(Reason.EFFECT_NOT_OBSERVED)
        message = f"verification was required and is {done.verified}: {done.verified_reason}"
    return done.step(phase, reason, message, now.wall_us)
