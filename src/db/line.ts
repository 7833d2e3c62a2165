import net from 'node:net';
import postgres from 'postgres';
import { TuttiError } from '../errors.js';
import type { Server, Servers } from './servers.js';

/** A transaction, or a connection outside one: a tagged template that runs one statement. */
export type Sql = postgres.Sql<{ bigint: number }>;
export type Tx = postgres.TransactionSql<{ bigint: number }>;

export interface LineOptions {
  servers: Servers;
  /** `false` behind a pooler that moves a connection between servers, where prepared statements get lost. */
  prepare: boolean;
  /** Longest wait for a connection, in ms. */
  connectTimeoutMs: number;
}

/**
 * One connection to Postgres that opens when it is used and again after it was lost. Unlike one of a pool it can
 * be cut: a peer that vanished without a word would else keep a statement waiting for ever.
 */
export class Line {
  readonly sql: Sql;
  readonly #servers: Servers;
  #server: Server | undefined;
  #socket: net.Socket | undefined;
  #dialling: AbortController | undefined;
  /** Whether something was committed here that no standby may have. */
  #alone = false;

  constructor({ servers, ...options }: LineOptions) {
    this.#servers = servers;
    const settings: postgres.Options<{ bigint: postgres.PostgresType<number> }> & { socket: unknown } = {
      max: 1,
      prepare: options.prepare,
      connect_timeout: options.connectTimeoutMs / 1000,
      backoff: (retries) => Math.min(0.05 * 2 ** retries, 1) * (0.5 + Math.random() / 2),
      keep_alive: 10,
      connection: { application_name: 'tutti' },
      // Somebody cancelled the wait for a synchronous standby. Postgres then calls the commit a success, with a warning.
      onnotice: ({ routine }) => {
        if (routine === 'SyncRepWaitForLSN') this.#alone = true;
      },
      types: {
        // Sequence numbers, counts and milliseconds stay far below 2^53.
        bigint: { to: 20, from: [20], parse: Number, serialize: String },
      },
      socket: async ({ path }: postgres.ParsedOptions & { path?: unknown }) => {
        // One hop: an error that comes before the caller listens would go unseen.
        await undefined;
        const socket = typeof path === 'string' && path ? net.connect(path) : await this.#dial();
        socket.setNoDelay(true);
        this.#socket = socket;
        // The driver takes the name for TLS from the socket.
        return Object.assign(socket, this.#server);
      },
    };
    this.sql = postgres(servers.url, settings) as unknown as Sql;
  }

  /**
   * Runs work on the connection. When it takes longer than `timeoutMs` the connection is cut, so that the work ends,
   * and another server is tried next, where there is one.
   * @throws TuttiError `log_unavailable` on time-out, and where a commit is not as safe as it was to be; whatever the
   * work throws otherwise.
   */
  async run<T>(timeoutMs: number, work: (sql: Sql) => Promise<T>): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        // Where there are others: a server that froze takes connections and says nothing, for ever.
        this.refuse();
        reject(new TuttiError('log_unavailable', 'The database does not answer.'));
      }, timeoutMs);
    });
    this.#alone = false;
    try {
      const result = await Promise.race([work(this.sql), late]);
      if (this.#alone) throw new TuttiError('log_unavailable', 'The commit is on one server only.');
      return result;
    } finally {
      clearTimeout(timer);
    }
  }

  /** The server this connects to may not serve: the next statement goes to another one, where there is one. */
  refuse(): Server | undefined {
    const server = this.#server;
    if (server) this.#servers.pass(server);
    this.cut();
    return server;
  }

  /** Drops the connection at once; the next statement opens another. */
  cut(): void {
    this.#dialling?.abort();
    this.#socket?.destroy(Object.assign(new Error('The connection was cut.'), { code: 'CONNECTION_CLOSED' }));
  }

  /** Closes the connection, after at most `timeoutMs` for what runs on it. */
  async close(timeoutMs: number): Promise<void> {
    await this.sql.end({ timeout: timeoutMs / 1000 });
    this.#dialling?.abort();
    this.#socket?.destroy();
  }

  async #dial(): Promise<net.Socket> {
    const [only, ...others] = this.#servers.list;
    if (only && others.length === 0) {
      this.#server = only;
      return net.connect(only);
    }
    const dialling = new AbortController();
    this.#dialling = dialling;
    try {
      const { socket, server } = await this.#servers.connect(dialling.signal);
      this.#server = server;
      return socket;
    } catch (error) {
      // The driver waits for ever where it gets no socket; it gets one that fails once the driver listens.
      const dead = new net.Socket();
      setImmediate(() => dead.destroy(error instanceof Error ? error : undefined));
      return dead;
    } finally {
      this.#dialling = undefined;
    }
  }
}
