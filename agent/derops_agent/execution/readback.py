"""What a device's answers make of the executions: to a write, and to being asked what it holds."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

from derops.lifecycle import Phase, Reason
from derops.modes import Evidence, Guard, LatePolicy, Mode
from derops.schedules import SECOND_US, Window
from derops_agent.clock import Moment
from derops_agent.execution import verification
from derops_agent.execution.resolution import rounded, shown
from derops_agent.execution.site import Site
from derops_agent.execution.state import LATE_REVERT_US, Execution, Stage
from derops_agent.execution.verification import Rule
from derops_agent.execution.windows import Executions, is_due, owners, supersede
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
    since: Moment | None = None,
    first: Mapping[str, Moment] = MappingProxyType({}),
    wrong: Mapping[str, str] = _NONE_WRONG,
    gone: Collection[str] = (),
    awaited: Collection[str] = (),
    unknown: Collection[str] = (),
    error: Reason = Reason.READ_BACK_MISMATCH,
    ramping: bool = False,
    held: Setpoints | None = None,
    guard: str = Guard.AGENT_TIMER,
    timer_ends_us: int = 0,
) -> dict[str, Execution]:
    """Return what a successful write makes of the executions.

    Args:
        executions: All.
        now: Both clocks, when the device was asked.
        rule: For the verdict on those that end.
        since: When it was written, if the device shows that only later.
        first: When starts were first written that it had not shown when others followed, by uid.
        wrong: Modes of which the device says that it holds something else than was written,
            with the words for it.
        gone: Those to be reverted of which it says that it does not hold them, by uid.
        awaited: Modes that it may show yet: nothing is told of them.
        unknown: Starts of which what it shows says nothing, by uid. It has left what it held for
            them all the same.
        error: What it is called where the device has not taken a start.
        ramping: The active power that was written is only a step on the way.
        held: By the device, which confirms the modes that are not wrong; None = it does not say.
        guard: What ends the owners if the agent dies.
        timer_ends_us: When a timer of the device does, by the wall clock; 0 = it has none.
    """
    result = dict(executions)
    written_at = since or now
    owned = owners(executions)
    for mode, owner in owned.items():
        since = first.get(owner.order.uid, written_at)
        if mode in awaited or owner.order.uid in unknown:
            continue
        if mode in wrong:
            result[owner.order.uid] = (
                note_not_taken(replace(owner, sent=now, pending_error=""), error, wrong[mode])
                if owner.stage is Stage.APPLYING
                else _lose(replace(owner, sent=now), now, wrong[mode])
            )
            continue
        on_the_way = ramping and mode == Mode.ACTIVE_POWER
        known = owner
        if held is not None:
            known = _confirm(owner, held, rule, now, on_the_way=on_the_way)
        active = hold(known, since, Evidence.WRITTEN if held is None else Evidence.READ_BACK)
        active = replace(active, guard=guard, timer_ends_us=timer_ends_us)
        if not active.arrived_us and not on_the_way:
            # What was measured before the device showed it may be of its predecessor.
            active = replace(active, arrived_us=active.steady_us(now))
        result[owner.order.uid] = active
        losers = [
            verification.conclude_window(replace(other, ended_us=since.wall_us), since, rule)
            for other in executions.values()
            if other.order.mode == mode
            and other is not owner
            and (other.owns_device or is_due(other, since))
        ]
        supersede(result, active, losers, since)
    for uid, execution in result.items():
        mode = execution.order.mode
        if execution.stage is not Stage.REVERTING or mode in awaited:
            continue
        if mode in wrong and not (uid in gone and not execution.applied_us):
            result[uid] = replace(execution, letting_go=None)
            continue
        off = execution.letting_go or written_at
        let_go = execution.let_go_monotonic_us or off.monotonic_us
        ending = replace(execution, let_go_monotonic_us=let_go, letting_go=None)
        # What follows in its place is on a way of its own, once that is seen.
        followed = mode in owned and owned[mode].order.uid not in unknown
        was_held = execution.applied_us or execution.blind
        on_the_way = ramping and mode == Mode.ACTIVE_POWER
        if on_the_way and not was_held:
            ending = replace(ending, sent=None)  # it shows each step: none of it may land yet
        still = on_the_way and was_held and not followed
        result[uid] = ending if still else _finish(ending, off, rule)
    return result


def _confirm(
    execution: Execution, held: Setpoints, rule: Rule, now: Moment, *, on_the_way: bool
) -> Execution:
    """Return one that the device holds as what it says of it."""
    confirmed = replace(execution, confirmed=now)
    if on_the_way:
        return replace(confirmed, way_watts=held.active_power_watts)
    return shown(confirmed, held, rule.resolutions)


def finish_never_held(
    executions: Executions, gone: Collection[str], now: Moment, rule: Rule
) -> dict[str, Execution]:
    """Return those to be reverted that the device never held, and says that it does not hold.

    What else it holds, and keeps, is not of these.
    """
    return {
        uid: _finish(replace(execution, let_go_monotonic_us=now.monotonic_us), now, rule)
        for uid, execution in executions.items()
        if uid in gone and execution.stage is Stage.REVERTING and not execution.applied_us
    }


def await_read_back(
    executions: Executions, modes: Collection[str], wrote: Moment, error: str, words: str
) -> dict[str, Execution]:
    """Return those of which the device has not shown yet what was written.

    Args:
        executions: All.
        modes: Of which it shows something else.
        wrote: When it was written.
        error: What it is called if the start is given up meanwhile.
        words: What it waits for.
    """
    result = {}
    owned = owners(executions)
    for uid, execution in executions.items():
        if execution.order.mode not in modes:
            continue
        if execution.stage is Stage.REVERTING:
            result[uid] = replace(execution, letting_go=execution.letting_go or wrote)
        elif execution.stage is Stage.APPLYING and execution is owned[execution.order.mode]:
            sent = replace(execution, sent=execution.sent or wrote)
            result[uid] = note_not_taken(sent, execution.last_error or error, words)
    return result


def judge_anew(executions: Executions, not_taken: Mapping[str, int]) -> dict[str, Execution]:
    """Return the executions before a step of a ramp is written, with what was lost once forgiven.

    A device that loses one write, or restarts, is healthy, and its ramp begins anew: the window may
    end before it can show more.

    Args:
        executions: All.
        not_taken: How often the device has not taken a start, by uid.
    """
    return {
        uid: replace(execution, last_error="")
        if not_taken.get(uid) == 1 and execution.last_error == Reason.READ_BACK_MISMATCH
        else execution
        for uid, execution in executions.items()
    }


def overtaken(
    executions: Executions, modes: Collection[str], wrote: Moment, starting: Collection[str]
) -> dict[str, Execution]:
    """Return what becomes of those that wait for a write which another one follows too soon.

    Whether the device took it will not be seen, nor whether what it was to replace stayed.

    Args:
        executions: All.
        modes: That were waited for.
        wrote: When it was written.
        starting: Those that were to be put on the device, by uid.
    """
    result = {}
    replaced = {e.order.mode for uid, e in executions.items() if uid in starting}
    for uid, execution in executions.items():
        if execution.order.mode not in modes:
            continue
        if uid in starting and not execution.applied_us:
            result[uid] = replace(execution, blind=True)
        elif execution.held_since and execution.order.mode in replaced:
            result[uid] = execution.stop_holding(wrote)
    return result


def wear_out(
    executions: Executions, now: Moment, writes: int, most_writes: int
) -> dict[str, Execution]:
    """Return those that the device dropped, and that may not be written again, as ended."""
    words = (
        f"the device dropped the setpoint, which was written {writes} times; the most is "
        f"{most_writes} (mostWrites)"
    )
    return {
        owner.order.uid: owner.begin_ending(
            Phase.FAILED, Reason.SETPOINT_NOT_HELD, words, now.wall_us
        )
        for owner in owners(executions).values()
        if owner.stage is Stage.HOLDING and owner.held_since is None
    }


def look_again(
    executions: Executions,
    held: Setpoints,
    site: Site,
    now: Moment,
    *,
    ramping: bool = False,
    timer_ends_us: int | None = None,
) -> dict[str, Execution]:
    """Return what it means for the executions that a device now says that it holds ``held``.

    Args:
        executions: All.
        held: By the device.
        site: For how much registers may round.
        now: Both clocks.
        ramping: The active power that was written is only a step on the way.
        timer_ends_us: When the device's own timer runs out, by the monotonic clock; None = it is
            not known to run.
    """
    result = dict(executions)
    for uid, execution in executions.items():
        if execution.held_since is None or execution.let_go_monotonic_us:
            continue
        on_the_way = ramping and execution.order.mode == Mode.ACTIVE_POWER
        if on_the_way or not execution.arrived_us or site.holds(held, execution):
            result[uid] = replace(execution, confirmed=now)
            if execution.stage is Stage.HOLDING and execution.arrived_us and not on_the_way:
                # What it said at first may have been of the step before, which was near.
                mode, watts = execution.order.mode, execution.target_watts
                anew = replace(result[uid], **rounded(mode, watts, site.capability))
                result[uid] = shown(anew, held, site.capability.resolutions)
        else:
            until = _last_held(execution, now, timer_ends_us)
            result[uid] = _lose(execution, now, f"it now says that it holds {held}", until)
    return result


def _last_held(execution: Execution, now: Moment, timer_ends_us: int | None) -> Moment:
    """Return when a device that holds it no more most likely let go of it."""
    last = execution.letting_go or execution.confirmed or now
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


def _lose(
    execution: Execution, now: Moment, message: str, until: Moment | None = None
) -> Execution:
    """Return it as one that the device does not hold, whatever it answered to the write."""
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
        f"the device dropped the setpoint {lost.losses} times in the window; {message}",
        now.wall_us,
    )


def note_not_taken(execution: Execution, reason: str, message: str) -> Execution:
    """Return it as a start that the device has not taken so far."""
    overdue = f"its start has come, the device has not taken it: {message}"
    return replace(
        execution,
        last_error=reason,
        last_message=message,
        pending_error=execution.pending_error or overdue,
    )


def _finish(execution: Execution, now: Moment, rule: Rule) -> Execution:
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
        message = f"the device was reverted {late_us / SECOND_US:.1f} s after the end"
    elif phase is Phase.COMPLETE and execution.order.verify_required and done.verified != "True":
        phase, reason = Phase.FAILED, str(Reason.EFFECT_NOT_OBSERVED)
        why = verification.explain(execution, now, rule)
        message = f"verification was required and is {done.verified}: {why}"
    return done.step(phase, reason, message, now.wall_us)
