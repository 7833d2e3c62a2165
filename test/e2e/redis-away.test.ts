import { afterEach, expect, test } from 'vitest';
import { connect, type TestClient } from '../support/client.js';
import { startRedis } from '../support/redis.js';
import { startPair, Undo, userToken } from './run-stage.js';

const undo = new Undo();
afterEach(() => undo.all());

const client = async (gateway: { url: string }, user: string) =>
  undo.add(await connect({ url: gateway.url, token: await userToken(user) }), (one) => one.close());

/**
 * Publishes one event after another. Each stands before its own ack at a publisher that reads the room: nothing but its own
 * gateway brought it there, since a look at the log comes later than that.
 */
async function eachBeforeItsAck(publisher: TestClient, phase: string, count = 20): Promise<void> {
  for (let n = 0; n < count; n += 1) {
    const { position } = await publisher.call('event.publish', { room: 'near', type: 'note', data: { phase, n } });
    const seen = publisher.of('event').at(-1)?.seq;
    expect(seen, `${phase}: event ${position.seq} was acknowledged and not delivered`).toBe(position.seq);
  }
}

test('[FEED1] while Redis is killed, frozen or back, delivery within one gateway never waits for it', async () => {
  const redis = undo.add(await startRedis(), (one) => one.stop());
  const { a, b } = await startPair(undo, { redisUrl: redis.url });
  const [near, neighbour, far] = await Promise.all([client(a, 'ann'), client(a, 'ben'), client(b, 'cat')]);
  for (const one of [near, neighbour, far]) await one.call('room.join', { room: 'near' });

  await eachBeforeItsAck(near, 'up');
  redis.freeze();
  await eachBeforeItsAck(near, 'frozen');
  redis.thaw();
  await eachBeforeItsAck(near, 'thawed');
  await redis.kill9();
  await eachBeforeItsAck(near, 'killed');
  await redis.start();
  await eachBeforeItsAck(near, 'back');

  const seqs = Array.from({ length: 100 }, (_, at) => at + 1);
  for (const one of [near, neighbour, far]) {
    await one.until(() => one.of('event').length >= 100, 'everything that was published');
    expect(one.of('event').map(({ seq }) => seq)).toEqual(seqs);
  }
});
