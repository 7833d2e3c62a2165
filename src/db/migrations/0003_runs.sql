CREATE TABLE "tutti"."run_turns" (
	"tenant_id" text PRIMARY KEY NOT NULL,
	"claimed_at" timestamp with time zone NOT NULL
);
--> statement-breakpoint
ALTER TABLE "tutti"."run_turns" ADD CONSTRAINT "run_turns_tenant_id_tenants_tenant_id_fk" FOREIGN KEY ("tenant_id") REFERENCES "tutti"."tenants"("tenant_id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "runs_queue_tenant" ON "tutti"."runs" USING btree ("tenant_id","queued_at") WHERE "tutti"."runs"."state" = 'queued';
--> statement-breakpoint
alter table tutti.run_turns enable row level security, force row level security;
create policy tenants on tutti.run_turns using (
  tenant_id = any ((select string_to_array(current_setting('tutti.tenants', true), ','))::text[])
  or (select current_setting('tutti.tenants', true)) = '*'
);

-- Commits pieces of run output, one array element each; a piece of no parts (count 0, attempt null) only extends the
-- lease. Returns a row for each ordinal (1, 2, 3 …): "committed"; "fenced" where the lease is not the caller's;
-- "ended" with the final state. What is committed already is skipped, what would leave a gap is not stored; either
-- way the row tells the number of the next part that is not committed.
--
-- Locks the runs in the order of their ids and nothing else; runs as the application's role, for the tenants given.
create function tutti.commit_runs(
  tenants text[], runs text[], attempts integer[], fences integer[], numbers integer[], counts integer[],
  outputs text[], lease_ms integer
) returns table (ordinal integer, status text, state text, committed integer)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
  scope text := coalesce(current_setting('tutti.tenants', true), '');
  piece record;
  found_run record;
  upto integer;
begin
  perform set_config('tutti.tenants', (select string_agg(distinct w.tenant, ',') from unnest(tenants) as w(tenant)), true);
  if current_setting('synchronous_commit') in ('off', 'local', 'remote_write') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  perform r.id from tutti.runs r where r.id = any (runs) order by r.id for no key update;

  for piece in
    select w.* from unnest(tenants, runs, attempts, fences, numbers, counts, outputs)
      with ordinality as w(tenant, run, attempt, fence, number, count, output, ordinal)
    order by w.ordinal
  loop
    ordinal := piece.ordinal;
    select r.* into found_run from tutti.runs r where r.id = piece.run and r.tenant_id = piece.tenant;
    status := 'fenced';
    state := found_run.state;
    committed := coalesce(found_run.committed, 0);
    if found_run.fence = piece.fence and found_run.attempt = coalesce(piece.attempt, found_run.attempt) then
      if found_run.state in ('claimed', 'streaming') then
        status := 'committed';
        upto := piece.number + piece.count;
        if piece.number <= committed and upto > committed then
          insert into tutti.run_segments (run_id, attempt, n, count, tenant_id, parts)
          values (piece.run, found_run.attempt, committed, upto - committed, piece.tenant,
            case when piece.number = committed then piece.output::json else (
              select json_agg(e.value order by e.nth)
              from json_array_elements(piece.output::json) with ordinality as e(value, nth)
              where e.nth > committed - piece.number
            ) end);
          committed := upto;
          state := 'streaming';
        end if;
        update tutti.runs r set
          committed = commit_runs.committed,
          state = commit_runs.state,
          first_token_at = case when commit_runs.state = 'streaming'
            then coalesce(r.first_token_at, floor(extract(epoch from clock_timestamp()) * 1000)) end,
          lease_until = clock_timestamp() + lease_ms * interval '1 millisecond'
        where r.id = piece.run;
      elsif found_run.state <> 'queued' then
        status := 'ended';
      end if;
    end if;
    return next;
  end loop;
  perform set_config('tutti.tenants', scope, true);
end
$$;

-- Gives the oldest queued run of the models to a worker and returns its id. `serve` names the tenant served; null
-- serves all the caller may see, the tenant first that was served longest ago, however many runs another has queued.
create function tutti.claim_run(serve text, models text[], worker text, lease_ms integer, duration_ms integer)
returns table (run text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
  candidate record;
  chosen text;
  patient boolean;
  taken_at timestamptz;
begin
  if serve is not null then
    select r.id into chosen from tutti.runs r
      where r.tenant_id = serve and r.state = 'queued' and r.model = any (models) and r.deadline > clock_timestamp()
      order by r.queued_at, r.id limit 1 for no key update skip locked;
  else
    -- First without waiting: a tenant whose turn another claim is taking right now is passed over. What only such
    -- tenants have is taken in a second round.
    <<rounds>>
    foreach patient in array array[false, true] loop
      for candidate in
        with recursive waiting as (
          (select r.tenant_id from tutti.runs r where r.state = 'queued' order by r.tenant_id limit 1)
          union all
          select (select r.tenant_id from tutti.runs r
            where r.state = 'queued' and r.tenant_id > w.tenant_id order by r.tenant_id limit 1)
          from waiting w where w.tenant_id is not null
        )
        select w.tenant_id, t.claimed_at from waiting w left join tutti.run_turns t on t.tenant_id = w.tenant_id
        where w.tenant_id is not null
        order by t.claimed_at nulls first, w.tenant_id
      loop
        if not patient and candidate.claimed_at is not null then
          select t.claimed_at into taken_at from tutti.run_turns t
            where t.tenant_id = candidate.tenant_id for update skip locked;
          continue when not found or taken_at <> candidate.claimed_at;
        end if;
        select r.id into chosen from tutti.runs r
          where r.tenant_id = candidate.tenant_id and r.state = 'queued' and r.model = any (models)
            and r.deadline > clock_timestamp()
          order by r.queued_at, r.id limit 1 for no key update skip locked;
        if found then
          insert into tutti.run_turns (tenant_id, claimed_at) values (candidate.tenant_id, clock_timestamp())
            on conflict (tenant_id) do update set claimed_at = clock_timestamp();
          exit rounds;
        end if;
      end loop;
    end loop;
  end if;
  if chosen is null then
    return;
  end if;
  update tutti.runs r set
    state = 'claimed',
    fence = r.fence + 1,
    worker = claim_run.worker,
    committed = 0,
    started_at = floor(extract(epoch from clock_timestamp()) * 1000),
    lease_until = clock_timestamp() + lease_ms * interval '1 millisecond',
    deadline = clock_timestamp() + duration_ms * interval '1 millisecond'
  where r.id = chosen;
  run := chosen;
  return next;
end
$$;

do $$
declare
  app text := quote_ident(current_setting('tutti.app_role'));
  signature text;
begin
  execute format('grant select, insert, update on tutti.run_turns to %s', app);
  execute format('grant create on schema tutti to %s', app);
  foreach signature in array array[
    'tutti.commit_runs(text[], text[], integer[], integer[], integer[], integer[], text[], integer)',
    'tutti.claim_run(text, text[], text, integer, integer)'
  ] loop
    execute format('revoke all on function %s from public', signature);
    execute format('alter function %s owner to %s', signature, app);
  end loop;
  execute format('revoke create on schema tutti from %s', app);
end
$$;
