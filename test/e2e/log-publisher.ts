import { connect, type TestClient } from '../support/client.js';
import { sleep } from './run-stage.js';

/** What a publisher was told of one of its events. */
export interface Acked {
  mid: string;
  seq: number;
}

const BETWEEN_ATTEMPTS_MS = 60;

/**
 * Publishes event after event to one room, each under one mid until it is acknowledged, by whichever gateway answers.
 * One at a time: the order of its mids is the order it promises to nobody but checks for.
 */
export class Publisher {
  readonly acked: Acked[] = [];
  /** What no correct gateway does. */
  readonly faults: string[] = [];
  /**
   * Mids whose first attempt was answered as a duplicate: only a gateway that lost Postgres in the middle and sent the
   * event again itself may say so.
   */
  readonly knownAtOnce: string[] = [];
  /** The longest that one event took from its first attempt to its acknowledgement, in ms. */
  longestMs = 0;
  /** Attempts that ended without an acknowledgement. */
  retries = 0;
  #client: TestClient | undefined;
  #next = 0;

  constructor(
    readonly name: string,
    private readonly urls: readonly string[],
    private readonly room: string,
    private readonly token: string,
    /** How long it waits for one answer before it goes elsewhere. */
    private readonly patienceMs = 12_000,
  ) {}

  /** Until `done`; every event that was begun is acknowledged when it resolves. */
  async publish(done: () => boolean, pauseMs: number): Promise<void> {
    for (let n = this.acked.length; !done(); n += 1) {
      const mid = `${this.name}-${n}`;
      const begun = performance.now();
      this.acked.push({ mid, seq: await this.#acknowledged(mid) });
      this.longestMs = Math.max(this.longestMs, performance.now() - begun);
      if (n % 25 === 24) await this.#again();
      await sleep(pauseMs);
    }
    this.#client?.close();
  }

  async #acknowledged(mid: string): Promise<number> {
    const deadline = Date.now() + 60_000;
    for (let attempt = 0; Date.now() < deadline; attempt += 1) {
      const reply = await this.#attempt(mid);
      if (reply === undefined) {
        this.retries += 1;
        await sleep(BETWEEN_ATTEMPTS_MS);
        continue;
      }
      if (attempt === 0 && reply.duplicate) this.knownAtOnce.push(mid);
      if (reply.mid !== mid) this.faults.push(`${mid} was answered as ${reply.mid}`);
      return reply.position.seq;
    }
    throw new Error(`${mid} was not acknowledged in a minute`);
  }

  /** One attempt; `undefined` where the answer leaves open whether it was stored. */
  async #attempt(mid: string) {
    try {
      const client = await this.#connected();
      const ack = await client.ask(
        'event.publish',
        { room: this.room, type: 'chat.message', data: { mid }, mid },
        this.patienceMs,
      );
      if (ack.ok) return ack as unknown as { position: { seq: number }; mid: string; duplicate: boolean };
      if (!ack.error.retryable) this.faults.push(`${mid}: ${ack.error.code} ${ack.error.message}`);
    } catch {
      this.#client?.close();
      this.#client = undefined;
    }
    return undefined;
  }

  /** LOG3: the last event once more, which is answered as it was the first time. */
  async #again(): Promise<void> {
    const last = this.acked.at(-1);
    const reply = last && (await this.#attempt(last.mid));
    if (!last || !reply) return;
    if (reply.position.seq !== last.seq || !reply.duplicate) {
      this.faults.push(`${last.mid} had ${last.seq}, then ${reply.position.seq}, duplicate: ${reply.duplicate}`);
    }
  }

  /** The open connection, else one to the next gateway in turn. */
  async #connected(): Promise<TestClient> {
    if (this.#client?.socket.connected) return this.#client;
    const url = this.urls[this.#next++ % this.urls.length] ?? '';
    this.#client = await connect({ url, token: this.token });
    return this.#client;
  }
}
