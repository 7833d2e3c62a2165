import type { Append, EventLog } from '../../src/core/log.js';
import type { Logger, Metrics } from '../../src/core/telemetry.js';
import { type Database, openDatabase } from '../../src/db/database.js';
import { type AppendLimits, createEventLog, type PostgresLog } from '../../src/db/event-log.js';
import { migrate } from '../../src/db/migrate.js';
import { toJsonText } from '../../src/protocol/primitives.js';

export const silent: Logger = { debug() {}, info() {}, warn() {}, error() {} };

/** Counts what is added and how often something is observed; reads gauges. */
export class Counts implements Metrics {
  readonly added = new Map<string, number>();
  readonly observed = new Map<string, number>();
  readonly gauges = new Map<string, () => number>();
  add(name: string, _labels: object, by = 1): void {
    this.added.set(name, (this.added.get(name) ?? 0) + by);
  }
  observe(name: string): void {
    this.observed.set(name, (this.observed.get(name) ?? 0) + 1);
  }
  gauge(name: string, read: () => number): void {
    this.gauges.set(name, read);
  }
}

export const appendLimits: AppendLimits = {
  lanes: 3,
  batchMax: 64,
  lingerMs: 1,
  queueMax: 10_000,
  queueBytes: 64 * 1024 * 1024,
  timeoutMs: 8000,
};

/** A migrated database with tenants `a`, `b`, `c`. */
export async function opened(url: string, timeoutMs = 8000): Promise<Database> {
  const database = await openDatabase({ url, poolSize: 4, appRole: 'tutti_app', timeoutMs });
  await migrate(database);
  await database.withTenants(
    '*',
    (tx) =>
      tx`insert into tutti.tenants (tenant_id, name) values ('a', 'A'), ('b', 'B'), ('c', 'C') on conflict do nothing`,
  );
  return database;
}

export const logOf = (
  database: Database,
  limits: Partial<AppendLimits> = {},
  metrics: Metrics = new Counts(),
): PostgresLog => createEventLog(database, { ...appendLimits, ...limits }, metrics, silent);

/** An event of user `user`; `data` is any JSON value. */
export const event = (tenant: string, room: string, mid: string, data: unknown = mid, user = 'alice'): Append => ({
  tenant,
  room,
  mid,
  type: 'message',
  data: toJsonText(data),
  by: toJsonText({ kind: 'user', id: user }),
});

/** Everything in a room, by pages. */
export async function readAll(log: EventLog, tenant: string, room: string) {
  const events = [];
  for (let after = 0; ; ) {
    const page = await log.read(tenant, room, { after, limit: 500, order: 'asc' });
    if (!page || page.events.length === 0) return events;
    events.push(...page.events);
    after = page.events.at(-1)?.seq ?? after;
  }
}
