import { io, type Socket } from 'socket.io-client';
import { TuttiClient } from '../../src/client/index.js';
import type { CommandReply } from '../../src/protocol/commands.js';
import type { Position } from '../../src/protocol/primitives.js';
import type { Pushes } from '../../src/protocol/pushes.js';
import type { Answer } from '../../src/protocol/refusal.js';
import { RoomStream } from './feed-stream.js';
import { sleep } from './run-stage.js';

/** How long a reader was not joined and caught up, in ms, and when it was back, by the monotonic clock. */
export interface Absence {
  ms: number;
  back: number;
}

/**
 * What is told of one reader: the events it handled, and its absences. It is away from the moment its connection is lost
 * until it has everything that was acknowledged by the time it was joined again.
 */
abstract class Watched {
  readonly absences: Absence[] = [];
  readonly seqs: number[] = [];
  readonly faults: string[] = [];
  #lost: number | undefined;
  #due: number | undefined;

  /** @param newest the newest seq that was acknowledged to anybody */
  constructor(private readonly newest: () => number) {}

  get seq(): number {
    return this.seqs.at(-1) ?? 0;
  }

  get away(): boolean {
    return this.#lost !== undefined;
  }

  abstract stop(): unknown;

  protected lost(): void {
    this.#lost ??= performance.now();
    this.#due = undefined;
  }

  protected joined(): void {
    this.#due = this.newest();
    this.#look();
  }

  protected event(seq: number): void {
    if (seq !== this.seq + 1) this.faults.push(`seq ${seq} after ${this.seq}`);
    this.seqs.push(seq);
    this.#look();
  }

  #look(): void {
    if (this.#lost === undefined || this.#due === undefined || this.seq < this.#due) return;
    const back = performance.now();
    this.absences.push({ ms: back - this.#lost, back });
    this.#lost = undefined;
  }
}

/** A socket.io-client with all its defaults: it comes back by itself, and joins from its position whenever it connects. */
export class BareReader extends Watched {
  readonly #socket: Socket;
  #position: Position | undefined;

  constructor(url: string, room: string, token: string, newest: () => number) {
    super(newest);
    this.#socket = io(url, { transports: ['websocket'], auth: { token }, forceNew: true });
    this.#socket.on('connect', () => this.#join(room));
    this.#socket.on('disconnect', () => this.lost());
    this.#socket.on('room.resync', (push) => this.faults.push(`resync ${JSON.stringify(push)}`));
    this.#socket.on('connect_error', (error) => {
      if (!this.#socket.active) this.faults.push(`stays away: ${error.message}`);
    });
    this.#socket.on('event', ({ epoch, seq }: Pushes['event']) => {
      this.#position = { epoch, seq };
      this.event(seq);
    });
  }

  stop(): void {
    this.#socket.disconnect();
  }

  #join(room: string): void {
    const from = this.#position ?? 'start';
    this.#socket.emit('room.join', { room, from }, (answer: Answer<CommandReply<'room.join'>>) => {
      if (answer.ok) {
        if (answer.resync) this.faults.push('resync upon join');
        this.#position ??= answer.position;
        this.joined();
      } else if (answer.error.retryable) setTimeout(() => this.#socket.connected && this.#join(room), 100);
      else this.faults.push(answer.error.code);
    });
  }
}

/** A client of the SDK. */
export class SdkReader extends Watched {
  readonly #client: TuttiClient;

  constructor(url: string, room: string, token: string, newest: () => number) {
    super(newest);
    this.#client = new TuttiClient({ url, token });
    this.#client.onState(({ status }) => {
      if (status === 'waiting') this.lost();
      if (status === 'closed') this.faults.push('stays away');
    });
    const handle = this.#client.join(room, { from: 'start' });
    handle.on('event', ({ seq }) => this.event(seq));
    handle.on('reset', () => this.faults.push('reset'));
    handle.on('state', ({ status }) => {
      if (status === 'joined') this.joined();
    });
  }

  stop(): void {
    this.#client.close();
  }
}

/** Reads server-sent events, and reconnects after as long as the stream said last. */
export class StreamReader extends Watched {
  #stopped = false;
  #stream: RoomStream | undefined;
  readonly #running: Promise<void>;

  constructor(url: string, room: string, token: string, newest: () => number) {
    super(newest);
    this.#running = this.#run(url, token, `/v1/rooms/${room}/stream?after=start`);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#stream?.close();
    await this.#running;
  }

  async #run(url: string, token: string, path: string): Promise<void> {
    let lastId: string | undefined;
    let retryMs = 1000;
    while (!this.#stopped) {
      try {
        const stream = await RoomStream.open(url, token, path, lastId);
        this.#stream = stream;
        if (stream.status === 200) {
          this.joined();
          while (!stream.ended || stream.events.length > 0) {
            for (const { event, data } of stream.events.splice(0)) {
              if (event === 'event') this.event((JSON.parse(data) as { seq: number }).seq);
              else this.faults.push(`${event} ${data}`);
            }
            await sleep(10);
          }
          lastId = stream.lastId ?? lastId;
          retryMs = Number([...stream.raw.matchAll(/^retry: (\d+)$/gm)].at(-1)?.[1] ?? retryMs);
        } else if (stream.status !== 503) this.faults.push(`status ${stream.status}`);
      } catch {
        // Nobody there; the next try may be led elsewhere.
      }
      this.lost();
      if (!this.#stopped) await sleep(retryMs);
    }
  }
}

export type RollingReader = BareReader | SdkReader | StreamReader;
