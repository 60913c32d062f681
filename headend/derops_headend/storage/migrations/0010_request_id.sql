-- readable from 9
-- By which request of the API a dispatch was ordered: the X-Request-Id of that call, and the requestId of its records in the audit.
-- Empty column = it was ordered otherwise, or nobody can know. An earlier program does not write it, and goes on.
alter table dispatch_event add column request_id text;
alter table dispatch add column request_id text;

create or replace view dispatch_told as
with ranked as (
  select *, case phase when 'Submitted' then 0 when 'Sent' then 1 when 'Acked' then 2
    when 'Active' then 3 else 4 end as rank
  from dispatch_event
), furthest as (
  select distinct on (dispatch_uid, subject) *
  from ranked
  -- The operator says it of a dispatch whose end was told by a ledger that cannot know.
  order by dispatch_uid, subject, rank desc, (actor = 'Headend' and reason = 'LedgerLost') desc,
    case when rank = 4 then received_at end asc, received_at desc, at desc, event_id
), latest as (
  select distinct on (dispatch_uid, subject) dispatch_uid, subject, report_received_at, report
  from dispatch_event
  where report is not null
  order by dispatch_uid, subject, report_received_at desc, report_sequence desc, event_id
), known as (
  -- A new ledger knows less of a dispatch than the lost one, which had accepted or applied it.
  select distinct on (dispatch_uid, subject) dispatch_uid, subject, report
  from dispatch_event
  where report is not null
  order by dispatch_uid, subject, coalesce((report->>'applied_us')::bigint, 0) > 0 desc,
    coalesce((report->>'accepted_us')::bigint, 0) > 0 desc, report_received_at desc, report_sequence desc,
    event_id
), named as (
  select dispatch_uid, subject, max(dispatch_name) as dispatch_name, min(at) as first_at,
    -- An agent does not say who ordered. What was refused was never submitted.
    (array_agg(created_by order by (phase = 'Submitted') desc, received_at, at, event_id) filter (
      where actor = 'Headend' and created_by is not null
    ))[1] as created_by,
    (array_agg(request_id order by (phase = 'Submitted') desc, received_at, at, event_id) filter (
      where actor = 'Headend' and request_id is not null
    ))[1] as request_id,
    bool_or(actor = 'Headend') as told_by_headend,
    count(*) as steps
  from dispatch_event
  group by dispatch_uid, subject
)
select
  furthest.dispatch_uid,
  furthest.subject,
  asset.namespace,
  named.dispatch_name,
  asset.name as asset_name,
  asset.uid as asset_uid,
  furthest.phase,
  case
    when coalesce((known.report->>'applied_us')::bigint, 0) > 0 then true
    when 'LedgerLost' in (furthest.reason, latest.report->>'reason') then null
    when furthest.reason = 'OutcomeUnknown' and coalesce(latest.report->>'phase', '') not in
      ('Complete', 'Expired', 'Failed', 'Rejected', 'Cancelled', 'Superseded') then null
    when known.report->>'evidence' = 'Unanswered' then null
    else false
  end as applied,
  furthest.reason,
  furthest.message,
  named.first_at,
  from_microseconds((known.report->>'accepted_us')::bigint) as accepted_at,
  from_microseconds((known.report->>'applied_us')::bigint) as applied_at,
  from_microseconds((known.report->>'ended_us')::bigint) as ended_at,
  from_microseconds((known.report->>'reverted_us')::bigint) as reverted_at,
  (known.report->>'applied_watts')::bigint as applied_watts,
  (known.report->>'active_milliseconds')::bigint / 1000.0 as active_seconds,
  (known.report->>'within_tolerance_milliseconds')::bigint / 1000.0 as within_tolerance_seconds,
  (known.report->>'delivered_watt_hours')::double precision as delivered_watt_hours,
  coalesce(known.report->>'evidence', '') as evidence,
  coalesce(known.report->>'verified', '') as verified,
  latest.report->>'phase' as reported_phase,
  latest.report->>'reason' as reported_reason,
  latest.report_received_at as reported_at,
  coalesce(known.report->>'verified_reason', '') as verified_reason,
  from_microseconds((known.report->>'verified_us')::bigint) as verified_at,
  from_microseconds((known.report->>'planned_start_us')::bigint) as planned_start_at,
  from_microseconds((known.report->>'planned_end_us')::bigint) as planned_end_at,
  coalesce((known.report->>'interruptions')::bigint, 0) as interruptions,
  coalesce(known.report->>'clamped_by', '') as clamped_by,
  coalesce(known.report->>'reversion_guard', '') as reversion_guard,
  -- The gateway's clock less the agent's, as the agent last measured it: what its instants are worth.
  (known.report->>'clock_offset_milliseconds')::bigint as clock_offset_milliseconds,
  coalesce(known.report->>'superseded_by', '') as superseded_by,
  named.created_by,
  named.told_by_headend,
  named.steps,
  named.request_id
from furthest
join named using (dispatch_uid, subject)
join asset using (asset_id)
left join latest using (dispatch_uid, subject)
left join known using (dispatch_uid, subject);

create or replace view dispatch_history as
select dispatch_uid, namespace, dispatch_name, asset_name, asset_uid, phase, applied, reason, message,
  first_at, accepted_at, applied_at, ended_at, reverted_at, applied_watts, active_seconds,
  within_tolerance_seconds, delivered_watt_hours, evidence, verified, reported_phase, reported_reason,
  reported_at, verified_reason, verified_at, planned_start_at, planned_end_at, interruptions, clamped_by,
  reversion_guard, clock_offset_milliseconds, superseded_by, created_by, request_id
from dispatch_told as told
where not exists (
  select from dispatch_event as known
  where known.dispatch_uid = told.dispatch_uid and known.actor = 'Headend'
    and known.subject <> told.subject
);

create or replace view dispatch_summary as
select dispatch_uid, namespace, dispatch_name, asset_name, asset_uid, phase, applied, reason, message,
  first_at, accepted_at, applied_at, ended_at, reverted_at, applied_watts, active_seconds,
  within_tolerance_seconds, delivered_watt_hours, evidence, verified, reported_phase, reported_reason,
  reported_at, verified_reason, verified_at, planned_start_at, planned_end_at, interruptions, clamped_by,
  reversion_guard, clock_offset_milliseconds, superseded_by, created_by, request_id
from dispatch as told
where not exists (
  select from dispatch as known
  where known.dispatch_uid = told.dispatch_uid and known.told_by_headend
    and known.subject <> told.subject
  offset 0  -- asked row by row: as a join, the planner takes it to leave none, and reads all
);


create or replace function refresh_dispatch(of_uid text, of_subject text) returns void language plpgsql as $$
declare
  is_there boolean;
  said dispatch_told;
begin
  loop
    perform from dispatch where dispatch_uid = of_uid and subject = of_subject for update;
    is_there := found;
    select * into said from dispatch_told where dispatch_uid = of_uid and subject = of_subject;
    if said.dispatch_uid is null then
      delete from dispatch where is_there and dispatch_uid = of_uid and subject = of_subject;
      return;
    elsif is_there then
      update dispatch set (
        dispatch_uid, subject, namespace, dispatch_name, asset_name, asset_uid, phase, applied, reason,
        message, first_at, accepted_at, applied_at, ended_at, reverted_at, applied_watts, active_seconds,
        within_tolerance_seconds, delivered_watt_hours, evidence, verified, reported_phase,
        reported_reason, reported_at, verified_reason, verified_at, planned_start_at, planned_end_at,
        interruptions, clamped_by, reversion_guard, clock_offset_milliseconds, superseded_by, created_by,
        told_by_headend, steps, request_id
      ) = (select (said).*)
      where dispatch_uid = of_uid and subject = of_subject;
      return;
    end if;
    insert into dispatch select (said).* on conflict (dispatch_uid, subject) do nothing;
    if found then
      return;
    end if;
  end loop;
end
$$;
