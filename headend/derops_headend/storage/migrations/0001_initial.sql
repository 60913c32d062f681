-- Assets, what they measured, and what became of their dispatches.
-- Positive power is injection into the grid. Empty columns were not measured or not said.

create table asset (
  asset_id bigint generated always as identity primary key,
  namespace text not null,
  name text not null,
  -- Tells re-created objects of one name apart; empty where a dispatch named an asset that was not there.
  uid text not null,
  first_seen_at timestamptz not null default now(),
  unique (namespace, name, uid)
);
create index on asset (uid);

create table telemetry (
  asset_id bigint not null,
  ts timestamptz not null,
  active_power_watts double precision,
  reactive_power_vars double precision,
  voltage_volts double precision,
  frequency_hertz double precision,
  state_of_charge_percent double precision,
  energy_injected_watt_hours double precision,
  energy_absorbed_watt_hours double precision,
  temperature_celsius double precision,
  setpoint_watts double precision,
  max_generation_watts double precision,
  max_load_watts double precision,
  available_power_watts double precision,
  received_at timestamptz not null,
  primary key (asset_id, ts)
);

create table measurement (
  asset_id bigint not null,
  name text not null,
  ts timestamptz not null,
  value double precision not null,
  primary key (asset_id, name, ts)
);

create table telemetry_gap (
  asset_id bigint not null,
  outbox_id text not null,
  sequence numeric(20) not null,
  from_at timestamptz not null,
  to_at timestamptz not null,
  samples bigint not null,
  reason text not null,
  received_at timestamptz not null,
  primary key (asset_id, outbox_id, sequence)
);

create table dispatch_event (
  -- UUIDv5 of dispatch, actor and transition: telling it again changes nothing.
  event_id uuid primary key,
  asset_id bigint not null,
  dispatch_uid text not null,
  dispatch_name text,
  actor text not null,
  phase text not null,
  reason text not null,
  message text not null,
  -- By the clock of the actor.
  at timestamptz not null,
  received_at timestamptz not null,
  -- The agent's latest report, with the transition that was the last in it.
  report jsonb,
  report_ledger_id text,
  report_sequence numeric(20),
  report_received_at timestamptz
);
create index on dispatch_event (dispatch_uid);
create index on dispatch_event (asset_id, at);

create table connection_event (
  log_id text not null,
  log_offset bigint not null,
  entry_index integer not null,
  asset_id bigint not null,
  event text not null,
  reason text not null,
  message text not null,
  epoch numeric(20) not null,
  peer text not null,
  serial_number text not null,
  replica text not null,
  at timestamptz not null,
  primary key (log_id, log_offset, entry_index)
);
create index on connection_event (asset_id, at);

-- What could not be stored as it should be, with the bytes as they were received.
create table quarantine (
  log_id text not null,
  log_offset bigint not null,
  entry_index integer not null,
  kind integer not null,
  namespace text not null,
  name text not null,
  uid text not null,
  reason text not null,
  detail text not null,
  body bytea not null,
  received_at timestamptz,
  at timestamptz not null default now(),
  primary key (log_id, log_offset, entry_index)
);

create table log_offset (
  log_id text not null,
  shard integer not null,
  committed_offset bigint not null,
  updated_at timestamptz not null default now(),
  primary key (log_id, shard)
);

create function from_microseconds(microseconds bigint) returns timestamptz
  language sql immutable strict parallel safe
  return case when microseconds > 0 and microseconds < 4102444800000000
    then timestamptz '1970-01-01 00:00:00+00' + microseconds * interval '1 microsecond' end;

-- One line for each dispatch: was it applied, when, for how long, and why did it end as it did.
-- The furthest phase stands, and of two terminal ones the first; facts are those of the latest report.
create view dispatch_history as
with ranked as (
  select *, case phase when 'Submitted' then 0 when 'Sent' then 1 when 'Acked' then 2
    when 'Active' then 3 else 4 end as rank
  from dispatch_event
), furthest as (
  select distinct on (dispatch_uid) *
  from ranked
  order by dispatch_uid, rank desc, case when rank = 4 then received_at end asc, received_at desc, at desc
), latest as (
  select distinct on (dispatch_uid) dispatch_uid, report_received_at, report
  from dispatch_event
  where report is not null
  order by dispatch_uid, report_received_at desc, report_sequence desc
), named as (
  select dispatch_uid, max(dispatch_name) as dispatch_name, min(at) as first_at
  from dispatch_event
  group by dispatch_uid
)
select
  furthest.dispatch_uid,
  asset.namespace,
  named.dispatch_name,
  asset.name as asset_name,
  asset.uid as asset_uid,
  furthest.phase,
  case
    when coalesce((latest.report->>'applied_us')::bigint, 0) > 0 then true
    when furthest.reason in ('LedgerLost', 'OutcomeUnknown') then null
    else false
  end as applied,
  furthest.reason,
  furthest.message,
  named.first_at,
  from_microseconds((latest.report->>'accepted_us')::bigint) as accepted_at,
  from_microseconds((latest.report->>'applied_us')::bigint) as applied_at,
  from_microseconds((latest.report->>'ended_us')::bigint) as ended_at,
  from_microseconds((latest.report->>'reverted_us')::bigint) as reverted_at,
  (latest.report->>'applied_watts')::bigint as applied_watts,
  (latest.report->>'active_milliseconds')::bigint / 1000.0 as active_seconds,
  (latest.report->>'within_tolerance_milliseconds')::bigint / 1000.0 as within_tolerance_seconds,
  (latest.report->>'delivered_watt_hours')::double precision as delivered_watt_hours,
  coalesce(latest.report->>'evidence', '') as evidence,
  coalesce(latest.report->>'verified', '') as verified,
  latest.report->>'phase' as reported_phase,
  latest.report->>'reason' as reported_reason,
  latest.report_received_at as reported_at
from furthest
join named using (dispatch_uid)
join asset using (asset_id)
left join latest using (dispatch_uid);
