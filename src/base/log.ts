/**
 * The server's own log: one JSON object a line on stderr, through pino. What a function prints is not here; it
 * belongs to its request. Errors of ours are logged with code, what, why and fix.
 */
import { type DestinationStream, type Logger, destination as openDestination, pino } from "pino";
import { ThawError } from "./errors.js";
import { MIB } from "./units.js";

export type { Logger } from "pino";

/** Levels that THAW_LOG and `--log-level` accept. */
export const LOG_LEVELS = ["silent", "error", "warn", "info", "debug", "trace"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** What a logger writes, and where. */
export interface LogOptions {
  readonly level?: LogLevel;
  /** Where lines go; default: stderr, written at once so that a crash loses none. */
  readonly destination?: DestinationStream;
}

/** Of lines that could not be written yet. */
const WAITING_BYTES_MAX = MIB;

/** Makes the root logger; pass it, or a child of it, to whatever logs. */
export function createLogger(options: LogOptions = {}): Logger {
  return pino(
    {
      level: options.level ?? "info",
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { err: serializeError },
    },
    options.destination ?? logTo(2),
  );
}

/**
 * Lines to a descriptor, written at once. Those that cannot be (a full disk, a terminal that was closed) are tried again with the
 * next one, and dropped beyond a bound: a server does not end because of its log.
 */
export function logTo(fd: number): DestinationStream {
  const stream = openDestination({ dest: fd, sync: true, maxLength: WAITING_BYTES_MAX });
  // Without a listener an error of the stream would be the end of the process.
  stream.on("error", () => undefined);
  return stream;
}

/** A logger that writes nothing; for tests, and for the engine used as a library. */
export function silentLogger(): Logger {
  return pino({ level: "silent" });
}

/** The plain form of an error in a log line, its causes inside. */
function serializeError(error: unknown): unknown {
  if (error instanceof ThawError) {
    return { ...error.toJSON(), ...(error.cause === undefined ? {} : { cause: serializeError(error.cause) }) };
  }
  if (!(error instanceof Error)) return String(error);
  const code = (error as NodeJS.ErrnoException).code;
  return {
    message: error.message,
    ...(code === undefined ? {} : { code }),
    stack: error.stack,
    ...(error.cause === undefined ? {} : { cause: serializeError(error.cause) }),
  };
}
