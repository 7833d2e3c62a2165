import uWS from 'uWebSockets.js';
import { announce, textOf } from './serving.js';

/** The floor of run output: what a worker sends on `/worker`, `<run> <frame>`, goes to the viewers of `/viewer?<run>`. */
export function serve(): void {
  const app = uWS.App();
  app.ws<{ run: string }>('/viewer', {
    idleTimeout: 0,
    upgrade: (res, req, context) => {
      const key = req.getHeader('sec-websocket-key');
      res.upgrade({ run: req.getQuery() }, key, '', '', context);
    },
    open: (ws) => {
      ws.subscribe(ws.getUserData().run);
    },
  });
  app.ws('/worker', {
    idleTimeout: 0,
    maxPayloadLength: 256 * 1024,
    message: (_ws, message) => {
      const text = textOf(message);
      const space = text.indexOf(' ');
      app.publish(text.slice(0, space), text.slice(space + 1));
    },
  });
  announce(app);
}
