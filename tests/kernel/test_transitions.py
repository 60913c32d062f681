"""The life of a dispatch as data, and the fold over whatever is heard of it."""

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from derops.lifecycle import TERMINAL, Phase, Reason
from derops.transitions import TRANSITIONS, Actor, fold, may_say

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "phases.md"
phases = st.sampled_from(Phase)


def heard(words: list[Phase]) -> Phase:
    held = Phase.SUBMITTED
    for told in words:
        held = fold(held, told)
    return held


@given(st.lists(phases))
def test_a_terminal_phase_never_changes(words: list[Phase]) -> None:
    ends = [word for word in words if word.terminal]

    assert heard(words).terminal == bool(ends)
    if ends:
        assert heard(words) is ends[0]


@given(st.lists(phases), st.randoms())
def test_words_out_of_order_or_twice_lead_as_far(words: list[Phase], chance: object) -> None:
    shuffled = [*words, *words]
    chance.shuffle(shuffled)  # type: ignore[attr-defined]

    assert heard(shuffled).rank == heard(words).rank
    assert heard([*words, *words]) is heard(words)


@given(phases, phases)
def test_a_dispatch_never_goes_back(held: Phase, told: Phase) -> None:
    assert fold(held, told).rank >= held.rank


def test_every_step_leads_further() -> None:
    for each in TRANSITIONS:
        assert all(fold(start, each.end) is each.end for start in each.starts), each.number


def test_every_phase_and_every_reason_has_its_transition() -> None:
    assert {each.end for each in TRANSITIONS} == set(Phase)
    assert set().union(*(each.reasons for each in TRANSITIONS)) == set(Reason)
    assert not any(each.starts & TERMINAL for each in TRANSITIONS)


def test_only_the_agent_says_that_a_device_was_written() -> None:
    for phase in (Phase.ACKED, Phase.ACTIVE, Phase.COMPLETE, Phase.SUPERSEDED):
        assert {each.actor for each in TRANSITIONS if each.end is phase} == {Actor.AGENT}


def test_the_page_has_the_same_table() -> None:
    found = set()
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if re.match(r"\| T\d", line):
            names = [frozenset(re.findall(r"`(\w+)`", cells[at])) for at in (2, 3, 5)]
            found.add((cells[1], *names, cells[4]))

    assert found == {
        (each.number, each.starts, frozenset({each.end}), each.reasons, each.actor.lower())
        for each in TRANSITIONS
    }


def test_who_may_say_what() -> None:
    assert may_say(Actor.AGENT, Phase.FAILED, "LedgerLost")
    assert not may_say(Actor.OPERATOR, Phase.ACTIVE, "Applied")
    assert not may_say(Actor.AGENT, Phase.COMPLETE, "Because")
