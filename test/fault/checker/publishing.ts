import type { Faults } from './faults.js';
import type { Published } from './published.js';
import { type Findings, quantiles, type Verdict } from './verdict.js';

interface PublishingOptions {
  marginMs: number;
  ackMs: number;
  availability: number;
}

/** A send so short before a fault that its ack cannot be asked for counts as sent in it, µs. */
const BEFORE_FAULT_US = 1_000_000;
/** Fewer events than this outside of faults say nothing of a share. */
const FEWEST = 20;

/** How much of what was sent outside of faults was acknowledged in time, and how fast. `end` is the last time in the history. */
export function checkPublishing(
  published: Published,
  faults: Faults,
  end: number,
  options: PublishingOptions,
  findings: Findings,
): Pick<Verdict, 'availability' | 'ackLatency'> {
  const quiet: number[] = [];
  const faulty: number[] = [];
  const [ackUs, marginUs] = [options.ackMs * 1000, options.marginMs * 1000];
  let sent = 0;
  let acked = 0;
  for (let event = 0; event < published.mids.length; event++) {
    const from = published.sentAt[event] ?? Number.POSITIVE_INFINITY;
    if (from === Number.POSITIVE_INFINITY) continue;
    const took = (published.ackedAt[event] ?? Number.POSITIVE_INFINITY) - from;
    const inFault = faults.touches(from, BEFORE_FAULT_US, marginUs);
    if (took !== Number.POSITIVE_INFINITY) (inFault ? faulty : quiet).push(took);
    // Of what was sent last nobody can know: those with an answer alone would make the share look good.
    if (inFault || from + ackUs > end || published.excused.has(event)) continue;
    sent += 1;
    if (took <= ackUs) acked += 1;
  }
  const share = sent === 0 ? 1 : acked / sent;
  if (sent >= FEWEST && share < options.availability) {
    findings.add(
      'availability',
      `${acked} of ${sent} events sent outside of faults were acknowledged within ${options.ackMs} ms`,
    );
  }
  return { availability: { sent, acked, share }, ackLatency: { quiet: quantiles(quiet), faulty: quantiles(faulty) } };
}
