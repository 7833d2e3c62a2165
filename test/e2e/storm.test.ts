import { afterEach, expect, test } from 'vitest';
import { each } from '../../bench/support/measure.js';
import type { Position } from '../../src/protocol/primitives.js';
import { connect } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { Session } from '../support/session.js';
import { DEV_SERVER_KEY, devToken } from '../support/tokens.js';
import { call, sleep, startPair, Undo, userToken } from './run-stage.js';

const undo = new Undo();
afterEach(() => undo.all());

/** `npm run bench -- bystanders` and `load-tests/reconnect-storm.js` do it with 5,000. */
const SOCKETS = 1200;
const ROOMS = 12;
const MISSED = 20;
const USERS = 60;

/** A reader on a raw socket: what it was pushed of its room, by seq. */
class StormReader {
  readonly seqs: number[] = [];
  position: Position | undefined;
  session: Session | undefined;

  constructor(
    readonly room: string,
    private readonly token: string,
  ) {}

  async join(port: number): Promise<void> {
    const session = await Session.open({ port, auth: { token: this.token } });
    this.session = session;
    session.onPush = (buffer, start, end) => {
      const text = buffer.toString('latin1', start, end);
      if (text.startsWith('42["room.resync"')) throw new Error(text);
      if (text.startsWith('42["event"')) this.seqs.push(Number(/"seq":(\d+)/.exec(text)?.[1]));
    };
    const { position } = await session.call('room.join', { room: this.room, from: this.position ?? 'latest' });
    this.position ??= position as Position;
  }
}

test('[RES1][FEED1] a gateway is killed and all of its sockets come to the other at once: all catch up, and others are served', async () => {
  const { a, b } = await startPair(undo, {
    env: { TUTTI_MAX_SESSIONS_PER_USER: String(SOCKETS), TUTTI_COMMANDS_PER_SECOND: '10000' },
  });
  const publish = async (room: string, n: number) => {
    const body = { type: 'note', data: { n } };
    const { status } = await call(b.url, DEV_SERVER_KEY, 'POST', `/v1/rooms/${room}/events`, body);
    expect(status).toBe(201);
  };
  const rooms = Array.from({ length: ROOMS }, (_, n) => `storm-${n}`);
  const everywhere = (n: number) => Promise.all(rooms.map((room) => publish(room, n)));
  await everywhere(0);
  const tokens = await each(USERS, USERS, (n) => devToken({ user: `storm-${n}` }));
  const readers = Array.from(
    { length: SOCKETS },
    (_, n) => new StormReader(rooms[n % ROOMS] ?? '', tokens[n % USERS] ?? ''),
  );
  undo.add(readers, () => readers.map(({ session }) => session?.close()));
  await each(SOCKETS, 50, async (n) => readers[n]?.join(a.port));

  const bystander = undo.add(await connect({ url: b.url, token: await userToken('bystander') }), (one) => one.close());
  await bystander.call('room.join', { room: 'quiet' });
  await a.kill9();
  for (let n = 1; n <= MISSED; n += 1) await everywhere(n);
  let over = false;
  let told = 0;
  const chatting = (async () => {
    for (; !over; told += 1) {
      await bystander.call('event.publish', { room: 'quiet', type: 'chat', data: told });
      await sleep(10);
    }
  })();
  const began = performance.now();
  await Promise.all(readers.map((reader) => reader.join(b.port)));
  await eventually('all have what they missed', () => readers.every(({ seqs }) => seqs.length >= MISSED));
  const tookMs = performance.now() - began;
  const toldMeanwhile = told;
  await everywhere(MISSED + 1);
  await eventually('all read on', () => readers.every(({ seqs }) => seqs.length > MISSED));
  over = true;
  await chatting;

  const due = Array.from({ length: MISSED + 1 }, (_, n) => n + 2);
  for (const reader of readers) expect(reader.seqs).toEqual(due);
  expect(toldMeanwhile, 'publishes of the bystander during the storm').toBeGreaterThan(0);
  await bystander.until(() => bystander.of('event').length === told, 'its own events');
  expect(bystander.disconnects).toEqual([]);
  expect(b.running()).toBe(true);
  const metrics = await (await fetch(`${b.url}/metrics`)).text();
  const queries = [...metrics.matchAll(/^tutti_log_queries_total\{.*\} (\d+)$/gm)].reduce(
    (sum, [, n]) => sum + Number(n),
    0,
  );
  expect(queries, 'three a room, and two for the room of the bystander').toBeLessThanOrEqual(3 * ROOMS + 2);
  console.log(
    `storm: ${SOCKETS} sockets back in ${Math.round(tookMs)} ms, ${queries} queries of the log for ${ROOMS} rooms, ` +
      `${toldMeanwhile} publishes of a bystander meanwhile`,
  );
}, 120_000);
