import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { newMid, Refusal, TuttiClient, type WireFrame } from '../../src/client/index.js';
import { startPair, Undo } from '../e2e/run-stage.js';
import { startBalancer } from '../e2e/run-workers.js';
import { connect } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { startProxy } from '../support/proxy.js';
import { DEV_SERVER_KEY, devToken } from '../support/tokens.js';
import { type Listener, listen, newClient, note, upTo } from './stage.js';

const shared = new Undo();
const undo = new Undo();
let a: GatewayProcess;
let b: GatewayProcess;
let roomNumber = 0;

beforeAll(async () => {
  ({ a, b } = await startPair(shared));
});
afterEach(() => undo.all());
afterAll(() => shared.all());

const freshRoom = () => `sdk-${++roomNumber}`;
const client = (url: string, user?: string) => undo.add(newClient(url, user), (one) => one.close());
/** What it sent as `event.publish`, oldest first. */
function publishes(one: TuttiClient): WireFrame[] {
  const sent: WireFrame[] = [];
  one.onWire((frame) => frame.direction === 'out' && frame.name === 'event.publish' && sent.push(frame));
  return sent;
}
async function bare(room: string) {
  const other = undo.add(await connect({ url: b.url, token: await devToken({ user: 'bob' }) }), (one) => one.close());
  return (i: number) => other.call('event.publish', { room, type: 'note', data: { i } });
}
const expectInOrder = (listener: Listener, count: number) => {
  expect(listener.seqs).toEqual(upTo(count, 1));
  expect(listener.resets).toEqual([]);
};

test('[FEED1][LOG3] a gateway killed and started again: every event once, in order, on both sides', async () => {
  const proxy = undo.add(await startProxy(a.port), (one) => one.close());
  const room = freshRoom();
  const speaker = listen(client(`http://127.0.0.1:${proxy.port}`), room);
  const reader = listen(client(b.url), room);
  await Promise.all([speaker.joined(), reader.joined()]);
  const stored = upTo(60).map(async (i) => {
    await new Promise((wait) => setTimeout(wait, i * 15));
    return note(speaker.room, i);
  });
  await reader.has(10);
  const { env, port } = a;
  await a.kill9();
  await eventually('the loss is noticed', () => speaker.room.state.status === 'joining');
  a = shared.add(await startGateway({ env, port }), (one) => one.stop());
  const seqs = (await Promise.all(stored)).map((reply) => reply.position.seq);
  await Promise.all([speaker.has(60), reader.has(60)]);
  expect(seqs).toEqual(upTo(60, 1));
  for (const listener of [speaker, reader]) {
    expectInOrder(listener, 60);
    expect(listener.notes).toEqual(upTo(60));
  }
});

test('[RES1][FEED1] moved to another gateway under load: it goes on from its position', async () => {
  const balancer = undo.add(await startBalancer(a.port), (one) => one.close());
  const mover = client(balancer.url);
  const room = freshRoom();
  const reader = listen(mover, room);
  await reader.joined();
  const first = mover.session?.gateway;
  const say = await bare(room);
  const joins: unknown[] = [];
  mover.onWire((frame) => frame.name === 'room.join' && frame.direction === 'out' && joins.push(frame.payload));
  const own: Promise<unknown>[] = [];
  for (let i = 0; i < 30; i++) {
    await say(i);
    own.push(note(reader.room, 100 + i));
    if (i === 12) {
      balancer.point(b.port);
      mover.restart();
    }
  }
  await Promise.all(own);
  await reader.has(60);
  expectInOrder(reader, 60);
  expect(reader.notes.filter((i) => i < 100)).toEqual(upTo(30));
  expect(reader.notes.filter((i) => i >= 100)).toEqual(upTo(30, 100));
  expect(mover.session?.gateway).not.toBe(first);
  expect(joins).toMatchObject([{ from: { seq: expect.any(Number) } }]);
});

test('[FEED1] a replay that arrives with the answer of the join is not lost, from the start and from the newest', async () => {
  const room = freshRoom();
  const say = await bare(room);
  for (let i = 0; i < 40; i++) await say(i);
  for (let round = 0; round < 10; round++) {
    const one = client(a.url);
    const all = listen(one, room);
    await all.has(40);
    expectInOrder(all, 40);
    expect(all.states.filter((state) => state === 'joined')).toHaveLength(1);
    const newest = listen(client(b.url), room, { recent: 15 });
    await newest.has(15);
    expect(newest.seqs).toEqual(upTo(15, 26));
    one.close();
  }
});

test('[FEED1] a room that nobody made is read from its first event, with `recent` too', async () => {
  const room = freshRoom();
  const one = client(a.url);
  const failures: unknown[] = [];
  one.onWire((frame) => {
    if (frame.direction === 'ack' && (frame.payload as { ok: boolean }).ok === false) failures.push(frame);
  });
  const reader = listen(one, room, { recent: 50 });
  await reader.joined();
  const say = await bare(room);
  for (let i = 0; i < 5; i++) await say(i);
  await reader.has(5);
  expectInOrder(reader, 5);
  expect(failures).toEqual([]);
});

test('[LOG3][LOG4] what is said while the gateway is out of reach is sent once, under its mid, in order', async () => {
  const proxy = undo.add(await startProxy(a.port), (one) => one.close());
  const one = client(`http://127.0.0.1:${proxy.port}`);
  const room = freshRoom();
  const speaker = listen(one, room);
  await speaker.joined();
  const sent = publishes(one);
  proxy.cut();
  await eventually('the loss is noticed', () => one.state.status === 'waiting');
  const mids = upTo(20).map(() => newMid());
  const replies = mids.map((mid, i) => note(speaker.room, i, mid));
  expect(speaker.room.pending).toBe(20);
  expect(sent).toEqual([]);
  proxy.heal();
  one.retryNow();
  expect((await Promise.all(replies)).map((reply) => [reply.mid, reply.position.seq, reply.duplicate])).toEqual(
    mids.map((mid, i) => [mid, i + 1, false]),
  );
  await speaker.has(20);
  expect(speaker.events.map((event) => event.mid)).toEqual(mids);
  expect(sent.map((frame) => (frame.payload as { mid: string }).mid)).toEqual(mids);
  expect(speaker.room.pending).toBe(0);
});

test('[LOG3] an answer lost on the way: the retry under the same mid is a duplicate, and what follows keeps its place', async () => {
  const proxy = undo.add(await startProxy(a.port), (one) => one.close());
  const one = client(`http://127.0.0.1:${proxy.port}`);
  const room = freshRoom();
  const speaker = listen(one, room);
  const witness = listen(client(b.url), room);
  await Promise.all([speaker.joined(), witness.joined()]);
  const sent = publishes(one);
  proxy.delay(300);
  const replies = upTo(5).map((i) => note(speaker.room, i));
  // The first is stored, its answer is on the way: it never arrives.
  await witness.has(1);
  proxy.drop();
  proxy.heal();
  const answers = await Promise.all(replies);
  expect(answers.map((reply) => [reply.position.seq, reply.duplicate])).toEqual([
    [1, true],
    [2, false],
    [3, false],
    [4, false],
    [5, false],
  ]);
  expect(new Set(sent.map((frame) => (frame.payload as { mid: string }).mid)).size).toBe(5);
  await Promise.all([speaker.has(5), witness.has(5)]);
  expect(witness.notes).toEqual(upTo(5));
  expect(speaker.notes).toEqual(upTo(5));
});

test('[RES1] an erased room: told once, without a second join, and its successor is read from its first event', async () => {
  const room = freshRoom();
  const one = client(a.url);
  const plain = listen(one, room);
  const newest = listen(client(b.url), room, { recent: 10 });
  await Promise.all([plain.joined(), newest.joined()]);
  const say = await bare(room);
  for (let i = 0; i < 3; i++) await say(i);
  await Promise.all([plain.has(3), newest.has(3)]);
  const joins: unknown[] = [];
  one.onWire((frame) => frame.name === 'room.join' && joins.push(frame));
  const epoch = plain.room.position?.epoch;
  const erased = await fetch(`${a.url}/v1/rooms/${room}`, {
    method: 'DELETE',
    headers: { authorization: `Bearer ${DEV_SERVER_KEY}` },
  });
  expect(erased.status).toBe(204);
  await note(plain.room, 10);
  await say(11);
  await Promise.all([plain.has(5), newest.has(5)]);
  for (const listener of [plain, newest]) {
    expect(listener.resets).toEqual(['epoch_changed']);
    expect(listener.events.slice(3).map((event) => [event.seq, (event.data as { i: number }).i])).toEqual([
      [1, 10],
      [2, 11],
    ]);
    expect(listener.room.position?.epoch).not.toBe(epoch);
  }
  expect(joins).toEqual([]);
});

test('[AUTH2] a token is replaced before it ends, and the connection stays', async () => {
  let asked = 0;
  const one = undo.add(
    new TuttiClient({ url: a.url, token: () => devToken({ ttlSeconds: asked++ < 2 ? 6 : 60 }) }),
    (made) => made.close(),
  );
  const room = listen(one, freshRoom());
  await room.joined();
  const states: string[] = [];
  one.onState(({ status }) => states.push(status));
  const wire: WireFrame[] = [];
  one.onWire((frame) => frame.name === 'session.refresh' && wire.push(frame));
  const session = one.session?.session;
  await eventually('it was replaced twice', () => asked === 3 && wire.length === 4, 15_000);
  await note(room.room, 1);
  await room.has(1);
  expect(one.session?.session).toBe(session);
  expect(new Set(states)).toEqual(new Set(['connected']));
  expect(wire.map((frame) => frame.direction)).toEqual(['out', 'ack', 'out', 'ack']);
  expect(JSON.stringify(wire)).not.toContain(await devToken().then((token) => token.slice(0, 20)));
  expect(room.states.filter((state) => state === 'joined')).toHaveLength(1);
});

test('[AUTH2] a clock that is wrong by hours asks for no more tokens than one that is right', async () => {
  const now = Date.now;
  let asked = 0;
  try {
    Date.now = () => now() + 3 * 3_600_000;
    const one = undo.add(
      new TuttiClient({
        url: a.url,
        token: async () => {
          asked++;
          const iat = Math.floor(now() / 1000);
          return devToken({ claims: { iat, exp: iat + 6 } });
        },
      }),
      (made) => made.close(),
    );
    const replaced: number[] = [];
    one.onWire((frame) => frame.name === 'session.refresh' && frame.direction === 'ack' && replaced.push(now()));
    await eventually('it was replaced twice', () => replaced.length === 2, 30_000);
    const [first = 0, second = 0] = replaced;
    expect(second - first).toBeGreaterThan(1500);
    expect(asked).toBe(3);
  } finally {
    Date.now = now;
  }
}, 40_000);

test('a client restarted while it waits for a token uses the newer one, and its connection stays', async () => {
  const waiting: ((token: string) => void)[] = [];
  const one = undo.add(
    new TuttiClient({ url: a.url, token: () => new Promise((resolve) => waiting.push(resolve)) }),
    (made) => made.close(),
  );
  one.restart();
  await eventually('two tokens are asked for', () => waiting.length === 2);
  waiting[1]?.(await devToken({ user: 'new' }));
  waiting[0]?.(await devToken({ user: 'old' }));
  await eventually('it is connected', () => one.session);
  expect(one.session?.user).toBe('new');
});

test('a room that is left rejects what it still held, and nothing of it arrives any more', async () => {
  const proxy = undo.add(await startProxy(a.port), (one) => one.close());
  const one = client(`http://127.0.0.1:${proxy.port}`);
  const room = freshRoom();
  const left = listen(one, room);
  const other = listen(one, freshRoom());
  await Promise.all([left.joined(), other.joined()]);
  await note(left.room, 0);
  await left.has(1);
  proxy.cut();
  await eventually('the loss is noticed', () => one.state.status === 'waiting');
  const held = note(left.room, 1);
  one.leave(room);
  await expect(held).rejects.toMatchObject({ name: 'Refusal', code: 'left', retryable: false });
  await expect(note(left.room, 2)).rejects.toBeInstanceOf(Refusal);
  proxy.heal();
  one.retryNow();
  await other.joined();
  const say = await bare(room);
  await say(3);
  const again = listen(one, room);
  await again.has(2);
  expect(again.notes).toEqual([0, 3]);
  expect(left.notes).toEqual([0]);
  expect(left.room.state.status).toBe('left');
});

test('a closed client lets go of everything: connection, timers, what it held, rooms joined later', async () => {
  const proxy = undo.add(await startProxy(a.port), (one) => one.close());
  const one = client(`http://127.0.0.1:${proxy.port}`);
  const room = listen(one, freshRoom());
  await room.joined();
  proxy.blackhole();
  const held = [note(room.room, 0), room.room.createRun('nobody', {})];
  const asked = room.room.history({ limit: 1 });
  one.close();
  for (const one of held) await expect(one).rejects.toMatchObject({ name: 'Refusal', code: 'closed' });
  await expect(asked).rejects.toThrow();
  proxy.heal();
  await eventually('the connection is gone', () => proxy.connections === 0);
  expect(one.state).toEqual({ status: 'closed' });
  const late = listen(one, freshRoom());
  await expect(note(late.room, 1)).rejects.toMatchObject({ code: 'closed' });
  expect(late.room.state.status).toBe('refused');
  one.retryNow();
  expect(one.state).toEqual({ status: 'closed' });
});

test('a room that is forbidden is refused for good, the others are not', async () => {
  const one = undo.add(
    new TuttiClient({ url: a.url, token: await devToken({ cap: { 'open-*': ['join', 'publish'] } }) }),
    (made) => made.close(),
  );
  const closed = listen(one, freshRoom());
  const open = listen(one, `open-${freshRoom()}`);
  await open.joined();
  await expect(note(closed.room, 1)).rejects.toMatchObject({ code: 'forbidden' });
  expect(closed.room.state).toMatchObject({ status: 'refused', error: { code: 'forbidden' } });
  await note(open.room, 1);
  await open.has(1);
  expect(open.room.rights).toEqual(['join', 'publish']);
});
