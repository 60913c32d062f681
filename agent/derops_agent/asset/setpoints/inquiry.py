"""When a device is asked what it holds, and what its answer means for the executions. Pure."""

from collections.abc import Mapping
from dataclasses import fields, replace

from derops.modes import Mode
from derops_agent.asset.setpoints.decided import Decided, LandedLate
from derops_agent.asset.setpoints.state import LOOK_EVERY_US, DeviceState
from derops_agent.clock import Moment
from derops_agent.execution import claims, readback, unconfirmed, windows
from derops_agent.execution.site import Site, wanted_setpoints
from derops_agent.execution.state import Execution
from derops_agent.execution.windows import Executions
from derops_agent.ports import Setpoints


def plan_look(state: DeviceState, scope: Executions, now: Moment) -> tuple[DeviceState, bool]:
    """Return the state by whether it is time for a look, and whether the device is to be asked."""
    holding = any(e.held_since or e.may_land for e in scope.values())
    if not (holding or now.monotonic_us < state.suspect_until_us):
        return state, False
    if now.monotonic_us < state.look_at_us and not _asks_before_writing(state, scope, now):
        return state, False
    looked = replace(state, look_at_us=now.monotonic_us + LOOK_EVERY_US)
    return looked, state.written is not None or holding


def _asks_before_writing(state: DeviceState, scope: Executions, now: Moment) -> bool:
    """Tell whether a device that was silent is to be written: before, it may have let go."""
    if not state.unanswered:
        return False
    if state.failed is not None and now.monotonic_us >= state.retry_at_us:
        return True
    owners = windows.owners(scope)
    pending = bool(claims.wanting(scope, owners))
    return claims.starting(owners) or (state.failed is None and pending)


def judge_look(
    state: DeviceState,
    scope: Executions,
    held: Setpoints | None,
    site: Site,
    *,
    asked: Moment,
    now: Moment,
) -> Decided:
    """Decide by what a device says that it holds whether it still does what it was told.

    Args:
        state: Of the device.
        scope: All.
        held: What it says that it holds; None = it does not say.
        site: For how much registers may round.
        asked: When it was asked.
        now: When it answered.
    """
    if held is None:
        return Decided(state=state, changed=unconfirmed.mark_unanswered(scope))
    suspect = asked.monotonic_us < state.suspect_until_us
    landed = _landed_late(state, held, site) if suspect else ()
    if landed:
        state = replace(state, written=None, held=None)
    state, late = find_late(state, scope, held, site, now)
    scope = {**scope, **late}
    after = {**scope, **look_again(state, _without_awaited(state, scope), held, site, now)}
    if not suspect:
        after |= unconfirmed.rule_out(after)
    state = note_looked(state, scope, after)
    if state.written is None:
        state = replace(state, held=held)
    return Decided(state=state, changed=after, to_tell=landed)


def _landed_late(state: DeviceState, held: Setpoints, site: Site) -> tuple[LandedLate, ...]:
    """Return what is to be told if something that was sent before landed over the last write."""
    if state.awaited is not None or state.written is None or state.held is None:
        return ()
    if not _is_other(held, state.held, site):
        return ()
    return (LandedLate(held=held, wanted=state.written),)


def is_doubtful(scope: Executions) -> bool:
    """Tell whether the device may hold what it left unanswered."""
    return any(e.is_doubtful or e.may_land for e in scope.values())


def judge_doubtful(
    state: DeviceState, scope: Executions, held: Setpoints | None, site: Site, now: Moment
) -> Decided:
    """Decide by what a device says that it holds what it took of what it left unanswered."""
    if held is None:
        return Decided(state=state, changed=unconfirmed.mark_unanswered(scope))
    state, found = find_late(state, scope, held, site, now)
    return Decided(state=state, changed=found)


def find_late(
    state: DeviceState, scope: Executions, held: Setpoints, site: Site, now: Moment
) -> tuple[DeviceState, Executions]:
    """Return those that the device is found to hold although they had ended, after its state."""
    # A step of a ramp is no late landing, whoever wanted the same.
    on_the_way = state.ramping and held == state.held
    if site.asset and site.asset.max_ramp_watts_per_second and state.awaited:
        # One that shows things late may show a step that was told before, also after the last.
        told = state.passed.get(Mode.ACTIVE_POWER, frozenset())
        on_the_way |= held.active_power_watts in told
    if site.asset is None or on_the_way:
        return state, {}
    keepers = {**windows.staying(scope, now), **windows.owners(scope)}
    wanted = wanted_setpoints(keepers, site.fallback, site.local)
    found = unconfirmed.find_held(scope, held, wanted, site, now)
    return (replace(state, written=None) if found else state), found


def note_looked(state: DeviceState, before: Executions, after: Executions) -> DeviceState:
    """Return the state by what looking at the device has made of ``before``."""
    lost = {e.order.mode for u, e in after.items() if before[u].held_since and not e.held_since}
    if lost:
        state = state.try_now()
    if Mode.ACTIVE_POWER in lost:
        state = replace(state, written=None)  # the way back begins where the device is
    return state


def look_at_others(
    state: DeviceState,
    scope: Executions,
    wrong: Mapping[str, str],
    held: Setpoints,
    site: Site,
    now: Moment,
) -> dict[str, Execution]:
    """Return those that still hold the device where what was to take their place did not."""
    owning = {e.order.uid for e in windows.owners(scope).values()}
    others = {u: e for u, e in scope.items() if e.order.mode in wrong and u not in owning}
    return look_again(state, others, held, site, now)


def look_again(
    state: DeviceState, scope: Executions, held: Setpoints, site: Site, now: Moment
) -> dict[str, Execution]:
    """Return what ``held`` means for those that the device held."""
    return readback.look_again(
        scope, held, site, now, ramping=state.ramping, timer_ends_us=state.timer_ends_us
    )


def _without_awaited(state: DeviceState, scope: Executions) -> Executions:
    """Return ``scope`` without those of which the device may show what it held before."""
    awaited = state.awaited
    if awaited is None or awaited.is_over:
        return scope
    return {u: e for u, e in scope.items() if e.order.mode not in awaited.modes}


def _is_other(held: Setpoints, before: Setpoints, site: Site) -> bool:
    """Tell whether a device holds something else than before, and not the same rounded."""
    grown = any(
        getattr(before, each.name) is None and getattr(held, each.name) is not None
        for each in fields(held)
    )
    return grown or bool(site.mismatches(before, held))
