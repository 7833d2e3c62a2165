import { useState } from 'preact/hooks';
import type { RunView } from '../../src/client/index.js';
import type { Part } from '../../src/protocol/parts.js';
import { answerOf, isLive } from '../answer.js';
import { stop } from '../conversation.js';
import { connection } from '../session.js';
import { RichText } from './rich-text.js';

const words: Record<RunView['state'], string> = {
  queued: 'waiting for a worker',
  claimed: 'thinking',
  streaming: 'streaming',
  completed: 'done',
  failed: 'failed',
  cancelled: 'stopped',
  expired: 'nobody answered',
};

/** What a model says, while it says it and afterwards. */
export function AnswerCard({ run, parts, by }: { run: RunView; parts: Part[]; by: string }) {
  const answer = answerOf(run, parts);
  const live = isLive(run);
  const [stopping, setStopping] = useState(false);
  return (
    <article class={`answer ${run.state}`} aria-busy={live} data-run={run.id} data-state={run.state}>
      <header>
        <span class="spark" aria-hidden="true">
          ✦
        </span>
        <strong class="label">{answer.label}</strong>
        <span class={`state ${run.state}`}>{stopping && live ? 'stopping' : words[run.state]}</span>
        {run.attempt > 1 && <span class="tag">attempt {run.attempt}</span>}
        {live && (
          <button
            type="button"
            class="stop"
            disabled={stopping || connection.value.status !== 'connected'}
            onClick={() => {
              setStopping(true);
              void stop(run.id).finally(() => setStopping(false));
            }}
          >
            <span aria-hidden="true">■</span> Stop
          </button>
        )}
      </header>
      <div class="text" aria-live={live ? 'off' : 'polite'}>
        {answer.reasoning && (
          <details class="reasoning">
            <summary>Reasoning</summary>
            <RichText text={answer.reasoning} />
          </details>
        )}
        <RichText text={answer.text} />
        {live && <span class="caret" aria-hidden="true" />}
        {answer.error && run.state !== 'cancelled' && <p class="refused">{answer.error}</p>}
      </div>
      <footer>
        <span class="figures">{figures(run)}</span>
        {by && <span class="asked">asked by {by}</span>}
      </footer>
    </article>
  );
}

/** Tokens, and tokens per second from the first one on. */
function figures(run: RunView): string {
  // `start` and `text-start` are no tokens; a worker that sends several tokens in one part is counted low until it ends.
  const tokens = run.run?.usage?.outputTokens ?? Math.max(0, run.next - 2);
  if (tokens === 0) return '';
  const from = run.run?.firstTokenAt ?? run.run?.startedAt;
  const to = run.run?.finishedAt;
  const seconds = from && to ? (to - from) / 1000 : 0;
  const count = `${tokens} token${tokens === 1 ? '' : 's'}`;
  const rate = seconds > 0.2 ? tokens / seconds : isLive(run) ? liveRate(run) : 0;
  return rate > 0 ? `${count} · ${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s` : count;
}

const firstSeen = new Map<string, { at: number; next: number }>();

/** As seen here, since this tab first saw the run. */
function liveRate(run: RunView): number {
  const key = `${run.id}:${run.attempt}`;
  const first = firstSeen.get(key) ?? { at: performance.now(), next: run.next };
  firstSeen.set(key, first);
  const seconds = (performance.now() - first.at) / 1000;
  return seconds > 0.5 ? (run.next - first.next) / seconds : 0;
}
