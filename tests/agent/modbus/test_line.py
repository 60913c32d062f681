"""Who may be asked on a shared line, and when: as simulated time, for any mixture of units."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derops_agent.drivers.modbus_line import (
    DUE_SHARE,
    MOST_BACK_OFF_SECONDS,
    MOST_UNANSWERED,
    MOST_UNANSWERED_OPENING,
    SILENT_SHARE,
    TRY_SECONDS,
    Line,
)


def a_line(units: int, timeout_seconds: float = 1.0) -> Line:
    """Return a line whose units have all answered once."""
    line = Line()
    for unit_id in range(1, units + 1):
        line.join(unit_id, timeout_seconds)
        line.begin(unit_id, None, 0.0)
        line.answered(unit_id, 0.0)
    return line


def ask(line: Line, unit_id: int, now: float, due: object = None) -> float:
    """Ask a unit that is silent; return when the line is free again, or ``now`` if refused."""
    if not line.admits(unit_id, due, now):
        return now
    now += line.begin(unit_id, due, now)
    line.unanswered(unit_id, due, now)
    return now


def silence(line: Line, unit_id: int, now: float) -> float:
    for _ in range(MOST_UNANSWERED):
        now = ask(line, unit_id, now)
    assert line.units[unit_id].is_backed_off
    return now


def test_a_unit_alone_is_asked_whenever_somebody_wants() -> None:
    line = a_line(1)
    now = 0.0
    for _ in range(20):
        later = ask(line, 1, now)
        assert later == now + 1
        now = later


def test_a_unit_is_backed_off_after_a_few_requests_and_heard_again_at_once() -> None:
    line = a_line(2)
    now = silence(line, 2, 0.0)

    assert not line.admits(2, None, now)
    assert line.admits(1, None, now)
    assert line.admits(2, None, line.try_at(2))
    line.begin(2, None, line.try_at(2))
    assert line.answered(2, line.try_at(2))
    assert line.admits(2, None, line.try_at(2))


def test_the_back_off_doubles_to_its_bound() -> None:
    line = a_line(2)
    now = silence(line, 2, 0.0)
    pauses = []
    for _ in range(8):
        pauses.append(line.try_at(2) - now)
        now = ask(line, 2, line.try_at(2))

    assert pauses == [1, 3, 4, 8, 16, 30, 30, 30], "3: the share of the line"


@settings(deadline=None)
@given(
    silent=st.integers(1, 40),
    timeout_seconds=st.floats(0.05, 5),
    every_seconds=st.floats(0.05, 5),
)
def test_silent_units_take_no_more_than_their_share_and_each_has_its_turn(
    silent: int, timeout_seconds: float, every_seconds: float
) -> None:
    line = a_line(silent + 1, timeout_seconds)
    now = 0.0
    for unit_id in range(2, silent + 2):
        now = silence(line, unit_id, now)
    try_seconds = min(TRY_SECONDS, timeout_seconds)
    cycle_seconds = max(MOST_BACK_OFF_SECONDS, silent * try_seconds / SILENT_SHARE)
    began, until = now, now + 4 * cycle_seconds + 60
    tried = dict.fromkeys(range(2, silent + 2), now)
    longest = used = 0.0
    while now < until:
        for unit_id in tried:
            later = ask(line, unit_id, now)
            if later > now:
                used += later - now
                longest = max(longest, now - tried[unit_id])
                tried[unit_id] = now
            now = later
        now += every_seconds

    assert used <= SILENT_SHARE * (now - began) + 2 * try_seconds
    assert longest <= cycle_seconds + (silent + 1) * (every_seconds + try_seconds)


@pytest.mark.parametrize("silent", [1, 7])
def test_what_is_due_is_tried_at_once_and_then_takes_half_of_the_line_at_most(silent: int) -> None:
    line = a_line(silent + 1)
    now = 0.0
    for unit_id in range(2, silent + 2):
        now = silence(line, unit_id, now)
    for unit_id in range(2, silent + 2):
        assert line.admits(unit_id, "start", now), "at once"
        now = ask(line, unit_id, now, "start")

    began, used = now, 0.0
    tries: list[float] = []
    while now < began + 60:
        for unit_id in range(2, silent + 2):
            later = ask(line, unit_id, now, "start")
            used += later - now
            if later > now and unit_id == 2:
                tries.append(now)
            now = later
        now += 0.05

    assert used <= DUE_SHARE * (now - began) + TRY_SECONDS
    assert all(later - earlier >= 1 for earlier, later in pairwise(tries))
    assert len(tries) >= 25 / silent
    assert line.admits(2, "end", now), "an end is due anew"


@pytest.mark.parametrize("silent", [1, 7])
def test_ever_other_orders_for_silent_units_leave_their_neighbours_a_part_of_the_line(
    silent: int,
) -> None:
    line = a_line(silent + 1)
    now = 0.0
    for unit_id in range(2, silent + 2):
        now = silence(line, unit_id, now)
    began, used = now, 0.0
    order = 0
    while now < began + 120:
        for unit_id in range(2, silent + 2):
            order += 1
            later = ask(line, unit_id, now, order)
            used += later - now
            now = later
        now += 0.05

    at_once = 2 * silent * TRY_SECONDS
    assert used <= (DUE_SHARE + SILENT_SHARE) * (now - began) + at_once


def test_a_start_and_its_end_are_both_tried_at_once() -> None:
    line = a_line(8)
    now = silence(line, 2, 0.0)
    for due in ("start", "end"):
        assert line.admits(2, due, now)
        now = ask(line, 2, now, due)
    assert not line.admits(2, "start", now), "a third change within seconds waits for its turn"
    now += 8 * TRY_SECONDS / SILENT_SHARE
    assert line.admits(2, "start", now)


def test_with_short_timeouts_what_is_due_is_tried_once_a_second() -> None:
    line = a_line(2, 0.1)
    now = silence(line, 2, 0.0)
    tries = []
    for step in range(101):
        at = now + step / 10
        if ask(line, 2, at, "start") > at:
            tries.append(step)

    assert tries == list(range(0, 101, 10))


def test_a_unit_that_is_looked_for_may_be_silent_at_more_than_one_place() -> None:
    line = a_line(1)
    line.join(2, 1.0)
    now = 0.0
    for _ in range(MOST_UNANSWERED_OPENING):
        assert line.admits(2, None, now)
        now = ask(line, 2, now)
    assert not line.admits(2, None, now)
    line.leave(2)
    line.join(2, 1.0)
    assert not line.admits(2, None, now), "that it is opened again makes it no better"

    now = line.try_at(2)
    for _ in range(MOST_UNANSWERED_OPENING):
        assert line.admits(2, None, now)
        now = ask(line, 2, now)
    assert not line.admits(2, None, now)


def test_a_late_answer_ends_a_back_off_once() -> None:
    line = a_line(2)
    now = silence(line, 2, 0.0)
    line.answered_late(2, 1.2, now)
    assert line.admits(2, None, now)
    now = ask(line, 2, now)
    line.answered_late(2, 1.2, now)
    assert not line.admits(2, None, now)


def test_an_answer_that_a_neighbour_did_not_let_be_waited_for_counts() -> None:
    line = a_line(2, timeout_seconds=5)
    now = ask(line, 2, 0.0)
    assert line.begin(2, None, now) == TRY_SECONDS
    line.unanswered(2, None, now + 1)
    line.answered_late(2, 3.0, now + 3)
    assert line.admits(2, None, now + 3)
    assert line.begin(2, None, now + 3) == 5


def test_whose_turn_it_is() -> None:
    line = a_line(4)
    ask(line, 4, 0.0)
    line.begin(2, None, 1.0)
    line.answered(2, 1.9)
    line.begin(3, None, 1.9)
    line.answered(3, 2.0)
    waiting: Mapping[str, object] = {
        "due": line.rank(4, "start", 2.0),
        "quick": line.rank(3, None, 2.0),
        "slow": line.rank(2, None, 2.0),
        "not heard since": line.rank(1, None, 2.0),
        "doubtful": line.rank(4, None, 2.0),
    }

    assert sorted(waiting, key=lambda each: waiting[each]) == list(waiting)  # type: ignore[arg-type, return-value]


def test_what_is_due_goes_first_for_a_whole_write_and_then_half_of_the_time() -> None:
    line = a_line(2)
    now, first = 10.0, []
    while now < 70:
        goes_first = line.rank(2, "write", now) < line.rank(1, None, now)
        first.append(goes_first)
        unit_id = 2 if goes_first else 1
        line.begin(unit_id, "write" if goes_first else None, now)
        now += 1
        line.answered(unit_id, now)

    assert all(first[:5])
    assert 25 <= sum(first) <= 36


def test_doubt_passes_so_that_quick_units_without_gaps_starve_nobody() -> None:
    line = a_line(3)
    ask(line, 3, 0.0)
    line.begin(1, None, 1.0)
    line.answered(1, 1.1)
    assert line.rank(1, None, 2.0) < line.rank(2, None, 2.0) < line.rank(3, None, 2.0)
    assert line.rank(2, None, 4.0) < line.rank(1, None, 4.0) < line.rank(3, None, 4.0)
    now = 4.0
    while line.rank(1, None, now) < line.rank(3, None, now):
        line.begin(1, None, now)
        now += 0.1
        line.answered(1, now)
    assert now < 6


def test_a_request_that_is_given_up_puts_its_unit_behind_those_that_were_not_asked() -> None:
    line = a_line(3)
    ask(line, 3, 0.0)
    line.begin(2, None, 1.0)
    line.abandoned(2, 1.2)
    assert line.rank(1, None, 1.2) < line.rank(2, None, 1.2)
    assert not line.units[2].is_backed_off


def test_when_the_line_was_away_all_are_tried_again() -> None:
    line = a_line(3)
    now = silence(line, 2, 0.0)
    now = silence(line, 3, now)
    line.forgive(now)
    for unit_id in (2, 3):
        assert line.admits(unit_id, None, now)
        line.begin(unit_id, None, now)
        line.answered(unit_id, now)
