"""How new a desired state is: by era, then by the operator's start, then by its counter.

Era and start are times, so that one from the future is recognised. It would be newer than all that
follow, and lock them out.
"""

from derops.schedules import SECOND_US

MAX_AHEAD_SECONDS = 600
"""How far ahead of its own clock a gateway or an agent keeps a revision."""


def seconds_ahead(*, era: int, operator_start_ms: int, now_us: int) -> int:
    """Return by how many seconds the later of both is ahead of a clock, rounded up.

    Args:
        era: Seconds since 1970.
        operator_start_ms: Milliseconds since 1970.
        now_us: What the clock says.
    """
    latest_us = max(era * SECOND_US, operator_start_ms * 1000)
    return -((now_us - latest_us) // SECOND_US)


def is_too_far_ahead(*, era: int, operator_start_ms: int, now_us: int) -> bool:
    """Tell whether a revision is from further ahead than clocks differ."""
    ahead = seconds_ahead(era=era, operator_start_ms=operator_start_ms, now_us=now_us)
    return ahead > MAX_AHEAD_SECONDS
