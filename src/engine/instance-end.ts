/** How an instance ended, as an error, and what the request that it did not answer is told. */
import { constants } from "node:os";
import { nowMs } from "../base/clock.js";
import { ThawError } from "../base/errors.js";
import type { InstanceExit } from "./keeper-messages.js";
import type { FunctionSpec, InvokeResult } from "./types.js";

/** What was decided about it first. */
export type EndReason =
  | { readonly kind: "disposed" | "timeout" | "exited" }
  | { readonly kind: "violation"; readonly error: ThawError }
  | { readonly kind: "failed"; readonly error: ThawError };

/** All that is known of an end. */
export interface Ending {
  readonly end: EndReason | undefined;
  readonly exit: InstanceExit | undefined;
  readonly spec: FunctionSpec;
  /** V8 ended the process at its own limit, which is derived from the function's and lies just below. */
  readonly heapFull: boolean;
}

const { SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP } = constants.signals;
/** Memory of images and of hibernated instances is files of the server's. */
const UNREADABLE = "see whether the server's disk is full or its files were cut short: a page of a mapped file could not be read";
/** What a process comes to by its own instructions, and not because somebody sent it. */
const CRASHES: readonly (number | undefined)[] = [SIGABRT, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP];

/** A request that was in it. Times in milliseconds of the monotonic clock. */
export interface UnansweredRequest {
  readonly requestId: string;
  readonly beganMs: number;
  readonly timeoutMs: number;
  /** False when the instance had ended before it could be sent. */
  readonly sent: boolean;
  /** The instance was still in hooks of before, and read no request. */
  readonly behindHooks?: boolean;
}

/** By code of ours: what a result calls it, and Lambda's name for it. */
export const PLATFORM_ERRORS = {
  TIMEOUT: ["TIMEOUT", "Sandbox.Timedout"],
  OUT_OF_MEMORY: ["OUT_OF_MEMORY", "Runtime.OutOfMemory"],
  PROTOCOL_VIOLATION: ["PROTOCOL_VIOLATION", "Runtime.ProtocolViolation"],
  RESPONSE_TOO_LARGE: ["RESPONSE_TOO_LARGE", "Function.ResponseSizeTooLarge"],
  INSTANCE_EXITED: ["INSTANCE_EXITED", "Runtime.ExitError"],
} as const as Readonly<Record<string, readonly [NonNullable<InvokeResult["platformError"]>, string]>> & {
  readonly TIMEOUT: readonly ["TIMEOUT", "Sandbox.Timedout"];
  readonly INSTANCE_EXITED: readonly ["INSTANCE_EXITED", "Runtime.ExitError"];
};

/** Nothing can come from a function that did this, and it goes on. */
export function controlClosed(): ThawError {
  return new ThawError("PROTOCOL_VIOLATION", {
    what: "the function closed its control descriptor (3)",
    why: "no answer can come through it",
    fix: "leave descriptor 3 alone: it belongs to the runtime",
  });
}

/** It wrote a frame by itself, on the runtime's channel. */
export function notTheReply(why: string): ThawError {
  return new ThawError("PROTOCOL_VIOLATION", {
    what: "the function wrote something to its control descriptor (3) that is not the reply",
    why,
    fix: "leave descriptor 3 alone: it belongs to the runtime",
  });
}

/** Why the instance is over, as an error. */
export function exitError({ end, exit, spec, heapFull }: Ending): ThawError {
  if (end?.kind === "violation" || end?.kind === "failed") return end.error;
  if (end?.kind === "timeout")
    return new ThawError("TIMEOUT", {
      what: "the function did not answer before its deadline",
      why: `its timeout is ${spec.timeoutMs / 1000} s`,
      fix: "raise --timeout, or find out what it waits for",
    });
  if (heapFull || (exit !== undefined && exit.oomKills > 0))
    return new ThawError("OUT_OF_MEMORY", {
      what: `the function was killed at its memory limit of ${spec.memoryMb} MB`,
      why: heapFull ? "its JavaScript heap was full" : "it asked for more; its files in /tmp and /dev/shm are memory, too",
      fix: "raise --memory",
    });
  if (end?.kind === "disposed")
    return new ThawError("INSTANCE_EXITED", { what: "the instance was disposed", why: "its owner ended it" });
  const signal = exit?.signal;
  return new ThawError("INSTANCE_EXITED", {
    what: `Runtime exited with error: ${signal === undefined ? `exit status ${exit?.code ?? "unknown"}` : signalText(signal)}`,
    fix:
      signal === undefined
        ? "the function's process must not exit; return from the handler, and see in its log what it said last"
        : signalAdvice(signal),
    details: signal === undefined ? {} : { signal },
  });
}

function signalText(signal: number): string {
  const [name] = Object.entries(constants.signals).find(([, number]) => number === signal) ?? [];
  return `signal ${signal}${name === undefined ? "" : ` (${name})`}`;
}

function signalAdvice(signal: number): string {
  if (signal === SIGBUS) return UNREADABLE;
  if (CRASHES.includes(signal)) return "it crashed: look at native add-ons first, and at what it printed before, in its log";
  return "it was sent that signal, by its own code or by somebody on the server's machine";
}

/** What the request that it did not answer gets: an error of the platform's, or a reply, to which the instance adds its logs. */
export function verdict(ending: Ending, request: UnansweredRequest, served: number): ThawError | Omit<InvokeResult, "logs"> {
  if (served > 0 && neverRead(ending, request)) return unreadError(exitError(ending));
  if (ending.end?.kind === "failed") return ending.end.error;
  return obituary(ending, request);
}

/**
 * Whether the process ended before it had read the request: of what its last one left behind, or because it was about that until the
 * request's time was over. Where memory ran out, a request that was there may be what it was for.
 */
function neverRead({ end, exit }: Ending, { sent, behindHooks = false }: UnansweredRequest): boolean {
  if (behindHooks) return true;
  if (exit?.oomKills !== 0) return false;
  return (end?.kind === "exited" && !sent) || ((end?.kind === "exited" || end?.kind === "timeout") && exit.unread === true);
}

function unreadError(cause: ThawError): ThawError {
  return new ThawError("INSTANCE_EXITED", {
    what: "the instance ended behind its last answer, before it had read the request",
    why: cause.what,
    fix: "send the request again",
    cause,
  });
}

/** What the caller of an unanswered request gets; its logs are the instance's to add. */
export function obituary(ending: Ending, request: UnansweredRequest): Omit<InvokeResult, "logs"> {
  const { end, exit, spec } = ending;
  const error = exitError(ending);
  const [platformError, type] = PLATFORM_ERRORS[error.code] ?? PLATFORM_ERRORS.INSTANCE_EXITED;
  const message =
    platformError === "TIMEOUT"
      ? `${new Date().toISOString()} ${request.requestId} Task timed out after ${(request.timeoutMs / 1000).toFixed(2)} seconds`
      : `RequestId: ${request.requestId} Error: ${error.message}`;
  const ms = nowMs() - request.beganMs;
  return {
    payload: Buffer.from(JSON.stringify({ errorType: type, errorMessage: message })),
    functionError: "Unhandled",
    platformError,
    handlerMs: ms,
    totalMs: ms,
    maxMemoryMb: exit === undefined ? 0 : Math.ceil(peakBytes(exit, spec, end?.kind === "exited") / 2 ** 20),
    alive: false,
  };
}

/**
 * Of a process that ended by itself the size of the largest one, as of an instance that answers. The peak of its group is not that: pages of
 * files count, an interpreter's and an image's among them, also those that came with instances before it in the same group, so that an
 * exit at once seemed to be at the limit. Of what was killed, its init and with it the rest, the kernel tells no size: the peak, where it
 * tells that (with version 2 of control groups since Linux 6.12). Where memory ran out, the peak is what was counted against the limit.
 */
function peakBytes(
  { peakBytes: counted, maxRssKb, oomKills }: InstanceExit,
  { memoryMb }: FunctionSpec,
  byItself: boolean,
): number {
  const largest = Math.min(maxRssKb * 1024, memoryMb * 2 ** 20);
  return counted > 0 && (oomKills > 0 || !byItself) ? counted : largest;
}
