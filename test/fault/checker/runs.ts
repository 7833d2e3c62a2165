import { Digest } from '../history.js';
import type { EntryOf } from './entries.js';
import type { Fault, Faults } from './faults.js';
import type { MayMove } from './log-rules.js';
import type { Published } from './published.js';
import type { Recoveries } from './recoveries.js';
import { checkRunEvents, type KnownRun } from './run-events.js';
import type { Findings } from './verdict.js';

interface Attempt {
  /** `digests[n]` is of the first `n` parts; a worker that made them twice may have made them otherwise. */
  readonly digests: (string | Set<string>)[];
  /** When a reader first saw something of it. */
  seenAt: number;
}

interface Run {
  readonly id: string;
  tenant: string | undefined;
  room: string | undefined;
  readonly attempts: Map<number, Attempt>;
  readonly claims: { t: number; worker: string; attempt: number; fence: number }[];
  asked: boolean;
  final: { mid: string | null; state: string; attempt: number; digest: string } | undefined;
  /** By fence: when the last write that was accepted under it was sent. */
  readonly wrote: Map<number, { t: number; worker: string }>;
  endedAt: number;
  /** What each reader saw last, in which of its joins. */
  readonly views: Map<string, { join: number; attempt: number; next: number; end: string | undefined }>;
}

const EMPTY = new Digest().toString();
const TERMINAL = new Set(['completed', 'failed', 'cancelled', 'expired']);

/** Holds what readers saw of runs, and the final table, against what the workers made. */
export class Runs {
  readonly states: Record<string, number> = {};
  readonly #runs = new Map<string, Run>();
  /** How often each reader joined. */
  readonly #joins = new Map<string, number>();
  /** Tenant, room and mid of what was asked for, whether or not there was an answer. */
  readonly #wishes = new Set<string>();
  readonly #findings: Findings;

  constructor(findings: Findings) {
    this.#findings = findings;
  }

  get count(): number {
    return this.#runs.size;
  }

  get hasFinals(): boolean {
    return Object.keys(this.states).length > 0;
  }

  tenantOf(run: string): string | undefined {
    return this.#runs.get(run)?.tenant;
  }

  ask([, , id, tenant, room]: EntryOf<'ask'>): void {
    Object.assign(this.#run(id), { tenant, room, asked: true });
  }

  wish([, , tenant, room, mid]: EntryOf<'wish'>): void {
    this.#wishes.add(wishKey(tenant, room, mid));
  }

  claim([, t, worker, id, attempt, fence]: EntryOf<'claim'>): void {
    this.#run(id).claims.push({ t, worker, attempt, fence });
  }

  work([, , , id, attempt, n, digests]: EntryOf<'work'>): void {
    const made = this.#attempt(id, attempt).digests;
    for (const [i, digest] of digests.entries()) learn(made, n + i + 1, digest);
  }

  wrote([, t, worker, id, fence]: EntryOf<'wrote'>): void {
    const { wrote } = this.#run(id);
    if (t > (wrote.get(fence)?.t ?? 0)) wrote.set(fence, { t, worker });
  }

  ran([, id, tenant, room, mid, state, attempt, digest]: EntryOf<'ran'>): void {
    const run = this.#run(id);
    run.tenant ??= tenant;
    run.room ??= room;
    run.final = { mid, state, attempt, digest };
    this.states[state] = (this.states[state] ?? 0) + 1;
  }

  /** A reader joined: what it is shown of runs now takes the place of what it had, and may be a little less. */
  joined(reader: string): void {
    this.#joins.set(reader, (this.#joins.get(reader) ?? 0) + 1);
  }

  chunk([, t, reader, id, number, next, digest]: EntryOf<'chunk'>): void {
    const run = this.#run(id);
    const attempt = this.#attempt(id, number);
    attempt.seenAt = Math.min(attempt.seenAt, t);
    const view = this.#view(run, reader);
    if (number < view.attempt) {
      this.#findings.add('fence', `${reader} was given attempt ${number} of ${id} after attempt ${view.attempt}`, t);
    } else if (number === view.attempt && next < view.next) {
      this.#findings.add('run-order', `${reader} had ${view.next} parts of ${id} and then ${next}, without a reset`, t);
    }
    Object.assign(view, { attempt: number, next });
    if (includes(attempt.digests[next], digest)) return;
    this.#findings.add(
      'prefix',
      `${reader} holds ${next} parts of ${id}, attempt ${number}, that its worker did not make`,
      t,
    );
  }

  reset([, t, reader, id, attempt]: EntryOf<'reset'>): void {
    const view = this.#view(this.#run(id), reader);
    if (attempt < view.attempt) {
      this.#findings.add(
        'fence',
        `${reader} was reset to attempt ${attempt} of ${id} after attempt ${view.attempt}`,
        t,
      );
    }
    Object.assign(view, { attempt, next: 0 });
  }

  end([, t, reader, id, state, digest]: EntryOf<'end'>): void {
    const run = this.#run(id);
    run.endedAt = Math.min(run.endedAt, t);
    const view = this.#view(run, reader);
    const end = `${state} ${digest}`;
    if (view.end !== undefined && view.end !== end) {
      this.#findings.add('run-end', `${reader} saw ${id} end as ${view.end} and then as ${end}`, t);
    }
    view.end = end;
  }

  /** Somebody was given an event: the log tells the end of a run also where nobody reads its output. */
  event(mid: string, t: number): void {
    if (!mid.startsWith('run:') || !mid.endsWith(':end')) return;
    const run = this.#runs.get(mid.slice('run:'.length, -':end'.length));
    if (run) run.endedAt = Math.min(run.endedAt, t);
  }

  /** Everything was read. `hasLeft` tells readers that left before the end and so may not have seen it. */
  finish(options: {
    faults: Faults;
    recoveries: Recoveries;
    hasLeft: (reader: string) => boolean;
    mayMove: MayMove;
    /** Whether the history has final tables. */
    hasTables: boolean;
    recoverUs: number;
    end: number;
    published: Published;
  }): void {
    const known = [...this.#runs.values()].map((run) => [run.id, this.#known(run)] as const);
    const byId = new Map(known);
    checkRunEvents(options.published, (id) => byId.get(id), known, options.mayMove, this.#findings);
    for (const run of this.#runs.values()) {
      run.claims.sort((a, b) => a.t - b.t); // they come from the files of several processes
      if (run.final && !byId.get(run.id)?.asked) {
        this.#findings.add(
          'run-ghost',
          `${run.id} of ${run.tenant}/${run.room} is in the final table, and nobody asked for it`,
        );
      }
      this.#checkFences(run);
      if (options.hasTables) this.#checkFinal(run, options.mayMove);
      this.#checkEnds(run, options.hasLeft);
    }
    for (const fault of options.faults.all) {
      if (/^worker-(kill|zombie)/.test(fault.kind)) this.#recover(fault, options);
    }
  }

  #run(id: string): Run {
    let run = this.#runs.get(id);
    if (!run) {
      run = {
        id,
        tenant: undefined,
        room: undefined,
        asked: false,
        attempts: new Map(),
        claims: [],
        wrote: new Map(),
        final: undefined,
        endedAt: Number.POSITIVE_INFINITY,
        views: new Map(),
      };
      this.#runs.set(id, run);
    }
    return run;
  }

  #attempt(id: string, number: number): Attempt {
    const { attempts } = this.#run(id);
    let attempt = attempts.get(number);
    if (!attempt) {
      attempt = { digests: [EMPTY], seenAt: Number.POSITIVE_INFINITY };
      attempts.set(number, attempt);
    }
    return attempt;
  }

  #view(run: Run, reader: string) {
    let view = run.views.get(reader);
    const join = this.#joins.get(reader) ?? 0;
    if (view?.join !== join) {
      view = { join, attempt: 0, next: 0, end: view?.end };
      run.views.set(reader, view);
    }
    return view;
  }

  /** A run has been asked for also where its asker was never answered. */
  #known({ tenant, room, asked, final }: Run): KnownRun {
    const wished = typeof final?.mid === 'string' && this.#wishes.has(wishKey(tenant ?? '', room ?? '', final.mid));
    const state = !final ? 'missing' : TERMINAL.has(final.state) ? 'ended' : 'live';
    return { tenant, room, asked: asked || wished, final: state };
  }

  #checkFences(run: Run): void {
    for (const [fence, { t, worker }] of run.wrote) {
      const next = run.claims.find((claim) => claim.fence > fence && claim.t < t);
      if (next) {
        this.#findings.add(
          'fence',
          `${worker} wrote to ${run.id} under fence ${fence} after ${next.worker} had ${next.fence}`,
          t,
        );
      } else if (!run.claims.some((claim) => claim.fence === fence)) {
        this.#findings.add('fence', `${worker} wrote to ${run.id} under fence ${fence}, which nobody was given`, t);
      }
    }
    const holders = new Map<number, string>();
    let newest = 0;
    for (const { t, worker, attempt, fence } of run.claims) {
      const holder = holders.get(fence);
      if (holder !== undefined && holder !== worker) {
        this.#findings.add('fence', `${holder} and ${worker} both held ${run.id} under fence ${fence}`, t);
      } else if (attempt < newest) {
        this.#findings.add('fence', `${worker} was given attempt ${attempt} of ${run.id} after attempt ${newest}`, t);
      }
      holders.set(fence, worker);
      newest = Math.max(newest, attempt);
    }
  }

  #checkFinal(run: Run, mayMove: MayMove): void {
    const { final, id } = run;
    if (!final) {
      if (run.tenant === undefined || run.room === undefined || mayMove(run.tenant, run.room)) return;
      this.#findings.add('run-lost', `${id} of ${run.tenant}/${run.room} is not in the final table`);
      return;
    }
    if (!TERMINAL.has(final.state)) {
      this.#findings.add('run-stuck', `${id} is ${final.state} at the end, in attempt ${final.attempt}`);
      return;
    }
    const made = run.attempts.get(final.attempt)?.digests ?? [EMPTY];
    const whole = made.at(-1);
    const among = final.state === 'completed' ? [whole] : made;
    if (among.some((digest) => includes(digest, final.digest))) return;
    const what = final.state === 'completed' ? 'all' : 'a prefix of what';
    this.#findings.add(
      'run-final',
      `${id}, ${final.state} in attempt ${final.attempt}, is not ${what} its worker made`,
    );
  }

  #checkEnds(run: Run, hasLeft: (reader: string) => boolean): void {
    const final = run.final && `${run.final.state} ${run.final.digest}`;
    let expected = final;
    for (const [reader, { end, next }] of run.views) {
      if (end === undefined) {
        const ended = run.final ? TERMINAL.has(run.final.state) : expected !== undefined;
        if (ended && !hasLeft(reader)) {
          this.#findings.add('run-end', `${reader} had ${next} parts of ${run.id} and was never told of its end`);
        }
        continue;
      }
      expected ??= end;
      if (end !== expected)
        this.#findings.add('run-end', `${reader} saw ${run.id} end as ${end}, others as ${expected}`);
    }
  }

  #recover(fault: Fault, options: { faults: Faults; recoveries: Recoveries; recoverUs: number; end: number }): void {
    const hit = new Set(fault.target.split(' '));
    for (const run of this.#runs.values()) {
      const claim = run.claims.findLast(({ t }) => t <= fault.at);
      if (!claim || !hit.has(claim.worker) || run.endedAt <= fault.at) continue;
      let wentOn = run.endedAt;
      for (const [number, { seenAt }] of run.attempts) {
        if (number > claim.attempt) wentOn = Math.min(wentOn, seenAt);
      }
      for (const { t, attempt } of run.claims) if (attempt > claim.attempt) wentOn = Math.min(wentOn, t);
      const us = Math.min(wentOn, options.end) - fault.at;
      if (wentOn <= options.end) options.recoveries.runWentOn(fault, us);
      // A silent one comes back and may go on itself.
      if (fault.kind.startsWith('worker-zombie')) continue;
      if (options.faults.quiet(fault.healed, fault.at + us) <= options.recoverUs) continue;
      this.#findings.add(
        'run-stuck',
        `${run.id} of the killed ${claim.worker} did not go on for ${us / 1e6} s`,
        fault.at,
      );
    }
  }
}

const wishKey = (...of: [tenant: string, room: string, mid: string]): string => of.join('\0');

const includes = (made: string | Set<string> | undefined, digest: string): boolean =>
  typeof made === 'object' ? made.has(digest) : made === digest;

function learn(digests: (string | Set<string>)[], n: number, digest: string): void {
  const known = digests[n];
  if (known === undefined) digests[n] = digest;
  else if (typeof known === 'object') known.add(digest);
  else if (known !== digest) digests[n] = new Set([known, digest]);
}
