import { Server } from 'socket.io';
import { afterEach, test } from 'vitest';
import { ControlPlane } from '../../src/realtime/control.js';
import { Undo } from '../e2e/run-stage.js';
import { eventually } from '../support/eventually.js';
import { startProxy } from '../support/proxy.js';
import { startRedis } from '../support/redis.js';
import { recordLog } from '../support/telemetry.js';

const undo = new Undo();
afterEach(() => undo.all());

/** A gateway's control plane, and the revocations it heard of. */
function plane(url: string) {
  const log = recordLog();
  const control = undo.add(new ControlPlane({ url, cluster: false, prefix: 'test:' }, log), (one) => one.close());
  const io = new Server({
    adapter: function adapterOf(namespace) {
      return control.adapter(namespace);
    },
  });
  const heard: string[] = [];
  control.start(io, ({ id }) => heard.push(id));
  let n = 0;
  const tell = () => {
    const at = Date.now();
    control.revoked({ id: `${++n}`, tenant: 'acme', kind: 'user', subject: 'ann', at }, at);
  };
  const failures = () => log.lines.map(({ fields }) => (fields as { err?: Error }).err?.message ?? '');
  return { tell, heard, failures };
}

test('a Redis that takes commands of the control plane and answers none is given up, and found again', async () => {
  const redis = undo.add(await startRedis(), (one) => one.stop());
  const proxy = undo.add(await startProxy(redis.port), (one) => one.close());
  const [one, two] = [plane(`redis://127.0.0.1:${proxy.port}`), plane(redis.url)];
  const flows = (from: typeof one, to: typeof one) => {
    const before = to.heard.length;
    return eventually('it is heard', () => {
      from.tell();
      return to.heard.length > before;
    });
  };
  await flows(one, two);
  await flows(two, one);

  proxy.blackhole();
  one.tell();
  await eventually('the connection is given up', () => one.failures().some((text) => /Socket timeout/.test(text)));
  proxy.heal();
  proxy.drop();
  await flows(one, two);
  await flows(two, one);
});

test('a Redis that accepts connections of the control plane and never says a word is tried again until it does', async () => {
  const redis = undo.add(await startRedis(), (one) => one.stop());
  const proxy = undo.add(await startProxy(redis.port), (one) => one.close());
  proxy.blackhole();
  const one = plane(`redis://127.0.0.1:${proxy.port}`);
  await eventually('both connections are given up', () => one.failures().filter((text) => text !== '').length >= 2);
  proxy.heal();
  proxy.drop();
  const two = plane(redis.url);
  await eventually('both are heard', () => {
    one.tell();
    two.tell();
    return one.heard.length > 0 && two.heard.length > 0;
  });
});
