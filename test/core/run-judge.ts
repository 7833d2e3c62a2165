import type { Part } from '../../src/protocol/parts.js';
import type { Fences, RunWitness } from './run-readers.js';
import type { RunRow } from './run-table.js';
import { foldedOf, jsonOf } from './sim-worker.js';

/** RUN2, from what is stored: every part of an attempt is what the worker said that held it. */
export function judge(row: RunRow, fences: Fences, judged: WeakSet<object>): void {
  let n = 0;
  const own = [...row.segments.values()].filter(({ attempt }) => attempt === row.attempt).sort((a, b) => a.n - b.n);
  for (const segment of own) {
    if (segment.n !== n) throw new Error(`run ${row.id}: part ${n} is not stored`);
    n += segment.count;
    if (judged.has(segment)) continue;
    judged.add(segment);
    const said = JSON.parse(segment.parts) as Part[];
    if (jsonOf(row.fence, segment.n, n) !== JSON.stringify(said)) {
      throw new Error(`run ${row.id}: ${segment.parts} stored under fence ${row.fence}`);
    }
    fences.check(row.id, row.attempt, segment.n, said);
  }
  if (row.state !== 'queued' && n !== row.committed)
    throw new Error(`run ${row.id}: ${n} of ${row.committed} parts stored`);
}

/**
 * RUN1 at the end: a reader holds what is stored, and one final state.
 * @returns what is otherwise.
 */
export function disagreement(row: RunRow, { runs, ends }: RunWitness, fromStart: boolean): string | undefined {
  const end = ends.get(row.id);
  if (end && (end.state !== row.state || end.length !== row.length)) return `run ${row.id} ends otherwise`;
  const seen = runs.get(row.id);
  if (!seen && !end && fromStart) return `run ${row.id}: a reader knows nothing of its end`;
  if (!seen) return undefined;
  if (seen.state !== row.state || seen.next !== row.length || seen.attempt !== row.attempt) {
    return `run ${row.id}: a reader has ${seen.state} at ${seen.next}, stored is ${row.state} at ${row.length}`;
  }
  if (
    row.fence > 0 &&
    row.state !== 'cancelled' &&
    row.committed > 0 &&
    foldedOf(row.fence, row.committed) !== JSON.stringify(row.output)
  ) {
    return `run ${row.id}: the output stored is not what its worker said`;
  }
  return undefined;
}
