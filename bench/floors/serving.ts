import uWS from 'uWebSockets.js';

/** Listens on a free port of 127.0.0.1 and says which. */
export function announce(app: uWS.TemplatedApp): void {
  app.listen('127.0.0.1', 0, (socket) => {
    if (!socket) throw new Error('cannot listen');
    process.stdout.write(`listening ${uWS.us_socket_local_port(socket)}\n`);
  });
  process.on('SIGTERM', () => process.exit(0));
}

/** A message is only valid during its callback. */
export const textOf = (message: ArrayBuffer): string => Buffer.from(message).toString();
