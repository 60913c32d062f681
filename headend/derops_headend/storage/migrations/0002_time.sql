-- Telemetry by day, and its roll-ups.

-- The gateway's clock less the agent's when the sample arrived; empty = within 5 s, or not known.
alter table telemetry add column clock_offset_seconds double precision;

-- The partitions of one day; only where telemetry is partitioned natively.
-- Attaching instead of creating in place lets readers and writers go on meanwhile.
create function ensure_telemetry_day(day date) returns void language plpgsql as $$
declare
  parent text;
  partition text;
begin
  perform pg_advisory_xact_lock(hashtext('ensure_telemetry_day'));  -- writers take turns
  foreach parent in array array['telemetry', 'measurement'] loop
    partition := parent || to_char(day, '_YYYYMMDD');
    if to_regclass(partition) is null then
      execute format('create table %I (like %I including all)', partition, parent);
      execute format(
        'alter table %I attach partition %I for values from (%L) to (%L)', parent, partition,
        day::timestamp at time zone 'UTC', (day + 1)::timestamp at time zone 'UTC'
      );
    end if;
  end loop;
end
$$;

do $$
declare
  parent text;
  found date;
begin
  foreach parent in array array['telemetry', 'measurement'] loop
    if exists (select from pg_extension where extname = 'timescaledb') then
      perform create_hypertable(
        parent::regclass, by_range('ts', interval '1 day'),
        create_default_indexes => false, migrate_data => true
      );
    else
      execute format('alter table %1$I rename to %1$s_before', parent);
      execute format('alter index %1$s_pkey rename to %1$s_before_pkey', parent);
      execute format('create table %1$I (like %1$s_before) partition by range (ts)', parent);
    end if;
  end loop;
  if exists (select from pg_extension where extname = 'timescaledb') then
    return;
  end if;
  alter table telemetry add primary key (asset_id, ts);
  alter table measurement add primary key (asset_id, name, ts);
  for found in
    select (ts at time zone 'UTC')::date from telemetry_before
    union
    select (ts at time zone 'UTC')::date from measurement_before
  loop
    perform ensure_telemetry_day(found);
  end loop;
  insert into telemetry select * from telemetry_before;
  insert into measurement select * from measurement_before;
  drop table telemetry_before, measurement_before;
end
$$;

-- Each minute that has samples, or energy of a sample before it. A mean without its number of samples
-- would not add up: a quarter of an hour is made from its minutes.
create table telemetry_1m (
  asset_id bigint not null,
  bucket timestamptz not null,
  samples integer not null,
  active_power_watts_samples integer not null,
  active_power_watts_mean double precision,
  active_power_watts_min double precision,
  active_power_watts_max double precision,
  -- Each sample's power held until the next one, at most 120 s. Empty = not known.
  energy_injected_watt_hours double precision,
  energy_absorbed_watt_hours double precision,
  reactive_power_vars_samples integer not null,
  reactive_power_vars_mean double precision,
  voltage_volts_samples integer not null,
  voltage_volts_mean double precision,
  voltage_volts_min double precision,
  voltage_volts_max double precision,
  frequency_hertz_samples integer not null,
  frequency_hertz_mean double precision,
  state_of_charge_percent_samples integer not null,
  state_of_charge_percent_mean double precision,
  state_of_charge_percent_min double precision,
  state_of_charge_percent_max double precision,
  temperature_celsius_max double precision,
  primary key (asset_id, bucket)
);
create table telemetry_15m (like telemetry_1m including all);

-- Minutes whose roll-up is not what their samples say.
create table roll_up_due (
  asset_id bigint not null,
  bucket timestamptz not null,
  primary key (asset_id, bucket)
);
create index on roll_up_due (bucket);

-- Where retention has been. Roll-ups of what was dropped stay as they are, whatever comes later.
create table retention (
  only_row boolean primary key default true check (only_row),
  dropped_before timestamptz not null
);
insert into retention (dropped_before) values ('-infinity');
insert into roll_up_due select distinct asset_id, date_trunc('minute', ts) from telemetry;
