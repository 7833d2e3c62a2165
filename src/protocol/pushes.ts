import type { WireError } from '../errors.js';
import type { Capabilities } from './capabilities.js';
import type { ResyncReason } from './commands.js';
import type { Part } from './parts.js';
import type { Actor, Position } from './primitives.js';
import type { RunError, RunState, Usage } from './runs.js';

/** Why a run's output starts over. */
export type ResetReason = 'worker_lost' | 'worker_failed';

/** What the server sends unasked on namespace `/`. Unknown fields are to be ignored by readers. */
export interface Pushes {
  'session.ready': {
    session: string;
    user: string;
    tenant: string;
    gateway: string;
    expiresAt: number;
    limits: Record<string, number>;
    serverTime: number;
    capabilities: Capabilities;
  };
  event: {
    room: string;
    epoch: string;
    seq: number;
    mid: string;
    type: string;
    data: unknown;
    by: Actor;
    at: number;
  };
  broadcast: { room: string; type: string; data: unknown; by: Actor };
  'run.state': {
    room: string;
    run: string;
    state: RunState;
    attempt: number;
    model: string;
    length?: number;
    usage?: Usage;
    error?: RunError;
  };
  'run.chunk': { room: string; run: string; attempt: number; n: number; parts: Part[] };
  'run.reset': { room: string; run: string; attempt: number; reason: ResetReason };
  'room.resync': { room: string; reason: ResyncReason; position: Position };
  'session.expiring': { expiresAt: number };
  'session.closing': Omit<WireError, 'retryable'> & { reconnect: boolean; afterMs?: number };
}
export type PushName = keyof Pushes;
