"""What a device is to be told next to come to what the executions want. Pure.

It is brought there in steps where the asset says so. A device with a timer of its own is armed with
each write and written again before the timer runs out, so that it reverts by itself if the agent
dies.
"""

from dataclasses import dataclass, field, replace
from math import ceil

from derops.schedules import SECOND_US
from derops_agent.asset.setpoints.state import LOOK_EVERY_US, DeviceState
from derops_agent.clock import Moment
from derops_agent.execution import claims, patience, ramp, readback, windows
from derops_agent.execution.site import AssetSpec, Site, bounded, wanted_setpoints
from derops_agent.execution.state import Stage
from derops_agent.execution.windows import Executions
from derops_agent.ports import ReadBack, Reversion, Setpoints

REVERSION_MARGIN_SECONDS = 60
"""By how much a device's own timer outlasts the window, so that the agent ends it first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A setpoint that no ledger owns is to be released."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prolongation:
    """The device is to keep what it holds until the next window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The device is to be asked for what it was told last, if that is due."""

    scope: Executions
    """Those whom the answer concerns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWrite:
    """A write that is due."""

    scope: Executions
    """Those whom it concerns."""

    step: Setpoints
    target: Setpoints
    """What the device is to hold in the end."""

    site: Site
    wanting: frozenset[str]
    staying: Executions
    ramps: bool
    """The asset limits how fast its power may change."""

    counts: bool
    """It was not written before, or not only to set the device's timer again."""

    shows_nothing: bool
    """See ``Awaited``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What is next for a device."""

    state: DeviceState
    changed: Executions = field(default_factory=dict)
    """The executions that are changed by that, before anything is asked or written."""

    next: Release | Prolongation | Question | PlannedWrite | None = None
    """None = nothing is to be written, nor asked."""


# Branches: what may keep a device from being written, one after the other.
def plan_next(
    state: DeviceState, scope: Executions, site: Site, read_back: ReadBack, now: Moment
) -> Planned:
    """Return what ``scope`` wants of the device next."""
    asset = site.asset
    if asset is None:
        return Planned(state=state, next=Release())
    refresh = state.refresh_at_us is not None and now.monotonic_us >= state.refresh_at_us
    if not claims.starting(windows.owners(scope)) and windows.bridged(scope, now):
        state, changed = _leave_awaited(state, scope)
        state = replace(state, failed=None)  # what could not be reverted may stay until then too
        return Planned(state=state, changed=changed, next=Prolongation() if refresh else None)
    staying = windows.staying(scope, now)
    state, scope = _put_aside(state, scope, staying)
    owners, changing = windows.owners(scope), claims.without(scope, staying)
    target = wanted_setpoints({**staying, **owners}, site.fallback, site.local)
    wanting = claims.wanting(changing, owners)
    same = _awaits(state, target, wanting)
    if not refresh and state.awaited and _keeps_waiting(state, changing, asset, now, same=same):
        asked = claims.without(changing, _later(state, owners))
        return Planned(state=state, next=Question(scope=asked))
    state, changed = (state, {}) if same else _leave_awaited(state, changing)
    changing = {**changing, **changed}
    step = _step(state, target, asset, site, now)
    on_the_way = step != target and step == state.written
    if not refresh and (on_the_way or (not wanting and step == state.written)):
        return Planned(state=state, changed=changed)
    again = target in state.tries and wanting <= state.tries[target].wanting
    if not again:
        state = state.begin_anew(target, wanting, scope)
    if not refresh:
        if worn := _worn_out(state, target, changing, read_back, now):
            return Planned(state=state, changed={**changed, **worn})
        state, may_write = _may_write(state, target, changing, asset, read_back, now)
        if not may_write:
            return Planned(state=state, changed=changed)
    write = PlannedWrite(
        scope=changing,
        step=step,
        target=target,
        site=site,
        wanting=wanting,
        staying=staying,
        ramps=asset.max_ramp_watts_per_second is not None,
        counts=not (again and refresh and state.tries[target].writes),
        shows_nothing=_shows_nothing(state, step, target, site),
    )
    return Planned(state=state, changed=changed, next=write)


def _awaits(state: DeviceState, target: Setpoints, wanting: frozenset[str]) -> bool:
    """Tell whether this was written for the same, and is waited for."""
    awaited = state.awaited
    return awaited is not None and awaited.target == target and wanting <= awaited.wanting


def _keeps_waiting(
    state: DeviceState, scope: Executions, asset: AssetSpec, now: Moment, *, same: bool
) -> bool:
    """Tell whether what is waited for is not to be followed by another write yet."""
    if state.pauses(scope, asset, now):
        return True
    over = state.awaited is not None and state.awaited.is_over
    return same and not (over and now.monotonic_us >= state.retry_at_us)


def _later(state: DeviceState, owners: Executions) -> Executions:
    """Return the starts that are not in the write that is waited for."""
    written = state.awaited.starting if state.awaited is not None else frozenset()
    return {
        mode: e
        for mode, e in owners.items()
        if e.stage is Stage.APPLYING and e.order.uid not in written
    }


def _step(
    state: DeviceState, target: Setpoints, asset: AssetSpec, site: Site, now: Moment
) -> Setpoints:
    """Return the next step of the way to ``target``."""
    last_us = state.stepped_at_us
    return ramp.next_step(
        target,
        asset,
        site,
        from_watts=ramp.begins_at(state.written, site),
        passed_us=None if last_us is None else now.monotonic_us - last_us,
    )


def _shows_nothing(state: DeviceState, step: Setpoints, target: Setpoints, site: Site) -> bool:
    from_watts = ramp.begins_at(state.written, site)
    return ramp.shows_nothing(step, target, site, from_watts=from_watts, held=state.held)


def _worn_out(
    state: DeviceState, target: Setpoints, scope: Executions, read_back: ReadBack, now: Moment
) -> Executions:
    """Return those that the device dropped too often, as ended."""
    writes = state.tries[target].writes
    if _is_held_back(state, target, now) or writes < read_back.most_writes:
        return {}
    return readback.wear_out(scope, now, writes, read_back.most_writes)


def _may_write(
    state: DeviceState,
    target: Setpoints,
    scope: Executions,
    asset: AssetSpec,
    read_back: ReadBack,
    now: Moment,
) -> tuple[DeviceState, bool]:
    """Return the state, and whether the device may be given ``target`` now."""
    if _is_held_back(state, target, now):
        return state, False
    tries = state.tries[target]
    if tries.writes >= read_back.most_writes:
        next_us = tries.last_us + patience.WORN_RETRY_SECONDS * SECOND_US
        starts = claims.starting(windows.owners(scope))
        ends = any(e.stage is Stage.REVERTING for e in scope.values())
        if now.monotonic_us < next_us or (starts and not ends):
            retry_at_us = max(next_us, now.monotonic_us + LOOK_EVERY_US)
            return replace(state, failed=target, retry_at_us=retry_at_us), False
    return state, not state.pauses(scope, asset, now)


def _is_held_back(state: DeviceState, target: Setpoints, now: Moment) -> bool:
    """Tell whether the device has not taken this, and is to be left alone for a while."""
    return target == state.failed and now.monotonic_us < state.retry_at_us


def _put_aside(
    state: DeviceState, scope: Executions, staying: Executions
) -> tuple[DeviceState, Executions]:
    """Return the state, and ``scope`` without the starts that are to wait for another write."""
    starting = claims.starts(scope)
    uids = {e.order.uid for e in starting}
    state = replace(
        state,
        not_taken={uid: n for uid, n in state.not_taken.items() if uid in uids},
        kept=state.kept & claims.ending(scope.values()),
        apart=state.apart and bool(starting),
    )
    aside = claims.to_put_aside(
        scope, staying, not_taken=state.not_taken, kept=state.kept, apart=state.apart
    )
    return state, claims.without(scope, {e.order.uid: e for e in aside})


def _leave_awaited(state: DeviceState, scope: Executions) -> tuple[DeviceState, Executions]:
    """Wait for the last write no more, as another follows; return whom that concerns too."""
    awaited, state = state.awaited, replace(state, awaited=None)
    if awaited is None or awaited.is_over:
        return state, {}
    return state, readback.overtaken(scope, awaited.modes, awaited.wrote, awaited.starting)


def is_release_due(state: DeviceState, now: Moment) -> bool:
    """Tell whether a device whose setpoints no ledger owns is to be looked after."""
    return state.written is None and now.monotonic_us >= state.retry_at_us


def plan_release(held: Setpoints, site: Site) -> Setpoints:
    """Return what a device is to be told that holds a setpoint that no ledger owns.

    Limits stay: without a configuration nothing tells what may be lifted.
    """
    return bounded(replace(held, active_power_watts=None), site.local)


def plan_reversion(write: PlannedWrite, owners: Executions, now: Moment) -> Reversion | None:
    """Return what the device is to do by itself after a write; None = nothing.

    Args:
        write: The write.
        owners: Whose values it gives the device, by mode.
        now: Both clocks.
    """
    holders = owners or write.staying
    ends_us = [e.planned.end_us for e in holders.values() if e.planned]
    if not ends_us or write.site.asset is None:
        return None
    remaining_seconds = max(0, ceil((min(ends_us) - now.wall_us) / SECOND_US))
    return Reversion(
        after_seconds=remaining_seconds + REVERSION_MARGIN_SECONDS,
        setpoints=write.site.fallback,
    )
