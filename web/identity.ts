import { signal } from '@preact/signals';
import { newMid } from '../src/client/index.js';

/** Who this tab is. A tab is a person of its own until a name was chosen, which then is kept for later tabs too. */
export interface Me {
  user: string;
  name: string;
}

const ADJECTIVES = [
  'Amber',
  'Bright',
  'Calm',
  'Clever',
  'Gentle',
  'Golden',
  'Merry',
  'Nimble',
  'Quiet',
  'Swift',
  'Warm',
  'Wise',
];
const PLAYERS = [
  'Bassoon',
  'Cello',
  'Clarinet',
  'Cornet',
  'Flute',
  'Harp',
  'Horn',
  'Lute',
  'Oboe',
  'Piccolo',
  'Viola',
  'Zither',
];

const pick = (from: readonly string[]): string => from[Math.floor(Math.random() * from.length)] ?? '';

function load(): Me {
  const kept = readJson<Me>(sessionStorage, 'tutti.me');
  if (kept?.user && kept.name) return kept;
  const name = localStorage.getItem('tutti.name') ?? `${pick(ADJECTIVES)} ${pick(PLAYERS)}`;
  const me = { user: `guest-${newMid().slice(0, 10)}`, name };
  sessionStorage.setItem('tutti.me', JSON.stringify(me));
  return me;
}

export const me = signal<Me>(load());

export function rename(name: string): void {
  me.value = { ...me.value, name };
  sessionStorage.setItem('tutti.me', JSON.stringify(me.value));
  localStorage.setItem('tutti.name', name);
}

export function readJson<T>(storage: Storage, key: string): T | undefined {
  try {
    return (JSON.parse(storage.getItem(key) ?? 'null') as T | null) ?? undefined;
  } catch {
    return undefined;
  }
}

/** A hue that belongs to a person, 0 to 359. */
export function hueOf(id: string): number {
  let hash = 7;
  for (const letter of id) hash = (hash * 31 + (letter.codePointAt(0) ?? 0)) % 3600;
  return hash % 360;
}
