import { createConnection, createServer, type Socket } from 'node:net';
import { Transform } from 'node:stream';

export interface Forwarder {
  readonly url: string;
  /** Cuts what is open and lets nobody in any more. */
  close(): Promise<void>;
}

/** Lets through so many bytes a second, and takes no more than it lets through. */
function throttle(bytesPerSecond: number): Transform {
  return new Transform({
    transform(chunk: Buffer, _, done) {
      setTimeout(() => done(null, chunk), (1000 * chunk.length) / bytesPerSecond);
    },
  });
}

/**
 * One address of 127.0.0.1 in front of others. `choose` names the port of each new connection; without one it is cut.
 * With `bytesPerSecond` each of its clients reads no faster than that.
 */
export async function startForwarder(
  choose: () => number | undefined,
  { bytesPerSecond }: { bytesPerSecond?: number } = {},
): Promise<Forwarder> {
  const open = new Set<Socket>();
  const server = createServer((near) => {
    const port = choose();
    if (port === undefined) return void near.destroy();
    const far = createConnection({ port, host: '127.0.0.1' });
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      open.add(one);
      one.setNoDelay(true);
      one.on('error', () => undefined);
      one.on('close', () => {
        open.delete(one);
        other.destroy();
      });
      if (one === far && bytesPerSecond) one.pipe(throttle(bytesPerSecond)).pipe(other);
      else one.pipe(other);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  return {
    url: `http://127.0.0.1:${address.port}`,
    async close() {
      for (const socket of open) socket.destroy();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}
