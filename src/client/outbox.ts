import type { CommandReply } from '../protocol/commands.js';
import { backoffMs, Refusal } from '../protocol/refusal.js';
import type { CommandInput, Connection } from './connection.js';

type Queued = 'event.publish' | 'run.create';

/** Commands one room keeps while it cannot be reached. Past it `send` rejects: who says more must be told. */
const WAITING_MAX = 10_000;

interface Item {
  name: Queued;
  payload: CommandInput<'event.publish'> | CommandInput<'run.create'>;
  settle: (result: { reply: CommandReply<Queued> } | { error: Refusal }) => void;
}

/**
 * What this client wants to be stored, in the order it was said. One command is under way at a time, and it is sent
 * again under its `mid` until the server accepts it or refuses it for good, so the order survives every retry.
 */
export class Outbox {
  readonly #connection: Connection;
  readonly #items: Item[] = [];
  #open = false;
  #dead: Refusal | undefined;
  #busy = false;
  #failures = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(connection: Connection) {
    this.#connection = connection;
  }

  get size(): number {
    return this.#items.length;
  }

  /**
   * Resolves when it is stored; rejects with the refusal. While the room cannot be reached it waits.
   * @throws Refusal `overloaded`, retryable, where {@link WAITING_MAX} wait already: nothing was sent.
   */
  send<N extends Queued>(name: N, payload: CommandInput<N> & { mid: string }): Promise<CommandReply<N>> {
    if (this.#dead) return Promise.reject(this.#dead);
    if (this.#items.length >= WAITING_MAX) {
      const message = `${WAITING_MAX} commands wait to be sent; say less until they are.`;
      return Promise.reject(new Refusal({ code: 'overloaded', message, retryable: true, retryAfterMs: 1000 }));
    }
    return new Promise((resolve, reject) => {
      const settle: Item['settle'] = (result) =>
        'error' in result ? reject(result.error) : resolve(result.reply as CommandReply<N>);
      this.#items.push({ name, payload, settle });
      void this.#pump();
    });
  }

  /** The room is joined: what waits goes out. */
  resume(): void {
    this.#open = true;
    this.#dead = undefined;
    this.#failures = 0;
    void this.#pump();
  }

  /** The room is not joined: everything waits. */
  pause(): void {
    this.#open = false;
    clearTimeout(this.#timer);
  }

  /** Nothing that waits will ever be accepted. */
  fail(error: Refusal): void {
    this.pause();
    this.#dead = error;
    for (const item of this.#items.splice(0)) item.settle({ error });
  }

  async #pump(): Promise<void> {
    clearTimeout(this.#timer);
    const item = this.#items[0];
    if (!item || !this.#open || this.#busy) return;
    this.#busy = true;
    try {
      const reply = await this.#connection.request(item.name, item.payload);
      this.#failures = 0;
      this.#done(item, { reply });
    } catch (error) {
      this.#busy = false;
      if (error instanceof Refusal && !retriable(error)) this.#done(item, { error });
      else return this.#later(error);
    }
    this.#busy = false;
    void this.#pump();
  }

  #done(item: Item, result: Parameters<Item['settle']>[0]): void {
    if (this.#items[0] === item) this.#items.shift();
    item.settle(result);
  }

  #later(error: unknown): void {
    if (!this.#open) return;
    const asked = error instanceof Refusal ? (error.retryAfterMs ?? 0) : 0;
    const pause = Math.max(asked, backoffMs(this.#failures++, 300, 8000));
    this.#timer = setTimeout(() => void this.#pump(), pause);
  }
}

/** A token that ended stands in the way of the session, not of the message: the next session sends it. */
const retriable = (error: Refusal): boolean =>
  error.retryable || error.code === 'token_expired' || error.code === 'unauthenticated' || error.code === 'not_joined';
