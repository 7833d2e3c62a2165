import type { Limit } from '../errors.js';

/** What the core reports. `telemetry/` gives it to pino and Prometheus; tests give it a recorder. */

/** A structured log line. Never a token, a key or the body of a message in `fields`. */
export interface Logger {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

type MetricTable = Record<string, { help: string; labels: readonly string[] }>;

/** Counters; exported as `tutti_<name>_total`. */
export const counters = {
  connections: { help: 'Sockets that authenticated.', labels: ['namespace'] },
  connection_refusals: { help: 'Sockets refused, by code.', labels: ['code'] },
  commands: {
    help: 'Commands answered, by command and outcome code (`ok` or an error code).',
    labels: ['command', 'code'],
  },
  publishes: { help: 'Events committed.', labels: ['kind'] },
  publish_duplicates: { help: 'Publishes answered from an earlier one with the same mid.', labels: [] },
  deliveries: { help: 'Frames handed to readers, by push.', labels: ['push'] },
  repairs: { help: 'Times a feed read the log to fill a gap.', labels: ['cause'] },
  repaired_events: { help: 'Events a feed read from the log to fill gaps.', labels: [] },
  resyncs: { help: 'Readers told to start over, by reason.', labels: ['reason'] },
  slow_closes: { help: 'Readers closed because they read too slowly.', labels: [] },
  log_queries: { help: 'Queries made for readers that join or catch up, by purpose.', labels: ['purpose'] },
  bus_messages: { help: 'Announcements, by direction and kind.', labels: ['direction', 'kind'] },
  bus_reconnects: { help: 'Times the bus came back.', labels: [] },
  runs: { help: 'Runs by what happened to them.', labels: ['model', 'outcome'] },
  run_parts: { help: 'Parts accepted from workers.', labels: ['model'] },
  http_requests: { help: 'HTTP requests, by route and status.', labels: ['route', 'status'] },
  limit_reached: {
    help: 'Times a limit was reached, by limit: something was refused, dropped or made to wait. See docs/LIMITS.md.',
    labels: ['limit'],
  },
  database_refusals: {
    help: 'Transactions refused where they may not run, by reason (`standby`, `old_timeline`, `other_log`).',
    labels: ['reason'],
  },
  database_changes: {
    help: 'Times this gateway found the database to be another one than before, by what became of the epochs (`kept`, `advanced`).',
    labels: ['epochs'],
  },
  rate_limited: { help: 'Commands refused by a rate limit, by whose limit.', labels: ['scope'] },
} as const satisfies MetricTable;

/** Histograms in seconds; exported as `tutti_<name>_seconds`. */
export const histograms = {
  commit: { help: 'Publish to commit.', labels: [] },
  append_batch: { help: 'One statement of a group commit.', labels: [] },
  bus_lag: { help: 'Commit on another gateway to arrival here, by the wall clocks of both.', labels: [] },
  join: { help: 'Join to reply.', labels: [] },
  run_queue_wait: { help: 'Created to claimed.', labels: ['model'] },
  run_first_token: { help: 'Claimed to first part.', labels: ['model'] },
  run_duration: { help: 'Claimed to ended.', labels: ['model', 'outcome'] },
  run_commit: { help: 'One statement that commits run output.', labels: [] },
  http: { help: 'HTTP request to answer.', labels: ['route'] },
} as const satisfies MetricTable;

/** Gauges read when scraped; exported as `tutti_<name>`. */
export const gauges = {
  sessions: { help: 'Authenticated sessions.', labels: [] },
  commands_waiting: { help: 'Commands that wait for a turn of the event loop.', labels: [] },
  connections_waiting: { help: 'Openings and closings of sockets that wait for a turn of the event loop.', labels: [] },
  rooms_open: { help: 'Rooms with a reader on this gateway.', labels: [] },
  room_joins: { help: 'Sessions joined to rooms, summed over rooms.', labels: [] },
  ring_bytes: { help: 'Length of the recent events in memory, in UTF-16 units.', labels: [] },
  append_queue: { help: 'Events waiting for a commit.', labels: [] },
  append_queue_bytes: { help: 'Length of the events waiting for a commit, in UTF-16 units.', labels: [] },
  append_failing_seconds: {
    help: 'How long appends, of some rooms or of all, have been tried and not committed, in s; 0 where they are, or nobody appends.',
    labels: [],
  },
  claims_waiting: { help: 'Workers waiting for a run.', labels: [] },
  database_busy: { help: 'Connections to Postgres in use, those of append lanes left out.', labels: [] },
  database_waiting: { help: 'Transactions waiting for a connection to Postgres.', labels: [] },
  http_connections: { help: 'TCP connections that are no WebSocket.', labels: [] },
  http_in_flight: { help: 'HTTP requests that are being served, lasting ones left out.', labels: [] },
  in_flight_bytes: { help: 'Bytes of commands and requests that wait for their answer.', labels: [] },
  memory_share: { help: 'Part of the memory that may be used that is in use, 0 to 1.', labels: [] },
  clock_offset_seconds: { help: "The database's clock less this machine's, in s.", labels: [] },
  revocations: { help: 'Revocations kept in memory.', labels: [] },
  runs_queued: { help: 'Runs of all tenants that wait for a worker; the same number at every gateway.', labels: [] },
  runs_queued_oldest_seconds: {
    help: 'How long the run that waits longest for a worker has waited, in s; the same at every gateway.',
    labels: [],
  },
  runs_held: { help: 'Runs whose worker pushes to this gateway.', labels: [] },
  runs_uncommitted_bytes: { help: 'Run output announced and not yet committed.', labels: [] },
  bus_connected: { help: '1 while announcements flow.', labels: [] },
  database_up: { help: '1 while Postgres answers.', labels: [] },
  database_timeline: { help: 'Newest timeline of Postgres seen; grows with every promotion.', labels: [] },
  draining: { help: '1 once the gateway drains.', labels: [] },
} as const satisfies MetricTable;

type LabelsOf<T extends MetricTable, N extends keyof T> = Record<T[N]['labels'][number], string>;

export interface Metrics {
  add<N extends keyof typeof counters>(name: N, labels: LabelsOf<typeof counters, N>, by?: number): void;
  /** `seconds` is a duration in s. */
  observe<N extends keyof typeof histograms>(name: N, seconds: number, labels: LabelsOf<typeof histograms, N>): void;
  gauge<N extends keyof typeof gauges>(name: N, read: () => number): void;
}

/**
 * Counts that a limit was reached: every exit to clients calls it with the limit of its refusal, and what drops or cuts
 * without a refusal calls it itself.
 */
export function countLimit(metrics: Metrics, limit: Limit | undefined): void {
  if (limit !== undefined) metrics.add('limit_reached', { limit });
}
