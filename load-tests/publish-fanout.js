import { check } from 'k6';
import exec from 'k6/execution';
import {
  deliveryDuration,
  gaps,
  lost,
  mint,
  once,
  pause,
  promises,
  Reader,
  rate,
  rooms,
  runName,
  seconds,
  session,
  share,
  vus,
} from './lib/tutti.js';

/*
 * CONNECTIONS readers in ROOMS rooms, and one publisher per room; together they publish RATE events per second for
 * DURATION. Every reader checks that it got every event once and in order.
 */

const SETTLE_MS = 5000;

export const options = {
  scenarios: { readers: once('read', vus), publishers: once('publish', 1) },
  thresholds: {
    ...promises,
    tutti_commands_ok: ['rate==1'],
    tutti_connections_lost: ['count==0'],
    tutti_deliveries: ['count>0'],
    tutti_ack_duration: ['p(95)<2000'],
    tutti_delivery_duration: ['p(95)<2000'],
  },
};

export const setup = () => ({ name: runName(), tokens: mint(20, ['join', 'publish']), startAt: Date.now() + 3000 });

export async function read({ name, tokens, startAt }) {
  lost.add(0);
  gaps.add(0);
  const open = await Promise.all(
    share(exec.scenario.iterationInTest).map(async (n) => {
      let reader;
      const early = [];
      const take = (event) => {
        reader.take(event);
        deliveryDuration.add(Math.max(0, Date.now() - event.data.sentAt));
      };
      const one = session(tokens[n % tokens.length], {
        onPush: (push, payload) => {
          if (push !== 'event') return;
          if (reader) take(payload);
          else early.push(payload);
        },
      });
      if (!(await one.ready)) return undefined;
      const joined = await one.call('room.join', { room: `${name}-${n % rooms}`, from: 'start' });
      if (!joined?.ok) return undefined;
      reader = new Reader(joined.position);
      early.forEach(take);
      return { one, reader, room: `${name}-${n % rooms}` };
    }),
  );
  await pause(startAt + seconds * 1000 + SETTLE_MS - Date.now());
  for (const got of open) {
    if (!got) continue;
    const history = await got.one.call('event.history', { room: got.room, limit: 1 });
    check(history, { 'every event arrived': (ack) => ack?.ok && ack.head === got.reader.position.seq });
    got.one.end();
  }
}

export async function publish({ name, tokens, startAt }) {
  await pause(startAt - Date.now());
  const every = (1000 * rooms) / rate;
  await Promise.all(
    Array.from({ length: rooms }, async (_, n) => {
      const one = session(tokens[n % tokens.length]);
      if (!(await one.ready)) return;
      const room = `${name}-${n}`;
      const pending = [];
      for (let at = startAt; at < startAt + seconds * 1000; at += every) {
        await pause(at - Date.now());
        pending.push(
          one.call('event.publish', { room, type: 'load', data: { sentAt: Date.now(), text: 'x'.repeat(100) } }),
        );
      }
      const acks = await Promise.all(pending);
      const seqs = acks.map((ack) => (ack?.ok ? ack.position.seq : 0));
      check(seqs, { 'seqs follow one another': (all) => all.every((seq, i) => seq === i + 1) });
      one.end();
    }),
  );
}
