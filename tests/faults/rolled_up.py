"""Roll-ups against the samples that they are of, each computed by SQL of its own."""

from datetime import UTC, datetime, timedelta
from typing import LiteralString

import psycopg
from tests.faults.checker import Violation

from derops_headend.storage.roll_ups import roll_up

_OF_SAMPLES: LiteralString = """
    with power as (
      select *, case when abs(active_power_watts) <= 1e30 then active_power_watts end as watts
      from telemetry
    ), counted as (
      select asset_id, date_bin({width}, ts, 'epoch') as bucket, count(*) as samples,
        avg(watts) as mean, min(watts) as least, max(watts) as most
      from power group by 1, 2
    )
    select coalesce(counted.asset_id, made.asset_id), coalesce(counted.bucket, made.bucket)
    from counted full join (select * from {table} where samples > 0) made using (asset_id, bucket)
    where (counted.samples, least, most) is distinct from
        (made.samples::bigint, active_power_watts_min, active_power_watts_max)
      or abs(mean - active_power_watts_mean) > 1e-9 * (1 + abs(mean))
      or (mean is null) <> (active_power_watts_mean is null)
"""
_OF_ENERGY: LiteralString = """
    with power as (
      select asset_id, ts,
        case when abs(active_power_watts) < 1e-30 then 0 else active_power_watts end as watts
      from telemetry where abs(active_power_watts) <= 1e30
    ), held as (
      select asset_id, watts, date_part('epoch', least(
          lead(ts) over (partition by asset_id order by ts), ts + interval '120 seconds'
        ) - ts) / 3600 as hours
      from power
    ), counted as (
      select asset_id, sum(greatest(watts, 0) * hours) as injected,
        sum(greatest(-watts, 0) * hours) as absorbed
      from held group by 1
    ), made as (
      select asset_id, sum(energy_injected_watt_hours) as injected,
        sum(energy_absorbed_watt_hours) as absorbed
      from {table} group by 1
    )
    select asset_id, made.injected, counted.injected
    from counted full join made using (asset_id)
    where not coalesce(abs(made.injected - counted.injected) <= 1e-9 * (1 + counted.injected)
      and abs(made.absorbed - counted.absorbed) <= 1e-9 * (1 + counted.absorbed), false)
"""
_WIDTHS: dict[LiteralString, LiteralString] = {
    "telemetry_1m": "interval '1 minute'",
    "telemetry_15m": "interval '15 minutes'",
}


def wrong_roll_ups(url: str) -> list[Violation]:
    """Make all roll-ups that are due, also those of the future; return which are wrong. Blocks.

    The writer may run, and stores nothing meanwhile.
    """
    later = datetime.now(UTC) + timedelta(days=3)
    found = []
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute("select 1 from roll_up_due limit 1").fetchone():
            roll_up(connection, later, 500)
        for table, width in _WIDTHS.items():
            for text in (_OF_SAMPLES, _OF_ENERGY):
                query = text.replace("{table}", table).replace("{width}", width)
                found += [
                    Violation(kind="rolled up wrongly", asset_uid="", detail=f"{table}: {row}")
                    for row in connection.execute(query)
                ]
    return found
