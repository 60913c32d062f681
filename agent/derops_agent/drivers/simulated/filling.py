"""A store that fills or empties at a rate that depends on how full it is, in closed form.

The rate is given by knots (content, rate) and is linear between them, so between two knots the
content is an exponential of the time, and a leap over months visits each piece at most once.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

Knot = tuple[float, float]
_FLAT = 1e-12


def capped(knots: Sequence[Knot], most: float) -> list[Knot]:
    """Return the curve through ``knots``, cut off at ``most``."""
    result: list[Knot] = []
    for number, (content, value) in enumerate(knots):
        if number:
            before_content, before = knots[number - 1]
            if (before < most < value) or (value < most < before):
                share = (most - before) / (value - before)
                result.append((before_content + (content - before_content) * share, most))
        result.append((content, min(value, most)))
    return result


def value_at(knots: Sequence[Knot], content: float) -> float:
    """Return the curve's value; beyond its ends it stays as it is there."""
    if content <= knots[0][0]:
        return knots[0][1]
    for (low, at_low), (high, at_high) in pairwise(knots):
        if content <= high:
            return at_low + (at_high - at_low) * (content - low) / (high - low)
    return knots[-1][1]


def flow(content: float, seconds: float, knots: Sequence[Knot]) -> tuple[float, float]:
    """Let the content change for ``seconds`` between the first and the last knot.

    Args:
        content: Where it begins; within the knots.
        seconds: How long.
        knots: Content and change per second, by rising content.

    Returns:
        The content at the end, and the seconds until it met an end of the knots, or all.
    """
    places = [place for place, _ in knots]
    left = seconds
    # Each pass ends at the next knot or at the end of the time: a rate never turns on the way.
    for _ in range(len(knots) + 1):
        rate = value_at(knots, content)
        if abs(rate) < _FLAT:
            return content, seconds
        index = bisect_right(places, content) if rate > 0 else bisect_left(places, content) - 1
        if not 0 <= index < len(places):
            return content, seconds - left
        target = places[index]
        slope = (knots[index][1] - rate) / (target - content)
        needed = _seconds_to(target - content, rate, slope)
        if needed >= left:
            return content + _change(rate, slope, left), seconds
        content, left = target, left - needed
    return content, seconds - left


def _seconds_to(distance: float, rate: float, slope: float) -> float:
    """Return the time to a knot; infinite if the rate dies before it."""
    growth = slope * distance / rate  # the relative change of the rate up to there
    if growth <= -1:
        return math.inf
    if abs(growth) < _FLAT:
        return distance / rate
    return math.log1p(growth) / slope


def _change(rate: float, slope: float, seconds: float) -> float:
    if abs(slope * seconds) < _FLAT:
        return rate * seconds
    return rate * math.expm1(slope * seconds) / slope
