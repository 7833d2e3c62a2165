import { runWorker } from '../../src/worker/index.js';
import { scoreOf } from './run-score.js';

/*
 * A worker in a process of its own, for tests that kill or freeze it. It says a line when it begins and ends a run.
 */

interface Options {
  url: string;
  key: string;
  model: string;
  label: string;
  count: number;
  everyMs: number;
  capacity: number;
}

const { url, key, model, label, count, everyMs, capacity } = JSON.parse(process.env.RUN_WORKER ?? '{}') as Options;

runWorker({
  url,
  key,
  models: [model],
  capacity,
  async *handle({ run, attempt }, { signal }) {
    console.log(`begin ${run.id}`);
    try {
      for (const part of scoreOf(`${label}-${attempt}`, count)) {
        yield part;
        await new Promise((wait) => setTimeout(wait, everyMs));
      }
    } finally {
      console.log(`${signal.aborted ? 'lost' : 'end'} ${run.id}`);
    }
  },
});
