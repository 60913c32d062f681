"""What becomes of writes that a device did not confirm: they fail, or land later. Pure."""

from dataclasses import dataclass, replace

from derops.lifecycle import Phase, Reason
from derops.modes import Evidence, Mode
from derops_agent.clock import Moment
from derops_agent.execution.site import Site
from derops_agent.execution.stages import note_not_taken
from derops_agent.execution.state import Execution, Stage, Step
from derops_agent.execution.windows import Executions, owners
from derops_agent.ports import Setpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteFailure:
    """A write that the device did not confirm."""

    message: str
    """What the device answered, or what the driver waited for."""

    refused: bool
    """Whether the device said no."""

    sent: bool
    """Whether the device did not answer the write, and may have acted on it."""

    answers: bool
    """Whether the device answers anything at all."""

    is_silence: bool = True
    """Whether nothing came back to the write itself."""


def write_failed(
    executions: Executions, now: Moment, failure: WriteFailure
) -> dict[str, Execution]:
    """Return the executions after a write that failed.

    A start that the device refused begins to end. Any other start waits, and is tried again.

    Args:
        executions: All.
        now: Both clocks.
        failure: What the device answered, or did not.
    """
    result = dict(executions) if failure.answers else {**executions, **mark_unanswered(executions)}
    if failure.sent:
        result |= send_again(result, now)
    for execution in owners(executions).values():
        if execution.stage is Stage.APPLYING:
            result[execution.order.uid] = _fail_start(execution, now, failure)
    return result


def _fail_start(execution: Execution, now: Moment, failure: WriteFailure) -> Execution:
    if failure.refused:
        return execution.begin_ending(
            Phase.FAILED, Reason.DEVICE_WRITE_FAILED, failure.message, now.wall_us
        )
    known = _note_sent(execution, now, failure) if failure.sent else execution
    return note_not_taken(known, Reason.DEVICE_OFFLINE, failure.message)


def send_again(executions: Executions, now: Moment) -> dict[str, Execution]:
    """Return the owners that the device held, with a new write that it did not answer."""
    return {
        execution.order.uid: replace(execution, sent=now)
        for execution in owners(executions).values()
        if execution.stage is Stage.HOLDING
    }


def find_held(
    executions: Executions, held: Setpoints, wanted: Setpoints, site: Site, now: Moment
) -> dict[str, Execution]:
    """Return the executions whose late write the device is found to hold, as to be reverted.

    The device left such a write unanswered, or did not take it at once; it landed after the agent
    had ended the execution. It is undone whatever was told before. Of a mode, the one that was
    written last is found. What may be a step of another one's ramp is not found.

    Args:
        executions: All.
        held: What the device says that it holds.
        wanted: What it is to hold; a late write of the same value cannot be told from it.
        site: For how much registers may round.
        now: Both clocks.
    """
    explained = {e.order.mode for e in executions.values() if e.held_since and site.holds(held, e)}
    found = {}
    newest_first = sorted(executions.values(), key=_sent_us, reverse=True)
    for execution in newest_first:
        mode = execution.order.mode
        if mode in explained or _may_be_a_step(executions, execution, site):
            continue
        if _has_landed(execution, held, wanted, site):
            found[execution.order.uid] = _undo(execution, now)
            explained.add(mode)
    return found


def _has_landed(execution: Execution, held: Setpoints, wanted: Setpoints, site: Site) -> bool:
    """Tell whether a device holds the value of one that may land, and of nothing else."""
    if execution.sent is None or not (execution.is_doubtful or execution.may_land):
        return False
    # Nothing tells a device that rests at its fallback from one that holds the same value.
    if site.holds(site.fallback, execution) or not site.holds(held, execution):
        return False
    return not site.holds(site.sent(wanted), execution)


def _may_be_a_step(executions: Executions, execution: Execution, site: Site) -> bool:
    """Tell whether a device that holds the value may be on another one's ramp, or its way back.

    That is told by what is stored, as an agent that restarted knows no step that it wrote.
    """
    ramps = site.asset is not None and site.asset.max_ramp_watts_per_second is not None
    if not ramps or execution.order.mode != Mode.ACTIVE_POWER:
        return False
    others = (e for e in executions.values() if e is not execution and _is_on_its_ramp(e))
    return any(e.applied_us or _sent_us(e) > _sent_us(execution) for e in others)


def _is_on_its_ramp(execution: Execution) -> bool:
    """Tell whether a device may be on the way to its active power, or back from it."""
    has_arrived = execution.stage is Stage.HOLDING and execution.arrived_us
    is_active_power = execution.order.mode == Mode.ACTIVE_POWER
    return is_active_power and execution.may_be_on_device and not has_arrived


def _sent_us(execution: Execution) -> int:
    return execution.sent.wall_us if execution.sent else 0


def mark_unanswered(executions: Executions) -> dict[str, Execution]:
    """Return those that the device may have held and let go unseen: it did not answer."""
    return {
        uid: replace(execution, blind=True)
        for uid, execution in executions.items()
        if execution.is_doubtful
    }


def rule_out(executions: Executions) -> dict[str, Execution]:
    """Return those whose writes land no more: the device did not take what was not found."""
    return {
        uid: replace(
            execution,
            sent=None,
            evidence=execution.evidence or (Evidence.UNANSWERED if execution.blind else ""),
        )
        for uid, execution in executions.items()
        if execution.sent and (execution.may_land or execution.applied_us)
    }


def _undo(execution: Execution, now: Moment) -> Execution:
    """Return it as one that the device took late, and that is to be reverted."""
    # Where the device said that it did not hold it, or was at its fallback since, now counts.
    is_unseen = execution.blind and not execution.may_land
    since = (execution.sent or now) if is_unseen else now
    ending = execution.ending or Step(
        phase=execution.phase,
        reason=execution.reason,
        message=execution.message,
        at_us=execution.ended_us,
    )
    words = "the device did take the setpoint, and held it until it was reverted"
    return replace(
        execution,
        stage=Stage.REVERTING,
        applied_us=execution.applied_us or since.wall_us,
        arrived_us=execution.arrived_us or since.wall_us,
        ended_us=execution.ended_us or now.wall_us,
        reverted_us=0,
        held_since=since,
        confirmed=now,
        evidence=execution.evidence or Evidence.READ_BACK,
        ending=replace(ending, message=f"{ending.message}; {words}"),
    )


def _note_sent(execution: Execution, now: Moment, failure: WriteFailure) -> Execution:
    if failure.answers:
        return replace(execution, sent=now)  # asked at once, it said that it does not hold it
    return replace(execution, sent=execution.sent or now, blind=True)
