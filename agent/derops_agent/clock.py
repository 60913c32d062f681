"""The agent's two clocks: windows start by the wall clock, and end by either, whichever is first.

The monotonic clock counts from the machine's boot, also while it sleeps. Nobody can set it.
"""

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIME_ERROR = 5  # what adjtimex(2) returns while the kernel's clock is not synchronised


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One instant on both clocks."""

    wall_us: int
    monotonic_us: int

    def back(self, span_us: int) -> "Moment":
        """Return the instant that was ``span_us`` before."""
        return Moment(wall_us=self.wall_us - span_us, monotonic_us=self.monotonic_us - span_us)

    def back_to(self, wall_us: int) -> "Moment":
        """Return the instant of the past at which the wall clock said ``wall_us``."""
        return self.back(max(0, self.wall_us - wall_us))


class Clock(Protocol):
    """Both clocks, and whether the wall clock can be believed."""

    def now_us(self) -> int:
        """Return microseconds since 1970 in UTC, by the wall clock."""
        ...

    def monotonic_us(self) -> int:
        """Return microseconds on a clock that nobody can set."""
        ...

    def boot_id(self) -> str:
        """Return the id of this run of the monotonic clock; a boot begins a new one."""
        ...

    def synchronised(self) -> bool:
        """Tell whether the operating system has confirmed the wall clock."""
        ...


class SystemClock:
    """The machine's clocks."""

    def __init__(self) -> None:
        self._boot_id = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""

    def now_us(self) -> int:
        """Return microseconds since 1970 in UTC."""
        return time.time_ns() // 1000

    def monotonic_us(self) -> int:
        """Return microseconds since the machine's boot."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000

    def boot_id(self) -> str:
        """Return the kernel's random id of this boot."""
        return self._boot_id

    def synchronised(self) -> bool:
        """Tell whether the kernel says that NTP keeps the clock; False where it cannot say."""
        state = ctypes.create_string_buffer(512)  # struct timex, modes = 0: read only
        answer: int = ctypes.CDLL(None).adjtimex(state)
        return 0 <= answer < _TIME_ERROR


def moment(clock: Clock) -> Moment:
    """Return what both clocks say now."""
    return Moment(wall_us=clock.now_us(), monotonic_us=clock.monotonic_us())
