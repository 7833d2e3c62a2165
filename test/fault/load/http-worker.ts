import { request } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import type { WireError } from '../../../src/errors.js';
import type { Assignment } from '../../../src/protocol/worker.js';
import { pick } from '../../support/random.js';
import { monotonic } from '../history.js';
import type { Ledger } from './ledger.js';
import { RunWork } from './run-work.js';
import { MODEL, type WorkerOptions } from './worker.js';

type Reply = { status: number; body: { committed?: number; cancelled?: boolean } & Partial<WireError> };

const CLAIM_WAIT_MS = 2000;
/** Bodies stay open for so many turns of making something. */
const TURNS_PER_BODY = 5;
const PAUSE_MS = 60;

/** A worker over HTTP, one run at a time, with each request at whichever gateway comes next. */
export class HttpWorker {
  readonly #options: WorkerOptions;
  readonly #ledger: Ledger;
  readonly #search: (text: string) => void;
  #closed = false;
  #work: RunWork | undefined;

  constructor(ledger: Ledger, options: WorkerOptions) {
    this.#ledger = ledger;
    this.#options = options;
    this.#search = ledger.searchFor(options.tenant.id, options.name, 'worker http');
  }

  get name(): string {
    return this.#options.name;
  }

  /** Runs in hand. */
  get busy(): number {
    return this.#work ? 1 : 0;
  }

  open(): void {
    void this.#serve();
  }

  close(): void {
    this.#closed = true;
  }

  async #serve(): Promise<void> {
    while (!this.#closed) {
      const body = JSON.stringify({ models: [MODEL], waitMs: CLAIM_WAIT_MS });
      const claim = await this.#post('/v1/worker/claims', 'application/json', {}, async (write) => write(body));
      if (claim?.status !== 200) {
        if (claim?.status !== 204) await sleep(300);
        continue;
      }
      const { name, tenant } = this.#options;
      this.#work = new RunWork(this.#ledger, name, tenant.canary, claim.body as unknown as Assignment);
      await this.#perform(this.#work);
      this.#work = undefined;
    }
  }

  async #perform(work: RunWork): Promise<void> {
    while (!work.over && !this.#closed) {
      const sentAt = monotonic();
      const ends = work.complete && work.sent === work.made;
      const reply = ends ? await this.#finish(work) : await this.#stream(work);
      if (reply?.status === 200) {
        work.accepted(sentAt, reply.body);
        if (ends) work.over = true;
      } else if (reply) {
        const { code = 'internal', retryable = true, ...rest } = reply.body;
        await sleep(work.refused({ ...rest, code, retryable }));
      } else {
        await sleep(100);
        work.sent = work.committed;
      }
    }
  }

  /** One body that stays open while parts are made. */
  #stream(work: RunWork): Promise<Reply | undefined> {
    const { random } = this.#options;
    const path = `/v1/worker/runs/${work.run}/chunks`;
    return this.#post(path, 'application/x-ndjson', { 'tutti-fence': String(work.fence) }, async (write, answered) => {
      for (let turn = 0; turn < TURNS_PER_BODY && !answered() && !this.#closed; turn++) {
        for (; work.sent < work.made; work.sent++)
          write(`${JSON.stringify({ n: work.sent, part: work.parts[work.sent] })}\n`);
        if (work.complete) break;
        await sleep(PAUSE_MS * (0.5 + random()));
        work.make(1 + Math.floor(random() * 4));
      }
    });
  }

  #finish(work: RunWork): Promise<Reply | undefined> {
    const path = `/v1/worker/runs/${work.run}/finish`;
    const body = JSON.stringify({ n: work.made });
    return this.#post(path, 'application/json', { 'tutti-fence': String(work.fence) }, async (write) => write(body));
  }

  /** `undefined` where there was no answer in time or none at all. */
  #post(
    path: string,
    type: string,
    headers: Record<string, string>,
    fill: (write: (text: string) => void, answered: () => boolean) => Promise<void>,
  ): Promise<Reply | undefined> {
    const { gateways, random, tenant, answerMs } = this.#options;
    return new Promise((resolve) => {
      let over = false;
      const end = (reply: Reply | undefined) => {
        if (over) return;
        over = true;
        clearTimeout(timer);
        if (!reply) sent.destroy();
        resolve(reply);
      };
      const timer = setTimeout(() => end(undefined), answerMs);
      const sent = request(`${pick(gateways, random).url}${path}`, {
        method: 'POST',
        agent: false,
        headers: { authorization: `Bearer ${tenant.workerKey}`, 'content-type': type, ...headers },
      });
      sent.on('error', () => end(undefined));
      sent.on('response', (response) => {
        let text = '';
        response.setEncoding('utf8');
        response.on('data', (chunk: string) => {
          text += chunk;
        });
        response.on('error', () => end(undefined));
        response.on('end', () => {
          this.#search(text);
          end({ status: response.statusCode ?? 0, body: text === '' ? {} : (JSON.parse(text) as Reply['body']) });
        });
      });
      void fill(
        (text) => sent.write(text),
        () => over,
      ).then(() => sent.end());
    });
  }
}
