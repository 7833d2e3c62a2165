import { io, type Socket } from 'socket.io-client';
import type { z } from 'zod';
import type { WireError } from '../../src/errors.js';
import type { CommandName, CommandReply, commands } from '../../src/protocol/commands.js';
import type { Pushes, PushName } from '../../src/protocol/pushes.js';

export type Push = { [N in PushName]: { name: N; data: Pushes[N] } }[PushName];
export type Ack = ({ ok: true } & Record<string, unknown>) | { ok: false; error: WireError };
type Payload<N extends CommandName> = z.input<(typeof commands)[N]['payload']>;

/** A command or a connection that was refused; `error` is what stood on the wire. */
export class Refused extends Error {
  override readonly name = 'Refused';
  constructor(readonly error: WireError) {
    super(`${error.code}: ${error.message}`);
  }
}

export interface ConnectOptions {
  url: string;
  token?: string;
  /** Instead of `{ token }`. */
  auth?: Record<string, unknown>;
  namespace?: string;
  /** Default `false`: tests say when to reconnect. */
  reconnection?: boolean;
  extraHeaders?: Record<string, string>;
}

/** A bare socket.io-client that keeps everything it was pushed. */
export class TestClient {
  /** Every push in the order it arrived. */
  readonly pushes: Push[] = [];
  /** Why the socket was lost, in order. */
  readonly disconnects: string[] = [];
  private readonly waiting = new Set<() => void>();
  private waking = false;

  constructor(readonly socket: Socket) {
    socket.onAny((name: string, data: unknown) => {
      this.pushes.push({ name, data } as Push);
      this.wake();
    });
    socket.on('disconnect', (reason) => {
      this.disconnects.push(reason);
      this.wake();
    });
  }

  /** All pushes of one name. */
  of<N extends PushName>(name: N): Pushes[N][] {
    return this.pushes.flatMap((push) => (push.name === name ? [push.data as Pushes[N]] : []));
  }

  /** @throws Refused if the answer is not `ok`, Error if there is none in 20 s. */
  async call<N extends CommandName>(command: N, payload: Payload<N>): Promise<CommandReply<N>> {
    const ack = await this.ask(command, payload);
    if (!ack.ok) throw new Refused(ack.error);
    return ack as unknown as CommandReply<N>;
  }

  /** Any command with any payload; the answer as it stood on the wire. */
  async ask(command: string, payload: unknown, timeoutMs = 20_000): Promise<Ack> {
    return (await this.socket.timeout(timeoutMs).emitWithAck(command, payload)) as Ack;
  }

  /** The first push of a name, past or future, that satisfies `test`. */
  waitFor<N extends PushName>(
    name: N,
    test: (data: Pushes[N]) => boolean = () => true,
    timeoutMs = 15_000,
  ): Promise<Pushes[N]> {
    return this.until(() => this.of(name).find(test), `a push ${name}`, timeoutMs);
  }

  /** Resolves with the first value that is not `undefined` or `false`; looked at after pushes and disconnects. */
  until<T>(look: () => T | undefined | false, what = 'a condition', timeoutMs = 15_000): Promise<T> {
    return new Promise((resolve, reject) => {
      const settle = () => {
        const found = look();
        if (found === undefined || found === false) return;
        clearTimeout(timer);
        this.waiting.delete(settle);
        resolve(found);
      };
      const timer = setTimeout(() => {
        this.waiting.delete(settle);
        const seen = this.pushes.slice(-5).map((push) => JSON.stringify(push).slice(0, 200));
        reject(
          new Error(
            `no ${what} in ${timeoutMs} ms; disconnects: ${this.disconnects}; last pushes:\n${seen.join('\n')}`,
          ),
        );
      }, timeoutMs);
      this.waiting.add(settle);
      settle();
    });
  }

  close(): void {
    this.socket.disconnect();
  }

  /** Once for all that arrives together: some tests look through thousands of pushes each time. */
  private wake(): void {
    if (this.waking || this.waiting.size === 0) return;
    this.waking = true;
    setImmediate(() => {
      this.waking = false;
      for (const look of [...this.waiting]) look();
    });
  }
}

/** Connects and resolves once the server accepted. @throws Refused with the server's reason, Error if there is none. */
export function connect(options: ConnectOptions): Promise<TestClient> {
  const socket = io(`${options.url}${options.namespace ?? '/'}`, {
    transports: ['websocket'],
    auth: options.auth ?? { token: options.token },
    reconnection: options.reconnection ?? false,
    forceNew: true,
    autoConnect: false,
    timeout: 10_000,
    ...(options.extraHeaders ? { extraHeaders: options.extraHeaders } : {}),
  });
  const client = new TestClient(socket);
  return new Promise((resolve, reject) => {
    socket.once('connect', () => resolve(client));
    // A gateway that drains closes connections that it has not let in yet: clients come again, and this is told to the test.
    socket.once('disconnect', (reason) => {
      if (!options.reconnection) reject(new Error(`The connection was closed: ${reason}`));
    });
    socket.on('connect_error', (error: Error & { data?: WireError }) => {
      if (options.reconnection && socket.active && !error.data) return; // it tries again by itself
      socket.disconnect();
      reject(error.data ? new Refused(error.data) : error);
    });
    socket.connect();
  });
}
