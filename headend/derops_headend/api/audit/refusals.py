"""Calls that are refused before they are looked at: one by one, then as a sum. Pure.

Callers without a credential, or with too many calls, must not be able to fill a disk, whatever
number of addresses and accounts they have.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from derops.rates import Rates

OF_SOURCE_PER_SECOND, OF_ALL_PER_SECOND = 20.0, 100.0
"""Refusals with a record of their own: of one source, or one caller's share, and of all."""

MOST_SOURCES = 200
"""Sources, and callers with a namespace, that are told apart in one turn of summing up."""


class Who(NamedTuple):
    """Who was refused: a stranger by the source, a caller by the principal."""

    source: str = ""
    """Network."""

    kind: str = ""
    name: str = ""
    namespace: str = ""
    """Whose objects were asked for; empty = nobody's, or those of several."""


OTHERS = Who(source="others")


@dataclass(slots=True)
class Sum:
    """Refusals that have no record of their own."""

    who: Who
    count: int
    first: datetime
    last: datetime


class Refusals:
    """Decides which refusals are told, and counts the others."""

    def __init__(self) -> None:
        self._of_one = Rates(per_second=OF_SOURCE_PER_SECOND, burst=OF_SOURCE_PER_SECOND)
        self._of_all = Rates(per_second=OF_ALL_PER_SECOND, burst=2 * OF_ALL_PER_SECOND)
        self._sums: dict[Who, Sum] = {}

    def admit(self, one: str, now: datetime) -> bool:
        """Tell whether a refusal gets a record of its own; otherwise ``count`` it.

        Args:
            one: Network of the source, or share of the caller.
            now: The wall clock.
        """
        seconds = now.timestamp()
        if self._of_one.admit(one, seconds) is None:
            return False
        return self._of_all.admit("", seconds) is not None

    def count(self, now: datetime, *who: Who) -> None:
        """Count a refusal that has no record.

        Args:
            now: The wall clock.
            who: The same one, told ever more roughly: the last is there for all for whom there is
                no room.
        """
        has_room = len(self._sums) < MOST_SOURCES
        chosen = next((each for each in who if has_room or each in self._sums), who[-1])
        known = self._sums.setdefault(chosen, Sum(chosen, 0, now, now))
        known.count += 1
        known.last = now

    def give_back(self, untold: Sum) -> None:
        """Count again sums that could not be recorded."""
        known = self._sums.setdefault(untold.who, untold)
        if known is not untold:
            known.count += untold.count
            known.first = min(known.first, untold.first)

    def take(self, *, apart: bool = True) -> list[Sum]:
        """Return what was counted since the last time, and begin anew.

        Args:
            apart: Each for itself; else all in one.
        """
        found, self._sums = list(self._sums.values()), {}
        if apart or len(found) < 2:
            return found
        total = Sum(OTHERS, sum(each.count for each in found), found[0].first, found[0].last)
        total.first = min(each.first for each in found)
        total.last = max(each.last for each in found)
        return [total]
