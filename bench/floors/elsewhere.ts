import uWS from 'uWebSockets.js';
import { Server } from 'socket.io';
import { announce } from './serving.js';

/** Somewhere else for a loud neighbour to go: Socket.IO on uWebSockets.js that says yes to everything and does nothing. */
export function serve(): void {
  const app = uWS.App();
  const io = new Server({ transports: ['websocket'], serveClient: false });
  io.on('connection', (socket) => {
    socket.onAny((...args: unknown[]) => {
      const answer = args.at(-1);
      if (typeof answer === 'function') answer({ ok: true, position: 'latest' });
    });
  });
  io.attachApp(app);
  announce(app);
}
