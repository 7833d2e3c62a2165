import { useSignalEffect } from '@preact/signals';
import { items, notice, room } from '../conversation.js';
import { client, connection, needsToken } from '../session.js';

/** What stands in the way right now, if anything, and what helps. */
export function Banner() {
  useSignalEffect(() => {
    if (!notice.value) return;
    const timer = setTimeout(() => (notice.value = ''), 6000);
    return () => clearTimeout(timer);
  });
  const state = connection.value;
  const pending = items.value.filter((item) => item.kind === 'pending').length;
  if (needsToken.value) return <TokenHelp />;
  if (state.status === 'closed')
    return (
      <div class="banner bad" role="alert">
        <span>{state.error?.message ?? 'The connection was closed.'}</span>
        <button type="button" onClick={() => client.restart()}>
          Try again
        </button>
      </div>
    );
  if (room.state.status === 'refused')
    return (
      <div class="banner bad" role="alert">
        <span>This room cannot be joined: {room.state.error.message}</span>
      </div>
    );
  if (state.status === 'waiting')
    return (
      <div class="banner" role="status">
        <span>
          {state.refusal ? `The gateway refuses: ${state.refusal.message}` : 'The gateway is out of reach.'} Keep
          typing:{' '}
          {pending > 0
            ? `${pending} waiting, sent as soon as it is back.`
            : 'what you say is kept and sent as soon as it is back.'}
        </span>
        <button type="button" onClick={() => client.retryNow()}>
          Try now
        </button>
      </div>
    );
  if (notice.value)
    return (
      <div class="banner bad" role="alert">
        <span>{notice.value}</span>
      </div>
    );
  return null;
}

function TokenHelp() {
  return (
    <div class="banner" role="alert">
      <div>
        <p>
          <strong>A token is needed.</strong> This gateway hands out no demo tokens. Have one printed where Tutti runs,
          and open this page with it:
        </p>
        <pre>
          <code>
            {`npm run tutti -- token --tenant <tenant> --user alice \\\n  --cap '{"lobby":["join","publish","run.create","run.cancel"]}'`}
            {`\n\n${location.origin}/#room=lobby&token=<token>`}
          </code>
        </pre>
      </div>
    </div>
  );
}
