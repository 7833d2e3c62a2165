import { createServer } from 'node:net';

/** Below what kernels give to outgoing connections: a server that is down for a moment finds its port free again. */
const LOWEST = 10_000;
const HIGHEST = 32_000;
const TRIES = 200;
/** Within that range, those that `fetch` and browsers refuse to talk to, by the standard of Fetch ("bad port"). */
const REFUSED = new Set([10_080]);

/** A TCP port of 127.0.0.1 that was free a moment ago, and that no outgoing connection will be given. */
export async function freePort(): Promise<number> {
  for (let tried = 0; tried < TRIES; tried++) {
    const port = LOWEST + Math.floor(Math.random() * (HIGHEST - LOWEST));
    if (!REFUSED.has(port) && (await isFree(port))) return port;
  }
  throw new Error(`no free port between ${LOWEST} and ${HIGHEST}`);
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen({ port, host: '127.0.0.1', exclusive: true }, () => server.close(() => resolve(true)));
  });
}
