import { appendFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { freePort } from '../support/ports.js';
import { type FaultProxy, startProxy } from '../support/proxy.js';

/** How a gateway differs from the others for a while. */
export interface Difference {
  /** `main.js` of another release. */
  main?: string;
  env?: Record<string, string>;
}

export interface SeatOptions {
  name: string;
  postgresUrl: string;
  redisUrl: string;
  env: Record<string, string>;
  /** What its gateways log is kept here, one after another. */
  logFile: string;
}

/** How long a gateway may take until it serves, over all its tries, in ms. */
const START_TIMEOUT_MS = 90_000;

/**
 * A place for a gateway. Clients know one URL, whichever process serves behind it; its links to Postgres, to Redis and
 * to its clients each go through a proxy that fails as told.
 */
export class Seat {
  #gateway: GatewayProcess | undefined;
  readonly #complaints: string[] = [];

  private constructor(
    private readonly options: SeatOptions,
    private readonly port: number,
    readonly clients: FaultProxy,
    readonly postgres: FaultProxy,
    readonly redis: FaultProxy,
  ) {}

  /** With nobody on it yet. */
  static async prepare(options: SeatOptions): Promise<Seat> {
    const port = await freePort();
    const [clients, postgres, redis] = await Promise.all([
      startProxy(port),
      startProxy(Number(new URL(options.postgresUrl).port)),
      startProxy(Number(new URL(options.redisUrl).port)),
    ]);
    return new Seat(options, port, clients, postgres, redis);
  }

  get name(): string {
    return this.options.name;
  }

  /** What clients connect to. */
  get url(): string {
    return `http://127.0.0.1:${this.clients.port}`;
  }

  /** The gateway itself, past the proxy: for so many sockets that a proxy could not hold them. */
  get directUrl(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** The process that serves now. @throws Error while there is none. */
  get gateway(): GatewayProcess {
    if (!this.#gateway) throw new Error(`nobody serves at ${this.name}`);
    return this.#gateway;
  }

  /**
   * Starts a gateway and resolves once it serves. One that ends while it starts, because Postgres was away, is started
   * again, as a supervisor would.
   */
  async start(difference: Difference = {}): Promise<void> {
    const deadline = Date.now() + START_TIMEOUT_MS;
    const url = (of: string, proxy: FaultProxy) => {
      const through = new URL(of);
      through.port = String(proxy.port);
      return through.href;
    };
    const env = {
      ...this.options.env,
      DATABASE_URL: url(this.options.postgresUrl, this.postgres),
      REDIS_URL: url(this.options.redisUrl, this.redis),
      TUTTI_NODE_ID: this.name,
      ...difference.env,
    };
    for (;;) {
      try {
        this.#gateway = await startGateway({
          env,
          port: this.port,
          ...(difference.main ? { main: difference.main } : {}),
        });
        return;
      } catch (error) {
        this.#log(`did not start: ${error instanceof Error ? error.message : error}`);
        if (Date.now() > deadline) throw error;
        await sleep(300);
      }
    }
  }

  async kill9(): Promise<void> {
    const ended = this.#vacate();
    await ended.kill9();
    await this.#bury(ended);
  }

  /** SIGTERM. @returns its exit code. */
  async drain(): Promise<number> {
    const ended = this.#vacate();
    const code = await ended.term();
    await this.#bury(ended);
    return code;
  }

  /** Something a gateway did here that none may do. */
  complain(text: string): void {
    this.#complaints.push(text);
  }

  /** What was wrong since the last call. A gateway that ended by itself is wrong too, and another takes its place. */
  async inspect(): Promise<string[]> {
    const gateway = this.#gateway;
    if (gateway && !gateway.running()) {
      this.complain(`ERR1: the gateway at ${this.name} ended by itself: ${gateway.logs().slice(-2000)}`);
      await this.#bury(this.#vacate());
      await this.start();
    }
    return this.#complaints.splice(0);
  }

  async close(): Promise<void> {
    if (this.#gateway) await this.#bury(this.#vacate());
    await Promise.all([this.clients.close(), this.postgres.close(), this.redis.close()]);
  }

  #vacate(): GatewayProcess {
    const { gateway } = this;
    this.#gateway = undefined;
    return gateway;
  }

  /** Ends what still runs of it and keeps its last words. */
  async #bury(gateway: GatewayProcess): Promise<void> {
    await gateway.stop();
    this.#log(gateway.logs());
  }

  #log(text: string): void {
    appendFileSync(this.options.logFile, `--- ${new Date().toISOString()} ${this.name}\n${text}\n`);
  }
}
