import { describe, test } from 'vitest';
import { simulateFeeds } from './feed-simulation.js';
import { eachCrossing, eachSeed } from './seeds.js';

const file = 'test/core/feeds-simulation.test.ts';

describe('feeds', () => {
  test('[FEED1] [FEED2] [RES1] readers get every event once and in order over a bus that drops, repeats and reorders', async () => {
    await eachSeed(file, 2000, simulateFeeds);
  }, 600_000);

  test('[FEED1] [RES1] a gateway may die at any await: every call of a port and every answer in short lives is tried', async () => {
    await eachCrossing(file, 20, simulateFeeds);
  }, 120_000);
});
