"""What becomes of an execution whose device is not reverted in time. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from derops.lifecycle import Phase, Reason
from derops.schedules import SECOND_US
from derops_agent.clock import Moment
from derops_agent.execution import verification
from derops_agent.execution.state import LATE_REVERT_US, Execution, Stage
from derops_agent.execution.verification import Rule
from derops_agent.execution.windows import Executions

_TOLD_AFTER_US = 2 * SECOND_US  # a revert that succeeds at the second try is no news


def fail_unreverted(
    execution: Execution, now: Moment, rule: Rule, reason: str, message: str
) -> Execution:
    """Return it as failed although its device is not reverted; the agent keeps trying that.

    An execution that ends as Failed anyway keeps its reason, any other gets ``reason``.
    """
    ending = execution.ending
    if execution.phase.terminal or ending is None:
        return execution
    known = verification.conclude_window(execution, now, rule)
    failed_before = ending.phase is Phase.FAILED
    words = f"{ending.message}; {message}" if failed_before else f"{message} ({ending.reason})"
    reason = ending.reason if failed_before else reason
    failed = known.step(Phase.FAILED, reason, words, now.wall_us)
    return replace(failed, stage=Stage.REVERTING)


def mark_unreverted(
    executions: Executions, stuck: Mapping[str, str], stuck_us: int, now: Moment, rule: Rule
) -> dict[str, Execution]:
    """Return the executions as a device that answers, and is not reverted, leaves them.

    After two seconds status says so; after ten the execution fails. A silent device is another
    case, see ``silence``.

    Args:
        executions: All.
        stuck: What the device answered, or says that it holds, by mode.
        stuck_us: Since when the device takes nothing, by the wall clock; while a ramp led there it
            was not late.
        now: Both clocks.
        rule: For the verdict on their windows.
    """
    return {
        uid: _mark_unreverted(execution, stuck_us, now, rule, stuck[execution.order.mode])
        if execution.order.mode in stuck
        else execution
        for uid, execution in executions.items()
    }


def _mark_unreverted(
    execution: Execution, stuck_us: int, now: Moment, rule: Rule, message: str
) -> Execution:
    ending = execution.ending
    if execution.stage is not Stage.REVERTING or ending is None or execution.phase.terminal:
        return execution
    late_us = now.wall_us - max(execution.ended_us + execution.bridged_us, stuck_us)
    if late_us > LATE_REVERT_US:
        return fail_unreverted(
            execution.count_until(execution.confirmed),
            now,
            rule,
            Reason.REVERT_FAILED,
            f"the device is not reverted yet, and the agent keeps trying: {message}",
        )
    if execution.pending_error or late_us < _TOLD_AFTER_US:
        return execution
    overdue = f"it ended ({ending.reason}), and the device is not reverted yet: {message}"
    return replace(execution, pending_error=overdue)
