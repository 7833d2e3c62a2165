import type { Metrics } from '../core/telemetry.js';
import { TuttiError } from '../errors.js';
import { Line, type LineOptions, type Sql, type Tx } from './line.js';
import { GATEWAY, LineTurns } from './line-turns.js';
import { asDatabaseRefusal } from './refusal.js';

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
  metrics?: Metrics;
}

/** The database as the application sees it: every query runs as a role that owns nothing, for named tenants. */
export interface Database {
  readonly appRole: string;
  /**
   * Runs a transaction that sees and writes rows of these tenants only. A transaction that takes too long is cut
   * off and rolled back. Connections are given to tenants in turn, and no tenant holds all of them; `turn` is whose
   * turn it takes, by default that of its only tenant.
   * @throws TuttiError `log_unavailable`, also for an unknown outcome of the commit; `overloaded` where too many wait
   * for a connection; `bad_request` for refused data; what `work` throws.
   */
  withTenants<T>(tenants: Tenants, work: (tx: Tx) => Promise<T>, turn?: 'gateway'): Promise<T>;
  /** Runs statements as the role of the URL, for migrations and checks: not for the application. */
  asOwner<T>(timeoutMs: number, work: (sql: Sql) => Promise<T>): Promise<T>;
  /** A connection of the caller's own, as the role of the URL; closed with the database. */
  dedicated(): Line;
  /** Whether Postgres answers within 2 s. Never rejects. */
  healthy(): Promise<boolean>;
  close(): Promise<void>;
}

const CONNECT_TIMEOUT_MS = 5000;
const CLOSE_TIMEOUT_MS = 2000;
const HEALTH_TIMEOUT_MS = 2000;
const WAITING_MAX = 10_000;

/**
 * Opens the database. Behind a pooler such as PgBouncer, prepared statements are left out; nothing is ever set for a
 * session, so that transaction pooling is safe.
 * @throws TuttiError `log_unavailable` when Postgres cannot be reached.
 */
export async function openDatabase(options: DatabaseOptions): Promise<Database> {
  const line: LineOptions = { url: options.url, prepare: true, connectTimeoutMs: CONNECT_TIMEOUT_MS };
  const prepare = !(await isPooled(line));
  return new LinePool(options, { ...line, prepare });
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
    const deadline = Date.now() + this.#timeoutMs;
    const [only] = turn === undefined && tenants !== '*' && tenants.length === 1 ? tenants : [];
    const { line, done } = await this.#turns.take(only ?? GATEWAY);
    // The line is free again only when the work has truly ended: a statement of an abandoned transaction must never
    // run on a connection somebody else has.
    const parts: Promise<unknown>[] = [];
    let abandoned = false;
    try {
      return await line.run(Math.max(1, deadline - Date.now()), (sql) => {
        const transaction = sql.begin('isolation level read committed', (tx) => {
          if (abandoned) throw new TuttiError('log_unavailable', 'The database does not answer.');
          const running = this.#scoped(tx, setting, work);
          parts.push(running);
          return running;
        }) as Promise<T>;
        parts.push(transaction);
        return transaction;
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
    const scope = tx`
      select set_config('role', ${this.appRole}, true), set_config('tutti.tenants', ${tenants}, true),
        set_config('statement_timeout', ${limit}, true), set_config('enable_seqscan', 'off', true),
        set_config('idle_in_transaction_session_timeout', ${limit}, true)
    `.execute();
    const [result] = await Promise.all([work(tx), scope]);
    return result;
  }

  async asOwner<T>(timeoutMs: number, work: (sql: Sql) => Promise<T>): Promise<T> {
    const line = new Line(this.#line);
    try {
      return await line.run(timeoutMs, work);
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
      .run(HEALTH_TIMEOUT_MS, (sql) => sql.unsafe('select 1').execute())
      .then(
        () => !this.#closed,
        () => false,
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
