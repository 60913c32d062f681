"""What was measured: the newest of many assets, and all of one between two times.

Each function takes a connection with a transaction that sees one state. Times are aware. ``None``
is what was not measured. Statements name asset and time, which keeps them to few days and one key.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psycopg

from derops_headend.storage.minutes import HOLD_SECONDS, MINUTES
from derops_headend.storage.resolution import Resolution, Source

QUANTITIES = (
    "active_power_watts",
    "reactive_power_vars",
    "voltage_volts",
    "frequency_hertz",
    "state_of_charge_percent",
    "energy_injected_watt_hours",
    "energy_absorbed_watt_hours",
    "temperature_celsius",
    "setpoint_watts",
    "max_generation_watts",
    "max_load_watts",
    "available_power_watts",
    "clock_offset_seconds",
)
"""Columns of ``telemetry`` that may be empty."""

ROLLED_UP: dict[str, tuple[str, ...]] = {
    "active_power_watts": ("mean", "min", "max"),
    "reactive_power_vars": ("mean",),
    "voltage_volts": ("mean", "min", "max"),
    "frequency_hertz": ("mean",),
    "state_of_charge_percent": ("mean", "min", "max"),
    "energy_injected_watt_hours": ("sum",),
    "energy_absorbed_watt_hours": ("sum",),
    "temperature_celsius": ("max",),
}
"""What the roll-ups have of each quantity. Energy is made from power."""

MOST_UIDS = 100
"""Of one name."""

MOST_MADE_MINUTES = 5_000
"""Made for one answer because they are not rolled up yet; older ones are told as they are."""

NEWEST_WITHIN = (timedelta(hours=1), timedelta(days=2))
"""How far back the newest samples of many assets are looked for; for most the first is enough."""


class Key(NamedTuple):
    """An asset. Agents of another name may have stored rows under the same uid: all three count."""

    namespace: str
    name: str
    uid: str


class Life(NamedTuple):
    """An asset of a name; another one may have had the name before."""

    asset_id: int
    uid: str


class Newest(NamedTuple):
    """The newest sample of an asset that is not from the future."""

    at: datetime
    """By the agent's clock."""
    age_seconds: float
    received_at: datetime
    values: dict[str, float | None]
    """By column of ``telemetry``."""


class Series(NamedTuple):
    """Points of one asset, by column, in order of time."""

    time_ms: Sequence[int]
    """Since 1970: of a sample, or of the beginning of a step."""
    columns: dict[str, Sequence[float | None]]
    """A quantity, or with its roll-up as ``voltage_volts_mean``."""
    provisional: list[tuple[datetime, datetime]]
    """Times whose roll-ups are made of what has come so far, and will be made again."""


def find_lives(connection: psycopg.Connection, namespace: str, name: str) -> list[Life]:
    """Return the assets that had a name, the newest first; at most ``MOST_UIDS``."""
    rows = connection.execute(
        "select asset_id, uid from asset where namespace = %s and name = %s and uid <> '' "
        "order by asset_id desc limit %s",
        (namespace, name, MOST_UIDS),
    ).fetchall()
    return [Life(*row) for row in rows]


_NEWEST = f"""
    select a.uid, t.ts, t.received_at, {", ".join(f"t.{each}" for each in QUANTITIES)}
    from unnest(%(namespaces)s::text[], %(names)s::text[], %(uids)s::text[])
      as wanted (namespace, name, uid)
    join asset a using (namespace, name, uid)
    cross join lateral (
      select * from telemetry t
      where t.asset_id = a.asset_id and t.ts > %(after)s and t.ts <= %(now)s
      order by t.ts desc limit 1
    ) t
"""  # noqa: S608  # our own names


def find_newest(
    connection: psycopg.Connection,
    keys: Sequence[Key],
    now: datetime,
    within: Sequence[timedelta] = NEWEST_WITHIN,
) -> dict[str, Newest]:
    """Return the newest sample of each asset by uid, of those that have one.

    Args:
        connection: With a transaction.
        keys: The assets, each once.
        now: What is later is from the future, and does not count yet.
        within: How long ago at most it is looked for, from short to long.
    """
    found: dict[str, Newest] = {}
    for age in within:
        missing = [key for key in keys if key.uid not in found]
        if not missing:
            break
        namespaces, names, uids = (list(column) for column in zip(*missing, strict=True))
        facts = {"namespaces": namespaces, "names": names, "uids": uids}
        rows = connection.execute(
            _NEWEST.encode(), {**facts, "after": now - age, "now": now}, prepare=False, binary=True
        )
        for uid, ts, received_at, *values in rows:
            found[uid] = Newest(
                at=ts,
                age_seconds=(now - ts).total_seconds(),
                received_at=received_at,
                values=dict(zip(QUANTITIES, values, strict=True)),
            )
    return found


def read_samples(
    connection: psycopg.Connection,
    asset_id: int,
    quantities: Sequence[str],
    first: datetime,
    end: datetime,
    limit: int,
) -> Series:
    """Return samples from ``first`` up to but without ``end``; at most the first ``limit``."""
    columns = ", ".join(_known(each, QUANTITIES) for each in quantities)
    rows = connection.execute(
        f"select floor(extract(epoch from ts) * 1000)::bigint, {columns} from telemetry "  # noqa: S608
        "where asset_id = %s and ts >= %s and ts < %s order by ts limit %s".encode(),
        (asset_id, first, end, limit),
        prepare=False,
        binary=True,
    ).fetchall()
    return _series(rows, quantities, [])


def read_steps(
    connection: psycopg.Connection,
    asset_id: int,
    quantities: Sequence[str],
    resolution: Resolution,
    first: datetime,
    end: datetime,
    now: datetime,
) -> Series:
    """Return steps of roll-ups; minutes that are not rolled up yet are made of their samples.

    Args:
        connection: With a transaction.
        asset_id: In the database.
        quantities: Of those in ``ROLLED_UP``.
        resolution: Not raw.
        first: The beginning of the first step.
        end: The end of the last one.
        now: No minute that begins later is made.
    """
    due = _find_due(connection, asset_id, first, end, now)
    facts = {
        "asset": asset_id,
        "first": first,
        "end": end,
        "step": timedelta(seconds=resolution.step_seconds),
        "hold": HOLD_SECONDS,
        "minutes": due.made,
        "assets": [asset_id] * len(due.made),
    }
    stored, text = _STORED[resolution.source], ""
    if due.made:
        text = stored.with_made.replace("{made}", _MADE)
        made_first = due.made[0] - timedelta(seconds=HOLD_SECONDS)
        facts |= {"made_first": made_first, "made_end": due.made[-1] + timedelta(minutes=1)}
    rows = connection.execute(
        _steps_sql(text or stored.alone, quantities), facts, prepare=False, binary=True
    ).fetchall()
    names = [f"{each}_{what}" for each in quantities for what in ROLLED_UP[each]]
    return _series(rows, names, due.ranges)


class _Due(NamedTuple):
    made: list[datetime]
    """Minutes to be made of their samples, in order."""
    ranges: list[tuple[datetime, datetime]]


def _find_due(
    connection: psycopg.Connection, asset_id: int, first: datetime, end: datetime, now: datetime
) -> _Due:
    """Return the minutes between two times whose roll-ups are not what their samples say."""
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


class _Stored(NamedTuple):
    """SELECTs of roll-ups, all columns; the second with minutes that are made in their place."""

    alone: str
    with_made: str


_STORED = {
    Source.MINUTES: _Stored(
        "select * from telemetry_1m "
        "where asset_id = %(asset)s and bucket >= %(first)s and bucket < %(end)s",
        """
        select m.* from telemetry_1m m
        where asset_id = %(asset)s and bucket >= %(first)s and bucket < %(end)s
          and not exists (select from unnest(%(minutes)s::timestamptz[]) n where n = m.bucket)
        union all {made}
        """,
    ),
    Source.QUARTERS: _Stored(
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


def _steps_sql(stored: str, quantities: Sequence[str]) -> bytes:
    columns = ", ".join(
        _COMBINED[what].format(it=_known(each, ROLLED_UP))
        for each in quantities
        for what in ROLLED_UP[each]
    )
    text = (
        "select floor(extract(epoch from date_bin(%(step)s, bucket, timestamptz 'epoch')) * 1000)"  # noqa: S608
        f"::bigint as step, {columns} from ({stored}) stored group by step order by step"
    )
    return text.encode()


def _series(
    rows: Sequence[tuple[Any, ...]],
    names: Sequence[str],
    provisional: list[tuple[datetime, datetime]],
) -> Series:
    time_ms, *columns = zip(*rows, strict=True) if rows else ((), *(() for _ in names))
    return Series(time_ms, dict(zip(names, columns, strict=True)), provisional)


def _known(name: str, among: Any) -> str:
    """Return a name that becomes part of a statement: one of ours, whoever asked."""
    if name not in among:
        raise ValueError("no column of ours")
    return name
