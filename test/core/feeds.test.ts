import { describe, expect, test } from 'vitest';
import { Feed } from '../../src/core/feed.js';
import { type EventRecord, encodePush, eventFrame, payloadOf } from '../../src/protocol/frames.js';
import type { Position } from '../../src/protocol/primitives.js';
import { toJsonText } from '../../src/protocol/primitives.js';
import { Reader } from './feed-reader.js';
import { feedWorld, key, limits } from './feed-world.js';
import { noMetrics, SimViewer, silent } from './simulation.js';

describe('feeds', () => {
  test('[FEED2] a lost last announcement heals within 2 s', async () => {
    const { clock, rooms, node, publish } = feedWorld(7, { bus: { drop: 1, repeat: 0, maxDelayMs: 1 } });
    const reader = new Reader(rooms, new SimViewer('v', node(1).outlet));
    reader.join(node(1));
    await clock.run(200);
    void publish(0, 'last');
    await clock.run(2000);
    reader.take();
    expect(reader.texts).toEqual(['last']);
  });

  test('[RES1] ten thousand readers that come back at once cost three reads of the log', async () => {
    const own = { ...limits, ringBytes: 1024 * 1024 };
    const missedFrom = (i: number) => (i % 20 === 0 ? i % 300 : 290 + (i % 10));
    const { clock, rooms, node, publish } = feedWorld(3, {
      bus: { drop: 0, repeat: 0, maxDelayMs: 1 },
      gateways: 1,
      feedLimits: own,
    });
    for (let i = 0; i < 300; i += 1) void publish(0, `m${i}`);
    await clock.run(100);
    rooms.reads = 0;
    const epoch = rooms.rooms.get(key)?.epoch ?? '';
    const readers = Array.from({ length: 10_000 }, (_, i) => {
      const reader = new Reader(rooms, new SimViewer(`v${i}`, node(0).outlet));
      reader.position = { epoch, seq: missedFrom(i) };
      reader.join(node(0));
      return reader;
    });
    await clock.run(200);
    for (const [i, reader] of readers.entries()) {
      reader.take();
      expect(reader.texts.length).toBe(300 - missedFrom(i));
    }
    expect(rooms.reads).toBeLessThanOrEqual(3);
  });

  test('[RES1] a replay of events so large that pages of the log end early has no hole', async () => {
    const { clock, rooms, node, publish } = feedWorld(13, { gateways: 1, feedLimits: { ...limits, ringBytes: 500 } });
    for (let i = 0; i < 40; i += 1) void publish(0, `m${i}`);
    await clock.run(100);
    rooms.pageMax = 7;
    const readers = [0, 3, 7, 20].map((seq, i) => {
      const reader = new Reader(rooms, new SimViewer(`v${i}`, node(0).outlet));
      reader.position = { epoch: rooms.rooms.get(key)?.epoch ?? '', seq };
      reader.join(node(0));
      return reader;
    });
    await clock.run(2000);
    for (const reader of readers) reader.take();
    expect(readers.map(({ texts, resyncs }) => [texts.length, resyncs])).toEqual([
      [40, 0],
      [37, 0],
      [33, 0],
      [20, 0],
    ]);
  });

  test('[RES1] a reader in replay outlasts a log that is away for 25 s, on the same connection; after 30 s it is told to come back', async () => {
    const { clock, rooms, node, publish } = feedWorld(17, { gateways: 1, feedLimits: { ...limits, ringBytes: 500 } });
    for (let i = 0; i < 40; i += 1) void publish(0, `m${i}`);
    await clock.run(100);
    const join = (id: string) => {
      const reader = new Reader(rooms, new SimViewer(id, node(0).outlet));
      reader.join(node(0));
      return reader;
    };
    // The room is open: it takes no look at the log to join.
    void node(0).feeds.join(key, new SimViewer('live', node(0).outlet), 'latest', () => {});
    await clock.run(100);
    node(0).line.away = true;
    const first = join('first');
    await clock.run(25_000);
    expect(first.attached).toBe(true);
    first.take();
    expect(first.texts).toHaveLength(0);
    node(0).line.away = false;
    await clock.run(2500);
    first.take();
    expect([first.texts.length, first.resyncs, first.viewer.closed]).toEqual([40, 0, undefined]);

    const second = join('second');
    node(0).line.away = true;
    await clock.run(29_000);
    expect(second.viewer.closed).toBeUndefined();
    await clock.run(4000);
    expect([first.viewer.closed, second.viewer.closed]).toEqual([undefined, 'overloaded']);
    expect(node(0).feeds.roomsOf(second.viewer).size).toBe(1); // until the socket has closed
  });

  test('[RES1] a position that is gone is answered with a resync, never with a hole', async () => {
    const { clock, rooms, node, publish } = feedWorld(5);
    for (let i = 0; i < 20; i += 1) void publish(0, `m${i}`);
    await clock.run(100);
    const room = rooms.rooms.get(key);
    if (!room) throw new Error('no room');
    room.floor = 10;
    room.events.splice(0, 10);
    const reasons: (string | undefined)[] = [];
    const froms: Position[] = [
      { epoch: 'other', seq: 15 },
      { epoch: room.epoch, seq: 9 },
      { epoch: room.epoch, seq: 21 },
      { epoch: room.epoch, seq: 10 },
    ];
    for (const [i, from] of froms.entries()) {
      const viewer = new SimViewer(`v${i}`, node(0).outlet);
      void node(0).feeds.join(key, viewer, from, ({ resync, position }) => {
        reasons.push(resync?.reason);
        expect(position.seq).toBe(resync ? 20 : 10);
      });
      await clock.run(200);
      expect(viewer.frames.length).toBe(resyncOr(reasons.at(-1)) ? 0 : 10);
    }
    expect(reasons).toEqual(['epoch_changed', 'position_too_old', 'position_ahead', undefined]);
  });

  test('[RES1] a room that is erased under its readers resyncs them to its successor', async () => {
    const { clock, rooms, node, publish } = feedWorld(6);
    const reader = new Reader(rooms, new SimViewer('v', node(1).outlet));
    reader.join(node(1));
    void publish(0, 'before');
    await clock.run(300);
    rooms.erase(key);
    await clock.run(1500);
    void publish(0, 'after');
    await clock.run(1500);
    reader.take();
    expect(reader.resyncs).toBe(1);
    expect(reader.texts).toEqual(['before', 'after']);
  });

  test('[RES1] a room that is erased during a replay: the reader is told before anything of its successor', async () => {
    const { clock, rooms, node, publish } = feedWorld(3, { gateways: 1, feedLimits: { ...limits, ringBytes: 500 } });
    for (let i = 0; i < 30; i += 1) void publish(0, `m${i}`);
    await clock.run(100);
    const viewer = new SimViewer('v', node(0).outlet, () => clock.sleep(3000).then(() => true));
    const reader = new Reader(rooms, viewer);
    reader.join(node(0));
    await clock.run(100);
    rooms.erase(key);
    void publish(0, 'first');
    await clock.run(2000);
    void publish(0, 'second');
    await clock.run(5000);
    reader.take();
    expect(reader.resyncs).toBe(1);
    expect(reader.texts).toEqual(['second']);
  });

  test('[RES1] an answer of the log that the feed has outlived makes nobody start over', () => {
    const { clock, outlet } = feedWorld(725, { gateways: 1 }).node(0);
    const log = { read: () => new Promise<never>(() => {}) } as never;
    const feed = new Feed(
      key,
      { epoch: 'old', head: 5, floor: 0 },
      { log, outlet, clock, metrics: noMetrics, logger: silent, limits },
    );
    const seen = feed.position;
    feed.compare({ epoch: 'new', head: 1, floor: 0 }, seen);
    feed.compare({ epoch: 'new', head: 2, floor: 0 }, seen);
    feed.compare({ epoch: 'old', head: 5, floor: 0 }, seen);
    expect(feed.position).toEqual({ epoch: 'new', seq: 1 });
  });

  test('[RES1] a reader that was told to start over is not told again because of a page that was on its way', async () => {
    const world = feedWorld(727, { gateways: 1 });
    const { clock, outlet } = world.node(0);
    const start = { epoch: 'e', head: 20, floor: 0 };
    const now = { epoch: 'e', head: 42, floor: 30 };
    const events = Array.from({ length: 12 }, (_, i) => ({
      room: 'r',
      epoch: 'e',
      seq: 31 + i,
      mid: `m${i}`,
      type: 'x',
    }));
    const texts = { at: 0, data: toJsonText(1), by: toJsonText({}) };
    const page = { ...now, events: events.map((one) => ({ ...one, ...texts })) };
    const read = async (_tenant: string, _room: string, { order }: { order: string }) => {
      if (order === 'desc') return { ...start, events: [] };
      await new Promise<void>((answer) => clock.after(10, answer));
      return page;
    };
    const log = { read } as never;
    const feed = new Feed(key, start, { log, outlet, clock, metrics: noMetrics, logger: silent, limits });
    const viewer = new SimViewer('v', outlet);
    feed.attach(viewer, { epoch: 'e', seq: 5 }, () => undefined);
    await world.clock.run(5);
    feed.compare({ ...now, head: 40 }, feed.position);
    await world.clock.run(20);
    expect(viewer.frames.filter((frame) => frame.startsWith('42["room.resync"'))).toHaveLength(1);
    feed.close();
  });

  test('a log that lacks a number is not read again and again without a pause', async () => {
    const world = feedWorld(726, { gateways: 1 });
    const { clock, outlet } = world.node(0);
    const start = { epoch: 'e', head: 0, floor: 0 };
    const events = [1, 2, 4, 5].map((seq) => ({ room: 'r', epoch: 'e', seq, mid: `m${seq}`, type: 'x', at: 0 }));
    const texts = { data: toJsonText(1), by: toJsonText({}) };
    let reads = 0;
    const read = async (_tenant: string, _room: string, { after }: { after: number }) => {
      reads += 1;
      await new Promise<void>((answer) => clock.after(1, answer));
      return { ...start, head: 5, events: events.flatMap((one) => (one.seq > after ? [{ ...one, ...texts }] : [])) };
    };
    const log = { read } as never;
    const feed = new Feed(key, start, { log, outlet, clock, metrics: noMetrics, logger: silent, limits });
    feed.expect(5, 'head_check');
    await world.clock.run(1000);
    expect(feed.head).toBe(2);
    expect(reads).toBeLessThanOrEqual(Math.ceil(1000 / limits.gapRepairMs) + 1);
    feed.close();
  });

  test('[RES1] a reader ahead of its gateway is not made to start over because the log cannot be read', async () => {
    const { clock, rooms, node, publish } = feedWorld(350, { gateways: 1 });
    const viewer = new SimViewer('v', node(0).outlet);
    void node(0).feeds.join(key, viewer, 'start', () => {});
    void publish(0, 'known');
    await clock.run(300);
    for (const mid of ['a', 'b'])
      rooms.append({ tenant: 't', room: 'r', mid, type: 'x', data: toJsonText(1), by: toJsonText({}) });
    rooms.pageMax = 0;
    const ahead = { epoch: rooms.room(key).epoch, seq: 3 };
    const refused = expect(node(0).feeds.join(key, new SimViewer('w', node(0).outlet), ahead, () => {})).rejects;
    await Promise.all([refused.toMatchObject({ code: 'log_unavailable' }), clock.run(500)]);
  });

  test('[ERR1] a reader that leaves while it joins is told so, and gets nothing', async () => {
    const { clock, node, publish } = feedWorld(11, { gateways: 1 });
    const viewer = new SimViewer('v', node(0).outlet);
    const joined = node(0).feeds.join(key, viewer, 'start', () => {});
    const refused = expect(joined).rejects.toMatchObject({ code: 'not_joined' });
    expect(node(0).feeds.leave(key, viewer)).toBe(true);
    void publish(0, 'm');
    await clock.run(300);
    await refused;
    expect(viewer.frames).toHaveLength(0);
  });

  test('[AUTH2] a reader whose second join fails can still be made to leave', async () => {
    const { clock, rooms, node, publish } = feedWorld(12, { gateways: 1 });
    const { feeds, outlet } = node(0);
    const viewer = new SimViewer('v', outlet);
    void feeds.join(key, viewer, 'start', () => {});
    await clock.run(100);
    node(0).line.away = true;
    const ahead = { epoch: rooms.rooms.get(key)?.epoch ?? '', seq: 1000 };
    const refused = expect(feeds.join(key, viewer, ahead, () => {})).rejects.toMatchObject({ code: 'log_unavailable' });
    await clock.run(100);
    await refused;
    node(0).line.away = false;
    void publish(0, 'read');
    await clock.run(300);
    expect(viewer.frames).toHaveLength(1);
    expect([...feeds.roomsOf(viewer)]).toEqual([key]);
    feeds.leaveAll(viewer);
    void publish(0, 'not read');
    await clock.run(300);
    expect(viewer.frames).toHaveLength(1);
  });

  test('[SLOW1] a reader that cannot follow during its replay is closed, with bounded memory', async () => {
    const { clock, node, publish } = feedWorld(8, {
      gateways: 1,
      feedLimits: { ...limits, replayBufferBytes: 2000, ringBytes: 500 },
    });
    for (let i = 0; i < 30; i += 1) void publish(0, `m${i}`);
    await clock.run(100);
    const viewer = new SimViewer('v', node(0).outlet, () => clock.sleep(10_000).then(() => true));
    void node(0).feeds.join(key, viewer, 'start', () => {});
    await clock.run(100);
    const frame = encodePush('broadcast', {
      room: 'r',
      type: 'x',
      data: 'y'.repeat(100),
      by: { kind: 'user', id: 'a' },
    });
    for (let i = 0; i < 20; i += 1) node(0).feeds.push(key, frame);
    expect(viewer.closed).toBe('slow_consumer');
  });

  test('news of runs that are more than may be held come with the rest, and too much of ended runs cuts the reader off', async () => {
    const { clock, node, publish } = feedWorld(8, {
      bus: { drop: 0, repeat: 0, maxDelayMs: 1 },
      gateways: 1,
      feedLimits: { ...limits, replayBufferBytes: 2000, ringBytes: 500 },
    });
    for (let i = 0; i < 30; i += 1) void publish(0, `m${i}`);
    await clock.run(100);
    const viewer = new SimViewer('v', node(0).outlet, () => clock.sleep(10_000).then(() => true));
    let closed = 0;
    const rest = { behind: false, keptBytes: 0, page: () => [], close: () => void closed++ };
    void node(0).feeds.join(key, viewer, 'start', () => rest);
    await clock.run(100);
    const frame = encodePush('run.reset', { room: 'r', run: 'x'.repeat(100), attempt: 2, reason: 'worker_lost' });
    for (let i = 0; i < 10; i += 1) node(0).feeds.pushRun(key, frame);
    expect(rest.behind).toBe(false);
    for (let i = 0; i < 10; i += 1) node(0).feeds.pushRun(key, frame);
    expect([rest.behind, viewer.closed, closed]).toEqual([true, undefined, 0]);
    rest.keptBytes = 9 * 1024 * 1024;
    node(0).feeds.pushRun(key, frame);
    expect([viewer.closed, closed, viewer.frames.includes(frame)]).toEqual(['slow_consumer', 1, false]);
  });

  test('what is no event and comes during a replay follows it, once', async () => {
    const { clock, node, publish } = feedWorld(9, {
      bus: { drop: 0, repeat: 0, maxDelayMs: 1 },
      gateways: 1,
      feedLimits: { ...limits, ringBytes: 500 },
    });
    for (let i = 0; i < 30; i += 1) void publish(0, `m${i}`);
    await clock.run(100);
    const viewer = new SimViewer('v', node(0).outlet, () => clock.sleep(50).then(() => true));
    void node(0).feeds.join(key, viewer, 'start', () => {});
    await clock.run(45);
    const frame = encodePush('broadcast', { room: 'r', type: 'x', data: 1, by: { kind: 'user', id: 'a' } });
    node(0).feeds.push(key, frame);
    await clock.run(1000);
    expect(viewer.frames.filter((other) => other === frame)).toHaveLength(1);
    expect(viewer.frames.at(-1)).toBe(frame);
    expect(viewer.frames).toHaveLength(31);
  });
});

const resyncOr = (reason: string | undefined) => reason !== undefined;

test('frames carry JSON that parses to what went in', () => {
  const record: EventRecord = {
    room: 'r',
    epoch: 'e',
    seq: 1,
    mid: 'm',
    type: 'x',
    data: toJsonText({ text: 'a "quoted" \u2028 line', nul: '\u0000' }),
    by: toJsonText({ kind: 'user', id: 'ü' }),
    at: 5,
  };
  const parsed = JSON.parse(payloadOf(eventFrame(record), 'event'));
  expect(parsed).toEqual({
    ...record,
    data: { text: 'a "quoted" \u2028 line', nul: '\u0000' },
    by: { kind: 'user', id: 'ü' },
  });
});
