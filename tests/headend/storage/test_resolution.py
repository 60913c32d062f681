"""Which resolution is chosen, for any time and any number of points."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from derops_headend.storage.resolution import (
    LEAST_POINTS,
    WIDTH_SECONDS,
    TelemetrySource,
    choose,
    count_points,
    widen,
)

SPANS = st.floats(min_value=0.001, max_value=400 * 86_400)
POINTS = st.integers(LEAST_POINTS, 5000)
BEGIN, END = datetime.fromisoformat("1990-01-01"), datetime.fromisoformat("2090-01-01")
TIMES = st.datetimes(BEGIN, END, timezones=st.just(UTC))


@given(SPANS, POINTS)
def test_a_choice_has_no_more_points_than_are_wanted_and_is_the_finest_of_them(
    span_seconds: float, most: int
) -> None:
    chosen = choose(span_seconds, most)

    step = chosen.step_seconds
    assert count_points(span_seconds, step) <= most
    assert step % WIDTH_SECONDS[chosen.source] == 0
    assert step == 60 or count_points(span_seconds, step / 3) > most  # type: ignore[arg-type]


@given(TIMES, SPANS, SPANS, POINTS)
def test_times_that_follow_each_other_leave_nothing_out_between_them(
    first: datetime, span_seconds: float, more_seconds: float, most: int
) -> None:
    middle = first + timedelta(seconds=span_seconds)
    end = middle + timedelta(seconds=more_seconds)
    for begin, finish in ((first, middle), (middle, end)):
        span = (finish - begin).total_seconds()
        step = choose(span, most).step_seconds
        wide = widen(begin, finish, step)
        assert wide[0] <= begin <= finish <= wide[1]
        assert (wide[1] - wide[0]) / timedelta(seconds=step) <= most
        assert wide[0].timestamp() % step == wide[1].timestamp() % step == 0


def test_what_people_ask_for() -> None:
    assert choose(3600, 2000) == (TelemetrySource.MINUTES, 60)
    assert choose(86_400, 1500) == (TelemetrySource.MINUTES, 60)
    assert choose(7 * 86_400, 1500) == (TelemetrySource.MINUTES, 600)
    assert choose(400 * 86_400, 500) == (TelemetrySource.QUARTERS, 86_400)
    assert choose(86_400, 100) == (TelemetrySource.QUARTERS, 900)
