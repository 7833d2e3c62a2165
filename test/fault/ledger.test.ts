import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { Ledger } from './load/ledger.js';

test('a run is open until its end was seen, also where that was before the answer that it was made', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'tutti-ledger-'));
  const ledger = new Ledger({ history: join(directory, 'h.jsonl'), writeAhead: false, tenants: [] });
  try {
    ledger.asked('a', 't', 'r');
    expect([[...ledger.openRuns], ledger.counts.runsEnded]).toEqual([['a'], 0]);
    ledger.ended('b');
    ledger.ended('b');
    ledger.asked('b', 't', 'r');
    ledger.ended('a');
    expect([[...ledger.openRuns], ledger.counts.runsEnded, ledger.counts.asked]).toEqual([[], 2, 2]);
  } finally {
    await ledger.close();
    rmSync(directory, { recursive: true });
  }
});
