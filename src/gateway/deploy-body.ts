/**
 * What the body of a deploy may be:
 *
 *     application/zip        the code package, and nothing else (so is every other type that is not below)
 *     multipart/form-data    `code`: the package.  `warmUp`: JSON, `[event, …]` or `{"events": [event, …], "requests": N}`
 *
 * A form, because events may have a megabyte, more than a query or a header carries, and because package and events belong to one
 * deploy that happens or does not. `curl -F code=@hello.zip -F 'warmUp=<events.json'` makes one. The package is handed on as it comes.
 */

import { errorText, ThawError } from "../base/errors.js";
import { z } from "../base/schema.js";
import { formatBytes, KIB, MIB } from "../base/units.js";
import { LIMITS, type PackageSource, type ReceivedPackage, type WarmUp } from "../platform/types.js";
import { FormError, type FormPart, readForm } from "./form.js";

/** Of the part with the warm-up events. */
export const WARM_UP_BYTES_MAX = MIB;
/** Of the whole body: both parts, and what a form adds around them. */
export const DEPLOY_BYTES_MAX = LIMITS.packedBytes + WARM_UP_BYTES_MAX + 16 * KIB;

/** The parts. Whoever asked for them closes the package. */
export interface DeployBody {
  readonly zip: ReceivedPackage;
  readonly warmUp?: WarmUp;
}

type Receive = (source: PackageSource) => Promise<ReceivedPackage>;

const FIX = "Send the zip as the body, or multipart/form-data with the parts `code` (the zip) and `warmUp` (JSON)";

/** Takes a body apart as it comes, the package by `receive`. INVALID_ARGUMENT when the form, or the warm-up in it, cannot be used; what `receive` throws. */
export async function readDeployBody(
  contentType: string | undefined,
  body: AsyncIterable<Uint8Array>,
  receive: Receive,
): Promise<DeployBody> {
  if (contentType === undefined || !/^multipart\/form-data\b/i.test(contentType)) return { zip: await receive(body) };
  const parts: { zip?: ReceivedPackage; warmUp?: WarmUp } = {};
  try {
    for await (const part of readForm(contentType, body)) await readPart(part, parts, receive);
    const { zip } = parts;
    if (zip === undefined) throw unusable("it has no file `code`");
    return { ...parts, zip };
  } catch (error) {
    await parts.zip?.close();
    throw error instanceof FormError ? unusable(error.message, error) : error;
  }
}

async function readPart(
  { name, isFile, content }: FormPart,
  parts: { zip?: ReceivedPackage; warmUp?: WarmUp },
  receive: Receive,
): Promise<void> {
  if (name !== "code" && name !== "warmUp") throw unusable(`it has a part ${JSON.stringify(name.slice(0, 80))}`);
  if (parts[name === "code" ? "zip" : name] !== undefined) throw unusable(`it has more than one part \`${name}\``);
  if (name === "warmUp") parts.warmUp = readWarmUp(await text(content));
  else if (isFile) parts.zip = await receive(content);
  else throw unusable("it has no file `code`");
}

async function text(content: AsyncIterable<Buffer>): Promise<string> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of content) {
    pieces.push(piece);
    bytes += piece.length;
    if (bytes > WARM_UP_BYTES_MAX) {
      throw unusableWarmUp(`they have more than ${formatBytes(WARM_UP_BYTES_MAX)}, which is the limit`);
    }
  }
  return Buffer.concat(pieces).toString();
}

const EVENTS = z.array(z.unknown());
const WARM_UP = z.strictObject({ events: EVENTS, requests: z.int().positive().optional() });

/** The JSON of the part. How many events and requests there may be is the platform's to say. */
function readWarmUp(text: string): WarmUp {
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
