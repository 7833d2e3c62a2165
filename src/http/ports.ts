import type { Revocation } from '../core/directory.js';
import type { RoomSummary } from '../core/log.js';
import type { Principal } from '../core/principal.js';
import type { Viewer } from '../core/viewer.js';
import type { CommandPayload, CommandReply } from '../protocol/commands.js';
import type { MintBody } from '../protocol/http.js';
import type { Part } from '../protocol/parts.js';
import type { JsonText } from '../protocol/primitives.js';
import type { Run, RunError, Usage } from '../protocol/runs.js';
import type { Assignment, PushReply } from '../protocol/worker.js';

/*
 * What HTTP asks of the core. The classes of src/core fit these; naming only what is used keeps the routes testable
 * without a database.
 */

export interface RoomsPort {
  join(
    principal: Principal,
    payload: CommandPayload<'room.join'>,
    viewer: Viewer,
    reply: (reply: CommandReply<'room.join'>) => void,
  ): Promise<void>;
  leaveAll(viewer: Viewer): void;
  publish(principal: Principal, payload: CommandPayload<'event.publish'>): Promise<CommandReply<'event.publish'>>;
  /** `events` are JSON texts, as readers see them. */
  history(
    principal: Principal,
    payload: CommandPayload<'event.history'>,
  ): Promise<{ events: JsonText[]; epoch: string; head: number; floor: number }>;
  broadcast(principal: Principal, payload: CommandPayload<'broadcast.send'>): void;
  list(
    principal: Principal,
    cursor: string | undefined,
    limit: number,
  ): Promise<{ rooms: RoomSummary[]; next?: string }>;
  get(principal: Principal, room: string): Promise<RoomSummary & { runs: Run[] }>;
  erase(principal: Principal, room: string): Promise<void>;
}

/** Reads the output of one run. */
export interface RunWatcher {
  parts(attempt: number, n: number, parts: Part[]): void;
  reset(attempt: number): void;
  end(run: Run): void;
  drained(): Promise<boolean>;
}

export interface RunsPort {
  create(principal: Principal, payload: CommandPayload<'run.create'>): Promise<{ run: Run; created: boolean }>;
  cancel(principal: Principal, runId: string): Promise<Run>;
  get(principal: Principal, runId: string): Promise<Run & { output?: Part[] }>;
  watch(
    principal: Principal,
    runId: string,
    from: { attempt: number; n: number } | undefined,
    watcher: RunWatcher,
    signal: AbortSignal,
  ): Promise<void>;
  claim(
    worker: Principal,
    body: { models: string[]; waitMs: number },
    signal: AbortSignal,
  ): Promise<Assignment | undefined>;
  push(worker: Principal, body: { run: string; fence: number; n: number; parts: Part[] }): Promise<PushReply>;
  heartbeat(worker: Principal, body: { run: string; fence: number }): Promise<PushReply>;
  finish(
    worker: Principal,
    body: {
      run: string;
      fence: number;
      n?: number | undefined;
      usage?: Usage | undefined;
      meta?: JsonText | undefined;
    },
  ): Promise<Run>;
  fail(worker: Principal, body: { run: string; fence: number; error: RunError; retryable: boolean }): Promise<Run>;
  /** @returns what ends the subscription. */
  onCancelled(runId: string, listener: () => void): () => void;
}

export interface AuthPort {
  /** @throws TuttiError `unauthenticated`, `token_expired`, `log_unavailable` */
  bearer(value: string): Promise<Principal>;
  mint(principal: Principal, body: MintBody): Promise<{ token: string; expiresAt: number }>;
}

export interface HealthPort {
  /** The gateway is leaving service. */
  readonly draining: boolean;
  live(): boolean;
  ready(): Promise<{ ready: boolean; reasons: string[]; degraded: string[] }>;
}

export interface RevocationsPort {
  onRevoked(listener: (revocation: Revocation) => void): unknown;
  applies(revocation: Revocation, principal: Principal): boolean;
}

export interface ConnectionsPort {
  /** @returns what gives the place back. @throws TuttiError `quota_exceeded` */
  admit(principal: Principal): () => void;
}
