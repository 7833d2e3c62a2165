import { randomUUID } from 'node:crypto';
import { Redis } from 'ioredis';
import { appendBatch } from '../src/db/append-batch.js';
import { Line } from '../src/db/line.js';
import { Servers } from '../src/db/servers.js';
import { toJsonText } from '../src/protocol/primitives.js';
import { pace, sleep } from './support/measure.js';
import { alternate, quantile, report } from './support/report.js';
import { onStage, openSession } from './support/stage.js';

const RATE = 500;
const ROOMS = 10;
const LINES = 10;
const SECONDS = 4;
const ROUNDS = 3;
const text = 'x'.repeat(160);
const by = toJsonText({ kind: 'user', id: 'publisher' });

/** From the send of a publish at one gateway to its arrival at a reader of another, both in this process. */
export async function run(): Promise<void> {
  await onStage({ redis: true }, async (stage) => {
    const [here, there] = [await stage.gateway(), await stage.gateway()];
    const publishers = await Promise.all(Array.from({ length: ROOMS }, (_, i) => openSession(here, `publisher-${i}`)));
    const reader = await openSession(there, 'reader');
    for (let i = 0; i < ROOMS; i++) await reader.call('room.join', { room: `latency-${i}` });
    const lines = Array.from(
      { length: LINES },
      () => new Line({ servers: new Servers(stage.postgres.url), prepare: true, connectTimeoutMs: 5000 }),
    );
    const redis = new Redis(stage.redis.url);
    const subscriber = new Redis(stage.redis.url);
    await subscriber.ssubscribe('floor');

    let took: number[] = [];
    const arrived = (payload: string) => {
      const sent = /"sent":([0-9.]+)/.exec(payload)?.[1];
      if (sent !== undefined) took.push(performance.now() - Number(sent));
    };
    reader.onPush = (buffer, start, end) => arrived(buffer.toString('latin1', start, end));
    subscriber.on('smessage', (_channel: string, payload: string) => arrived(payload));

    const measured = (send: (i: number) => void) => async () => {
      took = [];
      await pace(RATE, SECONDS, send);
      for (let waited = 0; took.length < RATE * SECONDS && waited < 5000; waited += 10) await sleep(10);
      if (took.length < RATE * SECONDS) throw new Error(`${took.length} of ${RATE * SECONDS} arrived`);
      return { p50: quantile(took, 0.5), p99: quantile(took, 0.99) };
    };
    const ours = measured((i) => {
      const publisher = publishers[i % ROOMS];
      const data = { sent: performance.now(), text };
      publisher?.wire.send(publisher.command('event.publish', { room: `latency-${i % ROOMS}`, type: 'note', data }));
    });
    const floor = measured((i) => {
      const line = lines[i % LINES];
      const data = toJsonText({ sent: performance.now(), text });
      const event = { tenant: 'demo', room: `floor-${i % ROOMS}`, mid: randomUUID(), type: 'note', data, by };
      if (line) void appendBatch(line.sql, [event]).then(() => redis.spublish('floor', data));
    });
    const rounds = await alternate(ROUNDS, ours, floor);
    const pick = (q: 'p50' | 'p99') => ({
      ours: rounds.ours.map((round) => round[q]),
      floor: rounds.floor.map((round) => round[q]),
    });
    report(`latency: publish to delivery at ${RATE} events/s in ${ROOMS} rooms, across two gateways`, [
      { what: 'p50', unit: 'ms', ...pick('p50'), aim: '≤ 2 ×' },
      { what: 'p99', unit: 'ms', ...pick('p99') },
    ]);
    for (const session of [...publishers, reader]) session.close();
    for (const one of [redis, subscriber]) one.disconnect();
    await Promise.all(lines.map((line) => line.close(1000)));
  });
}
