import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { checkHistory } from './checker/check.js';
import { catalog } from './faults/catalog.js';
import { type Fault, type Injection, NotDone, type Stage } from './faults/fault.js';
import { type Entry, HistoryWriter, readHistory } from './history.js';
import { figuresOf } from './report-figures.js';
import { runFaults } from './torture-faults.js';
import { type Planned, scheduleFaults } from './torture-schedule.js';
import { startLoad } from './world-load.js';

/*
 * What the torture run does beside its world: which faults come when, what counts as one, and what a figure is.
 */

const scratch = mkdtempSync(join(tmpdir(), 'tutti-torture-'));
afterAll(() => rmSync(scratch, { recursive: true }));

const MINUTES = 26;
const faults = catalog(5000);
const plan = (seed: number) =>
  scheduleFaults(faults, { seed, gateways: 3, fromMs: 4000, toMs: MINUTES * 60_000 - 4000 });
const faultOf = ({ kind }: Planned): Fault => {
  const fault = faults.find((one) => one.kind === kind);
  if (!fault) throw new Error(`no fault ${kind}`);
  return fault;
};

test('a long run has 300 faults, of every kind several, the same for the same seed', () => {
  expect(plan(7)).toEqual(plan(7));
  for (let seed = 1; seed <= 20; seed++) {
    const planned = plan(seed);
    expect(planned.length, `seed ${seed}`).toBeGreaterThanOrEqual(300);
    for (const { kind } of faults) {
      expect(planned.filter((one) => one.kind === kind).length, `${kind}, seed ${seed}`).toBeGreaterThanOrEqual(4);
    }
  }
});

test('a kind of fault that lasts long is alone a few times', () => {
  for (let seed = 1; seed <= 20; seed++) {
    const planned = plan(seed);
    for (const { kind } of faults.filter(({ aloneEvery }) => aloneEvery !== undefined)) {
      const alone = planned.filter((one, at) => {
        const { preparesMs = 0 } = faultOf(one);
        const over = one.atMs + preparesMs + one.lastsMs;
        const before = planned.slice(0, at).every((other) => other.atMs + other.lastsMs < one.atMs);
        return one.kind === kind && before && (planned[at + 1]?.atMs ?? Number.POSITIVE_INFINITY) > over;
      });
      expect(alone.length, `${kind}, seed ${seed}`).toBeGreaterThanOrEqual(1);
    }
  }
});

test('a load process that does not end its history when told to is killed, and has died', async () => {
  const history = join(scratch, 'nobody-reads.jsonl');
  // A pipe without a reader: opening it never ends.
  execFileSync('mkfifo', [history]);
  const tenant = { id: 'a', serverKey: '', workerKey: '', canary: 'c', rooms: ['r'], iss: 'a', secret: 's'.repeat(32) };
  const gateways = [{ name: 'g1', url: 'http://127.0.0.1:9' }];
  const load = await startLoad({ name: 'a', history, gateways, tenants: [tenant] });
  expect(load.died).toBeUndefined();
  await load.end(300);
  expect(load.died).toContain('did not end within 0.3 s');
});

test('a fault that did not bite is none: not counted, not in the history, and no failure', async () => {
  const file = join(scratch, 'faults.jsonl');
  const history = new HistoryWriter(file);
  const fault = (kind: string, heal: () => Promise<void>): Fault => ({
    kind,
    part: 'clients',
    weight: 1,
    lasts: [0, 0],
    promise: '',
    inject: async (): Promise<Injection> => ({ target: 'somebody', heal }),
  });
  const all = [
    fault('bites', async () => undefined),
    fault('misses', () => Promise.reject(new NotDone('nobody there'))),
    fault('breaks', () => Promise.reject(new Error('it broke'))),
  ];
  const schedule = all.map(({ kind }, id) => ({ id, kind, atMs: 0, lastsMs: 0, seat: 0, seed: 1 }));
  const stage = { world: { seats: [{ name: 'g1' }] } } as unknown as Stage;
  const run = runFaults(schedule, all, stage, history);
  await run.finished;
  await history.close();
  expect(run.done.map(({ kind }) => kind)).toEqual(['bites', 'breaks']);
  expect(run.notDone).toEqual(['1 misses: nobody there']);
  expect(run.failures).toEqual(['2 breaks: it broke']);
  const entries: Entry[] = [];
  for await (const entry of readHistory(file)) entries.push(entry);
  expect(entries.map(([kind, , id]) => [kind, id])).toEqual([
    ['fault', 0],
    ['heal', 0],
    ['fault', 2],
    ['heal', 2],
  ]);
});

test('a figure is not reached where one sample is past it; what only a long run can have is asked of no other', async () => {
  const file = join(scratch, 'late.jsonl');
  const history = new HistoryWriter(file);
  const second = 1_000_000;
  const late: Entry[] = [
    ['join', 0, 'bob', 'a', 'r', 'g1', 'start', 'e', 0],
    ['send', second, 'ann', 'a', 'r', 'x', 'ann/1'],
    ['ack', second, 'ann', 'x', 'e', 1, false],
    ['fault', 2 * second, 1, 'redis-kill', 'redis'],
    ['heal', 3 * second, 1],
    ['recv', 5.5 * second, 'bob', 'e', 1, ['x']],
    ['stored', 'a', 'r', 'e', 0, 1, 1, ['x']],
  ];
  for (const entry of late) history.write(entry);
  await history.close();
  const verdict = await checkHistory([file]);
  expect(verdict.violations).toEqual([]);
  expect(verdict.caughtUp).toEqual({ allMs: 2500, quietMs: 2500 });
  const notReached = (long: boolean) =>
    figuresOf(verdict, long).flatMap(({ what, reached }) => (reached === false ? [what] : []));
  const redis = 'delivery after Redis is back, every reader caught up';
  expect(notReached(false)).toEqual([redis]);
  expect(notReached(true)).toEqual(['events acknowledged', 'faults', redis]);
});
