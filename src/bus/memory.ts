import type { Announcement, Bus } from '../core/bus.js';
import type { RoomKey } from '../core/keys.js';

/** What several gateways of one process (tests, simulation) announce through. */
export class MemoryExchange {
  private readonly members = new Set<MemoryBus>();

  join(bus: MemoryBus): void {
    this.members.add(bus);
  }

  leave(bus: MemoryBus): void {
    this.members.delete(bus);
  }

  /** Delivers in a later microtask, as a network would: never inside the caller's stack. */
  pass(sender: MemoryBus, room: RoomKey, message: Announcement): void {
    if (this.members.size < 2) return;
    queueMicrotask(() => {
      for (const member of this.members) if (member !== sender) member.deliver(room, message);
    });
  }
}

/** The bus of a gateway that is alone. Loses nothing, is never away. */
class MemoryBus implements Bus {
  private readonly rooms = new Map<RoomKey, number>();
  private listener: (room: RoomKey, message: Announcement) => void = () => undefined;
  private open = true;

  constructor(private readonly exchange: MemoryExchange) {
    exchange.join(this);
  }

  announce(room: RoomKey, message: Announcement): void {
    if (this.open) this.exchange.pass(this, room, message);
  }

  async subscribe(room: RoomKey): Promise<void> {
    this.rooms.set(room, (this.rooms.get(room) ?? 0) + 1);
  }

  unsubscribe(room: RoomKey): void {
    const left = (this.rooms.get(room) ?? 0) - 1;
    if (left > 0) this.rooms.set(room, left);
    else this.rooms.delete(room);
  }

  onMessage(listener: (room: RoomKey, message: Announcement) => void): void {
    this.listener = listener;
  }

  onReconnect(): void {
    // never away, so never back
  }

  connected(): boolean {
    return this.open;
  }

  async close(): Promise<void> {
    this.open = false;
    this.rooms.clear();
    this.exchange.leave(this);
  }

  deliver(room: RoomKey, message: Announcement): void {
    if (this.rooms.has(room)) this.listener(room, message);
  }
}

/** The bus of a single gateway, which announces to nobody; or of several in one process that share an exchange. */
export const createMemoryBus = (exchange = new MemoryExchange()): Bus => new MemoryBus(exchange);
