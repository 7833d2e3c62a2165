import { Refusal } from '../protocol/refusal.js';
import {
  Connection,
  type ConnectionOptions,
  type ConnectionState,
  type Session,
  type WireFrame,
} from './connection.js';
import { type JoinOptions, RoomHandle } from './room.js';

/**
 * A client of Tutti for browsers and Node. It opens at once, comes back by itself, refreshes its token, and puts
 * every room back to where it stood.
 */
export class TuttiClient {
  readonly #connection: Connection;
  readonly #rooms = new Map<string, RoomHandle>();

  constructor(options: ConnectionOptions) {
    this.#connection = new Connection(options);
    this.#connection.events.on('state', (state) => this.#changed(state));
    this.#connection.events.on('push', (push) => {
      const room = 'room' in push.payload ? this.#rooms.get(push.payload.room) : undefined;
      if (!room) return;
      if (push.name === 'event') room.receiveEvent(push.payload);
      else if (push.name === 'broadcast') room.events.emit('broadcast', push.payload);
      else if (push.name === 'run.chunk') room.runs.chunk(push.payload);
      else if (push.name === 'run.state') room.runs.state(push.payload);
      else if (push.name === 'run.reset') room.runs.reset(push.payload);
      else if (push.name === 'room.resync') room.receiveResync(push.payload);
    });
    this.#connection.open();
  }

  get state(): ConnectionState {
    return this.#connection.state;
  }

  get session(): Session | undefined {
    return this.state.status === 'connected' ? this.state.session : undefined;
  }

  /** The room, joined as soon as there is a connection. Asking again gives the same handle. */
  join(name: string, options: JoinOptions = {}): RoomHandle {
    const known = this.#rooms.get(name);
    if (known) return known;
    const room = new RoomHandle(name, options, this.#connection);
    this.#rooms.set(name, room);
    // After the caller has had the time to listen.
    queueMicrotask(() => this.#tell(room, this.state));
    return room;
  }

  /** Stops reading; what was not stored yet rejects. */
  leave(name: string): void {
    this.#rooms.get(name)?.leave();
    this.#rooms.delete(name);
  }

  onState(listener: (state: ConnectionState) => void): () => void {
    return this.#connection.events.on('state', listener);
  }

  /** Every message as it goes over the wire, tokens left out; for inspectors. */
  onWire(listener: (frame: WireFrame) => void): () => void {
    return this.#connection.events.on('wire', listener);
  }

  /** Tries again now instead of at the end of the pause. */
  retryNow(): void {
    this.#connection.retryNow();
  }

  /** Comes back with a fresh token; what waits is kept. */
  restart(): void {
    this.#connection.restart();
  }

  /** Ends the connection; what was not stored rejects. */
  close(): void {
    this.#connection.close();
  }

  #changed(state: ConnectionState): void {
    for (const room of this.#rooms.values()) this.#tell(room, state);
  }

  #tell(room: RoomHandle, state: ConnectionState): void {
    if (state.status === 'connected') {
      if (room.state.status !== 'joined') room.connected();
    } else if (state.status === 'closed') {
      room.closed(state.error ?? new Refusal({ code: 'closed', message: 'The client was closed.', retryable: false }));
    } else if (room.state.status !== 'refused') room.disconnected();
  }
}
