import { execFileSync, spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { connect as connectTcp, type Socket } from 'node:net';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { connect } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { devToken } from '../support/tokens.js';
import { Bounded } from './stage.js';

/* TCP connections that never become anything: neither a request nor a WebSocket. */

const PLAIN = 600;

let on: Bounded;
beforeAll(async () => {
  on = await Bounded.start({ TUTTI_HTTP_MAX_CONNECTIONS: String(PLAIN) });
});
afterEach(() => on.undo.all());
afterAll(() => on?.stop());

/** What a connection says before it falls silent, or goes on saying byte by byte without an end. */
const habits: readonly { says: string; drips?: string }[] = [
  { says: '' },
  { says: 'GET /healthz HTTP/1.1\r\nhost: x\r\n' },
  { says: 'GET /healthz HTTP/1.1\r\nhost: x\r\nx-endless: ', drips: 'a' },
  { says: 'GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n' },
  { says: 'POST /v1/rooms/r/events HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n', drips: 'a' },
];

interface Plain {
  readonly socket: Socket;
  open: boolean;
}

/** Connects and behaves as said. Never rejects: whoever is not let in is not open. */
function plain({ says, drips }: (typeof habits)[number]): Plain {
  const socket = on.undo.add(connectTcp(on.gateway.port, '127.0.0.1'), (one) => one.destroy());
  const one: Plain = { socket, open: true };
  const dripping = drips === undefined ? undefined : setInterval(() => socket.write(drips), 1000);
  socket.on('connect', () => socket.write(says));
  socket.on('data', () => undefined);
  socket.on('error', () => undefined);
  socket.on('close', () => {
    clearInterval(dripping);
    one.open = false;
  });
  return one;
}

const plains = (count: number): Plain[] =>
  Array.from({ length: count }, (_, n) => plain(habits[n % habits.length] ?? { says: '' }));

test('[LIM1] 500 connections that ask nothing, or never end what they ask, are closed; sockets stay and are served meanwhile', async () => {
  const ann = await on.client(devToken());
  const idle = plains(500);
  await eventually('they are there', async () => (await on.metric('process_open_fds')) > 500);
  await ann.call('event.publish', { room: 'r', type: 'a', data: 1 });
  await (await on.client(devToken())).call('event.history', { room: 'r' });
  expect(await on.metric('tutti_sessions')).toBe(2);
  await eventually('they are closed', () => idle.every(({ open }) => !open), 30_000);
  await ann.call('event.publish', { room: 'r', type: 'a', data: 2 });
  expect(ann.disconnects).toEqual([]);
}, 60_000);

test('[LIM1] past their number connections that are no WebSocket are closed at once; those there and sockets go on, and there is room again', async () => {
  const ann = await on.client(devToken());
  // Sockets are none of them, neither while they are open nor after it.
  const before = await on.metric('tutti_http_connections');
  for (let n = 0; n < 20; n++) (await on.client(devToken())).close();
  const bob = await on.client(devToken({ user: 'bob' }));
  await eventually('sockets do not count', async () => (await on.metric('tutti_http_connections')) <= before + 1);
  const crowd = Array.from({ length: PLAIN + 200 }, () => plain({ says: '' }));
  const open = () => crowd.filter((one) => one.open);
  await eventually('those past the number are closed', () => open().length <= PLAIN);
  expect(open().length).toBeGreaterThan(PLAIN - 10);
  for (let n = 0; n < 20; n++) await ann.call('event.publish', { room: 'r', type: 'a', data: n });
  await bob.call('event.history', { room: 'r' });
  for (const one of open()) one.socket.destroy();
  await eventually(
    'there is room again',
    async () => (await on.metric('tutti_http_connections').catch(() => PLAIN)) < 10,
  );
  expect(await on.reached('http_connections')).toBeGreaterThanOrEqual(200);
  await (await on.client(devToken())).call('event.history', { room: 'r' });
  expect([...ann.disconnects, ...bob.disconnects]).toEqual([]);
}, 60_000);

test.skipIf(spawnSync('prlimit', ['--version']).status !== 0)(
  '[LIM1] connections that use up all files the process may open: what goes over open lines goes on, and everything once those are closed',
  async () => {
    const ann = await on.client(devToken());
    // From now on there is a line to Postgres for this room.
    await ann.call('event.publish', { room: 'full', type: 'a', data: 0 });
    const [token, open] = [await devToken(), readdirSync(`/proc/${on.gateway.pid}/fd`).length];
    execFileSync('prlimit', ['--pid', String(on.gateway.pid), `--nofile=${open + 50}:`]);
    const idle = plains(100);
    const full = () => readdirSync(`/proc/${on.gateway.pid}/fd`).length >= open + 50;
    await eventually('no file is left', full);
    for (let n = 0; n < 20; n++) await ann.call('event.publish', { room: 'full', type: 'a', data: n });
    expect(full()).toBe(true);
    const late = on.undo.add(await connect({ url: on.url, token, reconnection: true }), (one) => one.close());
    await late.call('event.history', { room: 'full' });
    await eventually('the others are closed', () => idle.every(({ open }) => !open), 60_000);
    for (let n = 0; n < 8; n++) await ann.call('event.publish', { room: `other-${n}`, type: 'a', data: n });
    expect(ann.disconnects).toEqual([]);
    expect(on.gateway.running()).toBe(true);
  },
  120_000,
);
