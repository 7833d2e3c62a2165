import { useEffect, useRef, useState } from 'preact/hooks';
import { say } from '../conversation.js';
import { roomName } from '../session.js';

const DRAFT = `tutti.draft.${roomName}`;
const MAX_LETTERS = 8000;

/** Where one types. It works without a connection; the draft survives a reload. */
export function Composer() {
  const [text, setText] = useState(() => sessionStorage.getItem(DRAFT) ?? '');
  const input = useRef<HTMLTextAreaElement>(null);

  useEffect(() => {
    sessionStorage.setItem(DRAFT, text);
    const element = input.current;
    if (!element) return;
    element.style.height = 'auto';
    element.style.height = `${Math.min(element.scrollHeight, 200)}px`;
  }, [text]);
  useEffect(() => {
    if (matchMedia('(pointer: fine)').matches) input.current?.focus();
  }, []);

  const send = (ask: boolean) => {
    const said = text.trim();
    if (said === '') return;
    say(said, ask);
    setText('');
    input.current?.focus();
  };

  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        send(false);
      }}
    >
      <label class="sr-only" for="said">
        Message
      </label>
      <textarea
        id="said"
        ref={input}
        rows={1}
        value={text}
        maxLength={MAX_LETTERS}
        placeholder={`Message # ${roomName}`}
        aria-describedby="keys"
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
          event.preventDefault();
          send(event.ctrlKey || event.metaKey);
        }}
      />
      <div class="actions">
        <span id="keys" class="keys">
          <kbd>Enter</kbd> sends · <kbd>Ctrl</kbd> <kbd>Enter</kbd> asks the AI
        </span>
        <button type="submit" disabled={text.trim() === ''}>
          Send
        </button>
        <button type="button" class="primary" disabled={text.trim() === ''} onClick={() => send(true)}>
          <span aria-hidden="true">✦</span> Ask the AI
        </button>
      </div>
    </form>
  );
}
