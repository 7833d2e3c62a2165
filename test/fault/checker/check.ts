import { type Visitors, visitEntries } from './entries.js';
import { Faults } from './faults.js';
import { checkLogs, type MayMove } from './log-rules.js';
import { Published } from './published.js';
import { checkPublishing } from './publishing.js';
import { Readers } from './readers.js';
import { Recoveries } from './recoveries.js';
import { Runs } from './runs.js';
import { Timeline } from './timeline.js';
import { type Counts, Findings, type Verdict } from './verdict.js';

export type { KindRecovery, Quantiles, Rule, Verdict } from './verdict.js';

export interface CheckOptions {
  /** Rooms that are erased or restored: readers may be sent elsewhere, and what an old epoch held may be gone. Default: none. */
  mayMove?: MayMove;
  /** From where recovery of a kind of fault is measured. Default: from the fault itself for what is done to workers, to clients that can come back at once, and by killing a gateway. */
  recoversFrom?: (kind: string) => 'fault' | 'heal';
  /** How long after a heal a publish still counts as sent in the fault, in ms. Default 3000. */
  marginMs?: number;
  /** Within this an event sent outside of faults is to be acknowledged, in ms. Default 5000. */
  ackMs?: number;
  /** Least share of them that is. Default 0.99. */
  availability?: number;
  /** Time without faults that others may feel, after a heal or its own beginning, in which every reader has caught up, in ms. Default 10,000. */
  caughtUpMs?: number;
  /** Time without faults in which the run of a killed worker goes on or ends, in ms. Default 20,000. */
  runRecoveryMs?: number;
  /** Refusals that are the event's own fault, which count for no availability. */
  blameless?: readonly string[];
}

const FROM_THE_FAULT = /^(gateway-(kill|term|drain)|client-(cut|half-open|tabs|storm)|worker)/;
const BLAMELESS = ['bad_request', 'payload_too_large'];

/**
 * Holds a history against the promises. Reads every file twice: what was sent, acknowledged, made and stored first, then
 * what readers saw of it. Linear in the history; about 600 MB for each million events, nothing is kept of deliveries.
 * @throws Error where the files are no history.
 */
export async function checkHistory(files: readonly string[], options: CheckOptions = {}): Promise<Verdict> {
  const mayMove = options.mayMove ?? (() => false);
  const findings = new Findings();
  const published = new Published(findings);
  const runs = new Runs(findings);
  const faults = new Faults();
  const time = new Timeline();

  const blameless = new Set(options.blameless ?? BLAMELESS);
  for (const file of files) await visitEntries(file, whatWasDone(published, runs, faults, findings, time, blameless));

  faults.settle();
  const recoversFrom = options.recoversFrom ?? ((kind) => (FROM_THE_FAULT.test(kind) ? 'fault' : 'heal'));
  const recoveries = new Recoveries(faults, recoversFrom);
  published.targets(recoveries.times);
  checkLogs(published, mayMove, findings);

  const caughtUpUs = (options.caughtUpMs ?? 10_000) * 1000;
  const readers = new Readers(published, faults, recoveries, findings, { caughtUpUs, mayMove });
  for (const file of files) await visitEntries(file, whatWasSeen(readers, runs, findings, time));
  readers.finish(time.to);
  runs.finish({
    faults,
    recoveries,
    hasLeft: (reader) => readers.hasLeft(reader),
    mayMove,
    hasTables: published.hasTables || runs.hasFinals,
    recoverUs: (options.runRecoveryMs ?? 20_000) * 1000,
    end: time.to,
    published,
  });

  const { marginMs = 3000, ackMs = 5000, availability = 0.99 } = options;
  const publishing = checkPublishing(published, faults, time.to, { marginMs, ackMs, availability }, findings);
  return {
    ok: findings.kept.length === 0,
    violations: findings.kept,
    broken: findings.broken,
    counts: countAll(published, readers, runs, faults, findings),
    runStates: runs.states,
    ...publishing,
    caughtUp: readers.slowest,
    recoveries: recoveries.report(published),
    timeline: time.seconds(),
    span: { from: time.from, to: time.to },
  };
}

function whatWasDone(
  published: Published,
  runs: Runs,
  faults: Faults,
  findings: Findings,
  time: Timeline,
  blameless: ReadonlySet<string>,
): Visitors {
  return {
    send: (entry) => {
      time.see(entry[1]);
      published.send(entry);
    },
    ack: (entry) => {
      time.acked(entry[1]);
      published.ack(entry);
    },
    nack: (entry) => published.nack(entry, blameless),
    unknown: () => {
      published.unknown += 1;
    },
    stored: (entry) => published.stored(entry),
    leak: ([, t, reader, tenant, owner, where]) =>
      findings.add('isolation', `${reader} of ${tenant} received bytes of ${owner}: ${where}`, t),
    conn: (entry) => published.conn(entry),
    wish: (entry) => runs.wish(entry),
    ask: (entry) => runs.ask(entry),
    claim: (entry) => runs.claim(entry),
    work: (entry) => runs.work(entry),
    wrote: (entry) => runs.wrote(entry),
    ran: (entry) => runs.ran(entry),
    fault: (entry) => {
      time.see(entry[1]);
      faults.fault(entry);
    },
    heal: (entry) => {
      time.see(entry[1]);
      faults.heal(entry);
    },
  };
}

function whatWasSeen(readers: Readers, runs: Runs, findings: Findings, time: Timeline): Visitors {
  const show = (t: number, reader: string, run: string) => {
    time.see(t);
    const [owner, tenant] = [runs.tenantOf(run), readers.tenantOf(reader)];
    if (owner !== undefined && tenant !== undefined && owner !== tenant) {
      findings.add('isolation', `${reader} of ${tenant} was shown ${run} of ${owner}`, t);
    }
  };
  return {
    open: (entry) => readers.opened(entry),
    join: (entry) => {
      time.see(entry[1]);
      runs.joined(entry[2]);
      readers.join(entry);
    },
    resync: (entry) => readers.resync(entry),
    gone: (entry) => readers.gone(entry),
    recv: (entry) => {
      time.delivered(entry[1], entry[5].length);
      readers.received(entry);
      for (const mid of entry[5]) runs.event(mid, entry[1]);
    },
    chunk: (entry) => {
      show(entry[1], entry[2], entry[3]);
      runs.chunk(entry);
    },
    reset: (entry) => runs.reset(entry),
    end: (entry) => {
      show(entry[1], entry[2], entry[3]);
      runs.end(entry);
    },
  };
}

function countAll(published: Published, readers: Readers, runs: Runs, faults: Faults, findings: Findings): Counts {
  const counts: Counts = {
    sent: 0,
    attempts: 0,
    acked: 0,
    duplicates: published.duplicates,
    nacked: published.nacked,
    unknown: published.unknown,
    stored: 0,
    delivered: readers.delivered,
    lost: findings.count('lost'),
    repeated: findings.count('repeat'),
    reordered: findings.count('reorder'),
    missed: readers.missed,
    leaked: findings.count('isolation'),
    ghosts: findings.count('ghost'),
    readers: readers.count,
    joins: readers.joins,
    resumes: readers.resumes,
    resyncs: readers.resyncs,
    runs: runs.count,
    faults: faults.all.length,
  };
  for (let event = 0; event < published.mids.length; event++) {
    const attempts = published.attempts[event] ?? 0;
    if (attempts > 0) counts.sent += 1;
    counts.attempts += attempts;
    if (published.ackLogs[event]) counts.acked += 1;
    if (published.logs[event]?.stored) counts.stored += 1;
  }
  return counts;
}
