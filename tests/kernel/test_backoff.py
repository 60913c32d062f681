"""Waits double with each failure, up to a bound; their spread is never longer."""

from hypothesis import given
from hypothesis import strategies as st

from derops.backoff import back_off_seconds, spread_seconds


def test_waits_double_up_to_the_most() -> None:
    waits = [back_off_seconds(failures, 0.5, 6.0) for failures in range(6)]

    assert waits == [0.5, 1.0, 2.0, 4.0, 6.0, 6.0]


@given(st.integers(0, 10**9))
def test_no_number_of_failures_is_too_large(failures: int) -> None:
    assert 0.1 <= back_off_seconds(failures, 0.1, 5.0) <= 5.0


@given(st.floats(0, 1000), st.floats(0, 1))
def test_a_spread_wait_is_a_part_of_it(seconds: float, least_share: float) -> None:
    assert least_share * seconds <= spread_seconds(seconds, least_share) <= seconds
