import { Cluster, Redis, type RedisOptions } from 'ioredis';

/** One life of the connections to Redis: it opens, it works, it is lost, and then another link takes its place. */
export interface Link {
  /** Sends at the end of this turn of the loop, pipelined. `false`: dropped, because Redis does not keep up or is gone. */
  publish(channel: string, payload: string): boolean;
  /** Resolves when Redis confirmed all of them. Commands for one channel take effect in the order of the calls. */
  subscribe(channels: string[]): Promise<void>;
  unsubscribe(channel: string): void;
  /** Channels under a name that together pass through every shard. */
  channelsOfAllShards(name: (n: number) => string): string[];
  close(): void;
}

export interface LinkOptions {
  url: string;
  cluster: boolean;
  onMessage(channel: string, payload: string): void;
  /** The link ended by itself. Called at most once, not after {@link Link.close}. */
  onLost(reason: string): void;
}

/** How long connecting may take, in ms. A half-dead network can accept a connection and never answer. */
const OPEN_TIMEOUT_MS = 3000;
/** Announcements Redis has not confirmed, in UTF-16 units, before further ones are dropped. */
const UNCONFIRMED_MAX = 16 * 1024 * 1024;

// Nothing is queued, retried or resubscribed by the library: a lost link is replaced as a whole by the bus.
const connection = {
  lazyConnect: true,
  retryStrategy: null,
  enableOfflineQueue: false,
  maxRetriesPerRequest: 0,
  autoResubscribe: false,
  autoResendUnfulfilledCommands: false,
  connectTimeout: OPEN_TIMEOUT_MS,
  connectionName: 'tutti-bus',
} satisfies RedisOptions;

/** @throws Error if Redis cannot be reached within 3 s. */
export async function openLink(options: LinkOptions): Promise<Link> {
  const clients = options.cluster ? clusterClients(options.url) : standaloneClients(options.url);
  const every = [...new Set<Redis | Cluster>([clients.publisher, clients.subscriber])];
  let state: 'opening' | 'open' | 'closed' = 'opening';
  let reason = 'closed';
  const close = () => {
    state = 'closed';
    for (const client of every) client.disconnect();
  };
  for (const client of every) {
    client.on('error', (error: Error) => {
      reason = error.message;
    });
    client.on('end', () => {
      const lost = state === 'open';
      close();
      if (lost) options.onLost(reason);
    });
  }
  clients.subscriber.on('smessage', (channel: string, payload: string) => {
    if (state === 'open') options.onMessage(channel, payload);
  });
  let timer: NodeJS.Timeout | undefined;
  try {
    await Promise.race([
      Promise.all(every.map((client) => client.connect())),
      new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error('no answer')), OPEN_TIMEOUT_MS);
      }),
    ]);
  } catch (error) {
    close();
    throw error;
  } finally {
    clearTimeout(timer);
  }
  state = 'open';

  let unconfirmed = 0;
  return {
    publish(channel, payload) {
      if (state !== 'open' || clients.publisher.status !== 'ready' || unconfirmed > UNCONFIRMED_MAX) return false;
      const size = channel.length + payload.length;
      const confirmed = () => {
        unconfirmed -= size;
      };
      unconfirmed += size;
      try {
        clients.publisher.spublish(channel, payload).then(confirmed, confirmed);
      } catch {
        confirmed(); // a cluster without an owner for the slot
        return false;
      }
      return true;
    },
    async subscribe(channels) {
      await Promise.all(clients.batches(channels).map((batch) => clients.subscriber.ssubscribe(...batch)));
    },
    unsubscribe(channel) {
      if (state !== 'open') return;
      try {
        clients.subscriber.sunsubscribe(channel).catch(() => undefined);
      } catch {
        // what still arrives for it is ignored
      }
    },
    channelsOfAllShards: clients.channelsOfAllShards,
    close,
  };
}

interface Clients {
  publisher: Redis | Cluster;
  subscriber: Redis | Cluster;
  /** Groups of channels that one command may name. */
  batches(channels: string[]): string[][];
  channelsOfAllShards: Link['channelsOfAllShards'];
}

function standaloneClients(url: string): Clients {
  return {
    publisher: new Redis(url, { ...connection, enableAutoPipelining: true }),
    subscriber: new Redis(url, connection),
    batches(channels) {
      const batches: string[][] = [];
      for (let i = 0; i < channels.length; i += 200) batches.push(channels.slice(i, i + 200));
      return batches;
    },
    channelsOfAllShards: (name) => [name(0)],
  };
}

function clusterClients(url: string): Clients {
  const { hostname, port, username, password, protocol } = new URL(url);
  const client = new Cluster([{ host: hostname, port: Number(port || 6379) }], {
    lazyConnect: true,
    shardedSubscribers: true, // without it a sharded subscription ends the process
    enableOfflineQueue: false,
    enableAutoPipelining: true,
    autoPipeliningIgnoredCommands: ['ssubscribe', 'sunsubscribe'],
    clusterRetryStrategy: () => null,
    redisOptions: {
      connectTimeout: OPEN_TIMEOUT_MS,
      connectionName: 'tutti-bus',
      ...(username ? { username: decodeURIComponent(username) } : {}),
      ...(password ? { password: decodeURIComponent(password) } : {}),
      ...(protocol === 'rediss:' ? { tls: {} } : {}),
    },
  });
  return {
    publisher: client,
    subscriber: client,
    batches: (channels) => channels.map((channel) => [channel]),
    channelsOfAllShards(name) {
      const found = new Map<string, string>();
      const owners = new Set(client.slots.map((nodes) => nodes?.[0]).filter((owner) => owner !== undefined));
      for (let n = 0; found.size < owners.size && n < 100_000; n++) {
        const owner = client.slots[slotOf(name(n))]?.[0];
        if (owner !== undefined && !found.has(owner)) found.set(owner, name(n));
      }
      return [...found.values()];
    },
  };
}

/** The hash slot of a channel with a hash tag: CRC16/XMODEM of what stands in the braces, modulo 16384. Source: Redis Cluster specification. */
function slotOf(channel: string): number {
  let crc = 0;
  for (const byte of Buffer.from(channel.slice(channel.indexOf('{') + 1, channel.indexOf('}')))) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit++) crc = crc & 0x8000 ? ((crc << 1) ^ 0x1021) & 0xffff : (crc << 1) & 0xffff;
  }
  return crc % 16384;
}
