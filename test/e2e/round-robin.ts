import { createConnection, createServer, type Socket } from 'node:net';

export interface RoundRobin {
  readonly url: string;
  close(): Promise<void>;
}

/** How often each gateway is asked whether it is ready, in ms. */
const LOOK_MS = 100;

/**
 * One address in front of several gateways, as balancers give: each new connection goes to the next gateway whose `/readyz`
 * was well when it was asked last. What goes to one that is gone already is cut, and the client comes again.
 */
export async function startRoundRobin(ports: readonly number[]): Promise<RoundRobin> {
  const ready = new Set(ports);
  const open = new Set<Socket>();
  let next = 0;
  let closed = false;
  const watch = async (port: number) => {
    while (!closed) {
      const well = await fetch(`http://127.0.0.1:${port}/readyz`, { signal: AbortSignal.timeout(1000) }).then(
        async (response) => (await response.arrayBuffer()) && response.ok,
        () => false,
      );
      if (well) ready.add(port);
      else ready.delete(port);
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    }
  };
  const watching = Promise.all(ports.map(watch));
  const server = createServer((near) => {
    const choice = ports.filter((port) => ready.has(port));
    const port = choice[next++ % Math.max(1, choice.length)];
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
      one.pipe(other);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  return {
    url: `http://127.0.0.1:${address.port}`,
    async close() {
      closed = true;
      for (const socket of open) socket.destroy();
      await new Promise<void>((resolve) => server.close(() => resolve()));
      await watching;
    },
  };
}
