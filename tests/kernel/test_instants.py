from datetime import UTC, datetime, timedelta, timezone

import pytest

from derops.instants import EPOCH, Precision, format_instant, moment_of

MOMENT = datetime(2026, 12, 1, 0, 30, 0, 123_999, timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("precision", "text"),
    [
        ("seconds", "2026-11-30T22:30:00Z"),
        ("milliseconds", "2026-11-30T22:30:00.123Z"),
        ("microseconds", "2026-11-30T22:30:00.123999Z"),
    ],
)
def test_an_instant_is_told_in_utc_and_cut(precision: Precision, text: str) -> None:
    assert format_instant(MOMENT, precision) == text


def test_microseconds_become_a_moment_exactly() -> None:
    assert moment_of(0) == EPOCH
    assert moment_of(4_102_444_799_999_999) == datetime(2099, 12, 31, 23, 59, 59, 999_999, UTC)
