import uWS from 'uWebSockets.js';
import { Server } from 'socket.io';
import { announce } from './serving.js';

/** The floor of memory: Socket.IO on uWebSockets.js and nothing else. */
export function serve(): void {
  const app = uWS.App();
  const io = new Server({ transports: ['websocket'], serveClient: false });
  io.attachApp(app);
  announce(app);
}
