"""What happens as the agent starts: what was stored is taken up, once the clock can be believed."""

from dataclasses import replace

from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.journal import Journal
from derops_agent.asset.ledger import Alive
from derops_agent.asset.setpoints.writer import DeviceWriter
from derops_agent.asset.writes import write_what_is_due
from derops_agent.clock import Clock, Moment, moment
from derops_agent.execution import restart
from derops_agent.execution.site import Site, whose_values
from derops_agent.execution.state import Execution, Stage
from derops_agent.execution.windows import Executions
from derops_agent.ports import Setpoints


class Startup:
    """Takes up what one asset's agent had stored."""

    def __init__(
        self, journal: Journal, device: GuardedDevice, writer: DeviceWriter, clock: Clock
    ) -> None:
        self.done = False
        """Whether what was stored is taken up."""

        self._journal, self._device, self._writer = journal, device, writer
        self._clock = clock
        self._found: tuple[Moment, Setpoints] | None = None
        """What the device held as the agent started, and when it said so."""

    async def load(self, site: Site) -> None:
        """Read what was stored as what is known of it now."""
        await self._journal.load()
        self._rebase(site)
        stored = self._last_stored(site)
        self._journal.reread(
            {uid: restart.after_restart(each, stored) for uid, each in self._journal.items()}
        )

    async def resume(self, site: Site) -> bool:
        """Take up what was stored, once the clock can be believed; return whether it is done.

        That is a beginning: where it cannot be stored, it is done later.
        """
        if self._journal.failing:
            return False
        alive = self._journal.alive
        pending = any(e.stage is not Stage.DONE for e in self._journal.values())
        if pending and not self._clock_is_good(moment(self._clock), alive, site):
            return False
        if pending:
            self._rebase(site)
            held = await self._device.read_setpoints()
            if not await self._journal.commit_whole(self._resumed(held, site)):
                return False
        self.done = True
        self._journal.believes_clock = True
        return True

    def _resumed(self, held: Setpoints | None, site: Site) -> dict[str, Execution]:
        """Return what was stored as it is taken up from a device that says that it holds that."""
        revert = site.asset is not None and site.asset.revert_on_restart
        whose = {} if held is None else whose_values(self._journal, held, site)
        return {
            uid: restart.resume(
                execution,
                moment(self._clock),
                revert=revert,
                held=None if held is None else uid in whose.get(execution.order.mode, ()),
                another=bool(whose.get(execution.order.mode, frozenset()) - {uid}),
                last_held_us=self._last_held(execution, site).wall_us,
            )
            for uid, execution in self._journal.items()
        }

    async def put_to_fallback(self, site: Site) -> None:
        """Leave nothing on the device before what was stored is taken up; note what it held.

        Of a window that had ended as planned nothing is told before: whether that was late is not
        known yet.
        """
        reverting = {
            uid: execution
            for uid, execution in self._journal.items()
            if execution.stage is Stage.REVERTING and not execution.awaits_clock
        }
        if self._found is None or any(e.held_since for e in reverting.values()):
            held = await self._device.read_setpoints()
            if held is not None:
                self._found = self._found or (moment(self._clock), held)
                reverting |= self._without_hold(reverting, held, site)
                self._journal.reread(reverting)
        await write_what_is_due(self._journal, self._writer, reverting, site)

    def _without_hold(
        self, executions: Executions, held: Setpoints, site: Site
    ) -> dict[str, Execution]:
        """Return those that a device, which says that it holds that, does not hold any more."""
        return {
            uid: execution.stop_holding(self._last_held(execution, site))
            for uid, execution in executions.items()
            if not site.holds(held, execution)
        }

    def _last_held(self, execution: Execution, site: Site) -> Moment:
        """Return when the device, which holds it no more, is last known to have held it.

        While the wall clock is not believed, that is at the latest as the agent started.
        """
        now, alive = moment(self._clock), self._journal.alive
        if self._found is not None:
            found_at, held = self._found
            if site.holds(held, execution) or not self._clock_is_good(now, alive, site):
                return now.back(now.monotonic_us - found_at.monotonic_us)
        return now.back_to(alive.at_us)

    def _last_stored(self, site: Site) -> Moment:
        """Return when the agent last stored anything, on this boot's clock as it is believed."""
        now, alive = moment(self._clock), self._journal.alive
        if alive.boot_id != self._clock.boot_id() and not self._clock_is_good(now, alive, site):
            return replace(now, wall_us=alive.at_us)
        return now.back_to(alive.at_us)

    def _rebase(self, site: Site) -> None:
        """After a boot, count on this boot's monotonic clock.

        Before the wall clock is believed nobody knows for how long it was off: that is not counted.
        """
        alive = self._journal.alive
        if alive.boot_id != self._clock.boot_id():
            now = moment(self._clock)
            if not self._clock_is_good(now, alive, site):
                now = replace(now, wall_us=alive.at_us)
            self._journal.reread(
                {uid: restart.rebase(each, now) for uid, each in self._journal.items()}
            )

    def _clock_is_good(self, now: Moment, alive: Alive, site: Site) -> bool:
        offset = site.clock_offset_milliseconds
        confirmed = (
            alive.boot_id == self._clock.boot_id()
            or self._clock.synchronised()
            or (offset is not None and abs(offset) <= site.max_clock_offset_milliseconds)
        )
        return confirmed and now.wall_us >= alive.at_us
