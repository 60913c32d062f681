"""Roll-ups of one and fifteen minutes, made again wherever samples came late.

The transaction that stores samples notes the minutes they lie in; here those minutes are made from
all their samples, so that the order in which samples arrive does not matter.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import psycopg
from numpy.typing import NDArray

from derops_headend.writing.rows import Array

HOLD_SECONDS = 120
"""A sample's power counts until the next sample, at most this long: beyond, nothing is known."""

SETTLE_SECONDS = 180
"""A minute is rolled up this long after its end, when most of what belongs to it has arrived."""

_MINUTE_US = 60_000_000
_NEIGHBOURS = -(-HOLD_SECONDS // 60)

_MARK = """
    insert into roll_up_due (asset_id, bucket, late)
    select asset_id, timestamptz 'epoch' + bucket_us * interval '1 microsecond', late
    from unnest(%s::int8[], %s::int8[], %s::bool[]) as due (asset_id, bucket_us, late)
    order by asset_id, bucket_us
    on conflict (asset_id, bucket) do update set late = roll_up_due.late or excluded.late
"""
# Updating even where nothing changes holds the row: a roll-up that cannot see our samples yet must
# not take the note away.

_TAKE = """
    with due as (
      delete from roll_up_due where (asset_id, bucket) in (
        select asset_id, bucket from roll_up_due
        where bucket < %(now)s - make_interval(secs => %(settle)s)
        order by bucket limit %(limit)s for update skip locked
      ) returning asset_id, bucket, late
    ), wanted as (
      select asset_id, bucket from due
      union
      -- A late sample also ends, or prolongs, the hold of samples in the minutes around it.
      select asset_id, bucket + n * interval '1 minute'
      from due, generate_series(-%(around)s::int, %(around)s::int) n where late
    )
    select (select count(*) from due), array_agg(asset_id), array_agg(bucket) from wanted
"""
_CLEAR = """
    delete from {table} m using unnest(%(assets)s::int8[], %(buckets)s::timestamptz[])
      as w (asset_id, bucket)
    where m.asset_id = w.asset_id and m.bucket = w.bucket
"""
_MINUTES = """
    insert into telemetry_1m
    select asset_id, bucket,
      count(*) filter (where inside),
      avg(active_power_watts) filter (where inside),
      min(active_power_watts) filter (where inside),
      max(active_power_watts) filter (where inside),
      sum(greatest(active_power_watts, 0) * held_seconds) / 3600,
      sum(greatest(-active_power_watts, 0) * held_seconds) / 3600,
      avg(reactive_power_vars) filter (where inside),
      avg(voltage_volts) filter (where inside),
      min(voltage_volts) filter (where inside),
      max(voltage_volts) filter (where inside),
      avg(frequency_hertz) filter (where inside),
      avg(state_of_charge_percent) filter (where inside),
      min(state_of_charge_percent) filter (where inside),
      max(state_of_charge_percent) filter (where inside),
      max(temperature_celsius) filter (where inside)
    from (
      select w.asset_id, w.bucket, s.*,
        s.ts >= w.bucket and s.ts < w.bucket + interval '1 minute' as inside,
        greatest(0, extract(epoch from
          least(s.next_ts, s.ts + make_interval(secs => %(hold)s), w.bucket + interval '1 minute')
          - greatest(s.ts, w.bucket))) as held_seconds
      from unnest(%(assets)s::int8[], %(buckets)s::timestamptz[]) as w (asset_id, bucket)
      cross join lateral (
        select t.*, lead(t.ts) over (order by t.ts) as next_ts from telemetry t
        where t.asset_id = w.asset_id
          and t.ts >= w.bucket - make_interval(secs => %(hold)s)
          and t.ts < w.bucket + make_interval(secs => 60 + %(hold)s)
      ) s (asset_id_of_sample)
    ) held
    group by asset_id, bucket
    having bool_or(inside or held_seconds > 0)
"""
_QUARTERS_OF = """
    select array_agg(asset_id), array_agg(bucket) from (
      select distinct asset_id, date_bin('15 minutes', bucket, timestamptz 'epoch') as bucket
      from unnest(%(assets)s::int8[], %(buckets)s::timestamptz[]) as w (asset_id, bucket)
    ) quarters
"""
_QUARTERS = """
    insert into telemetry_15m
    select q.asset_id, q.bucket, sum(samples),
      sum(active_power_watts_mean * samples)
        / nullif(sum(samples) filter (where active_power_watts_mean is not null), 0),
      min(active_power_watts_min), max(active_power_watts_max),
      sum(energy_injected_watt_hours), sum(energy_absorbed_watt_hours),
      sum(reactive_power_vars_mean * samples)
        / nullif(sum(samples) filter (where reactive_power_vars_mean is not null), 0),
      sum(voltage_volts_mean * samples)
        / nullif(sum(samples) filter (where voltage_volts_mean is not null), 0),
      min(voltage_volts_min), max(voltage_volts_max),
      sum(frequency_hertz_mean * samples)
        / nullif(sum(samples) filter (where frequency_hertz_mean is not null), 0),
      sum(state_of_charge_percent_mean * samples)
        / nullif(sum(samples) filter (where state_of_charge_percent_mean is not null), 0),
      min(state_of_charge_percent_min), max(state_of_charge_percent_max),
      max(temperature_celsius_max)
    from unnest(%(assets)s::int8[], %(buckets)s::timestamptz[]) as q (asset_id, bucket)
    join telemetry_1m m on m.asset_id = q.asset_id
      and m.bucket >= q.bucket and m.bucket < q.bucket + interval '15 minutes'
    group by q.asset_id, q.bucket
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Minutes to roll up, one row each."""

    asset_ids: NDArray[np.int64]
    bucket_us: NDArray[np.int64]
    late: NDArray[np.bool_]


def minutes_of(samples: Array, asset_ids: NDArray[np.int64]) -> Due:
    """Return the minutes that samples lie in, each once.

    Args:
        samples: Of dtype ``SAMPLE``.
        asset_ids: The database's id for each asset index of the samples.
    """
    bucket_us = samples["ts_us"] // _MINUTE_US * _MINUTE_US
    late = samples["received_us"] > bucket_us + _MINUTE_US + SETTLE_SECONDS * 500_000
    keys = np.stack([asset_ids[samples["asset"]], bucket_us], axis=1)
    minutes, inverse = np.unique(keys, axis=0, return_inverse=True)
    any_late = np.zeros(len(minutes), bool)
    np.logical_or.at(any_late, inverse.reshape(-1), late)
    return Due(asset_ids=minutes[:, 0], bucket_us=minutes[:, 1], late=any_late)


def mark(connection: psycopg.Connection, due: Due) -> None:
    """Note minutes in the transaction that changes them."""
    connection.execute(
        _MARK,
        (
            due.asset_ids.tolist(),
            due.bucket_us.tolist(),
            due.late.tolist(),
        ),
    )


def roll_up(connection: psycopg.Connection, now: datetime, limit: int) -> int:
    """Make the roll-ups of up to ``limit`` noted minutes, oldest first; return how many.

    All of it in one transaction: what dies in between is made again.
    """
    facts = {
        "now": now,
        "limit": limit,
        "settle": 60 + SETTLE_SECONDS,
        "around": _NEIGHBOURS,
        "hold": HOLD_SECONDS,
    }
    with connection.transaction():
        done, assets, buckets = connection.execute(_TAKE, facts).fetchone() or (0, None, None)
        if assets:
            facts |= {"assets": assets, "buckets": buckets}
            connection.execute(_CLEAR.format(table="telemetry_1m").encode(), facts)
            connection.execute(_MINUTES, facts)
            assets, buckets = connection.execute(_QUARTERS_OF, facts).fetchone() or ([], [])
            facts |= {"assets": assets, "buckets": buckets}
            connection.execute(_CLEAR.format(table="telemetry_15m").encode(), facts)
            connection.execute(_QUARTERS, facts)
    return int(done)
