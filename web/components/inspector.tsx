import { signal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import type { WireFrame } from '../../src/client/index.js';
import { items, room, runsLive, seq } from '../conversation.js';
import { client, connection, roomName } from '../session.js';

const KEPT = 40;
const frames = signal<(WireFrame & { id: number })[]>([]);
let count = 0;

/** What goes on underneath: where this reader stands, and what goes over the wire. */
export function Inspector({ close }: { close: () => void }) {
  const state = connection.value;
  const session = state.status === 'connected' ? state.session : undefined;
  const pending = items.value.filter((item) => item.kind === 'pending').length;
  return (
    <aside class="inspector" id="inspector" aria-label="How it works">
      <div class="inspector-head">
        <h2>How it works</h2>
        <button type="button" class="quiet" onClick={close}>
          <span aria-hidden="true">✕</span>
          <span class="sr-only">Close</span>
        </button>
      </div>
      <dl>
        <Figure term="Position" value={String(seq.value)} testid="position" />
        <Figure term="Epoch" value={room.position?.epoch ?? '–'} />
        <Figure term="Gateway" value={session?.gateway ?? '–'} />
        <Figure term="Session" value={session?.session ?? '–'} />
        <Figure term="Not stored yet" value={String(pending)} />
        <Figure term="Runs under way" value={String(runsLive.value)} />
      </dl>
      <ul class="how">
        <li>
          Every message gets a <b>number</b> in <b># {roomName}</b> when Postgres has committed it, and only then is it
          announced.
        </li>
        <li>
          This tab remembers its position. Stop the gateway and start it again: the tab asks for exactly what it missed.
        </li>
        <li>What you type meanwhile keeps its id, so a retry is stored once.</li>
        <li>
          A worker claims each run and pushes tokens. All tabs fold the same parts; one that joins late gets the fold so
          far.
        </li>
      </ul>
      <Wire />
    </aside>
  );
}

function Figure({ term, value, testid }: { term: string; value: string; testid?: string }) {
  return (
    <div>
      <dt>{term}</dt>
      <dd title={value} data-testid={testid}>
        {value}
      </dd>
    </div>
  );
}

const ARROWS = { in: '←', out: '→', ack: '✓' } as const;

function Wire() {
  useEffect(
    () =>
      client.onWire((frame) => {
        frames.value = [{ ...frame, id: count++ }, ...frames.value].slice(0, KEPT);
      }),
    [],
  );
  return (
    <details class="wire">
      <summary>Last messages on the wire</summary>
      <ol>
        {frames.value.map((frame) => (
          <li key={frame.id} class={frame.direction}>
            <details>
              <summary>
                <span aria-hidden="true">{ARROWS[frame.direction]}</span> <span class="sr-only">{frame.direction}</span>
                {frame.name}
              </summary>
              <pre>{JSON.stringify(frame.payload, null, 1).slice(0, 2000)}</pre>
            </details>
          </li>
        ))}
      </ol>
    </details>
  );
}
