import type { Settled } from './cluster.js';
import type { Sql, Tx } from './line.js';

/** What is known of promotions: `synchronous` of standbys that have all that was acknowledged, else `any`. */
export type Failover = 'any' | 'synchronous';

/** Above what a run's fence can have grown by since a backup. */
const FENCE_LEAP = 1_000_000;

/**
 * Decides whether the positions that readers have still mean the same events (EPOCH1). The log that is met is compared
 * with the one the epochs belong to; where it is another one they are advanced, unless it is the same cluster on a
 * newer timeline, promotions are said to be synchronous, and nothing says that it came from a backup. Nothing is
 * served before this is committed, on whichever gateway: `tutti.meet` refuses.
 * @returns `undefined` where the log is the same, or another gateway was faster.
 */
export async function settle(sql: Sql, failover: Failover): Promise<Settled | undefined> {
  // Without a lock first: that is a write, which waits where a synchronous standby is away.
  const decided = await sql`select from tutti.cluster where identity = tutti.identity()`;
  if (decided.length > 0) return undefined;
  return alone(sql, async (tx) => {
    const [found] = await tx<{ from: string; to: string }[]>`
      select identity as from, tutti.identity() as to from tutti.cluster for update`;
    if (!found || found.from === found.to) return undefined;
    const keep = failover === 'synchronous' && isPromotion(found) && !(await isRestored(tx));
    if (!keep) await advance(tx, undefined);
    await tx`update tutti.cluster set identity = ${found.to}`;
    return { ...found, epochs: keep ? 'kept' : 'advanced' };
  });
}

/**
 * Gives the rooms of a tenant, or all of them, other epochs: every reader is told to start over, and no position from
 * before is taken for one of now. @returns how many rooms.
 */
export function advanceEpochs(sql: Sql, tenant: string | undefined): Promise<number> {
  return alone(sql, (tx) => advance(tx, tenant));
}

function alone<T>(sql: Sql, work: (tx: Tx) => Promise<T>): Promise<T> {
  return sql.begin('isolation level read committed', async (tx) => {
    await tx`select set_config('tutti.tenants', '*', true), set_config('statement_timeout', '0', true),
      set_config('lock_timeout', '0', true), set_config('synchronous_commit', 'on', true)`;
    return work(tx);
  }) as Promise<T>;
}

async function advance(tx: Tx, tenant: string | undefined): Promise<number> {
  const of = tenant === undefined ? tx`` : tx`and tenant_id = ${tenant}`;
  // Runs before rooms, as everywhere. A worker and a claim from before must not pass for ones of now: attempts that
  // were under way are over, and fences leap past all that can have been given out.
  await tx`update tutti.runs set fence = fence + ${FENCE_LEAP},
      lease_until = case when state <> 'queued' then clock_timestamp() end
    where state in ('queued', 'claimed', 'streaming') ${of}`;
  // Publishers lock rows in an order of their own; they wait, readers do not.
  await tx`lock table tutti.rooms in exclusive mode`;
  const rooms = await tx`update tutti.rooms set epoch = left(replace(gen_random_uuid()::text, '-', ''), 16)
    where true ${of}`;
  return rooms.count;
}

function isPromotion({ from, to }: { from: string; to: string }): boolean {
  const [system, timeline, table] = from.split('/');
  const [systemNow, timelineNow, tableNow] = to.split('/');
  return system === systemNow && table === tableNow && Number(timelineNow) > Number(timeline);
}

/** Whether this server's configuration says that it came from a backup: `restore.sh` leaves that, and so do targets. */
async function isRestored(tx: Tx): Promise<boolean> {
  const signs = await tx`
    select from pg_settings where name in ('recovery_target', 'recovery_target_time', 'recovery_target_lsn',
      'recovery_target_xid', 'recovery_target_name') and setting <> ''
    union all select where current_setting('tutti.restored', true) <> ''`;
  return signs.length > 0;
}
