-- Whose word it is. The identity of a step is made of what its speaker says, so that another asset's
-- agent could name the same one: its row is beside the genuine one now, and never in its place.

-- Namespace and name of the asset that a row is about, with a slash between. An agent speaks of its
-- own asset alone, as its certificate attests; the headend of the asset that the dispatch names.
alter table dispatch_event add column subject text;
update dispatch_event set subject = asset.namespace || '/' || asset.name
  from asset where asset.asset_id = dispatch_event.asset_id;
alter table dispatch_event alter column subject set not null;
alter table dispatch_event drop constraint dispatch_event_pkey;
alter table dispatch_event add primary key (event_id, subject);

-- What counts of it: where the headend says for which asset a dispatch is, no other asset's word
-- does. What nobody but an agent knows of is a dispatch of its own asset.
create view dispatch_claim as
select * from dispatch_event as claim
where not exists (
  select from dispatch_event as known
  where known.dispatch_uid = claim.dispatch_uid and known.actor = 'Headend'
    and known.subject <> claim.subject
);

create or replace view dispatch_history as
with ranked as (
  select *, case phase when 'Submitted' then 0 when 'Sent' then 1 when 'Acked' then 2
    when 'Active' then 3 else 4 end as rank
  from dispatch_claim
), furthest as (
  select distinct on (dispatch_uid, subject) *
  from ranked
  -- The operator says it of a dispatch whose end was told by a ledger that cannot know.
  order by dispatch_uid, subject, rank desc, (actor = 'Headend' and reason = 'LedgerLost') desc,
    case when rank = 4 then received_at end asc, received_at desc, at desc
), latest as (
  select distinct on (dispatch_uid, subject) dispatch_uid, subject, report_received_at, report
  from dispatch_claim
  where report is not null
  order by dispatch_uid, subject, report_received_at desc, report_sequence desc
), known as (
  -- A new ledger knows less of a dispatch than the lost one, which had accepted or applied it.
  select distinct on (dispatch_uid, subject) dispatch_uid, subject, report
  from dispatch_claim
  where report is not null
  order by dispatch_uid, subject, coalesce((report->>'applied_us')::bigint, 0) > 0 desc,
    coalesce((report->>'accepted_us')::bigint, 0) > 0 desc, report_received_at desc, report_sequence desc
), named as (
  select dispatch_uid, subject, max(dispatch_name) as dispatch_name, min(at) as first_at
  from dispatch_claim
  group by dispatch_uid, subject
)
select
  furthest.dispatch_uid,
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
  coalesce(known.report->>'superseded_by', '') as superseded_by
from furthest
join named using (dispatch_uid, subject)
join asset using (asset_id)
left join latest using (dispatch_uid, subject)
left join known using (dispatch_uid, subject);
