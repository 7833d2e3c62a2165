import { eventFrame, type Frame } from '../protocol/frames.js';
import { type RoomKey, roomOf, tenantOf } from './keys.js';
import type { EventLog, Range, RoomHead } from './log.js';
import type { Logger, Metrics } from './telemetry.js';

/** Consecutive events of a room as frames, and its head, as the log had them at one moment. */
export interface LogPage {
  head: RoomHead;
  /** Seq before that of the first frame. */
  after: number;
  frames: Frame[];
}

export interface LogPagesDeps {
  log: EventLog;
  metrics: Metrics;
  logger: Logger;
}

/** Most events in a page: a power of two, as all spans are, so that pages of different spans begin at the same places. */
const SPAN_MAX = 512;
/** What a page should come to at most, in characters; the log ends one of twice as much early. */
const PAGE_BYTES = 256 * 1024;

/**
 * The log of one room in pages for those who read it. Readers at about the same place share a page that is on its way, as
 * pages begin at multiples of a span; the span follows the size of the events, so that little is read that is not sent.
 */
export class LogPages {
  readonly #key: RoomKey;
  readonly #deps: LogPagesDeps;
  readonly #onTheWay = new Map<string, Promise<LogPage | undefined>>();
  #span = SPAN_MAX;
  #failing = false;

  constructor(key: RoomKey, deps: LogPagesDeps) {
    this.#key = key;
    this.#deps = deps;
  }

  /**
   * The page that has the event `seq`, unless the log lacks it. @returns `undefined` where there is no such room.
   * @throws TuttiError where the log cannot be read.
   */
  async with(seq: number): Promise<LogPage | undefined> {
    for (;;) {
      const span = this.#span;
      const after = seq - 1 - ((seq - 1) % span);
      const page = await this.#shared(`${after} ${span}`, { after, limit: span, order: 'asc' });
      if (!page) return undefined;
      const { head, floor } = page.head;
      const last = page.after + page.frames.length;
      this.#fit(page.frames, span, last < Math.min(after + span, head));
      if (last >= seq || head < seq || floor >= seq || span === 1) return page;
    }
  }

  /** The newest events with a smaller seq, as many as one page has. @throws TuttiError where the log cannot be read. */
  before(seq: number): Promise<LogPage | undefined> {
    return this.#shared(`before ${seq}`, { before: seq, limit: SPAN_MAX, order: 'desc' });
  }

  #shared(id: string, range: Range): Promise<LogPage | undefined> {
    let page = this.#onTheWay.get(id);
    if (!page) {
      page = this.#read(range).finally(() => this.#onTheWay.delete(id));
      this.#onTheWay.set(id, page);
      this.#deps.metrics.add('log_queries', { purpose: 'replay' });
    }
    return page;
  }

  async #read(range: Range): Promise<LogPage | undefined> {
    const { log, logger } = this.#deps;
    const read = await log.read(tenantOf(this.#key), roomOf(this.#key), range).catch((err: unknown) => {
      // Once, not for each of the readers that wait.
      if (!this.#failing) logger.warn({ room: this.#key, err }, 'A replay could not read the log; it is tried again');
      this.#failing = true;
      throw err;
    });
    this.#failing = false;
    if (!read) return undefined;
    const { epoch, head, floor, events } = read;
    if (range.order === 'desc') events.reverse();
    const none = range.order === 'asc' ? Math.max(range.after ?? 0, floor) : head;
    return {
      head: { epoch, head, floor },
      after: events[0] ? events[0].seq - 1 : none,
      frames: events.map(eventFrame),
    };
  }

  /** @param cut whether the page ended before its span: its events are larger than was thought. */
  #fit(frames: readonly Frame[], span: number, cut: boolean): void {
    // Somebody who asked for another span meanwhile knows better.
    if (span !== this.#span || (frames.length < span && !cut)) return;
    let bytes = 0;
    for (const { length } of frames) bytes += length;
    const mean = bytes / Math.max(1, frames.length);
    while (this.#span > 1 && this.#span * mean > PAGE_BYTES) this.#span /= 2;
    if (cut) this.#span = Math.max(1, Math.min(this.#span, span / 2));
    else if (this.#span < SPAN_MAX && this.#span * mean * 4 <= PAGE_BYTES) this.#span *= 2;
  }
}
