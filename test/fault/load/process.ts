import { createInterface } from 'node:readline';
import { type LoadOptions, loadConfig } from './config.js';
import { Load } from './load.js';

/*
 * A load process: `node --import tsx test/fault/load/process.ts` with its LoadConfig as JSON in LOAD_CONFIG. It prints a Status as
 * one line of JSON every second, at once when a phase changes, and takes commands on stdin, one a line:
 *
 *   quiet                    nothing new; the phase is `quiet` when everything has its answer
 *   stop                     closes, ends the history, exits with 0
 *   cut <n>                  the TCP connections of n clients are gone
 *   half-open <n>            n clients fall silent without closing and come back as new connections
 *   slow <n> <ms>            n readers read nothing for so long
 *   duplicate <n>            n readers get a second tab, for 15 s
 *   poison                   one publisher sends an event that Postgres refuses, among others
 *
 * The end of stdin is `stop`: a load process does not outlive who started it.
 */

const QUIET_MS = 60_000;
const STATUS_MS = 1000;

const load = new Load(loadConfig(JSON.parse(process.env.LOAD_CONFIG ?? '{}') as LoadOptions));

const say = () => process.stdout.write(`${JSON.stringify(load.status())}\n`);
const number = (text: string | undefined, fallback: number) => (text === undefined ? fallback : Number(text));

const commands: Record<string, (...words: string[]) => unknown> = {
  async quiet() {
    await load.quiet(QUIET_MS);
    say();
  },
  async stop() {
    await load.stop();
    say();
    process.exit(0);
  },
  cut: (n) => load.cut(number(n, 1)),
  'half-open': (n) => load.halfOpen(number(n, 1)),
  slow: (n, ms) => load.slow(number(n, 1), number(ms, 5000)),
  duplicate: (n) => load.duplicate(number(n, 1)),
  poison: () => load.poison(),
};

process.stdout.on('error', () => process.exit(1));
await load.start();
setInterval(say, STATUS_MS);
const input = createInterface({ input: process.stdin });
input.on('line', (line) => {
  const [name = '', ...words] = line.trim().split(/\s+/);
  const command = commands[name];
  if (command) void command(...words);
  else console.error(`no such command: ${line}`);
});
input.on('close', () => void commands.stop?.());
