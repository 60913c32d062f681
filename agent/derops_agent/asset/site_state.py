"""What is known of a site now: how it is configured, what it measured, how its clock goes."""

from dataclasses import replace

import structlog

from derops.errors import DeviceError, DeviceRefusedError
from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_agent import metrics
from derops_agent.asset.setpoints.state import DeviceState
from derops_agent.clock import Clock, Moment, moment
from derops_agent.execution import health, resolution
from derops_agent.execution.site import Site
from derops_agent.execution.wire import read_asset
from derops_agent.ports import Capability, Reading


class SiteState:
    """Folds what comes of one site into what orders are judged against."""

    def __init__(self, site: Site, clock: Clock) -> None:
        self.site = site
        """As it was last configured and measured; ``now`` adds what time alone changes."""

        self._clock = clock
        self._health = health.Health()
        self._sampled_us = clock.monotonic_us()
        self._measured: Moment | None = None
        self._log = structlog.get_logger("controller")

    def configure(self, asset: dispatch_pb2.Asset) -> None:
        """Note how the asset is configured."""
        self.site = replace(self.site, asset=read_asset(asset))

    def note_offset(self, milliseconds: int) -> None:
        """Note by how much the gateway's clock is ahead of this one."""
        self._measured = moment(self._clock)
        self.site = replace(self.site, clock_offset_milliseconds=milliseconds)

    def note_missed_sample(self, error: DeviceError | None) -> None:
        """Note that the device was asked for a sample and gave none."""
        fold = health.note_refusal if isinstance(error, DeviceRefusedError) else health.note_missed
        self._health = fold(self._health, str(error), moment(self._clock))

    def note_sample(self, reading: Reading, capability: Capability) -> bool:
        """Note a sample; return whether the device left local control with it."""
        self._sampled_us = self._clock.monotonic_us()
        for point in reading.bad_points:
            if point.name not in self._health.bad:
                self._log.warning("point.bad", point=point.name, raw=point.raw, why=point.problem)
        self._health = health.note_sample(self._health, reading, moment(self._clock))
        metrics.BAD_POINTS.inc(len(reading.bad_points))
        before = self.site.reading
        self.site = replace(self.site, reading=reading, capability=capability)
        return before is not None and before.local_control and not reading.local_control

    def now(self, device: DeviceState) -> Site:
        """Return the site with what time alone changes."""
        now = moment(self._clock)
        held_off_us = device.held_off_us(self.site.asset, now)
        offset, measured = self.site.clock_offset_milliseconds, self._measured
        if offset is not None and measured is not None:
            # The clock may have been set since it was compared.
            set_us = (now.wall_us - measured.wall_us) - (now.monotonic_us - measured.monotonic_us)
            offset -= round(set_us / 1000)
        return replace(
            self.site,
            clock_offset_milliseconds=offset,
            health=self._health,
            monotonic_us=now.monotonic_us,
            silent_us=now.monotonic_us - self._sampled_us,
            next_write_us=now.wall_us + held_off_us if held_off_us else 0,
        )

    def device_facts(self, unheld: str) -> agent_pb2.DeviceFacts | None:
        """Return what is wrong with the device now; None = not everything is known yet.

        Args:
            unheld: What it says instead of taking its fallback, in words; empty = it took it.
        """
        if self.site.asset is None:
            return None
        problem = resolution.explain_fallback(self.site)
        return health.write_facts(self._health, problem, moment(self._clock), unheld=unheld)
