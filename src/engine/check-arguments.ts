/** What whoever uses the engine as a library may get wrong, in plain JavaScript, too: said before anything is done. */
import { existsSync } from "node:fs";
import { isAbsolute } from "node:path";
import { TIMER_MS_MAX } from "../base/clock.js";
import { ThawError } from "../base/errors.js";
import { specSchema } from "../image/index.js";
import { type FreezeOptions, type FunctionSpec, LOADERS, type ThawOptions } from "./types.js";

/** Well below what one message to the keeper may have; Lambda's own limit is 6 MB. */
export const PAYLOAD_BYTES_MAX = 128 * 2 ** 20;
const HUSKS_MAX = 100_000;
const HUSKS = ["pooled", "fresh", "parked"] as const;
const LEVELS = ["generic", "runtime", "image", "prefaulted"] as const;

/** INVALID_ARGUMENT names each member that is missing or cannot be: an image could not be made of it. */
export function checkSpec(spec: FunctionSpec): void {
  const { success, error } = specSchema.safeParse(spec);
  const whys = success
    ? [
        ...wrongNumber("memoryMb", spec.memoryMb),
        ...wrongNumber("tmpMb", spec.tmpMb),
        ...wrongNumber("timeoutMs", spec.timeoutMs, TIMER_MS_MAX),
        ...(isAbsolute(spec.codeDir) ? [] : [`codeDir: ${JSON.stringify(spec.codeDir)} is no absolute path`]),
      ]
    : error.issues.map(({ path, message }) => `${path.join(".") || "it"}: ${message}`);
  if (whys.length === 0) return;
  throw new ThawError("INVALID_ARGUMENT", {
    what: "the function to boot cannot be used",
    why: whys.join("; "),
    fix: "give it all members of a FunctionSpec (src/engine/types.ts)",
  });
}

/** INVALID_ARGUMENT, or undefined. */
export function checkThaw({ loader, husk }: ThawOptions): ThawError | undefined {
  if (loader !== undefined && !LOADERS.includes(loader)) return unknown("loader", loader, LOADERS);
  if (husk !== undefined && !HUSKS.includes(husk)) return unknown("husk", husk, HUSKS);
  return undefined;
}

/** INVALID_ARGUMENT for a directory that is there already, or that a helper with another working directory would take for another one. */
export function checkFreeze({ dir }: FreezeOptions): void {
  if (dir === undefined || (isAbsolute(dir) && !existsSync(dir))) return;
  throw new ThawError("INVALID_ARGUMENT", {
    what: `the image cannot be written to ${JSON.stringify(dir)}`,
    why: isAbsolute(dir) ? "it is there already" : "it is no absolute path",
    fix: "name a directory that does not exist, by its whole path",
  });
}

/** INVALID_ARGUMENT unless so many husks of that level can be kept. */
export function checkHusks(level: string, count: number): void {
  if (!(LEVELS as readonly string[]).includes(level)) throw unknown("level", level, LEVELS);
  if (Number.isInteger(count) && count >= 0 && count <= HUSKS_MAX) return;
  throw new ThawError("INVALID_ARGUMENT", {
    what: `${String(count)} husks of the level ${level} cannot be kept`,
    why: `their number is a whole one, from 0 to ${HUSKS_MAX}`,
  });
}

/** INVALID_ARGUMENT, or undefined. */
export function checkBody(payload: unknown): ThawError | undefined {
  const bytes =
    typeof payload === "string" ? Buffer.byteLength(payload) : payload instanceof Uint8Array ? payload.length : undefined;
  if (bytes !== undefined && bytes <= PAYLOAD_BYTES_MAX) return undefined;
  return new ThawError("INVALID_ARGUMENT", {
    what: "the request's payload cannot be sent",
    why:
      bytes === undefined
        ? `it is ${payload === null ? "null" : `of the type ${typeof payload}`}`
        : `it has ${bytes} bytes, and ${PAYLOAD_BYTES_MAX} are possible`,
    fix: "give it JSON, as text or as bytes",
  });
}

function wrongNumber(name: string, value: number, most = Number.MAX_SAFE_INTEGER): string[] {
  return value > 0 && value <= most
    ? []
    : [`${name}: ${value} is not above 0${most < Number.MAX_SAFE_INTEGER ? ` and at most ${most}` : ""}`];
}

function unknown(what: string, found: unknown, known: readonly string[]): ThawError {
  return new ThawError("INVALID_ARGUMENT", {
    what: `the ${what} ${JSON.stringify(found)} is unknown`,
    why: `those that there are: ${known.join(", ")}`,
  });
}
