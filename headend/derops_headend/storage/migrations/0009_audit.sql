-- Each call of the API, as it was written down. Rows are added, and go with their month at the end of
-- their retention; nothing is changed.

create table audit_event (
  chain text not null,
  seq bigint not null,
  -- By the clock of whoever wrote it down. A part of the record, so a record has one month for ever, and the
  -- key keeps it from being there twice.
  at timestamptz not null,
  -- SHA-256 of body, hex. body is what was hashed, byte for byte; the columns after it are taken from it.
  hash text not null,
  body text not null,
  stage text not null,
  request_id text not null,
  caller text not null,
  namespace text not null,
  verb text not null,
  resource text not null,
  name text not null,
  object_uid text not null,
  status integer,
  idempotency_key_sha256 text not null,
  primary key (chain, seq, at)
) partition by range (at);

create index on audit_event (namespace, at, chain, seq);
create index on audit_event (at, chain, seq);
create index on audit_event (caller, at);
create index on audit_event (request_id);
-- What Idempotency-Keys were used for: a change is announced before it is made.
create index on audit_event (idempotency_key_sha256, caller, namespace, at)
  where idempotency_key_sha256 <> '' and stage = 'RequestReceived';

create function refuse_change_of_audit() returns trigger language plpgsql as $$
begin
  raise exception 'audit_event is append-only: % refused', tg_op
    using errcode = 'insufficient_privilege',
      hint = 'Months go at the end of DEROPS_WRITER_AUDIT_RETENTION_DAYS.';
end
$$;

create trigger audit_event_append_only before update or delete on audit_event
  for each row execute function refuse_change_of_audit();
create trigger audit_event_no_truncate before truncate on audit_event
  execute function refuse_change_of_audit();

-- What a clock that is far off put into another month than those that were made.
create table audit_event_other partition of audit_event default;
create trigger audit_event_no_truncate before truncate on audit_event_other
  execute function refuse_change_of_audit();

-- The partition of the month that a day is in.
create function ensure_audit_month(day date) returns void language plpgsql as $$
declare
  month date := date_trunc('month', day);
  month_from timestamptz := month::timestamp at time zone 'UTC';
  month_to timestamptz := (month + interval '1 month')::timestamp at time zone 'UTC';
  partition text := to_char(month, '"audit_event_"YYYYMM');
begin
  perform pg_advisory_xact_lock(hashtext('ensure_audit_month'));  -- writers take turns
  if to_regclass(partition) is not null or exists (
    select from audit_event_other where at >= month_from and at < month_to
  ) then
    return;  -- what is among the others already stays there, and the rest of that month joins it
  end if;
  execute format('create table %I (like audit_event including all)', partition);
  execute format(
    'alter table audit_event attach partition %I for values from (%L) to (%L)',
    partition, month_from, month_to
  );
  execute format(
    'create trigger audit_event_no_truncate before truncate on %I '
    'execute function refuse_change_of_audit()', partition
  );
end
$$;

select ensure_audit_month((now() at time zone 'UTC')::date + days) from unnest(array[0, 31, 62]) days;

do $$
declare
  found record;
begin
  if not exists (select from pg_roles where rolname = 'derops_api') then
    return;
  end if;
  for found in
    select relname from pg_class
    where relnamespace = current_schema()::regnamespace and relkind in ('r', 'p', 'v')
      and pg_has_role(relowner, 'USAGE')
  loop
    execute format('grant select on %I to derops_api', found.relname);
  end loop;
  grant insert on audit_event to derops_api;
end
$$;
