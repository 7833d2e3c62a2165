import type { Right } from '../protocol/capabilities.js';
import type { CommandReply, JoinFrom, ResyncReason } from '../protocol/commands.js';
import type { Position } from '../protocol/primitives.js';
import type { Pushes } from '../protocol/pushes.js';
import { backoffMs, Refusal } from '../protocol/refusal.js';
import type { Run } from '../protocol/runs.js';
import type { CommandInput, Connection } from './connection.js';
import { Emitter } from './emitter.js';
import { Outbox } from './outbox.js';
import { RunBook, type RunView } from './runs.js';

export type RoomEvent = Pushes['event'];

export interface JoinOptions {
  /** Where to start reading. Default `latest`. */
  from?: JoinFrom;
  /** Instead of `from`: start with so many of the newest events, read from history, and go on without a gap. */
  recent?: number;
}

/** `joined`: events arrive. `joining`: they will again. `refused`: the server said no for good. */
export type RoomState =
  | { status: 'joining' }
  | { status: 'joined' }
  | { status: 'refused'; error: Refusal }
  | { status: 'left' };

interface RoomEvents {
  /** Each event exactly once, in order of `seq`; several at once where a replay brought them. */
  event: RoomEvent;
  /** The position was lost: forget what events built. With `recent`, the newest events follow again. */
  reset: { reason: ResyncReason };
  broadcast: Pushes['broadcast'];
  run: RunView;
  state: RoomState;
}

/** One room. It keeps its position and comes back to it after every loss of the connection. */
export class RoomHandle {
  readonly name: string;
  readonly events = new Emitter<RoomEvents>();
  readonly runs: RunBook;
  readonly #connection: Connection;
  readonly #outbox: Outbox;
  readonly #options: JoinOptions;
  #position: Position | undefined;
  #state: RoomState = { status: 'joining' };
  #rights: readonly Right[] = [];
  #joinNumber = 0;
  #failures = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(name: string, options: JoinOptions, connection: Connection) {
    this.name = name;
    this.#options = options;
    this.#connection = connection;
    this.#outbox = new Outbox(connection);
    const changed = (run: RunView) => this.events.emit('run', run);
    this.runs = new RunBook(changed, () => this.#heal());
  }

  get position(): Position | undefined {
    return this.#position;
  }

  get state(): RoomState {
    return this.#state;
  }

  /** The rights on this room, as of the last join. */
  get rights(): readonly Right[] {
    return this.#rights;
  }

  /** Commands that wait for an answer. */
  get pending(): number {
    return this.#outbox.size;
  }

  on<K extends keyof RoomEvents>(name: K, listener: (value: RoomEvents[K]) => void): () => void {
    return this.events.on(name, listener);
  }

  /**
   * Stores an event. It waits for the connection as long as that takes and is stored once, after what was said before
   * it. `mid` is made here unless an earlier one is to be tried again.
   * @throws Refusal where the server refuses it for good.
   */
  publish(type: string, data: unknown, mid: string = newMid()): Promise<CommandReply<'event.publish'>> {
    return this.#outbox.send('event.publish', { room: this.name, type, data, mid });
  }

  /** Creates a run; waits and retries as {@link publish} does, in one order with it. */
  async createRun(model: string, input: unknown, mid: string = newMid()): Promise<Run> {
    return (await this.#outbox.send('run.create', { room: this.name, model, input, mid })).run;
  }

  /** @throws Refusal, or Unanswered while not connected. */
  async cancelRun(run: string): Promise<Run> {
    return (await this.#connection.request('run.cancel', { run })).run;
  }

  /** Sends to who is here now. @throws Refusal, or Unanswered while not connected. */
  async broadcast(type: string, data: unknown): Promise<void> {
    await this.#connection.request('broadcast.send', { room: this.name, type, data });
  }

  /** A page of old events, oldest first. Runs in them are known afterwards. */
  async history(range: Omit<CommandInput<'event.history'>, 'room' | 'order'>): Promise<HistoryPage> {
    const order = range.after === undefined ? 'desc' : 'asc';
    const { events, ...page } = await this.#connection.request('event.history', { room: this.name, ...range, order });
    const sorted = (events as RoomEvent[]).sort((a, b) => a.seq - b.seq);
    for (const event of sorted) this.runs.event(event);
    return { ...page, events: sorted };
  }

  /** Stops reading; what was not stored yet rejects. For TuttiClient. */
  leave(): void {
    this.#pause();
    this.#outbox.fail(new Refusal({ code: 'left', message: 'The room was left.', retryable: false }));
    this.#become({ status: 'left' });
    if (this.#connection.connected) this.#connection.request('room.leave', { room: this.name }).catch(() => undefined);
  }

  /** The connection is there. For TuttiClient. */
  connected(): void {
    if (this.#state.status === 'left') return;
    this.#failures = 0;
    void this.#join();
  }

  /** The connection is gone. For TuttiClient. */
  disconnected(): void {
    if (this.#state.status === 'left') return;
    this.#pause();
    this.#become({ status: 'joining' });
  }

  /** The connection will not come back. For TuttiClient. */
  closed(error: Refusal): void {
    if (this.#state.status === 'left') return;
    this.#pause();
    this.#outbox.fail(error);
    this.#become({ status: 'refused', error });
  }

  receiveEvent(event: RoomEvent): void {
    const position = this.#position;
    if (!position || this.#state.status === 'left') return;
    const sameLog = event.epoch === position.epoch;
    if (sameLog && event.seq <= position.seq) return;
    if (sameLog && event.seq === position.seq + 1) this.#deliver(event);
    else this.#heal();
  }

  receiveResync({ reason, position }: Pushes['room.resync']): void {
    this.#startOver(reason, position);
    if (this.#position) return; // the feed goes on from there by itself
    this.#pause();
    this.#become({ status: 'joining' });
    void this.#join();
  }

  #deliver(event: RoomEvent): void {
    this.#position = { epoch: event.epoch, seq: event.seq };
    this.runs.event(event);
    this.events.emit('event', event);
  }

  async #join(): Promise<void> {
    clearTimeout(this.#timer);
    const number = ++this.#joinNumber;
    const superseded = () => number !== this.#joinNumber;
    try {
      const { recent } = this.#options;
      if (!this.#position && recent) await this.#catchUp(recent, superseded);
      if (superseded()) return;
      const from = this.#position ?? this.#options.from ?? 'latest';
      // Replayed events may stand right behind the reply, so it is taken before they are.
      await this.#connection.request('room.join', { room: this.name, from }, (reply) => {
        if (!superseded()) this.#joined(reply);
      });
    } catch (error) {
      if (!superseded()) this.#notJoined(error);
    }
  }

  /** Delivers the newest events. */
  async #catchUp(limit: number, superseded: () => boolean): Promise<void> {
    const page = await this.history({ limit });
    if (superseded()) return;
    this.#position = { epoch: page.epoch, seq: (page.events[0]?.seq ?? page.head + 1) - 1 };
    for (const event of page.events) this.#deliver(event);
  }

  #joined(reply: CommandReply<'room.join'>): void {
    if (reply.resync) {
      this.#startOver(reply.resync.reason, reply.position);
      if (!this.#position) return void this.#join();
    }
    if (this.#position?.epoch !== reply.position.epoch) this.#position = reply.position;
    this.#failures = 0;
    this.#rights = reply.capabilities;
    this.runs.joined(reply.runs);
    this.#become({ status: 'joined' });
    this.#outbox.resume();
  }

  #startOver(reason: ResyncReason, position: Position): void {
    this.#position = this.#options.recent ? undefined : position;
    this.runs.clear();
    this.events.emit('reset', { reason });
  }

  #notJoined(error: unknown): void {
    if (!this.#connection.connected) return;
    if (error instanceof Refusal && !error.retryable && error.code !== 'token_expired') {
      this.closed(error);
      return;
    }
    const asked = error instanceof Refusal ? (error.retryAfterMs ?? 0) : 0;
    this.#timer = setTimeout(() => void this.#join(), Math.max(asked, backoffMs(this.#failures++, 300, 8000)));
  }

  /** Something is missing that should not be: joining again from the position brings it. */
  #heal(): void {
    if (!this.#connection.connected || this.#state.status !== 'joined') return;
    this.#pause();
    this.#become({ status: 'joining' });
    this.#timer = setTimeout(() => void this.#join(), backoffMs(this.#failures++, 100, 5000));
  }

  #pause(): void {
    this.#joinNumber++;
    clearTimeout(this.#timer);
    this.#outbox.pause();
  }

  #become(state: RoomState): void {
    this.#state = state;
    this.events.emit('state', state);
  }
}

export interface HistoryPage {
  events: RoomEvent[];
  epoch: string;
  head: number;
  /** Events up to this seq are gone. */
  floor: number;
}

/** An id that nobody else makes: 32 hex digits. */
export function newMid(): string {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}
