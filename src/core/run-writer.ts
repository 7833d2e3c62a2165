import { TuttiError } from '../errors.js';
import { MAX_PART_BYTES, type Part } from '../protocol/parts.js';
import type { JsonText } from '../protocol/primitives.js';
import { type RoomKey, roomKey } from './keys.js';
import type { CommitResult, Segment, StoredRun } from './run-store.js';
import { type Chunk, chunkFrame } from './run-wire.js';

/** Parts after which output is committed at once: readers of the store should not lack what stands complete. */
const BOUNDARY =
  /^(text-end|reasoning-end|finish-step|finish|error|abort|file|source-|tool-(input-available|input-error|output))/;

/** `open`: takes parts. `sealed`: its last parts are being committed with its end. The rest is over for this worker. */
export type WriterStatus = 'open' | 'sealed' | 'fenced' | 'cancelled' | 'ended' | 'stale';

/** Bytes a part adds to the folded output: a delta that continues the one before adds its text only. */
class FoldedSize {
  bytes = 0;
  #open = '';

  add(part: Part, text: string): number {
    const before = this.#open;
    let delta: string | undefined;
    this.#open = '';
    if (Object.keys(part).length === 3) {
      if (part.type === 'text-delta' || part.type === 'reasoning-delta') {
        this.#open = `${part.type} ${part.id}`;
        delta = part.delta;
      } else if (part.type === 'tool-input-delta') {
        this.#open = `${part.type} ${part.toolCallId}`;
        delta = part.inputTextDelta;
      }
    }
    const grows = delta !== undefined && this.#open === before;
    // An empty delta counts too: output has an end in number as well.
    const size = grows ? Math.max(1, Buffer.byteLength(JSON.stringify(delta)) - 2) : Buffer.byteLength(text) + 1;
    this.bytes += size;
    return size;
  }
}

/**
 * The output of one attempt of a run on its way from its worker to viewers and to the store. Parts are numbered
 * `committed` ≤ `announced` ≤ `accepted`, give or take a commit that overtakes an announcement.
 */
export class RunWriter {
  readonly id: string;
  readonly tenant: string;
  readonly room: RoomKey;
  readonly roomName: string;
  readonly model: string;
  readonly attempt: number;
  readonly fence: number;
  status: WriterStatus = 'open';
  /** Number of the part that the worker sends next. */
  accepted: number;
  committed: number;
  /** To be committed at the next opportunity. */
  due = false;
  /** Resolves when the end under way is decided. */
  ending: Promise<unknown> | undefined;
  /** When the lease ends for sure, by the monotonic clock. */
  leaseUntil: number;
  /** When the worker got the run here, by the monotonic clock. */
  claimedAt: number | undefined;
  readonly #load: { bytes: number };
  #bytes = 0;
  readonly #size = new FoldedSize();
  readonly #texts: string[] = [];
  #unsent: Part[] = [];
  #unsentTexts: string[] = [];

  /** `load` counts the uncommitted bytes of all writers that share it. */
  constructor(run: StoredRun, leaseUntil: number, load: { bytes: number } = { bytes: 0 }) {
    this.#load = load;
    this.id = run.id;
    this.tenant = run.tenant;
    this.room = roomKey(run.tenant, run.room);
    this.roomName = run.room;
    this.model = run.model;
    this.attempt = run.attempt;
    this.fence = run.fence;
    this.accepted = run.committed;
    this.committed = run.committed;
    this.leaseUntil = leaseUntil;
  }

  /** Bytes of the parts that are not committed. */
  get bytes(): number {
    return this.#bytes;
  }

  #grow(by: number): void {
    this.#bytes += by;
    this.#load.bytes += by;
  }

  /** Counts output that was committed before this gateway knew the run. */
  count(parts: readonly Part[]): void {
    for (const part of parts) this.#size.add(part, JSON.stringify(part));
  }

  /**
   * Takes parts; those known already are skipped. All or none.
   * @returns how many were new.
   * @throws TuttiError `out_of_order`, `payload_too_large`.
   */
  accept(n: number, parts: readonly Part[], outputMaxBytes: number): number {
    if (n > this.accepted) {
      throw new TuttiError('out_of_order', 'Parts before these are missing.', { expected: this.accepted });
    }
    const fresh = parts.slice(this.accepted - n);
    const texts = fresh.map((part) => JSON.stringify(part));
    let bytes = 0;
    for (const text of texts) {
      const size = Buffer.byteLength(text);
      if (size > MAX_PART_BYTES)
        throw new TuttiError('payload_too_large', `A part is larger than ${MAX_PART_BYTES} bytes.`);
      bytes += size + 1;
    }
    // Cheap while there is room for the parts as they are; else what they fold to decides.
    if (this.#size.bytes + bytes > outputMaxBytes && this.#wouldExceed(fresh, texts, outputMaxBytes)) {
      const message = `The output is larger than ${outputMaxBytes} bytes.`;
      throw new TuttiError('payload_too_large', message, { limit: 'run_output' });
    }
    for (const [at, part] of fresh.entries()) {
      const text = texts[at] ?? '';
      this.#size.add(part, text);
      this.#texts.push(text);
      this.#unsent.push(part);
      this.#unsentTexts.push(text);
      if (BOUNDARY.test(part.type)) this.due = true;
    }
    this.accepted += fresh.length;
    this.#grow(bytes);
    return fresh.length;
  }

  /** What viewers have not got yet, as one chunk. */
  takeChunk(): Chunk | undefined {
    const count = this.#unsent.length;
    if (count === 0) return undefined;
    const n = this.accepted - count;
    const frame = chunkFrame(this.roomName, this.id, this.attempt, n, this.#unsentTexts);
    const chunk = { run: this.id, attempt: this.attempt, n, count, frame, parts: this.#unsent };
    this.#unsent = [];
    this.#unsentTexts = [];
    return chunk;
  }

  /** What is not committed yet. */
  segment(): Segment | undefined {
    if (this.#texts.length === 0) return undefined;
    const { tenant, id: run, attempt, fence, committed: n } = this;
    return {
      tenant,
      run,
      attempt,
      fence,
      n,
      count: this.#texts.length,
      parts: `[${this.#texts.join(',')}]` as JsonText,
    };
  }

  /**
   * What the store said of the lease and the output.
   * @param asked what was committed, as far as was known here, when the store was asked.
   * @param leaseUntil the end of the lease where it was extended.
   */
  settle(result: CommitResult, asked: number, leaseUntil: number): void {
    if (result.status === 'fenced') {
      this.end('fenced');
    } else if (result.status === 'ended') {
      this.committed = Math.max(this.committed, result.committed);
      this.end(result.state === 'cancelled' ? 'cancelled' : 'ended');
    } else if (result.committed < asked || result.committed - this.committed > this.#texts.length) {
      // The store has less than it acknowledged, or the worker went on at another gateway: begin with what it has.
      this.committed = result.committed;
      this.end('stale');
    } else {
      this.leaseUntil = leaseUntil;
      const done = Math.max(0, result.committed - this.committed);
      this.committed += done;
      for (const text of this.#texts.splice(0, done)) this.#grow(-Buffer.byteLength(text) - 1);
    }
  }

  /** Nothing more is announced or committed. */
  end(status: Exclude<WriterStatus, 'open' | 'sealed'>): void {
    this.status = status;
    this.due = false;
    this.#grow(-this.#bytes);
    this.#texts.length = 0;
    this.#unsent = [];
    this.#unsentTexts = [];
  }

  #wouldExceed(parts: readonly Part[], texts: readonly string[], max: number): boolean {
    const trial = Object.assign(new FoldedSize(), { bytes: this.#size.bytes });
    for (const [at, part] of parts.entries()) trial.add(part, texts[at] ?? '');
    return trial.bytes > max;
  }
}
