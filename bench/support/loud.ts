import { Session } from '../../test/support/session.js';
import { each, pace, sleep } from './measure.js';

/*
 * The loud neighbours of `bench/bystanders.ts`, in a process of their own. It says `ready`, begins at SIGUSR2, and says
 * `done` with what it did. Configured by LOUD: { kind, port, tokens, seconds }.
 */

interface Loud {
  kind: 'slow-reader' | 'flood' | 'storm';
  port: number;
  tokens: string[];
  seconds: number;
}

const { kind, port, tokens, seconds } = JSON.parse(process.env.LOUD ?? '{}') as Loud;
const open = (n: number) => Session.open({ port, auth: { token: tokens[n % tokens.length] ?? '' } });
const say = (line: string) => process.stdout.write(`${line}\n`);

const go = new Promise<void>((resolve) => process.once('SIGUSR2', () => resolve()));

/** A room of 30 readers at 90 events of 8 kB a second, of which 25 readers do not read at all, until they are closed as slow. */
async function slowReader(): Promise<string> {
  const room = 'crowd';
  const readers = await each(30, 30, open);
  await Promise.all(readers.map((reader) => reader.call('room.join', { room })));
  const publisher = await open(0);
  say('ready');
  await go;
  for (const reader of readers.slice(0, 25)) reader.wire.stall();
  const data = 'x'.repeat(8000);
  await pace(90, seconds, () => publisher.wire.send(publisher.command('event.publish', { room, type: 'note', data })));
  return `${90 * seconds} events to ${readers.length} readers`;
}

/** 50 sockets that publish 10 times as fast as they may, each into a room of its own. */
async function flood(): Promise<string> {
  const sessions = await each(50, 50, open);
  let [ok, refused] = [0, 0];
  for (const session of sessions) {
    session.onAck = (buffer, start, end) => {
      if (buffer.toString('latin1', start, Math.min(end, start + 40)).includes('"ok":true')) ok++;
      else refused++;
    };
  }
  say('ready');
  await go;
  await pace(50 * 900, seconds, (i) => {
    const session = sessions[i % sessions.length];
    const room = `flood-${i % sessions.length}`;
    session?.wire.send(session.command('event.publish', { room, type: 'note', data: 'x'.repeat(200) }));
  });
  await sleep(200);
  return `${ok} events stored, ${refused} refused`;
}

/** 5,000 sockets in 50 rooms that lose their connections at once and come back as socket.io-client does: after 0.5 to 1.5 s. */
async function storm(): Promise<string> {
  const count = 5000;
  const room = (n: number) => `storm-${n % 50}`;
  const join = async (n: number, from: unknown) => {
    const session = await open(n);
    const { position } = await session.call('room.join', { room: room(n), from });
    return { session, position };
  };
  const before = await each(count, 100, (n) => join(n, 'start'));
  say('ready');
  await go;
  for (const { session } of before) session.close();
  const started = performance.now();
  let again = 0;
  await Promise.all(
    before.map(async ({ position }, n) => {
      await sleep(500 + Math.random() * 1000);
      for (;;) {
        try {
          return await join(n, position);
        } catch {
          again++;
          await sleep(1000 + Math.random() * 1000);
        }
      }
    }),
  );
  return `${count} back after ${((performance.now() - started) / 1000).toFixed(1)} s, ${again} tries failed`;
}

const end = new Promise<void>((resolve) => process.once('SIGTERM', () => resolve()));
const done = await { 'slow-reader': slowReader, flood, storm }[kind]();
say(`done ${done}`);
// Its sockets stay open until nobody measures any more.
await end;
process.exit(0);
