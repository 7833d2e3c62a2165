import type { Principal } from '../core/principal.js';
import type { Rooms } from '../core/rooms.js';
import { allows } from '../protocol/capabilities.js';
import { type CommandName, type CommandPayload, commands } from '../protocol/commands.js';
import { parse } from '../protocol/primitives.js';
import type { Run } from '../protocol/runs.js';
import { type Command, type Reply, replyJson } from './dispatch.js';
import type { Credentials } from './handshake.js';
import type { Session } from './session.js';

/** What clients ask of runs. */
interface RunRequests {
  create(principal: Principal, payload: CommandPayload<'run.create'>): Promise<{ run: Run; created: boolean }>;
  cancel(principal: Principal, runId: string): Promise<Run>;
}

export interface HandlerDeps {
  rooms: Pick<Rooms, 'join' | 'leave' | 'leaveAll' | 'joined' | 'publish' | 'expectPace' | 'history' | 'broadcast'>;
  runs: RunRequests;
  auth: Pick<Credentials, 'token'>;
}

type Handler<N extends CommandName> = (
  session: Session,
  payload: CommandPayload<N>,
  reply: Reply,
) => Promise<void> | void;

function handlersOf({ rooms, runs, auth }: HandlerDeps): { [N in CommandName]: Handler<N> } {
  /** Leaves what the session may no longer read: its capabilities can change while a join is under way. */
  const leaveForbidden = (session: Session) => {
    const { viewer } = session;
    if (session.state === 'closed') return rooms.leaveAll(viewer);
    for (const room of rooms.joined(viewer)) {
      if (!allows(session.principal.capabilities, room, 'join')) rooms.leave(session.principal, { room }, viewer);
    }
  };

  return {
    'room.join': async (session, payload, reply) => {
      try {
        await rooms.join(session.principal, payload, session.viewer, (joined) => reply(replyJson(joined)));
      } finally {
        leaveForbidden(session);
      }
    },
    'room.leave': (session, payload, reply) => {
      rooms.leave(session.principal, payload, session.viewer);
      reply('{}');
    },
    'event.publish': async (session, payload, reply) => {
      reply(replyJson(await rooms.publish(session.principal, payload)));
    },
    'event.history': async (session, payload, reply) => {
      const { events, ...page } = await rooms.history(session.principal, payload);
      reply(`{"events":[${events.join(',')}],${replyJson(page).slice(1)}`);
    },
    'broadcast.send': (session, payload, reply) => {
      rooms.broadcast(session.principal, payload, session.viewer);
      reply('{}');
    },
    'run.create': async (session, payload, reply) => {
      const { run } = await runs.create(session.principal, payload);
      reply(replyJson({ run }));
    },
    'run.cancel': async (session, payload, reply) => {
      reply(replyJson({ run: await runs.cancel(session.principal, payload.run) }));
    },
    'session.refresh': async (session, payload, reply) => {
      session.refresh(await auth.token(payload.token));
      leaveForbidden(session);
      const { expiresAt = 0, capabilities } = session.principal;
      reply(replyJson({ expiresAt, capabilities }));
    },
  };
}

/** The commands of namespace `/`, each parsing its payload by the protocol. A command without a handler does not build. */
export function roomCommands(deps: HandlerDeps): Record<CommandName, Command> {
  const handlers = handlersOf(deps);
  const command =
    <N extends CommandName>(name: N): Command =>
    (session, payload, reply) =>
      handlers[name](session, parse(commands[name].payload, payload) as CommandPayload<N>, reply);
  return {
    'room.join': command('room.join'),
    'room.leave': command('room.leave'),
    'event.publish': command('event.publish'),
    'event.history': command('event.history'),
    'broadcast.send': command('broadcast.send'),
    'run.create': command('run.create'),
    'run.cancel': command('run.cancel'),
    'session.refresh': command('session.refresh'),
  };
}
