import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import postgres from 'postgres';
import { afterAll, expect, test } from 'vitest';
import { startPair, Undo } from '../e2e/run-stage.js';
import { eventually } from '../support/eventually.js';
import { freshDatabase } from '../support/postgres.js';
import { checkHistory, type Rule } from './checker/check.js';
import { type Entry, isOfStorm, monotonic, readHistory } from './history.js';
import { startLoad } from './world-load.js';
import { writeTables } from './world-tables.js';
import { makeTenants } from './world-tenants.js';

/*
 * The storm of the torture run by itself, with fewer sockets.
 */

const undo = new Undo();
afterAll(() => undo.all());

const SOCKETS = 600;
/** What `Storm` publishes to each room while nobody is there. */
const MISSED = 12;

/** How many events each reader was given after its last join. */
function givenOnReturn(entries: readonly Entry[]): Map<string, number> {
  const given = new Map<string, number>();
  for (const entry of entries) {
    if (entry[0] === 'join') given.set(entry[2], 0);
    else if (entry[0] === 'recv') given.set(entry[2], (given.get(entry[2]) ?? 0) + entry[5].length);
  }
  return given;
}

/** The same history, but for the last line of several events that `reader` was given. */
function replant(entries: readonly Entry[], reader: string, change: (line: Entry & { 0: 'recv' }) => Entry[]): Entry[] {
  const at = entries.findLastIndex((entry) => entry[0] === 'recv' && entry[2] === reader && entry[5].length > 2);
  const line = entries[at];
  if (line?.[0] !== 'recv') throw new Error(`${reader} was never given several events at once`);
  return [...entries.slice(0, at), ...change(line), ...entries.slice(at + 1)];
}

test('[RES1][FEED1] a storm: every socket that was cut is back and was given what it missed, and a hole in one of them would be noticed', async () => {
  const databaseUrl = undo.add(await freshDatabase(), ({ drop }) => drop()).url;
  const made = await makeTenants(databaseUrl, 2, 1);
  // The same names on purpose.
  const tenants = made.map((tenant) => ({ ...tenant, rooms: ['crowd-1', 'crowd-2'] }));
  const { a, b } = await startPair(undo, { databaseUrl });
  const scratch = undo.add(mkdtempSync(join(tmpdir(), 'tutti-storm-')), (dir) => rmSync(dir, { recursive: true }));
  const file = join(scratch, 'crowd.jsonl');
  const gateways = [a, b].map(({ url }, at) => ({ name: `g${at}`, url }));
  const nobody = { streamReaders: 0, viewers: 0, runStreams: 0, workers: 0, httpWorkers: 0, sdkWorkers: 0 };
  const crowd = await startLoad({
    ...nobody,
    name: 'crowd',
    history: file,
    gateways,
    tenants,
    publishers: 4,
    httpPublishers: 0,
    readers: 4,
    ratePerSecond: 8,
    runsPerSecond: 0,
  });
  undo.add(crowd, () => crowd.end());
  await eventually('events are published', () => crowd.status.acked > 4);

  const { at, cut, back } = await crowd.storm(SOCKETS);
  expect(cut).toBe(SOCKETS);
  expect(await back).toMatchObject({ rejoined: SOCKETS });
  const healed = monotonic();
  crowd.say('quiet');
  await eventually('all have everything', () => {
    const { phase, open, behind } = crowd.status;
    return phase === 'quiet' && open === 0 && behind === 0;
  });
  await crowd.end();
  expect(crowd.died).toBeUndefined();

  const entries: Entry[] = [
    ['fault', at, 1, 'client-storm', `${cut} sockets`],
    ['heal', healed, 1],
  ];
  for await (const entry of readHistory(file)) entries.push(entry);
  const sql = postgres(databaseUrl, { max: 1, onnotice: () => undefined });
  await sql`select set_config('tutti.tenants', '*', false)`;
  await writeTables(sql, (entry) => entries.push(entry));
  await sql.end();
  const check = (history: readonly Entry[]) => {
    writeFileSync(file, history.map((entry) => `${JSON.stringify(entry)}\n`).join(''));
    return checkHistory([file]);
  };
  const { violations, counts, recoveries } = await check(entries);
  expect(violations).toEqual([]);
  expect(counts.resumes).toBeGreaterThanOrEqual(SOCKETS);
  expect(recoveries.kinds).toMatchObject([{ kind: 'client-storm', caughtUp: { n: SOCKETS } }]);
  const given = [...givenOnReturn(entries)].filter(([reader]) => isOfStorm(reader));
  expect(given).toHaveLength(SOCKETS);
  expect(Math.min(...given.map(([, events]) => events))).toBeGreaterThanOrEqual(MISSED);

  const victim = given[SOCKETS / 2]?.[0] ?? '';
  const plants: [rule: Rule, change: Parameters<typeof replant>[2]][] = [
    [
      'gap',
      ([kind, t, reader, epoch, seq, [first = '', , ...rest]]) => [
        [kind, t, reader, epoch, seq, [first]],
        [kind, t, reader, epoch, seq + 2, rest],
      ],
    ],
    ['repeat', (line) => [line, line]],
    [
      'reorder',
      ([kind, t, reader, epoch, seq, [first = '', ...rest]]) => [
        [kind, t, reader, epoch, seq + 1, rest],
        [kind, t, reader, epoch, seq, [first]],
      ],
    ],
  ];
  for (const [rule, change] of plants) {
    const found = await check(replant(entries, victim, change));
    expect(found.violations.find((one) => one.rule === rule)?.text, rule).toContain(`${victim} `);
  }
  // It was back and given nothing: then it would not have left.
  const returned = entries.findLastIndex(([kind, , reader]) => kind === 'join' && reader === victim);
  const { violations: late } = await check(entries.filter((entry, n) => n <= returned || entry[2] !== victim));
  expect(late.find(({ rule }) => rule === 'behind')?.text).toContain(`${victim} `);
}, 60_000);
