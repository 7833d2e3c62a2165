import type { Announcement, AnnouncementKind } from '../core/bus.js';
import type { RoomKey } from '../core/keys.js';
import type { Frame } from '../protocol/frames.js';

/*
 * An announcement on a channel: 12 characters of node id padded with spaces, one of the kind, the key, a line
 * break, the frame. The fixed width lets a gateway drop its own echo by comparing a prefix.
 */

const NODE_ID_WIDTH = 12;

const letters = { event: 'e', broadcast: 'b', chunk: 'c', run: 'r', hint: 'h' } as const satisfies Record<
  AnnouncementKind,
  string
>;
const kinds = new Map<string, AnnouncementKind>(
  (Object.keys(letters) as AnnouncementKind[]).map((kind) => [letters[kind], kind]),
);

/** How every payload of a node begins. @throws RangeError for an id longer than 12 characters. */
export function senderPrefix(nodeId: string): string {
  if (nodeId.length === 0 || nodeId.length > NODE_ID_WIDTH) throw new RangeError(`node id ${nodeId} is not 1-12 long`);
  return nodeId.padEnd(NODE_ID_WIDTH);
}

export const encode = (sender: string, { kind, key, frame }: Announcement): string =>
  `${sender}${letters[kind]}${key}\n${frame}`;

/** The announcement of a payload, or `undefined` for one that is not ours, such as a newer version's. */
export function decode(payload: string): Announcement | undefined {
  const kind = kinds.get(payload.charAt(NODE_ID_WIDTH));
  const end = payload.indexOf('\n', NODE_ID_WIDTH + 1);
  if (kind === undefined || end < 0) return undefined;
  return { kind, key: payload.slice(NODE_ID_WIDTH + 1, end), frame: payload.slice(end + 1) as Frame };
}

/**
 * The channel of a room. The braces make the room its hash tag, so that a cluster keeps a room on one shard;
 * neither rooms nor tenants contain braces.
 */
export const channelOf = (prefix: string, room: RoomKey): string => `${prefix}{${room}}`;
export const roomOfChannel = (prefix: string, channel: string): RoomKey =>
  channel.slice(prefix.length + 1, -1) as RoomKey;
