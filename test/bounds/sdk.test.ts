import { expect, test } from 'vitest';
import { Refusal, RunBook, TuttiClient } from '../../src/client/index.js';
import type { Run } from '../../src/protocol/runs.js';

test('[LIM1] a client that cannot reach its gateway keeps a bounded number of commands, and says when it keeps no more', async () => {
  const client = new TuttiClient({ url: 'http://127.0.0.1:1', token: 'none' });
  const room = client.join('r');
  const said = Array.from({ length: 10_000 }, (_, n) => room.publish('a', n).catch((error: Refusal) => error.code));
  expect(room.pending).toBe(10_000);
  const refusal = await room.publish('a', 'one too many').catch((error: unknown) => error);
  expect(refusal).toBeInstanceOf(Refusal);
  expect(refusal).toMatchObject({ code: 'overloaded', retryable: true, retryAfterMs: 1000 });
  expect(room.pending).toBe(10_000);
  client.leave('r');
  expect(new Set(await Promise.all(said))).toEqual(new Set(['left']));
  client.close();
});

test('[LIM1] a client forgets runs that ended long ago, and no live one', () => {
  const book = new RunBook(
    () => undefined,
    () => undefined,
  );
  const event = (id: string, type: string, state: Run['state']) => {
    const run: Run = {
      id,
      room: 'r',
      model: 'm',
      state,
      attempt: 1,
      initiator: { kind: 'user', id: 'u' },
      createdAt: 1,
    };
    const message = { role: 'assistant', parts: [] };
    return { room: 'r', epoch: 'e', seq: 1, mid: 'm', type, data: { run, message }, by: run.initiator, at: 1 };
  };
  book.event(event('live', 'run.created', 'queued'));
  for (let n = 0; n < 1500; n++) {
    book.event(event(`r${n}`, 'run.created', 'queued'));
    book.event(event(`r${n}`, 'run.completed', 'completed'));
  }
  expect(book.all()).toHaveLength(1001);
  expect([book.get('live')?.state, book.get('r499'), book.get('r500')?.final]).toEqual(['queued', undefined, true]);
});
