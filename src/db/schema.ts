import { sql } from 'drizzle-orm';
import {
  bigint,
  customType,
  index,
  integer,
  json,
  jsonb,
  pgSchema,
  primaryKey,
  text,
  timestamp,
  uniqueIndex,
} from 'drizzle-orm/pg-core';

/*
 * Every table with a tenant has FORCE ROW LEVEL SECURITY (see migrations): a transaction sees the tenants named in
 * the setting `tutti.tenants`, comma-separated, or all of them for `*`, which only the operator's paths set.
 */

export const tutti = pgSchema('tutti');

/** JSON kept as the text it came in: no reordered keys, no changed numbers, no parse on the way to readers. */
const jsonText = customType<{ data: string; driverData: string }>({ dataType: () => 'json' });
const ms = (name: string) => bigint(name, { mode: 'number' });

export const tenants = tutti.table('tenants', {
  tenantId: text('tenant_id').primaryKey(),
  name: text('name').notNull(),
  status: text('status', { enum: ['active', 'suspended'] })
    .notNull()
    .default('active'),
  createdAt: timestamp('created_at', { withTimezone: true }).notNull().defaultNow(),
});

export const issuers = tutti.table(
  'issuers',
  {
    id: text('id').primaryKey(),
    tenantId: text('tenant_id').references(() => tenants.tenantId, { onDelete: 'cascade' }),
    iss: text('iss').notNull(),
    audience: text('audience').notNull(),
    algorithms: text('algorithms').array().notNull(),
    typ: text('typ'),
    keys: jsonb('keys').notNull(),
    createdAt: timestamp('created_at', { withTimezone: true }).notNull().defaultNow(),
  },
  (table) => [uniqueIndex('issuers_iss').on(table.iss)],
);

export const apiKeys = tutti.table('api_keys', {
  id: text('id').primaryKey(),
  tenantId: text('tenant_id').references(() => tenants.tenantId, { onDelete: 'cascade' }),
  scopes: text('scopes').array().notNull(),
  hash: text('hash').notNull(),
  name: text('name').notNull(),
  createdAt: timestamp('created_at', { withTimezone: true }).notNull().defaultNow(),
  revokedAt: timestamp('revoked_at', { withTimezone: true }),
});

export const revocations = tutti.table(
  'revocations',
  {
    id: text('id').primaryKey(),
    tenantId: text('tenant_id').references(() => tenants.tenantId, { onDelete: 'cascade' }),
    kind: text('kind', { enum: ['user', 'token', 'key', 'tenant'] }).notNull(),
    subject: text('subject').notNull(),
    at: timestamp('at', { withTimezone: true }).notNull().defaultNow(),
  },
  (table) => [index('revocations_at').on(table.at)],
);

/** One row, whose number grows with every change of a tenant, issuer, key or revocation (by triggers). */
export const directory = tutti.table('directory', { revision: ms('revision').notNull() });

/** One row: the identity of the log that the epochs of the rooms belong to (EPOCH1), as `tutti.identity()` tells it. */
export const cluster = tutti.table('cluster', { identity: text('identity').notNull() });

export const rooms = tutti.table(
  'rooms',
  {
    id: bigint('id', { mode: 'number' }).primaryKey().generatedAlwaysAsIdentity(),
    tenantId: text('tenant_id')
      .notNull()
      .references(() => tenants.tenantId, { onDelete: 'cascade' }),
    name: text('name').notNull(),
    epoch: text('epoch').notNull(),
    head: ms('head').notNull().default(0),
    floor: ms('floor').notNull().default(0),
    createdAt: timestamp('created_at', { withTimezone: true }).notNull().defaultNow(),
  },
  (table) => [uniqueIndex('rooms_tenant_name').on(table.tenantId, table.name)],
);

export const events = tutti.table(
  'events',
  {
    roomId: bigint('room_id', { mode: 'number' })
      .notNull()
      .references(() => rooms.id, { onDelete: 'cascade' }),
    seq: ms('seq').notNull(),
    tenantId: text('tenant_id').notNull(),
    mid: text('mid').notNull(),
    type: text('type').notNull(),
    data: jsonText('data').notNull(),
    by: jsonText('by').notNull(),
    at: ms('at').notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.roomId, table.seq] }),
    uniqueIndex('events_mid').on(table.roomId, table.mid),
  ],
);

export const runs = tutti.table(
  'runs',
  {
    id: text('id').primaryKey(),
    tenantId: text('tenant_id').notNull(),
    roomId: bigint('room_id', { mode: 'number' })
      .notNull()
      .references(() => rooms.id, { onDelete: 'cascade' }),
    model: text('model').notNull(),
    state: text('state', {
      enum: ['queued', 'claimed', 'streaming', 'completed', 'failed', 'cancelled', 'expired'],
    }).notNull(),
    attempt: integer('attempt').notNull().default(1),
    maxAttempts: integer('max_attempts').notNull(),
    fence: integer('fence').notNull().default(0),
    /** Next part of the attempt that is not committed. */
    committed: integer('committed').notNull().default(0),
    input: jsonText('input').notNull(),
    initiator: json('initiator').notNull(),
    mid: text('mid'),
    /** Id of the worker's key and connection that holds the lease. */
    worker: text('worker'),
    leaseUntil: timestamp('lease_until', { withTimezone: true }),
    /** End of the queue's or the attempt's time. */
    deadline: timestamp('deadline', { withTimezone: true }).notNull(),
    createdAt: ms('created_at').notNull(),
    queuedAt: ms('queued_at').notNull(),
    startedAt: ms('started_at'),
    firstTokenAt: ms('first_token_at'),
    finishedAt: ms('finished_at'),
    usage: json('usage'),
    error: json('error'),
    /** Folded parts of the ended run. */
    output: json('output'),
  },
  (table) => [
    uniqueIndex('runs_mid').on(table.roomId, table.mid).where(sql`${table.mid} is not null`),
    index('runs_queue').on(table.model, table.queuedAt).where(sql`${table.state} = 'queued'`),
    index('runs_queue_tenant').on(table.tenantId, table.queuedAt).where(sql`${table.state} = 'queued'`),
    index('runs_live_room').on(table.roomId).where(sql`${table.state} in ('queued', 'claimed', 'streaming')`),
    index('runs_live_tenant').on(table.tenantId).where(sql`${table.state} in ('queued', 'claimed', 'streaming')`),
    index('runs_lease').on(table.leaseUntil).where(sql`${table.state} in ('claimed', 'streaming')`),
    index('runs_room').on(table.roomId),
  ],
);

export const runSegments = tutti.table(
  'run_segments',
  {
    runId: text('run_id')
      .notNull()
      .references(() => runs.id, { onDelete: 'cascade' }),
    attempt: integer('attempt').notNull(),
    /** Number of the first part. */
    n: integer('n').notNull(),
    count: integer('count').notNull(),
    tenantId: text('tenant_id').notNull(),
    /** JSON array, `parts[i]` has number `n + i`. */
    parts: jsonText('parts').notNull(),
  },
  (table) => [primaryKey({ columns: [table.runId, table.attempt, table.n] })],
);

/** When a worker of the operator last took a run of a tenant: the tenant served longest ago is next. */
export const runTurns = tutti.table('run_turns', {
  tenantId: text('tenant_id')
    .primaryKey()
    .references(() => tenants.tenantId, { onDelete: 'cascade' }),
  claimedAt: timestamp('claimed_at', { withTimezone: true }).notNull(),
});
