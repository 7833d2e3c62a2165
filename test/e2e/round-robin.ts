import { type Forwarder, startForwarder } from '../support/forwarder.js';

/** How often each gateway is asked whether it is ready, in ms. */
const LOOK_MS = 100;

/**
 * One address in front of several gateways, as balancers give: each new connection goes to the next gateway whose `/readyz`
 * was well when it was asked last. What goes to one that is gone already is cut, and the client comes again.
 */
export async function startRoundRobin(ports: readonly number[]): Promise<Forwarder> {
  const ready = new Set(ports);
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
  const forwarder = await startForwarder(() => {
    const choice = ports.filter((port) => ready.has(port));
    return choice[next++ % Math.max(1, choice.length)];
  });
  return {
    url: forwarder.url,
    async close() {
      closed = true;
      await forwarder.close();
      await watching;
    },
  };
}
