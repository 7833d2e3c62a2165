export type { Part } from '../protocol/parts.js';
export { Refusal } from '../protocol/refusal.js';
export type { Assignment } from '../protocol/worker.js';
export {
  type Handler,
  type HandlerResult,
  type Outcome,
  type RunContext,
  RunFailure,
  type RunningWorker,
  runWorker,
  type WorkerOptions,
} from './worker.js';
