"""One kill of each part; ``make kills`` does a hundred."""

import itertools
from collections import Counter
from collections.abc import Iterator

import pytest
from tests.e2e.acting import Pilot
from tests.kills.rounds import PARTS, Report, Rounds, plan
from tests.stack.stack import Stack

pytestmark = pytest.mark.timeout(
    400
)  # where it is the first to need the whole product, it starts it

_numbers = itertools.count(1)


@pytest.fixture
def pilot(stack: Stack) -> Iterator[Pilot]:
    with Pilot.created(stack, f"kills-{next(_numbers)}") as pilot:
        yield pilot


def test_every_dispatch_that_a_kill_meets_ends_true(pilot: Pilot) -> None:
    rounds = Rounds(pilot, seed=20260201)
    rounds.begin()
    assert rounds.play_undisturbed() == []
    for each in plan(len(PARTS), seed=20260201):
        rounds.play(each)

    report = rounds.report
    print(report.line())
    assert not report.violations
    assert report.shortfalls(len(PARTS)) == []


def test_a_seed_gives_the_same_plan_again() -> None:
    assert plan(9, 7) == plan(9, 7)
    assert plan(9, 7) != plan(9, 8)


def test_rounds_that_did_too_little_are_told() -> None:
    report = Report(7, rounds=3, applied=20, running_at_the_kill=4)
    report.kills.update(PARTS)
    report.endings.update({"Complete/WindowEnded": 20, "Superseded/Superseded": 7})
    assert report.shortfalls(3) == []

    report.kills["gateway"] = 0
    report.endings = Counter({"Failed/DeviceOffline": 27})
    report.applied = report.running_at_the_kill = 0
    assert [each.partition(":")[0] for each in report.shortfalls(3)] == [
        "kills of gateway",
        "applied",
        "completed",
        "running_at_the_kill",
    ]
