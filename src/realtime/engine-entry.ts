import type uWS from 'uWebSockets.js';
import type { EngineSocket, Handshake, Link, LinkData } from './link.js';

type Behavior = Pick<uWS.WebSocketBehavior<LinkData>, 'upgrade' | 'open'>;

/** Takes from a request what {@link enterEngine} needs. */
export const handshakeOf = (req: uWS.HttpRequest, res: uWS.HttpResponse): Handshake => ({
  url: req.getUrl(),
  query: req.getQuery(),
  origin: req.getHeader('origin'),
  address: res.getRemoteAddressAsText(),
});

/** Engine.IO touches nothing of a WebSocket but what a link has. */
export const forEngine = (link: Link) => link as EngineSocket as uWS.WebSocket<LinkData>;

/**
 * Tells Engine.IO of a WebSocket that is open already, in the words of its upgrade. Its share of a handshake is the dear one, and so can
 * wait for a turn, which the upgrade itself cannot: done outside of its handler it lets uWebSockets.js take the WebSocket for
 * what it was before, now and then, and close it.
 */
export function enterEngine(behavior: Behavior, link: Link, { url, query, origin, address }: Handshake): void {
  const request = {
    getMethod: () => 'get',
    getUrl: () => url,
    getQuery: () => query,
    getHeader: (name: string) => (name === 'origin' ? origin : ''),
    forEach: (each: (name: string, value: string) => void) => {
      if (origin !== '') each('origin', origin);
    },
  };
  const response = {
    onAborted: () => response,
    getRemoteAddressAsText: () => address,
    writeStatus: () => response,
    writeHeader: () => response,
    cork: (work: () => void) => {
      work();
      return response;
    },
    upgrade: (data: LinkData) => {
      link.entered(data);
      behavior.open?.(forEngine(link));
    },
    // Engine.IO does not want it.
    end: () => link.terminate(),
    close: () => link.terminate(),
  };
  behavior.upgrade?.(
    response as unknown as uWS.HttpResponse,
    request as unknown as uWS.HttpRequest,
    undefined as unknown as uWS.us_socket_context_t,
  );
}
