"""Answers about telemetry: the choice of a resolution, the columns, and the holes."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import orjson
import psycopg
from pydantic.alias_generators import to_camel

from derops.instants import EPOCH, format_instant
from derops_headend.api.problems import invalid
from derops_headend.storage.asset_events import Gap, dropped_before, list_gaps, list_setpoints
from derops_headend.storage.newest import AssetKey, AssetLife, find_lives
from derops_headend.storage.quantities import ROLLED_UP
from derops_headend.storage.resolution import (
    RAW,
    WIDTH_SECONDS,
    TelemetrySource,
    TimeResolution,
    choose,
    count_points,
    widen,
)
from derops_headend.storage.telemetry import (
    Series,
    copy_samples,
    copy_steps,
    read_samples,
    read_steps,
)

MOST_VALUES = 500_000
"""The most values of one CSV: some megabytes."""

MOST_ROWS = 100_000
"""The most rows of one CSV: a day with a sample a second."""

MOST_GAPS = 500
LEAST_STALE_SECONDS = 10.0
"""A sample may be on its way from the device to the database for so long: it is not missing."""

INTERVAL_SECONDS = 10
"""The interval of samples that is assumed for an asset that Kubernetes no longer knows."""

_TABLES = {
    TelemetrySource.RAW: "telemetry",
    TelemetrySource.MINUTES: "telemetry_1m",
    TelemetrySource.QUARTERS: "telemetry_15m",
}
_UNITS = {
    "Watts": "W",
    "Vars": "var",
    "Volts": "V",
    "Hertz": "Hz",
    "Percent": "%",
    "WattHours": "Wh",
    "Celsius": "°C",
    "Seconds": "s",
}
_DECIMALS = 4
"""Decimals of means and sums, which have more digits than any device measures."""


class Lives(NamedTuple):
    """Says which is meant of the assets that have or had a name."""

    namespace: str
    name: str
    uid: str
    """The uid that is asked for; empty = the asset that has the name now, or had it last."""
    current_uid: str
    """The uid of the DERAsset of that name in Kubernetes; empty = none is known."""

    since: datetime | None = None
    """Leave out assets first heard of before, except the current one; None = leave none out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySelection:
    """The telemetry of one asset that is asked for."""

    lives: Lives
    first: datetime
    end: datetime
    quantities: tuple[str, ...]
    """Columns of ``telemetry``."""

    resolution: TelemetrySource | None
    """None = the finest that fits."""

    most_points: int
    as_csv: bool
    now: datetime
    interval_seconds: int = INTERVAL_SECONDS

    @property
    def rolled_up(self) -> tuple[str, ...]:
        """The quantities that steps have: those in resolutions other than raw."""
        return tuple(each for each in self.quantities if each in ROLLED_UP)


def unit_of(quantity: str) -> str:
    """Return the symbol of the unit with which a quantity's name ends."""
    return next(unit for end, unit in reversed(_UNITS.items()) if quantity.endswith(end))


def stale_after_seconds(interval_seconds: float) -> float:
    """Return for how long the newest value counts as current, and a hole is not yet a gap."""
    return max(LEAST_STALE_SECONDS, 3 * interval_seconds)


def check(wanted: TelemetrySelection) -> None:
    """Check that a resolution that was asked for does not have too many points.

    Raises:
        ProblemError: INVALID: it has.
    """
    if wanted.resolution is not None:
        _resolve(wanted, None)


def answer(connection: psycopg.Connection, wanted: TelemetrySelection) -> bytes | None:
    """Return the body, as JSON or CSV; None = there never was such an asset.

    Raises:
        ProblemError: INVALID: it would have too many points.
    """
    life, others = choose_life(connection, wanted.lives)
    if life is None:
        return None
    dropped = dropped_before(connection)
    resolution = _resolve(wanted, dropped)
    if wanted.as_csv:
        return _csv(connection, life, wanted, resolution)
    first, end, resolution, series = _read(connection, life, wanted, resolution)
    body = _head(wanted, life, others, resolution, first, end)
    body["time"] = series.time_ms
    body |= _columns(wanted, resolution, series)
    gaps = list_gaps(connection, life.asset_id, first, end, MOST_GAPS + 1)
    told = list(_tell_gaps(wanted, resolution, series, gaps, first, end, dropped))
    body["gaps"] = told[:MOST_GAPS]
    body["hasMoreGaps"] = len(told) > MOST_GAPS
    if resolution != RAW:
        body["provisional"] = [
            {"from": format_instant(each[0]), "to": format_instant(each[1])}
            for each in series.provisional
        ]
        body["omitted"] = [to_camel(each) for each in wanted.quantities if each not in ROLLED_UP]
        if "setpoint_watts" in wanted.quantities:
            body["setpoints"] = _setpoints(connection, life, wanted, first, end)
    return orjson.dumps(body)


def choose_life(
    connection: psycopg.Connection, wanted: Lives
) -> tuple[AssetLife | None, list[str]]:
    """Return which asset of a name is meant, and the uids of the others; None = there is none."""
    lives = find_lives(
        connection,
        wanted.namespace,
        wanted.name,
        since=wanted.since,
        current_uid=wanted.current_uid,
    )
    uid = wanted.uid or wanted.current_uid or (lives[0].uid if lives else "")
    by_uid = {each.uid: each for each in lives}
    life = by_uid.pop(uid, None)
    if life is None and uid and uid == wanted.current_uid:
        life = AssetLife(0, uid)  # nothing was heard of it yet
    return life, list(by_uid)


def _resolve(wanted: TelemetrySelection, dropped: datetime | None) -> TimeResolution:
    span = (wanted.end - wanted.first).total_seconds()
    most = _most(wanted)
    if wanted.resolution is None:
        passed = (min(wanted.end, wanted.now) - wanted.first).total_seconds()
        has_raw = dropped is None or wanted.first >= dropped
        if has_raw and passed / wanted.interval_seconds + 1 <= wanted.most_points:
            return RAW
        return choose(span, wanted.most_points)
    if wanted.resolution is TelemetrySource.RAW:
        if span / wanted.interval_seconds > most:
            raise _too_many(most)
        return RAW
    step = WIDTH_SECONDS[wanted.resolution]
    if count_points(span, step) > most:
        raise _too_many(most)
    return TimeResolution(wanted.resolution, step)


def _most(wanted: TelemetrySelection) -> int:
    """Return how many points an answer may have."""
    if not wanted.as_csv or wanted.resolution is None:
        return wanted.most_points
    if wanted.resolution is TelemetrySource.RAW:
        columns = len(wanted.quantities)
    else:
        columns = sum(len(ROLLED_UP[each]) for each in wanted.rolled_up)
    return min(MOST_ROWS, MOST_VALUES // max(columns, 1))


def _too_many(most: int) -> Exception:
    return invalid(
        "resolution",
        "too_many_points",
        f"has more than {most} points of so many quantities between from and to: ask for less "
        f"time, for auto, or as text/csv, which may have {MOST_ROWS}",
    )


def _read(
    connection: psycopg.Connection,
    life: AssetLife,
    wanted: TelemetrySelection,
    resolution: TimeResolution,
) -> tuple[datetime, datetime, TimeResolution, Series]:
    if resolution == RAW:
        most = _most(wanted)
        series = read_samples(
            connection, life.asset_id, wanted.quantities, wanted.first, wanted.end, most + 1
        )
        if len(series.time_ms) <= most:
            return wanted.first, wanted.end, RAW, series
        if wanted.resolution is not None:
            raise _too_many(most)
        # An asset that measures more often than its DERAsset says gets no more points for that.
        span = (wanted.end - wanted.first).total_seconds()
        resolution = choose(span, most)
    first, end = widen(wanted.first, wanted.end, resolution.step_seconds)
    series = read_steps(
        connection, life.asset_id, wanted.rolled_up, resolution, first, end, wanted.now
    )
    return first, end, resolution, series


def _csv(
    connection: psycopg.Connection,
    life: AssetLife,
    wanted: TelemetrySelection,
    resolution: TimeResolution,
) -> bytes:
    if resolution == RAW:
        most = _most(wanted)
        body = copy_samples(
            connection, life.asset_id, wanted.quantities, wanted.first, wanted.end, most + 1
        )
        if body.count(b"\n") > most + 1:
            raise _too_many(most)
        return body
    first, end = widen(wanted.first, wanted.end, resolution.step_seconds)
    return copy_steps(
        connection, life.asset_id, wanted.rolled_up, resolution, first, end, wanted.now
    )


def _head(
    wanted: TelemetrySelection,
    life: AssetLife,
    others: list[str],
    resolution: TimeResolution,
    first: datetime,
    end: datetime,
) -> dict[str, Any]:
    names = wanted.quantities if resolution == RAW else wanted.rolled_up
    return {
        "namespace": wanted.lives.namespace,
        "name": wanted.lives.name,
        "uid": life.uid,
        "otherUids": others,
        "from": format_instant(first),
        "to": format_instant(end),
        "resolution": resolution.source,
        "stepSeconds": resolution.step_seconds or None,
        "source": _TABLES[resolution.source],
        "units": {to_camel(each): unit_of(to_camel(each)) for each in names},
        "sign": "positive = into the grid",
        "staleAfterSeconds": stale_after_seconds(wanted.interval_seconds),
    }


def _columns(
    wanted: TelemetrySelection, resolution: TimeResolution, series: Series
) -> dict[str, Any]:
    if resolution == RAW:
        return {to_camel(each): series.columns[each] for each in wanted.quantities}
    return {
        to_camel(each): {
            what: _rounded(series.columns[f"{each}_{what}"])
            if what in ("mean", "sum")
            else series.columns[f"{each}_{what}"]
            for what in ROLLED_UP[each]
        }
        for each in wanted.rolled_up
    }


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if each is None else round(each, _DECIMALS) for each in values]


def _tell_gaps(
    wanted: TelemetrySelection,
    resolution: TimeResolution,
    series: Series,
    gaps: Sequence[Gap],
    first: datetime,
    end: datetime,
    dropped: datetime | None,
) -> Iterator[dict[str, Any]]:
    """Yield each gap with its reason, each kind in order of time."""
    if resolution == RAW and dropped is not None and dropped > first:
        yield _gap(first, min(dropped, end), "Dropped")
    for each in reversed(gaps):
        yield _gap(each.from_at, each.to_at, each.reason, each.samples)
    stale_ms = 1000 * stale_after_seconds(wanted.interval_seconds)
    width_ms = 1000 * resolution.step_seconds
    seen = list(itertools.compress(series.time_ms, series.samples))
    ends = [first.timestamp() * 1000, *(each + width_ms for each in seen)]
    begins = [*seen, min(end, wanted.now).timestamp() * 1000]
    for silent_ms, heard_ms in zip(ends, begins, strict=True):
        if heard_ms - silent_ms > stale_ms:
            yield _gap(_from_ms(silent_ms), _from_ms(heard_ms), "NoSamples")


def _gap(begin: datetime, end: datetime, reason: str, samples: int | None = None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "from": format_instant(begin),
        "to": format_instant(end),
        "reason": reason,
    }
    return told if samples is None else {**told, "samples": samples}


def _from_ms(time_ms: float) -> datetime:
    return EPOCH + timedelta(milliseconds=time_ms)


def _setpoints(
    connection: psycopg.Connection,
    life: AssetLife,
    wanted: TelemetrySelection,
    first: datetime,
    end: datetime,
) -> list[dict[str, Any]]:
    key = AssetKey(wanted.lives.namespace, wanted.lives.name, life.uid)
    return [
        {
            "from": format_instant(each.applied_at),
            "to": format_instant(each.until) if each.until else None,
            "watts": each.watts,
            "dispatch": each.dispatch_name,
            "dispatchUid": each.dispatch_uid,
        }
        for each in list_setpoints(connection, key, first, end)
    ]
