import { closeSync, createReadStream, createWriteStream, openSync, type WriteStream, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';

/**
 * What happened, as those saw it who made it happen: clients, workers and fault injectors of all processes. Each process
 * writes a file of its own, one JSON array per line. `t` is in µs of the machine's monotonic clock, which all processes of
 * one machine share. Nothing is written that a gateway said of itself: a gateway may be wrong.
 */
export type Entry =
  // Publishing. `conn` names the connection an attempt was sent on: order is promised for what shares one. A mid names
  // one event of one publisher in the whole history; a publisher's entries, and a reader's, are in one file.
  | ['send', t: number, publisher: string, tenant: string, room: string, mid: string, conn: string]
  /** The gateway that a connection leads to, written before anything is sent on it. */
  | ['conn', t: number, conn: string, gateway: string]
  | ['ack', t: number, publisher: string, mid: string, epoch: string, seq: number, duplicate: boolean]
  /** Refused: this attempt was not stored. `log_unavailable` and `internal` leave that open and are `unknown`. */
  | ['nack', t: number, publisher: string, mid: string, code: string]
  | ['unknown', t: number, publisher: string, mid: string, why: string]

  // Reading. A reader reads one room and keeps its position over many joins; `gateway` is where it joined. It stands at
  // `seq` then: `seq + 1` is due next. The join is written before what was received after it, `open` once before all.
  | ['open', t: number, reader: string, tenant: string, room: string]
  | [
      'join',
      t: number,
      reader: string,
      tenant: string,
      room: string,
      gateway: string,
      asked: Asked,
      epoch: string,
      seq: number,
    ]
  /** Told to start over: it stands at this position now and has missed what lies between. */
  | ['resync', t: number, reader: string, reason: string, epoch: string, seq: number]
  /** Events with consecutive numbers from `seq` on, in the order they were handled. */
  | ['recv', t: number, reader: string, epoch: string, seq: number, mids: string[]]
  /** The connection was lost or closed. `left`: by its own will, joined or not; it need not catch up any more. Not written at the end. */
  | ['gone', t: number, reader: string, why: string]
  /** Bytes of `owner`, another tenant, were found in what the socket of `tenant` received. */
  | ['leak', t: number, reader: string, tenant: string, owner: string, where: string]

  // Runs. Digests are of the output so far (see OutputDigest): equal digests, equal output. `wish` is written before a run is
  // asked for under a mid, `ask` when its name is known. Workers write `work` before they send it.
  | ['wish', t: number, tenant: string, room: string, mid: string]
  | ['ask', t: number, run: string, tenant: string, room: string]
  | ['claim', t: number, worker: string, run: string, attempt: number, fence: number]
  /** A worker made parts `n … n + digests.length - 1` of an attempt; `digests[i]` is of the output up to and with part `n + i`. */
  | ['work', t: number, worker: string, run: string, attempt: number, n: number, digests: string[]]
  /** What a reader sees of a run: the first `next` parts of this attempt, which have this digest. */
  | ['chunk', t: number, reader: string, run: string, attempt: number, next: number, digest: string]
  | ['reset', t: number, reader: string, run: string, attempt: number]
  /** A reader was told the final state; `digest` is of the parts of the final message. */
  | ['end', t: number, reader: string, run: string, state: string, digest: string]
  /** A write or heartbeat that a worker sent at `t` under this fence was accepted. */
  | ['wrote', t: number, worker: string, run: string, fence: number]

  // Faults. `heal` is when the injector had put everything back. The target of `gateway-…` and `…-blackhole` is a gateway as in
  // `join`, of `worker-…` workers as in `claim`, of `client-…` clients, with blanks between the names; of a storm it is none.
  | ['fault', t: number, id: number, kind: string, target: string]
  | ['heal', t: number, id: number]

  // The tables, read past the gateways when all was over. Events come in pages, `seq` is the first one's.
  | ['stored', tenant: string, room: string, epoch: string, floor: number, head: number, seq: number, mids: string[]]
  | [
      'ran',
      run: string,
      tenant: string,
      room: string,
      mid: string | null,
      state: string,
      attempt: number,
      digest: string,
    ];

/** Where a reader asked to be put: a position of its own is `<epoch>:<seq>`. */
export type Asked = 'start' | 'latest' | `${string}:${number}`;

/** Readers of a storm have names that begin with this; the checker tells them by it. */
export const stormName = (process: string, storm: number): string => `${process}-w${storm}`;
export const isOfStorm = (reader: string): boolean => /^[a-z0-9]+-w\d/.test(reader);

/** µs of the machine's monotonic clock. */
export const monotonic = (): number => Number(process.hrtime.bigint() / 1000n);

/** Where one process's share of a history goes. */
export interface History {
  write(entry: Entry): void;
  /** Resolves when everything is in the file. */
  close(): Promise<void>;
}

/** Writes a history in pieces, as it comes to it: what it had not written is lost with a killed process. */
export class HistoryWriter implements History {
  readonly #stream: WriteStream;

  constructor(file: string) {
    this.#stream = createWriteStream(file);
  }

  write(entry: Entry): void {
    this.#stream.write(`${JSON.stringify(entry)}\n`);
  }

  close(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#stream.once('error', reject);
      this.#stream.end(() => resolve());
    });
  }
}

/**
 * The history of a process that SIGKILL may hit at any moment: an entry is with the kernel when `write` returns. So whatever
 * such a process does after it wrote something down is in its history. Only the entry that it was writing may be cut short.
 */
export class WriteAheadHistory implements History {
  readonly #file: number;

  constructor(file: string) {
    this.#file = openSync(file, 'w');
  }

  write(entry: Entry): void {
    writeFileSync(this.#file, `${JSON.stringify(entry)}\n`);
  }

  async close(): Promise<void> {
    closeSync(this.#file);
  }
}

/** The entries of one file in the order they were written. A last line cut short by a killed process is left out. */
export async function* readHistory(file: string): AsyncGenerator<Entry> {
  for await (const line of createInterface({ input: createReadStream(file), crlfDelay: Number.POSITIVE_INFINITY })) {
    try {
      yield JSON.parse(line) as Entry;
    } catch {
      return;
    }
  }
}

/** A running digest of text, FNV-1a of 64 bits over UTF-16 units: of a prefix at any time, without keeping the text. */
export class Digest {
  #high = 0xcbf29ce4;
  #low = 0x84222325;

  add(text: string): this {
    for (let i = 0; i < text.length; i++) {
      this.#low = (this.#low ^ text.charCodeAt(i)) >>> 0;
      // times 0x100000001b3: 2^40 + 0x1b3, in halves that stay below 2^53.
      const low = this.#low * 0x1b3;
      const high = this.#high * 0x1b3 + Math.floor(low / 0x100000000) + (this.#low << 8);
      this.#low = low >>> 0;
      this.#high = high >>> 0;
    }
    return this;
  }

  toString(): string {
    return `${this.#high.toString(16).padStart(8, '0')}${this.#low.toString(16).padStart(8, '0')}`;
  }
}
