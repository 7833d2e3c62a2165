import { createConnection, createServer, type Socket } from 'node:net';

export interface FaultProxy {
  readonly port: number;
  /** Connections open now. */
  readonly connections: number;
  /** Resets every connection and refuses new ones until {@link heal}. */
  cut(): void;
  /** Resets every connection; new ones are served. */
  drop(): void;
  /** Nothing passes and nothing is closed, for open and for new connections, until {@link heal}. */
  blackhole(): void;
  /** Every chunk arrives this many ms later. */
  delay(ms: number): void;
  /** Ends cut, blackhole and delay. What a blackhole held back is delivered then. */
  heal(): void;
  close(): Promise<void>;
}

/** Bytes held for a side that takes nothing before the other is not read any more: what a network would hold. */
const HELD_MAX = 256 * 1024;

/** A TCP proxy on 127.0.0.1 in front of a port of 127.0.0.1, that fails as told. */
export async function startProxy(targetPort: number): Promise<FaultProxy> {
  const pairs = new Map<Socket, Socket>();
  let mode: 'pass' | 'cut' | 'blackhole' = 'pass';
  let delayMs = 0;
  const lines = new Set<() => void>();

  /** One direction of one connection. Chunks leave in the order they came, whatever happens to the delay. */
  const pipe = (from: Socket, to: Socket) => {
    const waiting: { at: number; chunk: Buffer | 'end' }[] = [];
    let timer: NodeJS.Timeout | undefined;
    let held = 0;
    /** A side that does not read slows the other down, as without a proxy. */
    const press = () => {
      const full = !to.destroyed && (held > HELD_MAX || to.writableNeedDrain);
      if (full && !from.isPaused()) from.pause();
      else if (!full && from.isPaused()) from.resume();
    };
    const pump = () => {
      send();
      press();
    };
    const send = () => {
      clearTimeout(timer);
      if (mode === 'blackhole') return;
      for (let next = waiting[0]; next; next = waiting[0]) {
        const wait = delayMs === 0 ? 0 : next.at - Date.now();
        if (wait > 0) {
          timer = setTimeout(pump, wait);
          return;
        }
        waiting.shift();
        if (next.chunk === 'end') to.end();
        else {
          held -= next.chunk.length;
          if (!to.destroyed) to.write(next.chunk);
        }
      }
    };
    const take = (chunk: Buffer | 'end') => {
      waiting.push({ at: Date.now() + delayMs, chunk });
      if (chunk !== 'end') held += chunk.length;
      pump();
    };
    lines.add(pump);
    to.on('drain', press);
    from.on('data', take);
    from.on('end', () => take('end'));
    from.on('error', () => undefined);
    from.on('close', (broken) => {
      if (!broken && waiting.length > 0) return; // what was sent before the end still arrives
      clearTimeout(timer);
      lines.delete(pump);
      if (mode !== 'blackhole') to.destroy();
    });
  };
  const server = createServer({ allowHalfOpen: true }, (near) => {
    if (mode === 'cut') return void near.resetAndDestroy();
    const far = createConnection({ port: targetPort, host: '127.0.0.1', allowHalfOpen: true });
    near.setNoDelay(true);
    far.setNoDelay(true);
    pairs.set(near, far);
    near.once('close', () => pairs.delete(near));
    pipe(near, far);
    pipe(far, near);
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  const reset = () => {
    for (const [near, far] of pairs) {
      near.resetAndDestroy();
      far.destroy();
    }
  };
  return {
    port: address.port,
    get connections() {
      return pairs.size;
    },
    cut() {
      mode = 'cut';
      reset();
    },
    drop: reset,
    blackhole() {
      mode = 'blackhole';
    },
    delay(ms) {
      delayMs = ms;
    },
    heal() {
      mode = 'pass';
      delayMs = 0;
      for (const pump of lines) pump();
    },
    async close() {
      mode = 'cut';
      reset();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}
