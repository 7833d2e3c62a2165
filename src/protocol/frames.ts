import type { Actor, JsonText } from './primitives.js';
import type { Pushes, PushName } from './pushes.js';

/**
 * A push as it stands on the wire: an Engine.IO message (`4`) that holds a Socket.IO event (`2`) of
 * namespace `/`. Made once per push and gateway, then copied to sockets as it is.
 * Source: https://socket.io/docs/v4/socket-io-protocol/ (revision 5).
 */
export type Frame = string & { readonly frame: unique symbol };

/** `json` is the push's payload as JSON text. */
export const frameOf = (name: PushName, json: string): Frame => `42["${name}",${json}]` as Frame;

export const encodePush = <N extends PushName>(name: N, push: Pushes[N]): Frame => frameOf(name, JSON.stringify(push));

/** The payload of a frame as JSON text, without parsing it. */
export const payloadOf = (frame: Frame, name: PushName): string => frame.slice(name.length + 6, -1);

/** What the frame of an event is made of. `by` and `data` are JSON text, so that nothing is parsed on the way. */
export interface EventRecord {
  room: string;
  epoch: string;
  seq: number;
  mid: string;
  type: string;
  data: JsonText;
  by: JsonText;
  at: number;
}

/** The JSON text of an event as readers see it. */
export const eventJson = (event: EventRecord): JsonText =>
  (`{"room":"${event.room}","epoch":"${event.epoch}","seq":${event.seq},"mid":"${event.mid}","type":"${event.type}",` +
    `"data":${event.data},"by":${event.by},"at":${event.at}}`) as JsonText;

export const eventFrame = (event: EventRecord): Frame => frameOf('event', eventJson(event));

/** The frame of a broadcast, from JSON text. */
export const broadcastFrame = (room: string, type: string, data: JsonText, by: Actor): Frame =>
  frameOf('broadcast', `{"room":"${room}","type":"${type}","data":${data},"by":${JSON.stringify(by)}}`);
