import uWS from 'uWebSockets.js';
import { Redis } from 'ioredis';
import { announce, textOf } from './serving.js';

/**
 * The floor of fan-out: sockets of one topic, and a frame that is published to it ten times in a turn of the loop, when
 * a message comes on `/control`, or as often as it arrives on the channel of a Redis given as argument.
 */
export function serve([redisUrl]: string[]): void {
  const app = uWS.App();
  app.ws('/', {
    idleTimeout: 0,
    maxBackpressure: 2 * 1024 * 1024,
    open: (ws) => {
      ws.subscribe('room');
    },
  });
  app.ws('/control', {
    idleTimeout: 0,
    message: (_ws, message) => {
      const frame = textOf(message);
      for (let i = 0; i < 10; i++) app.publish('room', frame);
    },
  });
  if (redisUrl === undefined) {
    announce(app);
    return;
  }
  const redis = new Redis(redisUrl);
  redis.on('smessage', (_channel: string, frame: string) => app.publish('room', frame));
  void redis.ssubscribe('floor').then(() => announce(app));
}
