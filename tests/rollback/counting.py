"""Whether all that agents measured is in the database: what they counted, and holes. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

HOLE_SECONDS = 1.7
"""Between two samples of a device that is sampled once a second."""

_LATE_SECONDS = 0.1


@dataclass(slots=True)
class Life:
    """One process of an agent, in seconds since 1970.

    Attributes:
        since: Before it was started.
        looks: When it was asked, as its answer was there, and how many samples it had taken.
    """

    since: float
    looks: list[tuple[float, int]] = field(default_factory=list)


def find_lost(life: Life, stored: Iterable[float]) -> int:
    """Return how many samples of a life are not among those that are stored.

    What it had counted at a look was taken before that. On a busy machine it takes one that it
    does not want, and counts it too, so that fewer rows alone prove nothing: there must be a hole
    as well, behind the first row.
    """
    own = sorted(at for at in stored if at > life.since)
    lost = 0
    for until, counted in life.looks:
        before = [at for at in own if at <= until]
        lost = max(lost, min(counted - len(before), _room(before, until)))
    return lost


def _room(stored: Sequence[float], until: float) -> int:
    """Return how many samples the holes have room for, and the time after the last row."""
    if not stored:
        return 2**31
    gaps = [after - at for at, after in pairwise(stored)]
    holes = sum(round(gap) - 1 for gap in gaps if gap > HOLE_SECONDS)
    return holes + int(until - stored[-1] - _LATE_SECONDS)
