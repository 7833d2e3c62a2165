import type { Announcement, Bus } from '../../src/core/bus.js';
import type { RoomKey } from '../../src/core/keys.js';
import type { MortalClock } from './virtual-clock.js';

export interface BusFaults {
  random: () => number;
  drop: number;
  repeat: number;
  maxDelayMs: number;
}

/** A bus of one gateway that drops, repeats, delays and so reorders; it can be down for everybody on it. */
export class SimBus implements Bus {
  down = false;
  #listener: ((room: RoomKey, message: Announcement) => void) | undefined;
  #reconnected: () => void = () => {};
  readonly #rooms = new Map<RoomKey, number>();

  constructor(
    readonly others: SimBus[],
    readonly clock: MortalClock,
    readonly faults: BusFaults,
  ) {
    others.push(this);
  }

  announce(room: RoomKey, message: Announcement): void {
    const { random, drop, repeat, maxDelayMs } = this.faults;
    if (!this.clock.crosses() || this.down) return;
    for (const other of this.others) {
      if (other === this) continue;
      const copies = random() < drop ? 0 : random() < repeat ? 2 : 1;
      for (let i = 0; i < copies; i += 1) {
        this.clock.world.after(random() * maxDelayMs, () => other.#arrive(room, message));
      }
    }
  }

  /** Takes effect after a while: what was announced before may be missed. */
  subscribe(room: RoomKey): Promise<void> {
    return new Promise((resolve) => {
      if (!this.clock.crosses()) return;
      this.clock.after((this.faults.random() * this.faults.maxDelayMs) / 4, () => {
        if (!this.clock.crosses()) return;
        this.#rooms.set(room, (this.#rooms.get(room) ?? 0) + 1);
        resolve();
      });
    });
  }

  unsubscribe(room: RoomKey): void {
    if (!this.clock.crosses()) return;
    this.#rooms.set(room, (this.#rooms.get(room) ?? 0) - 1);
  }

  onMessage(listener: (room: RoomKey, message: Announcement) => void): void {
    this.#listener = listener;
  }

  onReconnect(listener: () => void): void {
    this.#reconnected = listener;
  }

  connected(): boolean {
    return !this.down;
  }

  async close(): Promise<void> {}

  /** Announcements flow again. */
  restore(): void {
    if (!this.down) return;
    this.down = false;
    this.clock.soon(() => this.#reconnected());
  }

  /** The gateway is gone. */
  cut(): void {
    const at = this.others.indexOf(this);
    if (at >= 0) this.others.splice(at, 1);
  }

  #arrive(room: RoomKey, message: Announcement): void {
    if (this.down || (this.#rooms.get(room) ?? 0) <= 0) return;
    this.clock.soon(() => this.#listener?.(room, message));
  }
}
