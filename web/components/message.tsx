import type { RoomEvent } from '../../src/client/index.js';
import { discard, type Pending, sayAgain } from '../conversation.js';
import { hueOf, me } from '../identity.js';
import { connection } from '../session.js';
import { RichText } from './rich-text.js';

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });

export function Message({ event, text }: { event: RoomEvent; text: string }) {
  const name = event.by.name ?? event.by.id;
  const own = event.by.id === me.value.user;
  return (
    <article class={own ? 'message own' : 'message'} data-seq={event.seq}>
      <Avatar id={event.by.id} name={name} />
      <div class="body">
        <p class="meta">
          <strong>{name}</strong>
          {own && <span class="tag">you</span>}
          <time dateTime={new Date(event.at).toISOString()}>{clock.format(event.at)}</time>
          <span class="seq" title="Number of this event in the room">
            {event.seq}
          </span>
        </p>
        <RichText text={text} />
      </div>
    </article>
  );
}

export function PendingMessage({ pending }: { pending: Pending }) {
  const waits = connection.value.status === 'connected' ? 'sending…' : 'waiting for the connection';
  return (
    <article class="message own pending" data-pending={pending.mid}>
      <Avatar id={me.value.user} name={me.value.name} />
      <div class="body">
        <p class="meta">
          <strong>{me.value.name}</strong>
          <span class="tag">you</span>
          <span class={pending.refused ? 'state bad' : 'state'}>{pending.refused ? 'not sent' : waits}</span>
        </p>
        <RichText text={pending.text} />
        {pending.refused && (
          <p class="refused">
            {pending.refused}{' '}
            <button type="button" class="link" onClick={() => sayAgain(pending)}>
              Send again
            </button>{' '}
            <button type="button" class="link" onClick={() => discard(pending.mid)}>
              Discard
            </button>
          </p>
        )}
      </div>
    </article>
  );
}

/** An event the page has no better picture for. */
export function Note({ event }: { event: RoomEvent }) {
  return (
    <p class="note" data-seq={event.seq}>
      <span>{event.by.name ?? event.by.id}</span> <code>{event.type}</code>{' '}
      <span class="note-data">{JSON.stringify(event.data).slice(0, 160)}</span>
    </p>
  );
}

export function Avatar({ id, name }: { id: string; name: string }) {
  const initials = name
    .split(/\s+/)
    .slice(0, 2)
    .map((word) => [...word][0] ?? '')
    .join('')
    .toUpperCase();
  return (
    <span class="avatar" style={{ '--hue': String(hueOf(id)) }} aria-hidden="true">
      {initials}
    </span>
  );
}
