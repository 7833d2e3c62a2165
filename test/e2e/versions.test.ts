import { randomBytes } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { foldParts } from '../../src/protocol/fold.js';
import type { PushReply } from '../../src/protocol/worker.js';
import { eventually } from '../support/eventually.js';
import { startGateway } from '../support/gateway.js';
import { freshDatabase } from '../support/postgres.js';
import { previousVersion } from '../support/previous.js';
import { sharedRedisUrl } from '../support/redis.js';
import { devToken } from '../support/tokens.js';
import { Reader } from './feed-reader.js';
import { RoomStream } from './feed-stream.js';
import { Publisher } from './log-publisher.js';
import { expectWholeLog } from './log-table.js';
import { scoreOf } from './run-score.js';
import { storedRun, Undo, userToken } from './run-stage.js';
import { RunViewer } from './run-viewers.js';
import { BareWorker, play } from './run-workers.js';

/*
 * A rolling upgrade has gateways of two versions on one database and one Redis for minutes; a downgrade has them again,
 * on a schema that is newer than one of them.
 */

let previous: Awaited<ReturnType<typeof previousVersion>>;
beforeAll(async () => {
  previous = await previousVersion();
}, 120_000);
afterAll(() => previous?.end());

const undo = new Undo();
beforeEach((context) => {
  if (!previous) context.skip('the commit of the version before is not in this clone');
});
afterEach(() => undo.all());

async function stage() {
  const { url } = undo.add(await freshDatabase(), ({ drop }) => drop());
  const env = {
    DATABASE_URL: url,
    REDIS_URL: sharedRedisUrl(),
    TUTTI_REDIS_PREFIX: `e2e-${randomBytes(5).toString('hex')}:`,
  };
  const gateway = async (version: 'old' | 'new', port?: number) => {
    const main = version === 'old' && previous ? { main: previous.main } : {};
    return undo.add(await startGateway({ env, ...main, ...(port ? { port } : {}) }), (one) => one.stop());
  };
  return { databaseUrl: url, gateway };
}

test('[VER1][LOG3][FEED1] an upgrade and the downgrade after it, gateway by gateway, under load', async () => {
  const { databaseUrl, gateway } = await stage();
  let [a, b] = [await gateway('old'), await gateway('old')];
  const urls = [a.url, b.url];
  const room = 'upgraded';
  const publishers = await Promise.all(
    [0, 1, 2].map(async (n) => new Publisher(`p${n}`, urls, room, await devToken({ user: `p${n}` }))),
  );
  const readers: Reader[] = [];
  for (const first of [0, 1]) {
    const reader = new Reader(urls, room, await userToken(`r${first}`), first);
    readers.push(undo.add(await reader.follow(), (one) => one.stop()));
  }
  let over = false;
  const publishing = Promise.all(publishers.map((one) => one.publish(() => over, 10)));
  const moreFromAll = async (count: number) => {
    const due = publishers.map(({ acked }) => acked.length + count);
    await eventually('all publish', () => publishers.every(({ acked }, n) => acked.length >= (due[n] ?? 0)));
  };
  await moreFromAll(20);
  for (const version of ['new', 'old'] as const) {
    expect(await a.term()).toBe(0);
    a = await gateway(version, a.port);
    await moreFromAll(30); // the two versions side by side
    expect(await b.term()).toBe(0);
    b = await gateway(version, b.port);
    await moreFromAll(20);
  }
  over = true;
  await publishing;
  const mids = await expectWholeLog(databaseUrl, room, publishers);
  for (const reader of readers) {
    await reader.reaches(mids.length);
    expect(reader.faults).toEqual([]);
    expect(reader.mids).toEqual(mids);
  }
}, 120_000);

test('[VER1][RUN1] events, output of runs and cancels cross from one version to the other, both ways', async () => {
  const { gateway } = await stage();
  const newer = await gateway('new'); // first, so that the older one finds a schema it does not know
  const older = await gateway('old');
  for (const [near, far] of [
    [older, newer],
    [newer, older],
  ] as const) {
    const room = near === older ? 'from-older' : 'from-newer';
    const token = await userToken('ann');
    const score = (_run: string, attempt: number) => scoreOf(`w-${attempt}`, 40);
    const viewers: RunViewer[] = [];
    for (const { url } of [near, far]) {
      viewers.push(undo.add(await RunViewer.join(url, { room, token, score }), (one) => one.close()));
    }
    const [nearViewer, farViewer] = viewers;
    if (!nearViewer || !farViewer) throw new Error('no viewers');
    const stream = undo.add(await RoomStream.open(far.url, token, `/v1/rooms/${room}/stream`), (one) => one.close());

    const ask = () => farViewer.client.call('run.create', { room, model: 'score', input: 1 });
    const worker = undo.add(await BareWorker.connect(near.url), (one) => one.close());
    const { run } = await ask();
    const assignment = await worker.assignment(run.id);
    const parts = scoreOf('w-1', 40);
    await play(worker, assignment, parts, { to: 20 });
    await farViewer.reaches(run.id, 20);
    worker.close();
    // The worker goes on at the gateway of the other version, under the same fence.
    const moved = undo.add(await BareWorker.connect(far.url, { capacity: 0 }), (one) => one.close());
    const { committed } = await moved.ask<PushReply>('run.heartbeat', { run: run.id, fence: assignment.fence });
    await play(moved, assignment, parts, { from: committed });
    await moved.finish(assignment, 40);
    for (const viewer of viewers) {
      const { data } = await viewer.ended(run.id);
      expect(JSON.stringify(data.message.parts)).toBe(JSON.stringify(foldParts(parts)));
    }
    expect(await storedRun(near.url, token, run.id)).toMatchObject({ state: 'completed', length: 40 });

    const again = undo.add(await BareWorker.connect(near.url), (one) => one.close());
    const second = (await ask()).run;
    await again.assignment(second.id);
    await farViewer.client.call('run.cancel', { run: second.id });
    await again.client.until(() => again.cancelled.has(second.id), 'the cancel');
    for (const viewer of viewers) await viewer.ended(second.id);
    again.close();

    for (const from of viewers) {
      const { mid } = await from.client.call('event.publish', { room, type: 'chat', data: { é: '🎻' } });
      for (const to of viewers) await to.client.waitFor('event', (event) => event.mid === mid);
    }
    await eventually('the stream has all', () => stream.seqs.length === nearViewer.events.length);
    expect(viewers.flatMap(({ faults }) => faults)).toEqual([]);
    expect(nearViewer.events).toEqual(farViewer.events);
  }
}, 120_000);
