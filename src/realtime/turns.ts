import { Fifo } from '../core/fifo.js';

type Work = () => void;
interface Piece {
  readonly work: Work;
  /** Whether there is nothing left to do. */
  readonly gone?: (() => boolean) | undefined;
}

/** What connections do, beside the commands of tenants. */
export type Passage = 'opening' | 'entering' | 'closing';

/** Who comes, and who goes, one after another; of those who come, who began is let in before others begin. */
const ORDER = [
  ['entering', 'opening', 'closing'],
  ['closing', 'entering', 'opening'],
] as const;

/** How long work may keep one turn of the loop as it comes, in ms, and again of what waited; one piece is done in any case. */
const COMES_MS = 0.25;
const WAITED_MS = 1;
/** Pieces of what waited in one turn, at most. */
const PIECES = 64;
/** How long connections may work at once after a pause, in ms, and how far they may overdraw by what nobody can hold back. */
const BURST_MS = 4;
const DEBT_MS = 100;
/**
 * Most that the loop is taken to have spent on a socket before its handler was called, and on one piece, in ms: where it takes
 * longer the machine did something else meanwhile.
 */
const HANDED_OVER_MS = 0.1;
const PIECE_MAX_MS = 0.25;
/** A connection has its turn at least so often while others come and go without end, in ms. */
const LEAST_OFTEN_MS = 5;

/** Groups of work: one piece of each after another, each group's in order. */
class Line {
  readonly #queues = new Map<string, Fifo<Work>>();
  #size = 0;

  get size(): number {
    return this.#size;
  }

  waiting(group: string): number {
    return this.#queues.get(group)?.size ?? 0;
  }

  push(group: string, work: Work): void {
    const queue = this.#queues.get(group);
    if (queue) queue.push(work);
    else this.#queues.set(group, new Fifo(work));
    this.#size += 1;
  }

  shift(): Work | undefined {
    const next = this.#queues.entries().next().value;
    if (!next) return undefined;
    const [group, queue] = next;
    const work = queue.shift();
    // To the end of the line, where there is more; before it works, so that what it adds stays behind.
    this.#queues.delete(group);
    if (queue.size > 0) this.#queues.set(group, queue);
    this.#size -= 1;
    return work;
  }
}

/** Connections that open, enter and close: {@link ORDER} tells whose turn it is. */
class Passages {
  readonly #queues: Record<Passage, Fifo<Piece>> = { opening: new Fifo(), entering: new Fifo(), closing: new Fifo() };
  #turn: 0 | 1 = 0;

  get size(): number {
    const { opening, entering, closing } = this.#queues;
    return opening.size + entering.size + closing.size;
  }

  push(passage: Passage, piece: Piece): void {
    this.#queues[passage].push(piece);
  }

  shift(): Work | undefined {
    for (;;) {
      const passage = ORDER[this.#turn].find((one) => this.#queues[one].size > 0);
      const piece = passage && this.#queues[passage].shift();
      if (piece?.gone?.()) continue;
      this.#turn = this.#turn === 0 ? 1 : 0;
      return piece?.work;
    }
  }
}

/** A share of the time: spent by what turned out to be used, earned while time goes by. */
class Share {
  #saved = BURST_MS;
  #at: number;

  constructor(
    private readonly share: number,
    private readonly now: () => number,
  ) {
    this.#at = now();
  }

  spend(ms: number): void {
    this.#saved -= ms;
    this.#earn();
    this.#saved = Math.max(-DEBT_MS, this.#saved);
  }

  /** How long until some is left, in ms; 0: now. */
  waitMs(): number {
    this.#earn();
    return this.#saved > 0 ? 0 : Math.max(1, Math.ceil((0.01 - this.#saved) / this.share));
  }

  #earn(): void {
    const now = this.now();
    this.#saved = Math.min(BURST_MS, this.#saved + (now - this.#at) * this.share);
    this.#at = now;
  }
}

/**
 * Turns of the event loop, dealt out to groups: the commands of one tenant are one, and all connections that come, enter and go are
 * another. Commands are done as they come for as long as a turn has time; then they wait, in the order of their group, and groups that wait get one
 * piece of work done after another. So a group that comes with thousands at once waits for itself, and nobody else does for long.
 * Connections always wait, and have but a share of the time: in a storm of them the loop, and the machine, is left to those who
 * are there already.
 */
export class Turns {
  readonly #commands = new Line();
  readonly #connections = new Passages();
  readonly #share: Share;
  #lastPassage = Number.NEGATIVE_INFINITY;
  /** Turns that began to work off what waited. */
  #turn = 0;
  /** When the time of this turn is over: for what comes, once something came, and for what waited. */
  #comesUntil: number | undefined;
  #waitedUntil = 0;
  /** Immediates that will do a piece in this turn or the next. */
  #scheduled = 0;
  #pause: NodeJS.Timeout | undefined;
  #passedAt = Number.NEGATIVE_INFINITY;
  /** When the last piece of connections began, until it is known when it was over. */
  #began: number | undefined;
  /** Whether connections had the last piece, so that commands have the next. */
  #alternate = false;

  /** @param share of the time that connections may take, above 0, up to 1 */
  constructor(
    share: number,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.#share = new Share(share, now);
  }

  /** Connections that wait to be opened, let in or closed. */
  get connections(): number {
    return this.#connections.size;
  }

  /** Commands that wait. */
  get commands(): number {
    return this.#commands.size;
  }

  /** Whether a command of the group would be done now: none of it waits, and this turn has time left. */
  free(group: string): boolean {
    if (this.#scheduled === 0) this.#schedule();
    return this.#commands.waiting(group) === 0 && this.#hasTime();
  }

  /** Does the work now where the group is {@link Turns.free}, else in a later turn. It must not throw. */
  add(group: string, work: Work): void {
    if (this.free(group)) work();
    else this.wait(group, work);
  }

  /** Does the work in a later turn. It must not throw. */
  wait(group: string, work: Work): void {
    this.#commands.push(group, work);
    this.#schedule();
  }

  /**
   * A socket was just accepted, upgraded or closed, which uWebSockets.js does when it likes: that counts as time of connections,
   * from the last one on where they come in a row.
   */
  passed(): void {
    const now = this.now();
    this.#share.spend(Math.min(HANDED_OVER_MS, now - this.#passedAt));
    this.#passedAt = now;
  }

  /** Does the work for a connection when it is its turn, unless it is `gone` by then. It must not throw. */
  pass(passage: Passage, work: Work, gone?: () => boolean): void {
    this.#connections.push(passage, { work, gone });
    // One more, to see when the last piece was over.
    if (this.#scheduled === 0) this.#schedule();
    this.#schedule();
  }

  /** Resolves when it is a connection's turn; what follows is the work. */
  passing(passage: Passage): Promise<void> {
    return new Promise((resolve) => this.pass(passage, resolve));
  }

  #hasTime(): boolean {
    if (this.#comesUntil !== undefined) return this.now() < this.#comesUntil;
    this.#comesUntil = this.now() + COMES_MS;
    return true;
  }

  /** One immediate for each piece: node runs what a piece left to promises before the next one, so that its time counts too. */
  #schedule(): void {
    if (this.#scheduled >= PIECES) return;
    this.#scheduled += 1;
    const turn = this.#turn;
    setImmediate(() => this.#run(turn));
  }

  #run(scheduledIn: number): void {
    this.#scheduled -= 1;
    const now = this.now();
    const first = scheduledIn === this.#turn;
    if (this.#began !== undefined) this.#share.spend(Math.min(PIECE_MAX_MS, now - this.#began));
    this.#began = undefined;
    if (first) {
      this.#turn += 1;
      this.#comesUntil = undefined;
      this.#waitedUntil = now + WAITED_MS;
    }
    if (first || now < this.#waitedUntil) this.#piece(now);
    this.#goOn();
  }

  #piece(now: number): void {
    const connections = this.#connections.size > 0 && this.#pauseMs(now) === 0;
    const turnOfConnections = connections && !(this.#alternate && this.#commands.size > 0);
    this.#alternate = turnOfConnections;
    if (turnOfConnections) this.#began = this.#lastPassage = now;
    (turnOfConnections ? this.#connections : this.#commands).shift()?.();
  }

  /** How long connections have to wait, in ms. */
  #pauseMs(now: number): number {
    const leastMs = Math.max(0, Math.ceil(LEAST_OFTEN_MS - (now - this.#lastPassage)));
    return Math.min(this.#share.waitMs(), leastMs);
  }

  /** Sees to it that what waits is done: in the next turn, or when connections have some of their time again. */
  #goOn(): void {
    if (this.#scheduled > 0) return;
    const pauseMs = this.#connections.size > 0 ? this.#pauseMs(this.now()) : Number.POSITIVE_INFINITY;
    if (this.#commands.size > 0 || this.#began !== undefined || pauseMs === 0) {
      for (let n = Math.min(PIECES, this.#commands.size + this.#connections.size + 1); n > 0; n -= 1) this.#schedule();
    } else if (this.#connections.size > 0) {
      this.#pause ??= setTimeout(() => {
        this.#pause = undefined;
        this.#goOn();
      }, pauseMs);
    }
  }
}
