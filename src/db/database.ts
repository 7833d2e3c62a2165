import type { Logger, Metrics } from '../core/telemetry.js';
import { TuttiError } from '../errors.js';
import { Cluster } from './cluster.js';
import { type Failover, settle } from './epochs.js';
import { Line, type LineOptions, type Sql, type Tx } from './line.js';
import { GATEWAY, LineTurns } from './line-turns.js';
import { findPrimary, requirePrimary } from './primary.js';
import { asDatabaseRefusal } from './refusal.js';
import { Servers } from './servers.js';

export type { Sql, Tx } from './line.js';

/** Ids of tenants, or `*` for all of them and for what belongs to the operator. */
export type Tenants = readonly string[] | '*';

export interface DatabaseOptions {
  url: string;
  /** Connections for reads and transactions. Append lanes have their own. */
  poolSize: number;
  /** Role the application works as. */
  appRole: string;
  /** Longest time for a transaction and its wait for a connection, in ms. Default 8000. */
  timeoutMs?: number;
  /** Transactions that may wait for a connection. Default 10,000. */
  waitingMax?: number;
  /** What promotions are known to be. Default `any`. */
  failover?: Failover;
  metrics?: Metrics;
  log?: Logger;
}

/** The database as the application sees it: every query runs as a role that owns nothing, for named tenants. */
export interface Database {
  readonly appRole: string;
  /** Which server is the primary, and whether its log is the one the epochs belong to. */
  readonly cluster: Cluster;
  /**
   * Runs a transaction on the primary that sees and writes rows of these tenants only. A transaction that takes too
   * long is cut off and rolled back. Where the server may not serve, `work` is called again for another one.
   * Connections are given to tenants in turn, and no tenant holds all of them; `turn` is whose turn it takes, by
   * default that of its only tenant.
   * @throws TuttiError `log_unavailable`, also for an unknown outcome of the commit; `overloaded` where too many wait
   * for a connection; `bad_request` for refused data; what `work` throws.
   */
  withTenants<T>(tenants: Tenants, work: (tx: Tx) => Promise<T>, turn?: 'gateway'): Promise<T>;
  /** Runs statements on the primary as the role of the URL, for migrations and checks: not for the application. */
  asOwner<T>(timeoutMs: number, work: (sql: Sql) => Promise<T>): Promise<T>;
  /** A connection of the caller's own, as the role of the URL; closed with the database. */
  dedicated(): Line;
  /** Whether a Postgres that may serve answers within 2 s. Never rejects. */
  healthy(): Promise<boolean>;
  close(): Promise<void>;
}

const CONNECT_TIMEOUT_MS = 5000;
const CLOSE_TIMEOUT_MS = 2000;
const HEALTH_TIMEOUT_MS = 2000;
const WAITING_MAX = 10_000;
/** For a decision on the epochs of all rooms, which is one transaction: a million rooms take about 20 s. */
const SETTLE_TIMEOUT_MS = 600_000;

const silent: Logger = { debug() {}, info() {}, warn() {}, error() {} };
const unmeasured: Metrics = { add() {}, observe() {}, gauge() {} };

/**
 * Opens the database. Behind a pooler such as PgBouncer, prepared statements are left out; nothing is ever set for a
 * session, so that transaction pooling is safe.
 * @throws TuttiError `log_unavailable` when Postgres cannot be reached.
 */
export async function openDatabase(options: DatabaseOptions): Promise<Database> {
  const servers = new Servers(options.url);
  const line: LineOptions = { servers, prepare: true, connectTimeoutMs: CONNECT_TIMEOUT_MS };
  const newest = await findPrimary(line);
  const prepare = !(await isPooled(line));
  const pool = new LinePool(options, { ...line, prepare });
  if (newest !== undefined) pool.cluster.saw(newest);
  return pool;
}

/** A pooler tells its own process id when it greets; the server behind it knows the true one. */
async function isPooled(options: LineOptions): Promise<boolean> {
  const line = new Line({ ...options, prepare: false });
  try {
    return await line.run(2 * CONNECT_TIMEOUT_MS, async (sql) => {
      const result = await sql.unsafe<{ pid: number }[]>('select pg_backend_pid() as pid');
      return result.state.pid !== result[0]?.pid;
    });
  } catch (error) {
    throw asDatabaseRefusal(error);
  } finally {
    await line.close(0);
  }
}

class LinePool implements Database {
  readonly appRole: string;
  readonly cluster: Cluster;
  readonly #line: LineOptions;
  readonly #timeoutMs: number;
  readonly #turns: LineTurns;
  readonly #owned = new Set<Line>();
  readonly #health: Line;
  #probe: Promise<boolean> | undefined;
  #closed = false;

  constructor(options: DatabaseOptions, line: LineOptions) {
    this.appRole = options.appRole;
    this.#timeoutMs = options.timeoutMs ?? 8000;
    this.#line = line;
    this.cluster = new Cluster({
      settle: () => this.asOwner(SETTLE_TIMEOUT_MS, (sql) => settle(sql, options.failover ?? 'any')),
      metrics: options.metrics ?? unmeasured,
      log: options.log ?? silent,
    });
    const lines = Array.from({ length: options.poolSize }, () => this.dedicated());
    const waitingMax = options.waitingMax ?? WAITING_MAX;
    const turns = new LineTurns(lines, { waitingMax, timeoutMs: this.#timeoutMs });
    this.#turns = turns;
    options.metrics?.gauge('database_busy', () => turns.busy);
    options.metrics?.gauge('database_waiting', () => turns.waiting);
    this.#health = this.dedicated();
  }

  async withTenants<T>(tenants: Tenants, work: (tx: Tx) => Promise<T>, turn?: 'gateway'): Promise<T> {
    const setting = tenants === '*' ? '*' : tenants.join(',');
    const deadline = performance.now() + this.#timeoutMs;
    const [only] = turn === undefined && tenants !== '*' && tenants.length === 1 ? tenants : [];
    const { line, done } = await this.#turns.take(only ?? GATEWAY);
    // The line is free again only when the work has truly ended: a statement of an abandoned transaction must never
    // run on a connection somebody else has.
    const parts: Promise<unknown>[] = [];
    let refusals = 0;
    let abandoned = false;
    try {
      return await line.run(Math.max(1, deadline - performance.now()), async (sql) => {
        for (;;) {
          const transaction = sql.begin('isolation level read committed', (tx) => {
            if (abandoned) throw new TuttiError('log_unavailable', 'The database does not answer.');
            const running = this.#scoped(tx, setting, work);
            parts.push(running);
            return running;
          }) as Promise<T>;
          parts.push(transaction);
          try {
            return await transaction;
          } catch (error) {
            // Each of the servers once, and the one that was decided on again: more is for the caller to try.
            const again = (await this.cluster.heed(error, line)) && refusals++ < this.#line.servers.list.length;
            if (!again || abandoned) throw error;
          }
        }
      });
    } catch (error) {
      abandoned = true;
      throw asDatabaseRefusal(error);
    } finally {
      void Promise.allSettled(parts).then(done);
    }
  }

  async #scoped<T>(tx: Tx, tenants: string, work: (tx: Tx) => Promise<T>): Promise<T> {
    const limit = String(this.#timeoutMs);
    // Sent before the work's first statement but not waited for: both travel together, in order, and where this
    // fails the transaction is aborted and so are they. `execute`, because a query else begins when it is awaited.
    // A plan made while the tables were small would else read them whole for as long as the connection lives.
    const { known } = this.cluster;
    const scope = tx<{ met: string }[]>`
      select tutti.meet(${known}::text) as met, set_config('role', ${this.appRole}, true), set_config('tutti.tenants', ${tenants}, true),
        set_config('statement_timeout', ${limit}, true), set_config('enable_seqscan', 'off', true),
        set_config('idle_in_transaction_session_timeout', ${limit}, true)
    `.execute();
    const [result, [scoped]] = await Promise.all([work(tx), scope]);
    if (scoped) this.cluster.saw(scoped.met);
    return result;
  }

  async asOwner<T>(timeoutMs: number, work: (sql: Sql) => Promise<T>): Promise<T> {
    const line = new Line(this.#line);
    try {
      for (let refusals = 0; ; refusals++) {
        try {
          return await line.run(timeoutMs, async (sql) => {
            await requirePrimary(sql, this.cluster.known);
            return work(sql);
          });
        } catch (error) {
          const again = (await this.cluster.heed(error, line)) && refusals < this.#line.servers.list.length;
          if (!again) throw error;
        }
      }
    } finally {
      await line.close(0);
    }
  }

  dedicated(): Line {
    const line = new Line(this.#line);
    this.#owned.add(line);
    return line;
  }

  healthy(): Promise<boolean> {
    this.#probe ??= this.#health
      .run(HEALTH_TIMEOUT_MS, (sql) => sql`select tutti.meet(${this.cluster.known}::text)`.execute())
      .then(
        () => !this.#closed,
        (error) => {
          void this.cluster.heed(error, this.#health);
          return false;
        },
      )
      .finally(() => {
        this.#probe = undefined;
      });
    return this.#probe;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#owned].map((line) => line.close(CLOSE_TIMEOUT_MS)));
  }
}
