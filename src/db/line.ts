import net from 'node:net';
import postgres from 'postgres';
import { TuttiError } from '../errors.js';

/** A transaction, or a connection outside one: a tagged template that runs one statement. */
export type Sql = postgres.Sql<{ bigint: number }>;
export type Tx = postgres.TransactionSql<{ bigint: number }>;

export interface LineOptions {
  url: string;
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
  #socket: net.Socket | undefined;

  constructor(options: LineOptions) {
    let turn = 0;
    const settings: postgres.Options<{ bigint: postgres.PostgresType<number> }> & { socket: unknown } = {
      max: 1,
      prepare: options.prepare,
      connect_timeout: options.connectTimeoutMs / 1000,
      backoff: (retries) => Math.min(0.05 * 2 ** retries, 1) * (0.5 + Math.random() / 2),
      keep_alive: 10,
      connection: { application_name: 'tutti' },
      onnotice: () => {},
      types: {
        // Sequence numbers, counts and milliseconds stay far below 2^53.
        bigint: { to: 20, from: [20], parse: Number, serialize: String },
      },
      socket: async ({ host, port, path }: postgres.ParsedOptions & { host: string[]; port: number[] }) => {
        // One hop: an error that comes before the caller listens would go unseen.
        await undefined;
        const index = turn++ % host.length;
        const peer = { host: host[index] ?? 'localhost', port: port[index] ?? 5432 };
        const socket = typeof path === 'string' && path ? net.connect(path) : net.connect(peer);
        socket.setNoDelay(true);
        this.#socket = socket;
        // The driver takes the name for TLS from the socket.
        return Object.assign(socket, peer);
      },
    };
    this.sql = postgres(options.url, settings) as unknown as Sql;
  }

  /**
   * Runs work on the connection. When it takes longer than `timeoutMs` the connection is cut, so that the work ends.
   * @throws TuttiError `log_unavailable` on time-out, whatever the work throws otherwise.
   */
  async run<T>(timeoutMs: number, work: (sql: Sql) => Promise<T>): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        this.cut();
        reject(new TuttiError('log_unavailable', 'The database does not answer.'));
      }, timeoutMs);
    });
    try {
      return await Promise.race([work(this.sql), late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Drops the connection at once; the next statement opens another. */
  cut(): void {
    this.#socket?.destroy(Object.assign(new Error('The connection was cut.'), { code: 'CONNECTION_CLOSED' }));
  }

  /** Closes the connection, after at most `timeoutMs` for what runs on it. */
  async close(timeoutMs: number): Promise<void> {
    await this.sql.end({ timeout: timeoutMs / 1000 });
    this.#socket?.destroy();
  }
}
