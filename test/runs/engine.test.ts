import { afterAll, beforeAll, expect, test } from 'vitest';
import { roomKey } from '../../src/core/keys.js';
import type { Part } from '../../src/protocol/parts.js';
import { isTerminal } from '../../src/protocol/runs.js';
import type { Assignment } from '../../src/protocol/worker.js';
import {
  delta,
  folded,
  Gateway,
  input,
  operatorWorker,
  random,
  sleep,
  stage,
  textOf,
  UnreliableExchange,
  user,
  worker,
} from './stage.js';

let on: Awaited<ReturnType<typeof stage>>;
beforeAll(async () => {
  on = await stage();
});
afterAll(() => on.end());

let models = 0;
const never = new AbortController().signal;

/** Two gateways with a reader each, over a bus that is as bad as asked. */
async function pair(seed = 1, faults = { lose: 0, repeat: 0, delayMs: 0 }, given = {}) {
  const exchange = new UnreliableExchange(random(seed), faults);
  const [a, b] = [new Gateway(on.store, exchange.bus(), given), new Gateway(on.store, exchange.bus(), given)];
  await Promise.all([a.join(), b.join()]);
  return {
    a,
    b,
    exchange,
    end() {
      a.kill();
      b.kill();
    },
  };
}

async function started(at: Gateway): Promise<{ run: string; fence: number; given: Assignment }> {
  const model = `e${++models}`;
  await at.runs.create(user, { room: 'lobby', model, input, mid: undefined });
  const given = await at.runs.claim(worker, { models: [model], waitMs: 1000 }, never);
  if (!given) throw new Error('nothing to claim');
  return { run: given.run.id, fence: given.fence, given };
}

async function until(what: () => boolean, ms = 8000): Promise<void> {
  const end = Date.now() + ms;
  while (!what()) {
    if (Date.now() > end) throw new Error(`did not happen: ${what}`);
    await sleep(10);
  }
}

async function sameEverywhere(run: string, gateways: Gateway[]): Promise<string> {
  await until(() => gateways.every(({ reader }) => isTerminal((reader.state(run) ?? 'queued') as never)));
  const stored = await on.store.get('acme', run);
  for (const { reader, problems } of gateways) {
    expect(problems).toEqual([]);
    expect(folded(reader.runs.get(run)?.parts ?? [])).toBe(folded(stored?.output ?? []));
    expect(reader.state(run)).toBe(stored?.state);
  }
  return textOf(stored?.output ?? []);
}

test('[RUN1] viewers on two gateways get the output at once and end with the same bytes', async () => {
  const { a, b, end } = await pair();
  const { run, fence } = await started(a);
  const reply = await a.runs.push(worker, { run, fence, n: 0, parts: [delta('Hel'), delta('lo')] });
  expect(reply.cancelled).toBe(false);
  await until(() => a.reader.text(run) === 'Hello' && b.reader.text(run) === 'Hello');
  const done = await a.runs.finish(worker, { run, fence, usage: { outputTokens: 2 } });
  expect(done).toMatchObject({ state: 'completed', length: 2 });
  expect(await sameEverywhere(run, [a, b])).toBe('Hello');
  // A reader of the other gateway may hear of the run when it is further already.
  const { states } = b.reader;
  expect(states).toEqual(['queued', 'claimed', 'streaming', 'completed'].slice(-states.length));
  expect(await a.runs.finish(worker, { run, fence })).toMatchObject({ state: 'completed', length: 2 });
  end();
});

test('[RUN1] every viewer has a prefix at all times, whatever the bus loses, repeats and reorders', async () => {
  for (const seed of [1, 2, 3, 4]) {
    const { a, b, end } = await pair(seed, { lose: 0.3, repeat: 0.2, delayMs: 30 });
    const { run, fence } = await started(a);
    const words = Array.from({ length: 120 }, (_, i) => `${i} `);
    const whole = words.join('');
    for (const { reader, problems } of [a, b]) {
      reader.watch = (of, text) => {
        if (of === run && !whole.startsWith(text)) problems.push(new Error(`seed ${seed}: not a prefix: ${text}`));
      };
    }
    for (let n = 0; n < words.length; n += 3) {
      await a.runs.push(worker, { run, fence, n, parts: words.slice(n, n + 3).map(delta) });
      await sleep(3);
    }
    await a.runs.finish(worker, { run, fence });
    expect(await sameEverywhere(run, [a, b]), `seed ${seed}`).toBe(whole);
    end();
  }
});

test('[RUN1] a gateway killed in mid-stream: the worker goes on at another from what is committed', async () => {
  const { a, b, end } = await pair(5, { lose: 0.1, repeat: 0.1, delayMs: 5 }, { commitMs: 150 });
  const { run, fence } = await started(a);
  const words = Array.from({ length: 60 }, (_, i) => `${i} `);
  for (let n = 0; n < 40; n++) {
    await a.runs.push(worker, { run, fence, n, parts: [delta(words[n] ?? '')] });
    await sleep(5);
  }
  a.kill();
  const { committed } = await b.runs.heartbeat(worker, { run, fence });
  expect(committed).toBeLessThan(40);
  await expect(b.runs.push(worker, { run, fence, n: 40, parts: [delta('x')] })).rejects.toMatchObject({
    code: 'out_of_order',
    expected: committed,
  });
  await b.runs.push(worker, { run, fence, n: committed, parts: words.slice(committed).map(delta) });
  await b.runs.finish(worker, { run, fence });
  expect(await sameEverywhere(run, [b])).toBe(words.join(''));
  end();
});

test('[RUN1] gateway and worker die together: viewers who had more get what is stored', async () => {
  const { a, b, end } = await pair(6, undefined, { commitMs: 5000, leaseMs: 1000, maxAttempts: 1 });
  const { run, fence } = await started(a);
  await a.runs.push(worker, { run, fence, n: 0, parts: [delta('kept'), { type: 'text-end', id: 't' }] });
  await until(() => b.reader.runs.get(run)?.next === 2);
  await sleep(200);
  await a.runs.push(worker, { run, fence, n: 2, parts: [delta(' lost')] });
  await until(() => b.reader.text(run) === 'kept lost');
  a.kill();
  expect(await sameEverywhere(run, [b])).toBe('kept');
  expect(b.reader.state(run)).toBe('failed');
  end();
});

test('[RUN2] a zombie with an old fence is refused and nobody sees its output', async () => {
  const { a, b, end } = await pair(7, undefined, { leaseMs: 1000 });
  const { run, fence, given } = await started(a);
  await a.runs.push(worker, { run, fence, n: 0, parts: [delta('old')] });
  await until(() => b.reader.text(run) === 'old');
  await until(() => b.reader.runs.get(run)?.attempt === 2);
  expect(b.reader.text(run)).toBe('');
  const again = await b.runs.claim(operatorWorker, { models: [given.run.model], waitMs: 2000 }, never);
  expect(again).toMatchObject({ attempt: 2, committed: 0, run: { id: run } });
  await expect(a.runs.push(worker, { run, fence, n: 1, parts: [delta('er')] })).rejects.toMatchObject({
    code: 'fenced',
  });
  await expect(a.runs.finish(worker, { run, fence })).rejects.toMatchObject({ code: 'fenced' });
  await b.runs.push(operatorWorker, { run, fence: again?.fence ?? 0, n: 0, parts: [delta('new')] });
  await b.runs.finish(operatorWorker, { run, fence: again?.fence ?? 0 });
  expect(await sameEverywhere(run, [a, b])).toBe('new');
  end();
});

test('[RUN2] a worker that fails a run gives it back; viewers start over', async () => {
  const { a, b, end } = await pair();
  const { run, fence, given } = await started(a);
  await a.runs.push(worker, { run, fence, n: 0, parts: [delta('half')] });
  const error = { code: 'oom', message: 'Out of memory.' };
  expect(await a.runs.fail(worker, { run, fence, error, retryable: true })).toMatchObject({
    state: 'queued',
    attempt: 2,
  });
  const again = await b.runs.claim(worker, { models: [given.run.model], waitMs: 1000 }, never);
  const next = { run, fence: again?.fence ?? 0 };
  await b.runs.push(worker, { ...next, n: 0, parts: [delta('other')] });
  expect(await b.runs.fail(worker, { ...next, error, retryable: false })).toMatchObject({ state: 'failed', error });
  expect(await sameEverywhere(run, [a, b])).toBe('other');
  end();
});

test('[RUN3] a cancel at any gateway reaches the worker, and viewers end alike', async () => {
  const { a, b, end } = await pair(8, undefined, { commitMs: 1000 });
  for (const at of [a, b]) {
    const { run, fence } = await started(a);
    let told = false;
    a.runs.onCancelled(run, () => {
      told = true;
    });
    await sleep(20);
    await a.runs.push(worker, { run, fence, n: 0, parts: [delta('so far')] });
    await until(() => b.reader.text(run) === 'so far');
    expect(await at.runs.cancel(user, run)).toMatchObject({ state: 'cancelled' });
    await until(() => told);
    expect(await a.runs.push(worker, { run, fence, n: 1, parts: [delta('more')] })).toMatchObject({ cancelled: true });
    expect(await a.runs.heartbeat(worker, { run, fence })).toMatchObject({ cancelled: true });
    expect(await a.runs.finish(worker, { run, fence })).toMatchObject({ state: 'cancelled' });
    const text = await sameEverywhere(run, [a, b]);
    if (at === a) expect(text).toBe('so far');
  }
  end();
});

test('[RUN4] a late joiner gets the output folded, then what follows', async () => {
  const { a, b, exchange, end } = await pair();
  const { run, fence } = await started(a);
  const parts: Part[] = [{ type: 'text-start', id: 't' }, ...Array.from({ length: 500 }, (_, i) => delta(`${i} `))];
  await a.runs.push(worker, { run, fence, n: 0, parts });
  await until(() => b.reader.runs.get(run)?.next === 501);
  await sleep(150);
  const late = await new Gateway(on.store, exchange.bus()).join();
  for (const gateway of [a, b, late]) {
    const found = gateway.live().find(({ id }) => id === run);
    expect(found?.next).toBe(501);
    expect(JSON.stringify(found?.output).length).toBeLessThanOrEqual(1.1 * folded(parts).length);
  }
  await a.runs.push(worker, { run, fence, n: 501, parts: [delta('end')] });
  await a.runs.finish(worker, { run, fence });
  expect(await sameEverywhere(run, [a, b, late])).toMatch(/499 end$/);
  late.kill();
  end();
});

test('a stream of one run continues from any part, on a gateway that has not opened the room', async () => {
  const { a, exchange, end } = await pair();
  const other = new Gateway(on.store, exchange.bus());
  const { run, fence } = await started(a);
  await a.runs.push(worker, { run, fence, n: 0, parts: ['a', 'b', 'c'].map(delta) });
  await sleep(120);
  const seen: string[] = [];
  const watcher = (from: { attempt: number; n: number } | undefined) =>
    other.runs.watch(
      user,
      run,
      from,
      {
        parts: (attempt, n, parts) => seen.push(`${attempt}:${n} ${textOf(parts)}`),
        reset: (attempt) => seen.push(`reset ${attempt}`),
        end: ({ state, length }) => seen.push(`${state} ${length}`),
        drained: async () => true,
      },
      never,
    );
  const watching = watcher({ attempt: 1, n: 1 });
  await until(() => seen.length > 0);
  await a.runs.push(worker, { run, fence, n: 3, parts: [delta('d')] });
  await until(() => seen.length > 1);
  await a.runs.finish(worker, { run, fence });
  await watching;
  expect(seen).toEqual(['1:1 bc', '1:3 d', 'completed 4']);
  seen.length = 0;
  await watcher({ attempt: 1, n: 2 });
  await watcher({ attempt: 7, n: 2 });
  expect(seen).toEqual(['1:2 c', '1:3 d', 'completed 4', 'reset 1', '1:0 abc', '1:3 d', 'completed 4']);
  other.kill();
  end();
});

test('[ISO1] [ERR1] who may do what', async () => {
  const { a, end } = await pair();
  const { run, fence } = await started(a);
  const stranger = { ...user, tenant: 'beta' };
  const guest = { ...user, capabilities: { '*': ['join' as const] } };
  const outsider = { ...user, capabilities: {} };
  const code = (of: Promise<unknown>) =>
    of.then(
      () => 'ok',
      (error) => error.code,
    );
  expect(await code(a.runs.cancel(stranger, run))).toBe('not_found');
  expect(await code(a.runs.cancel(outsider, run))).toBe('not_found');
  expect(await code(a.runs.cancel(user, 'none'))).toBe('not_found');
  expect(await code(a.runs.cancel(guest, run))).toBe('forbidden');
  expect(await code(a.runs.get(stranger, run))).toBe('not_found');
  expect(await code(a.runs.create(guest, { room: 'lobby', model: 'm', input, mid: undefined }))).toBe('forbidden');
  expect(await code(a.runs.push(user, { run, fence, n: 0, parts: [delta('x')] }))).toBe('forbidden');
  expect(await code(a.runs.push({ ...worker, tenant: 'beta' }, { run, fence, n: 0, parts: [delta('x')] }))).toBe(
    'not_found',
  );
  expect(await code(a.runs.claim(user, { models: ['m'], waitMs: 0 }, never))).toBe('forbidden');
  expect(await code(a.runs.push(worker, { run, fence, n: 0, parts: [delta('x'.repeat(70_000))] }))).toBe(
    'payload_too_large',
  );
  for (let n = 0; n < 8; n++) await a.runs.push(worker, { run, fence, n, parts: [delta('x'.repeat(64_000))] });
  expect(await code(a.runs.push(worker, { run, fence, n: 8, parts: [delta('x'.repeat(64_000))] }))).toBe(
    'payload_too_large',
  );
  expect(await a.runs.finish(worker, { run, fence })).toMatchObject({ length: 8 });
  expect(a.live(roomKey('beta', 'lobby'))).toEqual([]);
  end();
});

test("claims wait for a run at any gateway; one whose worker vanished is another's", async () => {
  const { a, b, end } = await pair();
  const model = `e${++models}`;
  expect(await b.runs.claim(worker, { models: [model], waitMs: 0 }, never)).toBeUndefined();
  const gone = new AbortController();
  const vanished = b.runs.claim(worker, { models: [model], waitMs: 5000 }, gone.signal);
  const waiting = b.runs.claim(operatorWorker, { models: [model], waitMs: 5000 }, never);
  await sleep(30);
  const creating = a.runs.create(user, { room: 'lobby', model, input, mid: undefined });
  gone.abort();
  const { run } = await creating;
  expect(await vanished).toBeUndefined();
  expect((await waiting)?.run.id).toBe(run.id);
  const left = b.runs.claim(worker, { models: [model], waitMs: 5000 }, never);
  await b.runs.drain();
  expect(await left).toBeUndefined();
  await expect(b.runs.claim(worker, { models: [model], waitMs: 0 }, never)).rejects.toMatchObject({ code: 'draining' });
  end();
});

test('[LIM1] one key waits for a bounded number of different lists of models', async () => {
  const { a, end } = await pair();
  const gone = new AbortController();
  const claims = Array.from({ length: 32 }, (_, n) =>
    a.runs.claim(worker, { models: [`kind-${n}`], waitMs: 5000 }, gone.signal),
  );
  const claim = (model: string) => a.runs.claim(worker, { models: [model], waitMs: 5000 }, gone.signal);
  await expect(claim('one-too-many')).rejects.toMatchObject({ code: 'overloaded', retryAfterMs: 1000 });
  claims.push(claim('kind-0'));
  gone.abort();
  expect(await Promise.all(claims)).toEqual(claims.map(() => undefined));
  end();
});

test('[DRN1] a drain commits what was announced', async () => {
  const { a, b, end } = await pair(9, undefined, { commitMs: 5000 });
  const { run, fence } = await started(a);
  await a.runs.push(worker, { run, fence, n: 0, parts: [delta('all of it')] });
  await a.runs.drain();
  expect(await on.store.get('acme', run)).toMatchObject({ committed: 1 });
  await expect(a.runs.push(worker, { run, fence, n: 1, parts: [delta('x')] })).rejects.toMatchObject({
    code: 'draining',
  });
  expect(await b.runs.push(worker, { run, fence, n: 1, parts: [delta('!')] })).toMatchObject({ cancelled: false });
  await b.runs.finish(worker, { run, fence });
  expect(await sameEverywhere(run, [a, b])).toBe('all of it!');
  end();
});
