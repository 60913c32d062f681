"""What follows from the time, a cancel, a write or a restart. Pure: executions in, executions out.

Every function returns the whole map; callers store what differs. A write to the device carries the
whole wanted state, so one successful write activates, supersedes and reverts at once.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from derops.checks import Refusal
from derops.lifecycle import Phase, Reason
from derops.schedules import SECOND_US, Window
from derops.wire.v1 import agent_pb2
from derops_agent.control import verifying
from derops_agent.control.execution import LATE_REVERT_US, Execution, Moment, Order, Stage
from derops_agent.control.site import Site
from derops_agent.control.verifying import Rule
from derops_agent.ports import Reading, Setpoints

GAP_TOLERANCE_US = 10 * SECOND_US
"""A value stays on the device over a gap up to this long before the next window of its mode."""

MOST_LOSSES = 3
"""How often a device may drop a setpoint and have it written again."""

Executions = Mapping[str, Execution]
_MAY_PASS = frozenset({Reason.STALE_TELEMETRY, Reason.LOCAL_CONTROL_ACTIVE})
_NONE_WRONG: Mapping[str, str] = MappingProxyType({})
_KEEP_END_SLACK_US = SECOND_US  # an ordinary start is some milliseconds late and moves nothing


def advance(
    executions: Executions,
    now: Moment,
    *,
    failsafe: bool,
    refuse: Callable[[Execution], Refusal | None] = lambda _: None,
    held_off: bool = False,
) -> dict[str, Execution]:
    """Return what the clock makes of the executions; nothing is written yet.

    Windows that are over begin to end, starts that are due turn to Applying (the intent that is
    stored before the device is written), starts that were missed fail.

    Args:
        executions: All that are not settled, by uid.
        now: Both clocks.
        failsafe: The headend was silent for too long; nothing new starts.
        refuse: Why an execution may not start now, or None.
        held_off: The device may not be given a new value yet (``minSecondsBetweenWrites``).
    """
    result = {
        uid: _bridge(_by_time(execution, now), executions.values())
        for uid, execution in executions.items()
    }
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
            result[best.order.uid] = _start(best, refuse(best), now, held_off=held_off)
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


def written(
    executions: Executions,
    now: Moment,
    *,
    rule: Rule,
    wrong: Mapping[str, str] = _NONE_WRONG,
    ramping: bool = False,
    evidence: str = "Written",
    guard: str = "AgentTimer",
) -> dict[str, Execution]:
    """Return what a successful write makes of the executions.

    Args:
        executions: All.
        now: Both clocks.
        rule: For the verdict on those that end.
        wrong: Modes of which the device says that it holds something else than was written,
            with the words for it.
        ramping: The active power that was written is only a step on the way.
        evidence: ReadBack if the device confirmed the modes that are not wrong.
        guard: What ends the owners if the agent dies.
    """
    result = dict(executions)
    for mode, owner in owners(executions).items():
        if mode in wrong:
            result[owner.order.uid] = _lose(owner, now, wrong[mode])
            continue
        active = _hold(owner, now, evidence)
        active = replace(active, guard=guard)
        if evidence == "ReadBack":
            active = replace(active, confirmed=now)
        if not active.arrived_us and not (ramping and mode == "ActivePower"):
            active = replace(active, arrived_us=now.wall_us)
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
        if execution.stage is not Stage.REVERTING or execution.order.mode in wrong:
            continue
        let_go = execution.let_go_monotonic_us or now.monotonic_us
        ending = replace(execution, let_go_monotonic_us=let_go)
        still = ramping and execution.order.mode == "ActivePower"
        result[uid] = ending if still else _finish(ending, now, rule)
    return result


def look_again(
    executions: Executions, held: Setpoints, site: Site, now: Moment
) -> dict[str, Execution]:
    """Return what it means for the executions that a device now says that it holds ``held``."""
    result = dict(executions)
    for execution in owners(executions).values():
        if execution.stage is not Stage.HOLDING or execution.held_since is None:
            continue
        uid = execution.order.uid
        if not execution.arrived_us or site.holds(held, execution):
            result[uid] = replace(execution, confirmed=now)
        else:
            result[uid] = _lose(execution, now, f"it now says that it holds {held}")
    return result


def endure(
    executions: Executions, reading: Reading, reserve_percent: int | None, now: Moment
) -> dict[str, Execution]:
    """End what must not go on: the device is in local control, or the reserve is reached."""
    charge = reading.values.get(agent_pb2.Quantity.STATE_OF_CHARGE_PERCENT)
    result = {}
    for uid, execution in executions.items():
        result[uid] = execution
        if execution.stage is not Stage.HOLDING:
            continue
        discharging = execution.order.mode == "ActivePower" and execution.target_watts > 0
        if reading.local_control:
            result[uid] = execution.begin_ending(
                Phase.FAILED,
                Reason.LOCAL_OVERRIDE,
                "somebody on site switched the device to local control",
                now.wall_us,
            )
        elif (
            discharging
            and charge is not None
            and reserve_percent is not None
            and charge <= reserve_percent
        ):
            result[uid] = execution.begin_ending(
                Phase.FAILED,
                Reason.INSUFFICIENT_ENERGY,
                f"the state of charge of {charge:.1f} % has reached the reserve of "
                f"{reserve_percent} % (minReservePercent)",
                now.wall_us,
            )
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
            failed = replace(execution, last_error=reason, last_message=message)
            result[uid] = (
                failed.begin_ending(Phase.FAILED, reason, message, now.wall_us)
                if refused
                else failed
            )
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
    held: bool | None,
    last_alive_us: int,
) -> Execution:
    """Decide what becomes of a stored execution when the agent starts.

    Args:
        execution: As it was stored, on this boot's monotonic clock.
        now: Both clocks, confirmed.
        revert: ``fallback.onRestart`` is Revert.
        held: Whether the device says that it holds the value, None if it does not say.
        last_alive_us: The last time that the agent is known to have run.
    """
    if execution.stage in (Stage.WAITING, Stage.DONE):
        return execution
    if held is False:
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
    return replace(execution, last_error="", last_message="")


def next_wakeup_us(executions: Iterable[Execution], now: Moment) -> int | None:
    """Return in how many microseconds something is due; None if nothing is."""
    ahead: list[int] = []
    for execution in executions:
        planned = execution.planned
        if planned is None or execution.stage is Stage.DONE:
            continue
        if execution.stage is Stage.WAITING:
            ahead.append(planned.start_us - now.wall_us)
        elif execution.stage is Stage.HOLDING:
            ahead.append(planned.end_us - now.wall_us)
            ahead.append(execution.ends_monotonic_us - now.monotonic_us)
        elif execution.stage is Stage.REVERTING and execution.bridged_us:
            ahead.append(execution.ended_us + execution.bridged_us - now.wall_us)
    return max(0, min(ahead)) if ahead else None


def _by_time(execution: Execution, now: Moment) -> Execution:
    if execution.stage is Stage.HOLDING and _over(execution, now):
        return execution.begin_ending(
            Phase.COMPLETE, Reason.WINDOW_ENDED, "the window ended", now.wall_us
        )
    if execution.stage is Stage.WAITING and _missed(execution, now):
        return execution.step(
            Phase.FAILED,
            execution.last_error or Reason.AGENT_RESTARTED,
            f"the start deadline passed; {execution.last_message or 'the agent could not act'}",
            now.wall_us,
        )
    if execution.stage is Stage.APPLYING and _missed(execution, now):
        return execution.begin_ending(
            Phase.FAILED,
            execution.last_error or Reason.AGENT_RESTARTED,
            f"the start deadline passed; {execution.last_message or 'the agent could not act'}",
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


def _start(
    execution: Execution, refusal: Refusal | None, now: Moment, *, held_off: bool
) -> Execution:
    if refusal is not None and refusal.reason in _MAY_PASS:
        return replace(execution, last_error=refusal.reason, last_message=refusal.message)
    if refusal is not None:
        return execution.step(Phase.FAILED, refusal.reason, refusal.message, now.wall_us)
    applying = replace(execution, stage=Stage.APPLYING, last_error="", last_message="")
    if not held_off:
        return applying
    message = "minSecondsBetweenWrites had not passed since the last write to the device"
    return replace(applying, last_error=Reason.RATE_LIMITED, last_message=message)


def _bridge(execution: Execution, all_of_them: Iterable[Execution]) -> Execution:
    """Let a value that was just over stay until the next window of its mode, if that is near."""
    if execution.stage is not Stage.REVERTING or execution.ending is None:
        return execution
    if execution.ending.phase is not Phase.COMPLETE or execution.let_go_monotonic_us:
        return execution
    gaps_us = [
        other.planned.start_us - execution.ended_us
        for other in all_of_them
        if other.planned is not None
        and other.stage is Stage.WAITING
        and other.order.mode == execution.order.mode
    ]
    near_us = [gap_us for gap_us in gaps_us if gap_us <= GAP_TOLERANCE_US]
    return replace(execution, bridged_us=max(0, min(near_us, default=0)))


def bridged(executions: Executions, now: Moment) -> bool:
    """Tell whether nothing ends now but what waits for the next window of its mode."""
    ending = [e for e in executions.values() if e.stage is Stage.REVERTING]
    # A clock that is set back ends the wait: it must not prolong it.
    return bool(ending) and all(
        e.ended_us <= now.wall_us < e.ended_us + e.bridged_us for e in ending
    )


def _lose(execution: Execution, now: Moment, message: str) -> Execution:
    """Return it as one that the device does not hold, whatever it answered to the write."""
    if execution.stage is not Stage.HOLDING:
        return replace(execution, last_error=Reason.READ_BACK_MISMATCH, last_message=message)
    lost = replace(
        execution.stop_holding(execution.confirmed or now),
        interruptions=execution.interruptions + bool(execution.held_since),
        losses=execution.losses + 1,
    )
    if lost.losses <= MOST_LOSSES:
        return lost
    return lost.begin_ending(
        Phase.FAILED,
        Reason.SETPOINT_NOT_HELD,
        f"the device dropped the setpoint {lost.losses} times in the window; {message}",
        now.wall_us,
    )


def _hold(execution: Execution, now: Moment, evidence: str) -> Execution:
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
        evidence=evidence,
        verified_reason="VerificationPending" if evidence == "ReadBack" else "ReadBackFailed",
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


def _finish(execution: Execution, now: Moment, rule: Rule) -> Execution:
    ending = execution.ending
    if ending is None:
        raise ValueError(f"execution {execution.order.uid} is reverting without an ending")
    found = verifying.verdict(execution, until_us=execution.ended_us, rule=rule)
    done = verifying.conclude(execution, found, now.wall_us) if execution.applied_us else execution
    done = replace(done.stop_holding(now), reverted_us=now.wall_us)
    phase, reason, message = ending.phase, ending.reason, ending.message
    late_us = execution.let_go_monotonic_us - execution.ends_monotonic_us - execution.bridged_us
    if phase is Phase.COMPLETE and late_us > LATE_REVERT_US:
        phase, reason = Phase.FAILED, str(Reason.REVERTED_LATE)
        message = f"the device was reverted {late_us / SECOND_US:.1f} s after the end"
    elif phase is Phase.COMPLETE and execution.order.verify_required and done.verified != "True":
        phase, reason = Phase.FAILED, str(Reason.EFFECT_NOT_OBSERVED)
        message = f"verification was required and is {done.verified}: {done.verified_reason}"
    return done.step(phase, reason, message, now.wall_us)
