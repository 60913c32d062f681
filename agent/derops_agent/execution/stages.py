"""How one execution moves as its device takes it, drops it or lets go of it. Pure."""

from dataclasses import replace

from derops.lifecycle import Phase, Reason
from derops.modes import Evidence, LatePolicy
from derops.schedules import SECOND_US, Window
from derops_agent.clock import Moment
from derops_agent.execution import verification
from derops_agent.execution.state import LATE_REVERT_US, Execution, Stage
from derops_agent.execution.verification import Rule

MOST_LOSSES = 3
"""How often a device may drop a setpoint and have it written again."""

_KEEP_END_SLACK_US = SECOND_US  # an ordinary start is some milliseconds late and moves nothing


def hold(execution: Execution, now: Moment, evidence: str) -> Execution:
    """Return it as one that the device holds, since ``now`` unless it did before."""
    if execution.stage is Stage.HOLDING:
        return execution if execution.held_since else replace(execution, held_since=now)
    planned = execution.planned or Window(start_us=now.wall_us, end_us=now.wall_us)
    late = now.wall_us - planned.start_us > _KEEP_END_SLACK_US
    if execution.order.late_policy == LatePolicy.KEEP_DURATION and late:
        end_us = now.wall_us + execution.order.duration_seconds * SECOND_US
        planned = Window(start_us=planned.start_us, end_us=end_us)
    message = "written to the device"
    if execution.rounding:
        message = f"{message} as {execution.sent_watts} W: {execution.rounding}"
    active = execution.step(Phase.ACTIVE, Reason.APPLIED, message, now.wall_us)
    return replace(
        active,
        stage=Stage.HOLDING,
        planned=planned,
        applied_us=now.wall_us,
        held_since=now,
        pending_error="",
        ends_monotonic_us=now.monotonic_us + max(0, planned.end_us - now.wall_us),
        evidence=evidence,
        verified_reason="VerificationPending"
        if evidence == Evidence.READ_BACK
        else "ReadBackFailed",
    )


def lose(execution: Execution, now: Moment, message: str, until: Moment | None = None) -> Execution:
    """Return it as one that the device no longer holds, whatever it answered to the write."""
    until = until or execution.confirmed or now
    if execution.stage is Stage.REVERTING:
        let_go_us = min(until.monotonic_us, now.monotonic_us)
        return replace(execution.stop_holding(until), let_go_monotonic_us=let_go_us)
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
        f"the device dropped the setpoint {lost.losses} times in the window, {MOST_LOSSES} are "
        f"allowed; {message}",
        now.wall_us,
    )


def note_not_taken(execution: Execution, reason: str, message: str) -> Execution:
    """Return it as a start that the device has not taken yet."""
    overdue = f"its start has come, and the device has not taken it: {message}"
    return replace(
        execution,
        last_error=reason,
        last_message=message,
        pending_error=execution.pending_error or overdue,
    )


def finish(execution: Execution, now: Moment, rule: Rule) -> Execution:
    """Return it in its terminal phase: the device was reverted ``now``."""
    ending = execution.ending
    if ending is None:
        raise ValueError(f"execution {execution.order.uid} is reverting without an ending")
    done = verification.conclude_window(execution, now, rule)
    reverted_us = max(now.wall_us, execution.ended_us)
    done = replace(done.stop_holding(now), reverted_us=reverted_us)
    if done.phase.terminal:  # told before, as the device did not answer, or did not let go
        return replace(done, stage=Stage.DONE)
    phase, reason, message = ending.phase, ending.reason, ending.message
    if phase is Phase.COMPLETE:
        message = f"{message} and the device was reverted"
    late_us = execution.let_go_monotonic_us - execution.ends_monotonic_us - execution.bridged_us
    if phase is Phase.COMPLETE and late_us > LATE_REVERT_US:
        phase, reason = Phase.FAILED, str(Reason.REVERTED_LATE)
        message = (
            f"the device was reverted {late_us / SECOND_US:.1f} s after the end, "
            f"{LATE_REVERT_US // SECOND_US} s are allowed"
        )
    elif phase is Phase.COMPLETE and execution.order.verify_required and done.verified != "True":
        phase, reason = Phase.FAILED, str(Reason.EFFECT_NOT_OBSERVED)
        why = verification.explain(execution, now, rule)
        message = f"verification was required and is {done.verified}: {why}"
    return done.step(phase, reason, message, now.wall_us)
