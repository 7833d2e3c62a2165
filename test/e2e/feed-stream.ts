/** One server-sent event. */
export interface StreamEvent {
  id: string | undefined;
  event: string | undefined;
  data: string;
}

/** A reader of `GET /v1/rooms/:room/stream`, written against the rules of server-sent events alone. */
export class RoomStream {
  readonly events: StreamEvent[] = [];
  /** The last `id:` seen, which a browser would send back. */
  lastId: string | undefined;
  /** All bytes, as text. */
  raw = '';
  ended = false;
  readonly status: number;
  readonly #abort: AbortController;
  readonly #reading: Promise<void>;

  private constructor(response: Response, abort: AbortController) {
    this.status = response.status;
    this.#abort = abort;
    this.#reading = this.#read(response);
  }

  static async open(url: string, token: string, path: string, lastId?: string): Promise<RoomStream> {
    const abort = new AbortController();
    const response = await fetch(url + path, {
      signal: abort.signal,
      headers: { authorization: `Bearer ${token}`, ...(lastId === undefined ? {} : { 'last-event-id': lastId }) },
    });
    return new RoomStream(response, abort);
  }

  /** Seqs of the events of the room, in the order they came. */
  get seqs(): number[] {
    return this.events.flatMap(({ event, data }) =>
      event === 'event' ? [(JSON.parse(data) as { seq: number }).seq] : [],
    );
  }

  async close(): Promise<void> {
    this.#abort.abort();
    await this.#reading;
  }

  async #read(response: Response): Promise<void> {
    const decoder = new TextDecoder();
    let rest = '';
    try {
      for await (const chunk of response.body ?? []) {
        const text = decoder.decode(chunk, { stream: true });
        this.raw += text;
        const blocks = (rest + text).split('\n\n');
        rest = blocks.pop() ?? '';
        for (const block of blocks) this.#take(block);
      }
    } catch {
      // cut, by us or by a gateway that died
    }
    this.ended = true;
  }

  #take(block: string): void {
    const fields = new Map<string, string>();
    for (const line of block.split('\n')) {
      const [, name = '', value = ''] = /^([a-z]*): ?(.*)$/.exec(line) ?? [];
      if (name !== '') fields.set(name, value);
    }
    const id = fields.get('id');
    if (id !== undefined) this.lastId = id;
    const data = fields.get('data');
    if (data !== undefined) this.events.push({ id, event: fields.get('event'), data });
  }
}
