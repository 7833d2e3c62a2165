import type { Principal } from '../core/principal.js';
import { TuttiError } from '../errors.js';
import type { Part } from '../protocol/parts.js';
import { MAX_PART_BYTES } from '../protocol/parts.js';
import { jsonData, parse } from '../protocol/primitives.js';
import { chunkLine, MAX_PARTS_PER_PUSH, type PushReply } from '../protocol/worker.js';
import { type Body, decodeUtf8, parseJson } from './body.js';
import type { Exchange } from './exchange.js';
import type { RunsPort } from './ports.js';

/** Longest line, in bytes: a part and the `n` around it. */
const MAX_LINE_BYTES = MAX_PART_BYTES + 256;
/** A body in which nothing arrived for this long is over, in ms. */
const IDLE_MS = 120_000;
/** How often uWS is kept from closing a body that arrives slowly, in ms; it would after 10 s. */
const KEEP_ALIVE_MS = 4_000;

const LINE_FEED = 0x0a;

/** Cuts bytes into lines. A line ends at a line feed; empty lines are skipped. */
export class Lines {
  #rest: Uint8Array = new Uint8Array(0);

  /** The lines that are whole now. @throws TuttiError `payload_too_large`. */
  push(chunk: Uint8Array): string[] {
    const bytes = this.#rest.byteLength > 0 ? Buffer.concat([this.#rest, chunk]) : chunk;
    const lines: string[] = [];
    let start = 0;
    for (let end = bytes.indexOf(LINE_FEED); end >= 0; end = bytes.indexOf(LINE_FEED, start)) {
      this.#add(lines, bytes.subarray(start, end));
      start = end + 1;
    }
    this.#rest = bytes.subarray(start);
    if (this.#rest.byteLength > MAX_LINE_BYTES) throw tooLong();
    return lines;
  }

  /** The last line, which needs no line feed. */
  end(): string[] {
    const lines: string[] = [];
    this.#add(lines, this.#rest);
    this.#rest = new Uint8Array(0);
    return lines;
  }

  #add(lines: string[], bytes: Uint8Array): void {
    if (bytes.byteLength > MAX_LINE_BYTES) throw tooLong();
    const line = decodeUtf8(bytes).trim();
    if (line !== '') lines.push(line);
  }
}

const tooLong = () => new TuttiError('payload_too_large', `A line is longer than ${MAX_LINE_BYTES} bytes.`);

interface Numbered {
  n: number;
  part: Part;
}

function parseLine(line: string): Numbered {
  const { n, part } = parse(chunkLine, parseJson(line));
  parse(jsonData(MAX_PART_BYTES), part);
  return { n, part };
}

/** Runs of consecutive numbers, each at most one push long. */
export function groups(lines: readonly Numbered[]): { n: number; parts: Part[] }[] {
  const found: { n: number; parts: Part[] }[] = [];
  for (const { n, part } of lines) {
    const last = found.at(-1);
    if (last && n === last.n + last.parts.length && last.parts.length < MAX_PARTS_PER_PUSH) last.parts.push(part);
    else found.push({ n, parts: [part] });
  }
  return found;
}

/**
 * Pushes a worker's output as its lines arrive. Good lines before a bad one are pushed. The body waits while a push
 * waits, so a worker feels the pressure of what is not committed.
 * @returns what is committed when the body ended, which may be less than was sent (the rest follows within the commit
 * interval, and finishing commits all), or when the run was cancelled, which is answered without waiting for the body.
 */
export async function receiveChunks(
  runs: RunsPort,
  call: { exchange: Exchange; body: Body; worker: Principal; run: string; fence: number },
): Promise<PushReply> {
  const { exchange, body, worker, run, fence } = call;
  let unsubscribe = () => {};
  const cancelled = new Promise<void>((resolve) => {
    unsubscribe = runs.onCancelled(run, resolve);
  });
  exchange.onFinished(() => unsubscribe());
  // Settles whose run this is before anything of it, such as its cancel, is told.
  let reply = await runs.heartbeat(worker, { run, fence });
  if (reply.cancelled) return reply;

  const push = async (lines: readonly string[]): Promise<void> => {
    const parsed: Numbered[] = [];
    let bad: { thrown: unknown } | undefined;
    for (const line of lines) {
      try {
        parsed.push(parseLine(line));
      } catch (thrown) {
        bad = { thrown };
        break;
      }
    }
    for (const { n, parts } of groups(parsed)) {
      reply = await runs.push(worker, { run, fence, n, parts });
      if (reply.cancelled) return;
    }
    if (bad) throw bad.thrown;
  };

  const receive = async (): Promise<void> => {
    const lines = new Lines();
    for (let chunk = await body.next(); chunk; chunk = await body.next()) {
      touch();
      await push(lines.push(chunk));
      if (reply.cancelled) return;
    }
    await push(lines.end());
    if (!reply.cancelled) reply = await runs.heartbeat(worker, { run, fence });
  };

  let touchedAt = performance.now();
  const touch = () => {
    touchedAt = performance.now();
  };
  let keepAlive: NodeJS.Timeout | undefined;
  const stoodStill = new Promise<never>((_, reject) => {
    keepAlive = setInterval(() => {
      exchange.keepBodyAlive();
      if (performance.now() - touchedAt > IDLE_MS) reject(new TuttiError('bad_request', 'The body stood still.'));
    }, KEEP_ALIVE_MS);
  });
  const received = receive();
  // Whatever comes after the answer concerns nobody.
  received.catch(() => {});
  try {
    const wasCancelled = await Promise.race([received.then(() => false), cancelled.then(() => true), stoodStill]);
    return wasCancelled ? { ...reply, cancelled: true } : reply;
  } finally {
    clearInterval(keepAlive);
  }
}
