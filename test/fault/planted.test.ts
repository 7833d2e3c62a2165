import { describe, expect, test } from 'vitest';
import { startGateway } from '../support/gateway.js';
import type { Rule, Verdict } from './checker/check.js';
import {
  ackBeforeCommit,
  lateReplay,
  leakyBus,
  leakyTopics,
  needlessResync,
  newestFirst,
  noDedupe,
  noFence,
  noHandoverBuffer,
  noRepair,
  noResync,
  noSync,
  numbersAhead,
  oneLane,
  planted,
  refusesSome,
  resyncTooFar,
  skippingResume,
} from './planted/plants.js';
import { crashes, joins, ordinary, zombies } from './planted/scenarios.js';
import type { Planting } from './planted/stage.js';

/*
 * The checker bites: each fault is planted in a world of real gateways, and has to be reported by the rule whose promise it
 * breaks. The same scenario without the fault passes, so it is the fault that is reported.
 */

/** A few worlds at a time, the others wait. */
const LONG = { timeout: 180_000 };

const good = (verdict: Verdict): void => {
  expect(verdict.violations).toEqual([]);
  expect(verdict.ok).toBe(true);
};

async function reports(rules: Rule[], scenario: (planting: Planting) => Promise<Verdict>, planting: Planting) {
  const verdict = await scenario(planting);
  const { broken, counts } = verdict;
  for (const rule of rules) expect(broken, JSON.stringify({ broken, counts })).toHaveProperty(rule);
}

test('a fault that does not fit the program is not planted silently', LONG, async () => {
  const misfit = { module: 'core/feed', find: 'what nobody wrote', put: '' };
  await expect(startGateway({ env: planted([misfit]) })).rejects.toThrow('has no "what nobody wrote"');
});

describe.concurrent('Postgres and gateways that crash', () => {
  test('[LOG1][LOG3] nothing is lost or doubled', LONG, async () => {
    const verdict = await crashes();
    good(verdict);
    expect(verdict.counts.acked).toBeGreaterThan(150);
    expect(verdict.counts.duplicates).toBeGreaterThanOrEqual(10);
    expect(verdict.counts.resumes).toBeGreaterThan(0);
  });
  test('commits that do not wait for the disk: lost', LONG, () => reports(['lost'], crashes, { database: noSync }));
  test('acks before the commit: lost', LONG, () => reports(['lost'], crashes, { plants: [ackBeforeCommit, oneLane] }));
  test('a retry that is stored again: answer', LONG, () => reports(['answer'], crashes, { database: noDedupe }));
});

describe.concurrent('readers that join and come back while events flow, and a Redis that dies', () => {
  test('[FEED1][ISO1][REC1] every reader gets everything of its own tenant, once and in order', {
    timeout: 60_000,
  }, async () => {
    const verdict = await joins();
    good(verdict);
    expect(verdict.counts.delivered).toBeGreaterThan(2000);
    expect(verdict.counts.resumes).toBeGreaterThan(0);
  });
  test('no buffer at the handover: reorder', LONG, () => reports(['reorder'], joins, { plants: [noHandoverBuffer] }));
  test('no repair: behind', LONG, () => reports(['behind'], joins, { plants: [noRepair] }));
  test('a replay that begins one event late: gap', LONG, () => reports(['gap'], joins, { plants: [lateReplay] }));
  test('a bus that leaks a tenant: isolation', LONG, () => reports(['isolation'], joins, { plants: [leakyBus] }));
  test('topics without a tenant: isolation', LONG, () => reports(['isolation'], joins, { plants: [leakyTopics] }));
});

describe.concurrent('publishers that do not wait, readers that come back, a room that is erased', () => {
  test('every twentieth publish is refused: availability', LONG, () =>
    reports(['availability'], ordinary, { plants: [refusesSome], lastsMs: 5500 }),
  );
  test('[LOG2][RES1][REC1] order is kept, nobody starts over without need, all is acknowledged', LONG, async () => {
    const verdict = await ordinary({ lastsMs: 5500 });
    good(verdict);
    expect(verdict.counts.acked).toBeGreaterThan(350);
    expect(verdict.counts.resumes).toBeGreaterThan(0);
    // Of the erased room, and of no other.
    expect(verdict.counts.resyncs).toBeGreaterThan(0);
    expect(verdict.availability.sent).toBeGreaterThan(100);
  });
  test('numbers handed out ahead of the commits: real-time', LONG, () =>
    reports(['real-time'], ordinary, { database: numbersAhead }),
  );
  test('what waits for a commit is taken newest first: publisher-order', LONG, () =>
    reports(['publisher-order'], ordinary, { plants: [newestFirst] }),
  );
  test('readers start over that need not: resync', LONG, () =>
    reports(['resync'], ordinary, { plants: [needlessResync] }),
  );
  test('readers of an erased room start over at a wrong place: repeat', LONG, () =>
    reports(['repeat'], ordinary, { plants: [resyncTooFar] }),
  );
  test('readers that come back skip what they missed, those of an erased room are not told: resume and gap', LONG, () =>
    reports(['resume', 'gap'], ordinary, { plants: [skippingResume, noResync] }),
  );
});

describe.concurrent('a worker that lost its run and writes on', () => {
  test('[RUN1][RUN2] its parts are refused and shown to nobody', LONG, async () => {
    const verdict = await zombies();
    good(verdict);
    expect(verdict.runStates).toEqual({ completed: 1 });
  });
  test('no fence: fence and prefix', LONG, () => reports(['fence', 'prefix'], zombies, { plants: [noFence] }));
});
