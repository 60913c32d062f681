"""How far ahead of a clock a desired state begins."""

import pytest

from derops.revisions import is_too_far_ahead, seconds_ahead

NOW_SECONDS = 1_800_000_000
NOW_US = NOW_SECONDS * 10**6


@pytest.mark.parametrize(
    ("era", "start_ms", "seconds"),
    [
        (0, 0, -NOW_SECONDS),
        (0, NOW_SECONDS * 1000, 0),
        (0, NOW_SECONDS * 1000 + 600_000, 600),
        (0, NOW_SECONDS * 1000 + 600_001, 601),
        (NOW_SECONDS + 7, 0, 7),
        (NOW_SECONDS + 7, NOW_SECONDS * 1000 + 8_000, 8),
        (2**64 - 1, 0, 2**64 - 1 - NOW_SECONDS),
    ],
)
def test_the_later_of_era_and_start_counts(era: int, start_ms: int, seconds: int) -> None:
    assert seconds_ahead(era=era, operator_start_ms=start_ms, now_us=NOW_US) == seconds
    too_far = is_too_far_ahead(era=era, operator_start_ms=start_ms, now_us=NOW_US)
    assert too_far == (seconds > 600)
