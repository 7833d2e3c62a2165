import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { AppendQueue, type Batch, type Waiting } from '../../src/db/append-queue.js';
import { act, between, pick, random } from '../support/random.js';
import { event } from './opened.js';

/* What waits for a commit, at random: events come, give up, and are committed in batches that take whatever time. */

const SEEDS = 500;
const STEPS = 300;

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

class Life {
  readonly limits: { lanes: number; batchMax: number; lingerMs: number };
  readonly queue: AppendQueue;
  readonly waiting: Waiting[] = [];
  readonly batches: Batch[] = [];
  /** By room: what was appended, less what gave up, in order; and what was committed. */
  readonly appended = new Map<string, string[]>();
  readonly committed = new Map<string, string[]>();
  readonly tenants: string[];
  #count = 0;
  #ready = false;

  constructor(readonly next: () => number) {
    this.limits = { lanes: between(1, 4, next), batchMax: between(1, 12, next), lingerMs: pick([0, 2, 5], next) };
    this.queue = new AppendQueue(this.limits, () => {
      this.#ready = true;
    });
    this.tenants = ['a', 'b', 'c'].slice(0, between(1, 3, next));
  }

  push(): void {
    const [tenant, room] = [pick(this.tenants, this.next), `r${between(1, 6, this.next)}`];
    const mid = `m${++this.#count}`;
    const waiting = { event: event(tenant, room, mid), length: 10, state: 'queued' } as Waiting;
    this.waiting.push(waiting);
    const key = `${tenant}:${room}`;
    this.appended.set(key, [...(this.appended.get(key) ?? []), mid]);
    this.queue.push(waiting);
  }

  expire(): void {
    const queued = this.waiting.filter(({ state }) => state === 'queued');
    if (queued.length === 0) return;
    const one = pick(queued, this.next);
    this.queue.expire(one);
    one.state = 'done';
    const key = `${one.event.tenant}:${one.event.room}`;
    this.appended.set(
      key,
      (this.appended.get(key) ?? []).filter((mid) => mid !== one.event.mid),
    );
  }

  /** As the lanes do it: told that there is something, take as long as a lane is free. */
  dispatch(): void {
    while (this.#ready && this.batches.length < this.limits.lanes) {
      const batch = this.queue.take();
      if (!batch) {
        this.#ready = false;
        break;
      }
      const rooms = new Set(batch.events.map(({ event }) => `${event.tenant}:${event.room}`));
      for (const other of this.batches) {
        for (const { event } of other.events) expect(rooms.has(`${event.tenant}:${event.room}`)).toBe(false);
      }
      this.batches.push(batch);
      expect(batch.events.length).toBeLessThanOrEqual(this.limits.batchMax);
      if (this.limits.lanes > 1) {
        for (const tenant of this.tenants) {
          const own = this.batches.filter(({ events }) => events.some(({ event }) => event.tenant === tenant));
          expect(own.length).toBeLessThan(this.limits.lanes);
        }
      }
    }
  }

  finish(): void {
    if (this.batches.length === 0) return;
    const batch = pick(this.batches, this.next);
    this.batches.splice(this.batches.indexOf(batch), 1);
    for (const waiting of batch.events) {
      waiting.state = 'done';
      const key = `${waiting.event.tenant}:${waiting.event.room}`;
      this.committed.set(key, [...(this.committed.get(key) ?? []), waiting.event.mid]);
    }
    batch.done();
    this.#ready = true;
  }
}

test('[LOG2] [LIM7] whatever comes, gives up and is committed: each room in order, one commit at a time, a lane left to others, nothing left behind', () => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const life = new Life(random(seed));
    const comes = between(1, 6, life.next);
    for (let step = 0; step < STEPS; step++) {
      act(
        [
          [comes, () => life.push()],
          [1, () => life.expire()],
          [2, () => life.finish()],
          [2, () => vi.advanceTimersByTime(between(1, 30, life.next))],
        ],
        life.next,
      );
      life.dispatch();
    }
    // Nothing comes any more; what waits is committed within the time that a tenant waits for its other commit.
    for (let rounds = 0; life.queue.queued > 0 || life.batches.length > 0; rounds++) {
      expect(rounds, `seed ${seed} goes on for ever`).toBeLessThan(1000);
      life.finish();
      vi.advanceTimersByTime(20);
      life.dispatch();
    }
    for (const [key, mids] of life.appended) expect([key, life.committed.get(key) ?? []]).toEqual([key, mids]);
    vi.advanceTimersByTime(1000);
    expect([life.queue.tenants, vi.getTimerCount()]).toEqual([0, 0]);
  }
});
