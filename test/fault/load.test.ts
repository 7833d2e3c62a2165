import { spawn } from 'node:child_process';
import { randomBytes, randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, expect, test } from 'vitest';
import { ownIssuer } from '../../src/core/auth.js';
import { openDatabase } from '../../src/db/database.js';
import { createDirectory } from '../../src/db/directory.js';
import { newKey } from '../../src/demo/bootstrap.js';
import { startPair, Undo } from '../e2e/run-stage.js';
import { eventually } from '../support/eventually.js';
import { DEV_SECRET, DEV_SERVER_KEY, DEV_WORKER_KEY } from '../support/tokens.js';
import { type Entry, readHistory } from './history.js';
import type { LoadOptions, LoadTenant } from './load/config.js';
import type { Status } from './load/load.js';

/*
 * The load of the torture run, by itself: two gateways that nobody hurts, and every kind of client with every fault of its own.
 */

const undo = new Undo();
afterAll(() => undo.all());

const ROOMS = ['lobby', 'plans'];
const canary = () => `canary${randomBytes(8).toString('hex')}`;

const demo = (): LoadTenant => ({
  id: 'demo',
  serverKey: DEV_SERVER_KEY,
  workerKey: DEV_WORKER_KEY,
  iss: ownIssuer('demo'),
  secret: DEV_SECRET,
  canary: canary(),
  rooms: ROOMS,
});

/** A second tenant, made as the operator makes one. */
async function makeTenant(databaseUrl: string, id: string): Promise<LoadTenant> {
  const database = await openDatabase({ url: databaseUrl, poolSize: 2, appRole: 'tutti_app' });
  try {
    const directory = createDirectory(database);
    const [server, worker, secret, iss] = [newKey(), newKey(), randomBytes(32).toString('hex'), ownIssuer(id)];
    await directory.putTenant({ id, name: id, status: 'active' });
    const keys = { kind: 'hs256' as const, secret };
    await directory.putIssuer({
      id: randomUUID(),
      tenant: id,
      iss,
      audience: 'tutti',
      algorithms: ['HS256'],
      typ: null,
      keys,
    });
    for (const [scope, key] of [
      ['server', server],
      ['worker', worker],
    ] as const) {
      await directory.putKey({ id: key.id, tenant: id, scopes: [scope], name: scope, hash: key.hash });
    }
    return { id, serverKey: server.key, workerKey: worker.key, iss, secret, canary: canary(), rooms: ROOMS };
  } finally {
    await database.close();
  }
}

/** A load process and its latest status. */
function startLoad(options: LoadOptions) {
  const child = spawn(process.execPath, ['--import', 'tsx', resolve(import.meta.dirname, 'load/process.ts')], {
    env: { ...process.env, LOAD_CONFIG: JSON.stringify(options) },
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const exited = new Promise<number | null>((done) => child.once('exit', done));
  undo.add(child, () => child.kill('SIGKILL'));
  const load = {
    exited,
    status: undefined as Status | undefined,
    say: (line: string) => child.stdin.write(`${line}\n`),
  };
  createInterface({ input: child.stdout }).on('line', (line) => {
    load.status = JSON.parse(line) as Status;
  });
  return load;
}

test('a load process: every client, every fault of a client, and a history in which all that was sent has an end', async () => {
  const { a, b, env } = await startPair(undo, { env: { TUTTI_COMMANDS_PER_SECOND: '1000' } });
  const tenants = [demo(), await makeTenant(env.DATABASE_URL ?? '', 'other')];
  const scratch = undo.add(mkdtempSync(join(tmpdir(), 'tutti-load-')), (dir) => rmSync(dir, { recursive: true }));
  const history = join(scratch, 'a.jsonl');
  const gateways = [a, b].map(({ url }, at) => ({ name: `g${at}`, url }));
  const load = startLoad({ name: 'a', seed: 7, history, gateways, tenants });
  await eventually('all are joined', () => load.status && load.status.joined === load.status.readers);
  const sleep = (ms: number) => new Promise((wait) => setTimeout(wait, ms));
  for (const command of ['cut 6', 'half-open 4', 'slow 2 500', 'duplicate 2', 'poison']) {
    load.say(command);
    await sleep(700);
  }
  await sleep(1500);
  load.say('quiet');
  const quiet = await eventually('quiet', () => load.status?.phase === 'quiet' && load.status);
  expect(quiet.open).toBe(0);
  await eventually('nobody is behind', () => load.status?.behind === 0);
  load.say('stop');
  expect(await load.exited).toBe(0);

  const entries: Entry[] = [];
  for await (const entry of readHistory(history)) entries.push(entry);
  const kinds = new Set(entries.map(([kind]) => kind));
  for (const kind of ['send', 'ack', 'join', 'recv', 'gone'] as const) expect(kinds).toContain(kind);
  expect(kinds).not.toContain('leak');
  expect(unresolved(entries)).toEqual([]);
}, 60_000);

/** Mids whose last attempt has no answer. */
function unresolved(entries: readonly Entry[]): string[] {
  const open = new Set<string>();
  for (const entry of entries) {
    if (entry[0] === 'send') open.add(entry[5]);
    else if (entry[0] === 'ack' || entry[0] === 'nack') open.delete(entry[3]);
  }
  return [...open];
}
