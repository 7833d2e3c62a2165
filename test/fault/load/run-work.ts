import type { Part } from '../../../src/protocol/parts.js';
import type { Assignment } from '../../../src/protocol/worker.js';
import { scoreOf } from '../../e2e/run-score.js';
import { monotonic } from '../history.js';
import { OutputDigest } from '../output-digest.js';
import type { Ledger } from './ledger.js';

const PARTS_MIN = 12;
const PARTS_MAX = 72;

/**
 * The output of one claim of a run: the same text whoever makes it in the same attempt, another in every other. What is
 * made is written down before anybody can send it.
 */
export class RunWork {
  readonly run: string;
  readonly fence: number;
  readonly parts: readonly Part[];
  /** Parts made, sent and known to be stored, in this attempt. */
  made = 0;
  sent: number;
  committed: number;
  /** Nothing more may or need be sent. */
  over = false;
  readonly #ledger: Ledger;
  readonly #worker: string;
  readonly #attempt: number;
  readonly #digest = new OutputDigest();

  constructor(ledger: Ledger, worker: string, canary: string, { run, attempt, fence, committed }: Assignment) {
    this.#ledger = ledger;
    this.#worker = worker;
    this.run = run.id;
    this.#attempt = attempt;
    this.fence = fence;
    this.committed = committed;
    this.sent = committed;
    const count = PARTS_MIN + (Number.parseInt(run.id.slice(-4), 16) % (PARTS_MAX - PARTS_MIN));
    this.parts = withTools(scoreOf(`${canary} ${run.id.slice(-6)}.${attempt}`, count), run.id.slice(-6));
    const now = monotonic();
    const ageUs = run.startedAt === undefined ? 0 : (Date.now() - run.startedAt) * 1000;
    ledger.write(['claim', ledger.standstill.given(now, ageUs), worker, run.id, attempt, fence]);
  }

  get complete(): boolean {
    return this.made === this.parts.length;
  }

  /** Makes up to `count` more parts. */
  make(count: number): void {
    const from = this.made;
    const parts = this.parts.slice(from, from + count);
    const digests = parts.map((part) => this.#digest.add(part).toString());
    this.made += parts.length;
    if (digests.length === 0) return;
    this.#ledger.write(['work', monotonic(), this.#worker, this.run, this.#attempt, from, digests]);
  }

  /** What was sent at `sentAt` (µs, monotonic) under this fence was accepted. */
  accepted(sentAt: number, reply: Record<string, unknown>): void {
    // A run that was cancelled is told so to whoever asks; nothing was written.
    if (reply.cancelled !== true) this.#ledger.write(['wrote', sentAt, this.#worker, this.run, this.fence]);
    if (typeof reply.committed === 'number') this.committed = Math.max(this.committed, reply.committed);
    if (reply.cancelled === true) this.over = true;
  }

  /** A refusal. @returns ms to wait before going on. */
  refused(error: { code: string; retryable: boolean; retryAfterMs?: number; expected?: number }): number {
    if (error.code === 'out_of_order') {
      this.sent = Math.min(error.expected ?? this.committed, this.made);
      return 20;
    }
    if (error.code === 'fenced') this.#ledger.counts.fenced++;
    if (error.retryable) return error.retryAfterMs ?? 150;
    this.over = true;
    return 0;
  }
}

/** The same output with parts of every other kind before its end, among them what is cut into deltas and what is not. */
function withTools(parts: readonly Part[], label: string): Part[] {
  const call = { toolCallId: `call-${label}`, toolName: 'metronome' };
  return [
    ...parts.slice(0, -1),
    { type: 'tool-input-start', ...call },
    { type: 'tool-input-delta', toolCallId: call.toolCallId, inputTextDelta: '{"bpm":' },
    { type: 'tool-input-delta', toolCallId: call.toolCallId, inputTextDelta: '96}' },
    { type: 'tool-input-available', ...call, input: { bpm: 96, label } },
    { type: 'tool-output-available', toolCallId: call.toolCallId, output: { beats: [1, 0.5, 2e-7], label } },
    { type: 'source-url', sourceId: label, url: `https://example.org/${label}`, title: 'a “score”' },
    { type: 'data-load', data: { z: label, a: [null, true] } },
    ...parts.slice(-1),
  ];
}
