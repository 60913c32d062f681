"""How fine an answer with telemetry is: samples as they are, or steps made of roll-ups."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from derops.instants import EPOCH

LEAST_POINTS = 10
_DAY_SECONDS = 86_400
_STEPS_SECONDS = (
    60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, _DAY_SECONDS,
)  # fmt: skip


class TelemetrySource(StrEnum):
    """What an answer is made of."""

    RAW = "raw"
    MINUTES = "1m"
    QUARTERS = "15m"


WIDTH_SECONDS = {TelemetrySource.MINUTES: 60, TelemetrySource.QUARTERS: 900}


class TimeResolution(NamedTuple):
    """What an answer is made of, and how wide its points are."""

    source: TelemetrySource
    step_seconds: int
    """A multiple of the source's width; 0 = samples as they are."""


RAW = TimeResolution(TelemetrySource.RAW, 0)


def choose(span_seconds: float, most_points: int) -> TimeResolution:
    """Return the finest resolution of which a span touches at most ``most_points`` steps.

    Args:
        span_seconds: The length of the time that is asked for.
        most_points: At least ``LEAST_POINTS``.
    """
    step = next(each for each in _steps() if count_points(span_seconds, each) <= most_points)
    source = (
        TelemetrySource.MINUTES
        if step < WIDTH_SECONDS[TelemetrySource.QUARTERS]
        else TelemetrySource.QUARTERS
    )
    return TimeResolution(source, step)


def count_points(span_seconds: float, step_seconds: int) -> int:
    """Return how many steps a time may touch, wherever it begins."""
    return int(-(-span_seconds // step_seconds)) + 1


def widen(first: datetime, end: datetime, step_seconds: int) -> tuple[datetime, datetime]:
    """Return the whole steps that a time touches; steps are counted from 1970.

    Times that follow each other have a step in common, so that no sample is lost between them.
    """
    step = timedelta(seconds=step_seconds)
    return (
        EPOCH + (first - EPOCH) // step * step,
        EPOCH - (EPOCH - end) // step * step,
    )


def _steps() -> Iterator[int]:
    yield from _STEPS_SECONDS
    step = _DAY_SECONDS
    while True:
        step *= 2
        yield step
