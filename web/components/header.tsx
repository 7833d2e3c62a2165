import type { Signal } from '@preact/signals';
import { useEffect, useRef, useState } from 'preact/hooks';
import icon from '../icon.svg';
import { hueOf, me, rename } from '../identity.js';
import { client, connection, isGuest, roomName } from '../session.js';
import { useSecondsUntil } from './countdown.js';

export function Header({ panelOpen }: { panelOpen: Signal<boolean> }) {
  return (
    <header class="top">
      <h1>
        <img src={icon} alt="" width="26" height="26" />
        <span class="wordmark">Tutti</span>
        <span class="room-name" title={`Room ${roomName}`}>
          # {roomName}
        </span>
      </h1>
      <ConnectionPill />
      <NamePicker />
      <button
        type="button"
        class="quiet"
        aria-pressed={panelOpen.value}
        aria-controls="inspector"
        onClick={() => (panelOpen.value = !panelOpen.value)}
      >
        <span aria-hidden="true">⌁</span> <span class="wide-only">How it works</span>
        <span class="sr-only narrow-only">How it works</span>
      </button>
    </header>
  );
}

function ConnectionPill() {
  const state = connection.value;
  const seconds = useSecondsUntil(state.status === 'waiting' ? state.retryAt : undefined);
  const words = {
    connected: 'Connected',
    connecting: 'Connecting…',
    waiting: seconds > 0 ? `Reconnecting in ${seconds} s` : 'Reconnecting…',
    closed: 'Disconnected',
  };
  return (
    <span class={`pill ${state.status}`} data-testid="connection" data-status={state.status}>
      <span class="dot" aria-hidden="true" />
      <span class="pill-text">{words[state.status]}</span>
    </span>
  );
}

function NamePicker() {
  const [editing, setEditing] = useState(false);
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    if (editing) input.current?.select();
  }, [editing]);

  const save = (event: Event) => {
    event.preventDefault();
    const name = input.current?.value.trim().slice(0, 40);
    setEditing(false);
    if (!name || name === me.value.name) return;
    rename(name);
    // The name is in the token, so the next one carries it.
    client.restart();
  };

  if (!isGuest)
    return (
      <span class="quiet who" title="The user of your token">
        <Swatch />
        <span class="who-name">{me.value.name}</span>
      </span>
    );
  if (!editing)
    return (
      <button type="button" class="quiet who" title="Change your name" onClick={() => setEditing(true)}>
        <Swatch />
        <span class="sr-only">Your name: </span>
        <span class="who-name">{me.value.name}</span>
      </button>
    );
  return (
    <form class="who-form" onSubmit={save}>
      <label class="sr-only" for="name">
        Your name
      </label>
      <input
        id="name"
        ref={input}
        defaultValue={me.value.name}
        maxLength={40}
        autocomplete="off"
        onBlur={save}
        onKeyDown={(event) => event.key === 'Escape' && setEditing(false)}
      />
    </form>
  );
}

function Swatch() {
  return <span class="swatch" style={{ '--hue': String(hueOf(me.value.user)) }} aria-hidden="true" />;
}
