"""Which start an operator gives, and when it takes another one."""

import pytest

from derops_operator.gateways.eras import (
    Behind,
    ClockAhead,
    Start,
    after_refusal,
    explain,
    read_refusal,
)

MINUTE_MS = 60_000
NOW = 1_800_000_000_000
BEGAN = NOW - 5 * MINUTE_MS


def ahead(own: Start, seconds: int = 3600) -> ClockAhead:
    return ClockAhead(era=own.era, start_ms=own.start_ms, seconds=seconds)


def test_what_gateways_say_is_read() -> None:
    told = (
        "OperatorClockAhead: era 7 start 1800000000000 is 3600 s ahead of the gateway's clock, 600"
    )
    assert read_refusal(told) == ClockAhead(era=7, start_ms=NOW, seconds=3600)
    early = "StaleOperator: era 0 start 5 is behind era 8 start 9 version 3"
    late = "StaleOperator: era 0 start 5 version 2 is behind era 8 start 9 version 3"
    assert read_refusal(early) == read_refusal(late) == Behind(era=8, start_ms=9)


@pytest.mark.parametrize(
    "odd",
    [
        "",
        "StaleOperator: ",
        "Superseded: a newer operator stream took over",
        "StaleOperator: era 0 start 5 is behind era 8 start " + "9" * 5000,
        "OperatorClockAhead: era x start 1 is 2 s ahead of ",
        "OperatorClockAhead: era 0 start " + "1" * 5000 + " is 2 s ahead of ",
    ],
)
def test_what_is_no_word_on_the_start_is_none(odd: str) -> None:
    assert read_refusal(odd) is None


def test_a_clock_that_was_fast_and_is_right_now_gives_the_start_it_should_have_been() -> None:
    fast = Start(era=0, start_ms=NOW + 60 * MINUTE_MS)

    own = after_refusal(fast, ahead(fast), began_ms=BEGAN, now_ms=NOW)

    assert own.start_ms == BEGAN  # not now: a successor that began meanwhile stays the later one


def test_while_our_clock_says_the_start_is_past_nothing_changes() -> None:
    """The gateway's is slow, or ours is fast yet."""
    own = Start(era=0, start_ms=BEGAN)

    assert after_refusal(own, ahead(own), began_ms=BEGAN - 7, now_ms=NOW) == own


def test_a_word_on_an_earlier_start_changes_nothing() -> None:
    own = Start(era=0, start_ms=NOW + 1)

    assert after_refusal(own, ahead(Start(era=0, start_ms=NOW + 9)), began_ms=5, now_ms=NOW) == own


def test_a_predecessor_with_a_fast_clock_is_passed_once_our_clock_has_passed_it() -> None:
    own, told = Start(era=0, start_ms=BEGAN), Behind(era=0, start_ms=NOW + 4 * MINUTE_MS)

    waiting = after_refusal(own, told, began_ms=BEGAN, now_ms=NOW)
    still = after_refusal(waiting, told, began_ms=BEGAN, now_ms=told.start_ms)
    passed = after_refusal(still, told, began_ms=BEGAN, now_ms=told.start_ms + 1)

    assert waiting.start_ms == still.start_ms == BEGAN
    assert passed.start_ms == told.start_ms + 1
    assert "goes on when that is over" in explain(waiting, told, NOW)


def test_a_predecessor_that_still_runs_never_passes_its_successor() -> None:
    """One operator at a time: whoever was taken once does not come back over a later one."""
    accepted = Start(era=0, start_ms=BEGAN, was_accepted=True)
    for successor_ms in (NOW - MINUTE_MS, NOW + MINUTE_MS):
        told, own = Behind(era=0, start_ms=successor_ms), accepted
        for later_ms in (NOW, NOW + 2 * MINUTE_MS, NOW + 60 * MINUTE_MS):
            own = after_refusal(own, told, began_ms=BEGAN, now_ms=later_ms)
        assert own == accepted


def test_a_predecessor_that_was_refused_for_its_clock_does_not_pass_its_successor_either() -> None:
    fast = Start(era=0, start_ms=NOW + 600 * MINUTE_MS)
    successor = Behind(era=0, start_ms=NOW - MINUTE_MS)

    own = after_refusal(fast, ahead(fast), began_ms=BEGAN, now_ms=NOW)
    own = after_refusal(own, successor, began_ms=BEGAN, now_ms=NOW + 1)

    assert own.start_ms == BEGAN


def test_an_own_earlier_start_is_passed_though_it_was_accepted() -> None:
    """One replica took it, another did not: both are to have the same state again."""
    fast = Start(era=0, start_ms=NOW + 8 * MINUTE_MS, was_accepted=True)

    own = after_refusal(fast, ahead(fast, 660), began_ms=BEGAN, now_ms=NOW)
    told = Behind(era=0, start_ms=fast.start_ms)
    assert after_refusal(own, told, began_ms=BEGAN, now_ms=NOW + 1) == own
    own = after_refusal(own, told, began_ms=BEGAN, now_ms=fast.start_ms + 1)

    assert own.start_ms == fast.start_ms + 1


def test_a_poisoned_gateway_is_not_waited_for() -> None:
    own, told = Start(era=0, start_ms=BEGAN), Behind(era=0, start_ms=NOW + 10**11)

    assert after_refusal(own, told, began_ms=BEGAN, now_ms=NOW) == own
    assert "begin a new era" in explain(own, told, NOW)


def test_an_era_is_a_persons_decision() -> None:
    own, told = Start(era=3, start_ms=BEGAN), Behind(era=4, start_ms=NOW + MINUTE_MS)

    assert after_refusal(own, told, began_ms=BEGAN, now_ms=NOW) == own
    assert "set DEROPS_OPERATOR_ERA to it" in explain(own, told, NOW)
    future = ClockAhead(era=NOW, start_ms=BEGAN, seconds=9)
    assert "DEROPS_OPERATOR_ERA is in the future" in explain(own, future, NOW)


def test_gateways_cannot_make_it_remember_without_bound() -> None:
    own = Start(era=0, start_ms=BEGAN)
    for number in range(1, 1000):
        told = Behind(era=0, start_ms=NOW + number)
        own = after_refusal(own, told, began_ms=BEGAN, now_ms=NOW)

    assert len(own.passable) == 8
