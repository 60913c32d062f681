"""Calls to a device: one at a time, bounded in time, and only the two device errors come out."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from derops.errors import DeviceError, DeviceTimeoutError
from derops.wire.v1 import agent_pb2
from derops_agent import metrics
from derops_agent.ports import BadPoint, Capability, Device, Reading, Reversion, Setpoints

APPLY_TIMEOUT_SECONDS = 5.0
SAMPLE_TIMEOUT_SECONDS = 2.0

_T = TypeVar("_T")


class GuardedDevice:
    """A device that cannot hang its caller, nor be asked two things at once."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = asyncio.Lock()
        self._complaint = ""
        self._bad: frozenset[str] = frozenset()
        self._log = structlog.get_logger("device")

    @property
    def capability(self) -> Capability:
        """What the device can do."""
        return self._device.capability

    async def write(self, setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        """Make the device hold ``setpoints``; return when it reverts by itself, see ``Device``.

        Raises:
            DeviceError: It refused, or did not answer in time and may have acted.
        """
        with metrics.WRITE_SECONDS.time():
            return await self._bounded(
                lambda: self._device.write(setpoints, reversion), APPLY_TIMEOUT_SECONDS
            )

    async def read_setpoints(self) -> Setpoints | None:
        """Return what the device says that it holds; None if it does not say."""
        try:
            return await self._bounded(self._device.read_setpoints, APPLY_TIMEOUT_SECONDS)
        except DeviceError as error:
            self._log.warning("setpoints.read_failed", error=str(error))
            return None

    async def sample(self) -> Reading | None:
        """Measure once; None if the device did not answer."""
        try:
            reading = await self._bounded(self._device.sample, SAMPLE_TIMEOUT_SECONDS)
        except DeviceError as error:
            metrics.SAMPLE_FAILURES.inc()
            if str(error) != self._complaint:  # once, not once a second
                self._complaint = str(error)
                self._log.warning("sample.failed", error=self._complaint)
            return None
        self._complaint = ""
        metrics.SAMPLES.inc()
        self._note_bad_points(reading.bad_points)
        return reading

    async def close(self) -> None:
        """Give the connection back; the device keeps what it holds."""
        await self._device.close()

    def _note_bad_points(self, bad_points: tuple[BadPoint, ...]) -> None:
        for each in bad_points:
            name = agent_pb2.Quantity.Name(each.quantity) if each.quantity else "Other"
            metrics.BAD_POINTS.labels(name).inc()
        bad = frozenset(each.name for each in bad_points)
        if bad != self._bad:  # once, not once a second
            self._bad = bad
            points = [f"{each.name} {each.raw}: {each.problem}" for each in bad_points]
            self._log.warning("sample.bad_points", points=points)

    async def _bounded(self, call: Callable[[], Awaitable[_T]], seconds: float) -> _T:
        try:
            async with self._lock, asyncio.timeout(seconds):
                return await call()
        except DeviceError:
            raise
        except TimeoutError as error:
            raise DeviceTimeoutError(f"no answer within {seconds:g} s") from error
        except Exception as error:
            # A driver's own mistake must not stop the loop that will revert the device.
            self._log.exception("driver.failed", error=str(error))
            raise DeviceTimeoutError(f"the driver failed: {error}") from error
