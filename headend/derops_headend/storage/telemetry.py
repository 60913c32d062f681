"""What was measured of one asset between two times.

Each function takes a connection with a transaction that sees one state. Times are aware. ``None``
is what was not measured. Statements name asset and time, so that they read few days and one key.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psycopg
from pydantic.alias_generators import to_camel

from derops_headend.storage.minutes import HOLD_SECONDS, MINUTES
from derops_headend.storage.quantities import QUANTITIES, ROLLED_UP
from derops_headend.storage.resolution import TelemetrySource, TimeResolution

MOST_MADE_MINUTES = 5_000
"""Not rolled up yet and made for one answer, at most; older minutes are answered as they are."""

_Statement = tuple[str, dict[str, Any]]
_MILLISECONDS = "(date_part('epoch', {it}) * 1000000)::bigint / 1000"
"""``extract`` is exact without such care, and as slow as all the rest of a row."""
_RFC_3339 = """to_char({it} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


class Series(NamedTuple):
    """Points of one asset, by column, in order of time."""

    time_ms: Sequence[int]
    """The instant of each sample, or the beginning of each step, since 1970."""
    columns: dict[str, Sequence[float | None]]
    """A quantity, or with its roll-up as ``voltage_volts_mean``."""
    samples: Sequence[int]
    """How many samples each point has; 0 = the power of an earlier sample was still held."""
    provisional: list[tuple[datetime, datetime]]
    """Times whose roll-ups are provisional: made of what has come so far."""


def read_samples(
    connection: psycopg.Connection,
    asset_id: int,
    quantities: Sequence[str],
    first: datetime,
    end: datetime,
    limit: int,
) -> Series:
    """Return samples from ``first`` up to but without ``end``; at most the first ``limit``."""
    text, facts = _samples(asset_id, quantities, first, end, limit, _MILLISECONDS)
    rows = connection.execute(text.encode(), facts, prepare=False, binary=True).fetchall()
    time_ms, columns = _columns(rows, quantities)
    return Series(time_ms, columns, (1,) * len(time_ms), [])


def copy_samples(
    connection: psycopg.Connection,
    asset_id: int,
    quantities: Sequence[str],
    first: datetime,
    end: datetime,
    limit: int,
) -> bytes:
    """Return the same as CSV with a line of names."""
    return _copy(connection, *_samples(asset_id, quantities, first, end, limit, _RFC_3339))


def _samples(
    asset_id: int,
    quantities: Sequence[str],
    first: datetime,
    end: datetime,
    limit: int,
    time: str,
) -> _Statement:
    columns = ", ".join(f'{_known(each, QUANTITIES)} as "{to_camel(each)}"' for each in quantities)
    text = (
        f"select {time.format(it='ts')} as time, {columns} from telemetry "  # noqa: S608
        "where asset_id = %(asset)s and ts >= %(first)s and ts < %(end)s "
        "order by ts limit %(limit)s"
    )
    return text, {"asset": asset_id, "first": first, "end": end, "limit": limit}


def read_steps(
    connection: psycopg.Connection,
    asset_id: int,
    quantities: Sequence[str],
    resolution: TimeResolution,
    first: datetime,
    end: datetime,
    now: datetime,
) -> Series:
    """Return steps of roll-ups; minutes that are not rolled up yet are made of their samples.

    Args:
        connection: With a transaction.
        asset_id: The asset's id in the database.
        quantities: Some of those in ``ROLLED_UP``.
        resolution: One of steps, not raw.
        first: The beginning of the first step.
        end: The end of the last one.
        now: No minute that begins later is made.
    """
    due = _find_due(connection, asset_id, first, end, now)
    stored, facts = _stored(asset_id, resolution, first, end, due.made)
    text = _steps(stored, quantities, _MILLISECONDS, "sum(samples)::bigint")
    rows = connection.execute(text.encode(), facts, prepare=False, binary=True).fetchall()
    names = [f"{each}_{what}" for each in quantities for what in ROLLED_UP[each]]
    time_ms, columns = _columns(rows, [*names, "samples"])
    samples = columns.pop("samples")
    return Series(time_ms, columns, samples, due.ranges)  # type: ignore[arg-type]


def copy_steps(
    connection: psycopg.Connection,
    asset_id: int,
    quantities: Sequence[str],
    resolution: TimeResolution,
    first: datetime,
    end: datetime,
    now: datetime,
) -> bytes:
    """Return the same as CSV with a line of names."""
    due = _find_due(connection, asset_id, first, end, now)
    stored, facts = _stored(asset_id, resolution, first, end, due.made)
    return _copy(connection, _steps(stored, quantities, _RFC_3339), facts)


class _Due(NamedTuple):
    made: list[datetime]
    """Minutes to be made of their samples, in order."""
    ranges: list[tuple[datetime, datetime]]


def _find_due(
    connection: psycopg.Connection, asset_id: int, first: datetime, end: datetime, now: datetime
) -> _Due:
    """Return the minutes between two times whose roll-ups are missing or out of date."""
    minute = timedelta(minutes=1)
    following = -(-HOLD_SECONDS // 60)
    rows = connection.execute(
        "select distinct due.bucket + n * interval '1 minute' from roll_up_due due, retention, "
        "generate_series(0, %(following)s) n "
        "where due.asset_id = %(asset)s and due.bucket >= %(before)s and due.bucket < %(end)s "
        "and due.bucket >= dropped_before + make_interval(secs => %(hold)s) "
        "and due.bucket + n * interval '1 minute' >= %(first)s "
        "and due.bucket + n * interval '1 minute' < least(%(end)s, %(now)s::timestamptz) "
        "order by 1 desc limit %(limit)s",
        {
            "following": following,
            "asset": asset_id,
            "before": first - following * minute,
            "first": first,
            "end": end,
            "now": now,
            "hold": HOLD_SECONDS,
            "limit": MOST_MADE_MINUTES + 1,
        },
    ).fetchall()
    minutes = [bucket for (bucket,) in reversed(rows)]
    if len(minutes) <= MOST_MADE_MINUTES:
        return _Due(minutes, list(_join(minutes)))
    made = minutes[1:]
    return _Due(made, [(first, made[-1] + minute)])


def _join(minutes: Sequence[datetime]) -> Iterator[tuple[datetime, datetime]]:
    """Yield the times that minutes in order fill."""
    begun = previous = None
    for each in minutes:
        if begun is None or previous is None or each > previous + timedelta(minutes=1):
            if begun is not None and previous is not None:
                yield begun, previous + timedelta(minutes=1)
            begun = each
        previous = each
    if begun is not None and previous is not None:
        yield begun, previous + timedelta(minutes=1)


_MADE = MINUTES.replace("%(first)s", "%(made_first)s").replace("%(end)s", "%(made_end)s")
_MADE = _MADE.replace("%(buckets)s", "%(minutes)s")


class _StoredSelects(NamedTuple):
    """SELECTs of roll-ups, all columns; the second with minutes that are made in their place."""

    alone: str
    with_made: str


_STORED = {
    TelemetrySource.MINUTES: _StoredSelects(
        "select * from telemetry_1m "
        "where asset_id = %(asset)s and bucket >= %(first)s and bucket < %(end)s",
        """
        select m.* from telemetry_1m m
        where asset_id = %(asset)s and bucket >= %(first)s and bucket < %(end)s
          and not exists (select from unnest(%(minutes)s::timestamptz[]) n where n = m.bucket)
        union all {made}
        """,
    ),
    TelemetrySource.QUARTERS: _StoredSelects(
        "select * from telemetry_15m "
        "where asset_id = %(asset)s and bucket >= %(first)s and bucket < %(end)s",
        """
        select q.* from telemetry_15m q
        where asset_id = %(asset)s and bucket >= %(first)s and bucket < %(end)s
          and not exists (
            select from unnest(%(minutes)s::timestamptz[]) n
            where date_bin('15 minutes', n, timestamptz 'epoch') = q.bucket
          )
        union all
        select m.* from (
          select distinct date_bin('15 minutes', n, timestamptz 'epoch') as bucket
          from unnest(%(minutes)s::timestamptz[]) n
        ) q
        join telemetry_1m m on m.asset_id = %(asset)s
          and m.bucket >= q.bucket and m.bucket < q.bucket + interval '15 minutes'
          and m.bucket >= %(first)s and m.bucket < %(end)s
        where not exists (select from unnest(%(minutes)s::timestamptz[]) n where n = m.bucket)
        union all {made}
        """,
    ),
}
_COMBINED = {
    "mean": "sum({it}_mean * {it}_samples) / nullif(sum({it}_samples), 0)",
    "min": "min({it}_min)",
    "max": "max({it}_max)",
    "sum": "sum({it})",
}


def _stored(
    asset_id: int,
    resolution: TimeResolution,
    first: datetime,
    end: datetime,
    made: Sequence[datetime],
) -> _Statement:
    """Return the SELECT of what steps are made of."""
    facts = {
        "asset": asset_id,
        "first": first,
        "end": end,
        "step": timedelta(seconds=resolution.step_seconds),
    }
    stored = _STORED[resolution.source]
    if not made:
        return stored.alone, facts
    return stored.with_made.replace("{made}", _MADE), facts | {
        "hold": HOLD_SECONDS,
        "minutes": list(made),
        "assets": [asset_id] * len(made),
        "made_first": made[0] - timedelta(seconds=HOLD_SECONDS),
        "made_end": made[-1] + timedelta(minutes=1),
    }


def _steps(stored: str, quantities: Sequence[str], time: str, *others: str) -> str:
    combined = [
        f'{_COMBINED[what].format(it=each)} as "{to_camel(f"{each}_{what}")}"'
        for each in quantities
        for what in ROLLED_UP[_known(each, ROLLED_UP)]
    ]
    return (
        f"select {', '.join([time.format(it='step') + ' as time', *combined, *others])} from ("  # noqa: S608
        f"select *, date_bin(%(step)s, bucket, timestamptz 'epoch') as step from ({stored}) stored"
        ") binned group by step order by step"
    )


def _copy(connection: psycopg.Connection, text: str, facts: dict[str, Any]) -> bytes:
    statement = f"copy ({text}) to stdout (format csv, header)".encode()
    with connection.cursor() as cursor, cursor.copy(statement, facts) as copy:
        return b"".join(bytes(part) for part in copy)


def _columns(
    rows: Sequence[tuple[Any, ...]], names: Sequence[str]
) -> tuple[Sequence[int], dict[str, Sequence[float | None]]]:
    time_ms, *columns = zip(*rows, strict=True) if rows else ((), *(() for _ in names))
    return time_ms, dict(zip(names, columns, strict=True))


def _known(name: str, among: Any) -> str:
    """Return a name for use in a statement; only our own names pass."""
    if name not in among:
        raise ValueError("no column of ours")
    return name
