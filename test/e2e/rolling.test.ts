import { randomBytes } from 'node:crypto';
import { afterEach, expect, test } from 'vitest';
import { foldParts } from '../../src/protocol/fold.js';
import { runWorker } from '../../src/worker/index.js';
import { eventually } from '../support/eventually.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { freePort } from '../support/ports.js';
import { freshDatabase } from '../support/postgres.js';
import { sharedRedisUrl } from '../support/redis.js';
import { DEV_WORKER_KEY, devToken } from '../support/tokens.js';
import { Publisher } from './log-publisher.js';
import { expectWholeLog } from './log-table.js';
import { BareReader, type RollingReader, SdkReader, StreamReader } from './rolling-readers.js';
import { RequestWorker } from './rolling-worker.js';
import { startRoundRobin } from './round-robin.js';
import { scoreOf } from './run-score.js';
import { call, sleep, storedRun, Undo, userToken } from './run-stage.js';

/*
 * The rolling restart of deploy/README.md: three gateways behind one address, ended and started again one after another
 * while everybody goes on.
 */

const undo = new Undo();
afterEach(() => undo.all());

const READERS_OF_A_KIND = 15;
const PARTS = 90;

test('[DRN2] three gateways restarted one after another under load: nothing is lost, nobody is away for long', async () => {
  const databaseUrl = undo.add(await freshDatabase(), ({ drop }) => drop()).url;
  const env = {
    DATABASE_URL: databaseUrl,
    REDIS_URL: sharedRedisUrl(),
    TUTTI_REDIS_PREFIX: `e2e-${randomBytes(5).toString('hex')}:`,
    TUTTI_DRAIN_NOTICE_MS: '500',
  };
  const ports = [await freePort(), await freePort(), await freePort()];
  const start = async (port: number) => undo.add(await startGateway({ env, port }), (one) => one.stop());
  const gateways: GatewayProcess[] = [];
  gateways.push(...(await Promise.all(ports.map(start))));
  const { url } = undo.add(await startRoundRobin(ports), (one) => one.close());

  const room = 'rolling';
  const publishers = await Promise.all(
    [0, 1, 2, 3].map(async (n) => new Publisher(`p${n}`, [url], room, await devToken({ user: `p${n}` }))),
  );
  const newest = () => Math.max(0, ...publishers.map(({ acked }) => acked.at(-1)?.seq ?? 0));
  const readers: RollingReader[] = [];
  for (const Kind of [BareReader, SdkReader, StreamReader]) {
    for (let n = 0; n < READERS_OF_A_KIND; n += 1) {
      const token = await userToken(`${Kind.name}-${n}`);
      readers.push(undo.add<RollingReader>(new Kind(url, room, token, newest), (one) => one.stop()));
    }
  }
  let over = false;
  const publishing = Promise.all(publishers.map((one) => one.publish(() => over, 20)));

  // A worker on a socket and one that makes a request for everything; runs are always under way at both.
  const sdk = runWorker({
    url,
    key: DEV_WORKER_KEY,
    models: ['sdk'],
    capacity: 4,
    async *handle({ run }) {
      for (const part of scoreOf(run.id, PARTS)) {
        yield part;
        await sleep(15);
      }
    },
  });
  undo.add(sdk, () => sdk.stop(0));
  undo.add(new RequestWorker(url, 'request', ({ run }) => scoreOf(run.id, PARTS)), (one) => one.stop());
  const runs: string[] = [];
  const asker = await userToken('asker');
  const ask = async (model: string) => {
    const mid = `run-${runs.length}-${model}`;
    for (;;) {
      const asked = await call(url, asker, 'POST', `/v1/rooms/runs-${model}/runs`, { model, input: 1, mid }).catch(
        () => ({ status: 503, body: undefined }),
      );
      if (asked.status === 201 || asked.status === 200)
        return runs.push((asked.body as { run: { id: string } }).run.id);
      if (asked.status !== 503) throw new Error(JSON.stringify(asked));
      await sleep(100);
    }
  };
  const asking = (async () => {
    while (!over) {
      await Promise.all([ask('sdk'), ask('request')]);
      await sleep(1200);
    }
  })();

  await eventually('everybody reads', () => readers.every(({ seq }) => seq > 20));
  const restarts: number[] = [];
  for (const [n, port] of ports.entries()) {
    const leaving = gateways[n];
    restarts.push(performance.now());
    expect(await leaving?.term()).toBe(0);
    gateways[n] = await start(port);
    await eventually('all are back', () => readers.every(({ away }) => !away));
    const goOn = newest() + 50;
    await eventually('all read on', () => readers.every(({ seq }) => seq >= goOn));
  }
  over = true;
  await Promise.all([publishing, asking]);

  const mids = await expectWholeLog(databaseUrl, room, publishers);
  for (const reader of readers) {
    await eventually('a reader has all', () => reader.seq === mids.length);
    expect(reader.faults).toEqual([]);
    expect(reader.seqs).toHaveLength(mids.length);
  }
  for (const run of runs) {
    const done = async () => (await storedRun(url, asker, run)).state === 'completed';
    await eventually(`run ${run} is completed`, done, 30_000);
    const stored = await storedRun(url, asker, run);
    expect(stored, 'by the worker that began it').toMatchObject({ attempt: 1, length: PARTS });
    expect(stored.output).toEqual(foldParts(scoreOf(run, PARTS)));
  }

  const absences = readers.flatMap((reader) => reader.absences);
  const away = absences.map(({ ms }) => Math.round(ms)).sort((a, b) => a - b);
  const longest = away.at(-1) ?? 0;
  const waited = Math.max(...publishers.map(({ longestMs }) => longestMs));
  const retries = publishers.reduce((sum, one) => sum + one.retries, 0);
  console.log(
    `rolling restart: ${runs.length} runs, ${mids.length} events; ${away.length} absences of ${readers.length} readers: ` +
      `median ${away[away.length >> 1]} ms, longest ${longest} ms; ` +
      `longest wait of a publisher ${Math.round(waited)} ms, ${retries} attempts in vain`,
  );
  // Each reader was on some gateway and moved with it; some more than once.
  expect(readers.every((reader) => reader.absences.length >= 1)).toBe(true);
  expect(longest).toBeLessThan(5000);
  expect(waited).toBeLessThan(5000);
  // They came back one by one, not in one quarter of a second.
  for (const restart of restarts) {
    const moved = absences.filter(
      ({ back }) => back > restart && back < (restarts.find((at) => at > restart) ?? Infinity),
    );
    const quarters = new Map<number, number>();
    for (const { back } of moved) {
      const quarter = Math.floor((back - restart) / 250);
      quarters.set(quarter, (quarters.get(quarter) ?? 0) + 1);
    }
    expect(quarters.size).toBeGreaterThan(2);
  }
}, 120_000);
