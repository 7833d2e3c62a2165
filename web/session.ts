import { signal } from '@preact/signals';
import { type ConnectionState, Refusal, TuttiClient } from '../src/client/index.js';
import { me } from './identity.js';

/** What the address says behind `#`: `room=name`, and `token=…` where the page is used with a token of one's own. */
const hash = new URLSearchParams(location.hash.slice(1));
export const roomName = hash.get('room') || 'lobby';
const inAddress = hash.get('token');
/** A token brought by the user. It is kept in this tab, so that a reload does not ask for it again. */
const givenToken = inAddress ?? sessionStorage.getItem('tutti.token');
/** Whether the demo tenant knows this tab by the name chosen here; a token that was brought names its user itself. */
export const isGuest = !givenToken;
// A token in the address would be copied along with it.
if (inAddress) {
  sessionStorage.setItem('tutti.token', inAddress);
  history.replaceState(null, '', roomName === 'lobby' ? location.pathname : `#room=${encodeURIComponent(roomName)}`);
}

/** Set when this gateway has no demo tenant: a token has to be brought. */
export const needsToken = signal(false);

async function demoToken(): Promise<string> {
  const response = await fetch('/demo/token', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(me.value),
  });
  if (response.ok) return ((await response.json()) as { token: string }).token;
  const retryable = response.status === 429 || response.status >= 500;
  needsToken.value = response.status === 404;
  const message = needsToken.value ? 'This gateway hands out no demo tokens.' : `No token (${response.status}).`;
  throw new Refusal({ code: 'no_token', message, retryable });
}

export const client = new TuttiClient({ url: location.origin, token: givenToken ?? demoToken });
export const connection = signal<ConnectionState>(client.state);
client.onState((state) => {
  connection.value = state;
  if (state.status === 'connected' && !isGuest) me.value = { user: state.session.user, name: state.session.user };
  if (state.status === 'closed') sessionStorage.removeItem('tutti.token');
});

addEventListener('online', () => client.retryNow());
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) client.retryNow();
});
addEventListener('hashchange', () => location.reload());
