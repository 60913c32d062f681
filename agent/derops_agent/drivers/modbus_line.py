"""Which unit may be asked on a line that units share, and when. Pure: callers give the time.

A unit that does not answer costs its neighbours the time of each request. The line backs it off: it
is asked so rarely that all such units together take a bounded part of the line's time.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

MOST_UNANSWERED = 2
"""Requests in a row without an answer, after which a unit is backed off."""

MOST_UNANSWERED_OPENING = 3
"""The same while a unit is opened: some devices are silent where they have no registers."""

FIRST_BACK_OFF_SECONDS = 1
MOST_BACK_OFF_SECONDS = 30
"""The longest time between two tries, unless ``SILENT_SHARE`` asks for a longer one."""

SILENT_SHARE = 0.25
"""The largest part of the line's time that tries of silent units take."""

DUE_SHARE = 0.5
"""The same for further tries to write what is due; first tries count to ``SILENT_SHARE``."""

MOST_FIRST_TRIES = 2
"""How many first tries one unit has at once: a start, and its end. Orders may change faster than a
device answers."""

MOST_DUE_SECONDS = 5
"""For so long, enough for one slow write, what is due goes first. After that it does as long as it
takes less than its share: a unit that is written without a pause has no precedence."""

DUE_PERIOD_SECONDS = 1
"""The time between two tries of a silent unit while one write is due."""

TRY_SECONDS = 1
"""The longest that a request to a silent unit occupies the line."""

_MISSED_SECONDS = 2 * TRY_SECONDS
"""For how long a request without an answer makes other units doubtful."""

_WANTED_SECONDS = 6  # a device that does not open is tried every 5 s


class Turn(NamedTuple):
    """The rank of a request among those that wait; the least goes next."""

    is_not_due: bool
    """Whether nothing is due, or was for too much of the time."""

    missed: int
    """How many requests on the line had no answer since this unit last had one.

    It counts for a moment only: else, where quick units leave no gap, others would never be asked.
    """

    started_seconds: float
    """How much of the line's time the unit has had, so that frequent ones do not crowd out others.
    """

    tried_seconds: float
    """When the unit was asked last: a caller that gave up and asks again keeps its place."""


@dataclass(slots=True)
class UnitStanding:
    """How a unit stands with the line."""

    timeout_seconds: float
    patience: int = MOST_UNANSWERED_OPENING
    """How many more requests it may leave without an answer; 0 = it is backed off."""

    is_opening: bool = True
    back_off_seconds: float = 0.0
    try_at_seconds: float = -inf
    tried_at_seconds: float = -inf
    wanted_at_seconds: float = -inf
    """When somebody last wanted to ask it while it was backed off."""

    silent_since_seconds: float | None = None
    due: Hashable = None
    """What was due when it was last tried."""

    is_asked_for_due: bool = False
    due_until_seconds: float = -inf
    """Until when its share of the line's time for what is due is spent."""

    first_tries_until_seconds: float = -inf
    """Until when the line's time is spent that this unit's first tries may take."""

    revived: bool = False
    """Whether a late answer has ended a back-off since it last answered in time."""

    missed_before: int = 0
    used_seconds: float = 0.0

    @property
    def is_backed_off(self) -> bool:
        """Tell whether it is asked only now and then."""
        return self.patience <= 0

    def is_awaited(self, now: float) -> bool:
        """Tell whether its next try is due, and somebody wants to make it."""
        wanted = now - self.wanted_at_seconds <= _WANTED_SECONDS
        return self.is_backed_off and now >= self.try_at_seconds and wanted


class Line:
    """All units that were ever asked on one connection, by id: 256 at most."""

    def __init__(self) -> None:
        self.units: dict[int, UnitStanding] = {}
        self._users: dict[int, int] = {}
        self._missed = 0
        self._missed_at = -inf
        self._served_seconds = 0.0
        self._rest_until = self._due_rest_until = -inf

    def join(self, unit_id: int, timeout_seconds: float) -> None:
        """Note that a unit is opened; how it stood with the line stays."""
        self._users[unit_id] = self._users.get(unit_id, 0) + 1
        unit = self.units.setdefault(
            unit_id, UnitStanding(timeout_seconds=timeout_seconds, missed_before=self._missed)
        )
        unit.timeout_seconds, unit.is_opening = timeout_seconds, True
        if unit.silent_since_seconds is None:
            unit.patience = MOST_UNANSWERED_OPENING

    def leave(self, unit_id: int) -> None:
        """Note that a unit is closed."""
        self._users[unit_id] -= 1
        if not self._users[unit_id]:
            del self._users[unit_id]

    @property
    def is_empty(self) -> bool:
        """Tell whether nobody uses the line."""
        return not self._users

    @property
    def is_shared(self) -> bool:
        """Tell whether units have neighbours; one alone harms nobody and is not backed off."""
        return len(self._users) > 1

    @property
    def is_silent(self) -> bool:
        """Tell whether all units have left their last request without an answer."""
        return all(self.units[each].silent_since_seconds is not None for each in self._users)

    def count_backed_off(self) -> int:
        """Return how many units that are open are backed off."""
        return sum(self.units[each].is_backed_off for each in list(self._users))

    def admits(self, unit_id: int, due: Hashable, now: float) -> bool:
        """Tell whether a unit may be asked now; ``due`` is what is to be written, None = nothing.

        What is newly due is tried at once, unless it changes all the time.
        """
        unit = self.units[unit_id]
        if not self.is_shared or not unit.is_backed_off:
            return True
        if due is not None:
            allowance_seconds = (MOST_FIRST_TRIES - 1) * self._first_try_seconds()
            is_first = due != unit.due and unit.first_tries_until_seconds <= now + allowance_seconds
            return is_first or now >= max(
                unit.tried_at_seconds + DUE_PERIOD_SECONDS, self._due_rest_until
            )
        unit.wanted_at_seconds = now
        return now >= self.try_at(unit_id) and not any(
            other.tried_at_seconds < unit.tried_at_seconds and other.is_awaited(now)
            for each in self._users
            if (other := self.units[each]) is not unit
        )

    def try_at(self, unit_id: int) -> float:
        """Return when a unit that is backed off may be asked next if nothing is due."""
        return max(self.units[unit_id].try_at_seconds, self._rest_until)

    def rank(self, unit_id: int, due: Hashable, now: float) -> Turn:
        """Return the rank of a unit's request among those that wait."""
        unit = self.units[unit_id]
        counts = now <= self._missed_at + _MISSED_SECONDS
        return Turn(
            due is None or unit.due_until_seconds > now + MOST_DUE_SECONDS,
            self._missed - unit.missed_before if counts else 0,
            max(unit.used_seconds, self._served_seconds),
            unit.tried_at_seconds,
        )

    def begin(self, unit_id: int, due: Hashable, now: float) -> float:
        """Note that a unit is asked; return how many seconds it has for its answer."""
        unit = self.units[unit_id]
        self._served_seconds = max(unit.used_seconds, self._served_seconds)
        unit.tried_at_seconds, unit.is_asked_for_due = now, due is not None
        if unit.is_backed_off and due is not None and due != unit.due:
            spent_until = max(unit.first_tries_until_seconds, now)
            unit.first_tries_until_seconds = spent_until + self._first_try_seconds()
        if due is not None:
            unit.due = due
        if not self.is_shared:
            return unit.timeout_seconds
        if unit.is_backed_off and due is None and unit.is_opening:
            unit.patience = MOST_UNANSWERED_OPENING
        is_doubtful = unit.silent_since_seconds is not None
        return min(TRY_SECONDS, unit.timeout_seconds) if is_doubtful else unit.timeout_seconds

    def answered(self, unit_id: int, now: float) -> bool:
        """Note an answer in time; return whether the unit was backed off."""
        unit = self.units[unit_id]
        was_backed_off = unit.back_off_seconds > 0
        self._charge(unit, now)
        unit.patience, unit.back_off_seconds, unit.due = MOST_UNANSWERED, 0.0, None
        unit.silent_since_seconds, unit.revived, unit.is_opening = None, False, False
        unit.missed_before = self._missed
        return was_backed_off

    def unanswered(self, unit_id: int, due: Hashable, now: float) -> bool:
        """Note a request without an answer; return whether the unit is backed off from now on."""
        unit = self.units[unit_id]
        seconds = self._charge(unit, now)
        self._missed += 1
        self._missed_at = now
        unit.missed_before -= 1  # its own counts twice
        if unit.silent_since_seconds is None:
            unit.silent_since_seconds = unit.tried_at_seconds
        if not self.is_shared:
            return False
        was_backed_off = unit.back_off_seconds > 0
        unit.patience -= 1
        if was_backed_off:
            rest_seconds = seconds * (1 / SILENT_SHARE - 1)
            if due is None:
                self._rest_until = max(self._rest_until, now) + rest_seconds
            else:
                self._rest_until = max(self._rest_until, now + rest_seconds)
                self._due_rest_until = now + seconds * (1 / DUE_SHARE - 1)
        if unit.is_backed_off:
            doubled = max(FIRST_BACK_OFF_SECONDS, 2 * unit.back_off_seconds)
            unit.back_off_seconds = min(doubled, MOST_BACK_OFF_SECONDS)
            unit.try_at_seconds = now + unit.back_off_seconds
        return unit.is_backed_off and not was_backed_off

    def abandoned(self, unit_id: int, now: float) -> None:
        """Note a request whose caller gave up before its time; others go first for a moment."""
        unit = self.units[unit_id]
        self._charge(unit, now)
        unit.missed_before -= 1

    def answered_late(self, unit_id: int, seconds: float, now: float) -> None:
        """Note an answer that nobody waits for any more, after ``seconds``: the unit lives.

        It is asked again at once, but only once until it answers in time: a unit that is always
        late would keep its neighbours waiting.
        """
        unit = self.units[unit_id]
        if seconds <= unit.timeout_seconds:
            unit.patience, unit.back_off_seconds = MOST_UNANSWERED, 0.0
            unit.silent_since_seconds = None
        elif unit.is_backed_off and not unit.revived:
            unit.revived, unit.try_at_seconds, self._rest_until = True, now, now

    def forgive(self, now: float) -> None:
        """Let all units be tried at once: the line had failed, not the units."""
        self._rest_until = self._due_rest_until = now
        for unit in self.units.values():
            unit.try_at_seconds = now

    def _first_try_seconds(self) -> float:
        """Return how long after a first try a unit may have the next, so all keep the share."""
        return len(self._users) * TRY_SECONDS / SILENT_SHARE

    def _charge(self, unit: UnitStanding, now: float) -> float:
        seconds = now - unit.tried_at_seconds
        unit.used_seconds = max(unit.used_seconds, self._served_seconds) + seconds
        if unit.is_asked_for_due:
            spent_until = max(unit.due_until_seconds, unit.tried_at_seconds)
            unit.due_until_seconds = spent_until + seconds / DUE_SHARE
        return seconds
