"""Two faults and a quiet moment; ``make drill`` plays them all."""

import random
from collections.abc import Iterator

import pytest
from tests.drill.faults import FAULTS, choose
from tests.drill.ground import prepared
from tests.drill.on_call import Said
from tests.drill.playing import Drill, Outcome, table
from tests.e2e.acting import Pilot
from tests.rules.test_rules import ALERTS
from tests.stack.stack import Stack

from derops.data_path import LINK_OF, Link

pytestmark = pytest.mark.timeout(
    500
)  # where it is the first to need the whole product, it starts it


@pytest.fixture
def pilot(stack: Stack) -> Iterator[Pilot]:
    with Pilot.created(stack, "drill") as pilot:
        yield pilot


def test_what_is_broken_is_named_and_nothing_is_where_nothing_is_broken(pilot: Pilot) -> None:
    played = [each for each in FAULTS if each.name in ("gateway killed", "identity quarantined")]
    with prepared(pilot) as (ground, on_call):
        drill = Drill(ground, on_call, print)
        quiet = drill.stay_quiet("battery-0", 5)
        outcomes = [drill.play(each, "battery-1") for each in played]

    print("\n".join(table(outcomes)))
    assert quiet == []
    assert [words for each in outcomes for words in each.wrong] == []


def test_each_alert_that_is_meant_for_a_fault_exists() -> None:
    assert {each.alert for each in FAULTS} <= {alert["alert"] for alert in ALERTS}


def test_each_link_is_broken_by_a_fault() -> None:
    named = {each.truth for each in FAULTS}
    broken = {link for fault, link in LINK_OF.items() if str(fault) in named}

    assert len(FAULTS) >= 12
    assert broken == set(Link)
    assert len({each.name for each in FAULTS}) == len(FAULTS)


def test_a_seed_chooses_the_same_again() -> None:
    names = "writer killed; agent killed"

    assert choose("", 3, random.Random(7)) == choose("", 3, random.Random(7))
    assert set(choose("all", 1, random.Random(1))) == set(FAULTS)
    assert {each.name for each in choose(names, 1, random.Random(1))} == set(names.split("; "))
    assert choose(f"{names};no such fault", 1, random.Random(1)) == []


def test_only_who_names_the_truth_at_once_is_right() -> None:
    (fault,) = (each for each in FAULTS if each.name == "writer killed")

    def outcome(*said: str, runbook: str = "docs/README.md", mended: bool = True) -> Outcome:
        return Outcome(
            fault=fault,
            said=said,
            seconds=1.0,
            command_seconds=1.0,
            runbook=runbook,
            mended=mended,
        )

    assert outcome("WriterSilent").wrong == []
    for bad, words in (
        (outcome(), "it is WriterSilent, and was told to be nothing"),
        (outcome("DeviceSilent", "WriterSilent"), "it is WriterSilent, and was told to be"),
        (outcome("WriterSilent", runbook="docs/none.md"), "there is no page docs/none.md"),
        (outcome("WriterSilent", runbook=""), "there is no page named"),
        (outcome("WriterSilent", mended=False), "no data flowed after it was mended"),
    ):
        (told,) = bad.wrong
        assert told.startswith(f"writer killed: {words}")


@pytest.mark.parametrize(
    ("code", "words", "flows"),
    [(0, "Flows", True), (0, "NothingFound", False), (4, "could not look", False)],
)
def test_only_who_saw_all_links_hold_says_that_data_flows(
    code: int, words: str, flows: bool
) -> None:
    said = Said(code=code, cause="", runbook="", seconds=1.0, words=words)

    assert said.flows is flows
