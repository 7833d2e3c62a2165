import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { RawClient } from '../realtime/stage.js';
import { connect, type TestClient } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import type { GatewayProcess } from '../support/gateway.js';
import { RoomStream } from './feed-stream.js';
import { inDatabase } from './log-table.js';
import { call, startPair, Undo } from './run-stage.js';
import { makeTenant, type Tenant } from './tenants-made.js';

/*
 * Two tenants with the same rooms, the same users and the same mids, each with a canary of its own in everything it
 * writes. Whatever one of them reads, anywhere, must not hold the other's canary.
 */

const undo = new Undo();
afterAll(() => undo.all());

let a: GatewayProcess;
let b: GatewayProcess;
let databaseUrl: string;
let acme: Side;
let globex: Side;

/** A tenant and all it reads. */
class Side {
  readonly clients: TestClient[] = [];
  readonly raws: RawClient[] = [];
  readonly streams: RoomStream[] = [];
  readonly answers: string[] = [];
  readonly canary: string;
  token = '';

  constructor(readonly tenant: Tenant) {
    this.canary = `canary-${randomBytes(8).toString('hex')}`;
  }

  /** An answer over HTTP, kept. */
  async http(url: string, method: 'GET' | 'POST', path: string, body?: unknown, bearer = this.token) {
    const reply = await call(url, bearer, method, path, body);
    this.answers.push(JSON.stringify(reply));
    return reply;
  }

  /** A command at one of its sockets, its answer kept. */
  async ask(client: number, command: string, payload: unknown) {
    const ack = await this.clients[client]?.ask(command, payload);
    this.answers.push(JSON.stringify(ack));
    return ack as Record<string, unknown> & { error?: { code: string; message: string } };
  }

  /** All that ever reached it, as text. */
  everything(): string {
    return [
      ...this.clients.map(({ pushes }) => JSON.stringify(pushes)),
      ...this.raws.map(({ received }) => received),
      ...this.streams.map(({ raw }) => raw),
      ...this.answers,
    ].join('\n');
  }
}

const ROOMS = ['lobby', 'plans'];

async function openSide(tenant: Tenant): Promise<Side> {
  const side = new Side(tenant);
  side.token = await tenant.mint('ann');
  for (const gateway of [a, b]) {
    side.clients.push(undo.add(await connect({ url: gateway.url, token: side.token }), (one) => one.close()));
    const raw = undo.add(new RawClient(gateway.port), (one) => one.socket.destroy());
    await raw.join('lobby', side.token);
    side.raws.push(raw);
    side.streams.push(
      undo.add(await RoomStream.open(gateway.url, side.token, '/v1/rooms/lobby/stream?after=start'), (one) =>
        one.close(),
      ),
    );
  }
  for (const at of [0, 1]) for (const room of ROOMS) await side.ask(at, 'room.join', { room, from: 'start' });
  return side;
}

beforeAll(async () => {
  const pair = await startPair(undo);
  ({ a, b } = pair);
  databaseUrl = pair.env.DATABASE_URL ?? '';
  const [one, other] = await Promise.all(['acme', 'globex'].map((id) => makeTenant(pair.env, a.url, id)));
  if (!one || !other) throw new Error('no tenants');
  acme = await openSide(one);
  globex = await openSide(other);
});

test('[ISO1] events, broadcasts, runs, names and counts of one tenant never reach the other, on any path', async () => {
  const sides = [acme, globex];
  const runs: string[] = [];
  for (const side of sides) {
    for (const at of [0, 1]) {
      for (const room of ROOMS) {
        // The same mid in both tenants: neither is a retry of the other's.
        const payload = { room, type: 'chat', data: { text: side.canary }, mid: `same-${at}` };
        expect(await side.ask(at, 'event.publish', payload)).toMatchObject({ ok: true, duplicate: false });
        await side.ask(at, 'broadcast.send', { room, type: 'cursor', data: side.canary });
      }
    }
    const input = { model: 'm', input: side.canary, mid: 'same' };
    const created = await side.http(a.url, 'POST', '/v1/rooms/lobby/runs', input);
    expect(created.status).toBe(201);
    runs.push((created.body as { run: { id: string } }).run.id);
    await side.http(b.url, 'POST', `/v1/rooms/only-${side.canary}/events`, { type: 'chat', data: side.canary });
  }

  // Each tenant's worker gets its own run, though both are queued for the same model and room.
  for (const [n, side] of sides.entries()) {
    const { workerKey } = side.tenant;
    const claim = await side.http(b.url, 'POST', '/v1/worker/claims', { models: ['m'], waitMs: 3000 }, workerKey);
    expect(claim.body).toMatchObject({ run: { id: runs[n] }, input: side.canary });
    const none = await side.http(a.url, 'POST', '/v1/worker/claims', { models: ['m'], waitMs: 100 }, workerKey);
    expect(none.status).toBe(204);
    const { fence } = claim.body as { fence: number };
    const finish = (run: string) =>
      call(a.url, workerKey, 'POST', `/v1/worker/runs/${run}/finish`, {}, { 'tutti-fence': String(fence) });
    const foreign = await finish(runs[1 - n] ?? '');
    expect(foreign.status).toBeGreaterThanOrEqual(400);
    side.answers.push(JSON.stringify(foreign));
    const part = { type: 'text-delta', id: '1', delta: side.canary };
    const pushed = await fetch(`${a.url}/v1/worker/runs/${runs[n]}/chunks`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${workerKey}`,
        'content-type': 'application/x-ndjson',
        'tutti-fence': String(fence),
      },
      body: `${JSON.stringify({ n: 0, part })}\n`,
    });
    expect(pushed.status).toBe(200);
    expect((await finish(runs[n] ?? '')).status).toBe(200);
  }

  // Reading: lists, history, runs and streams of one's own, and of the other by its exact names.
  for (const [n, side] of sides.entries()) {
    const other = sides[1 - n] as Side;
    const foreign = runs[1 - n];
    for (const { url } of [a, b]) {
      const list = await side.http(url, 'GET', '/v1/rooms');
      const rooms = (list.body as { rooms: { room: string; head: number }[] }).rooms;
      expect(rooms.map(({ room }) => room)).toEqual(['lobby', `only-${side.canary}`, 'plans']);
      expect(rooms.map(({ head }) => head)).toEqual([4, 1, 2]);
      for (const key of [side.token, side.tenant.serverKey]) {
        await side.http(url, 'GET', '/v1/rooms/lobby/events?limit=500', undefined, key);
        const known = await side.http(url, 'GET', `/v1/rooms/only-${other.canary.slice(0, 8)}`, undefined, key);
        const theirs = await call(url, key, 'GET', `/v1/rooms/only-${other.canary}`);
        expect([theirs.status, theirs.body]).toEqual([known.status, known.body]);
        for (const path of ['', '/stream']) {
          const unknownRun = await side.http(url, 'GET', `/v1/runs/0199-unknown${path}`, undefined, key);
          const foreignRun = await side.http(url, 'GET', `/v1/runs/${foreign}${path}`, undefined, key);
          expect(foreignRun).toEqual(unknownRun);
        }
        const stopped = await side.http(url, 'POST', `/v1/runs/${foreign}/cancel`, undefined, key);
        expect(stopped.status).toBeGreaterThanOrEqual(400);
      }
    }
    for (const at of [0, 1]) {
      await side.ask(at, 'event.history', { room: 'lobby', limit: 500 });
      const foreignCancel = await side.ask(at, 'run.cancel', { run: foreign });
      const unknownCancel = await side.ask(at, 'run.cancel', { run: '0199-unknown' });
      expect(foreignCancel).toEqual(unknownCancel);
    }
  }
  const gone = await fetch(`${a.url}/v1/rooms/only-${acme.canary}`, {
    method: 'DELETE',
    headers: { authorization: `Bearer ${globex.tenant.serverKey}` },
  });
  expect(gone.status).toBe(404);

  for (const side of sides) {
    for (const one of side.clients) await one.waitFor('event', ({ type }) => type === 'run.completed');
    for (const raw of side.raws) await raw.until('run.completed');
    for (const stream of side.streams) await eventually('the stream has the run', () => stream.seqs.length === 4);
  }
  for (const [n, side] of sides.entries()) {
    expect(side.everything()).toContain(side.canary);
    expect(side.everything()).not.toContain(sides[1 - n]?.canary);
    for (const raw of side.raws) expect(raw.received).toContain(side.canary);
    const epochs = new Set(side.clients.flatMap((one) => one.of('event').map(({ room, epoch }) => `${room} ${epoch}`)));
    expect(epochs.size).toBe(ROOMS.length);
  }
  // What is open to everybody names nobody.
  for (const { url } of [a, b]) {
    for (const path of ['/metrics', '/readyz', '/openapi.json']) {
      const text = await (await fetch(url + path)).text();
      for (const { canary, tenant } of sides) {
        expect(text).not.toContain(canary);
        expect(text).not.toContain(tenant.id);
      }
    }
  }
  const stored = await inDatabase(
    databaseUrl,
    (sql) => sql`select tenant_id, data::text as data from tutti.events where data::text like '%canary-%'`,
  );
  for (const { tenant_id: tenant, data } of stored) {
    expect(data).toContain(tenant === 'acme' ? acme.canary : globex.canary);
  }
});

test('[ISO1] a token that names another tenant than its issuer does is no way in', async () => {
  const { SignJWT } = await import('jose');
  const [row] = await inDatabase(databaseUrl, (sql) => sql`select keys from tutti.issuers where iss = 'tutti:acme'`);
  const { secret } = (row as { keys: { secret: string } }).keys;
  const sign = (claims: Record<string, unknown>) =>
    new SignJWT({ aud: 'tutti', sub: 'ann', cap: { '*': ['join'] }, ...claims })
      .setProtectedHeader({ alg: 'HS256' })
      .setIssuedAt()
      .setExpirationTime('5m')
      .sign(new TextEncoder().encode(secret));
  await connect({ url: a.url, token: await sign({ iss: 'tutti:acme' }) }).then((one) => one.close());
  const refresh = await acme.ask(0, 'session.refresh', { token: globex.token });
  expect(refresh.error?.code).toBe('forbidden');
  for (const claims of [{ iss: 'tutti:acme', tenant: 'globex' }, { iss: 'tutti:globex' }]) {
    const token = await sign(claims);
    await expect(connect({ url: b.url, token })).rejects.toMatchObject({ error: { code: 'unauthenticated' } });
    expect((await call(b.url, token, 'GET', '/v1/rooms')).status).toBe(401);
  }
});
