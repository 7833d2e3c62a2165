import { mkdirSync, writeFileSync } from 'node:fs';
import { Session } from 'node:inspector';
import { join } from 'node:path';
import { isMainThread } from 'node:worker_threads';

// Loaded before a program: profiles its CPU from beginning to end, into the directory named by the query of this module.
const directory = new URL(import.meta.url).searchParams.get('into');

if (isMainThread && directory) {
  const session = new Session();
  session.connect();
  session.post('Profiler.enable');
  session.post('Profiler.setSamplingInterval', { interval: 500 });
  session.post('Profiler.start');
  process.on('exit', () => {
    session.post('Profiler.stop', (_error, { profile }) => {
      mkdirSync(directory, { recursive: true });
      writeFileSync(join(directory, `${process.pid}.cpuprofile`), JSON.stringify(profile));
    });
  });
}
