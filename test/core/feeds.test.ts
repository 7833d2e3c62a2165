import { describe, expect, test } from 'vitest';
import { Feeds, type FeedsLimits } from '../../src/core/feeds.js';
import { roomKey } from '../../src/core/keys.js';
import { type EventRecord, encodePush, eventFrame, type Frame, payloadOf } from '../../src/protocol/frames.js';
import type { Position } from '../../src/protocol/primitives.js';
import { toJsonText } from '../../src/protocol/primitives.js';
import { noMetrics, SimBus, SimLog, SimOutlet, SimViewer, silent } from './simulation.js';
import { random, VirtualClock } from './virtual-clock.js';

const limits: FeedsLimits = {
  ringBytes: 4096,
  gapRepairMs: 50,
  replayBufferBytes: 1024 * 1024,
  ringBytesTotal: 64 * 1024,
  headCheckMs: 1000,
  lingerMs: 500,
};
const key = roomKey('t', 'r');

function world(seed: number, chances = { drop: 0.1, repeat: 0.1, maxDelayMs: 80 }, gateways = 2, own = limits) {
  const next = random(seed);
  const clock = new VirtualClock();
  const log = new SimLog(clock, () => next() * 20);
  const buses: SimBus[] = [];
  const nodes = Array.from({ length: gateways }, () => {
    const bus = new SimBus(buses, clock, { random: next, ...chances });
    const outlet = new SimOutlet();
    const feeds = new Feeds({ log, bus, outlet, clock, metrics: noMetrics, logger: silent, limits: own });
    bus.onMessage((room, message) => feeds.announced(room, message));
    feeds.start({ openRoom: async () => {}, closeRoom: () => {}, check: async () => {} });
    return { bus, outlet, feeds };
  });
  const node = (i: number) => {
    const found = nodes[i];
    if (!found) throw new Error(`no gateway ${i}`);
    return found;
  };
  const publish = async (gateway: number, text: string) => {
    const event = { tenant: 't', room: 'r', mid: text, type: 'x', data: toJsonText(text), by: toJsonText({ id: 'a' }) };
    const { epoch, seq, at } = await log.append(event);
    const record: EventRecord = { room: 'r', epoch, seq, mid: text, type: 'x', data: event.data, by: event.by, at };
    node(gateway).feeds.committed(key, record);
  };
  return { next, clock, log, node, publish };
}

/** A reader that joins, leaves and comes back somewhere with its position, and checks what it gets. */
class Reader {
  position: Position | undefined;
  viewer: SimViewer;
  read = 0;
  readonly texts: string[] = [];
  resyncs = 0;
  attached = false;

  constructor(viewer: SimViewer) {
    this.viewer = viewer;
  }

  /** Takes what came; throws at the first gap, repeat or reorder. */
  take(): void {
    for (; this.read < this.viewer.frames.length; this.read += 1) {
      const frame = this.viewer.frames[this.read] as Frame;
      if (frame.startsWith('42["room.resync"')) {
        this.position = JSON.parse(payloadOf(frame, 'room.resync')).position as Position;
        this.resyncs += 1;
        continue;
      }
      if (!frame.startsWith('42["event"')) continue;
      const event = JSON.parse(payloadOf(frame, 'event')) as EventRecord;
      if (!this.position) throw new Error('an event came before the reply');
      if (event.epoch !== this.position.epoch) throw new Error(`epoch ${event.epoch} after ${this.position.epoch}`);
      if (event.seq !== this.position.seq + 1) throw new Error(`seq ${event.seq} after ${this.position.seq}`);
      this.position = { epoch: event.epoch, seq: event.seq };
      this.texts.push(event.mid);
    }
  }

  async join(feeds: Feeds): Promise<void> {
    const { viewer } = this;
    await feeds.join(key, viewer, this.position ?? 'start', ({ position, resync }) => {
      if (viewer !== this.viewer) return;
      if (resync) this.resyncs += 1;
      this.position = position;
      this.attached = true;
    });
  }
}

async function simulate(seed: number): Promise<void> {
  const { next, clock, log, node, publish } = world(seed);
  const readers: Reader[] = [];
  const gatewayOf = new Map<Reader, number>();
  const reseat = (reader: Reader | undefined, gateway: number) => {
    const slow = next() < 0.3;
    const viewer = new SimViewer(`v${next()}`, node(gateway).outlet, () =>
      slow ? clock.sleep(next() * 100).then(() => true) : Promise.resolve(true),
    );
    if (!reader) {
      const made = new Reader(viewer);
      readers.push(made);
      gatewayOf.set(made, gateway);
      return made;
    }
    reader.take();
    node(gatewayOf.get(reader) ?? 0).feeds.leaveAll(reader.viewer);
    reader.viewer.closed = 'gone';
    reader.viewer = viewer;
    reader.read = 0;
    reader.attached = false;
    gatewayOf.set(reader, gateway);
    return reader;
  };
  let published = 0;
  for (let step = 0; step < 60; step += 1) {
    const dice = next();
    const gateway = next() < 0.5 ? 0 : 1;
    if (dice < 0.6) void publish(gateway, `m${published++}`).catch(() => {});
    else if (dice < 0.75 || readers.length === 0)
      void reseat(undefined, gateway)
        .join(node(gateway).feeds)
        .catch(() => {});
    else if (dice < 0.9) {
      const reader = readers[Math.floor(next() * readers.length)];
      if (reader)
        void reseat(reader, gateway)
          .join(node(gateway).feeds)
          .catch(() => {});
    } else if (dice < 0.95) log.away = !log.away;
    await clock.run(next() * 60);
    for (const reader of readers) reader.take();
  }
  log.away = false;
  await clock.run(100);
  for (const reader of readers) {
    while (!reader.attached || reader.viewer.closed) {
      const gateway = gatewayOf.get(reader) ?? 0;
      void reseat(reader, gateway)
        .join(node(gateway).feeds)
        .catch(() => {});
      await clock.run(200);
    }
  }
  await clock.run(2000 + 500);
  const all = (log.rooms.get(key)?.events ?? []).map(({ mid }) => mid);
  for (const reader of readers) {
    reader.take();
    expect(reader.resyncs).toBe(0);
    expect(reader.texts).toEqual(all);
  }
}

describe('feeds', () => {
  test('[FEED1] [FEED2] [RES1] readers get every event once and in order over a bus that drops, repeats and reorders', async () => {
    const from = Number(process.env.SIM_SEED ?? 1);
    const seeds = Number(process.env.SIM_SEEDS ?? 1000);
    for (let seed = from; seed < from + seeds; seed += 1) {
      await simulate(seed).catch((cause) => {
        throw new Error(`seed ${seed}: ${(cause as Error).message}`, { cause });
      });
    }
  }, 120_000);

  test('[FEED2] a lost last announcement heals within 2 s', async () => {
    const { clock, node, publish } = world(7, { drop: 1, repeat: 0, maxDelayMs: 1 });
    const reader = new Reader(new SimViewer('v', node(1).outlet));
    void reader.join(node(1).feeds);
    await clock.run(200);
    void publish(0, 'last');
    await clock.run(2000);
    reader.take();
    expect(reader.texts).toEqual(['last']);
  });

  test('[RES1] ten thousand readers that come back at once cost three reads of the log', async () => {
    const own = { ...limits, ringBytes: 1024 * 1024 };
    const { clock, log, node, publish } = world(3, { drop: 0, repeat: 0, maxDelayMs: 1 }, 1, own);
    for (let i = 0; i < 300; i += 1) void publish(0, `m${i}`);
    await clock.run(100);
    log.reads = 0;
    const epoch = log.rooms.get(key)?.epoch ?? '';
    const readers = Array.from({ length: 10_000 }, (_, i) => {
      const reader = new Reader(new SimViewer(`v${i}`, node(0).outlet));
      reader.position = { epoch, seq: i % 300 };
      void reader.join(node(0).feeds);
      return reader;
    });
    await clock.run(200);
    for (const [i, reader] of readers.entries()) {
      reader.take();
      expect(reader.texts.length).toBe(300 - (i % 300));
    }
    expect(log.reads).toBeLessThanOrEqual(3);
  });

  test('[RES1] a replay of events so large that pages of the log end early has no hole', async () => {
    const { clock, log, node, publish } = world(13, undefined, 1, { ...limits, ringBytes: 500 });
    for (let i = 0; i < 40; i += 1) void publish(0, `m${i}`);
    await clock.run(100);
    log.pageMax = 7;
    const readers = [0, 3, 7, 20].map((seq, i) => {
      const reader = new Reader(new SimViewer(`v${i}`, node(0).outlet));
      reader.position = { epoch: log.rooms.get(key)?.epoch ?? '', seq };
      void reader.join(node(0).feeds);
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

  test('[RES1] a position that is gone is answered with a resync, never with a hole', async () => {
    const { clock, log, node, publish } = world(5);
    for (let i = 0; i < 20; i += 1) void publish(0, `m${i}`);
    await clock.run(100);
    const room = log.rooms.get(key);
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
    const { clock, log, node, publish } = world(6);
    const reader = new Reader(new SimViewer('v', node(1).outlet));
    void reader.join(node(1).feeds);
    void publish(0, 'before');
    await clock.run(300);
    await log.erase('t', 'r');
    await clock.run(1500);
    void publish(0, 'after');
    await clock.run(1500);
    reader.take();
    expect(reader.resyncs).toBe(1);
    expect(reader.texts).toEqual(['before', 'after']);
  });

  test('[ERR1] a reader that leaves while it joins is told so, and gets nothing', async () => {
    const { clock, node, publish } = world(11, undefined, 1);
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
    const { clock, log, node, publish } = world(12, undefined, 1);
    const { feeds, outlet } = node(0);
    const viewer = new SimViewer('v', outlet);
    void feeds.join(key, viewer, 'start', () => {});
    await clock.run(100);
    log.away = true;
    const ahead = { epoch: log.rooms.get(key)?.epoch ?? '', seq: 1000 };
    const refused = expect(feeds.join(key, viewer, ahead, () => {})).rejects.toMatchObject({ code: 'log_unavailable' });
    await clock.run(100);
    await refused;
    log.away = false;
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
    const { clock, node, publish } = world(8, undefined, 1, { ...limits, replayBufferBytes: 2000, ringBytes: 500 });
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

  test('what is no event and comes during a replay follows it, once', async () => {
    const { clock, node, publish } = world(9, undefined, 1, { ...limits, ringBytes: 500 });
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
