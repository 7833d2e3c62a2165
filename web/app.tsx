import { signal } from '@preact/signals';
import { Banner } from './components/banner.js';
import { Composer } from './components/composer.js';
import { Header } from './components/header.js';
import { Inspector } from './components/inspector.js';
import { Timeline } from './components/timeline.js';

const WIDE = '(min-width: 60rem)';
export const panelOpen = signal(matchMedia(WIDE).matches);

export function App() {
  return (
    <div class={panelOpen.value ? 'app with-panel' : 'app'}>
      <Header panelOpen={panelOpen} />
      <main class="room">
        <Banner />
        <Timeline />
        <Composer />
      </main>
      {panelOpen.value && <Inspector close={() => (panelOpen.value = false)} />}
    </div>
  );
}
