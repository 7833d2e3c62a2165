import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { Backlog } from '../../src/realtime/backlog.js';

const MAX = 1000;

/** A link whose looks take so long, in ms, as on a busy machine. */
class Link {
  waiting = 0;
  publishedThen: number | undefined;
  looks = 0;
  constructor(readonly tookMs = 0) {}
  sample(): void {
    this.looks += 1;
    for (const end = performance.now() + this.tookMs; performance.now() < end; );
  }
}

test('[SLOW1] a look that took long does not put off the next one until a reader could be cut unseen', async () => {
  const link = new Link(100);
  const backlog = new Backlog(new Set([link]), MAX);
  backlog.add(MAX / 8);
  await sleep(20);
  expect(link.looks).toBe(1);
  // By its length the next one is due after 2 s.
  backlog.add(MAX / 8);
  await sleep(30);
  expect(link.looks).toBe(1);
  backlog.add(MAX / 2);
  await sleep(150);
  expect(link.looks).toBe(2);
});

test('[SLOW1] a link that was cut read too slowly where more was published since the last look than may wait', async () => {
  const [seen, fresh] = [new Link(), new Link()];
  const backlog = new Backlog(new Set([seen]), MAX);
  backlog.add(MAX / 8);
  await sleep(5);
  expect(seen.looks).toBe(1);
  expect(backlog.cut(seen)).toBe(false);
  backlog.add(MAX + 1);
  expect(backlog.cut(seen)).toBe(true);
  // Of one that nobody has looked at yet it is not known.
  expect(backlog.cut(fresh)).toBe(false);
  fresh.waiting = MAX / 2;
  expect(backlog.cut(fresh)).toBe(true);
});
