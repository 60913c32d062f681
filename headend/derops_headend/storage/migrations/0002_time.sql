-- Telemetry by day, and its roll-ups.

-- How far the agent's clock was off when the sample arrived; empty = within 5 s.
alter table telemetry add column clock_offset_seconds double precision;

-- The partition of one day; only where telemetry is partitioned natively.
create function ensure_telemetry_day(day date) returns boolean language plpgsql as $$
declare
  partition text := 'telemetry_' || to_char(day, 'YYYYMMDD');
begin
  if to_regclass(partition) is not null then
    return false;
  end if;
  perform pg_advisory_xact_lock(hashtext('ensure_telemetry_day'));  -- writers take turns
  if to_regclass(partition) is not null then
    return false;
  end if;
  execute format(
    'create table %I partition of telemetry for values from (%L) to (%L)',
    partition, day::timestamp at time zone 'UTC', (day + 1)::timestamp at time zone 'UTC'
  );
  return true;
end
$$;

do $$
declare
  found date;
begin
  if exists (select from pg_extension where extname = 'timescaledb') then
    perform create_hypertable(
      'telemetry', by_range('ts', interval '1 day'),
      create_default_indexes => false, migrate_data => true
    );
    return;
  end if;
  alter table telemetry rename to telemetry_before;
  alter table telemetry_before rename constraint telemetry_pkey to telemetry_before_pkey;
  create table telemetry (like telemetry_before including defaults) partition by range (ts);
  alter table telemetry add primary key (asset_id, ts);
  for found in select distinct (ts at time zone 'UTC')::date from telemetry_before loop
    perform ensure_telemetry_day(found);
  end loop;
  insert into telemetry select * from telemetry_before;
  drop table telemetry_before;
end
$$;

-- Means, extremes and energy of each minute that has samples. Energy is the power of each sample held
-- until the next one, at most 120 s, within the minute.
create table telemetry_1m (
  asset_id bigint not null,
  bucket timestamptz not null,
  samples integer not null,
  active_power_watts_mean double precision,
  active_power_watts_min double precision,
  active_power_watts_max double precision,
  energy_injected_watt_hours double precision,
  energy_absorbed_watt_hours double precision,
  reactive_power_vars_mean double precision,
  voltage_volts_mean double precision,
  voltage_volts_min double precision,
  voltage_volts_max double precision,
  frequency_hertz_mean double precision,
  state_of_charge_percent_mean double precision,
  state_of_charge_percent_min double precision,
  state_of_charge_percent_max double precision,
  temperature_celsius_max double precision,
  primary key (asset_id, bucket)
);
create table telemetry_15m (like telemetry_1m including all);

-- Minutes whose roll-up is not what their samples say; late = it may have been made before.
create table roll_up_due (
  asset_id bigint not null,
  bucket timestamptz not null,
  late boolean not null,
  primary key (asset_id, bucket)
);
create index on roll_up_due (bucket);
