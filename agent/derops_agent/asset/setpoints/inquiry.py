"""Asking a device what it holds, and what it means for the executions."""

from collections.abc import Mapping
from dataclasses import fields

import structlog

from derops.modes import Mode
from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.setpoints.state import LOOK_EVERY_US, DeviceState
from derops_agent.clock import Clock, moment
from derops_agent.execution import claims, readback, unconfirmed, windows
from derops_agent.execution.site import Site, wanted_setpoints
from derops_agent.execution.state import Execution
from derops_agent.execution.windows import Executions
from derops_agent.ports import Setpoints


class Looker:
    """Asks one device what it holds."""

    def __init__(self, device: GuardedDevice, clock: Clock, state: DeviceState, asset: str) -> None:
        self._device, self._clock, self._state = device, clock, state
        self._log = structlog.get_logger("looker").bind(asset=asset)

    async def look(self, scope: Executions, site: Site) -> Executions:
        """Ask the device now and then whether it holds what it was told; return what changed."""
        now_us = self._clock.monotonic_us()
        holding = any(e.held_since or e.may_land for e in scope.values())
        if not self._is_due(scope, now_us, holding=holding):
            return {}
        self._state.look_at_us = now_us + LOOK_EVERY_US
        if self._state.written is None and not holding:
            return {}
        held = await self.ask()
        if held is None:
            return unconfirmed.mark_unanswered(scope)
        suspect = now_us < self._state.suspect_until_us
        if suspect:
            self._find_landed(held, site)
        scope = {**scope, **self.find_late(scope, held, site)}
        after = {**scope, **self.look_again(self._without_awaited(scope), held, site)}
        if not suspect:
            after |= unconfirmed.rule_out(after)
        self.note_looked(scope, after)
        if self._state.written is None:
            self._state.held = held
        return after

    def _is_due(self, scope: Executions, now_us: int, *, holding: bool) -> bool:
        if not (holding or now_us < self._state.suspect_until_us):
            return False
        return now_us >= self._state.look_at_us or self._asks_before_writing(scope)

    def _find_landed(self, held: Setpoints, site: Site) -> None:
        """Note whether something that was sent before has landed over what was written last."""
        written, before = self._state.written, self._state.held
        if self._state.awaited is not None or not written or not before:
            return
        if _is_other(held, before, site):
            self._log.warning("setpoint.landed_late", held=str(held), wanted=str(written))
            self._state.written = self._state.held = None

    def _asks_before_writing(self, scope: Executions) -> bool:
        """Tell whether a device that was silent is to be written: before, it may have let go."""
        if not self._state.unanswered:
            return False
        if self._state.failed is not None and self._clock.monotonic_us() >= self._state.retry_at_us:
            return True
        owners = windows.owners(scope)
        pending = bool(claims.wanting(scope, owners))
        return claims.starting(owners) or (self._state.failed is None and pending)

    async def ask(self) -> Setpoints | None:
        """Return what the device says that it holds; None if it does not say, which is noted."""
        held = await self._device.read_setpoints()
        if held is None:
            self._state.unanswered += 1
        else:
            self._state.note_answer()
        return held

    async def ask_first(self, scope: Executions, site: Site) -> Executions:
        """Ask a device what it took of what it left unanswered; return what changed.

        That is asked, and stored, before it is written over.
        """
        if not any(e.is_doubtful or e.may_land for e in scope.values()):
            return {}
        held = await self.ask()
        if held is None:
            return unconfirmed.mark_unanswered(scope)
        return self.find_late(scope, held, site)

    def find_late(self, scope: Executions, held: Setpoints, site: Site) -> Executions:
        """Return those that the device is found to hold although they had ended."""
        # A step of a ramp is no late landing, whoever wanted the same.
        on_the_way = self._state.ramping and held == self._state.held
        if site.asset and site.asset.max_ramp_watts_per_second and self._state.awaited:
            # One that shows things late may show a step that was told before, also after the last.
            told = self._state.passed.get(Mode.ACTIVE_POWER, frozenset())
            on_the_way |= held.active_power_watts in told
        if site.asset is None or on_the_way:
            return {}
        now = moment(self._clock)
        keepers = {**windows.staying(scope, now), **windows.owners(scope)}
        wanted = wanted_setpoints(keepers, site.fallback, site.local)
        found = unconfirmed.find_held(scope, held, wanted, site, now)
        if found:
            self._state.written = None
        return found

    def note_looked(self, before: Executions, after: Executions) -> None:
        """Note what looking at the device has made of ``before``."""
        lost = {e.order.mode for u, e in after.items() if before[u].held_since and not e.held_since}
        if lost:
            self._state.try_now()
        if Mode.ACTIVE_POWER in lost:
            self._state.written = None  # the way back begins where the device is

    def look_at_others(
        self, scope: Executions, wrong: Mapping[str, str], held: Setpoints, site: Site
    ) -> dict[str, Execution]:
        """Return those that still hold the device where what was to take their place did not."""
        owners = windows.owners(scope)
        others = {
            uid: execution
            for uid, execution in scope.items()
            if execution.order.mode in wrong and uid not in {e.order.uid for e in owners.values()}
        }
        return self.look_again(others, held, site)

    def look_again(self, scope: Executions, held: Setpoints, site: Site) -> dict[str, Execution]:
        """Return what ``held`` means for those that the device held."""
        return readback.look_again(
            scope,
            held,
            site,
            moment(self._clock),
            ramping=self._state.ramping,
            timer_ends_us=self._state.timer_ends_us,
        )

    def _without_awaited(self, scope: Executions) -> Executions:
        """Return ``scope`` without those of which the device may show what it held before."""
        awaited = self._state.awaited
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
