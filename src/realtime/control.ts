import { createShardedAdapter } from '@socket.io/redis-adapter';
import { Cluster, Redis, type RedisOptions } from 'ioredis';
import type { Namespace, Server } from 'socket.io';
import { Adapter } from 'socket.io-adapter';
import type { Revocation } from '../core/directory.js';
import type { Logger } from '../core/telemetry.js';

export interface ControlRedis {
  url: string;
  cluster: boolean;
  /** Put before every channel. */
  prefix: string;
}

const CONTROL = '/control';
/** How long connecting may take, and Redis to answer a command before the connection is given up for a new one, in ms. */
const ANSWER_TIMEOUT_MS = 3000;
/** Revocations older than this are known to the others already, in ms. */
const NEWS_MS = 60_000;

/**
 * No Socket.IO room is ever used: rooms are uWebSockets.js topics. So no socket joins even its own, which saves
 * their memory per connection and the patched prototype of Socket.IO's own adapter for uWebSockets.js.
 */
class NoRooms extends Adapter {
  override addAll(): void {}
  override del(): void {}
  override delAll(): void {}
}

// A command that waits for the connection, as a subscription does while Redis is away, has no timeout: it is kept until it can be sent.
const connection = {
  connectTimeout: ANSWER_TIMEOUT_MS,
  socketTimeout: ANSWER_TIMEOUT_MS,
  connectionName: 'tutti-control',
} satisfies RedisOptions;

function standalone({ url }: ControlRedis): [Redis, Redis] {
  return [
    new Redis(url, { ...connection, enableOfflineQueue: false, maxRetriesPerRequest: 0 }),
    new Redis(url, { ...connection, maxRetriesPerRequest: null }),
  ];
}

function cluster({ url }: ControlRedis): [Cluster, Cluster] {
  const { hostname, port, username, password, protocol } = new URL(url);
  const connect = (enableOfflineQueue: boolean) =>
    new Cluster([{ host: hostname, port: Number(port || 6379) }], {
      shardedSubscribers: true, // without it a sharded subscription ends the process
      enableOfflineQueue,
      redisOptions: {
        ...connection,
        maxRetriesPerRequest: enableOfflineQueue ? null : 0,
        ...(username ? { username: decodeURIComponent(username) } : {}),
        ...(password ? { password: decodeURIComponent(password) } : {}),
        ...(protocol === 'rediss:' ? { tls: {} } : {}),
      },
    });
  return [connect(false), connect(true)];
}

/**
 * What gateways tell each other about sessions, over `@socket.io/redis-adapter` in a namespace nobody can enter.
 * A hint only: what it does not carry is found by polling, so Redis may be away.
 */
export class ControlPlane {
  readonly #clients: (Redis | Cluster)[] = [];
  readonly #sharded: ReturnType<typeof createShardedAdapter> | undefined;
  #namespace: Namespace | undefined;

  constructor(redis: ControlRedis | undefined, log: Logger) {
    if (!redis) return;
    const [publisher, subscriber] = redis.cluster ? cluster(redis) : standalone(redis);
    this.#clients = [publisher, subscriber];
    for (const client of this.#clients) {
      client.on('error', (error: Error) => log.debug({ err: error }, 'control plane: no Redis'));
    }
    // The adapter and the library's resubscription ignore this promise; a refusal must not end the process.
    const ssubscribe = subscriber.ssubscribe.bind(subscriber) as (...channels: string[]) => Promise<unknown>;
    const sunsubscribe = subscriber.sunsubscribe.bind(subscriber) as (...channels: string[]) => Promise<unknown>;
    const settled = (act: typeof ssubscribe) => (channel: string) =>
      act(channel).catch((error: Error) => log.debug({ err: error, channel }, 'control plane: not subscribed'));
    Object.assign(subscriber, { ssubscribe: settled(ssubscribe), sunsubscribe: settled(sunsubscribe) });
    this.#sharded = createShardedAdapter(publisher, subscriber, {
      channelPrefix: `${redis.prefix}tutti`,
      subscriptionMode: 'static',
    });
  }

  /** The adapter of each namespace, as `new Server({ adapter })` wants it. */
  adapter(namespace: Namespace): Adapter {
    if (namespace.name === CONTROL && this.#sharded) return this.#sharded(namespace);
    return new NoRooms(namespace);
  }

  /** Opens the namespace. `onRevoked` hears of revocations that other gateways found first. */
  start(io: Server, onRevoked: (revocation: Revocation) => void): void {
    if (!this.#sharded) return;
    this.#namespace = io.of(CONTROL);
    this.#namespace.use((_socket, next) => next(new Error('Invalid namespace')));
    this.#namespace.on('revoked', onRevoked);
  }

  /** Tells the other gateways. Never throws. */
  revoked(revocation: Revocation, now: number): void {
    if (now - revocation.at < NEWS_MS) this.#namespace?.serverSideEmit('revoked', revocation);
  }

  close(): void {
    for (const client of this.#clients) client.disconnect();
  }
}
