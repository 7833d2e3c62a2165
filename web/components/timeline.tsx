import { signal } from '@preact/signals';
import { useLayoutEffect, useRef } from 'preact/hooks';
import { hasOlder, type Item, items, loadingOlder, loadOlder, room } from '../conversation.js';
import { connection } from '../session.js';
import { AnswerCard } from './answer.js';
import { Message, Note, PendingMessage } from './message.js';

const NEAR = 80;
const atBottom = signal(true);

/** The conversation. It stays at the bottom while the reader is there, and where the reader is otherwise. */
export function Timeline() {
  const box = useRef<HTMLDivElement>(null);
  const before = useRef({ height: 0, first: '' });
  const list = items.value;
  const first = list[0]?.key ?? '';

  useLayoutEffect(() => {
    const element = box.current;
    if (!element) return;
    const grewAbove = before.current.first !== '' && before.current.first !== first;
    if (atBottom.value) element.scrollTop = element.scrollHeight;
    else if (grewAbove) element.scrollTop += element.scrollHeight - before.current.height;
    before.current = { height: element.scrollHeight, first };
  }, [list]);

  const scrolled = () => {
    const element = box.current;
    if (!element) return;
    atBottom.value = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR;
    if (element.scrollTop < NEAR && !atBottom.value) void loadOlder();
  };

  return (
    <div class="timeline-frame">
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: a scrolling region has to be reachable by keyboard. */}
      <div class="timeline" ref={box} onScroll={scrolled} role="log" aria-label="Conversation" tabIndex={0}>
        {hasOlder.value && (
          <button type="button" class="older" disabled={loadingOlder.value} onClick={() => void loadOlder()}>
            {loadingOlder.value ? 'Loading…' : 'Show older messages'}
          </button>
        )}
        {list.length === 0 && <Empty />}
        {list.map((item) => (
          <Entry key={item.key} item={item} />
        ))}
      </div>
      {!atBottom.value && (
        <button
          type="button"
          class="jump"
          onClick={() => box.current?.scrollTo({ top: box.current.scrollHeight, behavior: 'smooth' })}
        >
          <span aria-hidden="true">↓</span> Latest
        </button>
      )}
    </div>
  );
}

function Entry({ item }: { item: Item }) {
  switch (item.kind) {
    case 'message':
      return <Message event={item.event} text={item.text} />;
    case 'answer':
      return <AnswerCard run={item.run} parts={item.parts} by={item.by} />;
    case 'pending':
      return <PendingMessage pending={item.pending} />;
    case 'note':
      return <Note event={item.event} />;
  }
}

function Empty() {
  const there = connection.value.status === 'connected' && room.state.status === 'joined';
  const away = connection.value.status === 'closed' || room.state.status === 'refused';
  return (
    <div class="empty">
      <p class="big">{there ? 'Nothing has been said here yet.' : away ? 'Not in the room.' : 'Joining the room…'}</p>
      <p>
        Open this page in a second tab: both see the same conversation in the same order. Ask the AI and its answer
        streams into both.
      </p>
    </div>
  );
}
