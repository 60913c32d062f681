"""Roll-ups of one and fifteen minutes, made again wherever samples came late.

The transaction that stores samples notes their minutes. This module makes those minutes from all
their samples, so that samples may arrive in any order.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import psycopg
from numpy.typing import NDArray

from derops_headend.storage.minutes import HOLD_SECONDS, MINUTES
from derops_headend.writing.rows import Samples

SETTLE_SECONDS = 180
"""A minute is rolled up this long after its end, when most of what belongs to it has arrived."""

_MINUTE_US = 60_000_000
_MINUTE_BITS = 32
"""Enough for the minutes between any two times that samples may have."""

_LOCK = 0x726F6C6C7570  # "rollup"

_MARK = """
    insert into roll_up_due as due (asset_id, bucket)
    select asset_id, timestamptz 'epoch' + bucket_us * interval '1 microsecond'
    from unnest(%s::int8[], %s::int8[]) as touched (asset_id, bucket_us)
    order by asset_id, bucket_us
    on conflict (asset_id, bucket) do update set bucket = due.bucket
"""
# The update changes nothing and locks the row: a roll-up that cannot see our samples yet must not
# take the note away.

_TAKE = """
    with due as (
      delete from roll_up_due where (asset_id, bucket) in (
        select asset_id, bucket from roll_up_due
        where bucket < %(now)s - make_interval(secs => %(settle)s)
          and bucket < (select min(bucket) from roll_up_due) + interval '1 day'
        order by bucket limit %(limit)s for update skip locked
      ) returning asset_id, bucket
    ), wanted as (
      select asset_id, bucket from due
      union
      -- The last sample of a minute is held into those that follow. Where they are not noted
      -- themselves, they have no samples or were made before this one came.
      select asset_id, due.bucket + n * interval '1 minute'
      from due, generate_series(1, %(following)s) n
      where not exists (
        select from roll_up_due other
        where other.asset_id = due.asset_id
          and other.bucket = due.bucket + n * interval '1 minute'
      )
    ), possible as (
      select asset_id, bucket from wanted, retention
      where bucket >= dropped_before + make_interval(secs => %(hold)s)
    )
    select (select count(*) from due), array_agg(asset_id), array_agg(bucket),
      min(bucket) - make_interval(secs => %(hold)s), max(bucket) + interval '1 minute'
    from possible
"""
_CLEAR = """
    delete from {table} m using unnest(%(assets)s::int8[], %(buckets)s::timestamptz[])
      as w (asset_id, bucket)
    where m.asset_id = w.asset_id and m.bucket = w.bucket
"""
_MINUTES = f"insert into telemetry_1m {MINUTES}"
_QUARTERS_OF = """
    select array_agg(asset_id), array_agg(bucket) from (
      select distinct asset_id, date_bin('15 minutes', bucket, timestamptz 'epoch') as bucket
      from unnest(%(assets)s::int8[], %(buckets)s::timestamptz[]) as w (asset_id, bucket)
    ) quarters
"""
_QUARTERS = """
    insert into telemetry_15m
    select q.asset_id, q.bucket, sum(samples),
      sum(active_power_watts_samples),
      sum(active_power_watts_mean * active_power_watts_samples)
        / nullif(sum(active_power_watts_samples), 0),
      min(active_power_watts_min), max(active_power_watts_max),
      sum(energy_injected_watt_hours), sum(energy_absorbed_watt_hours),
      sum(reactive_power_vars_samples),
      sum(reactive_power_vars_mean * reactive_power_vars_samples)
        / nullif(sum(reactive_power_vars_samples), 0),
      sum(voltage_volts_samples),
      sum(voltage_volts_mean * voltage_volts_samples) / nullif(sum(voltage_volts_samples), 0),
      min(voltage_volts_min), max(voltage_volts_max),
      sum(frequency_hertz_samples),
      sum(frequency_hertz_mean * frequency_hertz_samples)
        / nullif(sum(frequency_hertz_samples), 0),
      sum(state_of_charge_percent_samples),
      sum(state_of_charge_percent_mean * state_of_charge_percent_samples)
        / nullif(sum(state_of_charge_percent_samples), 0),
      min(state_of_charge_percent_min), max(state_of_charge_percent_max),
      max(temperature_celsius_max)
    from unnest(%(assets)s::int8[], %(buckets)s::timestamptz[]) as q (asset_id, bucket)
    join telemetry_1m m on m.asset_id = q.asset_id
      and m.bucket >= q.bucket and m.bucket < q.bucket + interval '15 minutes'
    group by q.asset_id, q.bucket
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """Minutes whose samples change, one row each."""

    asset_ids: NDArray[np.int64]
    bucket_us: NDArray[np.int64]


def minutes_of(samples: Samples, asset_ids: NDArray[np.int64]) -> Touched:
    """Return the minutes that samples lie in, each once.

    Args:
        samples: The rows.
        asset_ids: The database's id for each asset index of the samples.
    """
    minutes = samples.ts_us // _MINUTE_US
    first = minutes.min()
    # One number for both, as numpy sorts numbers far faster than pairs.
    keys = (samples.asset.astype("i8") << _MINUTE_BITS) + (minutes - first)
    changes = np.flatnonzero(keys[1:] != keys[:-1]) + 1  # samples of a minute lie side by side
    keys = np.unique(keys[np.concatenate(([0], changes))])
    return Touched(
        asset_ids=asset_ids[keys >> _MINUTE_BITS],
        bucket_us=((keys & ((1 << _MINUTE_BITS) - 1)) + first) * _MINUTE_US,
    )


def mark(connection: psycopg.Connection, touched: Touched) -> None:
    """Note minutes in the transaction that changes them."""
    connection.execute(_MARK, (touched.asset_ids.tolist(), touched.bucket_us.tolist()))


def roll_up(connection: psycopg.Connection, now: datetime, limit: int) -> int:
    """Make the roll-ups of up to ``limit`` noted minutes; return how many.

    The oldest first, of one day at a time: with the limits of a day, all other partitions are out
    of the plan, which makes it twenty times faster where there are ninety.

    All is one transaction, so that a crash in between loses nothing. One connection works at a time
    and the others return 0: two would each make a quarter of an hour from half of its minutes.
    """
    facts = {
        "now": now,
        "limit": limit,
        "settle": 60 + SETTLE_SECONDS,
        "following": -(-HOLD_SECONDS // 60),
        "hold": HOLD_SECONDS,
    }
    with connection.transaction():
        (mine,) = connection.execute(
            "select pg_try_advisory_xact_lock(%s)", (_LOCK,)
        ).fetchone() or (False,)
        if not mine:
            return 0
        taken = connection.execute(_TAKE, facts).fetchone() or (0, None, None, None, None)
        done, assets, buckets, first, end = taken
        if assets:
            facts |= {"assets": assets, "buckets": buckets, "first": first, "end": end}
            connection.execute(_CLEAR.format(table="telemetry_1m").encode(), facts)
            connection.execute(_MINUTES.encode(), facts, prepare=False)
            assets, buckets = connection.execute(_QUARTERS_OF, facts).fetchone() or ([], [])
            facts |= {"assets": assets, "buckets": buckets}
            connection.execute(_CLEAR.format(table="telemetry_15m").encode(), facts)
            connection.execute(_QUARTERS, facts)
    return int(done)


def oldest_due(connection: psycopg.Connection) -> datetime | None:
    """Return the first minute that is to be made and can be, if there is any."""
    row = connection.execute(
        "select min(bucket) from roll_up_due where bucket >= "
        "(select dropped_before + make_interval(secs => %s) from retention)",
        (HOLD_SECONDS,),
    ).fetchone()
    return row[0] if row else None
