import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { eventually } from '../support/eventually.js';
import { DEV_WORKER_KEY, devToken } from '../support/tokens.js';
import { acmeToken, answersOf, Bounded, overloaded, quotaExceeded, refused } from './stage.js';

/*
 * What waits for the database. The tenant `demo` is made to wait by a lock; `acme` must not notice.
 */

let on: Bounded;
beforeAll(async () => {
  on = await Bounded.start({
    TUTTI_DB_POOL_SIZE: '4',
    TUTTI_DB_WAITING_MAX: '8',
    TUTTI_TENANT_PUBLISHES_PER_SECOND: '100000',
    TUTTI_APPEND_QUEUE_MAX: '40',
    TUTTI_APPEND_QUEUE_BYTES: String(256 * 1024),
    TUTTI_RUNS_LIVE_PER_ROOM: '3',
    TUTTI_CLAIMS_WAITING_MAX: '3',
    TUTTI_APPEND_TIMEOUT_MS: '20000',
  });
});
afterEach(() => on.undo.all());
afterAll(() => on?.stop());

test('[LIM2] slow transactions of one tenant leave the others their connections, and past the queue they are refused', async () => {
  const [ann, bob] = await Promise.all([on.client(devToken()), on.client(acmeToken('bob'))]);
  const release = await on.hold((tx) => tx`select pg_advisory_xact_lock(hashtextextended('tutti.runs demo', 0))`);
  const asked = Array.from({ length: 20 }, (_, n) => ann.ask('run.create', { room: `db-${n}`, model: 'm', input: n }));
  const answers = answersOf(asked);
  // Three connections of four, and three quarters of the queue.
  await eventually('the refusals', () => refused(answers).length >= 11);
  expect(refused(answers)[0]).toEqual(overloaded(/wait for the database/));
  expect(refused(answers)).toHaveLength(11);
  expect(await on.metric('tutti_database_waiting')).toBe(6);
  expect(await on.reached('database_queue')).toBe(11);
  // The other tenant reads, writes and opens rooms, with the fourth.
  for (let n = 0; n < 5; n++) {
    await bob.call('room.join', { room: `db-${n}`, from: 'start' });
    await bob.call('event.publish', { room: `db-${n}`, type: 'a', data: n });
    await bob.call('event.history', { room: `db-${n}` });
    await bob.call('run.create', { room: `db-${n}`, model: 'm', input: n });
  }
  expect(answers.filter((ack) => ack?.ok)).toEqual([]);
  await release();
  expect((await Promise.all(asked)).filter(({ ok }) => ok)).toHaveLength(9);
  await ann.call('run.create', { room: 'db-after', model: 'm', input: 0 });
  expect(await on.metric('tutti_database_waiting')).toBe(0);
});

test('[LIM1] the append queue refuses past its count; who was let in is committed in order, other tenants go on', async () => {
  const [ann, bob] = await Promise.all([on.client(devToken()), on.client(acmeToken('bob'))]);
  const release = await on.stick('stuck');
  const asked = Array.from({ length: 45 }, (_, n) => ann.ask('event.publish', { room: 'stuck', type: 'a', data: n }));
  const answers = answersOf(asked);
  await eventually('the refusals', () => refused(answers).length >= 15);
  expect(refused(answers)).toHaveLength(15);
  expect(refused(answers)[0]).toEqual(overloaded(/wait for their commit/));
  expect(await on.metric('tutti_append_queue')).toBe(30);
  expect(await on.reached('append_queue')).toBe(15);
  // Rooms that share the lane wait with it; the others do not.
  const others = Array.from({ length: 8 }, (_, n) =>
    bob.ask('event.publish', { room: `free-${n}`, type: 'a', data: n }),
  );
  const free = answersOf(others);
  await eventually('the other tenant goes on', () => free.filter((ack) => ack?.ok).length >= 3);
  expect(refused(free)).toEqual([]);
  await release();
  const acked = (await Promise.all(asked)).filter(({ ok }) => ok);
  expect(acked).toHaveLength(30);
  await Promise.all(others);
  const { events } = await ann.call('event.history', { room: 'stuck', after: 1 });
  expect((events as { data: number }[]).map(({ data }) => data)).toEqual(Array.from({ length: 30 }, (_, n) => n));
  await ann.call('event.publish', { room: 'stuck', type: 'a', data: 'after' });
});

test('[LIM1] the append queue refuses past its bytes, for one tenant before all', async () => {
  const [ann, bob] = await Promise.all([on.client(devToken()), on.client(acmeToken('bob'))]);
  const release = await on.stick('heavy');
  const data = 'x'.repeat(50 * 1024);
  const asked = Array.from({ length: 8 }, () => ann.ask('event.publish', { room: 'heavy', type: 'a', data }));
  const answers = answersOf(asked);
  await eventually('the refusals', () => refused(answers).length >= 4);
  expect(refused(answers)[0]).toEqual(overloaded(/wait for their commit/));
  expect(refused(answers)).toHaveLength(4);
  expect(await on.metric('tutti_append_queue_bytes')).toBeLessThan(256 * 1024);
  const others = Array.from({ length: 8 }, (_, n) =>
    bob.ask('event.publish', { room: `free-${n}`, type: 'a', data: n }),
  );
  const free = answersOf(others);
  await eventually('the other tenant goes on', () => free.filter((ack) => ack?.ok).length >= 3);
  await release();
  expect((await Promise.all(asked)).filter(({ ok }) => ok)).toHaveLength(4);
  expect((await Promise.all(others)).filter(({ ok }) => ok)).toHaveLength(8);
  expect(await on.metric('tutti_append_queue_bytes')).toBe(0);
});

test('[LIM1] live runs of a room have a limit; another room and another tenant have theirs', async () => {
  const [ann, bob] = await Promise.all([on.client(devToken()), on.client(acmeToken('bob'))]);
  const create = (room: string) => ann.ask('run.create', { room, model: 'never', input: 0 });
  const made = await Promise.all([create('busy'), create('busy'), create('busy'), create('busy'), create('busy')]);
  expect(refused(made)).toEqual([quotaExceeded(/room has 3 runs/), quotaExceeded(/room has 3 runs/)]);
  expect(await on.reached('runs_room')).toBe(2);
  expect(await create('idle')).toMatchObject({ ok: true });
  await bob.call('run.create', { room: 'busy', model: 'never', input: 0 });
  const first = made.find((ack) => ack.ok) as { run: { id: string } } | undefined;
  await ann.call('run.cancel', { run: first?.run.id ?? '' });
  expect(await create('busy')).toMatchObject({ ok: true });
});

test('[LIM1] claims that wait have a limit, and a place is free again when one has gone', async () => {
  const claim = (signal: AbortSignal | null = null, waitMs = 20_000) =>
    fetch(`${on.url}/v1/worker/claims`, {
      method: 'POST',
      headers: { authorization: `Bearer ${DEV_WORKER_KEY}`, 'content-type': 'application/json' },
      body: JSON.stringify({ models: ['nobody-asks'], waitMs }),
      signal,
    });
  const leaving = new AbortController();
  const waiting = [claim(leaving.signal), claim(leaving.signal), claim(leaving.signal)];
  for (const one of waiting) one.catch(() => undefined);
  await eventually('three wait', async () => (await on.metric('tutti_claims_waiting')) === 3);
  const fourth = await claim();
  expect(fourth.status).toBe(503);
  expect(fourth.headers.get('retry-after')).toBe('1');
  expect(await fourth.json()).toMatchObject({ code: 'overloaded', retryable: true, retryAfterMs: 1000 });
  expect(await on.reached('claims_waiting')).toBe(1);
  leaving.abort();
  await eventually('they have gone', async () => (await on.metric('tutti_claims_waiting')) === 0);
  expect((await claim(null, 0)).status).toBe(204);
});
