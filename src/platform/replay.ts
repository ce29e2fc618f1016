/** Requests that nobody waits for, sent to a private instance so that its code gets hot; each answer is checked. */
import { errorText, ThawError } from "../base/errors.js";
import { MIB } from "../base/units.js";
import type { Image, Instance, InvokeResult } from "../engine/types.js";
import { wholeLines } from "./logs.js";
import { LIMITS } from "./types.js";
import type { Version } from "./version.js";

/** What to send. */
export interface Events {
  /** The body of the `index`-th request, counted from 0. */
  readonly body: (index: number) => Buffer | string;
  /** How that request is called in messages. */
  readonly name: (index: number) => string;
}

/** Declared events, in turn. */
export function declaredEvents(events: readonly unknown[]): Events {
  const bodies = events.map((event) => JSON.stringify(event));
  return {
    body: (index) => bodies[index % bodies.length] ?? "{}",
    name: (index) => `request ${index + 1} (warm-up event ${(index % bodies.length) + 1} of ${bodies.length})`,
  };
}

/** One payload, again and again. */
export function sameEvent(payload: Buffer | string): Events {
  return { body: () => payload, name: (index) => `request ${index + 1}` };
}

/** When a replay ends at the latest. */
export function replayEnd(): number {
  return performance.now() + LIMITS.heatMs;
}

/** Sends one request and returns its handler time. WARM_UP_FAILED, naming it, when it was not answered well; the log has its output. */
export async function replayOne(
  version: Version,
  instance: Instance,
  origin: Image,
  events: Events,
  index: number,
): Promise<number> {
  let result: InvokeResult;
  try {
    result = await instance.invoke(events.body(index), {
      requestId: `warm-up-${index + 1}`,
      deadlineMs: Date.now() + version.spec.timeoutMs,
      invokedArn: version.arn,
    });
  } catch (error) {
    throw failed(version, `${events.name(index)} was not answered: ${errorText(error)}`, error);
  }
  if (result.functionError !== undefined || !result.alive) {
    const why = `${events.name(index)} ${complaint(version, result)}`;
    version.log.append("", `thaw: warm-up: ${why}\n${wholeLines(result.logs)}`);
    throw failed(version, why);
  }
  // The first answer of an instance that records its working set took a fault for every page.
  if (instance.start.recording !== true || instance.served > 1)
    version.generations.answered(origin, origin.heat + instance.served, result.handlerMs);
  return result.handlerMs;
}

/** WARM_UP_FAILED. */
export function failed(version: Version, why: string, cause?: unknown): ThawError {
  const parts = {
    what: `Function "${version.name}" could not be made hotter`,
    why,
    fix: "The images that exist serve on. See its log with `thaw logs`, correct the function or the events, and deploy it again",
  };
  return new ThawError("WARM_UP_FAILED", cause === undefined ? parts : { ...parts, cause });
}

function complaint({ spec }: Version, { platformError, payload }: InvokeResult): string {
  if (platformError === "TIMEOUT") return `did not answer within ${spec.timeoutMs / 1000} s`;
  if (platformError === "OUT_OF_MEMORY") return `took more than its ${spec.memoryMb} MB of memory`;
  if (platformError === "INSTANCE_EXITED") return "ended the process";
  return `failed: ${errorOf(payload)}`;
}

/** To read a longer error holds up everybody. */
const ERROR_BYTES_MAX = MIB;

/** `TypeError: x is not a function`, as far as the reply tells. */
function errorOf(payload: Buffer): string {
  if (payload.length > ERROR_BYTES_MAX) return "with an error of more than 1 MiB";
  try {
    const { errorType, errorMessage } = JSON.parse(payload.toString("utf8")) as Record<string, unknown>;
    return `${String(errorType)}: ${String(errorMessage)}`.slice(0, 500);
  } catch {
    return "with a reply that is not JSON";
  }
}
