"""What a device shows of a write that is waited for, and what that means for the executions. Pure.

A write counts once the device was asked what it holds. One that says something else may show it
late: it is asked again before it is written again, and written only so often.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from derops.lifecycle import Reason
from derops.schedules import SECOND_US
from derops_agent.asset.setpoints import inquiry
from derops_agent.asset.setpoints.decided import Decided, NotHeld, StartShown
from derops_agent.asset.setpoints.state import LOOK_EVERY_US, SUSPECT_US, DeviceState
from derops_agent.clock import Moment
from derops_agent.execution import claims, patience, readback, windows
from derops_agent.execution.patience import Awaited
from derops_agent.execution.site import Site
from derops_agent.execution.windows import Executions
from derops_agent.ports import Capability, ReadBack, Setpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a device said that it holds, when, and what it is judged by."""

    held: Setpoints | None
    """None = it did not say."""

    now: Moment
    site: Site
    capability: Capability
    """The device's as it is now; that of the site is as of the last sample."""

    @property
    def read_back(self) -> ReadBack:
        """How soon the device shows a write, and how often it may be written."""
        return self.capability.read_back

    @property
    def pace_us(self) -> int:
        """The time from one question to the next."""
        return round(self.read_back.pace_seconds * SECOND_US)


def is_ask_due(state: DeviceState, now: Moment) -> bool:
    """Tell whether the device is to be asked for what it was told last."""
    return state.awaited is not None and now.monotonic_us >= state.awaited.ask_at_us


def await_first_answer(state: DeviceState, scope: Executions, read_back: ReadBack) -> Decided:
    """Have those that wait for a write say so, unless the device was asked before."""
    awaited = state.awaited
    if awaited is None or awaited.modes:
        return Decided(state=state)
    words = patience.explain_wait(read_back)
    modes = {e.order.mode for u, e in scope.items() if u in awaited.wanting}
    changed = readback.await_read_back(
        scope, modes, awaited.wrote, Reason.START_DEADLINE_EXCEEDED, words
    )
    awaited = replace(awaited, modes=frozenset(modes))
    return Decided(state=replace(state, awaited=awaited), changed=changed)


# Branches: each thing that a device may show of a write, one after the other.
def judge(state: DeviceState, scope: Executions, shown: Shown) -> Decided:
    """Decide by what the device shows, or does not say, whether it has taken the last write."""
    awaited, held, site = state.awaited, shown.held, shown.site
    if awaited is None:
        return Decided(state=state)
    wrong = patience.wrong_modes(scope, awaited.step, held, site)
    behind = _behind(state, awaited, shown)
    if held is None:
        wrong = dict(awaited.shown)  # it may well show that still
    elif wrong:
        state, found = inquiry.find_late(state, scope, held, site, shown.now)
        if found:
            return Decided(state=state, changed=found)  # it was overwritten by what is undone now
    if wrong and awaited.is_over:
        return _look_on(state, awaited, scope, shown, wrong)
    if (wrong or behind) and (ask_at_us := _ask_again_at_us(awaited, shown)) is not None:
        awaited = replace(awaited, ask_at_us=ask_at_us)
        if held is None:
            return Decided(state=replace(state, awaited=awaited))
        asked = replace(awaited, shown=wrong, behind=behind)
        return _wait_on(state, asked, scope, shown, {**behind, **wrong})
    state = replace(state, awaited=None)
    if wrong:
        return _note_not_taken(state, awaited, scope, shown, wrong)
    if behind and held is not None and _may_repeat(state, awaited, scope, shown):
        return Decided(state=state.stay(awaited.step, held, behind))
    return _note_taken(state, awaited, scope, shown)


def _ask_again_at_us(awaited: Awaited, shown: Shown) -> int | None:
    """Return when a device is asked again that may show it yet; None = for long enough."""
    now_us = shown.now.monotonic_us
    until_us = awaited.first_us + round(shown.read_back.patience_seconds * SECOND_US)
    return min(now_us + shown.pace_us, until_us) if now_us < until_us else None


def _behind(state: DeviceState, awaited: Awaited, shown: Shown) -> Mapping[str, str]:
    """Return the modes that the device may show as they were before, with the words for it."""
    if awaited.is_over or state.ramping:
        return {}  # a step need not be seen: the next one follows
    if shown.held is None:
        return awaited.behind
    return patience.behind(state.passed, awaited.step, shown.held, shown.site)


def _may_repeat(state: DeviceState, awaited: Awaited, scope: Executions, shown: Shown) -> bool:
    """Tell whether what was lost, or rounded to what was there before, is written again."""
    once = state.tries[awaited.target].writes < min(2, shown.read_back.most_writes)
    asset = shown.site.asset
    return once and asset is not None and not state.pauses(scope, asset, shown.now)


def _look_on(
    state: DeviceState,
    awaited: Awaited,
    scope: Executions,
    shown: Shown,
    wrong: Mapping[str, str],
) -> Decided:
    """Note what a device shows that was waited for long enough, until it is written again."""
    held, now, site, pace_us = shown.held, shown.now, shown.site, shown.pace_us
    if state.tries[awaited.target].writes >= shown.read_back.most_writes:
        pace_us = max(pace_us, LOOK_EVERY_US)
    state = replace(state, awaited=replace(awaited, ask_at_us=now.monotonic_us + pace_us))
    if held is None:
        return Decided(state=state)
    seen = inquiry.look_at_others(state, scope, wrong, held, site, now)
    gone = {uid for uid, e in scope.items() if not site.holds(held, e)}
    seen |= readback.finish_never_held({**scope, **seen}, gone, now, site.rule)
    return Decided(state=inquiry.note_looked(state, scope, seen), changed=seen)


def _wait_on(
    state: DeviceState,
    awaited: Awaited,
    scope: Executions,
    shown: Shown,
    wrong: Mapping[str, str],
) -> Decided:
    """Note what the device has taken of a write, and wait for the rest of it."""
    held, site, tries = shown.held, shown.site, state.tries[awaited.target]
    uids = frozenset(u for u in awaited.wanting if u in scope and scope[u].order.mode in wrong)
    waits = replace(awaited, modes=frozenset(wrong), wanting=uids, starting=awaited.starting & uids)
    state = replace(state, awaited=waits).with_tries(
        awaited.target, replace(tries, wanting=tries.wanting & uids)
    )
    scope = {**scope, **_find_overtaken(scope, shown)}
    for uid, execution in scope.items():
        is_held = held is not None and site.holds(held, execution)
        if is_held and execution.held_since and execution.order.mode in wrong:
            scope = {**scope, uid: replace(execution, confirmed=shown.now)}
    failure = awaited.failure
    words = f"{failure.message}; " if failure else ""
    words += f"{next(iter(wrong.values()))}; {patience.explain_wait(shown.read_back)}"
    error = patience.explained(failure, Reason.START_DEADLINE_EXCEEDED)
    waiting = readback.await_read_back(scope, wrong.keys(), awaited.wrote, error, words)
    return _note_answer(state, {**scope, **waiting}, awaited, shown, wrong={}, awaits=wrong.keys())


def _find_overtaken(scope: Executions, shown: Shown) -> Executions:
    """Return the starts that are shown as they were written over; no step of a ramp shows one."""
    asset = shown.site.asset
    if shown.held is None or (asset is not None and asset.max_ramp_watts_per_second):
        return {}
    return readback.find_overtaken(scope, shown.held, shown.site, shown.now)


def _note_taken(state: DeviceState, awaited: Awaited, scope: Executions, shown: Shown) -> Decided:
    """Note that the device has taken all of a write."""
    held, site, tries = shown.held, shown.site, state.tries[awaited.target]
    unknown = patience.not_known_by(awaited, scope)
    if unknown:
        state = state.with_tries(awaited.target, replace(tries, writes=tries.writes - 1))
        scope = {**scope, **unknown}
    elif state.ramping:
        state = state.without_tries(awaited.target)
    since = shown.now if awaited.is_over else awaited.wrote
    if (ran_out := patience.ran_out(awaited, tries.writes, shown.now)) is not None:
        since = ran_out
        scope = {uid: replace(e, letting_go=None) for uid, e in scope.items()}
    state = replace(state, failed=None, written=awaited.step, stuck={}, unheld="")
    if not state.ramping:
        passed = patience.passed({}, None, None, awaited.step, site)
        state = replace(state, passed=passed, stuck_us=0)
    elif held and not patience.behind(state.passed, awaited.step, held, site):
        state = replace(state, stuck_us=0)  # it moves
    wrote, awaited = awaited.wrote, replace(awaited, wrote=since)
    decided = _note_answer(
        state, scope, awaited, shown, wrong={}, awaits={}, unknown=unknown.keys()
    )
    return _note_landed(decided, replace(awaited, wrote=wrote), shown)


def _note_landed(decided: Decided, awaited: Awaited, shown: Shown) -> Decided:
    """Note that what the device has taken, and shows, may not land a second time."""
    if shown.held is None or decided.state.ramping or awaited.failure is not None:
        return decided
    landed = readback.note_landed(decided.changed, awaited.wrote, shown.now)
    return replace(decided, changed=landed)


def _note_not_taken(
    state: DeviceState,
    awaited: Awaited,
    scope: Executions,
    shown: Shown,
    wrong: Mapping[str, str],
) -> Decided:
    """Note what the device has not taken of a write for long enough."""
    now, read_back, tries = shown.now, shown.read_back, state.tries[awaited.target]
    wrongly = frozenset(u for u in scope if scope[u].order.mode in wrong)
    tries = replace(tries, wanting=tries.wanting & wrongly)
    count = f"written {tries.writes} of at most {read_back.most_writes} times"
    said = f"{awaited.failure.message}; " if awaited.failure else ""
    told = {mode: f"{said}{words}; {count}" for mode, words in wrong.items()}
    if shown.held is None:
        scope = {
            **scope,
            **readback.overtaken(scope, told.keys(), awaited.wrote, awaited.starting),
        }
    state = state.with_tries(awaited.target, tries)
    state = replace(state, timer_ends_us=awaited.timer_ends_us)
    decided = _note_answer(state, scope, awaited, shown, wrong=told, awaits=())
    state, after = _note_stuck(decided.state, awaited, scope, told), decided.changed
    starting = awaited.starting & tries.wanting
    state = replace(
        state,
        not_taken={**state.not_taken, **{u: state.not_taken.get(u, 0) + 1 for u in starting}},
        since={},
        retry_at_us=tries.last_us + patience.again_after_us(read_back, tries.writes),
        awaited=replace(
            awaited,
            modes=frozenset(wrong),
            shown=wrong,
            wanting=tries.wanting,
            starting=starting,
            ask_at_us=now.monotonic_us + shown.pace_us,
            is_over=True,
        ),
    )
    if tries.writes >= read_back.most_writes:
        after = {**after, **readback.wear_out(after, now, tries.writes, read_back.most_writes)}
    return replace(decided, state=state, changed=after)


def _note_stuck(
    state: DeviceState, awaited: Awaited, scope: Executions, told: Mapping[str, str]
) -> DeviceState:
    """Note what the device says of the modes that it does not let go, and of whose."""
    ordered = windows.owners(scope)
    unordered = {told[mode]: None for mode in sorted(told) if mode not in ordered}
    starting = {scope[uid].order.mode for uid in awaited.starting & scope.keys()}
    kept = claims.ending(e for e in scope.values() if e.order.mode not in starting)
    return replace(
        state,
        stuck=dict(told),
        stuck_us=state.stuck_us or awaited.wrote.wall_us,
        unheld="; ".join(unordered),
        kept=state.kept | kept,
    )


def _note_answer(
    state: DeviceState,
    scope: Executions,
    awaited: Awaited,
    shown: Shown,
    *,
    wrong: Mapping[str, str],
    awaits: Collection[str],
    unknown: Collection[str] = (),
) -> Decided:
    """Note what the device shows of a write; see ``readback.written`` for the arguments."""
    held, now, site = shown.held, shown.now, shown.site
    state = replace(state, held=held)
    gone: set[str] = set()
    if wrong and held is not None:
        scope = {**scope, **inquiry.look_at_others(state, scope, wrong, held, site, now)}
        gone = {uid for uid, execution in scope.items() if not site.holds(held, execution)}
    first = {uid: at for (uid, _), at in state.since.items()}
    after = readback.written(
        scope,
        now,
        rule=site.rule,
        since=awaited.wrote,
        first={} if awaited.is_over else first,
        wrong=wrong,
        gone=gone,
        awaited=awaits,
        unknown=unknown,
        error=patience.explained(awaited.failure, Reason.READ_BACK_MISMATCH),
        ramping=state.ramping,
        held=held,
        guard=state.guard,
        timer_ends_us=state.timer_ends_at(now),
    )
    shows = _starts_shown(scope, after)
    if wrong:
        state = replace(
            state,
            suspect_until_us=now.monotonic_us + SUSPECT_US,  # it may take it yet
            written=None,
            failed=awaited.target,
        )
        not_held = NotHeld(modes=tuple(sorted(wrong)), held=held)
        return Decided(state=state, changed=after, to_tell=(*shows, not_held))
    if not awaits and not unknown:
        state = replace(state, failures=0)
    return Decided(state=state, changed=after, to_tell=shows)


def _starts_shown(before: Executions, after: Executions) -> tuple[StartShown, ...]:
    """Return the starts that the device shows now, and did not before."""
    return tuple(
        StartShown(late_us=execution.applied_us - execution.planned.start_us)
        for uid, execution in after.items()
        if execution.applied_us and not before[uid].applied_us and execution.planned
    )
