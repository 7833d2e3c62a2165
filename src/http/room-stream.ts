import { randomUUID } from 'node:crypto';
import { pauseBeforeReturn, spread } from '../core/departure.js';
import type { RoomKey } from '../core/keys.js';
import type { Principal } from '../core/principal.js';
import type { Metrics } from '../core/telemetry.js';
import type { Outlet, Viewer } from '../core/viewer.js';
import { errors } from '../errors.js';
import type { JoinFrom } from '../protocol/commands.js';
import { type Frame, payloadOf } from '../protocol/frames.js';
import { toJsonText } from '../protocol/primitives.js';
import type { Exchange } from './exchange.js';
import type { RoomsPort } from './ports.js';
import { EventStream, RETRY_MS, sseEvent, sseRetry } from './sse.js';
import type { Standing } from './standing.js';

/** How the text of an event begins; see `eventJson`. Saves parsing events that are only passed on. */
const EVENT_POSITION = /^\{"room":"[^"]*","epoch":"([^"]*)","seq":([0-9]+),/;

/**
 * A push as server-sent events. The stream is the room's feed: pushes that are neither an event nor the feed's own news
 * are left out, as they are not part of what a position resumes.
 */
export function sseOfFrame(frame: Frame): string | undefined {
  if (frame.startsWith('42["event",')) {
    const data = payloadOf(frame, 'event');
    const [, epoch, seq] = EVENT_POSITION.exec(data) ?? [];
    return epoch === undefined ? undefined : sseEvent(data, { id: `${epoch}:${seq}`, event: 'event' });
  }
  if (frame.startsWith('42["room.resync",')) {
    const data = payloadOf(frame, 'room.resync');
    const { position } = JSON.parse(data) as { position: { epoch: string; seq: number } };
    return sseEvent(data, { id: `${position.epoch}:${position.seq}`, event: 'resync' });
  }
  return undefined;
}

export interface RoomStreamsDeps {
  rooms: RoomsPort;
  metrics: Metrics;
  maxWaitingBytes: number;
  standing: Standing;
}

/** The readers of rooms over server-sent events. */
export class RoomStreams implements Outlet {
  readonly #deps: RoomStreamsDeps;
  readonly #followers = new Map<RoomKey, Set<StreamViewer>>();
  readonly #viewers = new Set<StreamViewer>();

  constructor(deps: RoomStreamsDeps) {
    this.#deps = deps;
  }

  publish(room: RoomKey, frame: Frame, except?: Viewer): void {
    const followers = this.#followers.get(room);
    if (!followers) return;
    const events = sseOfFrame(frame);
    if (events === undefined) return;
    for (const viewer of followers) if (viewer !== except) viewer.write(events);
  }

  /** Resolves once the stream is open; it then lives until the reader leaves. A refusal rejects before any answer. */
  async open(exchange: Exchange, principal: Principal, room: string, from: JoinFrom | undefined): Promise<void> {
    this.#deps.standing.hold(exchange, principal);
    const viewer = new StreamViewer(exchange, this.#followers, this.#deps);
    this.#viewers.add(viewer);
    exchange.onFinished(() => {
      this.#viewers.delete(viewer);
      viewer.gone();
      this.#deps.rooms.leaveAll(viewer);
    });
    await this.#deps.rooms.join(principal, { room, ...(from === undefined ? {} : { from }) }, viewer, (reply) => {
      const { epoch, seq } = reply.position;
      const id = `${epoch}:${seq}`;
      // An id without data moves the reader's Last-Event-ID, so that it resumes from here even before the first event.
      viewer.start(`retry: ${RETRY_MS}\nid: ${id}\n\n`);
      if (reply.resync) {
        const data = toJsonText({ room, reason: reply.resync.reason, position: reply.position });
        viewer.write(sseEvent(data, { id, event: 'resync' }));
      }
    });
    // The reader left while it was joining.
    if (exchange.finished) this.#deps.rooms.leaveAll(viewer);
  }

  /** Ends every stream, spread over at most `withinMs`; its readers reconnect elsewhere. */
  dismiss(withinMs: number): Promise<void> {
    return spread(this.#viewers, withinMs, (viewer) => viewer.dismiss());
  }
}

class StreamViewer implements Viewer {
  readonly id = randomUUID();
  readonly eventsOnly = true;
  readonly #exchange: Exchange;
  readonly #registry: Map<RoomKey, Set<StreamViewer>>;
  readonly #deps: RoomStreamsDeps;
  readonly #rooms = new Set<RoomKey>();
  #stream: EventStream | undefined;

  constructor(exchange: Exchange, registry: Map<RoomKey, Set<StreamViewer>>, deps: RoomStreamsDeps) {
    this.#exchange = exchange;
    this.#registry = registry;
    this.#deps = deps;
  }

  /** Answers with a stream that begins with `events`. */
  start(events: string): void {
    if (this.#exchange.finished) return;
    this.#stream = new EventStream(this.#exchange, {
      maxWaitingBytes: this.#deps.maxWaitingBytes,
      slow: () => this.#deps.metrics.add('slow_closes', {}),
    });
    this.#stream.write(events);
  }

  write(events: string): void {
    this.#stream?.write(events);
  }

  get full(): boolean {
    return this.#stream?.full ?? false;
  }

  get room(): number {
    return this.#deps.maxWaitingBytes / 4;
  }

  send(frames: readonly Frame[]): void {
    const events = frames.map((frame) => sseOfFrame(frame) ?? '').join('');
    if (events !== '') this.#stream?.write(events);
  }

  follow(room: RoomKey): void {
    if (this.#exchange.finished) return;
    this.#rooms.add(room);
    const followers = this.#registry.get(room) ?? new Set();
    followers.add(this);
    this.#registry.set(room, followers);
  }

  unfollow(room: RoomKey): void {
    this.#rooms.delete(room);
    const followers = this.#registry.get(room);
    followers?.delete(this);
    if (followers?.size === 0) this.#registry.delete(room);
  }

  drained(): Promise<boolean> {
    return this.#stream?.drained() ?? Promise.resolve(!this.#exchange.finished);
  }

  close(code: 'slow_consumer' | 'overloaded', message: string): void {
    const { retryable } = errors[code];
    this.write(sseEvent(toJsonText({ code, message, retryable }), { event: 'closing' }));
    this.end();
  }

  end(): void {
    if (this.#stream) this.#stream.end();
    else this.#exchange.kill();
  }

  dismiss(): void {
    this.write(sseRetry(pauseBeforeReturn()));
    this.end();
  }

  /** The reader is gone: forget what stands for it. */
  gone(): void {
    for (const room of [...this.#rooms]) this.unfollow(room);
  }
}
