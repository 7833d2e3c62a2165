import { setTimeout as sleep } from 'node:timers/promises';
import { pick } from '../../support/random.js';
import { monotonic } from '../history.js';
import type { Ledger } from './ledger.js';
import { type Acknowledged, type PublisherOptions, recordRefusal } from './publisher.js';

/** Publishes to one room over HTTP, one event at a time, each under its mid until it is acknowledged or refused for good. */
export class HttpPublisher {
  readonly #options: PublisherOptions;
  readonly #ledger: Ledger;
  readonly #search: (text: string) => void;
  readonly #body: string;
  #gateway: { name: string; url: string };
  #next = 0;
  #busy = false;
  #closed = false;

  constructor(ledger: Ledger, options: PublisherOptions) {
    this.#ledger = ledger;
    this.#options = options;
    this.#gateway = pick(options.gateways, options.random);
    this.#search = ledger.searchFor(options.tenant.id, options.name, 'http');
    this.#body = JSON.stringify({ c: options.tenant.canary, f: 'x'.repeat(options.payloadBytes) });
  }

  get unresolved(): number {
    return this.#busy ? 1 : 0;
  }

  /** Begins one event, unless the last one is still under way. @returns how many were begun. */
  pump(fresh: number): number {
    if (this.#busy || fresh < 1 || this.#closed) return 0;
    this.#busy = true;
    void this.#publish(`${this.#options.name}-${this.#next++}`).finally(() => {
      this.#busy = false;
    });
    return 1;
  }

  close(): void {
    this.#closed = true;
  }

  async #publish(mid: string): Promise<void> {
    for (let failures = 0; !this.#closed; failures++) {
      const pause = await this.#attempt(mid);
      if (pause === undefined) return;
      this.#gateway = pick(this.#options.gateways, this.#options.random);
      await sleep(Math.max(pause, Math.min(2000, 50 * 2 ** Math.min(failures, 6)) * (0.5 + this.#options.random())));
    }
  }

  /** @returns ms to wait before the next attempt, or `undefined` where there is none. */
  async #attempt(mid: string): Promise<number | undefined> {
    const { name, tenant, room, token, answerMs } = this.#options;
    this.#ledger.counts.sent++;
    // One at a time, so all of them share an order.
    this.#ledger.write(['send', monotonic(), name, tenant.id, room, mid, name]);
    let status: number;
    let text: string;
    try {
      const response = await fetch(`${this.#gateway.url}/v1/rooms/${room}/events`, {
        method: 'POST',
        headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
        body: `{"type":"load.event","mid":"${mid}","data":${this.#body}}`,
        signal: AbortSignal.timeout(answerMs),
      });
      status = response.status;
      text = await response.text();
      this.#search(text);
    } catch (error) {
      this.#ledger.counts.unknown++;
      this.#ledger.write(['unknown', monotonic(), name, mid, error instanceof Error ? error.message : 'failed']);
      return 0;
    }
    if (status === 201 || status === 200) {
      const { position, mid: told, duplicate } = JSON.parse(text) as Acknowledged;
      this.#ledger.counts.acked++;
      this.#ledger.sawHead(tenant.id, room, position.epoch, position.seq);
      this.#ledger.write(['ack', monotonic(), name, told, position.epoch, position.seq, duplicate]);
      return undefined;
    }
    const problem = JSON.parse(text) as { code: string; retryable: boolean; retryAfterMs?: number };
    return recordRefusal(this.#ledger, name, mid, problem) ? (problem.retryAfterMs ?? 0) : undefined;
  }
}
