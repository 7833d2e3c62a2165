import { randomBytes } from 'node:crypto';
import { createRedisBus } from '../../src/bus/redis.js';
import type { Announcement, Bus } from '../../src/core/bus.js';
import { type RoomKey, roomKey } from '../../src/core/keys.js';
import type { Frame } from '../../src/protocol/frames.js';
import { eventually } from '../support/eventually.js';
import { type RecordedMetrics, recordLog, recordMetrics } from '../support/telemetry.js';

/** A bus and what it was given. */
export interface Peer {
  bus: Bus;
  got: { room: RoomKey; message: Announcement }[];
  reconnects: () => number;
  metrics: RecordedMetrics;
}

export function listenTo(bus: Bus, metrics: RecordedMetrics): Peer {
  const got: Peer['got'] = [];
  let reconnects = 0;
  bus.onMessage((room, message) => got.push({ room, message }));
  bus.onReconnect(() => reconnects++);
  return { bus, got, reconnects: () => reconnects, metrics };
}

export async function redisPeer(url: string, prefix: string, cluster = false): Promise<Peer> {
  const metrics = recordMetrics();
  const nodeId = randomBytes(6).toString('hex');
  return listenTo(await createRedisBus({ url, cluster, prefix, nodeId, log: recordLog(), metrics }), metrics);
}

export const room = (name: string): RoomKey => roomKey('acme', name);

export const event = (seq: number, text = ''): Announcement => ({
  kind: 'event',
  key: `e1:${seq}`,
  frame: `42["event",{"text":${JSON.stringify(text)}}]` as Frame,
});

export const keysOf = (peer: Peer): string[] => peer.got.map(({ message }) => message.key);

/** Announces until it arrives: proof that announcements flow, although the bus may lose any single one. */
export async function flows(from: Peer, to: Peer, where: RoomKey): Promise<void> {
  let n = 0;
  await eventually('announcements flow', () => {
    from.bus.announce(where, { kind: 'hint', key: `probe${n++}`, frame: '' });
    return to.got.some(({ message, room }) => room === where && message.key.startsWith('probe'));
  });
}
