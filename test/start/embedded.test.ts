import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { eventually } from '../support/eventually.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { own } from '../support/owned.js';
import { freePort } from '../support/ports.js';

const root = resolve(import.meta.dirname, '../..');
const gateways: GatewayProcess[] = [];
const folders: string[] = [];
const isRoot = process.getuid?.() === 0;

afterEach(async () => {
  for (const gateway of gateways.splice(0)) await gateway.stop();
  for (const folder of folders.splice(0)) {
    const left = serverPid(folder);
    if (left !== undefined && alive(left)) {
      process.kill(left, 'SIGINT');
      await expect.poll(() => alive(left), { timeout: 20_000 }).toBe(false);
    }
    rmSync(folder, { recursive: true, force: true });
  }
});

function folder(below = tmpdir()): string {
  const made = mkdtempSync(join(below, 'tutti-start-'));
  folders.push(made);
  return made;
}

async function start(dataDir: string): Promise<GatewayProcess> {
  const gateway = await startGateway({ env: { TUTTI_DATA_DIR: join(dataDir, '.tutti') } });
  gateways.push(gateway);
  return gateway;
}

function serverPid(dataDir: string): number | undefined {
  const file = join(dataDir, '.tutti/postgres/postmaster.pid');
  return existsSync(file) ? Number(readFileSync(file, 'utf8').split('\n')[0]) : undefined;
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
}

/** A command of the operator's shell. */
function tutti(dataDir: string, ...args: string[]) {
  const { PATH = '', HOME = '' } = process.env;
  return spawnSync(process.execPath, ['--import', 'tsx', join(root, 'src/cli.ts'), ...args], {
    cwd: root,
    env: { PATH, HOME, TUTTI_DATA_DIR: join(dataDir, '.tutti') },
    encoding: 'utf8',
  });
}

async function roomsOf(gateway: GatewayProcess, token: string, room: string) {
  const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' };
  const url = `${gateway.url}/v1/rooms/${room}/events`;
  return {
    publish: (mid: string) =>
      fetch(url, { method: 'POST', headers, body: JSON.stringify({ type: 'note', data: mid, mid }) }),
    async heads() {
      const answer = await fetch(url, { headers });
      return ((await answer.json()) as { head: number }).head;
    },
  };
}

test('[START1] [LOG1] a killed gateway leaves its Postgres to the next one, with everything in it', async () => {
  const place = folder();
  const first = await start(place);
  const token = tutti(place, 'token', '--user', 'ann').stdout.trim();
  expect((await (await roomsOf(first, token, 'lobby')).publish('m1')).status).toBe(201);
  const server = serverPid(place);

  await first.kill9();
  const second = await start(place);
  expect(second.logs()).toContain('took over');
  expect(serverPid(place)).toBe(server);
  expect(await (await roomsOf(second, token, 'lobby')).heads()).toBe(1);

  expect(await second.term()).toBe(0);
  expect(serverPid(place)).toBeUndefined();
  expect(server !== undefined && alive(server)).toBe(false);
  const third = await start(place);
  expect(await (await roomsOf(third, token, 'lobby')).heads()).toBe(1);
}, 120_000);

test('[START1] a second gateway on a data directory says who has it', async () => {
  const place = folder();
  const first = await start(place);
  const second = await startGateway({ env: first.env, waitForReady: false });
  gateways.push(second);
  await expect.poll(() => second.running(), { timeout: 20_000 }).toBe(false);
  expect(await second.term()).toBe(2);
  expect(second.logs()).toContain(`process ${first.pid}`);
  expect(second.logs()).toContain('TUTTI_DATA_DIR');
  expect(first.running()).toBe(true);
}, 60_000);

test('[START1] [DRN1] a SIGTERM to `npm start` ends the gateway and its Postgres, as one to the gateway does', async () => {
  const place = folder();
  const port = String(await freePort());
  const { PATH = '', HOME = '' } = process.env;
  const env = {
    PATH,
    HOME,
    PORT: port,
    HOST: '127.0.0.1',
    TUTTI_DATA_DIR: join(place, '.tutti'),
    TUTTI_DEMO_WORKER: 'false',
  };
  // Without its `prestart`, which would build beside the other tests.
  let gateway: number | undefined;
  const npm = own('npm', ['start', '--ignore-scripts'], { env, cwd: root });
  try {
    await eventually(
      'it is ready',
      () =>
        fetch(`http://127.0.0.1:${port}/readyz`).then(
          ({ ok }) => ok,
          () => false,
        ),
      30_000,
    );
    const server = serverPid(place);
    expect(server !== undefined && alive(server)).toBe(true);
    gateway = Number(/\) \S (\d+) /.exec(readFileSync(`/proc/${server}/stat`, 'utf8'))?.[1]);
    npm.signal('SIGTERM');
    expect(await npm.exited, npm.output()).toBe(0);
    expect(server !== undefined && alive(server)).toBe(false);
    await expect(fetch(`http://127.0.0.1:${port}/healthz`)).rejects.toThrow();
  } finally {
    await npm.kill9();
    if (gateway !== undefined && alive(gateway)) process.kill(gateway, 'SIGKILL');
  }
}, 60_000);

test('[START1] a Postgres that dies is started again', async () => {
  const place = folder();
  const gateway = await start(place);
  const token = tutti(place, 'token', '--user', 'ann').stdout.trim();
  const server = serverPid(place) ?? 0;
  process.kill(server, 'SIGKILL');
  const publish = async () => {
    const { publish } = await roomsOf(gateway, token, 'lobby');
    return (await publish('m1').catch(() => undefined))?.ok;
  };
  await expect.poll(publish, { timeout: 30_000 }).toBe(true);
  expect(serverPid(place)).not.toBe(server);
  expect(gateway.running()).toBe(true);
}, 60_000);

test.runIf(isRoot && process.platform === 'linux')(
  'a folder only root may enter is as good as any, and stays so',
  async () => {
    const place = folder(homedir());
    chmodSync(place, 0o700);
    const gateway = await start(place);
    expect(statSync(place).mode & 0o777).toBe(0o700);
    expect(statSync(join(place, '.tutti')).mode & 0o777).toBe(0o700);
    expect(statSync(join(place, '.tutti/postgres')).uid).not.toBe(0);
    expect(await gateway.term()).toBe(0);
  },
  60_000,
);

test.runIf(isRoot && process.platform === 'linux')(
  'an ordinary user runs its own',
  async () => {
    const uid = 65_534;
    const place = folder();
    mkdirSync(join(place, '.tutti'));
    for (const path of [place, join(place, '.tutti')]) chownSync(path, uid, uid);
    const script = `
      const { startEmbeddedPostgres } = await import(${JSON.stringify(join(root, 'src/db/embedded.ts'))});
      const log = { debug() {}, info() {}, warn() {}, error() {} };
      const server = await startEmbeddedPostgres(${JSON.stringify(join(place, '.tutti'))}, log);
      console.log('started ' + new URL(server.url).hostname);
      await server.stop();
      console.log('stopped');`;
    const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
      cwd: root,
      uid,
      gid: uid,
      env: { PATH: process.env.PATH ?? '', HOME: place, TMPDIR: place },
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk));
    await new Promise((ended) => child.once('close', ended));
    expect(output).toContain('started 127.0.0.1');
    expect(output).toContain('stopped');
  },
  60_000,
);

test('the shell manages what the gateway then knows', async () => {
  const place = folder();
  expect(tutti(place, 'tenant', 'list').stderr).toContain('No Postgres runs');
  const gateway = await start(place);
  expect(tutti(place, 'tenant', 'create', 'acme').status).toBe(0);
  const key = tutti(place, 'key', 'create', '--tenant', 'acme').stdout.trim();
  expect(key).toMatch(/^tutti_live_/);
  const ask = () =>
    fetch(`${gateway.url}/v1/rooms`, { headers: { authorization: `Bearer ${key}` } }).then(({ status }) => status);
  expect(await ask()).toBe(200);
  const [id = ''] = key.slice('tutti_live_'.length).split('_');
  expect(tutti(place, 'key', 'revoke', id).status).toBe(0);
  await expect.poll(ask, { timeout: 15_000 }).toBe(401);
  const list = tutti(place, '--json', 'key', 'list').stdout;
  expect(list).not.toContain('hash');
  expect(JSON.parse(list).find((one: { id: string }) => one.id === id).revokedAt).toBeTypeOf('number');
  const wrong = tutti(place, 'token', '--user', 'ann', '--cap', '{"*":["fly"]}');
  expect(wrong.status).toBe(1);
  expect(wrong.stderr).toContain('--cap');
}, 60_000);
