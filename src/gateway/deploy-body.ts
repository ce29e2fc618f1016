/**
 * What the body of a deploy may be:
 *
 *     application/zip        the code package, and nothing else (so is every other type that is not below)
 *     multipart/form-data    `code`: the package.  `warmUp`: JSON, `[event, …]` or `{"events": [event, …], "requests": N}`
 *
 * A form, because events may have a megabyte, more than a query or a header carries, and because package and events belong to one
 * deploy that happens or does not. `curl -F code=@hello.zip -F 'warmUp=<events.json'` makes one. Node's own parser reads it: the whole
 * body is in memory by then, and its size is bounded.
 */

import { errorText, ThawError } from "../base/errors.js";
import { z } from "../base/schema.js";
import { formatBytes, KIB, MIB } from "../base/units.js";
import { LIMITS, type WarmUp } from "../platform/types.js";

/** Of the part with the warm-up events. */
export const WARM_UP_BYTES_MAX = MIB;
/** Of the whole body: both parts, and what a form adds around them. */
export const DEPLOY_BYTES_MAX = LIMITS.packedBytes + WARM_UP_BYTES_MAX + 16 * KIB;

/** The parts. */
export interface DeployBody {
  readonly zip: Buffer;
  readonly warmUp?: WarmUp;
}

const FIX = "Send the zip as the body, or multipart/form-data with the parts `code` (the zip) and `warmUp` (JSON)";

/** Takes a body apart. INVALID_ARGUMENT when the form, or the warm-up in it, cannot be used. */
export async function readDeployBody(contentType: string | undefined, body: unknown): Promise<DeployBody> {
  const bytes = body instanceof Buffer ? body : Buffer.alloc(0);
  if (contentType === undefined || !/^multipart\/form-data\b/i.test(contentType)) return { zip: bytes };
  const form = await readForm(contentType, bytes);
  const code = form.get("code");
  const unknown = [...form.keys()].find((name) => name !== "code" && name !== "warmUp");
  if (unknown !== undefined) throw unusable(`it has a part ${JSON.stringify(unknown.slice(0, 80))}`);
  if (!(code instanceof Blob)) throw unusable("it has no file `code`");
  for (const name of ["code", "warmUp"])
    if (form.getAll(name).length > 1) throw unusable(`it has more than one part \`${name}\``);
  const zip = Buffer.from(await code.arrayBuffer());
  const part = form.get("warmUp");
  if (part === null) return { zip };
  return { zip, warmUp: readWarmUp(typeof part === "string" ? part : await part.text()) };
}

async function readForm(contentType: string, bytes: Buffer): Promise<FormData> {
  try {
    return await new Response(bytes, { headers: { "content-type": contentType } }).formData();
  } catch (error) {
    throw unusable(errorText(error), error);
  }
}

const EVENTS = z.array(z.unknown());
const WARM_UP = z.strictObject({ events: EVENTS, requests: z.int().positive().optional() });

/** The JSON of the part. How many events and requests there may be is the platform's to say. */
function readWarmUp(text: string): WarmUp {
  const bytes = Buffer.byteLength(text);
  if (bytes > WARM_UP_BYTES_MAX)
    throw unusableWarmUp(`they have ${formatBytes(bytes)}, and the limit is ${formatBytes(WARM_UP_BYTES_MAX)}`);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw unusableWarmUp(`they are not JSON: ${errorText(error)}`, error);
  }
  if (Array.isArray(value)) return { events: value };
  const parsed = WARM_UP.safeParse(value);
  if (!parsed.success) {
    throw unusableWarmUp(
      parsed.error.issues.map(({ path, message }) => `${path.length === 0 ? "warmUp" : path.join(".")}: ${message}`).join("; "),
    );
  }
  const { events, requests } = parsed.data;
  return { events, ...(requests === undefined ? {} : { requests }) };
}

function unusable(why: string, cause?: unknown): ThawError {
  return new ThawError("INVALID_ARGUMENT", { what: "The form cannot be used", why, fix: FIX, cause });
}

function unusableWarmUp(why: string, cause?: unknown): ThawError {
  return new ThawError("INVALID_ARGUMENT", {
    what: "The warm-up events cannot be used",
    why,
    fix: 'Give a JSON list of events, or {"events": [...], "requests": N}',
    cause,
  });
}
