import exec from 'k6/execution';
import { connections, lost, mint, once, pause, promises, seconds, session, share, vus } from './lib/tutti.js';

/* Opens CONNECTIONS sockets evenly over RAMP seconds and holds them for DURATION, answering heartbeats. */

const ramp = Number(__ENV.RAMP || Math.max(1, Math.round(connections / 500)));

export const options = {
  scenarios: { idle: once('idle', vus) },
  thresholds: { ...promises, tutti_connections_lost: ['count==0'], tutti_connect_duration: ['p(95)<5000'] },
};

export const setup = () => mint(Math.min(connections, 20), ['join']);

export async function idle(tokens) {
  lost.add(0); // a threshold without a sample is not looked at
  const open = await Promise.all(
    share(exec.scenario.iterationInTest).map(async (n) => {
      await pause((n / connections) * ramp * 1000);
      const one = session(tokens[n % tokens.length]);
      return (await one.ready) ? one : undefined;
    }),
  );
  await pause(seconds * 1000);
  for (const one of open) if (one) one.end();
}
