import type { JoinFrom } from '../../src/protocol/commands.js';
import { connect, type TestClient } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { sleep } from './run-stage.js';

const BETWEEN_ATTEMPTS_MS = 60;

/**
 * A bare socket.io-client that does what docs/PROTOCOL.md asks of a reader and no more: it keeps the position of the last
 * event it handled, and joins with it wherever a gateway lets it in.
 */
export class Reader {
  /** Of every event handled; the first has seq `start + 1`. */
  readonly mids: string[] = [];
  /** What no correct gateway does. */
  readonly faults: string[] = [];
  /** Times it joined. */
  joins = 0;
  client: TestClient | undefined;
  position: { epoch: string; seq: number } | undefined;
  #stopped = false;
  #running: Promise<void> | undefined;
  #next: number;

  /** @param first where in `urls` it begins; it takes them in turn after that */
  constructor(
    private readonly urls: readonly string[],
    private readonly room: string,
    private readonly token: string,
    first = 0,
  ) {
    this.#next = first;
  }

  get seq(): number {
    return this.position?.seq ?? 0;
  }

  /** Joined and goes on until {@link stop}. */
  async follow(): Promise<this> {
    this.#running = this.#run();
    await eventually('a reader joins', () => this.joins > 0);
    return this;
  }

  async reaches(seq: number, timeoutMs = 20_000): Promise<void> {
    await eventually(`a reader reaches ${seq}; it is at ${this.seq}`, () => this.seq >= seq, timeoutMs);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.client?.close();
    await this.#running;
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      const url = this.urls[this.#next++ % this.urls.length] ?? '';
      try {
        const client = await connect({ url, token: this.token });
        this.client = client;
        client.socket.on('event', (event) => this.#handle(event));
        client.socket.on('room.resync', (push) => this.faults.push(`resync: ${JSON.stringify(push)}`));
        await this.#join(client);
        await client.until(() => client.disconnects.length > 0, 'an end', 600_000);
      } catch {
        // The gateway is not there; the next one in turn may be.
      }
      this.client?.close();
      if (!this.#stopped) await sleep(BETWEEN_ATTEMPTS_MS);
    }
  }

  async #join(client: TestClient): Promise<void> {
    const from: JoinFrom = this.position ?? 'start';
    const ack = await client.ask('room.join', { room: this.room, from }, 10_000);
    if (!ack.ok) {
      if (!ack.error.retryable) this.faults.push(`join: ${ack.error.code} ${ack.error.message}`);
      client.close();
      return;
    }
    this.joins += 1;
    const { position, resync } = ack as unknown as { position: { epoch: string; seq: number }; resync?: unknown };
    if (resync) this.faults.push(`resync upon join: ${JSON.stringify(ack)}`);
    if (typeof from === 'object' && (position.epoch !== from.epoch || position.seq !== from.seq)) {
      this.faults.push(`asked for ${JSON.stringify(from)}, put at ${JSON.stringify(position)}`);
    }
    this.position ??= position;
  }

  #handle(event: { room: string; epoch: string; seq: number; mid: string }): void {
    const { position } = this;
    if (event.room !== this.room) this.faults.push(`an event of ${event.room}`);
    if (!position) return void this.faults.push('an event before the reply to the join');
    if (event.epoch !== position.epoch) this.faults.push(`epoch ${event.epoch} after ${position.epoch}`);
    if (event.seq !== position.seq + 1) this.faults.push(`seq ${event.seq} after ${position.seq}`);
    this.position = { epoch: event.epoch, seq: event.seq };
    this.mids.push(event.mid);
  }
}
