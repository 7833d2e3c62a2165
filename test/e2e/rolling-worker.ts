import type { Part } from '../../src/protocol/parts.js';
import type { Assignment, PushReply } from '../../src/protocol/worker.js';
import { DEV_WORKER_KEY } from '../support/tokens.js';
import { call, sleep } from './run-stage.js';

const AGAIN_MS = 100;

/** A worker without a connection: every claim, push and end is a request, led to any gateway. */
export class RequestWorker {
  #stopped = false;
  readonly #running: Promise<void>;

  constructor(
    private readonly url: string,
    private readonly model: string,
    private readonly play: (assignment: Assignment) => Part[],
  ) {
    this.#running = this.#work();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }

  async #work(): Promise<void> {
    while (!this.#stopped) {
      const body = { models: [this.model], waitMs: 500 };
      const claim = await call(this.url, DEV_WORKER_KEY, 'POST', '/v1/worker/claims', body).catch(() => undefined);
      if (claim?.status === 200) await this.#serve(claim.body as Assignment);
      else if (claim?.status !== 204) await sleep(AGAIN_MS);
    }
  }

  async #serve(assignment: Assignment): Promise<void> {
    const parts = this.play(assignment);
    const path = `/v1/worker/runs/${assignment.run.id}`;
    const headers = { authorization: `Bearer ${DEV_WORKER_KEY}`, 'tutti-fence': String(assignment.fence) };
    for (let n = assignment.committed; n < parts.length && !this.#stopped; ) {
      const lines = parts.slice(n, n + 15).map((part, i) => `${JSON.stringify({ n: n + i, part })}\n`);
      const answer = await fetch(`${this.url}${path}/chunks`, {
        method: 'POST',
        headers: { ...headers, 'content-type': 'application/x-ndjson' },
        body: lines.join(''),
      }).catch(() => undefined);
      const reply = (await answer?.json().catch(() => undefined)) as (PushReply & { expected?: number }) | undefined;
      if (answer?.status === 200) n += lines.length;
      else if (answer?.status === 409 && reply?.expected !== undefined) n = reply.expected;
      else if (answer && answer.status !== 503) return;
      await sleep(AGAIN_MS);
    }
    for (let ended = false; !ended && !this.#stopped; ) {
      const body = { n: parts.length };
      const answer = await call(this.url, DEV_WORKER_KEY, 'POST', `${path}/finish`, body, headers).catch(
        () => undefined,
      );
      if (answer?.status === 200) ended = true;
      else if (answer?.status === 409) return this.#serve({ ...assignment, committed: expectedOf(answer.body) });
      else await sleep(AGAIN_MS);
    }
  }
}

const expectedOf = (body: unknown): number => (body as { expected?: number }).expected ?? 0;
