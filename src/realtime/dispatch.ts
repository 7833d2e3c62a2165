import type { Socket } from 'socket.io';
import type { InFlight } from '../core/limits.js';
import { countLimit, type Logger, type Metrics } from '../core/telemetry.js';
import { asTuttiError, TuttiError } from '../errors.js';
import type { Admitted, Gate } from './link.js';
import type { CommandLimits } from './rate.js';
import { publishes } from './refusals.js';
import type { Session } from './session.js';
import type { Turns } from './turns.js';

/** A Socket.IO event as its parser leaves it: `[name, ...args]`, or no data at all where the packet was a bare `2`. */
export interface EventPacket {
  data?: unknown[];
  /** There when the client wants an answer. */
  id?: number;
}

/** Text of a JSON object: what the ack carries beside `ok: true`. */
export type ReplyJson = string;

/** Answers a command once; later calls change nothing. */
export type Reply = (json: ReplyJson) => void;

/** Runs one command with its unparsed payload. Replies, or throws a refusal. */
export type Command = (session: Session, payload: unknown, reply: Reply) => Promise<void> | void;

export interface DispatchDeps {
  metrics: Metrics;
  log: Logger;
  inFlight: InFlight;
  turns: Turns;
  limits: Pick<CommandLimits, 'take' | 'refused'>;
  /** Throws where a tenant may not publish one event more after `ahead` others: so it is refused before it is read. */
  expectPace?: (tenant: string, ahead: number) => void;
}

/** An answer as it stands on the wire. Written as text so that stored JSON goes out without being parsed. */
const ackFrame = (namespace: string, id: number, answer: string): string =>
  `43${namespace === '/' ? '' : `${namespace},`}${id}[${answer}]`;

const withOk = (json: ReplyJson): string => (json === '{}' ? '{"ok":true}' : `{"ok":true,${json.slice(1)}`);

const groupOf = (session: Session): string => session.principal.tenant ?? '*';

/** A reply that holds no stored JSON. */
export const replyJson = (value: object): ReplyJson => JSON.stringify(value);

/** Whether the session's commands are answered at all; nobody hears those of one that is closing. */
const accepts = ({ state }: Session): boolean => state === 'active' || state === 'leaving';

/** What waited for its turn when the gateway was told to leave, or came later. */
const leaving = () => new TuttiError('draining', 'This gateway is leaving; send it again to another.');

function payloadOf(args: unknown[]): unknown {
  if (args.length !== 1) throw new TuttiError('bad_request', 'A command carries exactly one payload.');
  const [payload] = args;
  const plain = typeof payload === 'object' && payload !== null && !Array.isArray(payload);
  if (!plain || Buffer.isBuffer(payload)) throw new TuttiError('bad_request', 'The payload must be a JSON object.');
  return payload;
}

/**
 * Answers commands of one namespace: every one once, with what its handler replied or with a refusal from the
 * error table; never throws. A command without an ack is executed too.
 */
export class Dispatch {
  readonly #commands: ReadonlyMap<unknown, Command>;
  /** Publishes that were let in and did not begin yet, by tenant. */
  readonly #publishing = new Map<string, number>();

  constructor(
    commands: Record<string, Command>,
    private readonly deps: DispatchDeps,
  ) {
    this.#commands = new Map(Object.entries(commands));
  }

  /**
   * Takes the socket's events before Socket.IO dispatches them to listeners: it is the one place that knows the
   * id of an ack, and needs no closure per socket or per event.
   */
  attach(socket: Socket): void {
    const dispatch = this;
    Object.assign(socket, {
      onevent(packet: EventPacket) {
        dispatch.take(socket.data as Session, packet);
      },
    });
  }

  /** For commands that are to be let in before they are read. */
  gateOf(session: Session): Gate {
    return { pass: (id, message, take) => this.#pass(session, id, message, take) };
  }

  /** Runs a command that was let in at the gate, or lets it in, or refuses it. */
  take(session: Session, packet: EventPacket): void {
    const { link } = session;
    const { admitted } = link;
    link.admitted = undefined;
    if (admitted) {
      admitted.begin();
      void this.#run(session, packet).finally(admitted.end);
      return;
    }
    if (!accepts(session)) return;
    try {
      const ended = this.#begin(session, link.received);
      this.deps.turns.add(groupOf(session), () => void this.#run(session, packet).finally(ended));
    } catch (thrown) {
      this.#refuse(session, packet, thrown);
    }
  }

  #pass(session: Session, id: string, message: ArrayBuffer, take: (message: ArrayBuffer) => void): void {
    if (!accepts(session)) return;
    const { turns } = this.deps;
    try {
      const command = this.#admit(session, id, message);
      const enter = (bytes: ArrayBuffer) => {
        // Engine.IO hands on nothing of a connection that ended while this waited, and nobody would count it out.
        if (session.state === 'closed') return command.end();
        session.link.admit(command);
        take(bytes);
      };
      const group = groupOf(session);
      if (turns.free(group)) enter(message);
      else {
        const copy = message.slice(0);
        turns.wait(group, () => enter(copy));
      }
    } catch (thrown) {
      this.#refuse(session, id === '' ? {} : { id: Number(id) }, thrown);
    }
  }

  /** @throws TuttiError as {@link #begin}, and `rate_limited` for a publish past the rate of the tenant */
  #admit(session: Session, id: string, message: ArrayBuffer): Admitted {
    const { tenant } = session.principal;
    if (tenant === null || !this.deps.expectPace || !publishes(message, id)) {
      return { begin: () => undefined, end: this.#begin(session, message.byteLength) };
    }
    const ahead = this.#publishing.get(tenant) ?? 0;
    this.deps.expectPace(tenant, ahead);
    const end = this.#begin(session, message.byteLength);
    this.#publishing.set(tenant, ahead + 1);
    let waits = true;
    const begin = () => {
      if (!waits) return;
      waits = false;
      const left = (this.#publishing.get(tenant) ?? 1) - 1;
      if (left > 0) this.#publishing.set(tenant, left);
      else this.#publishing.delete(tenant);
    };
    return {
      begin,
      end: () => {
        begin();
        end();
      },
    };
  }

  /** @returns what counts the command out. @throws TuttiError `overloaded`, `rate_limited`, `draining`; nothing was counted then */
  #begin(session: Session, bytes: number): () => void {
    if (session.state === 'leaving') throw leaving();
    const { inFlight, limits } = this.deps;
    const { tenant } = session.principal;
    inFlight.begin(session.inFlight, tenant, bytes);
    const end = () => {
      inFlight.end(session.inFlight, tenant, bytes);
      if (session.inFlight.count === 0) session.answered?.();
    };
    try {
      limits.take(session);
      return end;
    } catch (thrown) {
      end();
      throw thrown;
    }
  }

  async #run(session: Session, packet: EventPacket): Promise<void> {
    if (session.state === 'leaving') this.#refuse(session, packet, leaving());
    if (session.state !== 'active') return;
    const [name, ...args] = packet.data ?? [];
    let answered = false;
    try {
      const command = this.#commands.get(name);
      if (!command) throw new TuttiError('bad_request', 'There is no such command.');
      await command(session, payloadOf(args), (json) => {
        if (answered) return;
        answered = true;
        this.#answer(session, packet, 'ok', withOk(json));
      });
      if (!answered) throw new Error(`${String(name)} left without an answer`);
    } catch (thrown) {
      this.#refuse(session, packet, thrown, answered);
    }
  }

  #refuse(session: Session, packet: EventPacket, thrown: unknown, answered = false): void {
    const { limits, log, metrics } = this.deps;
    const refusal = asTuttiError(thrown);
    if (refusal.code === 'internal') {
      log.error({ ...session.fields, command: String(packet.data?.[0]), err: refusal.cause }, 'command failed');
    }
    if (refusal.code === 'rate_limited') limits.refused(session, refusal);
    countLimit(metrics, refusal.limit);
    if (!answered)
      this.#answer(session, packet, refusal.code, `{"ok":false,"error":${JSON.stringify(refusal.toWire())}}`);
  }

  #answer(session: Session, { data, id }: EventPacket, code: string, text: string): void {
    const name = data?.[0];
    this.deps.metrics.add('commands', { command: this.#commands.has(name) ? String(name) : 'unknown', code });
    if (id !== undefined) session.link.send(ackFrame(session.namespace, id, text));
  }
}
