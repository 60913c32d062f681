"""What a program waits for is told once in its log, and as long as it lasts on /readyz."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from derops.observability import FORGOTTEN_SECONDS, MOST_WORDS, Readiness


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def readiness(clock: Clock) -> Readiness:
    return Readiness(clock)


def told(lines: Sequence[Mapping[str, Any]]) -> list[tuple[object, object]]:
    return [(str(line["event"]).partition(".")[2], line.get("why")) for line in lines]


def test_what_is_tried_for_hours_is_one_line(readiness: Readiness, clock: Clock) -> None:
    with capture_logs() as lines:
        for _ in range(1000):
            readiness.waiting("database", "no password")
            clock.now += 5
        readiness.found("database")

    assert told(lines) == [("missing", "no password"), ("found", None)]


def test_another_reason_is_another_line(readiness: Readiness) -> None:
    with capture_logs() as lines:
        for why in ("away", "no password", "away", "no password"):
            readiness.waiting("database", why)

    assert told(lines) == [("missing", "away"), ("missing", "no password")]


def test_what_comes_and_goes_is_told_once_until_it_was_away_for_long(
    readiness: Readiness, clock: Clock
) -> None:
    with capture_logs() as lines:
        for _ in range(100):
            readiness.waiting("database", "no right")
            readiness.found("database")
            clock.now += 5
        clock.now += FORGOTTEN_SECONDS
        readiness.waiting("database", "no right")
        readiness.found("database")

    assert told(lines) == [("missing", "no right"), ("found", None)] * 2


def test_words_that_are_ever_others_are_told_a_few_times(readiness: Readiness) -> None:
    with capture_logs() as lines:
        for number in range(1000):
            readiness.degraded("log", f"{number} records")

    assert len(lines) == MOST_WORDS
    assert readiness.report() == (True, "degraded log: 999 records")


def test_what_is_wrong_stands_before_what_is_not_there_yet(readiness: Readiness) -> None:
    with capture_logs() as lines:
        readiness.expecting("database", "asked later")
        readiness.waiting("event log", "is empty")
        readiness.expecting("event log", "later")

    assert told(lines) == [("missing", "is empty")]
    assert readiness.report() == (
        False,
        "waiting for event log: is empty\nwaiting for database: asked later",
    )


def test_who_only_expects_is_not_ready_and_then_is(readiness: Readiness) -> None:
    readiness.expecting("database", "asked later")
    before = readiness.report()
    with capture_logs() as lines:
        readiness.found("database", "PostgreSQL")

    assert before == (False, "waiting for database: asked later")
    assert lines == []
    assert readiness.report() == (True, "ok\ndatabase: PostgreSQL")
