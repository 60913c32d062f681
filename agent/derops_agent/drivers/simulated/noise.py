"""Noise that depends on a seed and a time and on nothing else.

A device that was closed for an hour finds the same clouds as one that ran through, and two runs
with one seed are alike, whatever the intervals at which they were sampled.
"""

import math

_MASK = (1 << 64) - 1


def draw(seed: int, *keys: int) -> float:
    """Return a number in [0, 1) that looks random and is the same for the same arguments."""
    mixed = seed & _MASK
    for key in keys:
        # splitmix64: cheap, and neighbouring keys give unrelated numbers.
        mixed = (mixed + (key & _MASK) * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return (mixed >> 11) / (1 << 53)


def smooth(seed: int, at_seconds: float, period_seconds: float) -> float:
    """Return a curve in [-1, 1] over time that turns about once in ``period_seconds``."""
    position = at_seconds / period_seconds
    whole = math.floor(position)
    part = position - whole
    before, after = draw(seed, whole), draw(seed, whole + 1)
    return 2 * (before + (after - before) * part * part * (3 - 2 * part)) - 1
