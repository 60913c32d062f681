"""Writes that a device did not confirm: they failed, or are found on it later."""

from dataclasses import dataclass, replace

from derops.lifecycle import Phase, Reason
from derops.modes import Evidence
from derops_agent.clock import Moment
from derops_agent.execution.readback import note_not_taken
from derops_agent.execution.site import Site
from derops_agent.execution.state import Execution, Stage, Step
from derops_agent.execution.windows import Executions, owners
from derops_agent.ports import Setpoints


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

    is_silence: bool = True
    """Nothing came back to the write itself."""


def write_failed(
    executions: Executions, now: Moment, failure: WriteFailure
) -> dict[str, Execution]:
    """Return what a failed write makes of those that wanted it; a refusal is not tried again.

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
            uid = execution.order.uid
            reason = Reason.DEVICE_WRITE_FAILED if failure.refused else Reason.DEVICE_OFFLINE
            result[uid] = (
                execution.begin_ending(Phase.FAILED, reason, failure.message, now.wall_us)
                if failure.refused
                else note_not_taken(
                    _send(execution, now, failure) if failure.sent else execution,
                    reason,
                    failure.message,
                )
            )
    return result


def send_again(executions: Executions, now: Moment) -> dict[str, Execution]:
    """Return those that were held already and of which another write was not answered."""
    return {
        execution.order.uid: replace(execution, sent=now)
        for execution in owners(executions).values()
        if execution.stage is Stage.HOLDING
    }


def find_held(
    executions: Executions, held: Setpoints, wanted: Setpoints, site: Site, now: Moment
) -> dict[str, Execution]:
    """Return those of which it comes out only now that the device holds them.

    A write that it left unanswered, or did not take at once, has landed after the execution was
    given up, or after it had ended: that is undone then, whatever was told.

    Args:
        executions: All.
        held: By the device.
        wanted: What it is to hold; who wants the same is not told apart.
        site: For how much registers may round.
        now: Both clocks.
    """
    known = {e.order.mode for e in executions.values() if e.held_since and site.holds(held, e)}
    found = {}
    newest_first = sorted(executions.values(), key=_sent_us, reverse=True)
    for execution in newest_first:
        mode, sent = execution.order.mode, execution.sent
        if sent is None or not (execution.is_doubtful or execution.may_land) or mode in known:
            continue
        # Nothing tells a device that rests at its fallback from one that holds the same value.
        rests = site.holds(site.fallback, execution)
        late = site.holds(held, execution) and not rests
        if late and not site.holds(site.sent(wanted), execution):
            # Where it said that it did not hold it, or was back at its fallback, only now counts.
            unseen = execution.blind and not execution.may_land
            since = sent if unseen else now
            found[execution.order.uid] = _found(execution, since, now)
            known.add(mode)
    return found


def _sent_us(execution: Execution) -> int:
    return execution.sent.wall_us if execution.sent else 0


def mark_unanswered(executions: Executions) -> dict[str, Execution]:
    """Return those of which nobody will know, as the device did not say what it holds."""
    return {
        uid: replace(execution, blind=True)
        for uid, execution in executions.items()
        if execution.is_doubtful
    }


def rule_out(executions: Executions) -> dict[str, Execution]:
    """Return those whose writes land no more: what was not found was not taken."""
    return {
        uid: replace(
            execution,
            sent=None,
            evidence=execution.evidence or (Evidence.UNANSWERED if execution.blind else ""),
        )
        for uid, execution in executions.items()
        if execution.sent and (execution.may_land or execution.applied_us)
    }


def _found(execution: Execution, since: Moment, now: Moment) -> Execution:
    ending = execution.ending or Step(
        phase=execution.phase,
        reason=execution.reason,
        message=execution.message,
        at_us=execution.ended_us,
    )
    words = "it did take the setpoint, and held it until it was reverted"
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


def _send(execution: Execution, now: Moment, failure: WriteFailure) -> Execution:
    if failure.answers:
        return replace(execution, sent=now)  # asked at once, it said that it does not hold it
    return replace(execution, sent=execution.sent or now, blind=True)
