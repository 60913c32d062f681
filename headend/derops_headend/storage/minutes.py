"""How a minute is made of its samples, for the roll-ups and for answers that come before them."""

HOLD_SECONDS = 120
"""A sample's power counts until the next sample, at most this long: beyond, nothing is known."""

_ROLLED_UP = (
    "active_power_watts",
    "reactive_power_vars",
    "voltage_volts",
    "frequency_hertz",
    "state_of_charge_percent",
    "temperature_celsius",
)
_SANE = "case when abs(t.{it}) < 1e-30 then 0 when abs(t.{it}) <= 1e30 then t.{it} end"
"""A value that can be summed and divided: PostgreSQL refuses an overflow or underflow."""

MINUTES = """
    select asset_id, bucket,
      count(*) filter (where inside),
      count(active_power_watts) filter (where inside),
      avg(active_power_watts) filter (where inside),
      min(active_power_watts) filter (where inside),
      max(active_power_watts) filter (where inside),
      sum(greatest(active_power_watts, 0) * held_seconds) / 3600,
      sum(greatest(-active_power_watts, 0) * held_seconds) / 3600,
      count(reactive_power_vars) filter (where inside),
      avg(reactive_power_vars) filter (where inside),
      count(voltage_volts) filter (where inside),
      avg(voltage_volts) filter (where inside),
      min(voltage_volts) filter (where inside),
      max(voltage_volts) filter (where inside),
      count(frequency_hertz) filter (where inside),
      avg(frequency_hertz) filter (where inside),
      count(state_of_charge_percent) filter (where inside),
      avg(state_of_charge_percent) filter (where inside),
      min(state_of_charge_percent) filter (where inside),
      max(state_of_charge_percent) filter (where inside),
      max(temperature_celsius) filter (where inside)
    from (
      select w.asset_id, w.bucket, s.*,
        case when s.active_power_watts is not null then greatest(0, date_part('epoch',
          least(s.next_ts, s.ts + make_interval(secs => %(hold)s), w.bucket + interval '1 minute')
          - greatest(s.ts, w.bucket))) end as held_seconds
      from unnest(%(assets)s::int8[], %(buckets)s::timestamptz[]) as w (asset_id, bucket)
      cross join lateral (
        select *, lead(ts) over (partition by active_power_watts is null order by ts) as next_ts
        from (
          (select {columns}, false as inside from telemetry t
          where t.ts >= %(first)s and t.ts < %(end)s
            and t.asset_id = w.asset_id and {sane} is not null
            and t.ts < w.bucket and t.ts > w.bucket - make_interval(secs => %(hold)s)
          order by t.ts desc limit 1)
          union all
          select {columns}, true from telemetry t
          where t.ts >= %(first)s and t.ts < %(end)s
            and t.asset_id = w.asset_id
            and t.ts >= w.bucket and t.ts < w.bucket + interval '1 minute'
        ) t
      ) s
    ) held
    group by asset_id, bucket
    having bool_or(inside or held_seconds > 0)
"""
MINUTES = MINUTES.replace("{sane}", _SANE.replace("{it}", "active_power_watts")).replace(
    "{columns}",
    ", ".join(["t.ts", *(f"{_SANE.replace('{it}', column)} as {column}" for column in _ROLLED_UP)]),
)
"""Makes rows of ``telemetry_1m`` of arrays ``assets`` and ``buckets``. ``first`` is the earliest
less ``hold`` (s), ``end`` the end of the last: with these, all other days are out of the plan."""
