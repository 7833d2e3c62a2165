/** First in, first out, each in constant time on average: `Array.shift` moves thousands for each of thousands. */
export class Fifo<T> {
  #items: (T | undefined)[];
  #next = 0;

  constructor(...items: T[]) {
    this.#items = items;
  }

  get size(): number {
    return this.#items.length - this.#next;
  }

  push(item: T): void {
    this.#items.push(item);
  }

  shift(): T | undefined {
    if (this.size === 0) return undefined;
    const item = this.#items[this.#next];
    this.#items[this.#next] = undefined;
    this.#next += 1;
    if (this.#next > 1000 && this.#next * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#next);
      this.#next = 0;
    }
    return item;
  }
}
