import { spread } from '../core/departure.js';
import type { Principal } from '../core/principal.js';
import type { Metrics } from '../core/telemetry.js';
import type { Part } from '../protocol/parts.js';
import { type JsonText, toJsonText } from '../protocol/primitives.js';
import type { Run } from '../protocol/runs.js';
import type { Exchange } from './exchange.js';
import type { RunsPort, RunWatcher } from './ports.js';
import { EventStream, sseEvent } from './sse.js';
import type { Standing } from './standing.js';

/**
 * The AI SDK's UI message stream, version 1 (https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol): one part per event,
 * `[DONE]` at the end.
 */
const HEADERS = { 'x-vercel-ai-ui-message-stream': 'v1' };

/** What ends a run's output for a reader, where the output itself does not say it. */
function closingPart(run: Run): Part | undefined {
  if (run.state === 'completed') return undefined;
  if (run.state === 'cancelled') return { type: 'abort' };
  return { type: 'error', errorText: run.error?.message ?? `The run is ${run.state}.` };
}

/** Tells a reader that what it has of this run is void. `transient`: the AI SDK shows it to `onData` and stores nothing. */
const resetPart = (attempt: number): JsonText =>
  toJsonText({ type: 'data-tutti-reset', data: { attempt }, transient: true });

class StreamWatcher implements RunWatcher {
  readonly #stream: EventStream;
  #lastType: Part['type'] | undefined;

  constructor(stream: EventStream) {
    this.#stream = stream;
  }

  parts(attempt: number, n: number, parts: Part[]): void {
    const events = parts.map((part, i) => sseEvent(toJsonText(part), { id: `${attempt}:${n + i}` }));
    this.#lastType = parts.at(-1)?.type ?? this.#lastType;
    this.#stream.write(events.join(''));
  }

  reset(attempt: number): void {
    this.#lastType = undefined;
    this.#stream.write(sseEvent(resetPart(attempt)));
  }

  end(run: Run): void {
    const closing = closingPart(run);
    if (closing && closing.type !== this.#lastType) this.#stream.write(sseEvent(toJsonText(closing)));
    this.#stream.write(sseEvent('[DONE]'));
    this.#stream.end();
  }

  drained(): Promise<boolean> {
    return this.#stream.drained();
  }
}

/** The readers of runs over server-sent events. */
export class RunStreams {
  readonly #runs: RunsPort;
  readonly #metrics: Metrics;
  readonly #maxWaitingBytes: number;
  readonly #standing: Standing;
  readonly #open = new Set<EventStream>();

  constructor(deps: { runs: RunsPort; metrics: Metrics; maxWaitingBytes: number; standing: Standing }) {
    this.#runs = deps.runs;
    this.#metrics = deps.metrics;
    this.#maxWaitingBytes = deps.maxWaitingBytes;
    this.#standing = deps.standing;
  }

  /** Streams a run's output from a position until it ends. A refusal rejects before any answer. */
  async serve(
    exchange: Exchange,
    principal: Principal,
    runId: string,
    from: { attempt: number; n: number } | undefined,
  ): Promise<void> {
    this.#standing.hold(exchange, principal);
    await this.#runs.get(principal, runId);
    if (exchange.finished) return;
    const stream = new EventStream(exchange, {
      maxWaitingBytes: this.#maxWaitingBytes,
      headers: HEADERS,
      slow: () => this.#metrics.add('slow_closes', {}),
    });
    stream.write(':\n\n');
    this.#open.add(stream);
    exchange.onFinished(() => this.#open.delete(stream));
    await this.#runs.watch(principal, runId, from, new StreamWatcher(stream), exchange.signal);
    stream.end();
  }

  /**
   * Ends every stream without `[DONE]`, spread over at most `withinMs`; its readers reconnect elsewhere with their
   * Last-Event-ID.
   */
  dismiss(withinMs: number): Promise<void> {
    return spread(this.#open, withinMs, (stream) => stream.end());
  }
}
