import { isServerMid, type Log, type Published, type Room, roomText } from './published.js';
import type { Findings } from './verdict.js';

/** Whether the room's log may be replaced by one of another epoch, by erasure or a restore. */
export type MayMove = (tenant: string, room: string) => boolean;

/** Holds acks and final tables against each other, and the order within each log. Linear in the events. */
export function checkLogs(published: Published, mayMove: MayMove, findings: Findings): void {
  for (const log of published.allLogs()) if (log.stored) checkTable(log, published, findings);
  for (let event = 0; event < published.mids.length; event++) checkAck(event, published, mayMove, findings);
  for (const log of published.allLogs()) {
    checkRealTime(log, published, findings);
    checkPublishers(log, published, findings);
  }
}

function checkTable(log: Log, published: Published, findings: Findings): void {
  const where = `${roomText(log.room)} ${log.epoch}`;
  for (let seq = log.floor + 1; seq <= log.head; seq++) {
    const event = log.events[seq] ?? -1;
    if (event < 0) findings.add('hole', `${where} has no event ${seq} below its head ${log.head}`);
    else checkPresence(event, `${where}:${seq}`, log.room, published, findings);
  }
  for (let seq = log.head + 1; seq < log.events.length; seq++) {
    if ((log.events[seq] ?? -1) >= 0) findings.add('hole', `${where} has an event ${seq} past its head ${log.head}`);
  }
}

function checkPresence(event: number, where: string, room: Room, published: Published, findings: Findings): void {
  const mid = published.mids[event] ?? '';
  if (isServerMid(mid)) return;
  const sentTo = published.rooms[event];
  if (!sentTo) findings.add('ghost', `${mid} at ${where} was sent by nobody`);
  else if (sentTo.tenant !== room.tenant) {
    findings.add('isolation', `${mid} at ${where} was sent to ${roomText(sentTo)}`);
  } else if (sentTo !== room) findings.add('place', `${mid} at ${where} was sent to ${roomText(sentTo)}`);
  else if (!published.mayBeThere(event)) findings.add('ghost', `${mid} at ${where} was refused at every attempt`);
}

function checkAck(event: number, published: Published, mayMove: MayMove, findings: Findings): void {
  const log = published.ackLogs[event];
  const seq = published.ackSeqs[event] ?? -1;
  if (!log) return;
  const t = published.ackedAt[event];
  const mid = published.mids[event];
  const where = `${roomText(log.room)} ${log.epoch}:${seq}`;
  if (!log.stored) {
    if (published.hasTables && !mayMove(log.room.tenant, log.room.name)) {
      findings.add('lost', `${mid} was acknowledged at ${where}, whose log is gone`, t);
    } else {
      published.claim(log, seq, event, 'an ack', t);
    }
    return;
  }
  if (seq <= log.floor || log.events[seq] === event) return;
  if (published.logs[event] === log) {
    findings.add('place', `${mid} was acknowledged at ${where} and is stored at ${published.seqs[event]}`, t);
  } else {
    const other = published.mids[log.events[seq] ?? -1];
    findings.add('lost', `${mid} was acknowledged at ${where}, where ${other ?? 'nothing'} is stored`, t);
  }
}

/** An event acknowledged before another is sent has the smaller seq. */
function checkRealTime(log: Log, published: Published, findings: Findings): void {
  const { sentAt, ackedAt, ackLogs, mids } = published;
  let earliest = Number.POSITIVE_INFINITY;
  let earliestSeq = 0;
  for (let seq = log.events.length - 1; seq > 0; seq--) {
    const event = log.events[seq] ?? -1;
    if (event < 0) continue;
    const sent = sentAt[event] ?? Number.POSITIVE_INFINITY;
    if (sent !== Number.POSITIVE_INFINITY && earliest < sent) {
      const later = mids[log.events[earliestSeq] ?? -1];
      const where = `${roomText(log.room)} ${log.epoch}`;
      findings.add(
        'real-time',
        `${where}: ${later} at ${earliestSeq} was acknowledged before ${mids[event]} at ${seq} was sent`,
        sent,
      );
    }
    const acked = ackLogs[event] === log ? (ackedAt[event] ?? Number.POSITIVE_INFINITY) : Number.POSITIVE_INFINITY;
    if (acked < earliest) {
      earliest = acked;
      earliestSeq = seq;
    }
  }
}

/** Events sent once on one connection stand in the order they were sent. */
function checkPublishers(log: Log, published: Published, findings: Findings): void {
  const { attempts, connections, mids, ordinals, sentAt } = published;
  const newest = new Map<string, number>();
  for (const event of log.events) {
    if (event < 0 || attempts[event] !== 1) continue;
    const connection = connections[event] ?? '';
    const before = newest.get(connection);
    if (before !== undefined && (ordinals[before] ?? 0) > (ordinals[event] ?? 0)) {
      const where = `${roomText(log.room)} ${log.epoch}`;
      findings.add(
        'publisher-order',
        `${where}: ${mids[event]} stands after ${mids[before]}, but was sent first`,
        sentAt[event],
      );
    } else newest.set(connection, event);
  }
}
