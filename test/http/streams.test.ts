import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { Revocation } from '../../src/core/directory.js';
import { ConnectionLimits } from '../../src/core/limits.js';
import type { Principal } from '../../src/core/principal.js';
import { as, principals, RawConnection, type Stand, standUp, until } from './stand.js';

let stand: Stand;
beforeEach(async () => {
  stand = await standUp();
});
afterEach(() => stand.close());

const publish = async (data: unknown) => {
  const ann = principals.ann;
  if (!ann) throw new Error('no ann');
  return stand.rooms.publish(ann, { room: 'lobby', type: 'chat', data: JSON.stringify(data) as never });
};

/** An open stream and its text so far. */
async function open(path: string, headers: Record<string, string> = {}, who = 'ann') {
  const abort = new AbortController();
  const response = await fetch(stand.url + path, { headers: as(who, headers), signal: abort.signal });
  const stream = { response, text: '', ended: false, leave: () => abort.abort() };
  void (async () => {
    const decoder = new TextDecoder();
    for await (const bytes of response.body ?? []) stream.text += decoder.decode(bytes as Uint8Array, { stream: true });
  })()
    .catch(() => {})
    .finally(() => {
      stream.ended = true;
    });
  return stream;
}

const ids = (text: string) => [...text.matchAll(/^id: (\S+)\nevent: event$/gm)].map(([, id]) => id);

describe('a room over SSE', () => {
  test('[FEED1] replay and live without a seam, ids are positions', async () => {
    for (const n of [1, 2, 3]) await publish({ n });
    const stream = await open('/v1/rooms/lobby/stream?after=e1:1');
    await publish({ n: 4 });
    await until(() => ids(stream.text).length === 3);
    expect(ids(stream.text)).toEqual(['e1:2', 'e1:3', 'e1:4']);
    expect(stream.text).toMatch(/^retry: \d+\nid: e1:1\n\n/);
    expect(stream.response.headers.get('content-type')).toBe('text/event-stream');
    stream.leave();
    await until(() => stand.rooms.viewers.size === 0);
  });

  test('[RES1] Last-Event-ID wins over after; another epoch gets an explicit resync', async () => {
    for (const n of [1, 2]) await publish({ n });
    const resumed = await open('/v1/rooms/lobby/stream?after=start', { 'last-event-id': 'e1:1' });
    await until(() => ids(resumed.text).length === 1);
    expect(ids(resumed.text)).toEqual(['e1:2']);
    const lost = await open('/v1/rooms/lobby/stream', { 'last-event-id': 'e0:77' });
    await until(() => ids(lost.text).length === 2);
    expect(lost.text).toContain('event: resync\ndata: {"room":"lobby","reason":"epoch_changed"');
    resumed.leave();
    lost.leave();
  });

  test('[SLOW1] a stalled reader that comes back in time misses nothing', async () => {
    const raw = new RawConnection(stand.port);
    raw.send('GET /v1/rooms/lobby/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ann\r\n\r\n');
    await raw.status();
    raw.socket.pause();
    for (let n = 0; n < 10; n++) await publish('x'.repeat(60_000));
    raw.socket.resume();
    await until(() => raw.received.includes('id: e1:10\n'));
    expect(ids(raw.received.replaceAll(/\r\n[0-9a-f]+\r\n/g, ''))).toHaveLength(10);
    raw.socket.destroy();
  });

  test('[SLOW1] a reader that stays away is cut at the limit and slows nobody', async () => {
    const raw = new RawConnection(stand.port);
    raw.send('GET /v1/rooms/lobby/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ann\r\n\r\n');
    await raw.status();
    raw.socket.pause();
    const well = await open('/v1/rooms/lobby/stream');
    for (let n = 0; n < 300 && stand.rooms.viewers.size === 2; n++) {
      await publish('x'.repeat(60_000));
      await new Promise((wait) => setTimeout(wait, 1));
    }
    expect(stand.rooms.viewers.size).toBe(1);
    const last = (await publish('end')).position.seq;
    await until(() => well.text.includes(`id: e1:${last}\n`));
    expect(ids(well.text)).toHaveLength(last);
    expect(await (await fetch(`${stand.url}/metrics`)).text()).toContain('tutti_slow_closes_total 1');
    well.leave();
    raw.socket.destroy();
  });

  test('a stream ends with its token, and when the gateway drains', async () => {
    const brief = principals.brief;
    if (brief) principals.brief = { ...brief, expiresAt: Date.now() + 300 };
    const ending = await open('/v1/rooms/lobby/stream', {}, 'brief');
    await until(() => ending.ended);
    stand.runs.add('r1', 'streaming');
    if (brief) principals.brief = { ...brief, expiresAt: Date.now() + 300 };
    const endingRun = await open('/v1/runs/r1/stream', {}, 'brief');
    await until(() => endingRun.ended);
    const drained = await open('/v1/rooms/lobby/stream');
    await stand.http.dismiss({ withinMs: 0 });
    await until(() => drained.ended && stand.rooms.viewers.size === 0);
  });
});

describe('a credential that is revoked', () => {
  test('[AUTH3] ends the streams, claims and bodies it began, and nobody else’s', async () => {
    stand.close();
    let revoke: (revocation: Revocation) => void = () => {};
    const revocations = {
      onRevoked: (listener: typeof revoke) => {
        revoke = listener;
      },
      applies: ({ subject }: Revocation, { id }: Principal) => subject === id,
    };
    const connections = new ConnectionLimits({ total: 5, perTenant: 5, perUser: 2 });
    stand = await standUp({ revocations, connections });
    stand.runs.add('r1', 'streaming');
    const room = await open('/v1/rooms/lobby/stream');
    const run = await open('/v1/runs/r1/stream');
    expect((await open('/v1/runs/r1/stream')).response.status).toBe(429);
    const other = await open('/v1/runs/r1/stream', {}, 'server');
    const claim = fetch(`${stand.url}/v1/worker/claims`, {
      method: 'POST',
      headers: as('worker', { 'content-type': 'application/json' }),
      body: JSON.stringify({ models: ['demo'], waitMs: 30_000 }),
    });
    const body = new RawConnection(stand.port);
    body.send(
      'POST /v1/worker/runs/r1/chunks HTTP/1.1\r\nhost: x\r\nauthorization: Bearer worker\r\ntutti-fence: 1\r\n' +
        'content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n',
    );
    await until(() => stand.runs.watchers.size === 2);
    await new Promise((wait) => setTimeout(wait, 100));
    const of = (subject: string) => ({ id: subject, tenant: 'acme', kind: 'user' as const, subject, at: Date.now() });
    revoke(of('ann'));
    await until(() => room.ended && run.ended);
    expect(stand.runs.watchers.size).toBe(1);
    revoke(of('k2'));
    expect((await claim).status).toBe(401);
    expect(await body.status()).toBe(401);
    expect(other.ended).toBe(false);
    body.socket.destroy();
    other.leave();
  });
});

describe('a run over SSE', () => {
  const part = (text: string) => ({ type: 'text-delta' as const, id: '1', delta: text });
  const data = (text: string) => [...text.matchAll(/^data: (.*)$/gm)].map(([, json]) => json);

  test('[RUN1] AI SDK frames, numbered, ended by [DONE]', async () => {
    stand.runs.add('r1', 'streaming');
    stand.runs.parts.push({ type: 'start' }, part('a'));
    const stream = await open('/v1/runs/r1/stream');
    await until(() => stand.runs.watchers.size === 1);
    for (const watcher of stand.runs.watchers) watcher.parts(1, 2, [part('b')]);
    stand.runs.end('r1', 'completed');
    await until(() => stream.ended);
    expect(stream.response.headers.get('x-vercel-ai-ui-message-stream')).toBe('v1');
    expect([...stream.text.matchAll(/^id: (.*)$/gm)].map(([, id]) => id)).toEqual(['1:0', '1:1', '1:2']);
    expect(data(stream.text).at(-1)).toBe('[DONE]');
  });

  test('[RUN1] Last-Event-ID continues after the part it names; another attempt is announced', async () => {
    stand.runs.add('r1', 'streaming');
    stand.runs.parts.push({ type: 'start' }, part('a'));
    const stream = await open('/v1/runs/r1/stream', { 'last-event-id': '1:0' });
    await until(() => stand.runs.watchers.size === 1);
    for (const watcher of stand.runs.watchers) watcher.reset(2);
    stand.runs.end('r1', 'failed');
    await until(() => stream.ended);
    expect(data(stream.text)).toEqual([
      '{"type":"text-delta","id":"1","delta":"a"}',
      '{"type":"data-tutti-reset","data":{"attempt":2},"transient":true}',
      '{"type":"error","errorText":"It broke."}',
      '[DONE]',
    ]);
  });

  test('[RUN3] a reader that leaves cancels nothing; a cancel ends streams with abort', async () => {
    stand.runs.add('r1', 'streaming');
    const first = await open('/v1/runs/r1/stream');
    first.leave();
    await until(() => stand.runs.watchers.size === 0);
    const second = await open('/v1/runs/r1/stream');
    await until(() => stand.runs.watchers.size === 1);
    expect(stand.runs.find('r1').state).toBe('streaming');
    await fetch(`${stand.url}/v1/runs/r1/cancel`, { method: 'POST', headers: as('ann') });
    await until(() => second.ended);
    expect(data(second.text)).toEqual(['{"type":"abort"}', '[DONE]']);
  });
});

describe('output of a worker', () => {
  const head =
    'POST /v1/worker/runs/r1/chunks HTTP/1.1\r\nhost: x\r\nauthorization: Bearer worker\r\ntutti-fence: 1\r\n' +
    'content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n';
  const line = (n: number) => `${JSON.stringify({ n, part: { type: 'text-delta', id: '1', delta: `d${n}é` } })}\n`;
  const chunk = (text: string) => `${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`;

  test('lines are pushed while the body is open, however they are cut', async () => {
    stand.runs.add('r1', 'streaming');
    const raw = new RawConnection(stand.port);
    raw.send(head);
    const bytes = Buffer.from([0, 1, 2].map(line).join(''));
    const cut = bytes.indexOf('é') + 1;
    raw.send(Buffer.concat([Buffer.from(`${cut.toString(16)}\r\n`), bytes.subarray(0, cut), Buffer.from('\r\n')]));
    await new Promise((wait) => setTimeout(wait, 30));
    const rest = bytes.subarray(cut);
    raw.send(Buffer.concat([Buffer.from(`${rest.length.toString(16)}\r\n`), rest, Buffer.from('\r\n')]));
    await until(() => stand.runs.parts.length === 3);
    expect(raw.received).toBe('');
    expect(stand.runs.pushes).toEqual([{ n: 0, count: 3 }]);
    raw.send(`${chunk(line(3).trim())}0\r\n\r\n`);
    expect(await raw.status()).toBe(200);
    expect(raw.received).toContain('{"committed":4,"cancelled":false}');
    raw.socket.destroy();
  });

  test('a body slower than uWS allows by itself is read to its end', async () => {
    stand.runs.add('r1', 'streaming');
    const raw = new RawConnection(stand.port);
    raw.send(head + chunk(line(0)));
    await new Promise((wait) => setTimeout(wait, 17_000));
    expect(raw.closed).toBe(false);
    raw.send(`${chunk(line(1))}0\r\n\r\n`);
    expect(await raw.status()).toBe(200);
    expect(raw.received).toContain('{"committed":2,"cancelled":false}');
    raw.socket.destroy();
  });

  test('a body that stands still for 120 s is over, whatever came before', async () => {
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'performance'] });
    try {
      stand.runs.add('r1', 'streaming');
      const raw = new RawConnection(stand.port);
      raw.send(head + chunk(line(0)));
      await until(() => stand.runs.parts.length === 1);
      vi.advanceTimersByTime(116_000);
      raw.send(chunk(line(1)));
      await until(() => stand.runs.parts.length === 2);
      vi.advanceTimersByTime(116_000);
      await new Promise((wait) => setTimeout(wait, 50));
      expect(raw.received).toBe('');
      vi.advanceTimersByTime(8_000);
      expect(await raw.status()).toBe(400);
      expect(raw.received).toContain('"code":"bad_request"');
      raw.socket.destroy();
    } finally {
      vi.useRealTimers();
    }
  });

  test('[RUN3] a cancel is answered at once, with the body still open', async () => {
    stand.runs.add('r1', 'streaming');
    const raw = new RawConnection(stand.port);
    raw.send(head + chunk(line(0)));
    await until(() => stand.runs.parts.length === 1);
    await fetch(`${stand.url}/v1/runs/r1/cancel`, { method: 'POST', headers: as('ann') });
    expect(await raw.status()).toBe(200);
    expect(raw.received).toContain('{"committed":1,"cancelled":true}');
    raw.socket.destroy();
  });

  test('a push that waits makes the worker wait, and nothing is lost', async () => {
    stand.runs.add('r1', 'streaming');
    let release = () => {};
    stand.runs.gate = new Promise((resolve) => {
      release = resolve;
    });
    const raw = new RawConnection(stand.port);
    raw.send(head);
    for (let n = 0; n < 4000; n++) raw.send(chunk(line(n)));
    raw.send('0\r\n\r\n');
    await new Promise((wait) => setTimeout(wait, 200));
    expect(raw.received).toBe('');
    release();
    expect(await raw.status()).toBe(200);
    expect(raw.received).toContain('{"committed":4000,"cancelled":false}');
    raw.socket.destroy();
  });
});
