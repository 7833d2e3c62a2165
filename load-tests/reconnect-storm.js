import { check } from 'k6';
import exec from 'k6/execution';
import { Counter, Trend } from 'k6/metrics';
import {
  gaps,
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
 * CONNECTIONS readers lose their connections all at once, STORMS times during DURATION, and come back with their
 * positions, while RATE events per second are published. Nobody may miss or repeat an event, nobody may be told to
 * start over.
 */

const storms = Number(__ENV.STORMS || 3);
const resumeDuration = new Trend('tutti_resume_duration', true);
const resyncs = new Counter('tutti_resyncs');

export const options = {
  scenarios: { readers: once('storm', vus), publisher: once('publish', 1) },
  thresholds: { ...promises, tutti_resyncs: ['count==0'], tutti_resume_duration: ['p(95)<5000'] },
};

export const setup = () => ({ name: runName(), tokens: mint(20, ['join', 'publish']), startAt: Date.now() + 3000 });

/** Connects, joins from where the reader stands, and keeps it fed. */
async function attach(token, room, reader) {
  const began = Date.now();
  const early = [];
  let joined = false;
  const one = session(token, {
    onPush: (push, payload) => {
      if (push === 'room.resync') resyncs.add(1);
      if (push !== 'event') return;
      if (joined) reader.take(payload);
      else early.push(payload);
    },
  });
  if (!(await one.ready)) return one;
  const ack = await one.call('room.join', { room, from: reader.position || 'start' });
  if (!ack?.ok) return one;
  if (ack.resync) resyncs.add(1);
  if (reader.position) resumeDuration.add(Date.now() - began);
  reader.position = ack.position;
  joined = true;
  for (const event of early) reader.take(event);
  return one;
}

export async function storm({ name, tokens, startAt }) {
  gaps.add(0);
  resyncs.add(0);
  const mine = share(exec.scenario.iterationInTest).map((n) => ({
    token: tokens[n % tokens.length],
    room: `${name}-${n % rooms}`,
    reader: new Reader(undefined),
  }));
  const attachAll = () => Promise.all(mine.map(({ token, room, reader }) => attach(token, room, reader)));
  let open = await attachAll();
  for (let round = 1; round <= storms; round++) {
    await pause(startAt + (seconds * 1000 * round) / (storms + 1) - Date.now());
    for (const one of open) one.end();
    open = await attachAll();
  }
  await pause(startAt + seconds * 1000 + 5000 - Date.now());
  for (const [i, one] of open.entries()) {
    const { room, reader } = mine[i];
    const history = await one.call('event.history', { room, limit: 1 });
    check(history, {
      'every event arrived': (ack) => ack?.ok && reader.position && ack.head === reader.position.seq,
    });
    one.end();
  }
}

export async function publish({ name, tokens, startAt }) {
  await pause(startAt - Date.now());
  const one = session(tokens[0]);
  if (!(await one.ready)) return;
  const pending = [];
  for (let n = 0; n < seconds * rate; n++) {
    await pause(startAt + (n * 1000) / rate - Date.now());
    pending.push(one.call('event.publish', { room: `${name}-${n % rooms}`, type: 'load', data: { n } }));
  }
  const acks = await Promise.all(pending);
  check(acks, { 'every publish is acknowledged': (all) => all.every((ack) => ack?.ok) });
  one.end();
}
