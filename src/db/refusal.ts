import { asTuttiError, TuttiError } from '../errors.js';

/** The SQLSTATE of an error of Postgres, or the driver's or the socket's code. */
export function codeOf(thrown: unknown): string | undefined {
  if (typeof thrown !== 'object' || thrown === null || !('code' in thrown)) return undefined;
  return typeof thrown.code === 'string' ? thrown.code : undefined;
}

const SQLSTATE = /^[0-9A-Z]{5}$/;
/** Data exception, integrity violation, check option, program limit, raised by a trigger. */
const DATA = /^(22|23|44|54|P0)/;
/**
 * Connection, login, unknown database, rollback of a transaction, resources, operator intervention, system error,
 * read-only or lost transaction, lock not to be had.
 */
const PASSING = /^(08|25|28|3D|40|53|57|58|55P03)/;
/** Codes of the driver and of Node, but for those of a wrong call, which is a fault of ours and no connection's. */
const NO_FAULT =
  /^(?!UNDEFINED_VALUE|NOT_TAGGED_CALL|MAX_PARAMETERS_EXCEEDED|UNSAFE_TRANSACTION|ERR_(?!SSL|TLS|SOCKET|STREAM))/;

/** Whether Postgres refuses the data of the statement, so that the same statement fails again. */
export function isDataError(thrown: unknown): boolean {
  const code = codeOf(thrown);
  return code !== undefined && SQLSTATE.test(code) && DATA.test(code);
}

/**
 * What was thrown by the database as a refusal: `log_unavailable` for whatever may pass by itself, `bad_request`
 * for refused data, `internal` for the rest, which is a fault of ours.
 */
export function asDatabaseRefusal(thrown: unknown): TuttiError {
  if (thrown instanceof TuttiError) return thrown;
  const code = codeOf(thrown);
  if (isDataError(thrown)) return new TuttiError('bad_request', 'The database refuses this data.', { cause: thrown });
  const passing = code !== undefined && (SQLSTATE.test(code) ? PASSING : NO_FAULT).test(code);
  if (passing) {
    return new TuttiError('log_unavailable', 'The database is not available.', { cause: thrown });
  }
  return asTuttiError(thrown);
}
