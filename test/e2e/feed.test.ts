import { randomInt } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { JoinFrom } from '../../src/protocol/commands.js';
import { RawClient } from '../realtime/stage.js';
import { connect } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { random } from '../support/random.js';
import { startRedis } from '../support/redis.js';
import { DEV_SERVER_KEY, devToken } from '../support/tokens.js';
import { Reader } from './feed-reader.js';
import { RoomStream } from './feed-stream.js';
import { Publisher } from './log-publisher.js';
import { expectWholeLog, inDatabase } from './log-table.js';
import { call, sleep, startPair, Undo, userToken } from './run-stage.js';

const undo = new Undo();
afterEach(() => undo.all());

const upTo = (last: number, first = 1) => Array.from({ length: last - first + 1 }, (_, n) => first + n);
const client = async (gateway: { url: string }, user = 'ann') =>
  undo.add(await connect({ url: gateway.url, token: await userToken(user) }), (one) => one.close());

/** Publishes `count` events over HTTP, so that no reader's connection has to do with it. */
async function fill(gateway: GatewayProcess, room: string, count: number, data: unknown = null): Promise<void> {
  for (let n = 0; n < count; n += 20) {
    const replies = await Promise.all(
      upTo(Math.min(20, count - n)).map(() =>
        call(gateway.url, DEV_SERVER_KEY, 'POST', `/v1/rooms/${room}/events`, { type: 'fill', data }),
      ),
    );
    for (const { status } of replies) if (status !== 201) throw new Error(`fill: ${status}`);
  }
}

test('[FEED1][FEED2][RES1] readers see every event once and in order while Redis and gateways die under load', async () => {
  const redis = undo.add(await startRedis(), (one) => one.stop());
  const { a, b, env } = await startPair(undo, { redisUrl: redis.url });
  const urls = [a.url, b.url];
  const room = 'storm';
  const readers: Reader[] = [];
  for (let n = 0; n < 8; n += 1) {
    const reader = new Reader(urls, room, await devToken({ user: `r${n}` }), n);
    readers.push(undo.add(await reader.follow(), (one) => one.stop()));
  }
  const publishers: Publisher[] = [];
  for (let n = 0; n < 4; n += 1) {
    publishers.push(
      new Publisher(`p${n}`, n % 2 ? urls : [...urls].reverse(), room, await devToken({ user: `p${n}` })),
    );
  }
  let over = false;
  const publishing = Promise.all(publishers.map((one) => one.publish(() => over || one.acked.length >= 800, 10)));
  const head = () => Math.max(...publishers.flatMap(({ acked }) => acked.map(({ seq }) => seq)), 0);
  /** Everybody gets to where the log stands now; the time bounds a hang. */
  const caughtUp = async () => {
    await sleep(250);
    const seq = head();
    await Promise.all(readers.map((reader) => reader.reaches(seq)));
  };

  await caughtUp();
  await redis.kill9();
  await caughtUp();
  await redis.start();
  await caughtUp();
  redis.freeze();
  await caughtUp();
  redis.thaw();
  await caughtUp();
  await b.kill9();
  await caughtUp();
  const again = undo.add(await startGateway({ env, port: b.port }), (one) => one.stop());
  await a.kill9();
  await caughtUp();
  over = true;
  await publishing;

  expect(again.running()).toBe(true);
  const mids = await expectWholeLog(env.DATABASE_URL ?? '', room, publishers);
  expect(publishers.flatMap(({ knownAtOnce }) => knownAtOnce)).toEqual([]);
  expect(mids.length).toBeGreaterThan(100);
  for (const reader of readers) {
    await reader.reaches(mids.length);
    expect(reader.faults).toEqual([]);
    expect(reader.mids).toEqual(mids);
  }
}, 90_000);

test('[FEED2] an announcement that is lost, the last of a room, heals without any other traffic', async () => {
  const redis = undo.add(await startRedis(), (one) => one.stop());
  const { a, b } = await startPair(undo, { redisUrl: redis.url });
  const [writer, reader] = await Promise.all([client(a), client(b)]);
  await reader.call('room.join', { room: 'quiet' });
  await redis.kill9();
  await writer.call('event.publish', { room: 'quiet', type: 'last', data: 'the last one' });
  // The promise is 2 s; the rest is for a busy machine.
  await reader.waitFor('event', ({ data }) => data === 'the last one', 6000);
  await redis.start();
  await eventually('both hear of each other again', async () => {
    await writer.call('broadcast.send', { room: 'quiet', type: 'ping', data: null });
    return reader.of('broadcast').length > 0;
  });
  expect(reader.of('event').map(({ seq }) => seq)).toEqual([1]);
});

describe('two gateways with one Redis', () => {
  const shared = new Undo();
  let a: GatewayProcess;
  let b: GatewayProcess;
  let databaseUrl: string;
  beforeAll(async () => {
    const pair = await startPair(shared, {
      env: { TUTTI_SOCKET_MAX_BACKPRESSURE_BYTES: '262144', TUTTI_COMMANDS_PER_SECOND: '5000' },
    });
    ({ a, b } = pair);
    databaseUrl = pair.env.DATABASE_URL ?? '';
  });
  afterAll(() => shared.all());

  test('[RES1] start, latest, a position, leave, and joining twice', async () => {
    await fill(a, 'doors', 30);
    const reader = await client(b);
    const seqs = () => reader.of('event').map(({ seq }) => seq);
    const start = await reader.call('room.join', { room: 'doors', from: 'start' });
    expect(start).toMatchObject({
      position: { seq: 0 },
      head: 30,
      runs: [],
      capabilities: expect.arrayContaining(['join']),
    });
    expect(start).not.toHaveProperty('resync');
    await reader.until(() => seqs().length === 30, 'the whole room');
    expect(seqs()).toEqual(upTo(30));

    const { epoch } = start.position;
    reader.pushes.length = 0;
    const from = { epoch, seq: 12 };
    const twice = [
      await reader.call('room.join', { room: 'doors', from }),
      await reader.call('room.join', { room: 'doors', from }),
    ];
    expect(twice[0]).toMatchObject({ position: from, resumed: true, head: 30 });
    expect(twice[1]).toEqual(twice[0]);
    await reader.until(() => seqs().length === 36, 'both replays');
    expect(seqs()).toEqual([...upTo(30, 13), ...upTo(30, 13)]);

    reader.pushes.length = 0;
    const latest = await reader.call('room.join', { room: 'doors' });
    expect(latest).toMatchObject({ position: { epoch, seq: 30 }, head: 30 });
    await fill(a, 'doors', 1);
    await reader.waitFor('event', ({ seq }) => seq === 31);
    expect(seqs()).toEqual([31]);

    await reader.call('room.leave', { room: 'doors' });
    expect(await reader.ask('room.leave', { room: 'doors' })).toMatchObject({ error: { code: 'not_joined' } });
    await fill(b, 'doors', 3);
    const back = await reader.call('room.join', { room: 'doors', from: { epoch, seq: 31 } });
    expect(back.resumed).toBe(true);
    await reader.waitFor('event', ({ seq }) => seq === 34);
    expect(seqs()).toEqual(upTo(34, 31));
  });

  test('[RES1] a wrong epoch and a position ahead are told as a resync, never as a silent hole', async () => {
    await fill(a, 'past', 5);
    for (const gateway of [a, b]) {
      const reader = await client(gateway);
      const { epoch } = (await reader.call('event.history', { room: 'past' })) as { epoch: string };
      const other = await reader.call('room.join', { room: 'past', from: { epoch: 'never-was', seq: 3 } });
      expect(other).toMatchObject({ resumed: false, resync: { reason: 'epoch_changed' }, position: { epoch } });
      const ahead = await reader.call('room.join', { room: 'past', from: { epoch, seq: 500 } });
      expect(ahead).toMatchObject({
        resumed: false,
        resync: { reason: 'position_ahead' },
        position: { epoch, seq: 5 },
      });
    }
  });

  test('[RES1] a room that is erased resyncs its readers on every gateway, and goes on under a new epoch', async () => {
    await fill(a, 'gone', 7);
    const readers = [await client(a), await client(b)];
    const stream = undo.add(
      await RoomStream.open(b.url, await userToken('ann'), '/v1/rooms/gone/stream?after=start'),
      (one) => one.close(),
    );
    const [before] = await Promise.all(readers.map((one) => one.call('room.join', { room: 'gone', from: 'start' })));
    await Promise.all(readers.map((one) => one.waitFor('event', ({ seq }) => seq === 7)));
    const erased = await fetch(`${b.url}/v1/rooms/gone`, {
      method: 'DELETE',
      headers: { authorization: `Bearer ${DEV_SERVER_KEY}` },
    });
    expect(erased.status).toBe(204);
    for (const reader of readers) {
      const resync = await reader.waitFor('room.resync');
      expect(resync).toMatchObject({ room: 'gone', reason: 'epoch_changed', position: { seq: 0 } });
      expect(resync.position.epoch).not.toBe(before?.position.epoch);
    }
    await eventually('the stream is told', () => stream.events.some(({ event }) => event === 'resync'));
    await fill(a, 'gone', 2);
    for (const reader of readers) {
      await reader.waitFor('event', ({ epoch, seq }) => epoch !== before?.position.epoch && seq === 2);
      expect(reader.of('event').map(({ seq }) => seq)).toEqual([...upTo(7), 1, 2]);
    }
    await eventually('the stream goes on', () => stream.seqs.length === 9);
    expect(stream.seqs).toEqual([...upTo(7), 1, 2]);
    const late = await readers[0]?.call('room.join', {
      room: 'gone',
      from: { epoch: before?.position.epoch ?? '', seq: 7 },
    });
    expect(late).toMatchObject({ resumed: false, resync: { reason: 'epoch_changed' } });
  });

  test('[RES1][FEED1] a stream of server-sent events resumes exactly with Last-Event-ID, on the other gateway', async () => {
    const token = await userToken('ann');
    await fill(a, 'sse', 10);
    const path = '/v1/rooms/sse/stream?after=start';
    const seen: number[] = [];
    let last: string | undefined;
    for (const [round, gateway] of [a, b, a].entries()) {
      const stream = undo.add(await RoomStream.open(gateway.url, token, path, last), (one) => one.close());
      expect(stream.status).toBe(200);
      await fill(round % 2 ? a : b, 'sse', 5);
      const until = 10 + (round + 1) * 7 - 2;
      await eventually(`the stream reaches ${until}`, () => seen.length + stream.seqs.length >= until);
      await stream.close();
      seen.push(...stream.seqs);
      last = stream.lastId;
      expect(last?.endsWith(`:${seen.at(-1)}`)).toBe(true);
      await fill(a, 'sse', 2);
    }
    expect(seen).toEqual(upTo(29));
  });

  test('[FEED1] joins and leaves that overtake each other: whatever was answered last holds', async () => {
    const rooms = ['fuzz.1', 'fuzz.2', 'fuzz.3'];
    const seed = randomInt(1 << 30);
    const next = random(seed);
    const pick = (below: number) => Math.floor(next() * below);
    let over = false;
    const writers = [a, b].map(async (gateway) => {
      while (!over) await Promise.all(rooms.map((room) => fill(gateway, room, 2)));
    });
    for (const room of rooms) await fill(a, room, 20);
    const faults: string[] = [];
    const fuzz = async (gateway: GatewayProcess) => {
      const reader = await client(gateway);
      const expected = new Map<string, { epoch: string; seq: number }>();
      const last = new Map<string, { epoch: string; seq: number }>();
      reader.socket.on('event', ({ room, epoch, seq }: { room: string; epoch: string; seq: number }) => {
        const at = expected.get(room);
        if (!at) faults.push(`${room} ${seq} where nobody reads`);
        else if (at.seq + 1 !== seq) faults.push(`${room} ${seq} after ${at.seq}`);
        expected.set(room, { epoch, seq });
        last.set(room, { epoch, seq });
      });
      const answered: Promise<void>[] = [];
      const send = (command: string, payload: { room: string }, then: (ack: Record<string, unknown>) => void) => {
        const settled = new Promise<void>((resolve) => {
          reader.socket.emit(command, payload, (ack: Record<string, unknown>) => {
            then(ack);
            resolve();
          });
        });
        answered.push(settled);
      };
      const join = (room: string, from: JoinFrom | undefined) =>
        send('room.join', { room, ...(from ? { from } : {}) } as { room: string }, (ack) => {
          if (ack.ok) expected.set(room, ack.position as { epoch: string; seq: number });
          else if ((ack.error as { code: string }).code !== 'not_joined') faults.push(JSON.stringify(ack));
        });
      for (let n = 0; n < 400; n += 1) {
        const room = rooms[pick(rooms.length)] ?? '';
        if (pick(3) === 0) {
          send('room.leave', { room }, (ack) => {
            if (ack.ok) expected.delete(room);
            else if ((ack.error as { code: string }).code !== 'not_joined') faults.push(JSON.stringify(ack));
          });
        } else {
          const known = last.get(room);
          const ahead = known && { ...known, seq: known.seq + 3 };
          const from = ([undefined, 'start', 'latest', known, ahead] as const)[pick(5)];
          join(room, from);
        }
        if (pick(4) === 0) await sleep(pick(6));
      }
      for (const room of rooms) join(room, 'latest');
      await Promise.all(answered);
      for (const room of rooms) {
        const at = expected.get(room)?.seq ?? Number.POSITIVE_INFINITY;
        await eventually(`${room} goes on`, () => (expected.get(room)?.seq ?? 0) > at + 2);
      }
      reader.close();
    };
    // Nobody else keeps these rooms open, so that they are also opened and closed on the way.
    await Promise.all([fuzz(a), fuzz(b), fuzz(b)]);
    over = true;
    await Promise.all(writers);
    expect(faults, `seed ${seed}`).toEqual([]);
  });

  test('[FEED1] a join that is left before it was answered is answered all the same', async () => {
    for (let n = 0; n < 20; n += 1) {
      const reader = await client(a);
      const room = `brief-${n}`;
      const [joined, left] = await Promise.all([reader.ask('room.join', { room }), reader.ask('room.leave', { room })]);
      expect(left).toEqual({ ok: true });
      if (!joined.ok) expect(joined.error.code).toBe('not_joined');
      reader.close();
    }
  });

  test('[RES1] sixty readers that come back at once cost three reads of the log', async () => {
    await fill(a, 'herd', 300);
    const { position } = await (await client(a)).call('room.join', { room: 'herd', from: 'start' });
    const readers = await Promise.all(upTo(60).map(() => client(b)));
    const queries = async () => {
      const text = await (await fetch(`${b.url}/metrics`)).text();
      return [...text.matchAll(/^tutti_log_queries_total\{[^}]*\} (\d+)/gm)].reduce((sum, [, n]) => sum + Number(n), 0);
    };
    const before = await queries();
    await Promise.all(readers.map((one) => one.call('room.join', { room: 'herd', from: { ...position, seq: 20 } })));
    for (const reader of readers) {
      await reader.waitFor('event', ({ seq }) => seq === 300);
      expect(reader.of('event').map(({ seq }) => seq)).toEqual(upTo(300, 21));
    }
    expect((await queries()) - before).toBeLessThanOrEqual(3);
  });

  test('[SLOW1] a reader that stops reading is closed and resumes without loss; the others notice nothing', async () => {
    const room = 'wide';
    const token = await userToken('slow');
    const fast = await client(b, 'fast');
    const near = await client(a, 'near');
    await Promise.all([fast, near].map((one) => one.call('room.join', { room, from: 'start' })));
    const slow = undo.add(new RawClient(a.port), (one) => one.socket.destroy());
    await slow.join(room, token);
    slow.socket.pause();
    const closes = async () =>
      Number(/^tutti_slow_closes_total (\d+)/m.exec(await (await fetch(`${a.url}/metrics`)).text())?.[1] ?? 0);
    let count = 0;
    while ((await closes()) === 0 && count < 1000) {
      await fill(b, room, 20, 'x'.repeat(30_000));
      count += 20;
    }
    await eventually('the slow reader is closed', async () => (await closes()) > 0);
    expect(await closes()).toBe(1);
    for (const one of [fast, near]) {
      await one.waitFor('event', ({ seq }) => seq === count);
      expect(one.of('event').map(({ seq }) => seq)).toEqual(upTo(count));
    }
    // It reads what had left for it, finds the end, and goes on from the last whole event.
    slow.socket.resume();
    await slow.closed;
    const whole = slow.received
      .split('42["event",')
      .slice(1)
      .map((text) => /^\{.*?"seq":(\d+),.*"at":\d+\}\]/s.exec(text));
    const seqs = whole.flatMap((match) => (match ? [Number(match[1])] : []));
    expect(seqs).toEqual(upTo(seqs.length));
    expect(seqs.length).toBeLessThan(count);
    const reader = new Reader([b.url], room, token);
    reader.position = { epoch: (await near.call('room.join', { room })).position.epoch, seq: seqs.length };
    undo.add(await reader.follow(), (one) => one.stop());
    await reader.reaches(count);
    expect(reader.faults).toEqual([]);
    expect(reader.mids).toHaveLength(count - seqs.length);
    const rows = await inDatabase(databaseUrl, (sql) => sql`select head from tutti.rooms where name = ${room}`);
    expect(Number(rows[0]?.head)).toBe(count);
  });
});

test('[FEED1] two gateways that share one port are one to their readers', async () => {
  const { a, env } = await startPair(undo);
  const twin = undo.add(await startGateway({ env, port: a.port }), (one) => one.stop());
  // Until it listens, the other one answers for it.
  await eventually('the second one listens', () => twin.logs().includes('Gateway listens'));
  const gatewayOf = async (one: Awaited<ReturnType<typeof client>>) => (await one.waitFor('session.ready')).gateway;
  const readers: Awaited<ReturnType<typeof client>>[] = [];
  const names = new Set<string>();
  // The kernel spreads connections over both; so many on one side only would be a wonder.
  for (let n = 0; n < 60 && (names.size < 2 || readers.length < 6); n += 1) {
    const one = await client(a);
    readers.push(one);
    names.add(await gatewayOf(one));
  }
  expect(names.size).toBe(2);
  await Promise.all(readers.map((one) => one.call('room.join', { room: 'port', from: 'start' })));
  await Promise.all(readers.map((one, n) => one.call('event.publish', { room: 'port', type: 'chat', data: n })));
  for (const reader of readers) {
    await reader.waitFor('event', ({ seq }) => seq === readers.length);
    expect(reader.of('event').map(({ seq }) => seq)).toEqual(upTo(readers.length));
  }
  expect(await twin.term()).toBe(0);
  expect((await fetch(`${a.url}/readyz`)).status).toBe(200);
});
