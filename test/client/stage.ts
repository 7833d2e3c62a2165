import {
  type JoinOptions,
  type RoomEvent,
  type RoomHandle,
  type RunView,
  TuttiClient,
} from '../../src/client/index.js';
import type { Part } from '../../src/protocol/parts.js';
import { eventually } from '../support/eventually.js';
import { devToken } from '../support/tokens.js';

/** A room as a client of the SDK saw it: everything it was told, in the order it was told. */
export class Listener {
  readonly events: RoomEvent[] = [];
  readonly resets: string[] = [];
  readonly broadcasts: unknown[] = [];
  readonly runs: RunView[] = [];
  readonly states: string[] = [];

  constructor(readonly room: RoomHandle) {
    room.on('event', (event) => this.events.push(event));
    room.on('reset', ({ reason }) => this.resets.push(reason));
    room.on('broadcast', ({ data }) => this.broadcasts.push(data));
    room.on('run', (run) => this.runs.push(run));
    room.on('state', ({ status }) => this.states.push(status));
  }

  /** The numbers of the notes of {@link note}, in the order they arrived. */
  get notes(): number[] {
    return this.events.flatMap((event) => (event.type === 'note' ? [(event.data as { i: number }).i] : []));
  }

  get seqs(): number[] {
    return this.events.map((event) => event.seq);
  }

  joined(): Promise<unknown> {
    return eventually(`${this.room.name} is joined`, () => this.room.state.status === 'joined', 20_000);
  }

  /** Resolves when so many events arrived. */
  has(count: number): Promise<unknown> {
    return eventually(
      `${count} events in ${this.room.name}, there are ${this.events.length}`,
      () => this.events.length >= count,
      20_000,
    );
  }

  text(run: string): string {
    return textOf(this.room.runs.output(run));
  }
}

export const textOf = (parts: readonly Part[]): string =>
  parts.map((part) => (part.type === 'text-delta' ? String(part.delta) : '')).join('');

export const note = (room: RoomHandle, i: number, mid?: string) => room.publish('note', { i }, mid);

export const upTo = (count: number, from = 0): number[] => Array.from({ length: count }, (_, i) => from + i);

/** A client with a token of the tests, and what it listens to. */
export function listen(client: TuttiClient, room: string, options: JoinOptions = { from: 'start' }): Listener {
  return new Listener(client.join(room, options));
}

export function newClient(url: string, user = 'ann'): TuttiClient {
  return new TuttiClient({ url, token: () => devToken({ user }), maxRetryMs: 1000 });
}
