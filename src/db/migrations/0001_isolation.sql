-- Tenants are kept apart by Postgres itself: the application works as a role that owns no table and cannot bypass
-- these policies. tutti.tenants holds ids separated by commas, or * for the operator's paths; unset shows nothing.
-- A row without a tenant is the operator's.
do $$
declare
  target text;
begin
  foreach target in array array['tenants', 'issuers', 'api_keys', 'revocations', 'rooms', 'events', 'runs', 'run_segments']
  loop
    execute format('alter table tutti.%I enable row level security, force row level security', target);
    -- In sub-selects the setting is read once for a statement, not once for a row.
    execute format($policy$
      create policy tenants on tutti.%I using (
        tenant_id = any ((select string_to_array(current_setting('tutti.tenants', true), ','))::text[])
        or (select current_setting('tutti.tenants', true)) = '*'
      )$policy$, target);
  end loop;
end
$$;

insert into tutti.directory (revision) values (1);

-- Taken before the first row changes, the lock makes commit order the order of revisions and of revocation times.
create function tutti.move_directory() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  update tutti.directory set revision = revision + 1;
  return null;
end
$$;

create trigger directory before insert or update or delete on tutti.tenants
  for each statement execute function tutti.move_directory();
create trigger directory before insert or update or delete on tutti.issuers
  for each statement execute function tutti.move_directory();
create trigger directory before insert or update or delete on tutti.api_keys
  for each statement execute function tutti.move_directory();
create trigger directory before insert on tutti.revocations
  for each statement execute function tutti.move_directory();

do $$
declare
  app text := quote_ident(current_setting('tutti.app_role'));
begin
  execute 'grant usage on schema tutti to ' || app;
  execute 'grant select, update on tutti.directory to ' || app;
  execute 'grant select, insert, update on tutti.tenants, tutti.api_keys, tutti.runs to ' || app;
  execute 'grant select, insert, update, delete on tutti.issuers, tutti.rooms to ' || app;
  execute 'grant select, insert, delete on tutti.run_segments to ' || app;
  -- What is in the log stays as it is; it goes with its room.
  execute 'grant select, insert on tutti.events, tutti.revocations to ' || app;
end
$$;
