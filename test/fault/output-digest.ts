import type { Part } from '../../src/protocol/parts.js';
import { Digest } from './history.js';

/** Parts that carry a piece of something longer: what names that, and the piece. */
const PIECES: Record<string, readonly [of: string, piece: string]> = {
  'text-delta': ['id', 'delta'],
  'reasoning-delta': ['id', 'delta'],
  'tool-input-delta': ['toolCallId', 'inputTextDelta'],
};
/** Begins what is no continuation; no text in Postgres has it. */
const MARK = '\0';

/**
 * A running digest of the output of a run: of every part with all its fields. Equal for equal output, however that is cut into
 * deltas: neighbours of one kind and name count as one, as readers who come late are given them (RUN4).
 */
export class OutputDigest {
  readonly #digest = new Digest();
  #continues: string | undefined;

  add(...parts: readonly Part[]): this {
    for (const part of parts) this.#add(part as Record<string, unknown>);
    return this;
  }

  toString(): string {
    return this.#digest.toString();
  }

  #add(part: Record<string, unknown>): void {
    const { type } = part;
    const [of, piece] = PIECES[String(type)] ?? [];
    // What a delta says beside its text is never folded.
    if (of === undefined || piece === undefined || Object.keys(part).length > 3) {
      this.#continues = undefined;
      this.#digest.add(MARK + canonical(part));
      return;
    }
    const continued = `${type} ${part[of]}`;
    if (continued !== this.#continues) this.#digest.add(`${MARK}${continued}${MARK}`);
    this.#continues = continued;
    this.#digest.add(String(part[piece]));
  }
}

/** JSON in which the order of fields says nothing: Postgres has its own. */
function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'null';
  const fields = Object.entries(value).filter(([, of]) => of !== undefined);
  const sorted = fields.sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${sorted.map(([name, of]) => `${JSON.stringify(name)}:${canonical(of)}`).join(',')}}`;
}
