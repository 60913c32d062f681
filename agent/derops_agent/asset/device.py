"""Calls to a device: one at a time, bounded in time, and only the two device errors come out."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from derops.errors import DeviceError, DeviceTimeoutError, DeviceUnreachableError
from derops_agent import metrics
from derops_agent.ports import NOT_WRITTEN, Capability, Device, Reading, Reversion, Setpoints

APPLY_TIMEOUT_SECONDS = 5.0
SAMPLE_TIMEOUT_SECONDS = 2.0

_T = TypeVar("_T")


class GuardedDevice:
    """A device that cannot hang its caller, nor be asked two things at once."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = asyncio.Lock()
        self.complaint: DeviceError | None = None
        """Why the last sample did not come."""

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
            self._log.warning("setpoint.read_failed", why=str(error))
            return None

    async def sample(self) -> Reading | None:
        """Measure once; None if the device gave no sample, ``complaint`` says why."""
        try:
            reading = await self._bounded(self._device.sample, SAMPLE_TIMEOUT_SECONDS)
        except DeviceError as error:
            metrics.SAMPLE_FAILURES.inc()
            if _is_silence(self.complaint) is not _is_silence(error):
                # Once, not once a second: each try may ask for something else.
                self._log.warning("sample.failed", why=str(error))
            self.complaint = error
            return None
        self.complaint = None
        metrics.SAMPLES.inc()
        return reading

    async def close(self) -> None:
        """Give the connection back; the device keeps what it holds."""
        await self._device.close()

    async def _bounded(self, call: Callable[[], Awaitable[_T]], seconds: float) -> _T:
        try:
            async with self._lock, asyncio.timeout(seconds):
                return await call()
        except DeviceError:
            raise
        except TimeoutError as error:
            said = getattr(error.__cause__, "args", ())
            problem = ": ".join([f"no answer within {seconds:g} s", *map(str, said)])
            kind = DeviceUnreachableError if NOT_WRITTEN in said else DeviceTimeoutError
            raise kind(problem) from error
        except Exception as error:
            # A driver's own mistake must not stop the loop that will revert the device.
            self._log.exception("driver.failed", why=str(error))
            raise DeviceTimeoutError(f"the driver failed: {error}") from error


def _is_silence(complaint: DeviceError | None) -> bool | None:
    """Tell whether a device that gave no sample did not answer; None = it gave one."""
    return None if complaint is None else isinstance(complaint, DeviceTimeoutError)
