"""What becomes of executions while their device does not answer. Pure."""

from dataclasses import dataclass, replace

from derops.lifecycle import Reason
from derops.modes import Evidence
from derops.schedules import SECOND_US
from derops_agent.clock import Moment
from derops_agent.execution import verification
from derops_agent.execution.reversion import fail_unreverted
from derops_agent.execution.state import LATE_REVERT_US, Execution, Stage
from derops_agent.execution.verification import Rule, Verification
from derops_agent.execution.windows import Executions

MOST_SILENCES = 2
"""So many silences of a window are told; the last of them stands until the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """The silence of a device that left more than one question without an answer."""

    since_us: int
    """When the device last answered, or else was first asked, by the monotonic clock."""

    last_answer: Moment | None
    """When the device last answered; None = not since the agent started."""


def mark_silent(
    executions: Executions, silence: Silence | None, now: Moment, rule: Rule
) -> dict[str, Execution]:
    """Return the executions with what is known of them while the device is, or is not, silent.

    An open window goes on: the device may hold its setpoint, and may answer before the end. What
    cannot be reverted in time fails now; the agent keeps trying to revert it.

    Args:
        executions: All.
        silence: Of the device; None = it answers.
        now: Both clocks.
        rule: For the verdict on those that fail.
    """
    if silence is None:
        return {uid: _reopen_verdict(execution) for uid, execution in executions.items()}
    result = {}
    for uid, execution in executions.items():
        result[uid] = execution
        if execution.stage is Stage.HOLDING:
            result[uid] = _doubt(execution, silence, now)
        elif execution.stage is Stage.REVERTING and now.wall_us > _failed_after_us(execution):
            result[uid] = _fail_silent(execution, silence, now, rule)
    return result


def _doubt(execution: Execution, silence: Silence, now: Moment) -> Execution:
    """Return it with the verdict Unknown, because its device is silent."""
    if _is_doubted(execution):
        return execution
    doubted = replace(
        count_to_last_answer(execution, silence),
        silences=execution.silences + 1,
        effect=replace(execution.effect, told="Unknown"),
    )
    unknown = Verification(verified="Unknown", reason=Reason.DEVICE_OFFLINE)
    return verification.conclude(doubted, unknown, now.wall_us)


def _reopen_verdict(execution: Execution) -> Execution:
    """Return it with its verdict open again; its next samples decide."""
    if execution.stage is not Stage.HOLDING or not _is_doubted(execution):
        return execution
    if execution.silences >= MOST_SILENCES:
        return execution
    effect = replace(execution.effect, told="", in_a_row=0)
    if execution.effect.last_sample_us:
        return replace(execution, effect=effect)
    reason = "ReadBackFailed" if execution.evidence == Evidence.WRITTEN else "VerificationPending"
    return replace(execution, effect=effect, verified_reason=reason)


def _is_doubted(execution: Execution) -> bool:
    return execution.verified_reason == Reason.DEVICE_OFFLINE and bool(execution.effect.told)


def count_to_last_answer(execution: Execution, silence: Silence) -> Execution:
    """Return it with its active time counted until the device last showed that it held it.

    The rest is counted if the device answers, and says that it still holds it.
    """
    return execution.count_until(execution.confirmed or silence.last_answer)


def _failed_after_us(execution: Execution) -> int:
    """Return the wall time after which a revert that has not succeeded is late."""
    ends_us = execution.planned.end_us if execution.planned and execution.applied_us else 0
    return max(execution.ended_us, ends_us) + execution.bridged_us + LATE_REVERT_US


def _fail_silent(execution: Execution, silence: Silence, now: Moment, rule: Rule) -> Execution:
    silent_seconds = (now.monotonic_us - silence.since_us) / SECOND_US
    return fail_unreverted(
        count_to_last_answer(execution, silence),
        now,
        rule,
        Reason.DEVICE_OFFLINE,
        f"the device has not answered for {silent_seconds:.0f} s, and what it holds is not known; "
        f"the agent reverts it as soon as it answers",
    )
