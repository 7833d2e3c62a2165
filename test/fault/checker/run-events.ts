import type { MayMove } from './log-rules.js';
import { type Log, type Published, roomText } from './published.js';
import type { Findings } from './verdict.js';

/** A run as the tables and those who asked for it know it. */
export interface KnownRun {
  tenant: string | undefined;
  room: string | undefined;
  /** Somebody asked for it. */
  asked: boolean;
  /** Whether the final table has it, and with a final state. */
  final: 'missing' | 'live' | 'ended';
}

type Told = Partial<Record<'created' | 'end', { log: Log; seq: number }>>;

const EVENT = /^run:([^:]+):(.*)$/;

/** Holds what the final logs tell of runs against the runs themselves. Linear in the events. */
export function checkRunEvents(
  published: Published,
  find: (id: string) => KnownRun | undefined,
  all: Iterable<readonly [id: string, run: KnownRun]>,
  mayMove: MayMove,
  findings: Findings,
): void {
  const told = new Map<string, Told>();
  for (const log of published.allLogs()) {
    if (!log.stored) continue;
    for (let seq = log.floor + 1; seq < log.events.length; seq++) {
      const mid = published.mids[log.events[seq] ?? -1];
      const [, id, what] = (mid?.startsWith('run:') && EVENT.exec(mid)) || [];
      if (id === undefined) continue;
      const where = `${mid} at ${roomText(log.room)} ${log.epoch}:${seq}`;
      const run = find(id);
      if (!run?.asked) findings.add('run-ghost', `${where} tells of a run that nobody asked for`);
      else if (run.room !== log.room.name || run.tenant !== log.room.tenant) {
        findings.add('run-events', `${where} tells of a run of ${run.tenant}/${run.room}`);
      } else if (what !== 'created' && what !== 'end') findings.add('run-events', `${where} tells nothing of a run`);
      else {
        const known = told.get(id) ?? {};
        if (what === 'end' && !known.created && log.floor === 0) {
          findings.add('run-events', `${where} comes before its run was made`);
        }
        known[what] = { log, seq };
        told.set(id, known);
      }
    }
  }
  for (const [id, { tenant, room, asked, final }] of all) {
    if (!asked || final === 'missing' || tenant === undefined || room === undefined || mayMove(tenant, room)) continue;
    const logs = [...published.room(tenant, room).logs.values()].filter(({ stored }) => stored);
    // What is below a floor is gone; a history without tables tells nothing.
    if (!published.hasTables || logs.some(({ floor }) => floor > 0)) continue;
    const { created, end } = told.get(id) ?? {};
    if (!created) findings.add('run-events', `no event tells that ${id} was made in ${tenant}/${room}`);
    if (!end && final === 'ended') findings.add('run-events', `no event tells that ${id} ended in ${tenant}/${room}`);
    if (end && final === 'live') findings.add('run-events', `${id} has an end in ${tenant}/${room} and is not over`);
  }
}
