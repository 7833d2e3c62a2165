import type { JoinFrom } from '../../src/protocol/commands.js';
import { type EventRecord, type Frame, payloadOf } from '../../src/protocol/frames.js';
import type { Position } from '../../src/protocol/primitives.js';
import type { LiveRun } from '../../src/protocol/runs.js';
import { key } from './feed-world.js';
import type { SimRooms } from './sim-log.js';
import { type SimGateway, type SimViewer, user } from './simulation.js';

/** A reader that joins, leaves and comes back somewhere with its position, and checks what it gets. */
export class Reader {
  position: Position | undefined;
  read = 0;
  readonly texts: string[] = [];
  resyncs = 0;
  attached = false;
  problem: Error | undefined;
  #joins = 0;

  constructor(
    readonly rooms: SimRooms,
    public viewer: SimViewer,
    /** Is told of everything that is read, in order. */
    readonly sink?: {
      joined(live: readonly LiveRun[]): void;
      resynced(): void;
      event(json: string): void;
      frame(frame: Frame, live: boolean): void;
    },
  ) {}

  /** Takes what came; throws at the first gap, repeat, reorder, invention or needless resync. */
  take(): void {
    if (this.problem) throw this.problem;
    for (; this.read < this.viewer.frames.length; this.read += 1) {
      const frame = this.viewer.frames[this.read] as Frame;
      if (frame.startsWith('42["room.resync"')) this.#resync(JSON.parse(payloadOf(frame, 'room.resync')).position);
      if (!frame.startsWith('42["event"')) {
        this.sink?.frame(frame, this.viewer.live.has(this.read));
        continue;
      }
      const json = payloadOf(frame, 'event');
      const { epoch, seq, mid } = JSON.parse(json) as EventRecord;
      if (!this.position) throw new Error('an event came before the reply');
      if (epoch !== this.position.epoch) throw new Error(`epoch ${epoch} after ${this.position.epoch}`);
      if (seq !== this.position.seq + 1) throw new Error(`seq ${seq} after ${this.position.seq}`);
      if (!this.rooms.ever.has(`${epoch} ${seq} ${mid}`)) throw new Error(`${mid} was never committed as ${seq}`);
      this.position = { epoch, seq };
      this.texts.push(mid);
      this.sink?.event(json);
    }
  }

  join(gateway: SimGateway, otherwise: JoinFrom = 'start', latencyMs = 0): void {
    const from = this.position ?? otherwise;
    const { viewer } = this;
    const round = ++this.#joins;
    this.attached = false;
    const joined = gateway.request(latencyMs, () =>
      gateway.rooms.join(user('reader'), { room: 'r', from }, viewer, ({ position, resync, runs }) => {
        if (!gateway.alive || viewer !== this.viewer || round !== this.#joins) return;
        this.attached = true;
        try {
          this.take();
          this.#joined(from, position, resync !== undefined);
          this.sink?.joined(runs);
        } catch (problem) {
          this.problem = problem as Error;
        }
      }),
    );
    joined.catch((problem) => {
      if (problem?.code === undefined) this.problem = problem;
    });
  }

  #joined(from: JoinFrom, position: Position, resync: boolean): void {
    if (resync) this.#resync(position);
    else if (typeof from === 'object' && (position.epoch !== from.epoch || position.seq !== from.seq)) {
      throw new Error(`resumed at ${position.seq} instead of ${from.seq}`);
    }
    this.position = position;
  }

  /** On a new connection; the old one says nothing any more. */
  move(viewer: SimViewer): void {
    this.take();
    this.viewer.closed = 'gone';
    this.viewer = viewer;
    this.read = 0;
    this.attached = false;
  }

  /** Only a log that is another one, or that has forgotten, makes a reader start over. */
  #resync(to: Position): void {
    this.resyncs += 1;
    const log = this.rooms.rooms.get(key);
    const at = this.position;
    const due = !at || at.epoch !== to.epoch || at.epoch !== log?.epoch || log.floor > at.seq;
    if (!due) throw new Error(`a needless resync at ${at.seq}`);
    this.position = to;
    this.sink?.resynced();
  }
}
