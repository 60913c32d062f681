"""What a device's answers make of the executions: to a write, and to being asked what it holds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from derops.lifecycle import Phase, Reason
from derops.schedules import SECOND_US, Window
from derops_agent.control import verifying
from derops_agent.control.deciding import Executions, is_due, owners, supersede
from derops_agent.control.execution import LATE_REVERT_US, Execution, Moment, Stage
from derops_agent.control.site import Site
from derops_agent.control.unreverted import not_reverted
from derops_agent.control.verifying import Rule
from derops_agent.ports import Setpoints

MOST_LOSSES = 3
"""How often a device may drop a setpoint and have it written again."""

_NONE_WRONG: Mapping[str, str] = MappingProxyType({})
_KEEP_END_SLACK_US = SECOND_US  # an ordinary start is some milliseconds late and moves nothing


def written(
    executions: Executions,
    now: Moment,
    *,
    rule: Rule,
    wrong: Mapping[str, str] = _NONE_WRONG,
    ramping: bool = False,
    evidence: str = "Written",
    guard: str = "AgentTimer",
    timer_ends_us: int = 0,
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
        timer_ends_us: When a timer of the device does, by the wall clock; 0 = it has none.
    """
    result = dict(executions)
    for mode, owner in owners(executions).items():
        if mode in wrong:
            result[owner.order.uid] = _lose(owner, now, wrong[mode])
            continue
        active = hold(owner, now, evidence)
        active = replace(active, guard=guard, timer_ends_us=timer_ends_us)
        if evidence == "ReadBack":
            active = replace(active, confirmed=now)
        if not active.arrived_us and not (ramping and mode == "ActivePower"):
            active = replace(active, arrived_us=active.steady_us(now))
        result[owner.order.uid] = active
        losers = [
            verifying.conclude_window(replace(other, ended_us=now.wall_us), now, rule)
            for other in executions.values()
            if other.order.mode == mode
            and other is not owner
            and (other.owns_device or is_due(other, now))
        ]
        supersede(result, active, losers, now)
    for uid, execution in result.items():
        if execution.stage is not Stage.REVERTING:
            continue
        if execution.order.mode in wrong:
            result[uid] = not_reverted(execution, now, rule, wrong[execution.order.mode])
            continue
        let_go = execution.let_go_monotonic_us or now.monotonic_us
        ending = replace(execution, let_go_monotonic_us=let_go)
        still = ramping and execution.order.mode == "ActivePower"
        result[uid] = ending if still else _finish(ending, now, rule)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteFailure:
    """A write that the device did not confirm."""

    message: str
    """Of the device, or what was waited for."""

    refused: bool
    """It said no."""

    sent: bool
    """It did not answer, and may have acted."""

    answers: bool
    """It is not silent altogether."""


def write_failed(
    executions: Executions, now: Moment, failure: WriteFailure, *, rule: Rule
) -> dict[str, Execution]:
    """Return what a failed write makes of those that wanted it; a refusal is not tried again.

    Args:
        executions: All.
        now: Both clocks.
        failure: What the device answered, or did not.
        rule: For the verdict on those that fail.
    """
    result = {}
    for uid, execution in executions.items():
        told = not_reverted(execution, now, rule, failure.message, answers=failure.answers)
        blind = execution.blind or (failure.sent and is_doubtful(execution))
        result[uid] = replace(told, blind=blind)
    for execution in owners(executions).values():
        if execution.stage is Stage.APPLYING:
            uid = execution.order.uid
            reason = Reason.DEVICE_WRITE_FAILED if failure.refused else Reason.DEVICE_OFFLINE
            sent_at = now if failure.sent else None
            result[uid] = (
                execution.begin_ending(Phase.FAILED, reason, failure.message, now.wall_us)
                if failure.refused
                else _not_taken(execution, reason, failure.message, sent_at=sent_at)
            )
    return result


def found_held(
    executions: Executions, held: Setpoints, site: Site, now: Moment
) -> dict[str, Execution]:
    """Return what it means that a device, about to be reverted, says that it holds ``held``.

    It may have taken a setpoint whose write it left unanswered, and that was given up since.
    """
    return {
        uid: _judge_sent(execution, execution.sent, now, held=site.holds(held, execution))
        if execution.sent and is_doubtful(execution)
        else execution
        for uid, execution in executions.items()
    }


def _judge_sent(execution: Execution, sent: Moment, now: Moment, *, held: bool) -> Execution:
    if held:
        return _found(execution, sent, now)
    # It did not take it; unless a revert ended that, whose answer was lost as well.
    return execution if execution.blind else replace(execution, sent=None)


def is_doubtful(execution: Execution) -> bool:
    """Tell whether nobody knows if the device took what is to be reverted."""
    return (
        execution.stage is Stage.REVERTING
        and execution.sent is not None
        and not execution.applied_us
    )


def _found(execution: Execution, since: Moment, now: Moment) -> Execution:
    ending = execution.ending
    words = "it did take the setpoint, and held it until it was reverted"
    return replace(
        execution,
        applied_us=since.wall_us,
        arrived_us=since.wall_us,
        held_since=since,
        confirmed=now,
        evidence="ReadBack",
        ending=ending and replace(ending, message=f"{ending.message}; {words}"),
    )


def look_again(
    executions: Executions,
    held: Setpoints,
    site: Site,
    now: Moment,
    *,
    timer_ends_us: int | None = None,
) -> dict[str, Execution]:
    """Return what it means for the executions that a device now says that it holds ``held``.

    Args:
        executions: All.
        held: By the device.
        site: For how much registers may round.
        now: Both clocks.
        timer_ends_us: When the device's own timer runs out, by the monotonic clock; None = it is
            not known to run.
    """
    result = dict(executions)
    for uid, execution in executions.items():
        if _takes_late(execution) and site.holds(held, execution):
            result[uid] = _found(execution, now, now)
        if execution.held_since is None or execution.let_go_monotonic_us:
            continue
        if not execution.arrived_us or site.holds(held, execution):
            result[uid] = replace(execution, confirmed=now)
        else:
            until = _last_held(execution, now, timer_ends_us)
            result[uid] = _lose(execution, now, f"it now says that it holds {held}", until)
    return result


def _takes_late(execution: Execution) -> bool:
    """Tell whether it was given up because its device, which had answered, held something else."""
    ending = execution.ending
    given_up = execution.stage is Stage.REVERTING and not execution.applied_us
    return given_up and ending is not None and ending.reason == Reason.READ_BACK_MISMATCH


def _last_held(execution: Execution, now: Moment, timer_ends_us: int | None) -> Moment:
    """Return when a device that holds it no more most likely let go of it."""
    last = execution.confirmed or now
    if timer_ends_us is not None and last.monotonic_us < timer_ends_us <= now.monotonic_us:
        ago_us = now.monotonic_us - timer_ends_us
        return Moment(wall_us=now.wall_us - ago_us, monotonic_us=timer_ends_us)
    return last


def hold(execution: Execution, now: Moment, evidence: str) -> Execution:
    """Return it as one that the device holds, from ``now`` on if it did not before."""
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
        pending_error="",
        ends_monotonic_us=now.monotonic_us + max(0, planned.end_us - now.wall_us),
        evidence=evidence,
        verified_reason="VerificationPending" if evidence == "ReadBack" else "ReadBackFailed",
    )


def _lose(
    execution: Execution, now: Moment, message: str, until: Moment | None = None
) -> Execution:
    """Return it as one that the device does not hold, whatever it answered to the write."""
    until = until or execution.confirmed or now
    if execution.stage is Stage.REVERTING:
        return execution.stop_holding(until)
    if execution.stage is not Stage.HOLDING:
        return _not_taken(execution, Reason.READ_BACK_MISMATCH, message, sent_at=now)
    lost = replace(
        execution.stop_holding(until),
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


def _not_taken(
    execution: Execution, reason: Reason, message: str, *, sent_at: Moment | None
) -> Execution:
    overdue = f"its start has come, the device has not taken it: {message}"
    return replace(
        execution,
        last_error=reason,
        last_message=message,
        pending_error=execution.pending_error or overdue,
        sent=execution.sent or sent_at,
    )


def _finish(execution: Execution, now: Moment, rule: Rule) -> Execution:
    ending = execution.ending
    if ending is None:
        raise ValueError(f"execution {execution.order.uid} is reverting without an ending")
    done = verifying.conclude_window(execution, now, rule)
    done = replace(done.stop_holding(now), reverted_us=now.wall_us)
    if done.phase.terminal:  # told before, as the device did not answer, or did not let go
        return replace(done, stage=Stage.DONE)
    phase, reason, message = ending.phase, ending.reason, ending.message
    if phase is Phase.COMPLETE:
        message = f"{message} and the device was reverted"
    late_us = execution.let_go_monotonic_us - execution.ends_monotonic_us - execution.bridged_us
    if phase is Phase.COMPLETE and late_us > LATE_REVERT_US:
        phase, reason = Phase.FAILED, str(Reason.REVERTED_LATE)
        message = f"the device was reverted {late_us / SECOND_US:.1f} s after the end"
    elif phase is Phase.COMPLETE and execution.order.verify_required and done.verified != "True":
        phase, reason = Phase.FAILED, str(Reason.EFFECT_NOT_OBSERVED)
        why = verifying.explain(execution, now, rule)
        message = f"verification was required and is {done.verified}: {why}"
    return done.step(phase, reason, message, now.wall_us)
