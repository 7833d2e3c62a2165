import type { Link } from './link.js';

/** How long answers wait for others of the same connection, to be written with them, in ms. */
const WRITE_MS = 20;

const MESSAGE = 0x34;
const EVENT = 0x32;
const OPENING_BRACKET = 0x5b;
/** Digits of an id of an ack, at most. */
const ID_MAX = 15;

/** The id of the ack of a command at `/`, `''` for a command without; `undefined` for any other message. */
export function commandId(message: ArrayBuffer): string | undefined {
  const bytes = new Uint8Array(message, 0, Math.min(message.byteLength, ID_MAX + 3));
  if (bytes[0] !== MESSAGE || bytes[1] !== EVENT) return undefined;
  let id = '';
  for (let at = 2; at < bytes.length; at++) {
    const byte = bytes[at] ?? 0;
    if (byte === OPENING_BRACKET) return id;
    if (byte < 0x30 || byte > 0x39) return undefined;
    id += String.fromCharCode(byte);
  }
  return undefined;
}

const PUBLISH = '"event.publish"';

/** Whether the command with this {@link commandId} publishes an event. */
export function publishes(message: ArrayBuffer, id: string): boolean {
  const from = id.length + 3;
  if (message.byteLength < from + PUBLISH.length) return false;
  const bytes = new Uint8Array(message, from, PUBLISH.length);
  for (let at = 0; at < PUBLISH.length; at++) if (bytes[at] !== PUBLISH.charCodeAt(at)) return false;
  return true;
}

/** Refuses commands of connections over their rate. Their answers leave a little later, all of a connection in one write. */
export class Refusals {
  readonly #links = new Set<Link>();
  #timer: NodeJS.Timeout | undefined;

  /** @returns `false` for a command that nothing refuses yet. */
  take(link: Link, id: string, now: number): boolean {
    const { refusal } = link;
    if (!refusal) return false;
    if (now >= refusal.until) {
      link.answerRefused();
      link.refusal = undefined;
      return false;
    }
    link.refused.push(id);
    this.#links.add(link);
    this.#timer ??= setTimeout(() => this.#write(), WRITE_MS);
    refusal.more();
    return true;
  }

  #write(): void {
    this.#timer = undefined;
    for (const link of this.#links) link.answerRefused();
    this.#links.clear();
  }
}
