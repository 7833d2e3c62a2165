import type { Announcement, Bus } from '../core/bus.js';
import type { RoomKey } from '../core/keys.js';
import type { Logger, Metrics } from '../core/telemetry.js';
import { type Link, openLink } from './redis-link.js';
import { channelOf, decode, encode, roomOfChannel, senderPrefix } from './wire.js';

export interface RedisBusOptions {
  url: string;
  /** Whether `url` names a node of a Redis Cluster. */
  cluster: boolean;
  /** Put before every channel; installations that share one Redis have different ones. */
  prefix: string;
  /** Unique among the gateways, at most 12 characters. */
  nodeId: string;
  log: Logger;
  metrics: Metrics;
}

/** How often a beat goes through Redis and back, in ms. */
const BEAT_MS = 1000;
/** Without a beat for this long, in ms, a connection that looks alive is replaced at the next tick. */
const BEAT_LOST_MS = 3000;
/** Longest wait for the confirmation of a subscription, and for Redis when the bus is made, in ms. */
const SUBSCRIBE_WAIT_MS = 1000;
const RETRY_MAX_MS = 1000;

interface Subscription {
  readonly room: RoomKey;
  count: number;
  /** Confirmed by Redis on the link that is open now. */
  confirmed: boolean;
  readonly waiting: Set<() => void>;
}

/**
 * Redis sharded pub/sub. A link that is lost, or that lets no beat through, is replaced by a new one with all
 * subscriptions; `connected()` is true while beats travel the way announcements do, on every shard; a connection that is
 * open but passes nothing turns it false within {@link BEAT_LOST_MS} and a tick.
 */
class RedisBus implements Bus {
  private readonly subscriptions = new Map<RoomKey, Subscription>();
  private readonly reconnected: (() => void)[] = [];
  private readonly sender: string;
  private listener: (room: RoomKey, message: Announcement) => void = () => undefined;
  private link: Link | undefined;
  /** When the last beat of each channel arrived on this link, ms of the monotonic clock; 0 before the first. */
  private beats = new Map<string, number>();
  private state: 'away' | 'opening' | 'flowing' | 'closed' = 'away';
  /** Whether what was subscribed before this link is confirmed on it. */
  private resubscribed = false;
  /** Whether announcements may have been missed since they last flowed. */
  private missed = false;
  private failures = 0;
  private retry: NodeJS.Timeout | undefined;
  private readonly beating: NodeJS.Timeout;
  private lastTick = performance.now();
  private started: () => void = () => undefined;

  constructor(private readonly options: RedisBusOptions) {
    this.sender = senderPrefix(options.nodeId);
    this.beating = setInterval(() => this.tick(), BEAT_MS);
    options.metrics.gauge('bus_connected', () => (this.connected() ? 1 : 0));
  }

  /** Resolves when announcements flow, or after a bounded wait: a Redis that is away does not stop a gateway. */
  async start(): Promise<void> {
    const flowing = new Promise<void>((resolve) => {
      this.started = resolve;
    });
    this.open();
    await within(SUBSCRIBE_WAIT_MS, flowing);
    if (this.state !== 'flowing') this.missed = true;
  }

  announce(room: RoomKey, message: Announcement): void {
    const sent = this.link?.publish(channelOf(this.options.prefix, room), encode(this.sender, message)) ?? false;
    this.options.metrics.add('bus_messages', { direction: sent ? 'out' : 'dropped', kind: message.kind });
  }

  async subscribe(room: RoomKey): Promise<void> {
    if (this.state === 'closed') return;
    let subscription = this.subscriptions.get(room);
    if (subscription) {
      subscription.count++;
    } else {
      subscription = { room, count: 1, confirmed: false, waiting: new Set() };
      this.subscriptions.set(room, subscription);
      if (this.link) this.ask(this.link, [subscription]);
    }
    if (subscription.confirmed) return;
    const { waiting } = subscription;
    let wake = () => {};
    const confirmed = new Promise<void>((resolve) => {
      wake = resolve;
    });
    waiting.add(wake);
    await within(SUBSCRIBE_WAIT_MS, confirmed);
    waiting.delete(wake);
  }

  unsubscribe(room: RoomKey): void {
    const subscription = this.subscriptions.get(room);
    if (!subscription || --subscription.count > 0) return;
    this.subscriptions.delete(room);
    this.link?.unsubscribe(channelOf(this.options.prefix, room));
  }

  onMessage(listener: (room: RoomKey, message: Announcement) => void): void {
    this.listener = listener;
  }

  onReconnect(listener: () => void): void {
    this.reconnected.push(listener);
  }

  connected(): boolean {
    return this.state === 'flowing';
  }

  async close(): Promise<void> {
    this.state = 'closed';
    clearTimeout(this.retry);
    clearInterval(this.beating);
    this.link?.close();
    this.link = undefined;
    for (const { waiting } of this.subscriptions.values()) for (const wake of waiting) wake();
    this.subscriptions.clear();
    this.started();
  }

  private open(): void {
    this.state = 'opening';
    const opened = openLink({
      url: this.options.url,
      cluster: this.options.cluster,
      onMessage: (channel, payload) => this.receive(channel, payload),
      onLost: (reason) => this.lose(reason),
    });
    opened.then(
      (link) => {
        if (this.state === 'closed') return link.close();
        this.link = link;
        const { prefix, nodeId } = this.options;
        const channels = link.channelsOfAllShards((n) => `${prefix}{!bus:${nodeId}:${n}}`);
        this.beats = new Map(channels.map((channel) => [channel, 0]));
        this.lastTick = performance.now();
        this.expectBeats(link, channels);
        this.resubscribed = false;
        this.ask(link, [...this.subscriptions.values()], () => {
          this.resubscribed = true;
          this.flow();
        });
      },
      (error: unknown) => this.lose(error instanceof Error ? error.message : String(error)),
    );
  }

  /** The first beats are sent once everything was asked for, so that their return proves the subscriptions. */
  private expectBeats(link: Link, channels: string[]): void {
    const deadline = setTimeout(() => {
      if (this.link === link && this.state === 'opening') this.lose('no beat came back');
    }, BEAT_LOST_MS);
    deadline.unref();
    link.subscribe(channels).then(
      () => {
        if (this.link === link) this.beat();
      },
      (error: unknown) => {
        if (this.link === link) this.lose(String(error));
      },
    );
  }

  private ask(link: Link, subscriptions: Subscription[], done: () => void = () => undefined): void {
    const channels = subscriptions.map(({ room }) => channelOf(this.options.prefix, room));
    link.subscribe(channels).then(
      () => {
        if (this.link !== link) return;
        for (const subscription of subscriptions) {
          subscription.confirmed = true;
          for (const wake of subscription.waiting) wake();
        }
        done();
      },
      (error: unknown) => {
        if (this.link === link) this.lose(String(error));
      },
    );
  }

  private lose(reason: string): void {
    if (this.state === 'closed') return;
    this.options.log.warn({ reason, failures: this.failures }, 'the bus is away');
    this.link?.close();
    this.link = undefined;
    this.state = 'away';
    this.missed = true;
    for (const subscription of this.subscriptions.values()) subscription.confirmed = false;
    clearTimeout(this.retry);
    const delay = Math.min(50 * 2 ** this.failures++, RETRY_MAX_MS);
    this.retry = setTimeout(() => this.open(), delay * (0.5 + Math.random() / 2));
  }

  private receive(channel: string, payload: string): void {
    if (this.beats.has(channel)) {
      this.beats.set(channel, performance.now());
      this.flow();
      return;
    }
    if (payload.startsWith(this.sender)) return;
    const room = roomOfChannel(this.options.prefix, channel);
    if (!this.subscriptions.has(room)) return;
    const message = decode(payload);
    if (!message) return;
    this.options.metrics.add('bus_messages', { direction: 'in', kind: message.kind });
    this.listener(room, message);
  }

  /** Opening ends when every shard let a beat through and every earlier subscription is confirmed. */
  private flow(): void {
    if (this.state !== 'opening') return;
    if (!this.resubscribed) return;
    for (const at of this.beats.values()) if (at === 0) return;
    this.state = 'flowing';
    this.failures = 0;
    this.started();
    if (!this.missed) return;
    this.missed = false;
    this.options.metrics.add('bus_reconnects', {});
    this.options.log.info({ subscriptions: this.subscriptions.size }, 'the bus is back');
    for (const listener of this.reconnected) listener();
  }

  private tick(): void {
    const now = performance.now();
    const late = now - this.lastTick > 2 * BEAT_MS; // this process slept; beats may wait to be read
    this.lastTick = now;
    if (this.state !== 'flowing') return;
    if (!late && now - Math.min(...this.beats.values()) > BEAT_LOST_MS) this.lose('no beat came back');
    else this.beat();
  }

  private beat(): void {
    for (const channel of this.beats.keys()) this.link?.publish(channel, '');
  }
}

async function within(ms: number, done: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
  });
  await Promise.race([done, late]);
  clearTimeout(timer);
}

/**
 * A bus over Redis 7 or newer, standalone or Cluster. Resolves once announcements flow, or after 1 s without
 * Redis; it then connects when Redis comes.
 */
export async function createRedisBus(options: RedisBusOptions): Promise<Bus> {
  const bus = new RedisBus(options);
  await bus.start();
  return bus;
}
