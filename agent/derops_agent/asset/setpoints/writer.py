"""The one that asks and writes a device: it does what was planned, and keeps what is known.

What changes by that is returned, and stored by whoever calls: before a write what was found by
asking, as it is written over; after it the outcome.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import structlog

from derops.errors import DeviceError, DeviceRefusedError
from derops.schedules import SECOND_US
from derops_agent import metrics
from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.setpoints import evidence, inquiry, outcome, plan
from derops_agent.asset.setpoints.decided import (
    Decided,
    LandedLate,
    NotConfirmed,
    NotHeld,
    StartShown,
)
from derops_agent.asset.setpoints.evidence import Shown
from derops_agent.asset.setpoints.plan import PlannedWrite, Prolongation, Question, Release
from derops_agent.asset.setpoints.state import DeviceState
from derops_agent.clock import Clock, Moment, moment
from derops_agent.execution import readback, windows
from derops_agent.execution.site import Site
from derops_agent.execution.windows import Executions
from derops_agent.ports import Reversion, Setpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What comes before a write, and the write."""

    changed: Executions = field(default_factory=dict)
    """To be stored before: what was found by asking may be written over."""

    write: Callable[[], Awaitable[Executions]] | None = None
    """Writes the device, and returns what changed by it; None = nothing is to be written."""


class DeviceWriter:
    """Asks and writes one device, and keeps what is known of it."""

    def __init__(self, device: GuardedDevice, clock: Clock) -> None:
        self.state = DeviceState.begin(moment(clock))
        self._device, self._clock = device, clock
        self._log = structlog.get_logger("writer")

    def note_sample(self, *, left_local_control: bool) -> None:
        """Note that the device gave a sample, and whether it left local control with it."""
        self.state = self.state.note_answer(self._now())
        if left_local_control:
            self.state = self.state.try_now()

    async def look(self, scope: Executions, site: Site) -> Executions:
        """Ask the device now and then whether it holds what it was told; return what changed."""
        asked = self._now()
        self.state, is_due = inquiry.plan_look(self.state, scope, asked)
        if not is_due:
            return {}
        held = await self._ask()
        return self._take(
            inquiry.judge_look(self.state, scope, held, site, asked=asked, now=self._now())
        )

    async def prepare(self, scope: Executions, site: Site) -> Prepared:
        """Find out what ``scope`` wants of the device next, and ask first what that would undo."""
        read_back = self._device.capability.read_back
        planned = plan.plan_next(self.state, scope, site, read_back, self._now())
        self.state, changed = planned.state, planned.changed
        match planned.next:
            case Release():
                return Prepared(changed=changed, write=partial(self._release, site))
            case Prolongation():
                return Prepared(changed=changed, write=partial(self._prolong, site))
            case Question():
                return Prepared(changed=await self._ask_again(planned.next.scope, site))
            case PlannedWrite():
                found = await self._ask_first(planned.next.scope, site)
                write = partial(self._write, planned.next, {**planned.next.scope, **found})
                return Prepared(changed={**changed, **found}, write=write)
        return Prepared(changed=changed)

    async def _ask(self) -> Setpoints | None:
        """Return what the device says that it holds; None if it does not say, which is noted."""
        held = await self._device.read_setpoints()
        self.state = self.state.note_asked(held, self._now())
        return held

    async def _ask_again(self, scope: Executions, site: Site) -> Executions:
        """Ask the device whether it shows what was written, if that is due; return what changed."""
        if not evidence.is_ask_due(self.state, self._now()):
            read_back = self._device.capability.read_back
            return self._take(evidence.await_first_answer(self.state, scope, read_back))
        held = await self._ask()
        return self._take(evidence.judge(self.state, scope, self._shown(held, site)))

    async def _ask_first(self, scope: Executions, site: Site) -> Executions:
        """Ask a device what it took of what it left unanswered; return what changed.

        That is asked, and stored, before it is written over.
        """
        if not inquiry.is_doubtful(scope):
            return {}
        held = await self._ask()
        return self._take(inquiry.judge_doubtful(self.state, scope, held, site, self._now()))

    async def _write(self, write: PlannedWrite, scope: Executions) -> Executions:
        """Write the device, and return what it makes of ``scope`` as far as the device shows it."""
        if write.ramps:
            scope = readback.judge_anew(scope, self.state.not_taken)
        owners = windows.owners(scope)
        reversion = plan.plan_reversion(write, owners, self._now())
        try:
            armed_seconds = await self._device.write(write.step, reversion)
        except DeviceError as error:
            shown = self._shown(await self._ask_after(error, owners), write.site)
            failure = outcome.read_failure(error, shown.held)
            metrics.DEVICE_WRITES.labels("refused" if failure.refused else "timeout").inc()
            return self._take(outcome.judge_unconfirmed(self.state, write, scope, failure, shown))
        metrics.DEVICE_WRITES.labels("ok").inc()
        wrote = self._now()
        self.state, scope = outcome.note_written(
            self.state.note_answer(wrote),
            write,
            scope,
            armed_seconds=armed_seconds,
            failure=None,
            capability=self._device.capability,
            now=wrote,
        )
        return await self._ask_again(scope, write.site)

    async def _ask_after(self, error: DeviceError, owners: Executions) -> Setpoints | None:
        """Ask a device that did not confirm a write what it holds now."""
        if not isinstance(error, DeviceRefusedError):
            return await self._ask()
        # What it refused, it has not taken; but its own timer may have put it to its fallback.
        held = None if owners else await self._ask()
        self.state = self.state.note_answer(self._now())
        return held

    async def _release(self, site: Site) -> Executions:
        """Release a setpoint that no ledger owns, however often it takes."""
        if not plan.is_release_due(self.state, self._now()):
            return {}
        held = await self._device.read_setpoints()
        if held is None:
            self.state = self.state.try_again({}, Setpoints(), self._now())
            return {}
        released = plan.plan_release(held, site)
        if held.active_power_watts is not None:
            try:
                await self._device.write(released)
            except DeviceError as error:
                now = self._now()
                self.state = self.state.try_again({}, released, now)
                retry_seconds = (self.state.retry_at_us - now.monotonic_us) / SECOND_US
                self._log.warning(
                    "setpoint.stray_kept", why=str(error), retry_seconds=retry_seconds
                )
                return {}
            self._log.warning("setpoint.stray_released", watts=held.active_power_watts)
        self.state = self.state.note_released(released)
        return {}

    async def _prolong(self, site: Site) -> Executions:
        """Have the device keep what it holds until the next window: its timer is about to end."""
        if self.state.written is None:
            self.state = self.state.without_refresh()
            return {}
        reversion = Reversion(after_seconds=plan.REVERSION_MARGIN_SECONDS, setpoints=site.fallback)
        armed_seconds = None
        try:
            armed_seconds = await self._device.write(self.state.written, reversion)
        except DeviceError as error:
            self._log.warning("setpoint.not_prolonged", why=str(error))
        self.state = self.state.note_prolonged(armed_seconds, self._now())
        return {}

    def _take(self, decided: Decided) -> Executions:
        """Keep the state that was decided, and tell what is to be told; return what changed."""
        self.state = decided.state
        for told in decided.to_tell:
            self._tell(told)
        return decided.changed

    def _tell(self, told: StartShown | NotHeld | LandedLate | NotConfirmed) -> None:
        match told:
            case StartShown():
                metrics.START_LATENESS.observe(told.late_us / SECOND_US)
            case NotHeld():
                metrics.DEVICE_WRITES.labels("ignored").inc()
                self._log.warning("setpoint.not_held", modes=list(told.modes), held=str(told.held))
            case LandedLate():
                self._log.warning(
                    "setpoint.landed_late", held=str(told.held), wanted=str(told.wanted)
                )
            case NotConfirmed():
                if told.reverting:
                    metrics.REVERT_FAILURES.inc()
                self._log.warning(
                    "revert.failed" if told.reverting else "setpoint.write_failed",
                    why=told.message,
                    retry_seconds=told.retry_us / SECOND_US,
                    dispatch_uids=sorted(told.reverting),
                )

    def _shown(self, held: Setpoints | None, site: Site) -> Shown:
        capability = self._device.capability
        return Shown(held=held, now=self._now(), site=site, capability=capability)

    def _now(self) -> Moment:
        return moment(self._clock)
