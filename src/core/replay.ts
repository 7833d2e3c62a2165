import type { Frame } from '../protocol/frames.js';

/** What a reader in replay lacks of the room's runs, and how it gets it. */
export interface ReaderRest {
  /** Set where the reader lacks something that no push will bring: it gets pages then, and pushes are not for it. */
  behind: boolean;
  /** Memory that is held for readers such as this alone, in characters. */
  readonly keptBytes: number;
  /** The next frames, about `maxBytes` of them; none where the reader has everything up to this moment. */
  page(maxBytes: number): Frame[];
  /** The reader gets pushes now, or nothing any more. */
  close(): void;
}

/** Output of runs that are over, kept in memory because one reader still lacks some of it, in characters. */
const KEPT_MAX_BYTES = 8 * 1024 * 1024;

/** One reader that is being brought up to the head of a room, and what came meanwhile that is no event. */
export class Replay {
  #broadcasts: Frame[] = [];
  /** What happened to runs, as long as the rest is not behind. */
  #runs: Frame[] = [];
  #bytes = 0;

  constructor(
    /** The seq of the last event it was sent. */
    public cursor: number,
    /** None for a reader that takes events alone. */
    readonly rest: ReaderRest | undefined,
    /** What is held for it, in characters. */
    private readonly maxBytes: number,
  ) {}

  /** @returns `false` where it is more than may be held. */
  holdBroadcast(frame: Frame): boolean {
    this.#broadcasts.push(frame);
    return this.#grew(frame);
  }

  /**
   * Past the bound runs are left to the rest, which holds none of their output.
   * @returns `false` where what is held for the rest is more than may be.
   */
  holdRun(frame: Frame): boolean {
    const { rest } = this;
    if (!rest) return true;
    if (rest.behind) return rest.keptBytes <= KEPT_MAX_BYTES;
    this.#runs.push(frame);
    return this.#grew(frame) && rest.keptBytes <= KEPT_MAX_BYTES;
  }

  /** What happens to runs comes with the rest from now on, and what has happened to them since the join as well. */
  fallBehind(): void {
    if (!this.rest) return;
    this.rest.behind = true;
    for (const { length } of this.#runs) this.#bytes -= length;
    this.#runs = [];
  }

  /** What was held, once. */
  take(): Frame[] {
    const held = [...this.#runs, ...this.#broadcasts];
    this.#runs = [];
    this.#broadcasts = [];
    this.#bytes = 0;
    return held;
  }

  #grew({ length }: Frame): boolean {
    this.#bytes += length;
    if (this.#bytes > this.maxBytes) this.fallBehind();
    return this.#bytes <= this.maxBytes;
  }
}
