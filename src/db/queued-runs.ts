import type { Queued } from '../core/queued-runs.js';
import type { Database } from './database.js';

/** Counts the runs that wait for a worker, by the index of the queue. @throws TuttiError `log_unavailable`. */
export const queuedRuns = (database: Database): Promise<Queued> =>
  database.withTenants('*', async (tx) => {
    const [queued] = await tx<Queued[]>`
      select count(*)::integer as count,
        greatest(0, coalesce(floor(extract(epoch from clock_timestamp()) * 1000)::bigint - min(queued_at), 0)) as "oldestMs"
      from tutti.runs where state = 'queued'`;
    return queued ?? { count: 0, oldestMs: 0 };
  });
