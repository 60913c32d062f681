"""One cause and a quiet minute; ``make alerts`` plays them all."""

from collections.abc import Iterator

import pytest
from tests.alerts.causes import CAUSES
from tests.alerts.playing import Playing, begin, wait_until_watched
from tests.alerts.watching import hasten, watching
from tests.e2e.acting import Pilot
from tests.rules.test_rules import ALERTS
from tests.stack.stack import PARTS, Stack

pytestmark = pytest.mark.timeout(
    400
)  # where it is the first to need the whole product, it starts it


@pytest.fixture
def pilot(stack: Stack) -> Iterator[Pilot]:
    with Pilot.created(stack, "alerts") as pilot:
        yield pilot


def test_a_dead_writer_is_told_and_nothing_else_is(pilot: Pilot) -> None:
    (killed,) = (each for each in CAUSES if each.name == "writer killed")
    begin(pilot)
    with watching(pilot.stack.data_directory, pilot.stack.ops_ports) as watch:
        wait_until_watched(watch, len(PARTS))
        playing = Playing(pilot, watch, print)
        playing.stay_quiet(15)
        playing.play(killed)

    assert playing.wrong == []


def test_what_is_to_be_provoked_exists() -> None:
    known = {alert["alert"] for alert in ALERTS}
    told = {each.alert for each in CAUSES} | {name for each in CAUSES for name in each.may}

    assert told <= known
    assert len({each.name for each in CAUSES}) == len(CAUSES)


def test_only_what_takes_long_is_hastened() -> None:
    rules = "        expr: increase(x[1h]) > 3600 or rate(y[1m]) offset 30m\n        for: 15m\n"

    assert hasten(rules) == (
        "        expr: increase(x[120s]) > 3600 or rate(y[60s]) offset 120s\n        for: 30s\n"
    )
