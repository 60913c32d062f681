-- The roles of derops in PostgreSQL 14 or newer, with the least rights that do.
--
--   derops_writer  puts telemetry and history into tables that are its own, in the schema public
--   derops_reader  reads them and changes nothing: for people, and for programs that only ask
--   derops_api     reads them, and adds rows to the audit, which nobody changes: for the API
--
-- A superuser runs this in the database of derops, which is for nothing else. To run it again does no harm.
-- It gives no password: without one nobody gets in by password. In psql: \password derops_writer

begin;

-- TimescaleDB, where the server has it and no table is there yet. Whoever may not create it could not have
-- it later: what is made without it stays without it. Leave this out to do without.
do $$
begin
  if to_regclass('public.schema_version') is null and exists (
    select from pg_available_extensions where name = 'timescaledb' and installed_version is null
  ) then
    create extension timescaledb with schema public;
  end if;
exception when others then
  raise warning 'TimescaleDB is not used, the days of telemetry will be partitions: %', sqlerrm;
end
$$;

do $$
begin
  if not exists (select from pg_roles where rolname = 'derops_writer') then
    create role derops_writer login;
  end if;
  if not exists (select from pg_roles where rolname = 'derops_reader') then
    create role derops_reader login;
  end if;
  if not exists (select from pg_roles where rolname = 'derops_api') then
    create role derops_api login;
  end if;
  execute format(
    'grant connect, temporary on database %I to derops_writer', current_database()
  );
  execute format('grant connect on database %I to derops_reader, derops_api', current_database());
end
$$;

-- As PostgreSQL has it from 15 on: what is in the schema is nobody's who was not named here.
revoke create on schema public from public;
grant usage, create on schema public to derops_writer;
grant usage on schema public to derops_reader, derops_api;

-- What the writer makes from now on, the others may read. It lets the API add to the audit as it makes it.
alter default privileges for role derops_writer in schema public
  grant select on tables to derops_reader, derops_api;

-- What is there already, made by an earlier version as whichever role it had: the writer alters its tables
-- when a version needs it, and drops days that are too old. Only an owner can.
do $$
declare
  found record;
begin
  if to_regclass('public.dispatch_event') is null then
    return;
  end if;
  for found in
    select relname from pg_class
    where relnamespace = 'public'::regnamespace and (
      relname in (
        'schema_version', 'schema_applied', 'asset', 'telemetry', 'telemetry_1m', 'telemetry_15m',
        'roll_up_due', 'retention',
        'measurement', 'telemetry_gap', 'dispatch_event', 'dispatch_claim', 'dispatch_history',
        'dispatch_told', 'dispatch', 'dispatch_summary', 'dispatch_backfill',
        'connection_event', 'quarantine', 'log_offset', 'audit_event'
      )
      or oid in (
        select inhrelid from pg_inherits
        where inhparent in (
          to_regclass('public.telemetry'), to_regclass('public.measurement'),
          to_regclass('public.audit_event')
        )
      )
    )
  loop
    execute format('alter table public.%I owner to derops_writer', found.relname);
    execute format('grant select on public.%I to derops_reader, derops_api', found.relname);
  end loop;
  alter function public.from_microseconds(bigint) owner to derops_writer;
  alter function public.ensure_telemetry_day(date) owner to derops_writer;
  if to_regclass('public.dispatch') is not null then
    alter function public.refresh_dispatch(text, text) owner to derops_writer;
    alter function public.keep_dispatches() owner to derops_writer;
  end if;
  if to_regclass('public.audit_event') is not null then
    grant insert on public.audit_event to derops_api;
    alter function public.refuse_change_of_audit() owner to derops_writer;
    alter function public.ensure_audit_month(date) owner to derops_writer;
  end if;
end
$$;

commit;
