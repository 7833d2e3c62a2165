import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import postgres from 'postgres';
import { afterAll, expect, test } from 'vitest';
import { inDatabase } from '../e2e/log-table.js';
import { sleep, startPair, Undo } from '../e2e/run-stage.js';
import { eventually } from '../support/eventually.js';
import { freshDatabase } from '../support/postgres.js';
import { checkHistory } from './checker/check.js';
import { type Entry, HistoryWriter, monotonic, readHistory } from './history.js';
import type { Outcome } from './load/client-faults.js';
import type { LoadOptions } from './load/config.js';
import type { Status } from './load/load.js';
import { POISON_SQL } from './load/publisher.js';
import type { StormReport } from './load/storm.js';
import { writeTables } from './world-tables.js';
import { makeTenants } from './world-tenants.js';

/*
 * The load of the torture run, by itself: two gateways that nobody hurts, and every kind of client with every fault of its own.
 */

const undo = new Undo();
afterAll(() => undo.all());

/** A load process, its latest status and its reports. */
function startLoad(options: LoadOptions) {
  const child = spawn(process.execPath, ['--import', 'tsx', resolve(import.meta.dirname, 'load/process.ts')], {
    env: { ...process.env, LOAD_CONFIG: JSON.stringify(options) },
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const load = {
    exited: new Promise<number | null>((done) => child.once('exit', done)),
    status: undefined as Status | undefined,
    storm: undefined as StormReport | undefined,
    outcomes: new Map<string, Outcome & { refused?: Record<string, number> }>(),
    say: (line: string) => void child.stdin.write(`${line}\n`),
  };
  createInterface({ input: child.stdout }).on('line', (line) => {
    const said = JSON.parse(line) as Status | StormReport | (Outcome & { did: string });
    if ('rejoined' in said) load.storm = said;
    else if ('did' in said) load.outcomes.set(said.did, said);
    else load.status = said;
  });
  return undo.add(load, () => child.kill('SIGKILL'));
}

/** Mids whose last attempt has no answer; a flood does not ask for them again. */
function unanswered(entries: readonly Entry[]): string[] {
  const open = new Set<string>();
  for (const entry of entries) {
    if (entry[0] === 'send' && !entry[2].startsWith('a-f')) open.add(entry[5]);
    else if (entry[0] === 'ack' || entry[0] === 'nack') open.delete(entry[3]);
  }
  return [...open];
}

test('a load process: every client, every fault of a client, and a history that holds', async () => {
  const databaseUrl = undo.add(await freshDatabase(), ({ drop }) => drop()).url;
  const made = await makeTenants(databaseUrl, 2, 2);
  await inDatabase(databaseUrl, (sql) => sql.unsafe(POISON_SQL));
  // The same names on purpose.
  const tenants = made.map((tenant) => ({ ...tenant, rooms: ['lobby', 'plans'] }));
  const env = {
    // A flood is past it on a slow machine, too, and the load is not.
    TUTTI_TENANT_PUBLISHES_PER_SECOND: '300',
    TUTTI_SOCKET_MAX_BACKPRESSURE_BYTES: String(512 * 1024),
    TUTTI_RUN_LEASE_MS: '2000',
    TUTTI_SOCKET_PING_INTERVAL_MS: '1000',
    // Who reads nothing for 5 s is not to give up before its gateway does.
    TUTTI_SOCKET_PING_TIMEOUT_MS: '6000',
  };
  const { a, b } = await startPair(undo, { databaseUrl, env });
  const scratch = undo.add(mkdtempSync(join(tmpdir(), 'tutti-load-')), (dir) => rmSync(dir, { recursive: true }));
  const [history, tables] = [join(scratch, 'a.jsonl'), join(scratch, 'tables.jsonl')];
  const gateways = [a, b].map(({ url }, at) => ({ name: `g${at}`, url }));

  const load = startLoad({ name: 'a', seed: 7, history, gateways, tenants, runsPerSecond: 6, workers: 4 });
  await eventually('all are joined and runs end', () => {
    const { joined, readers, runsEnded } = load.status ?? { joined: 0, readers: 1, runsEnded: 0 };
    return joined === readers && runsEnded > 0;
  });
  const faults = ['cut 8', 'half-open 4', 'slow 3 5000', 'duplicate 2', 'poison'];
  const writer = new HistoryWriter(tables);
  writer.write(['fault', monotonic(), 1, 'client', 'all at once']);
  for (const command of [...faults, 'two-workers', `flood ${tenants[0]?.id} 500`, 'storm 60', 'two-workers']) {
    load.say(command);
    await sleep(350);
  }
  expect(await eventually('a storm is over', () => load.storm)).toMatchObject({ storm: 60, cut: 60, rejoined: 60 });
  const all = [...faults, 'flood', 'two-workers'].map((command) => command.split(' ')[0] ?? '');
  await eventually('all of it is over', () => all.every((name) => load.outcomes.has(name)));
  for (const name of all) expect(load.outcomes.get(name)?.hit, name).not.toEqual([]);
  expect(load.outcomes.get('flood')).toMatchObject({ refused: { rate_limited: expect.any(Number) } });
  writer.write(['heal', monotonic(), 1]);
  load.say('quiet');
  const quiet = await eventually('quiet', () => load.status?.phase === 'quiet' && load.status);
  expect(quiet).toMatchObject({ open: 0, runsOpen: 0, leaks: 0 });
  expect(quiet.fenced).toBeGreaterThan(0);
  await eventually('nobody is behind', () => load.status?.behind === 0);
  load.say('stop');
  expect(await load.exited).toBe(0);

  const entries: Entry[] = [];
  for await (const entry of readHistory(history)) entries.push(entry);
  const kinds = new Set(entries.map(([kind]) => kind));
  const expected = [
    'send',
    'ack',
    'nack',
    'unknown',
    'join',
    'recv',
    'gone',
    'ask',
    'claim',
    'work',
    'chunk',
    'end',
    'open',
    'conn',
    'wish',
    'wrote',
  ];
  expect([...kinds]).toEqual(expect.arrayContaining(expected));
  expect(unanswered(entries)).toEqual([]);
  const sql = postgres(databaseUrl, { max: 1, onnotice: () => undefined });
  await sql`select set_config('tutti.tenants', '*', false)`;
  await writeTables(sql, (entry) => writer.write(entry));
  await Promise.all([writer.close(), sql.end()]);
  const { violations, counts } = await checkHistory([history, tables]);
  expect(violations).toEqual([]);
  expect(counts.stored).toBeGreaterThan(counts.acked * 0.9);
  expect(counts.runs).toBe(quiet.asked);
}, 90_000);
