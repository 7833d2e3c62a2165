import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import postgres from 'postgres';
import { afterAll, expect, test } from 'vitest';
import { sleep, startPair, Undo } from '../e2e/run-stage.js';
import { eventually } from '../support/eventually.js';
import { own } from '../support/owned.js';
import { freshDatabase } from '../support/postgres.js';
import { random } from '../support/random.js';
import { checkHistory } from './checker/check.js';
import { type Draw, type Injection, NotDone, type Stage } from './faults/fault.js';
import { workerFaults } from './faults/workers.js';
import { type Entry, HistoryWriter, readHistory } from './history.js';
import { startLoad } from './world-load.js';
import { writeTables } from './world-tables.js';
import { makeTenants } from './world-tenants.js';
import { startWorkerProcesses } from './world-workers.js';

/*
 * The faults of workers by themselves: processes that are killed and stopped by signals, beside gateways that nobody hurts.
 */

const undo = new Undo();
afterAll(() => undo.all());

const LEASE_MS = 2000;

const inject = (kind: string, workers: Stage['workers']): Promise<Injection> => {
  const fault = workerFaults.find((one) => one.kind === kind);
  if (!fault) throw new Error(`no fault ${kind}`);
  return fault.inject({ workers } as Stage, { next: random(1) } as Draw);
};

async function entriesOf(file: string): Promise<Entry[]> {
  const entries: Entry[] = [];
  for await (const entry of readHistory(file)) entries.push(entry);
  return entries;
}

test('what a process wrote ahead is in its history, though it is killed before it does anything else', async () => {
  const scratch = undo.add(mkdtempSync(join(tmpdir(), 'tutti-ahead-')), (dir) => rmSync(dir, { recursive: true }));
  const file = join(scratch, 'ahead.jsonl');
  const program = `
    const { WriteAheadHistory } = await import(${JSON.stringify(new URL('history.ts', import.meta.url).href)});
    const history = new WriteAheadHistory(${JSON.stringify(file)});
    for (let n = 0; n < 3; n++) history.write(['heal', n, n]);
    process.kill(process.pid, 'SIGKILL');`;
  const child = own(process.execPath, ['--import', 'tsx', '--input-type=module', '--eval', program]);
  expect(await child.exited, child.output()).toBe(137);
  expect(await entriesOf(file)).toEqual([0, 1, 2].map((n) => ['heal', n, n]));
});

test('a fault of workers without a run in hand is not done', async () => {
  const idle = { atWork: async () => undefined } as unknown as Stage['workers'];
  for (const { kind } of workerFaults) await expect(inject(kind, idle), kind).rejects.toThrow(NotDone);
});

test('[RUN2] SIGKILL and SIGSTOP of worker processes: runs go on, what wakes late is fenced, and the history has all that was sent', async () => {
  const databaseUrl = undo.add(await freshDatabase(), ({ drop }) => drop()).url;
  const tenants = await makeTenants(databaseUrl, 2, 1);
  const env = { TUTTI_RUN_LEASE_MS: String(LEASE_MS), TUTTI_SOCKET_PING_INTERVAL_MS: '1000' };
  const { a, b } = await startPair(undo, { databaseUrl, env });
  const scratch = undo.add(mkdtempSync(join(tmpdir(), 'tutti-workers-')), (dir) => rmSync(dir, { recursive: true }));
  const gateways = [a, b].map(({ url }, at) => ({ name: `g${at}`, url }));
  const seen = join(scratch, 'asks.jsonl');
  const [workers, asks] = await Promise.all([
    startWorkerProcesses(2, scratch, { seed: 5, gateways, tenants, workers: 2, httpWorkers: 1, sdkWorkers: 1 }),
    startLoad({
      name: 'asks',
      seed: 6,
      history: seen,
      gateways,
      tenants,
      ...{ publishers: 2, httpPublishers: 0, readers: 2, streamReaders: 0, viewers: 4, runStreams: 2 },
      ...{ workers: 0, httpWorkers: 0, sdkWorkers: 0, ratePerSecond: 4, runsPerSecond: 6 },
    }),
  ]);
  undo.add(workers, (all) => all.end());
  undo.add(asks, (one) => one.end());
  await eventually('runs end', () => asks.status.runsEnded > 3);

  const [killedFile = ''] = workers.histories;
  const faults = join(scratch, 'faults.jsonl');
  const writer = new HistoryWriter(faults);
  const note = (id: number, kind: string, { at = 0, healed = 0, target = '' }: Injection) => {
    writer.write(['fault', at, id, kind, target]);
    writer.write(['heal', healed, id]);
  };
  const before = [...workers.running];
  const kill = await inject('worker-kill', workers);
  expect(kill.target).toMatch(/^work\d-k0 /);
  const killed = before.find((one) => !workers.running.includes(one));
  expect(killed?.died).toBeUndefined();
  await kill.heal();
  note(1, 'worker-kill', kill);
  expect(workers.running).toHaveLength(2);
  await sleep(500);

  const zombie = await inject('worker-zombie', workers);
  await sleep(LEASE_MS + 2500);
  await zombie.heal();
  expect(zombie.note).toMatch(/^writes refused as fenced: [1-9]/);
  note(2, 'worker-zombie', zombie);

  asks.say('quiet');
  await eventually('all is answered, and every run has its end', () => {
    const { phase, open, runsOpen, behind } = asks.status;
    return phase === 'quiet' && open === 0 && runsOpen === 0 && behind === 0;
  });
  await Promise.all([workers.end(), asks.end()]);
  for (const { died } of [...before, ...workers.running, asks]) expect(died).toBeUndefined();
  const sql = postgres(databaseUrl, { max: 1, onnotice: () => undefined });
  await sql`select set_config('tutti.tenants', '*', false)`;
  await writeTables(sql, (entry) => writer.write(entry));
  await Promise.all([writer.close(), sql.end()]);

  const files = [faults, seen, ...workers.histories];
  const { violations, recoveries, counts } = await checkHistory(files);
  expect(violations).toEqual([]);
  expect(counts.runs).toBeGreaterThan(10);
  const runs = Object.fromEntries(recoveries.kinds.map(({ kind, runs }) => [kind, runs]));
  expect(runs['worker-kill']?.n).toBeGreaterThan(0);
  expect(runs['worker-kill']?.max).toBeLessThan(LEASE_MS + 5000);
  expect(runs['worker-zombie']?.n).toBeGreaterThan(0);

  // The checker does with no line less: a part that somebody was shown is missed where its maker had not written it down.
  const [name] = kill.target?.split('-') ?? [];
  const file = workers.histories.find((one) => one.endsWith(`${name}.jsonl`)) ?? killedFile;
  const written = await entriesOf(file);
  const claims = (await Promise.all(workers.histories.map(entriesOf))).flat().filter((entry) => entry[0] === 'claim');
  const shown = (await entriesOf(seen)).filter((entry) => entry[0] === 'chunk');
  const left = written.find(
    (entry) =>
      entry[0] === 'work' &&
      claims.some((claim) => claim[3] === entry[3] && claim[4] > entry[4]) &&
      shown.some(([, , , run, attempt]) => run === entry[3] && attempt === entry[4]),
  );
  expect(left, 'a part of a run that the killed process left').toBeDefined();
  const others = written.filter((entry) => entry[0] !== 'work' || entry[3] !== left?.[3]);
  writeFileSync(file, others.map((entry) => `${JSON.stringify(entry)}\n`).join(''));
  const { broken } = await checkHistory(files);
  expect(broken.prefix).toBeGreaterThan(0);
}, 60_000);
