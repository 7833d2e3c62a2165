import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { roomKey } from '../../src/core/keys.js';
import { encodePush } from '../../src/protocol/frames.js';
import { connect } from '../support/client.js';
import { openStage, RawClient, type Stage, tokenOf } from './stage.js';

let stage: Stage;
beforeAll(async () => {
  stage = await openStage();
});
afterAll(() => stage.close());

const by = { kind: 'user', id: 'x' } as const;
const push = (n: number, data: unknown = null) =>
  encodePush('event', { room: 'r', epoch: 'e', seq: n, mid: `${n}`, type: 'a', data, by, at: 1 });

test('the publisher gets the push before the ack where the push came first, and both once', async () => {
  const client = await connect({ url: stage.url, token: tokenOf({ id: 'order' }) });
  await client.call('room.join', { room: 'order' });
  const order: string[] = [];
  client.socket.onAny((name, data) => order.push(`${name} ${data.seq}`));
  await Promise.all(
    Array.from({ length: 200 }, (_, i) =>
      client.call('event.publish', { room: 'order', type: 'a', data: i }).then((r) => {
        order.push(`ack ${r.position.seq}`);
      }),
    ),
  );
  const acks = order.filter((line) => line.startsWith('ack'));
  const events = order.filter((line) => line.startsWith('event'));
  expect(acks.map((line) => line.slice(4))).toEqual(events.map((line) => line.slice(6)));
  // This stage publishes before it replies, so every push stands before its ack.
  for (const [at, line] of events.entries()) {
    expect(order.indexOf(line)).toBeLessThan(order.indexOf(acks[at] ?? ''));
  }
  client.close();
});

test('what is written by viewer, topic and ack in one turn arrives in that order', async () => {
  const raw = new RawClient(stage.port);
  await raw.join('mixed', tokenOf({ id: 'mixed' }));
  const viewer = [...stage.rooms.followed.keys()].find((one) => stage.rooms.joined(one).includes('mixed'));
  const room = roomKey('demo', 'mixed');
  const big = 'x'.repeat(20_000);
  for (let n = 1; n <= 12; n += 3) {
    stage.server.publish(room, push(n));
    viewer?.send([push(n + 1)]);
    stage.server.publish(room, push(n + 2, big));
  }
  await raw.until('"seq":12');
  const seqs = [...raw.received.matchAll(/"seq":(\d+),"mid"/g)].map((match) => Number(match[1]));
  expect(seqs).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
  raw.socket.destroy();
});

test('following begins and ends exactly where it is asked for, also within one turn', async () => {
  const raw = new RawClient(stage.port);
  await raw.join('other', tokenOf({ id: 'edge' }));
  const viewer = [...stage.rooms.followed.keys()].find((one) => stage.rooms.joined(one).includes('other'));
  const room = roomKey('demo', 'edge');
  stage.server.publish(room, push(1));
  viewer?.follow(room);
  stage.server.publish(room, push(2));
  viewer?.unfollow(room);
  stage.server.publish(room, push(3));
  viewer?.send([push(4)]);
  await raw.until('"seq":4');
  expect([...raw.received.matchAll(/"seq":(\d+),"mid"/g)].map((match) => match[1])).toEqual(['2', '4']);
  raw.socket.destroy();
});

test('a broadcast goes to everybody but its sender, and to all where the sender does not read the room', async () => {
  const [a, b, outside] = await Promise.all(
    ['a', 'b', 'c'].map((id) => connect({ url: stage.url, token: tokenOf({ id }) })),
  );
  if (!a || !b || !outside) throw new Error('not connected');
  await Promise.all([a.call('room.join', { room: 'cast' }), b.call('room.join', { room: 'cast' })]);
  await a.call('broadcast.send', { room: 'cast', type: 't', data: 'from a' });
  await outside.call('broadcast.send', { room: 'cast', type: 't', data: 'from outside' });
  await a.waitFor('broadcast', ({ data }) => data === 'from outside');
  await b.waitFor('broadcast', ({ data }) => data === 'from outside');
  expect(a.of('broadcast').map(({ data }) => data)).toEqual(['from outside']);
  expect(b.of('broadcast').map(({ data }) => data)).toEqual(['from a', 'from outside']);
  expect(stage.recorder.counts.get('deliveries broadcast')).toBe(3);
  for (const client of [a, b, outside]) client.close();
});

test('[ISO1] the same room name of another tenant is another room', async () => {
  const ours = await connect({ url: stage.url, token: tokenOf({ id: 'iso' }) });
  const theirs = await connect({ url: stage.url, token: tokenOf({ id: 'iso', tenant: 'other' }) });
  await Promise.all([ours.call('room.join', { room: 'iso' }), theirs.call('room.join', { room: 'iso' })]);
  await ours.call('broadcast.send', { room: 'iso', type: 't', data: 1 });
  await ours.call('event.publish', { room: 'iso', type: 't', data: 1 });
  await ours.waitFor('event');
  await theirs.call('room.join', { room: 'iso2' });
  expect(theirs.pushes.map(({ name }) => name)).toEqual(['session.ready']);
  ours.close();
  theirs.close();
});

describe('[SLOW1] a reader that does not read', () => {
  test('is closed at the backpressure limit, is counted, and slows nobody', async () => {
    const own = await openStage({ maxBackpressureBytes: 1024 * 1024 });
    const slow = new RawClient(own.port);
    await slow.join('slow', tokenOf({ id: 'slow' }));
    const fast = await connect({ url: own.url, token: tokenOf({ id: 'fast' }) });
    await fast.call('room.join', { room: 'slow' });
    slow.socket.pause();
    const room = roomKey('demo', 'slow');
    let n = 0;
    while (own.rooms.left.length === 0 && n < 4000) {
      own.server.publish(room, push(++n, 'x'.repeat(32_000)));
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await fast.waitFor('event', ({ seq }) => seq === n);
    expect(fast.of('event').map(({ seq }) => seq)).toEqual(Array.from({ length: n }, (_, i) => i + 1));
    expect(own.rooms.left).toHaveLength(1);
    expect(own.recorder.counts.get('slow_closes')).toBe(1);
    expect(own.recorder.lines.join('\n')).toContain('reads too slowly');
    slow.socket.destroy();
    fast.close();
    await own.close();
  });

  test('drained() waits for it, resolves true when it reads again and false when it is gone', async () => {
    for (const end of ['reads', 'leaves'] as const) {
      const raw = new RawClient(stage.port);
      await raw.join(`drain-${end}`, tokenOf({ id: `drain-${end}` }));
      const viewer = [...stage.rooms.followed.keys()].find((one) => stage.rooms.joined(one).includes(`drain-${end}`));
      if (!viewer) throw new Error('no viewer');
      expect(await viewer.drained()).toBe(true);
      raw.socket.pause();
      let settled = false;
      let n = 0;
      // Fill the socket buffers of both kernels, then stay between the low-water mark and the limit.
      let waiting = viewer.drained();
      while (n < 2000) {
        viewer.send([push(++n, 'x'.repeat(20_000))]);
        waiting = viewer.drained();
        settled = false;
        void waiting.then(() => {
          settled = true;
        });
        await new Promise((resolve) => setTimeout(resolve, 1));
        if (!settled) break;
      }
      expect(settled).toBe(false);
      if (end === 'reads') raw.socket.resume();
      else raw.socket.destroy();
      expect(await waiting).toBe(end === 'reads');
      raw.socket.destroy();
    }
  });

  test('closed by the room it is told why, and comes back by itself', async () => {
    const client = await connect({ url: stage.url, token: tokenOf({ id: 'told' }), reconnection: true });
    await client.call('room.join', { room: 'told' });
    const viewer = [...stage.rooms.followed.keys()].find((one) => stage.rooms.joined(one).includes('told'));
    viewer?.close('slow_consumer', 'Too slow.');
    viewer?.close('slow_consumer', 'Too slow.');
    await client.until(() => client.of('session.ready').length === 2);
    expect(client.of('session.closing')).toEqual([{ code: 'slow_consumer', message: 'Too slow.', reconnect: true }]);
    viewer?.send([push(1)]);
    viewer?.follow(roomKey('demo', 'x'));
    expect(await viewer?.drained()).toBe(false);
    client.close();
  });
});

test('a client that leaves the namespace and stays connected reads nothing more', async () => {
  const raw = new RawClient(stage.port);
  await raw.join('gone', tokenOf({ id: 'gone' }));
  raw.frame('41');
  await expect.poll(() => stage.rooms.left.length).toBeGreaterThan(0);
  raw.frame(`40${JSON.stringify({ token: tokenOf({ id: 'gone' }) })}`);
  await expect.poll(() => raw.received.match(/session\.ready/g)?.length).toBe(2);
  stage.server.publish(roomKey('demo', 'gone'), push(1));
  raw.frame('429["room.join",{"room":"again"}]');
  await raw.until('439[');
  expect(raw.received).not.toContain('"seq":1,"mid"');
  raw.socket.destroy();
});
