"""When a dispatch runs. All instants are microseconds since 1970 in UTC; pure arithmetic."""

from dataclasses import dataclass

from derops.modes import LatePolicy

SECOND_US = 1_000_000
"""Microseconds in a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A half-open interval: the device holds the setpoint from start until end."""

    start_us: int
    end_us: int


def accept_by_us(start_us: int, start_deadline_seconds: int) -> int:
    """Return the instant after which an agent refuses to accept."""
    return start_us + start_deadline_seconds * SECOND_US


def default_start_deadline_seconds(duration_seconds: int) -> int:
    """Return half the duration, at least 1 s and at most 60 s."""
    return max(1, min(60, duration_seconds // 2))


def plan_window(
    *, start_us: int, duration_seconds: int, late_policy: str, offset_seconds: int, now_us: int
) -> Window:
    """Return when the device is to hold the setpoint.

    Args:
        start_us: The requested start.
        duration_seconds: The requested length.
        late_policy: KeepEnd shortens a window that begins late, KeepDuration moves its end.
        offset_seconds: The randomised delay that was drawn, 0 without one.
        now_us: The moment of acceptance.
    """
    planned = start_us + offset_seconds * SECOND_US
    length = duration_seconds * SECOND_US
    start = max(planned, now_us)
    end = start + length if late_policy == LatePolicy.KEEP_DURATION else planned + length
    return Window(start_us=start, end_us=end)
