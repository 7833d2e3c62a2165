/** A seeded source of numbers in [0, 1) (mulberry32). */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** One of `items`, each as likely as the others. @throws Error where there are none. */
export function pick<T>(items: readonly T[], next: () => number): T {
  const item = items[Math.floor(next() * items.length)];
  if (item === undefined) throw new Error('nothing to pick from');
  return item;
}

/** An integer, both ends included. */
export const between = (least: number, most: number, next: () => number): number =>
  least + Math.floor(next() * (most - least + 1));

/** The same items in another order. */
export function shuffled<T>(items: readonly T[], next: () => number): T[] {
  return items
    .map((item) => ({ item, place: next() }))
    .sort((a, b) => a.place - b.place)
    .map(({ item }) => item);
}

/** Does one of `acts`, each as likely as its share of all shares. */
export function act(acts: readonly (readonly [share: number, act: () => void])[], next: () => number): void {
  let dice = next() * acts.reduce((sum, [share]) => sum + share, 0);
  for (const [share, one] of acts) {
    dice -= share;
    if (dice >= 0) continue;
    one();
    return;
  }
}
