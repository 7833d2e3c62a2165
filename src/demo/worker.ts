import { fstatSync } from 'node:fs';
import { readDemoWorkerConfig } from '../config.js';
import { type Handler, RunFailure, runWorker } from '../worker/index.js';
import { streamNgram } from './answer.js';
import { conversationOf } from './conversation.js';
import { readCorpus } from './corpus.js';
import { NgramModel } from './ngram.js';
import { streamCompletion } from './openai.js';

/*
 * The demo worker: a process of its own that serves the model `demo` like any other worker. It ends with its parent
 * and on SIGTERM.
 */

const config = readDemoWorkerConfig();
const ngram = config.OPENAI_BASE_URL ? undefined : new NgramModel(readCorpus());

const handle: Handler = (assignment, { signal }) => {
  const messages = conversationOf(assignment.input);
  if (!messages) throw new RunFailure('bad_input', 'The input is neither { messages } nor { prompt }.');
  if (ngram) return streamNgram(ngram, messages, signal);
  const server = { baseUrl: config.OPENAI_BASE_URL ?? '', apiKey: config.OPENAI_API_KEY, model: config.OPENAI_MODEL };
  return streamCompletion(server, messages, signal);
};

const worker = runWorker({
  url: config.TUTTI_URL,
  key: config.TUTTI_WORKER_KEY,
  models: ['demo'],
  capacity: 8,
  handle,
});

let ending = false;
/** What is left unsaid after the grace is said by another worker: the run's lease runs out. */
function end(graceMs: number): void {
  if (ending) return;
  ending = true;
  void worker.stop(graceMs).then(() => process.exit(0));
}

process.once('SIGTERM', () => end(5000));
// The terminal sends SIGINT to the whole group; the parent decides when this process ends.
process.on('SIGINT', () => undefined);
if (process.connected) process.once('disconnect', () => end(0));
else if (fstatSync(0).isFIFO()) {
  process.stdin.once('end', () => end(0));
  process.stdin.resume();
}

worker.done.catch((error: Error) => {
  console.error(`demo worker: ${error.message}`);
  process.exit(1);
});
