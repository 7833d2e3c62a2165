import type { Part } from './parts.js';

interface DeltaKind {
  readonly key: 'id' | 'toolCallId';
  readonly text: 'delta' | 'inputTextDelta';
}

interface PendingDelta {
  readonly part: Part;
  readonly kind: DeltaKind;
  readonly texts: string[];
}

const deltaKinds: Record<string, DeltaKind> = {
  'text-delta': { key: 'id', text: 'delta' },
  'reasoning-delta': { key: 'id', text: 'delta' },
  'tool-input-delta': { key: 'toolCallId', text: 'inputTextDelta' },
};

/** The text of a delta that may be folded with others, and so be cut as well; of any other part `undefined`. */
export function deltaText(part: Part): string | undefined {
  const kind = deltaKinds[part.type];
  return kind && Object.keys(part).length <= 3 ? String((part as Record<string, unknown>)[kind.text]) : undefined;
}

/** The same delta with another text. */
export function withText(part: Part, text: string): Part {
  const kind = deltaKinds[part.type];
  return kind ? ({ ...part, [kind.text]: text } as Part) : part;
}

/**
 * Folds a run's output into few parts: adjacent deltas of one part become one delta. Nothing else changes,
 * so the folded output reads exactly as the unfolded one.
 */
export class Fold {
  readonly #parts: Part[] = [];
  #pending: PendingDelta | undefined;

  add(next: Part): void {
    const kind = deltaKinds[next.type];
    if (kind && this.#extend(next, kind)) return;
    this.#flush();
    if (kind) this.#pending = { part: next, kind, texts: [this.#field(next, kind.text)] };
    else this.#parts.push(next);
  }

  addAll(parts: readonly Part[]): void {
    for (const next of parts) this.add(next);
  }

  /** The output so far. The array is new at every call; its parts must not be changed. */
  parts(): Part[] {
    return [...this.shared()];
  }

  /**
   * The output so far, to be read at once: it changes with what is added. What is added only appends to it, or to the
   * text of its last part.
   */
  shared(): readonly Part[] {
    this.#flush();
    return this.#parts;
  }

  #extend(next: Part, kind: DeltaKind): boolean {
    const pending = this.#pending ?? this.#reopen();
    if (!pending || pending.part.type !== next.type) return false;
    if (this.#field(pending.part, kind.key) !== this.#field(next, kind.key)) return false;
    if (Object.keys(next).length > 3 || Object.keys(pending.part).length > 3) return false;
    pending.texts.push(this.#field(next, kind.text));
    return true;
  }

  /** Takes the last finished part back if it is a delta that may still grow. */
  #reopen(): PendingDelta | undefined {
    const last = this.#parts.at(-1);
    const kind = last && deltaKinds[last.type];
    if (!last || !kind) return undefined;
    this.#parts.pop();
    this.#pending = { part: last, kind, texts: [this.#field(last, kind.text)] };
    return this.#pending;
  }

  #flush(): void {
    if (!this.#pending) return;
    const { part: first, kind, texts } = this.#pending;
    this.#parts.push({ ...first, [kind.text]: texts.join('') } as Part);
    this.#pending = undefined;
  }

  #field(of: Part, name: string): string {
    return String((of as Record<string, unknown>)[name]);
  }
}

/** `parts` folded in one go; see {@link Fold}. */
export function foldParts(parts: readonly Part[]): Part[] {
  const fold = new Fold();
  fold.addAll(parts);
  return fold.parts();
}
