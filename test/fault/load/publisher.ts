import { setTimeout as sleep } from 'node:timers/promises';
import { monotonic } from '../history.js';
import type { LoadConfig, LoadTenant } from './config.js';
import type { Ledger } from './ledger.js';
import { type Answer, Link } from './link.js';

/** Refusals that leave open whether the attempt was stored. */
const OPEN = new Set(['log_unavailable', 'internal']);

/** Writes down how an attempt that was not acknowledged ended. @returns whether it is to be sent again. */
export function recordRefusal(
  ledger: Ledger,
  publisher: string,
  mid: string,
  error: { code: string; retryable: boolean },
): boolean {
  if (OPEN.has(error.code)) {
    ledger.counts.unknown++;
    ledger.write(['unknown', monotonic(), publisher, mid, error.code]);
    return true;
  }
  ledger.counts.nacked++;
  ledger.write(['nack', monotonic(), publisher, mid, error.code]);
  return error.retryable;
}

interface Item {
  n: number;
  mid: string;
  type: string;
  sentAt: number;
}

/** Filler of what is shouted: most of what one may say at once. */
const BULK = 'x'.repeat(48 * 1024);
/** Shouts without an answer at a time, and time between looks, in ms: below what a session may say in a second. */
const SHOUTS = 4;
const SHOUT_MS = 50;

export interface PublisherOptions {
  name: string;
  tenant: LoadTenant;
  room: string;
  token: string;
  gateways: LoadConfig['gateways'];
  random: () => number;
  window: number;
  answerMs: number;
  payloadBytes: number;
}

/**
 * Publishes to one room over one socket at a time, up to `window` events without waiting. What was not acknowledged is sent
 * again, under its mid and in its order, before anything new.
 */
export class Publisher {
  readonly #options: PublisherOptions;
  readonly #ledger: Ledger;
  readonly #link: Link;
  readonly #data: { c: string; f: string };
  /** Sent on the present connection and not answered, oldest first. */
  readonly #open = new Map<string, Item>();
  /** To be sent again, in their order. */
  #again: Item[] = [];
  #next = 0;
  #connection = 0;
  #pausedUntil = 0;
  #poison = 0;

  constructor(ledger: Ledger, options: PublisherOptions) {
    this.#ledger = ledger;
    this.#options = options;
    this.#data = { c: options.tenant.canary, f: 'x'.repeat(options.payloadBytes) };
    this.#link = new Link({
      gateways: options.gateways,
      random: options.random,
      auth: { token: options.token },
      raw: ledger.searchFor(options.tenant.id, options.name, 'socket'),
      up: (_, gateway) => {
        this.#connection++;
        ledger.write(['conn', monotonic(), `${options.name}/${this.#connection}`, gateway]);
        this.#pausedUntil = 0;
        this.pump(0);
      },
      down: (why) => this.#lost(why),
    });
  }

  get name(): string {
    return this.#options.name;
  }

  get options(): PublisherOptions {
    return this.#options;
  }

  get link(): Link {
    return this.#link;
  }

  /** Events that have no answer yet. */
  get unresolved(): number {
    return this.#open.size + this.#again.length;
  }

  open(): void {
    this.#link.open();
  }

  /** The next event is one that Postgres refuses; see `POISON`. */
  poison(): void {
    this.#poison++;
  }

  /**
   * Says `count` things in its room that are as large as they may be, nearly, and that are kept nowhere: readers that miss them
   * need not be given them. Resolves once all are answered, the connection is gone, or at `until`, ms as of `Date.now()`.
   * @returns how many were answered.
   */
  async shout(count: number, until: number): Promise<number> {
    const { socket } = this.#link;
    const payload = { room: this.#options.room, type: 'load.shout', data: { ...this.#data, f: BULK } };
    let [said, answered] = [0, 0];
    while (answered < count && socket === this.#link.socket && Date.now() < until) {
      for (; said < count && said - answered < SHOUTS; said++) {
        socket?.emit('broadcast.send', payload, () => answered++);
      }
      await sleep(SHOUT_MS);
    }
    return answered;
  }

  /** Sends what waits, then up to `fresh` new events. @returns how many new ones were sent. */
  pump(fresh: number): number {
    if (Date.now() < this.#pausedUntil) return 0;
    const { window } = this.#options;
    while (this.#again.length > 0 && this.#open.size < window) {
      const item = this.#again.shift();
      if (!item || !this.#send(item)) {
        if (item) this.#again.unshift(item);
        return 0;
      }
    }
    let sent = 0;
    while (sent < fresh && this.#open.size < window && this.#link.socket) {
      const n = this.#next++;
      const type = this.#poison > 0 ? POISON_TYPE : 'load.event';
      if (this.#poison > 0) this.#poison--;
      this.#send({ n, mid: `${this.#options.name}-${n}`, type, sentAt: 0 });
      sent++;
    }
    return sent;
  }

  /** Gives up a connection whose oldest command has waited too long. `now` is ms as of `Date.now()`. */
  tick(now: number): void {
    const oldest = this.#open.values().next().value;
    if (oldest && now - oldest.sentAt > this.#options.answerMs) this.#link.lose('no answer');
  }

  close(): void {
    this.#link.close();
  }

  #send(item: Item): boolean {
    const socket = this.#link.socket;
    if (!socket) return false;
    const { name, tenant, room } = this.#options;
    item.sentAt = Date.now();
    this.#open.set(item.mid, item);
    this.#ledger.counts.sent++;
    this.#ledger.write(['send', monotonic(), name, tenant.id, room, item.mid, `${name}/${this.#connection}`]);
    const connection = this.#connection;
    socket.emit('event.publish', { room, type: item.type, data: this.#data, mid: item.mid }, (answer: Answer) => {
      if (connection === this.#connection && this.#open.delete(item.mid)) this.#answered(item, answer);
    });
    return true;
  }

  #answered(item: Item, answer: Answer): void {
    const { name, tenant, room } = this.#options;
    if (answer.ok) {
      const { position, mid, duplicate } = answer as unknown as Acknowledged;
      this.#ledger.counts.acked++;
      this.#ledger.sawHead(tenant.id, room, position.epoch, position.seq);
      this.#ledger.write(['ack', monotonic(), name, mid, position.epoch, position.seq, duplicate]);
      return;
    }
    const { error } = answer;
    if (!recordRefusal(this.#ledger, name, item.mid, error)) return;
    this.#keep([item]);
    this.#pausedUntil = Math.max(this.#pausedUntil, Date.now() + (error.retryAfterMs ?? 100));
    if (error.code === 'draining') this.#link.lose('draining');
  }

  #lost(why: string): void {
    const { name } = this.#options;
    const open = [...this.#open.values()];
    this.#open.clear();
    for (const { mid } of open) {
      this.#ledger.counts.unknown++;
      this.#ledger.write(['unknown', monotonic(), name, mid, why]);
    }
    this.#keep(open);
  }

  #keep(items: Item[]): void {
    this.#again = [...this.#again, ...items].sort((a, b) => a.n - b.n);
  }
}

/** The reply to a publish. */
export interface Acknowledged {
  position: { epoch: string; seq: number };
  mid: string;
  duplicate: boolean;
}

/** Type of the events that {@link POISON_SQL} makes Postgres refuse. */
export const POISON_TYPE = 'load.poison';

/**
 * Nothing that passes the protocol is refused by the tables, so a world that wants a poison event in a batch has to teach its
 * Postgres to mind one: run this as the database's owner. Without it such an event is stored like any other.
 */
export const POISON_SQL = `
  create or replace function public.load_poison() returns trigger language plpgsql as
    $$ begin raise exception 'poison' using errcode = '22000'; end $$;
  create or replace trigger load_poison before insert on tutti.events
    for each row when (new.type = '${POISON_TYPE}') execute function public.load_poison()`;
