"""Instants: as microseconds since 1970 in UTC, as datetimes, and as RFC 3339. Pure."""

from datetime import UTC, datetime, timedelta
from typing import Literal

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""What instants in microseconds count from."""

Precision = Literal["seconds", "milliseconds", "microseconds"]


def moment_of(instant_us: int) -> datetime:
    """Return the datetime in UTC of microseconds since 1970, exactly.

    Raises:
        OverflowError: It is beyond the year 9999.
    """
    return EPOCH + timedelta(microseconds=instant_us)


def format_instant(moment: datetime, precision: Precision = "milliseconds") -> str:
    """Return a moment that has a zone as RFC 3339, in UTC with a Z, cut to ``precision``."""
    return moment.astimezone(UTC).isoformat(timespec=precision).replace("+00:00", "Z")
