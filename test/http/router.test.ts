import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { as, jsonAs, RawConnection, type Stand, standUp } from './stand.js';

let stand: Stand;
let webDir: string;

beforeAll(async () => {
  webDir = mkdtempSync(join(tmpdir(), 'tutti-web-'));
  mkdirSync(join(webDir, 'assets'));
  writeFileSync(join(webDir, 'index.html'), '<!doctype html><title>page</title>');
  writeFileSync(join(webDir, 'assets/app-Ab3dEf9h.js'), 'export {};');
  stand = await standUp({ webDir });
});
afterAll(() => {
  stand.close();
  rmSync(webDir, { recursive: true });
});

describe('the way of a request', () => {
  test('[LOG3] a publish answers 201, its retry by the same mid 200 with the same position', async () => {
    const send = () =>
      fetch(`${stand.url}/v1/rooms/lobby/events`, {
        method: 'POST',
        headers: jsonAs('ann'),
        body: JSON.stringify({ type: 'chat', data: { text: 'hi' }, mid: 'm1' }),
      });
    const first = await send();
    const second = await send();
    expect([first.status, second.status]).toEqual([201, 200]);
    const [a, b] = [(await first.json()) as object, await second.json()];
    expect(b).toEqual({ ...a, duplicate: true });
    const history = await (await fetch(`${stand.url}/v1/rooms/lobby/events?limit=10`, { headers: as('ann') })).json();
    expect(history).toMatchObject({ head: 1, events: [{ seq: 1, data: { text: 'hi' }, by: { id: 'ann' } }] });
  });

  test('a request id is taken over when harmless, replaced when not, and logged with tenant and principal', async () => {
    const given = await fetch(`${stand.url}/v1/rooms`, { headers: as('ann', { 'x-request-id': 'abc-1' }) });
    expect(given.headers.get('x-request-id')).toBe('abc-1');
    const odd = await fetch(`${stand.url}/v1/rooms`, { headers: as('ann', { 'x-request-id': 'a b<script>' }) });
    expect(odd.headers.get('x-request-id')).toMatch(/^[0-9a-f-]{36}$/);
    const line = stand.log.lines.find(({ fields }) => 'request' in fields && fields.request === 'abc-1');
    expect(line?.fields).toMatchObject({ route: '/v1/rooms', status: 200, tenant: 'acme', principal: 'ann' });
  });

  test('no log line has a token or a body', async () => {
    await fetch(`${stand.url}/v1/rooms/lobby/events?token=very-secret`, { headers: as('very-secret') });
    await fetch(`${stand.url}/v1/rooms/lobby/events`, {
      method: 'POST',
      headers: jsonAs('ann'),
      body: '{"type":"chat","data":"very-private","oops":1}',
    });
    expect(JSON.stringify(stand.log.lines)).not.toMatch(/very-secret|very-private|Bearer/);
  });

  test('[ERR1] unknown routes, wrong methods and faults are problem details', async () => {
    const unknown = await fetch(`${stand.url}/v1/nothing`);
    expect(unknown.status).toBe(404);
    expect(unknown.headers.get('content-type')).toBe('application/problem+json');
    expect(await unknown.json()).toEqual({
      type: 'urn:tutti:error:not_found',
      title: 'Not found',
      status: 404,
      detail: 'There is no such route.',
      code: 'not_found',
      retryable: false,
    });
    const wrong = await fetch(`${stand.url}/v1/rooms/lobby/events`, { method: 'PUT' });
    expect([wrong.status, wrong.headers.get('allow')]).toEqual([405, 'POST, GET, OPTIONS']);
    expect(await wrong.json()).toMatchObject({ status: 405, code: 'bad_request' });
    const fault = await fetch(`${stand.url}/v1/rooms`, { headers: as('broken') });
    expect(fault.status).toBe(500);
    expect(await fault.text()).not.toContain('secret detail');
    const away = await fetch(`${stand.url}/v1/rooms`, { headers: as('away') });
    expect([away.status, away.headers.get('retry-after')]).toEqual([503, '2']);
    expect(await away.json()).toMatchObject({ code: 'log_unavailable', retryable: true, retryAfterMs: 1500 });
  });

  test('a key of the wrong kind is forbidden', async () => {
    const body = JSON.stringify({ user: 'u', cap: {}, ttlSeconds: 60 });
    const mint = (who: string) =>
      fetch(`${stand.url}/v1/tokens`, { method: 'POST', headers: jsonAs(who), body }).then((r) => r.status);
    expect(await Promise.all(['server', 'ann', 'worker'].map(mint))).toEqual([201, 403, 403]);
    const claim = await fetch(`${stand.url}/v1/worker/claims`, {
      method: 'POST',
      headers: jsonAs('ann'),
      body: '{"models":["demo"]}',
    });
    expect(claim.status).toBe(403);
  });

  test('a flood is refused with the time to wait, not served', async () => {
    const limited = await standUp({
      limits: {
        requestsMax: 1000,
        maxBodyBytes: 80_000,
        streamBufferBytes: 80_000,
        commandsPerSecond: 1,
        tenantCommandsPerSecond: 100,
        tokenGraceMs: 0,
      },
    });
    const answers = await Promise.all([1, 2, 3, 4].map(() => fetch(`${limited.url}/v1/rooms`, { headers: as('ann') })));
    const refused = answers.filter(({ status }) => status === 429);
    expect(refused.length).toBeGreaterThan(0);
    expect(await refused[0]?.json()).toMatchObject({ code: 'rate_limited', retryAfterMs: expect.any(Number) });
    expect((await fetch(`${limited.url}/v1/rooms`, { headers: as('server') })).status).toBe(200);
    limited.close();
  });
});

describe('browsers', () => {
  test('only configured origins may read answers', async () => {
    const from = (origin: string) => fetch(`${stand.url}/v1/rooms`, { headers: as('ann', { origin }) });
    expect((await from('https://app.example')).headers.get('access-control-allow-origin')).toBe('https://app.example');
    expect((await from('https://evil.example')).headers.get('access-control-allow-origin')).toBeNull();
    const preflight = await fetch(`${stand.url}/v1/rooms/lobby/events`, {
      method: 'OPTIONS',
      headers: { origin: 'https://app.example' },
    });
    expect(preflight.status).toBe(204);
    expect(preflight.headers.get('access-control-allow-headers')).toContain('authorization');
  });

  test('the page is served with its policy, hashed files for ever, and nothing outside its directory', async () => {
    const page = await fetch(`${stand.url}/`);
    expect(page.headers.get('content-type')).toBe('text/html; charset=utf-8');
    expect(page.headers.get('content-security-policy')).toContain("connect-src 'self' ws: wss:");
    expect(page.headers.get('x-content-type-options')).toBe('nosniff');
    const etag = page.headers.get('etag') ?? '';
    expect((await fetch(`${stand.url}/`, { headers: { 'if-none-match': etag } })).status).toBe(304);
    const asset = await fetch(`${stand.url}/assets/app-Ab3dEf9h.js`);
    expect(asset.headers.get('cache-control')).toContain('immutable');
    const head = await fetch(`${stand.url}/assets/app-Ab3dEf9h.js`, { method: 'HEAD' });
    expect([head.status, head.headers.get('content-length')]).toEqual([200, '10']);
    for (const path of ['/../package.json', '/assets/../../x', '/%2e%2e/x', '/assets/%00', '//etc/passwd', '/%zz']) {
      const raw = new RawConnection(stand.port);
      raw.send(`GET ${path} HTTP/1.1\r\nhost: x\r\n\r\n`);
      expect([path, [400, 404].includes(await raw.status())]).toEqual([path, true]);
      raw.socket.destroy();
    }
  });
});

describe('operations', () => {
  test('health, readiness and metrics', async () => {
    expect((await fetch(`${stand.url}/healthz`)).status).toBe(200);
    expect(await (await fetch(`${stand.url}/readyz`)).json()).toEqual({ ready: true, reasons: [], degraded: [] });
    stand.health.ready = false;
    const away = await fetch(`${stand.url}/readyz`);
    expect([away.status, await away.json()]).toEqual([
      503,
      { ready: false, reasons: ['Postgres does not answer'], degraded: [] },
    ]);
    stand.health.ready = true;
    const metrics = await fetch(`${stand.url}/metrics`);
    expect(metrics.headers.get('content-type')).toContain('text/plain');
    const text = await metrics.text();
    expect(text).toMatch(/tutti_http_requests_total\{route="\/healthz",status="200"\} \d+/);
    expect(text).toMatch(/nodejs_eventloop_lag_seconds/);
    expect(text).toMatch(/tutti_http_seconds_bucket/);
  });
});
