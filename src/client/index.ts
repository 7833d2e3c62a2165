export { Refusal, Unanswered } from '../protocol/refusal.js';
export { TuttiClient } from './client.js';
export type { ConnectionOptions, ConnectionState, Session, WireFrame } from './connection.js';
export { type HistoryPage, type JoinOptions, newMid, type RoomEvent, RoomHandle, type RoomState } from './room.js';
export { RunBook, type RunView } from './runs.js';
