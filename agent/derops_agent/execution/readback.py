"""What a device's answers mean for the executions: to a write, or asked what it holds. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from derops.lifecycle import Phase, Reason
from derops.modes import Evidence, Guard, Mode
from derops_agent.clock import Moment
from derops_agent.execution import stages, verification
from derops_agent.execution.resolution import rounded, shown
from derops_agent.execution.site import Site
from derops_agent.execution.state import Execution, Stage
from derops_agent.execution.verification import Rule
from derops_agent.execution.windows import Executions, is_due, owners, supersede
from derops_agent.ports import Setpoints

_NONE_WRONG: Mapping[str, str] = MappingProxyType({})


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
    """Return the executions after a write that the device answered.

    Args:
        executions: All.
        now: When the device was asked, by both clocks.
        rule: For the verdict on those that end.
        since: When it was written; None = now.
        first: When a start was first written that the device shows only after later writes, by uid.
        wrong: Modes of which the device says that it holds something else than was written, with
            the words for it.
        gone: Uids of those to be reverted that the device says it does not hold.
        awaited: Modes that the device may show yet: nothing is told of them.
        unknown: Uids of starts that the answer says nothing about. The device has left what it
            held before them all the same.
        error: The reason noted for a start that the device has not taken.
        ramping: The active power that was written is only a step on the way.
        held: What the device says that it holds, which confirms the modes that are not wrong;
            None = it does not say.
        guard: What ends the owners if the agent dies.
        timer_ends_us: When a timer of the device does, by the wall clock; 0 = it has none.
    """
    result = dict(executions)
    answer = _Answer(
        now=now,
        wrote=since or now,
        rule=rule,
        wrong=wrong,
        gone=gone,
        ramping=ramping,
        held=held,
        guard=guard,
        timer_ends_us=timer_ends_us,
    )
    owned = {mode: e for mode, e in owners(executions).items() if e.order.uid not in unknown}
    for mode, owner in owned.items():
        uid = owner.order.uid
        if mode in awaited:
            continue
        if mode in wrong:
            result[uid] = _note_wrong(owner, now, error, wrong[mode])
            continue
        began = first.get(uid, answer.wrote)
        result[uid] = _put_on(owner, began, answer)
        losers = _conclude_others(executions, owner, began, rule)
        supersede(result, result[uid], losers, began)
    for uid, execution in result.items():
        mode = execution.order.mode
        if execution.stage is Stage.REVERTING and mode not in awaited:
            result[uid] = _take_off(execution, answer, is_followed=mode in owned)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What a device said after a write; see ``written``."""

    now: Moment
    wrote: Moment
    rule: Rule
    wrong: Mapping[str, str]
    gone: Collection[str]
    ramping: bool
    held: Setpoints | None
    guard: str
    timer_ends_us: int

    def is_step(self, execution: Execution) -> bool:
        """Tell whether what was written is only a step on the way to, or from, its value."""
        return self.ramping and execution.order.mode == Mode.ACTIVE_POWER


def _note_wrong(owner: Execution, now: Moment, error: Reason, words: str) -> Execution:
    """Return it as one of which the device says that it holds something else."""
    sent = replace(owner, sent=now)
    if owner.stage is Stage.APPLYING:
        return stages.note_not_taken(replace(sent, pending_error=""), error, words)
    return stages.lose(sent, now, words)


def _put_on(owner: Execution, began: Moment, answer: _Answer) -> Execution:
    """Return it as one that the device holds since ``began``, or is on the way to."""
    known, evidence = owner, Evidence.WRITTEN
    if answer.held is not None:
        known, evidence = _confirm(owner, answer.held, answer), Evidence.READ_BACK
    active = replace(
        stages.hold(known, began, evidence), guard=answer.guard, timer_ends_us=answer.timer_ends_us
    )
    if active.arrived_us or answer.is_step(owner):
        return active
    # What was measured before the device showed it may be of its predecessor.
    return replace(active, arrived_us=active.steady_us(answer.now))


def _confirm(execution: Execution, held: Setpoints, answer: _Answer) -> Execution:
    """Return one that the device holds with what the device says of it."""
    confirmed = replace(execution, confirmed=answer.now)
    if answer.is_step(execution):
        return replace(confirmed, way_watts=held.active_power_watts)
    return shown(confirmed, held, answer.rule.resolutions)


def _conclude_others(
    executions: Executions, owner: Execution, began: Moment, rule: Rule
) -> list[Execution]:
    """Return those that the owner of their mode replaces, with the verdict on their windows."""
    return [
        verification.conclude_window(replace(other, ended_us=began.wall_us), began, rule)
        for other in executions.values()
        if other.order.mode == owner.order.mode
        and other is not owner
        and (other.owns_device or is_due(other, began))
    ]


def _take_off(execution: Execution, answer: _Answer, *, is_followed: bool) -> Execution:
    """Return one that is to be reverted as done, unless the device keeps it or ramps away from it.

    Args:
        execution: One that is to be reverted.
        answer: Of the device.
        is_followed: The device shows another one in its place, which is on a way of its own.
    """
    was_never_held = execution.order.uid in answer.gone and not execution.applied_us
    if execution.order.mode in answer.wrong and not was_never_held:
        return replace(execution, letting_go=None)
    off = execution.letting_go or answer.wrote
    let_go_us = execution.let_go_monotonic_us or off.monotonic_us
    ending = replace(execution, let_go_monotonic_us=let_go_us, letting_go=None)
    if answer.is_step(execution):
        if not (execution.applied_us or execution.blind):
            ending = replace(ending, sent=None)  # it shows each step: none of it may land yet
        elif not is_followed:
            return ending
    return stages.finish(ending, off, answer.rule)


def finish_never_held(
    executions: Executions, gone: Collection[str], now: Moment, rule: Rule
) -> dict[str, Execution]:
    """Return those to be reverted that the device never held, as done.

    Args:
        executions: All.
        gone: Uids of those that the device says it does not hold; what it holds is not theirs.
        now: Both clocks.
        rule: For the verdict on their windows.
    """
    return {
        uid: stages.finish(replace(execution, let_go_monotonic_us=now.monotonic_us), now, rule)
        for uid, execution in executions.items()
        if uid in gone and execution.stage is Stage.REVERTING and not execution.applied_us
    }


def await_read_back(
    executions: Executions, modes: Collection[str], wrote: Moment, error: str, words: str
) -> dict[str, Execution]:
    """Return those whose write the device does not show yet.

    Args:
        executions: All.
        modes: Modes of which the device shows something else.
        wrote: When it was written.
        error: The reason that a start fails with if its deadline passes meanwhile.
        words: What the start waits for.
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
            result[uid] = stages.note_not_taken(sent, execution.last_error or error, words)
    return result


def note_landed(executions: Executions, wrote: Moment, now: Moment) -> dict[str, Execution]:
    """Return the executions; those that the device shows now may not land a second time.

    Args:
        executions: All.
        wrote: When they were written, and the device said yes; one that was also written before
            may land yet.
        now: When the device was asked.
    """
    return {
        uid: replace(e, sent=None) if e.confirmed == now and e.sent == wrote else e
        for uid, e in executions.items()
    }


def find_overtaken(
    executions: Executions, held: Setpoints, site: Site, now: Moment
) -> dict[str, Execution]:
    """Return the starts whose write was followed by another one, and that the device shows now.

    It had taken them, and shows each write late. They count as held from their first write, until
    the device shows what followed or that is given up.
    """
    owning = {owner.order.uid for owner in owners(executions).values()}
    found = {}
    for uid, execution in executions.items():
        sent = execution.sent
        if uid in owning or sent is None or not _is_overtaken(execution, site):
            continue
        if site.holds(held, execution):
            known = shown(replace(execution, confirmed=now), held, site.capability.resolutions)
            on_device = stages.hold(known, sent, Evidence.READ_BACK)
            found[uid] = replace(on_device, arrived_us=on_device.steady_us(now))
    return found


def _is_overtaken(execution: Execution, site: Site) -> bool:
    """Tell whether it waits though it was written, and nothing but itself has its value."""
    waits = execution.stage is Stage.APPLYING and execution.blind
    return waits and not site.holds(site.fallback, execution)


def forget_letting_go(executions: Executions, wrote: Moment) -> dict[str, Execution]:
    """Return the executions; none is taken off the device by what was written then."""
    return {
        uid: replace(e, letting_go=None) if e.letting_go == wrote else e
        for uid, e in executions.items()
    }


def judge_anew(executions: Executions, not_taken: Mapping[str, int]) -> dict[str, Execution]:
    """Return the executions as a step of a ramp is written; one lost write is forgiven.

    A device that loses one write, or restarts, is healthy. Its ramp begins anew, and the window may
    end before the device can show more.

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
    """Return those whose write is followed by another one before the device showed it.

    Nobody will see whether the device took it, nor whether it kept what that was to replace.

    Args:
        executions: All.
        modes: Modes that the write was waited for in.
        wrote: When it was written.
        starting: Uids of those that were to be put on the device.
    """
    result = {}
    replaced = {e.order.mode for uid, e in executions.items() if uid in starting}
    for uid, execution in executions.items():
        if execution.order.mode not in modes:
            continue
        if uid in starting and not execution.applied_us:
            result[uid] = replace(execution, blind=True)
        elif execution.held_since and execution.order.mode in replaced:
            result[uid] = execution.stop_holding(execution.letting_go or wrote)
    return result


def wear_out(
    executions: Executions, now: Moment, writes: int, most_writes: int
) -> dict[str, Execution]:
    """Return those that the device dropped and that may not be written again, as ending."""
    words = (
        f"the device dropped the setpoint after {writes} writes; {most_writes} are allowed "
        f"(mostWrites)"
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
    """Return the executions after the device was asked, without a write, what it holds.

    Args:
        executions: All.
        held: What the device says that it holds.
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
        is_comparable = bool(execution.arrived_us) and not on_the_way
        if is_comparable and not site.holds(held, execution):
            until = _last_held(execution, now, timer_ends_us)
            words = f"it now says that it holds {held}"
            result[uid] = stages.lose(execution, now, words, until)
            continue
        result[uid] = replace(execution, confirmed=now)
        if is_comparable and execution.stage is Stage.HOLDING:
            # What it said at first may have been of the step before, which was near.
            rounding = rounded(execution.order.mode, execution.target_watts, site.capability)
            anew = replace(result[uid], **rounding)
            result[uid] = shown(anew, held, site.capability.resolutions)
    return result


def _last_held(execution: Execution, now: Moment, timer_ends_us: int | None) -> Moment:
    """Return when a device that no longer holds it most likely let go of it."""
    last = execution.letting_go or execution.confirmed or now
    if timer_ends_us is not None and last.monotonic_us < timer_ends_us <= now.monotonic_us:
        ago_us = now.monotonic_us - timer_ends_us
        return Moment(wall_us=now.wall_us - ago_us, monotonic_us=timer_ends_us)
    return last
