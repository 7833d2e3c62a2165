CREATE TABLE "tutti"."cluster" (
	"identity" text NOT NULL
);
--> statement-breakpoint
-- Which log this is: "system/timeline/table". The system is another one after a restore by dump, the timeline after
-- every promotion and every recovery to a point in time, the table where a dump came into a cluster it was taken from.
-- The name of the WAL file being written has the timeline from the moment of a promotion on; the control file only has
-- it from the next checkpoint on.
create function tutti.identity() returns text language sql volatile set search_path = pg_catalog, pg_temp as $$
  select c.system_identifier
    || '/' || ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer
    || '/' || 'tutti.cluster'::regclass::oid
  from pg_control_system() c
$$;

-- Refuses the transaction, whatever else it does, where this server may not serve it: a standby; a server whose
-- timeline is behind the one the caller has seen; a log whose epochs have not been decided on since it became this
-- one. `known` is the newest identity the caller has seen, or null. The codes are in the class of an operator's
-- intervention, which passes.
create function tutti.meet(known text) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  here text;
begin
  if pg_is_in_recovery() then
    raise exception 'this server is a standby' using errcode = '57TU1';
  end if;
  here := tutti.identity();
  if split_part(known, '/', 1) = split_part(here, '/', 1)
    and split_part(here, '/', 2)::integer < split_part(known, '/', 2)::integer then
    raise exception 'this server is on an old timeline: % was seen, this is %', known, here using errcode = '57TU2';
  end if;
  perform from tutti.cluster c where c.identity = here;
  if not found then
    raise exception 'the epochs belong to another log than this one, %', here using errcode = '57TU3';
  end if;
  return here;
end
$$;

insert into tutti.cluster (identity) values (tutti.identity());

do $$
declare
  app text := quote_ident(current_setting('tutti.app_role'));
begin
  execute 'grant select on tutti.cluster to ' || app;
  execute 'revoke all on function tutti.identity(), tutti.meet(text) from public';
  execute 'grant execute on function tutti.identity(), tutti.meet(text) to ' || app;
end
$$;
