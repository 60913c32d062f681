"""How long to wait before something that failed is tried again. Pure, but for the spread."""

import random


def back_off_seconds(failures: int, first_seconds: float, most_seconds: float) -> float:
    """Return ``first_seconds``, doubled for each failure before this one, up to the most.

    Args:
        failures: Before this one; 0 = it is the first.
        first_seconds: Above 0.
        most_seconds: At least ``first_seconds``.
    """
    return min(most_seconds, first_seconds * 2.0 ** min(failures, 30))


def spread_seconds(seconds: float, least_share: float = 0.5) -> float:
    """Return a random part of a wait, so that those who failed together do not return together."""
    return seconds * random.uniform(least_share, 1)
