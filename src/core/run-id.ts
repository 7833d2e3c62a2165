import { randomFillSync } from 'node:crypto';

/**
 * A UUID version 7 (RFC 9562): ids made later sort later, to the millisecond. Made here because Postgres has it
 * only from version 18 on.
 * @param now ms since the Unix epoch.
 */
export function uuidv7(now: number = Date.now()): string {
  const bytes = randomFillSync(Buffer.allocUnsafe(16));
  bytes.writeUIntBE(now, 0, 6);
  bytes.writeUInt8(0x70 | (bytes.readUInt8(6) & 0x0f), 6);
  bytes.writeUInt8(0x80 | (bytes.readUInt8(8) & 0x3f), 8);
  const hex = bytes.toString('hex');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}
