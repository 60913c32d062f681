"""Strangers that are refused: each is told, until there are so many that they are summed up. Pure.

Who has no credential must not be able to fill a disk, from however many addresses.
"""

from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv6Address, ip_address, ip_network

from derops.rates import Rates

OF_SOURCE_PER_SECOND, OF_ALL_PER_SECOND = 20.0, 100.0
"""Refusals with a record of their own."""

MOST_SOURCES = 200
"""Sources that are told apart in one turn of summing up."""

OTHERS = "others"


@dataclass(slots=True)
class Sum:
    """Refusals of one source that have no record of their own."""

    source: str
    count: int
    first: datetime
    last: datetime


class Refusals:
    """Decides which refusals are told, and counts the others."""

    def __init__(self) -> None:
        self._of_source = Rates(per_second=OF_SOURCE_PER_SECOND, burst=OF_SOURCE_PER_SECOND)
        self._of_all = Rates(per_second=OF_ALL_PER_SECOND, burst=2 * OF_ALL_PER_SECOND)
        self._sums: dict[str, Sum] = {}

    def admit(self, source: str, now: datetime) -> bool:
        """Tell whether a refusal gets a record of its own; else it is to be counted."""
        seconds = now.timestamp()
        if self._of_source.admit(network_of(source), seconds) is None:
            return False
        return self._of_all.admit("", seconds) is not None

    def count(self, source: str, now: datetime) -> None:
        """Count a refusal that has no record."""
        source = network_of(source)
        if source not in self._sums and len(self._sums) >= MOST_SOURCES:
            source = OTHERS
        known = self._sums.setdefault(source, Sum(source, 0, now, now))
        known.count += 1
        known.last = now

    def give_back(self, untold: Sum) -> None:
        """Count again what could not be told."""
        known = self._sums.setdefault(untold.source, untold)
        if known is not untold:
            known.count += untold.count
            known.first = min(known.first, untold.first)

    def take(self, *, apart: bool) -> list[Sum]:
        """Return what was counted since the last time, and begin anew.

        Args:
            apart: Each source for itself; else all in one.
        """
        found, self._sums = list(self._sums.values()), {}
        if apart or len(found) < 2:
            return found
        total = Sum(OTHERS, sum(each.count for each in found), found[0].first, found[0].last)
        total.first = min(each.first for each in found)
        total.last = max(each.last for each in found)
        return [total]


def network_of(source: str) -> str:
    """Return what one holder of addresses has: of IPv6, all of a /64."""
    try:
        address = ip_address(source)
    except ValueError:
        return source
    if isinstance(address, IPv6Address):
        return str(ip_network((address, 64), strict=False))
    return source
