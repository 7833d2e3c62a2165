import { expect, test } from 'vitest';
import { systemClock } from '../../src/core/clock.js';
import { Feed } from '../../src/core/feed.js';
import { roomKey } from '../../src/core/keys.js';
import type { EventLog } from '../../src/core/log.js';
import { restSizes } from '../../src/core/run-rest.js';
import type { RunStore, StoredRun } from '../../src/core/run-store.js';
import { RunViews } from '../../src/core/run-views.js';
import { chunkFrame } from '../../src/core/run-wire.js';
import { type EventRecord, eventFrame, payloadOf } from '../../src/protocol/frames.js';
import { toJsonText } from '../../src/protocol/primitives.js';
import { eventually } from '../support/eventually.js';
import { recordLog, recordMetrics } from '../support/telemetry.js';

/* What other gateways announce faster, or in another order, than it can be used. */

const key = roomKey('t', 'r');

test('[LIM1] events that wait for an earlier one are kept up to a limit, and the rest is read from the log', async () => {
  const events: EventRecord[] = Array.from({ length: 100 }, (_, i) => ({
    room: 'r',
    epoch: 'e',
    seq: i + 1,
    mid: `m${i}`,
    type: 'a',
    data: toJsonText('x'.repeat(1000)),
    by: toJsonText({ kind: 'user', id: 'u' }),
    at: 1,
  }));
  const read: EventLog['read'] = async (_, _room, { after = 0 }) => ({
    epoch: 'e',
    head: 100,
    floor: 0,
    events: events.slice(after),
  });
  const metrics = recordMetrics();
  const delivered: number[] = [];
  const feed = new Feed(
    key,
    { epoch: 'e', head: 0, floor: 0 },
    {
      log: { read } as EventLog,
      outlet: { publish: (_, frame) => delivered.push(JSON.parse(payloadOf(frame, 'event')).seq) },
      clock: systemClock,
      metrics,
      logger: recordLog(),
      limits: { ringBytes: 16 * 1024, gapRepairMs: 50, replayBufferBytes: 1024 },
    },
  );
  // The first is lost.
  for (const event of events.slice(1)) feed.receive('e', event.seq, eventFrame(event));
  expect(delivered).toEqual([]);
  expect(metrics.total('limit_reached', { limit: 'feed_waiting' })).toBeGreaterThan(80);
  await eventually('the log is read', () => delivered.length === 100);
  expect(delivered).toEqual(events.map(({ seq }) => seq));
  expect(feed.ringBytes).toBeLessThanOrEqual(16 * 1024);
  feed.close();
});

test('[LIM1] output announced while a room opens is kept up to a limit, and the rest is read from the store', async () => {
  const PARTS = 1100;
  const parts = Array.from({ length: PARTS }, (_, n) => ({ type: 'text-delta' as const, id: 't', delta: `${n} ` }));
  const stored: StoredRun = {
    id: 'run',
    tenant: 't',
    room: 'r',
    model: 'm',
    state: 'streaming',
    attempt: 1,
    fence: 1,
    committed: PARTS,
    initiator: { kind: 'user', id: 'u' },
    createdAt: 1,
  };
  let open = (_: StoredRun[]) => {};
  const opening = new Promise<StoredRun[]>((resolve) => {
    open = resolve;
  });
  const segments: RunStore['segments'] = async (tenant, run, attempt, n) =>
    n >= PARTS ? [] : [{ tenant, run, attempt, fence: 1, n: 0, count: PARTS, parts: toJsonText(parts) }];
  const store = { live: () => opening, get: async () => stored, segments } as unknown as RunStore;
  const metrics = recordMetrics();
  const got: string[] = [];
  const rooms = {
    pushRun(_: unknown, frame: Parameters<typeof payloadOf>[0]) {
      if (!frame.startsWith('42["run.chunk"')) return;
      for (const part of JSON.parse(payloadOf(frame, 'run.chunk')).parts) got.push(part.delta);
    },
    committed: () => undefined,
  };
  const views = new RunViews({ store, log: recordLog(), rooms, metrics, clock: systemClock, rest: restSizes });
  const ready = views.openRoom(key);
  parts.forEach((part, n) => {
    const frame = chunkFrame('r', 'run', 1, n, [JSON.stringify(part)]);
    views.receive(key, { kind: 'chunk', key: `run:1:${n}:1`, frame });
  });
  expect(metrics.total('limit_reached', { limit: 'run_view_backlog' })).toBe(PARTS - 1000);
  open([]);
  await ready;
  await eventually('all of it is here', () => got.length === PARTS);
  expect(got).toEqual(parts.map(({ delta }) => delta));
  views.close();
});
