import { setTimeout as sleep } from 'node:timers/promises';
import { pick } from '../../support/random.js';
import { monotonic } from '../history.js';
import type { LoadConfig, LoadTenant } from './config.js';
import type { Ledger } from './ledger.js';
import { type Answer, Link } from './link.js';
import { MODEL } from './worker.js';

export interface AskerOptions {
  name: string;
  tenant: LoadTenant;
  token: string;
  gateways: LoadConfig['gateways'];
  random: () => number;
  answerMs: number;
  /** Told of each run that was made. */
  made(run: string): void;
}

interface Wish {
  mid: string;
  room: string;
  sentAt: number;
}

/** Runs whose asking has no answer yet: past it no new ones are asked for. */
const OPEN_MAX = 16;
const HTTP_SHARE = 0.2;
const CANCEL_SHARE = 0.05;
const CANCEL_AFTER_MS = 1500;

/** Asks for runs in the rooms of a tenant, over its socket and over HTTP, each under a mid until it is made; cancels a few. */
export class Asker {
  readonly #options: AskerOptions;
  readonly #ledger: Ledger;
  readonly #link: Link;
  readonly #search: (text: unknown) => void;
  readonly #open = new Map<string, Wish>();
  #overHttp = 0;
  #next = 0;
  #closed = false;

  constructor(ledger: Ledger, options: AskerOptions) {
    this.#ledger = ledger;
    this.#options = options;
    this.#search = ledger.searchFor(options.tenant.id, options.name, 'asker');
    this.#link = new Link({
      gateways: options.gateways,
      random: options.random,
      auth: { token: options.token },
      raw: this.#search,
      up: () => {
        for (const wish of this.#open.values()) this.#send(wish);
      },
      down: () => undefined,
    });
  }

  get name(): string {
    return this.#options.name;
  }

  get link(): Link {
    return this.#link;
  }

  get unresolved(): number {
    return this.#open.size + this.#overHttp;
  }

  open(): void {
    this.#link.open();
  }

  close(): void {
    this.#closed = true;
    this.#link.close();
  }

  /** One more run, unless too many wait. */
  ask(): void {
    if (this.unresolved >= OPEN_MAX) return;
    const { name, tenant, random } = this.#options;
    const wish = { mid: `${name}-${this.#next++}`, room: pick(tenant.rooms, random), sentAt: 0 };
    this.#ledger.write(['wish', monotonic(), tenant.id, wish.room, wish.mid]);
    if (random() < HTTP_SHARE) return void this.#askOverHttp(wish);
    this.#open.set(wish.mid, wish);
    this.#send(wish);
  }

  tick(now: number): void {
    const oldest = this.#open.values().next().value;
    if (oldest && this.#link.socket && now - oldest.sentAt > this.#options.answerMs) this.#link.lose('no answer');
  }

  #payload({ mid }: Wish) {
    return { model: MODEL, input: { c: this.#options.tenant.canary }, mid };
  }

  #send(wish: Wish): void {
    const socket = this.#link.socket;
    if (!socket) return;
    wish.sentAt = Date.now();
    socket.emit('run.create', { room: wish.room, ...this.#payload(wish) }, (answer: Answer) => {
      if (!this.#open.has(wish.mid)) return;
      if (!answer.ok && answer.error.retryable) {
        setTimeout(() => this.#send(wish), answer.error.retryAfterMs ?? 200);
        return;
      }
      this.#open.delete(wish.mid);
      if (answer.ok) this.#made((answer as unknown as { run: { id: string } }).run.id, wish);
    });
  }

  async #askOverHttp(wish: Wish): Promise<void> {
    const { gateways, random, answerMs, token } = this.#options;
    this.#overHttp++;
    while (!this.#closed) {
      try {
        const response = await fetch(`${pick(gateways, random).url}/v1/rooms/${wish.room}/runs`, {
          method: 'POST',
          headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
          body: JSON.stringify(this.#payload(wish)),
          signal: AbortSignal.timeout(answerMs),
        });
        const text = await response.text();
        this.#search(text);
        const body = JSON.parse(text) as { run?: { id: string }; retryable?: boolean };
        if (body.run) this.#made(body.run.id, wish);
        if (body.run || body.retryable !== true) break;
      } catch {
        // No answer: the next attempt tells, under the same mid.
      }
      await sleep(300 * (0.5 + random()));
    }
    this.#overHttp--;
  }

  #made(run: string, { room }: Wish): void {
    const { tenant, random, made } = this.#options;
    this.#ledger.asked(run, tenant.id, room);
    made(run);
    if (random() >= CANCEL_SHARE) return;
    setTimeout(() => this.#link.socket?.emit('run.cancel', { run }), random() * CANCEL_AFTER_MS).unref();
  }
}
