import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { connect, Refused } from '../support/client.js';
import { allRights, openStage, RawClient, type Stage, tokenOf } from './stage.js';

let stage: Stage;
beforeAll(async () => {
  stage = await openStage({ times: { noticeMs: 60_000, graceMs: 1000 } });
});
afterAll(() => stage.close());

describe('a token that ends', () => {
  test('is noticed once before, closes the session after its grace, and keeps socket.io-client away', async () => {
    const token = tokenOf({ id: 'end', expiresAt: Date.now() + 1500 });
    const client = await connect({ url: stage.url, token, reconnection: true });
    await client.call('room.join', { room: 'a' });
    await client.waitFor('session.expiring');
    const closing = await client.waitFor('session.closing');
    expect(closing).toMatchObject({ code: 'token_expired', reconnect: false });
    await client.until(() => client.disconnects.length > 0);
    expect(client.disconnects).toEqual(['io server disconnect']);
    expect(client.of('session.expiring')).toHaveLength(1);
    client.close();
  });

  test('is outlived by a refresh, and what comes next is noticed again', async () => {
    const client = await connect({
      url: stage.url,
      token: tokenOf({ id: 'fresh', expiresAt: Date.now() + 1000 }),
    });
    await client.waitFor('session.expiring');
    const later = Date.now() + 3_600_000;
    const answer = await client.call('session.refresh', { token: tokenOf({ id: 'fresh', expiresAt: later }) });
    expect(answer).toMatchObject({ expiresAt: later, capabilities: allRights });
    await new Promise((resolve) => setTimeout(resolve, 3200));
    expect(client.disconnects).toEqual([]);
    client.close();
  });
});

describe('session.refresh', () => {
  test('by a token of another user or tenant is forbidden and changes nothing', async () => {
    const client = await connect({ url: stage.url, token: tokenOf({ id: 'own' }) });
    for (const other of [{ id: 'else' }, { id: 'own', tenant: 'other' }]) {
      await expect(client.call('session.refresh', { token: tokenOf(other) })).rejects.toMatchObject({
        error: { code: 'forbidden' },
      });
    }
    await client.call('room.join', { room: 'a' });
    client.close();
  });

  test('changes capabilities at once and leaves rooms it may no longer join', async () => {
    const client = await connect({ url: stage.url, token: tokenOf({ id: 'cap' }) });
    await client.call('room.join', { room: 'kept' });
    await client.call('room.join', { room: 'lost' });
    await client.call('session.refresh', { token: tokenOf({ id: 'cap', capabilities: { kept: ['join'] } }) });
    await expect(client.call('event.publish', { room: 'kept', type: 'a', data: 1 })).rejects.toBeInstanceOf(Refused);
    const other = await connect({ url: stage.url, token: tokenOf({ id: 'cap2' }) });
    await other.call('event.publish', { room: 'lost', type: 'a', data: 1 });
    await other.call('event.publish', { room: 'kept', type: 'a', data: 2 });
    await client.waitFor('event');
    expect(client.of('event').map(({ data }) => data)).toEqual([2]);
    client.close();
    other.close();
  });

  test('takes back a join that was under way', async () => {
    stage.rooms.joinDelayMs = 100;
    const client = await connect({ url: stage.url, token: tokenOf({ id: 'race' }) });
    const joining = client.ask('room.join', { room: 'lost' });
    await client.call('session.refresh', { token: tokenOf({ id: 'race', capabilities: {} }) });
    await joining;
    stage.rooms.joinDelayMs = 0;
    const viewer = [...stage.rooms.followed].find(([, rooms]) => rooms.has('lost'));
    expect(viewer).toBeUndefined();
    client.close();
  });
});

test('a reader that is gone before its join is done is not kept', async () => {
  stage.rooms.joinDelayMs = 100;
  const raw = new RawClient(stage.port);
  raw.upgrade();
  await raw.until('"sid"');
  raw.frame(`40${JSON.stringify({ token: tokenOf({ id: 'quick' }) })}`);
  await raw.until('session.ready');
  raw.frame('420["room.join",{"room":"quick"}]');
  await new Promise((resolve) => setTimeout(resolve, 30));
  raw.socket.destroy();
  await new Promise((resolve) => setTimeout(resolve, 200));
  stage.rooms.joinDelayMs = 0;
  expect([...stage.rooms.followed].find(([, rooms]) => rooms.has('quick'))).toBeUndefined();
});

test('a revocation closes the sessions it applies to, and no other', async () => {
  const bad = await connect({ url: stage.url, token: tokenOf({ id: 'bad' }), reconnection: true });
  const good = await connect({ url: stage.url, token: tokenOf({ id: 'good' }) });
  stage.revoke({ tenant: 'demo', kind: 'user', subject: 'bad' });
  expect(await bad.waitFor('session.closing')).toMatchObject({ code: 'unauthenticated', reconnect: false });
  await bad.until(() => bad.disconnects.length > 0);
  expect(bad.disconnects).toEqual(['io server disconnect']);
  await good.call('room.join', { room: 'a' });
  bad.close();
  good.close();
});

describe('[DRN1] dismiss', () => {
  test('tells every session to move with jitter, lets it come back by itself, and takes nobody in', async () => {
    const leaving = await openStage();
    const clients = await Promise.all(
      Array.from({ length: 12 }, (_, i) =>
        connect({ url: leaving.url, token: tokenOf({ id: `u${i}` }), reconnection: true }),
      ),
    );
    const waiting = new RawClient(leaving.port);
    waiting.upgrade();
    await waiting.until('"sid"');
    const left = leaving.server.dismiss({ withinMs: 300 });
    const refused = new RawClient(leaving.port);
    refused.upgrade();
    await refused.until('HTTP/1.1 503');
    waiting.frame(`40${JSON.stringify({ token: tokenOf({ id: 'late' }) })}`);
    await left;
    await waiting.closed;
    // A refusal, upon which socket.io-client would stay away, is not said.
    expect(waiting.received).not.toContain('44{');
    const notices = await Promise.all(clients.map((client) => client.waitFor('session.closing')));
    for (const notice of notices) expect(notice).toMatchObject({ code: 'draining', reconnect: true });
    expect(new Set(notices.map(({ afterMs }) => afterMs)).size).toBeGreaterThan(6);
    await Promise.all(clients.map((client) => client.until(() => client.disconnects.length > 0)));
    for (const client of clients) {
      expect(client.disconnects).toEqual(['transport close']);
      expect(client.socket.active).toBe(true);
      client.close();
    }
    expect(leaving.rooms.left).toHaveLength(12);
    await leaving.close();
  });
});
