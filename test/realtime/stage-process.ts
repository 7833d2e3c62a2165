import { openStage } from './stage.js';

// One of several processes on one port; see processes.test.ts.
const stage = await openStage({}, { port: Number(process.argv[2]) });
process.send?.('listening');
process.on('message', () => process.send?.(stage.recorder.counts.get('connections /') ?? 0));
