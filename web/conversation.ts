import { signal } from '@preact/signals';
import { newMid, Refusal, type RoomEvent, type RunView } from '../src/client/index.js';
import type { Part } from '../src/protocol/parts.js';
import { answerOf, isLive } from './answer.js';
import { readJson } from './identity.js';
import { client, roomName } from './session.js';

/** Something said here that is not stored yet. It is kept in this tab's storage and survives a reload. */
export interface Pending {
  mid: string;
  text: string;
  at: number;
  /** Mid of the run to create after it, if the model was asked. */
  ask?: string;
  refused?: string;
}

export type Item =
  | { kind: 'message'; key: string; event: RoomEvent; text: string }
  | { kind: 'note'; key: string; event: RoomEvent }
  | { kind: 'answer'; key: string; run: RunView; parts: Part[]; by: string }
  | { kind: 'pending'; key: string; pending: Pending };

const PAGE = 50;
const STORE = `tutti.pending.${roomName}`;
const CONTEXT_MESSAGES = 12;
const CONTEXT_LETTERS = 4000;

export const room = client.join(roomName, { recent: PAGE });
export const items = signal<Item[]>([]);
export const seq = signal(0);
export const hasOlder = signal(false);
export const loadingOlder = signal(false);
export const runsLive = signal(0);
export const notice = signal('');

const events = new Map<number, RoomEvent>();
const waiting = new Map<string, Pending>();

let scheduled = false;
/** One rendering per frame, however many tokens came. */
function changed(): void {
  if (scheduled) return;
  scheduled = true;
  const run = () => {
    scheduled = false;
    items.value = compose();
    seq.value = room.position?.seq ?? 0;
    runsLive.value = room.runs.all().filter(isLive).length;
  };
  if (document.hidden) setTimeout(run, 50);
  else requestAnimationFrame(run);
}

room.on('event', (event) => {
  events.set(event.seq, event);
  if (waiting.delete(event.mid)) save();
  if (events.size === 1) hasOlder.value = event.seq > 1;
  changed();
});
room.on('run', changed);
room.on('state', changed);
room.on('reset', () => {
  events.clear();
  hasOlder.value = false;
  changed();
});

function compose(): Item[] {
  const list: Item[] = [];
  const placed = new Set<string>();
  for (const number of [...events.keys()].sort((a, b) => a - b)) {
    const event = events.get(number);
    if (!event) continue;
    const data = event.data as { text?: unknown; run?: { id?: string } } | null;
    const id = event.type.startsWith('run.') ? data?.run?.id : undefined;
    if (id) {
      const run = room.runs.get(id);
      if (run && !placed.has(id)) list.push(answerItem(run));
      placed.add(id);
    } else if (event.type === 'chat.message' && typeof data?.text === 'string') {
      list.push({ kind: 'message', key: event.mid, event, text: data.text });
    } else list.push({ kind: 'note', key: event.mid, event });
  }
  // Begun before the oldest event shown, and still running.
  for (const run of room.runs.all()) if (!placed.has(run.id) && isLive(run)) list.push(answerItem(run));
  for (const pending of waiting.values()) list.push({ kind: 'pending', key: pending.mid, pending });
  return list;
}

const answerItem = (run: RunView): Item => {
  const by = run.run?.initiator;
  return { kind: 'answer', key: run.id, run, parts: room.runs.output(run.id), by: by?.name ?? by?.id ?? '' };
};

/** Says something; with `ask` the model answers it. Works while disconnected: it is sent when the room is back. */
export function say(text: string, ask: boolean): void {
  dispatch({ mid: newMid(), text, at: Date.now(), ...(ask ? { ask: newMid() } : {}) });
}

function dispatch(pending: Pending): void {
  waiting.set(pending.mid, pending);
  save();
  changed();
  const messages = [...context(), { role: 'user', content: pending.text }];
  const stored = room.publish('chat.message', { text: pending.text }, pending.mid);
  const asked = pending.ask ? room.createRun('demo', { messages }, pending.ask) : undefined;
  stored
    .then(() => asked)
    .catch((error: unknown) => {
      const message = error instanceof Refusal ? error.message : String(error);
      if (waiting.has(pending.mid)) waiting.set(pending.mid, { ...pending, refused: message });
      else notice.value = `The model could not be asked: ${message}`;
    })
    .finally(() => {
      save();
      changed();
    });
  asked?.catch(() => undefined);
}

export function discard(mid: string): void {
  waiting.delete(mid);
  save();
  changed();
}

export function sayAgain(pending: Pending): void {
  waiting.delete(pending.mid);
  say(pending.text, pending.ask !== undefined);
}

interface Said {
  role: 'user' | 'assistant';
  content: string;
}

/** What was said lately, as a model wants it. */
function context(): Said[] {
  const said = compose().flatMap((item): Said[] => {
    if (item.kind === 'message') return [{ role: 'user', content: item.text }];
    if (item.kind !== 'answer') return [];
    const content = answerOf(item.run, item.parts).text;
    return content ? [{ role: 'assistant', content }] : [];
  });
  return said.slice(-CONTEXT_MESSAGES).map((one) => ({ ...one, content: one.content.slice(0, CONTEXT_LETTERS) }));
}

export async function stop(run: string): Promise<void> {
  try {
    await room.cancelRun(run);
  } catch (error) {
    notice.value = `Could not stop: ${error instanceof Error ? error.message : String(error)}`;
  }
}

/** The page before the oldest event shown. */
export async function loadOlder(): Promise<void> {
  const first = Math.min(...events.keys());
  if (loadingOlder.value || !hasOlder.value || !Number.isFinite(first)) return;
  loadingOlder.value = true;
  try {
    const page = await room.history({ before: first, limit: PAGE });
    for (const event of page.events) events.set(event.seq, event);
    const oldest = page.events[0]?.seq;
    hasOlder.value = oldest !== undefined && oldest > page.floor + 1;
    changed();
  } catch {
    // Not connected: scrolling up once more asks again.
  } finally {
    loadingOlder.value = false;
  }
}

function save(): void {
  sessionStorage.setItem(STORE, JSON.stringify([...waiting.values()].filter((one) => !one.refused)));
}

for (const pending of readJson<Pending[]>(sessionStorage, STORE) ?? []) dispatch(pending);
