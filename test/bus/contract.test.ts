import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createMemoryBus, MemoryExchange } from '../../src/bus/memory.js';
import type { Announcement } from '../../src/core/bus.js';
import { systemKey } from '../../src/core/keys.js';
import { eventually } from '../support/eventually.js';
import { sharedRedisUrl } from '../support/redis.js';
import { recordMetrics } from '../support/telemetry.js';
import { event, keysOf, listenTo, type Peer, redisPeer, room } from './peer.js';

const implementations = {
  memory: () => {
    const exchange = new MemoryExchange();
    return async () => listenTo(createMemoryBus(exchange), recordMetrics());
  },
  redis: () => {
    const prefix = `t${randomBytes(6).toString('hex')}:`;
    return () => redisPeer(sharedRedisUrl(), prefix);
  },
};

describe.each(Object.entries(implementations))('bus contract: %s', (_name, family) => {
  let one: Peer;
  let two: Peer;
  let three: Peer;

  beforeEach(async () => {
    const peer = family();
    [one, two, three] = await Promise.all([peer(), peer(), peer()]);
  });
  afterEach(() => Promise.all([one, two, three].map(({ bus }) => bus.close())));

  /** What was announced before it has arrived everywhere once this has. */
  const settle = async (from: Peer, to: Peer, where = room('settle')) => {
    await to.bus.subscribe(where);
    const key = `settled${Math.random()}`;
    from.bus.announce(where, { kind: 'hint', key, frame: '' });
    await eventually('the marker arrived', () => keysOf(to).includes(key));
    to.bus.unsubscribe(where);
  };

  test('what is announced after a subscription resolved arrives at every other subscriber, unchanged', async () => {
    const messages: Announcement[] = [
      event(1, 'plain'),
      event(2, 'line\nbreak, {braces}, ünï — 日本 🎼'),
      { kind: 'broadcast', key: '', frame: event(0, 'b').frame },
      { kind: 'chunk', key: 'run-1:2:30:4', frame: event(0, 'c').frame },
      { kind: 'run', key: 'run-1', frame: event(0, 'r').frame },
      { kind: 'hint', key: 'queued', frame: '' },
    ];
    await Promise.all([two.bus.subscribe(room('a')), three.bus.subscribe(room('a'))]);
    for (const message of messages) one.bus.announce(room('a'), message);
    for (const peer of [two, three]) {
      await eventually('all arrived', () => peer.got.length === messages.length);
      expect(peer.got).toEqual(messages.map((message) => ({ room: room('a'), message })));
    }
  });

  test('[BUS1] a gateway never gets its own echo', async () => {
    await Promise.all([one.bus.subscribe(room('a')), two.bus.subscribe(room('a'))]);
    one.bus.announce(room('a'), event(1));
    await eventually('it arrived at the other', () => two.got.length === 1);
    await settle(two, one);
    expect(keysOf(one)).not.toContain('e1:1');
  });

  test('[BUS1] rooms that are not subscribed are not heard, and rooms of two tenants do not mix', async () => {
    await two.bus.subscribe(room('a'));
    one.bus.announce(room('b'), event(1));
    one.bus.announce(systemKey('acme', 'runs'), event(2));
    one.bus.announce(systemKey('other', 'a'), event(3));
    one.bus.announce(room('a'), event(4));
    await eventually('the subscribed one arrived', () => two.got.length > 0);
    expect(keysOf(two)).toEqual(['e1:4']);
  });

  test('subscriptions are counted', async () => {
    await Promise.all([two.bus.subscribe(room('a')), two.bus.subscribe(room('a'))]);
    two.bus.unsubscribe(room('a'));
    one.bus.announce(room('a'), event(1));
    await eventually('still subscribed', () => two.got.length === 1);
    two.bus.unsubscribe(room('a'));
    one.bus.announce(room('a'), event(2));
    await settle(one, two);
    expect(keysOf(two)).not.toContain('e1:2');
    two.bus.unsubscribe(room('a')); // one too many does no harm
    await two.bus.subscribe(room('a'));
    one.bus.announce(room('a'), event(3));
    await eventually('subscribed again', () => keysOf(two).includes('e1:3'));
  });

  test('subscribing and unsubscribing at once ends as the last call says', async () => {
    const pending: Promise<void>[] = [];
    for (let i = 0; i < 50; i++) {
      pending.push(two.bus.subscribe(room('stays')), two.bus.subscribe(room('goes')));
      two.bus.unsubscribe(room('stays'));
      two.bus.unsubscribe(room('goes'));
    }
    pending.push(two.bus.subscribe(room('stays')));
    await Promise.all(pending);
    one.bus.announce(room('goes'), event(1));
    one.bus.announce(room('stays'), event(2));
    await eventually('the one that stays', () => two.got.length > 0);
    await settle(one, two);
    expect(keysOf(two).filter((key) => key.startsWith('e1'))).toEqual(['e1:2']);
  });

  test('announcements of one gateway for one room keep their order', async () => {
    await two.bus.subscribe(room('a'));
    const total = 2000;
    for (let seq = 1; seq <= total; seq++) {
      one.bus.announce(room('a'), event(seq));
      if (seq % 97 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await eventually('all arrived', () => two.got.length === total);
    expect(keysOf(two)).toEqual(Array.from({ length: total }, (_, i) => `e1:${i + 1}`));
  });

  test('a frame of several hundred kilobytes passes', async () => {
    await two.bus.subscribe(room('a'));
    const large = event(1, 'x'.repeat(600_000));
    one.bus.announce(room('a'), large);
    await eventually('it arrived', () => two.got.length === 1);
    expect(two.got[0]?.message).toEqual(large);
  });

  test('closing ends delivery; a closed bus takes every call quietly', async () => {
    await two.bus.subscribe(room('a'));
    expect(two.bus.connected()).toBe(true);
    await two.bus.close();
    expect(two.bus.connected()).toBe(false);
    one.bus.announce(room('a'), event(1));
    two.bus.announce(room('a'), event(2));
    await two.bus.subscribe(room('b'));
    two.bus.unsubscribe(room('b'));
    await settle(one, three);
    expect(two.got).toEqual([]);
  });
});
