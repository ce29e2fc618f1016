/**
 * Every error that the world can cause, in one table. A bug is an assertion; the world is a `ThawError`
 * with a code from here, saying what failed, why, and what to do about it. The CLI prints all three and the
 * gateway maps each code to a status (`src/gateway/errors.ts`). `docs/errors.md` lists the same codes; a test
 * compares the two both ways.
 */
export const ERROR_CODES = {
  // machine
  UNSUPPORTED_PLATFORM: "This machine cannot freeze processes at all",
  NATIVE_MISSING: "The native helpers were not built",
  KEEPER_FAILED: "The keeper process could not start, or ended",
  SANDBOX_FAILED: "A sandbox could not be made",
  RUNTIME_MISSING: "No interpreter for that runtime on this machine",
  RESOURCE_EXHAUSTED: "Disk, memory, processes or descriptors ran out",
  // functions, before they run
  INVALID_ARGUMENT: "A parameter has a value that cannot be used",
  INVALID_PAYLOAD: "The payload is not valid JSON",
  PAYLOAD_TOO_LARGE: "The payload is larger than 6 MB",
  FUNCTION_NOT_FOUND: "No function of that name",
  FUNCTION_EXISTS: "A function of that name exists already",
  TOO_MANY_INSTANCES: "The limit on instances is reached",
  NO_INSTANCE: "The function has no instance in the state that this needs",
  PREFERENCE_UNAVAILABLE: "The kind of start that the request demanded is not available",
  CODE_INVALID: "The code package cannot be unpacked or has no usable handler",
  // functions, while they run
  INIT_FAILED: "The function failed while it was loaded",
  INSTANCE_EXITED: "The function's process ended before it answered",
  OUT_OF_MEMORY: "The function was killed at its memory limit",
  TIMEOUT: "The function did not answer within its timeout",
  PROTOCOL_VIOLATION: "The function wrote something to its control descriptor that is not a reply",
  RESPONSE_TOO_LARGE: "The function's reply is larger than 6 MB",
  // freezing and thawing
  FREEZE_REFUSED: "The process holds something that cannot be frozen",
  FREEZE_FAILED: "Freezing failed",
  THAW_FAILED: "An image could not be brought back to life",
  PAGER_LOST: "The process that brings an instance's pages ended, and so did the instance",
  IMAGE_DAMAGED: "An image is truncated, altered or incomplete",
  IMAGE_MISMATCH: "An image was made for another kernel, CPU, interpreter, library or thaw",
  IMAGE_NOT_READY: "The function has no image yet",
  WARM_UP_FAILED: "A warm-up request failed, hung, or left what cannot be frozen",
  // hibernation
  HIBERNATE_REFUSED: "The process holds something that cannot be hibernated",
  HIBERNATE_FAILED: "Hibernating failed",
  // server
  SERVER_UNREACHABLE: "No thaw server answers at that address",
  DATABASE_FAILED: "The database could not be read or written",
  SHUTTING_DOWN: "The server is stopping",
} as const;

/** One of the codes of {@link ERROR_CODES}. */
export type ErrorCode = keyof typeof ERROR_CODES;

/** What a {@link ThawError} is made of. */
export interface ErrorParts {
  /** What failed, naming the thing: `function "hello" could not be frozen`. */
  readonly what: string;
  /** Why, with the figure, the name or the kernel's own words: `it holds an inotify descriptor (fd 21)`. */
  readonly why?: string;
  /** What the user can do: `close it before the first request ends`. */
  readonly fix?: string;
  /** Machine-readable particulars, copied to JSON output. */
  readonly details?: Readonly<Record<string, unknown>>;
  readonly cause?: unknown;
}

/** An error that the world caused. `message` is what, why and fix in one sentence each. */
export class ThawError extends Error {
  readonly code: ErrorCode;
  readonly what: string;
  readonly why: string | undefined;
  readonly fix: string | undefined;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(code: ErrorCode, parts: ErrorParts) {
    const sentences = [parts.what, parts.why, parts.fix].filter((part) => part !== undefined && part !== "");
    super(sentences.join(". "), parts.cause === undefined ? undefined : { cause: parts.cause });
    this.name = "ThawError";
    this.code = code;
    this.what = parts.what;
    this.why = parts.why;
    this.fix = parts.fix;
    this.details = parts.details ?? {};
  }

  /** The plain form that crosses HTTP and goes to `--json`. */
  toJSON(): { code: ErrorCode; what: string; why?: string; fix?: string; details: object } {
    return {
      code: this.code,
      what: this.what,
      ...(this.why === undefined ? {} : { why: this.why }),
      ...(this.fix === undefined ? {} : { fix: this.fix }),
      details: this.details,
    };
  }
}

/** Whether `error` is a {@link ThawError}, optionally with that code. */
export function isThawError(error: unknown, code?: ErrorCode): error is ThawError {
  return error instanceof ThawError && (code === undefined || error.code === code);
}

/** The text of anything that was thrown. */
export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Asserts what only a bug can break. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Error(`bug: ${message}`);
}
