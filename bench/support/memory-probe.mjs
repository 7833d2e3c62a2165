import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

// Loaded before a program whose memory is measured: at SIGUSR2 it collects garbage and tells what is left.
setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc');

process.on('SIGUSR2', () => {
  for (let i = 0; i < 3; i++) collect();
  const { rss, heapUsed, external } = process.memoryUsage();
  process.stdout.write(`memory-probe ${JSON.stringify({ rss, heapUsed, external })}\n`);
});
