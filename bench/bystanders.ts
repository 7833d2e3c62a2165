import { setPriority } from 'node:os';
import { join, resolve } from 'node:path';
import { makeTenant } from '../test/e2e/tenants-made.js';
import { type Owned, own } from '../test/support/owned.js';
import { each, pace, sleep } from './support/measure.js';
import { quantile, report } from './support/report.js';
import { onStage, openSession } from './support/stage.js';

/** `KINDS=storm` measures that neighbour alone. */
const KINDS = (process.env.KINDS ?? 'slow-reader flood storm').split(' ');
/** Servers the neighbour goes to: ours, and one that has nothing to do with us, which tells what it costs to share a machine. */
const PLACES = ['here', 'elsewhere'] as const;
/** Publishes of the bystanders a second, over all their rooms. */
const RATE = 200;
const ROOMS = 10;
const SECONDS = 5;
const ROUNDS = Number(process.env.ROUNDS ?? 3);
/** The loud neighbours' processes are on other machines in truth: here they yield to gateway and bystanders. */
const NICE = 19;
/** Tokens the neighbours share. */
const USERS = 100;

/**
 * What quiet tenants notice of a loud one on the same gateway: publish to delivery, quiet and beside each neighbour in turn. Limits
 * are the defaults, but for the sessions of one user.
 */
export async function run(): Promise<void> {
  await onStage({ redis: false }, async (stage) => {
    const limits = {
      TUTTI_COMMANDS_PER_SECOND: '100',
      TUTTI_TENANT_COMMANDS_PER_SECOND: '10000',
      TUTTI_TENANT_PUBLISHES_PER_SECOND: '2000',
    };
    const gateway = await stage.gateway(limits);
    const loud = await makeTenant(gateway.env, gateway.url, 'loud');
    const tokens = await each(USERS, 20, (n) => loud.mint(`loud-${n}`));
    const publishers = await Promise.all(Array.from({ length: ROOMS }, (_, i) => openSession(gateway, `p-${i}`)));
    const readers = await Promise.all(Array.from({ length: ROOMS }, (_, i) => openSession(gateway, `r-${i}`)));
    let took: number[] = [];
    for (const [i, reader] of readers.entries()) {
      reader.onPush = (buffer, start, end) => {
        const sent = /"sent":([0-9.]+)/.exec(buffer.toString('latin1', start, end))?.[1];
        if (sent !== undefined) took.push(performance.now() - Number(sent));
      };
      await reader.call('room.join', { room: `quiet-${i}` });
    }
    const measure = async () => {
      took = [];
      await pace(RATE, SECONDS, (i) => {
        const publisher = publishers[i % ROOMS];
        const data = { sent: performance.now(), text: 'x'.repeat(160) };
        publisher?.wire.send(publisher.command('event.publish', { room: `quiet-${i % ROOMS}`, type: 'note', data }));
      });
      for (let waited = 0; took.length < RATE * SECONDS && waited < 10_000; waited += 10) await sleep(10);
      if (took.length < RATE * SECONDS) throw new Error(`${took.length} of ${RATE * SECONDS} arrived`);
      return { p50: quantile(took, 0.5), p99: quantile(took, 0.99) };
    };

    await measure();
    const rows = [];
    for (const kind of KINDS) {
      for (const place of PLACES) {
        const port = place === 'here' ? gateway.port : (await stage.floor('elsewhere')).port;
        const quiet: { p50: number; p99: number }[] = [];
        const beside: typeof quiet = [];
        let did = '';
        // The first round is not counted: what a gateway does for the first time is slow.
        for (let round = 0; round <= ROUNDS; round++) {
          const neighbour = startLoud({ kind, port, tokens, seconds: SECONDS });
          await says(neighbour, 'ready');
          await sleep(1500);
          const alone = await measure();
          neighbour.signal('SIGUSR2');
          const together = await measure();
          did = await says(neighbour, 'done');
          await neighbour.end();
          await sleep(1000);
          if (round === 0) continue;
          quiet.push(alone);
          beside.push(together);
        }
        for (const q of ['p99', 'p50'] as const) {
          const of = (all: typeof quiet) => all.map((one) => one[q]);
          const aim = q === 'p99' && place === 'here' ? '≤ 2 ×' : '';
          const what = `${q} beside ${kind} ${place} (${did})`;
          rows.push({ what, unit: 'ms', ours: of(beside), floor: of(quiet), aim });
        }
      }
    }
    report(`bystanders: publish to delivery of a quiet tenant, ${RATE} events/s (floor: its own quiet run)`, rows);
    for (const session of [...publishers, ...readers]) session.close();
  });
}

function startLoud(loud: { kind: string; port: number; tokens: string[]; seconds: number }): Owned {
  const { PATH = '', HOME = '' } = process.env;
  const program = join(import.meta.dirname, 'support/loud.ts');
  const child = own(process.execPath, ['--import', 'tsx', program], {
    cwd: resolve(import.meta.dirname, '..'),
    env: { PATH, HOME, LOUD: JSON.stringify(loud) },
  });
  setPriority(child.pid, NICE);
  return child;
}

/** Resolves with the rest of the line that begins with `word`. */
async function says(process: Owned, word: string): Promise<string> {
  for (let waited = 0; waited < 120_000; waited += 20) {
    const line = new RegExp(`^${word}(.*)$`, 'm').exec(process.output());
    if (line) return line[1]?.trim() ?? '';
    if (!process.running()) break;
    await sleep(20);
  }
  throw new Error(`the neighbour did not say ${word}: ${process.output()}`);
}
