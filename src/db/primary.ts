import { TuttiError } from '../errors.js';
import { Line, type LineOptions, type Sql } from './line.js';

/** Longest wait for one of several servers to say what it is, in ms. */
const ASK_TIMEOUT_MS = 3000;

interface Answer {
  standby: boolean;
  system: string;
  /** 0 on a standby. */
  timeline: number;
}

/** What a server is, in one statement that needs nothing of the schema. */
async function ask(sql: Sql): Promise<Answer> {
  const [answer] = await sql<Answer[]>`
    select pg_is_in_recovery() as standby, c.system_identifier::text as system,
      case when pg_is_in_recovery() then 0
        else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer end as timeline
    from pg_control_system() c`;
  if (!answer) throw new TuttiError('internal', 'Internal error.');
  return answer;
}

/**
 * For work that cannot ask `tutti.meet`, because the schema may not be there yet, or the log not be decided on.
 * @throws Error with the SQLSTATE `tutti.meet` has for a standby and for an old timeline.
 */
export async function requirePrimary(sql: Sql, known: string | null): Promise<void> {
  const { standby, system, timeline } = await ask(sql);
  if (standby) throw refusal('57TU1', 'this server is a standby');
  const [knownSystem, knownTimeline] = known?.split('/') ?? [];
  if (knownSystem === system && timeline < Number(knownTimeline)) {
    throw refusal('57TU2', `this server is on an old timeline: ${knownTimeline} was seen, this is ${timeline}`);
  }
}

const refusal = (code: string, message: string): Error => Object.assign(new Error(message), { code });

/**
 * Asks all of several servers what they are, so that a process that starts does not take an old primary that came
 * back for the primary, where the true one answers too.
 * @returns the newest identity among those that are no standbys; `undefined` where there is nothing to choose from.
 */
export async function findPrimary(options: LineOptions): Promise<string | undefined> {
  const { servers } = options;
  if (servers.list.length < 2) return undefined;
  const asked = await Promise.all(
    servers.list.map(async (server) => {
      const line = new Line({ ...options, servers: servers.only(server), prepare: false });
      try {
        return { server, ...(await line.run(ASK_TIMEOUT_MS, ask)) };
      } catch {
        return undefined;
      } finally {
        await line.close(0);
      }
    }),
  );
  const primaries = asked.flatMap((one) => (one && !one.standby ? [one] : []));
  const newest = primaries.sort((a, b) => b.timeline - a.timeline)[0];
  if (!newest) return undefined;
  servers.begin(newest.server);
  return `${newest.system}/${newest.timeline}`;
}
