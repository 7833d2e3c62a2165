-- Appends a batch of events, one array element each; all of them or, on an error, none. Rooms that are missing are
-- made. Returns a row for each ordinal (1, 2, 3 …): "stored"; "duplicate" with the place of the event that had this
-- mid in the room before, in the log or in the batch; "conflict" where that event is another publisher's.
--
-- The row locks on the rooms are held to the end of the transaction, so the order of seqs is the order of commits
-- and a rollback leaves no gap. Needs READ COMMITTED: what stands in a room is read by a statement that begins
-- after the locks were won.
--
-- Runs as the application's role whoever calls it, and for the tenants it is given. The settings keep the plans on
-- the indexes also while the tables are too new to have statistics.
create function tutti.append_events(
  tenants text[], rooms text[], mids text[], types text[], datas text[], bys text[]
) returns table (ordinal integer, status text, epoch text, seq bigint, at bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
  scope text := coalesce(current_setting('tutti.tenants', true), '');
  moment bigint;
  wanted bigint;
  locked bigint;
begin
  perform set_config('tutti.tenants', (select string_agg(distinct w.tenant, ',') from unnest(tenants) as w(tenant)), true);
  if current_setting('synchronous_commit') in ('off', 'local', 'remote_write') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  select count(*) into wanted from (select distinct * from unnest(tenants, rooms)) as w;

  loop
    select count(*) into locked from (select distinct * from unnest(tenants, rooms)) as w(tenant, room)
      join tutti.rooms r on r.tenant_id = w.tenant and r.name = w.room;
    if locked < wanted then
      -- Before any lock, and in one order for everybody, so that two who make the same rooms cannot lock each other out.
      insert into tutti.rooms (tenant_id, name, epoch)
        select w.tenant, w.room, left(replace(gen_random_uuid()::text, '-', ''), 16)
        from (select distinct * from unnest(tenants, rooms)) as w(tenant, room)
        order by w.tenant, w.room
        on conflict do nothing;
    end if;
    perform r.id from tutti.rooms r
      where (r.tenant_id, r.name) in (select * from unnest(tenants, rooms))
      order by r.id
      for no key update;
    get diagnostics locked = row_count;
    -- A room may have been erased between the two.
    exit when locked = wanted;
  end loop;

  moment := floor(extract(epoch from clock_timestamp()) * 1000);
  return query
    with batch as materialized (
      select w.ordinal::integer as ordinal, r.id as room_id, r.epoch, r.head, w.tenant, w.mid, w.type,
        w.data::json as data, w.publisher::json as publisher
      from unnest(tenants, rooms, mids, types, datas, bys)
        with ordinality as w(tenant, room, mid, type, data, publisher, ordinal)
      join tutti.rooms r on r.tenant_id = w.tenant and r.name = w.room
    ), known as materialized (
      select b.ordinal, e.seq, e.at, e.by as publisher
      from batch b join tutti.events e on e.room_id = b.room_id and e.mid = b.mid
    ), fresh as (
      select b.*, row_number() over (partition by b.room_id, b.mid order by b.ordinal) as nth
      from batch b where not exists (select from known k where k.ordinal = b.ordinal)
    ), numbered as materialized (
      select f.*, f.head + row_number() over (partition by f.room_id order by f.ordinal) as seq
      from fresh f where f.nth = 1
    ), moved as (
      update tutti.rooms r set head = n.head
      from (select room_id, max(seq) as head from numbered group by room_id) n
      where r.id = n.room_id
    ), stored as (
      insert into tutti.events (room_id, seq, tenant_id, mid, type, data, by, at)
      select n.room_id, n.seq, n.tenant, n.mid, n.type, n.data, n.publisher, moment from numbered n order by n.ordinal
    ), placed as (
      select b.ordinal, b.epoch, b.publisher, n.ordinal as first, coalesce(k.seq, n.seq) as seq,
        coalesce(k.at, moment) as at, coalesce(k.publisher, n.publisher) as owner
      from batch b
      left join known k on k.ordinal = b.ordinal
      left join numbered n on n.room_id = b.room_id and n.mid = b.mid
    )
    select p.ordinal,
      case
        when p.first = p.ordinal then 'stored'
        when p.owner::text = p.publisher::text then 'duplicate'
        when p.owner ->> 'kind' = p.publisher ->> 'kind' and p.owner ->> 'id' = p.publisher ->> 'id' then 'duplicate'
        else 'conflict'
      end,
      p.epoch, p.seq, p.at
    from placed p order by p.ordinal;

  perform set_config('tutti.tenants', scope, true);
end
$$;

-- The owner of a function must be allowed to create in its schema, but only while it becomes the owner.
do $$
declare
  app text := quote_ident(current_setting('tutti.app_role'));
  signature constant text := 'tutti.append_events(text[], text[], text[], text[], text[], text[])';
begin
  execute format('revoke all on function %s from public', signature);
  execute format('grant create on schema tutti to %s', app);
  execute format('alter function %s owner to %s', signature, app);
  execute format('revoke create on schema tutti from %s', app);
end
$$;
