import type { FeedsLimits } from '../../src/core/feeds.js';
import { roomKey } from '../../src/core/keys.js';
import { toJsonText } from '../../src/protocol/primitives.js';
import { random } from '../support/random.js';
import { SimRooms } from './sim-log.js';
import { SimGateway, type SimWorld, user } from './simulation.js';
import { VirtualClock } from './virtual-clock.js';

export const key = roomKey('t', 'r');

export const limits: FeedsLimits = {
  ringBytes: 4096,
  gapRepairMs: 50,
  replayBufferBytes: 1024 * 1024,
  ringBytesTotal: 64 * 1024,
  headCheckMs: 1000,
  lingerMs: 500,
  roomsOpen: { total: 1000, perTenant: 1000 },
};

/** A world with one room `r` of tenant `t` and some gateways. */
export function feedWorld(
  seed: number,
  { bus = { drop: 0.1, repeat: 0.1, maxDelayMs: 80 }, lose = 0, gateways = 2, feedLimits = limits } = {},
) {
  const next = random(seed);
  const clock = new VirtualClock();
  const rooms = new SimRooms(() => clock.now());
  const line = { maxDelayMs: 20, lose };
  const onCrossing = () => {};
  const world: SimWorld = { clock, random: next, rooms, buses: [], bus, line, feedLimits, onCrossing };
  const gateways_ = Array.from({ length: gateways }, () => new SimGateway(world));
  const node = (i: number): SimGateway => {
    const found = gateways_[i];
    if (!found) throw new Error(`no gateway ${i}`);
    return found;
  };
  const publish = (gateway: number, text: string) => {
    const event = { room: 'r', type: 'x', data: toJsonText(text), mid: text };
    return node(gateway).rooms.publish(user('a'), event);
  };
  return { ...world, world, gateways: gateways_, node, publish };
}
