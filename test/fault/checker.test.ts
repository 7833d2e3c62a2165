import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Part } from '../../src/protocol/parts.js';
import { random } from '../support/random.js';
import { type CheckOptions, checkHistory, type Rule } from './checker/check.js';
import { goodHistory, SMALL, type Source, sources } from './checker/good-history.js';
import { rules } from './checker/verdict.js';
import { Digest, type Entry, HistoryWriter } from './history.js';
import { OutputDigest } from './output-digest.js';

let scratch: string;
let files = 0;
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), 'tutti-checker-'));
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

function check(history: Entry[], options?: CheckOptions) {
  const file = join(scratch, `${files++}.jsonl`);
  writeFileSync(file, history.map((entry) => `${JSON.stringify(entry)}\n`).join(''));
  return checkHistory([file], options);
}

/** Seconds to µs. */
const s = (seconds: number) => Math.round(seconds * 1e6);
const digestOf = (text: string) => new Digest().add(text).toString();

const send = (t: number, mid: string, conn = 'ann/1', tenant = 'a'): Entry => [
  'send',
  s(t),
  'ann',
  tenant,
  'r',
  mid,
  conn,
];
const ack = (t: number, mid: string, seq: number, duplicate = false): Entry => [
  'ack',
  s(t),
  'ann',
  mid,
  'e',
  seq,
  duplicate,
];
const nack = (t: number, mid: string, code = 'rate_limited'): Entry => ['nack', s(t), 'ann', mid, code];
const joined = (t: number, reader = 'bob', seq = 0): Entry => ['join', s(t), reader, 'a', 'r', 'g1', 'start', 'e', seq];
const resumed = (t: number, seq: number, reader = 'bob', asked = seq): Entry => [
  'join',
  s(t),
  reader,
  'a',
  'r',
  'g1',
  `e:${asked}`,
  'e',
  seq,
];
const opened = (t: number, reader = 'bob'): Entry => ['open', s(t), reader, 'a', 'r'];
const ran = (state: string, attempt: number, digest: string, mid: string | null = null): Entry => [
  'ran',
  'run',
  'a',
  'r',
  mid,
  state,
  attempt,
  digest,
];
const got = (t: number, seq: number, mids: string[], reader = 'bob'): Entry => ['recv', s(t), reader, 'e', seq, mids];
const stored = (mids: string[], head = mids.length): Entry => ['stored', 'a', 'r', 'e', 0, head, 1, mids];
const left = (t: number, reader = 'bob'): Entry => ['gone', s(t), reader, 'left'];

/** x, y and z are sent, acknowledged, read by bob and stored. */
const log: Entry[] = [
  joined(0.5),
  send(1, 'x'),
  ack(1.1, 'x', 1),
  send(2, 'y'),
  ack(2.1, 'y', 2),
  send(3, 'z'),
  ack(3.1, 'z', 3),
  got(3.2, 1, ['x', 'y', 'z']),
  stored(['x', 'y', 'z']),
];

const part = (n: number) => digestOf('one two three '.slice(0, n * 4));
/** A run of three parts that carl follows to its end. */
const run: Entry[] = [
  ['ask', s(1), 'run', 'a', 'r'],
  ['claim', s(1), 'w1', 'run', 1, 1],
  ['work', s(1), 'w1', 'run', 1, 0, [part(1), part(2), part(3)]],
  ['chunk', s(1.1), 'carl', 'run', 1, 1, part(1)],
  ['chunk', s(1.2), 'carl', 'run', 1, 3, part(3)],
  ['end', s(1.3), 'carl', 'run', 'completed', part(3)],
  ran('completed', 1, part(3)),
];

/** `history` with the first entry that `wanted` matches replaced. */
function change(history: Entry[], wanted: Record<number, unknown>, ...by: Entry[]): Entry[] {
  const at = history.findIndex((entry) => Object.entries(wanted).every(([i, value]) => entry[Number(i)] === value));
  if (at < 0) throw new Error(`no ${wanted} in the history`);
  return history.toSpliced(at, 1, ...by);
}
const without = (history: Entry[], kind: Entry[0]) => history.filter((entry) => entry[0] !== kind);

/** For each rule histories that break it and no other. */
const broken: Record<Rule, Record<string, Entry[]>> = {
  lost: {
    'the last one': [send(1, 'x'), ack(1.1, 'x', 1), send(2, 'y'), ack(2.1, 'y', 2), stored(['x'])],
    'its place was given away': [send(1, 'x'), ack(1.1, 'x', 1), send(2, 'y'), ack(2.1, 'y', 1), stored(['y'])],
    'its log is gone': [send(1, 'x'), ack(1.1, 'x', 1), ['stored', 'a', 'r', 'e2', 0, 0, 1, []]],
  },
  vanished: {
    'delivered, never acknowledged, not stored': [joined(0), send(1, 'x'), got(1.1, 1, ['x']), stored([])],
  },
  hole: {
    'a head past the last event': [send(1, 'x'), ack(1.1, 'x', 1), stored(['x'], 2)],
    'an event past the head': [send(1, 'x'), ack(1.1, 'x', 1), send(2, 'y'), stored(['x', 'y'], 1)],
  },
  place: {
    'delivered in another order than stored': change(log, { 0: 'recv' }, got(3.2, 1, ['x', 'z', 'y'])),
    'acknowledged elsewhere': [
      send(1, 'x'),
      ack(1.3, 'x', 2),
      send(1, 'y', 'other'),
      ack(1.3, 'y', 2),
      stored(['x', 'y']),
    ],
    'two at one place where no table tells': [
      send(1, 'x'),
      ack(1.3, 'x', 1),
      joined(0.1),
      send(1, 'y'),
      got(2, 1, ['y']),
    ],
  },
  twice: {
    'stored twice': [send(1, 'x'), ack(1.1, 'x', 1), send(1.2, 'x'), ack(1.3, 'x', 1, true), stored(['x', 'x'])],
  },
  answer: {
    'two answers': change(log, { 0: 'ack', 3: 'z' }, ack(3.1, 'z', 3), send(3.2, 'z'), ack(3.3, 'z', 4)),
    'for what nobody sent': [...log, ack(4, 'q', 4)],
  },
  'real-time': {
    'acknowledged before the other was sent': [
      send(1, 'x'),
      ack(1.1, 'x', 2),
      send(2, 'y', 'ann/2'),
      ack(2.1, 'y', 1),
      stored(['y', 'x']),
    ],
  },
  'publisher-order': {
    'pipelined on one connection': [send(1, 'x'), send(1.1, 'y'), ack(2, 'x', 2), ack(2, 'y', 1), stored(['y', 'x'])],
    'whichever file is read first': [stored(['y', 'x']), send(1, 'x'), send(1.1, 'y'), ack(2, 'x', 2), ack(2, 'y', 1)],
  },
  ghost: {
    'nobody sent it': [send(1, 'x'), ack(1.1, 'x', 1), stored(['x', 'q'])],
    'it was refused': [send(1, 'x'), nack(1.1, 'x'), send(1.2, 'x'), nack(1.3, 'x'), stored(['x'])],
    'delivered where no table tells': [joined(0), got(1, 1, ['q'])],
  },
  gap: {
    'passed over': change(log, { 0: 'recv' }, got(3.2, 1, ['x']), got(3.3, 3, ['z'])),
    'another epoch without a resync': [joined(0), ['recv', s(1), 'bob', 'e2', 1, ['run:1:created']]],
  },
  repeat: {
    'given again': change(log, { 0: 'recv' }, got(3.2, 1, ['x', 'y']), got(3.3, 2, ['y', 'z'])),
    'given again after a resume': change(
      log,
      { 0: 'recv' },
      got(3.2, 1, ['x', 'y', 'z']),
      resumed(3.3, 3),
      got(3.4, 3, ['z']),
    ),
  },
  reorder: {
    'later one first': change(log, { 0: 'recv' }, got(3.2, 1, ['x']), got(3.3, 3, ['z']), got(3.4, 2, ['y'])),
  },
  behind: {
    'the last one never came': change(log, { 0: 'recv' }, got(3.2, 1, ['x', 'y'])),
  },
  resync: {
    'without need': [...log, ['resync', s(4), 'bob', 'epoch_changed', 'e', 3]],
  },
  resume: {
    'put further on': change(log, { 0: 'recv' }, got(3.2, 1, ['x']), resumed(3.3, 2), got(3.4, 3, ['z'])),
    'put elsewhere at its first join': [
      ...without(without(log, 'join'), 'recv'),
      resumed(3.2, 1, 'bob', 0),
      got(3.3, 2, ['y', 'z']),
    ],
    'asked for another place than where it stands': change(
      log,
      { 0: 'recv' },
      got(3.2, 1, ['x']),
      resumed(3.3, 1, 'bob', 0),
      got(3.4, 2, ['y', 'z']),
    ),
    'the start is not the start': change(log, { 0: 'join' }, joined(0.5, 'bob', 1)).map((entry) =>
      entry[0] === 'recv' ? got(3.2, 2, ['y', 'z']) : entry,
    ),
  },
  isolation: {
    'bytes on the wire': [...log, ['leak', s(4), 'bob', 'a', 'b', 'event']],
    'an event of another tenant': [...log, send(4, 'q', 'ann/9', 'b'), got(4.1, 4, ['q'])],
    'stored in the room of another': [send(1, 'x', 'ann/1', 'b'), stored(['x'])],
    'a run of another tenant': [
      ...run,
      ['join', s(1), 'dan', 'b', 'r', 'g1', 'start', 'e', 0],
      ['end', s(2), 'dan', 'run', 'completed', part(3)],
    ],
  },
  prefix: {
    'other bytes': change(run, { 0: 'chunk', 5: 3 }, ['chunk', s(1.2), 'carl', 'run', 1, 3, part(2)]),
    'more than a killed worker wrote down': [
      ...change(without(without(run, 'ran'), 'end'), { 0: 'work' }),
      ['fault', s(2), 1, 'worker-kill', 'w1'],
      ['end', s(3), 'carl', 'run', 'failed', digestOf('')],
      ran('failed', 1, digestOf('')),
    ],
    'more than the worker made': change(run, { 0: 'chunk', 5: 3 }, ['chunk', s(1.2), 'carl', 'run', 1, 4, part(3)]),
    'of another attempt': change(
      run,
      { 0: 'chunk', 5: 3 },
      ['reset', s(1.2), 'carl', 'run', 2],
      ['chunk', s(1.2), 'carl', 'run', 2, 1, part(1)],
    ),
  },
  'run-order': {
    backwards: change(
      run,
      { 0: 'chunk', 5: 3 },
      ['chunk', s(1.15), 'carl', 'run', 1, 3, part(3)],
      ['chunk', s(1.2), 'carl', 'run', 1, 2, part(2)],
    ),
  },
  'run-end': {
    'other bytes than the table': change(run, { 0: 'end' }, ['end', s(1.3), 'carl', 'run', 'completed', part(2)]),
    'another state than the table': change(run, { 0: 'end' }, ['end', s(1.3), 'carl', 'run', 'failed', part(3)]),
    'never told': without(run, 'end'),
    'two readers, two ends, no table': [...without(run, 'ran'), ['end', s(1.3), 'dan', 'run', 'failed', part(3)]],
    'two ends for one reader': change(
      without(run, 'ran'),
      { 0: 'end' },
      ['end', s(1.3), 'carl', 'run', 'failed', part(3)],
      ['end', s(1.4), 'carl', 'run', 'completed', part(3)],
    ),
  },
  'run-final': {
    truncated: [
      ...without(without(run, 'ran'), 'end'),
      ['end', s(2), 'carl', 'run', 'completed', part(2)],
      ran('completed', 1, part(2)),
    ],
    'a failed one that is no prefix': [
      ...without(without(run, 'ran'), 'end'),
      ['end', s(2), 'carl', 'run', 'failed', 'q'],
      ran('failed', 1, 'q'),
    ],
  },
  'run-lost': {
    'not in the table': [...without(run, 'ran'), stored([])],
  },
  'run-ghost': {
    'told of in a log': [stored(['run:other:created', 'run:other:end'])],
    'in the table': [...log, ran('completed', 1, digestOf(''))],
    'made twice for one wish': [
      ['wish', s(1), 'a', 'r', 'm'],
      ['ask', s(1.1), 'first', 'a', 'r'],
      ['ran', 'first', 'a', 'r', 'm', 'completed', 1, digestOf('')],
      ['ran', 'again', 'a', 'r', null, 'completed', 1, digestOf('')],
      stored(['run:first:created', 'run:first:end']),
    ],
  },
  'run-events': {
    'not told that it was made': [...run, stored(['run:run:end'])],
    'not told that it ended': [...run, stored(['run:run:created'])],
    'its end comes first': [...run, stored(['run:run:end', 'run:run:created'])],
    'in another room': [
      ...run,
      stored(['run:run:created', 'run:run:end']),
      ['stored', 'a', 'r2', 'e', 0, 1, 1, ['run:run:end']],
    ],
    'neither of them': [...run, stored(['run:run:created', 'run:run:paused', 'run:run:end'])],
  },
  'run-stuck': {
    'streaming for ever': [...without(without(without(run, 'ran'), 'end'), 'chunk'), ran('streaming', 1, part(1))],
    'too long after its worker was killed': [
      ...without(without(run, 'ran'), 'end'),
      ['fault', s(2), 1, 'worker-kill', 'w1'],
      ['heal', s(2.5), 1],
      ['end', s(30), 'carl', 'run', 'failed', part(3)],
      ran('failed', 1, part(3)),
    ],
    'too long after several were killed, whatever file comes last': [
      ['claim', s(1.9), 'w3', 'run', 2, 2],
      ...without(without(run, 'ran'), 'end'),
      ['fault', s(2), 1, 'worker-kill', 'w4 w3'],
      ['heal', s(2), 1],
      ['end', s(30), 'carl', 'run', 'failed', digestOf('')],
      ran('failed', 2, digestOf('')),
    ],
  },
  fence: {
    'an old fence was accepted': [
      ...run,
      ['wrote', s(1.2), 'w1', 'run', 1],
      ['claim', s(1.25), 'w2', 'run', 1, 2],
      ['wrote', s(1.26), 'w1', 'run', 1],
    ],
    'a fence that nobody was given was accepted': [...run, ['wrote', s(1.2), 'w1', 'run', 2]],
    'two workers, one fence': [...run, ['claim', s(1.01), 'w2', 'run', 1, 1]],
    'a view back in an older attempt': change(
      run,
      { 0: 'chunk', 5: 1 },
      ['reset', s(1.05), 'carl', 'run', 2],
      ['chunk', s(1.1), 'carl', 'run', 1, 1, part(1)],
    ),
  },
  'caught-up': {
    'eleven seconds after the heal': [
      ...without(log, 'recv'),
      ['fault', s(2.5), 1, 'redis-kill', 'redis'],
      ['heal', s(4), 1],
      got(15, 1, ['x', 'y', 'z']),
    ],
    'eleven seconds, and only a worker was killed meanwhile': [
      ...without(log, 'recv'),
      ['fault', s(2.5), 1, 'redis-kill', 'redis'],
      ['heal', s(4), 1],
      ['fault', s(5), 2, 'worker-kill', 'w1'],
      ['heal', s(12), 2],
      got(15, 1, ['x', 'y', 'z']),
    ],
    'never let in': [
      ...log,
      opened(1, 'eve'),
      send(12, 'w'),
      ack(12.1, 'w', 4),
      got(12.2, 4, ['w']),
      stored(['x', 'y', 'z', 'w']),
    ].filter((entry) => entry[0] !== 'stored' || entry[5] === 4),
    'let in after eleven seconds': [opened(0), ['join', s(11.5), 'bob', 'a', 'r', 'g1', 'latest', 'e', 0]],
    'left, as it was not let in': [...log, opened(1, 'eve'), left(12, 'eve')],
    'never back from a killed gateway, though nothing was missed': [
      ...log,
      ['fault', s(4), 1, 'gateway-kill', 'g1'],
      ['heal', s(5), 1],
      ['fault', s(16), 2, 'poison', 'p'],
    ],
    'eleven seconds without a fault, in two pieces': [
      ...without(log, 'recv'),
      ['fault', s(2.5), 1, 'redis-kill', 'redis'],
      ['heal', s(4), 1],
      ['fault', s(9), 2, 'redis-kill', 'redis'],
      ['heal', s(29), 2],
      got(35.5, 1, ['x', 'y', 'z']),
    ],
  },
  availability: {
    'one in ten is refused': Array.from({ length: 30 }, (_, i) => i).flatMap((i) => [
      send(i, `m${i}`),
      i % 10 === 9 ? nack(i + 0.1, `m${i}`, 'overloaded') : ack(i + 0.1, `m${i}`, i + 1 - Math.floor((i + 1) / 10)),
    ]),
    'one in twenty is refused, and many are acknowledged right before the end': Array.from(
      { length: 440 },
      (_, i) => i,
    ).flatMap((i) => {
      const t = i < 40 ? i / 10 : 8 + i / 1000;
      const refused = i < 40 && i % 20 === 19;
      const seq = i + 1 - Math.min(2, Math.floor(i / 20));
      return [send(t, `m${i}`), refused ? nack(t + 0.01, `m${i}`, 'overloaded') : ack(t + 0.01, `m${i}`, seq)];
    }),
    'all are slow': Array.from({ length: 30 }, (_, i) => i).flatMap((i) => [
      send(i * 10, `m${i}`),
      ack(i * 10 + 6, `m${i}`, i + 1),
    ]),
  },
};

describe('each rule is broken by its own history', () => {
  for (const rule of Object.keys(rules) as Rule[]) {
    for (const [name, history] of Object.entries(broken[rule])) {
      test(`${rule}: ${name}`, async () => {
        const verdict = await check(history);
        expect(Object.keys(verdict.broken)).toEqual([rule]);
        expect(verdict.ok).toBe(false);
        expect(verdict.violations[0]).toMatchObject({ rule, promise: rules[rule] });
      });
    }
  }
});

test('who was on a killed gateway has caught up when it joined again and has what was acknowledged by then', async () => {
  const verdict = await check([
    send(1, 'x'),
    ack(1.1, 'x', 1),
    joined(1),
    got(1.2, 1, ['x']),
    ['fault', s(2), 1, 'gateway-kill', 'g1'],
    send(2.1, 'y'),
    ack(2.2, 'y', 2),
    ['heal', s(2.5), 1],
    resumed(3, 1),
    send(3.1, 'z'),
    ack(3.2, 'z', 3),
    got(3.5, 2, ['y']),
    got(4, 3, ['z']),
    stored(['x', 'y', 'z']),
  ]);
  expect(verdict.recoveries.kinds[0]?.caughtUp).toEqual({ n: 1, p50: 1500, p99: 1500, max: 1500 });
  expect(verdict.recoveries.faults[0]).toMatchObject({ caughtUpMs: 1500, firstAckMs: 200 });
});

test('a gateway cut off from Postgres is well when it acknowledges something itself', async () => {
  const verdict = await check([
    ['conn', s(0.5), 'ann/1', 'g1'],
    ['conn', s(0.5), 'ann/2', 'g2'],
    ['fault', s(1), 1, 'postgres-blackhole', 'g1'],
    ['heal', s(2), 1],
    send(2.1, 'x', 'ann/2'),
    ack(2.2, 'x', 1),
    send(1.5, 'y', 'ann/1'),
    ['unknown', s(1.6), 'ann', 'y', 'cut'],
    send(1.7, 'y', 'ann/2'),
    ack(2.3, 'y', 2),
    send(1.8, 'z', 'ann/1'),
    ack(3.5, 'z', 3),
    stored(['x', 'y', 'z']),
  ]);
  expect(verdict.violations).toEqual([]);
  expect(verdict.recoveries.faults[0]?.firstAckMs).toBe(1500);
});

test('of a gateway that nobody asked while it was cut off there is nothing to say', async () => {
  const verdict = await check([
    ['conn', s(0.5), 'ann/1', 'g1'],
    ['fault', s(1), 1, 'postgres-blackhole', 'g1'],
    ['heal', s(2), 1],
    send(17, 'x', 'ann/1'),
    ack(17.1, 'x', 1),
    stored(['x']),
  ]);
  expect(verdict.violations).toEqual([]);
  expect(verdict.recoveries.faults[0]?.firstAckMs).toBeUndefined();
});

test('what was done to clients is measured by those it was done to, once they are back', async () => {
  const verdict = await check([
    send(1, 'x'),
    ack(1.1, 'x', 1),
    ...['bob', 'eve', 'bobby'].flatMap((reader) => [joined(1, reader), got(1.2, 1, ['x'], reader)]),
    ['fault', s(2), 1, 'client-cut', 'ann eve'],
    ['gone', s(2), 'eve', 'cut'],
    send(2.1, 'y'),
    ack(2.2, 'y', 2),
    resumed(3, 1, 'eve'),
    ...['bob', 'bobby'].map((reader) => got(2.3, 2, ['y'], reader)),
    got(3.5, 2, ['y'], 'eve'),
    stored(['x', 'y']),
  ]);
  expect(verdict.violations).toEqual([]);
  expect(verdict.recoveries.kinds[0]?.caughtUp).toEqual({ n: 1, p50: 1500, p99: 1500, max: 1500 });
});

test('output has one digest however it is cut into deltas, and another for any other part', () => {
  const of = (...parts: Part[]) => new OutputDigest().add(...parts).toString();
  const delta = (text: string, id = 't'): Part => ({ type: 'text-delta', id, delta: text });
  const end: Part = { type: 'text-end', id: 't' };
  const tool: Part = { type: 'tool-output-available', toolCallId: 'c', output: { a: 1, b: [2, null] } };
  const whole = of(delta('one two'), end, tool);
  expect(of(delta('one '), delta('two'), end, tool)).toBe(whole);
  expect(of(delta('one two'), end, { output: { b: [2, null], a: 1 }, toolCallId: 'c', type: tool.type } as Part)).toBe(
    whole,
  );
  const others = [
    of(delta('one two'), end),
    of(delta('one two'), tool, end),
    of(delta('one '), delta('two', 'u'), end, tool),
    of(delta('one '), end, delta('two'), tool),
    of(delta('one two'), end, { ...tool, output: { a: 1, b: [2] } } as Part),
    of({ type: 'reasoning-delta', id: 't', delta: 'one two' }, end, tool),
    of({ ...delta('one two'), providerMetadata: {} } as Part, end, tool),
  ];
  expect(new Set([whole, ...others]).size).toBe(1 + others.length);
});

test('a storm is measured by its own readers, from the cut until they are back and have everything, and they count for no other fault', async () => {
  const one = 'crowd-w0n0';
  const verdict = await check([
    send(1, 'x'),
    ack(1.1, 'x', 1),
    joined(1),
    joined(1, one),
    got(1.2, 1, ['x']),
    got(1.2, 1, ['x'], one),
    ['fault', s(2), 1, 'client-storm', '1 socket'],
    ['gone', s(2), one, 'cut'],
    send(2.1, 'y'),
    ack(2.2, 'y', 2),
    got(2.3, 2, ['y']),
    resumed(3, 1, one),
    got(3.5, 2, ['y'], one),
    ['heal', s(4), 1],
    ['fault', s(20), 2, 'redis-flushall', 'redis'],
    ['heal', s(20), 2],
    send(21, 'z'),
    ack(21, 'z', 3),
    got(21, 3, ['z']),
    got(21, 3, ['z'], one),
    stored(['x', 'y', 'z']),
  ]);
  expect(verdict.violations).toEqual([]);
  expect(verdict.recoveries.kinds.map(({ kind, caughtUp: { n, max } }) => [kind, n, max])).toEqual([
    ['client-storm', 1, 1500],
    ['redis-flushall', 1, 0],
  ]);
});

test('a run that ended before its worker was killed has nothing to recover from, also where only the log told its end', async () => {
  const verdict = await check([
    ['ask', s(1), 'run', 'a', 'r'],
    joined(1),
    ['claim', s(1.1), 'w1', 'run', 1, 1],
    got(1.5, 1, ['run:run:created', 'run:run:end']),
    ['fault', s(2), 1, 'worker-kill', 'w1'],
    ['heal', s(2), 1],
    resumed(90, 2),
    stored(['run:run:created', 'run:run:end']),
    ran('completed', 1, digestOf('')),
  ]);
  expect(verdict.violations).toEqual([]);
});

describe('what was promised nobody is no violation', () => {
  const good: Record<string, [Entry[], CheckOptions?]> = {
    nothing: [[]],
    'a log': [log],
    'a run': [run],
    'an unknown attempt that was stored, and one that was not': [
      [
        send(1, 'x'),
        ['unknown', s(2), 'ann', 'x', 'timeout'],
        send(3, 'y'),
        ['unknown', s(4), 'ann', 'y', 'timeout'],
        stored(['y']),
      ],
    ],
    'a refused attempt after one that was stored': [
      [send(1, 'x'), ['unknown', s(2), 'ann', 'x', 'cut'], send(3, 'x'), nack(4, 'x'), stored(['x'])],
    ],
    'events at one time in any order': [
      [send(1, 'x', '1'), send(1, 'y', '2'), ack(2, 'x', 2), ack(2, 'y', 1), stored(['y', 'x'])],
    ],
    'a retry on another connection': [
      [send(1, 'x', '1'), send(1.1, 'y', '1'), send(2, 'x', '2'), ack(2, 'y', 1), ack(3, 'x', 2), stored(['y', 'x'])],
    ],
    'a run whose asker was never answered': [
      [
        ['wish', s(1), 'a', 'r', 'm'],
        ran('completed', 1, digestOf(''), 'm'),
        stored(['run:run:created', 'run:run:end']),
      ],
    ],
    'a start before the floor rose': [
      [joined(0.5), send(1, 'x'), ack(2, 'x', 1), left(2.5), ['stored', 'a', 'r', 'e', 1, 1, 2, []]],
    ],
    'a retry under a fence that is still the newest, and a write that was sent before the next one was given': [
      [
        ...run,
        ['wrote', s(1.2), 'w1', 'run', 1],
        ['wrote', s(1.25), 'w1', 'run', 1],
        ['claim', s(1.25), 'w2', 'run', 1, 2],
      ],
    ],
    'not let in while faults are on': [
      [...log, ['fault', s(4), 1, 'gateway-kill', 'g2'], opened(4, 'eve'), ['heal', s(30), 1], left(35, 'eve')],
    ],
    'what is below the floor': [
      [send(1, 'x'), ack(2, 'x', 1), send(3, 'y'), ack(4, 'y', 2), ['stored', 'a', 'r', 'e', 1, 2, 2, ['y']]],
    ],
    'a reader that left early': [change(log, { 0: 'recv' }, got(3.2, 1, ['x']), left(3.3))],
    'a view of a run that is a little less after a new join': [
      [
        joined(0.5, 'carl'),
        ...change(
          run,
          { 0: 'chunk', 5: 3 },
          ['chunk', s(1.15), 'carl', 'run', 1, 3, part(3)],
          resumed(1.16, 0, 'carl'),
          ['chunk', s(1.2), 'carl', 'run', 1, 2, part(2)],
        ),
      ],
    ],
    'a room that was erased': [
      [
        ...without(log, 'stored'),
        ['stored', 'a', 'r', 'e2', 0, 0, 1, []],
        ['resync', s(4), 'bob', 'epoch_changed', 'e2', 0],
      ],
      { mayMove: () => true },
    ],
    'a run that was made anew': [
      [
        ...change(without(without(run, 'ran'), 'end'), { 0: 'chunk', 5: 3 }),
        ['fault', s(2), 1, 'worker-kill', 'w1'],
        ['claim', s(17), 'w2', 'run', 2, 2],
        ['work', s(17), 'w2', 'run', 2, 0, [digestOf('else')]],
        ['reset', s(17), 'carl', 'run', 2],
        ['chunk', s(17), 'carl', 'run', 2, 1, digestOf('else')],
        ['end', s(18), 'carl', 'run', 'completed', digestOf('else')],
        ran('completed', 2, digestOf('else')),
      ],
    ],
    'slow while the next fault is active': [
      [
        ...without(log, 'recv'),
        ['fault', s(2.5), 1, 'redis-kill', 'redis'],
        ['heal', s(4), 1],
        ['fault', s(5), 2, 'postgres-kill', 'postgres'],
        ['heal', s(20), 2],
        got(28, 1, ['x', 'y', 'z']),
      ],
    ],
    'refused while a fault is active': [
      [
        ['fault', s(0), 1, 'postgres-kill', 'postgres'],
        ...Array.from({ length: 30 }, (_, i) => i).flatMap((i) => [
          send(i, `m${i}`),
          nack(i + 0.1, `m${i}`, 'log_unavailable'),
        ]),
        ['heal', s(30), 1],
      ],
    ],
  };
  for (const [name, [history, options]] of Object.entries(good)) {
    test(name, async () => {
      const verdict = await check(history, options);
      expect(verdict.violations).toEqual([]);
      expect(verdict.ok).toBe(true);
    });
  }
});

describe('a long history', () => {
  const collect = (seed: number) => {
    const by = new Map<Source, Entry[]>(sources.map((source) => [source, []]));
    for (const [source, entry] of goodHistory({ ...SMALL, seed })) by.get(source)?.push(entry);
    return by;
  };

  test('in files of several processes, with a last line cut short, is read whole', async () => {
    const paths = await Promise.all(
      [...collect(7)].map(async ([source, entries]) => {
        const path = join(scratch, `${source}.jsonl`);
        const writer = new HistoryWriter(path);
        for (const entry of entries) writer.write(entry);
        await writer.close();
        return path;
      }),
    );
    const cut = join(scratch, 'cut.jsonl');
    writeFileSync(cut, `${JSON.stringify(['fault', s(5), 99, 'clock', 'all'])}\n["heal",60`);
    const verdict = await checkHistory([...paths, cut]);
    expect(verdict.violations).toEqual([]);
    const { counts } = verdict;
    expect(counts.faults).toBe(4);
    expect(counts.acked).toBeGreaterThan(1000);
    expect(counts.delivered).toBeGreaterThan(3 * counts.acked);
    expect(verdict.timeline.delivered.reduce((sum, n) => sum + n, 0)).toBe(counts.delivered);
    expect(verdict.runStates).toEqual({ completed: counts.runs });
    expect(verdict.recoveries.kinds.map(({ kind }) => kind)).toEqual(['clock', 'gateway-kill', 'redis-kill']);
  });

  /** Ways to spoil a good history, and the rule that has to notice. */
  const spoils: Record<string, { rule: Rule; spoil: (by: Map<Source, Entry[]>, pick: (n: number) => number) => void }> =
    {
      'an acknowledged event is dropped from the table, and all after it move up': {
        rule: 'lost',
        spoil: (by, pick) => {
          const table = pickOf(by, 'tables', 'stored', pick);
          const acked = new Set(by.get('publishers')?.flatMap((entry) => (entry[0] === 'ack' ? [entry[3]] : [])));
          const victims = table[7].flatMap((mid, i) => (acked.has(mid) ? [i] : []));
          table[7].splice(victims[pick(victims.length)] ?? 0, 1);
          table[5] -= 1;
        },
      },
      'two neighbours change places in the table': {
        rule: 'place',
        spoil: (by, pick) => {
          const mids = pickOf(by, 'tables', 'stored', pick)[7];
          swap(mids, pick(mids.length - 1));
        },
      },
      'an event is stored twice': {
        rule: 'twice',
        spoil: (by, pick) => {
          const table = pickOf(by, 'tables', 'stored', pick);
          table[7].push(table[7][pick(table[7].length)] ?? '');
          table[5] += 1;
        },
      },
      'an event nobody sent is stored': {
        rule: 'ghost',
        spoil: (by, pick) => {
          const table = pickOf(by, 'tables', 'stored', pick);
          table[7].push('nobody');
          table[5] += 1;
        },
      },
      'a delivery comes twice': {
        rule: 'repeat',
        spoil: (by, pick) => {
          const readers = by.get('readers') ?? [];
          const recv = pickOf(by, 'readers', 'recv', pick);
          readers.splice(readers.indexOf(recv), 0, recv);
        },
      },
      'a delivery is lost': {
        rule: 'gap',
        spoil: (by, pick) => {
          const readers = by.get('readers') ?? [];
          const recv = pickOf(by, 'readers', 'recv', pick, (entry) => entry[1] < s(10));
          readers.splice(readers.indexOf(recv), 1);
        },
      },
      'two events of a delivery change places': {
        rule: 'place',
        spoil: (by, pick) => {
          const mids = pickOf(by, 'readers', 'recv', pick, (entry) => entry[5].length > 1)[5];
          swap(mids, pick(mids.length - 1));
        },
      },
      'a resumed reader is put one further on': {
        rule: 'resume',
        spoil: (by, pick) => {
          pickOf(by, 'readers', 'join', pick, (entry) => entry[6] !== 'start')[8] += 1;
        },
      },
      'an ack tells another place': {
        rule: 'place',
        spoil: (by, pick) => {
          const mids = new Set<string>();
          const twice = new Set<string>();
          for (const entry of by.get('publishers') ?? []) {
            if (entry[0] !== 'ack') continue;
            if (mids.has(entry[3])) twice.add(entry[3]);
            mids.add(entry[3]);
          }
          pickOf(by, 'publishers', 'ack', pick, (entry) => entry[5] > 1 && !twice.has(entry[3]))[5] -= 1;
        },
      },
      'a view of a run has other bytes': {
        rule: 'prefix',
        spoil: (by, pick) => {
          pickOf(by, 'readers', 'chunk', pick)[6] = digestOf('else');
        },
      },
      'a run ends otherwise for one reader': {
        rule: 'run-end',
        spoil: (by, pick) => {
          pickOf(by, 'readers', 'end', pick)[4] = 'failed';
        },
      },
    };
  for (const [name, { rule, spoil }] of Object.entries(spoils)) {
    test(`${rule}: ${name}`, async () => {
      for (let seed = 1; seed <= 5; seed++) {
        const by = structuredClone(collect(seed));
        const next = random(seed);
        spoil(by, (n) => Math.floor(next() * n));
        const verdict = await check([...by.values()].flat());
        expect(verdict.broken, `seed ${seed}`).toHaveProperty(rule);
      }
    });
  }
});

function pickOf<K extends Entry[0]>(
  by: Map<Source, Entry[]>,
  source: Source,
  kind: K,
  pick: (n: number) => number,
  fits: (entry: Extract<Entry, [K, ...unknown[]]>) => boolean = () => true,
): Extract<Entry, [K, ...unknown[]]> {
  const is = (entry: Entry): entry is Extract<Entry, [K, ...unknown[]]> => entry[0] === kind;
  const entries = (by.get(source) ?? []).filter(is).filter(fits);
  const entry = entries[pick(entries.length)];
  if (!entry) throw new Error(`no ${kind}`);
  return entry;
}

function swap(mids: string[], at: number): void {
  [mids[at], mids[at + 1]] = [mids[at + 1] ?? '', mids[at] ?? ''];
}
