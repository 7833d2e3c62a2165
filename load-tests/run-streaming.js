import { check } from 'k6';
import exec from 'k6/execution';
import { Counter, Rate, Trend } from 'k6/metrics';
import { mint, once, pause, promises, rooms, runName, Session, seconds, session, share, vus } from './lib/tutti.js';

/*
 * CONNECTIONS viewers in ROOMS rooms. In each room runs are created one after the other for DURATION; WORKERS
 * workers, with sockets of their own, stream TOKENS parts into each, TOKENS_PER_SECOND of them. Every viewer checks
 * that the output of every run it saw ends whole and in order.
 */

const workers = Number(__ENV.WORKERS || rooms);
const tokensPerRun = Number(__ENV.TOKENS || 60);
const tokensPerSecond = Number(__ENV.TOKENS_PER_SECOND || 50);
const model = 'load-test';

const firstToken = new Trend('tutti_run_first_token', true);
const tokenDuration = new Trend('tutti_token_delivery_duration', true);
const tokens = new Counter('tutti_tokens_delivered');
const broken = new Counter('tutti_outputs_broken');
const whole = new Counter('tutti_outputs_whole');
const completed = new Rate('tutti_runs_completed');

export const options = {
  scenarios: { viewers: once('view', vus), creators: once('create', 1), workers: once('work', 1) },
  thresholds: {
    ...promises,
    tutti_outputs_broken: ['count==0'],
    tutti_outputs_whole: ['count>0'],
    tutti_runs_completed: ['rate==1'],
    tutti_tokens_delivered: ['count>0'],
    tutti_run_first_token: ['p(95)<3000'],
    tutti_token_delivery_duration: ['p(95)<2000'],
  },
};

export const setup = () => ({
  name: runName(),
  credentials: mint(20, ['join', 'run.create', 'run.cancel']),
  startAt: Date.now() + 3000,
});

/** A run lasts this long, in ms; viewers and workers wait for the last one. */
const RUN_MS = (tokensPerRun / tokensPerSecond) * 1000;
const endOf = (startAt) => startAt + seconds * 1000 + RUN_MS + 8000;

/** What one viewer has of one run. Part `n` is the text `<n> <time it was made> `. */
class Output {
  constructor() {
    this.next = 0;
    this.text = '';
  }

  take({ n, parts }) {
    for (const [i, part] of parts.entries()) {
      if (n + i < this.next) continue; // sent again after a hiccup of a worker or a gateway
      if (n + i > this.next) broken.add(1);
      this.next = n + i + 1;
      if (part.type !== 'text-delta') continue;
      this.text += part.delta;
      const made = part.delta.trim().split(' ');
      tokens.add(made.length / 2);
      tokenDuration.add(Math.max(0, Date.now() - Number(made[made.length - 1])));
    }
  }

  whole() {
    const words = this.text.trim().split(' ');
    return words.length === 2 * tokensPerRun && words.every((word, i) => i % 2 === 1 || Number(word) === i / 2);
  }
}

export async function view({ name, credentials, startAt }) {
  broken.add(0);
  const open = share(exec.scenario.iterationInTest).map(async (n) => {
    const outputs = new Map();
    const one = session(credentials[n % credentials.length], {
      onPush: (push, payload) => {
        if (push === 'run.chunk') {
          if (!outputs.has(payload.run)) outputs.set(payload.run, new Output());
          outputs.get(payload.run).take(payload);
        } else if (push === 'run.reset') {
          outputs.set(payload.run, new Output());
        } else if (push === 'event' && payload.type === 'run.completed') {
          const run = payload.data.run.id || payload.data.run;
          const output = outputs.get(run);
          if (output?.whole()) whole.add(1);
          else {
            broken.add(1);
            console.error(`run ${run}: ${output ? output.text : 'no output'}`);
          }
        }
      },
    });
    if (!(await one.ready)) return;
    await one.call('room.join', { room: `${name}-${n % rooms}`, from: 'latest' });
    await pause(endOf(startAt) - Date.now());
    one.end();
  });
  await Promise.all(open);
}

export async function create({ name, credentials, startAt }) {
  await pause(startAt - Date.now());
  const one = Array.from({ length: rooms }, async (_, n) => {
    const room = `${name}-${n}`;
    const waiting = new Map();
    const began = new Map();
    const client = session(credentials[n % credentials.length], {
      onPush: (push, payload) => {
        if (push === 'run.chunk' && began.has(payload.run)) {
          firstToken.add(Date.now() - began.get(payload.run));
          began.delete(payload.run);
        }
        if (push !== 'run.state' || !['completed', 'failed', 'cancelled', 'expired'].includes(payload.state)) return;
        const resolve = waiting.get(payload.run);
        if (resolve) resolve(payload.state);
      },
    });
    if (!(await client.ready)) return;
    await client.call('room.join', { room });
    while (Date.now() < startAt + seconds * 1000) {
      const createdAt = Date.now();
      const ack = await client.call('run.create', { room, model, input: { prompt: 'count' } });
      if (!check(ack, { 'a run is created': (got) => got?.ok })) break;
      began.set(ack.run.id, createdAt);
      const state = await Promise.race([
        new Promise((resolve) => waiting.set(ack.run.id, resolve)),
        pause(endOf(startAt) - Date.now()).then(() => 'never'),
      ]);
      completed.add(state === 'completed');
      if (state !== 'completed') console.error(`run ${ack.run.id} ended as ${state}`);
    }
    client.end();
  });
  await Promise.all(one);
}

export async function work({ startAt }) {
  const all = Array.from({ length: workers }, async () => {
    const worker = new Session(
      { key: __ENV.WORKER_KEY },
      { namespace: '/worker', onPush: (push, assigned) => push === 'run.assigned' && stream(worker, assigned) },
    );
    if (!(await worker.ready)) return;
    await worker.call('worker.ready', { models: [model], capacity: 4 });
    await pause(endOf(startAt) - Date.now());
    worker.end();
  });
  await Promise.all(all);
}

async function stream(worker, { run, fence }) {
  let n = 0;
  const push = (parts) => {
    const sent = worker.call('run.push', { run: run.id, fence, n, parts });
    n += parts.length;
    return sent;
  };
  const pending = [push([{ type: 'start' }, { type: 'text-start', id: '0' }])];
  for (let i = 0; i < tokensPerRun; i++) {
    pending.push(push([{ type: 'text-delta', id: '0', delta: `${i} ${Date.now()} ` }]));
    await pause(1000 / tokensPerSecond);
  }
  pending.push(push([{ type: 'text-end', id: '0' }, { type: 'finish' }]));
  await Promise.all(pending);
  await worker.call('run.finish', { run: run.id, fence, usage: { outputTokens: tokensPerRun } });
}
