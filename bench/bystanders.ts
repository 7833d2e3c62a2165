import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeTenant } from '../test/e2e/tenants-made.js';
import { type Owned, own } from '../test/support/owned.js';
import { each, pace, sleep } from './support/measure.js';
import { quantile, report } from './support/report.js';
import { onStage, openSession } from './support/stage.js';

interface Kind {
  sockets: number;
  /** How long bystanders are measured, quiet and beside it: for as long as a storm lasts, too. */
  seconds: number;
  /** Where the sockets are at first: on the gateway of the bystanders, or on another one that is killed. */
  at: 'here' | 'other';
}

const KINDS: Record<string, Kind> = {
  'slow-reader': { sockets: 30, seconds: 8, at: 'here' },
  busy: { sockets: 50, seconds: 8, at: 'here' },
  flood: { sockets: 50, seconds: 8, at: 'here' },
  storm: { sockets: 5000, seconds: 15, at: 'other' },
  cut: { sockets: 5000, seconds: 15, at: 'here' },
};
/** `KINDS=storm` measures that neighbour alone. */
const CHOSEN = (process.env.KINDS ?? Object.keys(KINDS).join(' ')).split(' ');
/** Publishes of the bystanders a second, over all their rooms. */
const RATE = 50;
const ROOMS = 10;
const ROUNDS = Number(process.env.ROUNDS ?? 3);
/** Tokens the neighbours share. */
const USERS = 100;

/**
 * What quiet tenants notice of a loud one on the same gateway: publish to delivery, quiet and beside each neighbour in turn. Limits
 * are the defaults.
 */
export async function run(): Promise<void> {
  const scratch = mkdtempSync(join(tmpdir(), 'tutti-crowd-'));
  try {
    const crowd = compile(scratch);
    await onStage({ redis: true, limits: 'default' }, async (stage) => {
      const gateway = await stage.gateway();
      const loud = await makeTenant(gateway.env, gateway.url, 'loud');
      const tokens = join(scratch, 'tokens');
      writeFileSync(tokens, (await each(USERS, 20, (n) => loud.mint(`loud-${n}`))).join('\n'));
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
      const measure = async (seconds: number) => {
        took = [];
        await pace(RATE, seconds, (i) => {
          const publisher = publishers[i % ROOMS];
          const data = { sent: performance.now(), text: 'x'.repeat(160) };
          publisher?.wire.send(publisher.command('event.publish', { room: `quiet-${i % ROOMS}`, type: 'note', data }));
        });
        for (let waited = 0; took.length < RATE * seconds && waited < 10_000; waited += 10) await sleep(10);
        if (took.length < RATE * seconds) throw new Error(`${took.length} of ${RATE * seconds} arrived`);
        return { p50: quantile(took, 0.5), p99: quantile(took, 0.99) };
      };

      await measure(5);
      const rows = [];
      for (const name of CHOSEN) {
        const kind = KINDS[name];
        if (!kind) throw new Error(`KINDS: ${name} is none of ${Object.keys(KINDS).join(', ')}`);
        const { sockets, seconds } = kind;
        const quiet: { p50: number; p99: number }[] = [];
        const beside: typeof quiet = [];
        let did = '';
        // The first round is not counted: what a gateway does for the first time is slow.
        for (let round = 0; round <= ROUNDS; round++) {
          const other = kind.at === 'other' ? await stage.gateway() : undefined;
          const ports = [other?.port ?? gateway.port, gateway.port];
          // As idle as Linux has it: in truth these clients are on other machines.
          const command = ['-i', '0', crowd, name, ...[...ports, sockets, seconds].map(String), tokens];
          const neighbour = own('chrt', command, { env: { PATH: process.env.PATH ?? '' } });
          await says(neighbour, 'ready');
          await sleep(1500);
          const alone = await measure(seconds);
          neighbour.signal('SIGUSR2');
          await other?.kill9();
          const together = await measure(seconds);
          did = await says(neighbour, 'done');
          await neighbour.end();
          await sleep(2000);
          process.stdout.write(
            `${name}, round ${round}: p99 ${alone.p99.toFixed(1)} → ${together.p99.toFixed(1)} ms\n`,
          );
          if (round === 0) continue;
          quiet.push(alone);
          beside.push(together);
        }
        for (const q of ['p99', 'p50'] as const) {
          const of = (all: typeof quiet) => all.map((one) => one[q]);
          const what = q === 'p99' ? `p99 beside ${name} (${did})` : 'p50';
          rows.push({ what, unit: 'ms', ours: of(beside), floor: of(quiet), aim: q === 'p99' ? '≤ 2 ×' : '' });
        }
      }
      report(`bystanders: publish to delivery of a quiet tenant, ${RATE} events/s (floor: its own quiet run)`, rows);
      for (const session of [...publishers, ...readers]) session.close();
    });
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** Builds the neighbours. @returns their program */
function compile(directory: string): string {
  const program = join(directory, 'crowd');
  const source = join(import.meta.dirname, 'support/crowd.c');
  const { error, stderr } = spawnSync('cc', ['-O2', '-Wall', '-Wextra', '-Werror', '-o', program, source]);
  if (error) throw new Error('bystanders needs a C compiler (cc): its loud neighbours have to cost next to nothing');
  if (stderr.length > 0) throw new Error(String(stderr));
  return program;
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
