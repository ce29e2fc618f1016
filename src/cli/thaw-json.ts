/** `thaw.json` in a function's folder: defaults for `thaw deploy`, which options on the command line override. */
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { errorText, ThawError } from "../base/errors.js";
import { variables, z } from "../base/schema.js";
import { formatBytes } from "../base/units.js";
import { withoutMark } from "./io.js";
import { EVENTS_TEXT_BYTES_MAX, type WarmUpSource } from "./warm-up.js";

/** Its name; the file describes the package and is not part of it. */
export const THAW_JSON = "thaw.json";

const requests = z.int().positive().optional();
const events = z.array(z.unknown());

/** A list would hide what is wrong in an object, and the other way around: which one is meant is clear from its look. */
const warmUp = z.unknown().transform((value, context): WarmUpSource => {
  const isScript = typeof value === "object" && value !== null && "script" in value;
  const schema = Array.isArray(value)
    ? events
    : isScript
      ? z.strictObject({ script: z.string().min(1), requests })
      : z.strictObject({ events, requests }, 'it must be a list of events, {"events": [...]} or {"script": "FILE"}');
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  for (const { message, path } of result.error.issues) context.addIssue({ code: "custom", message, path });
  return z.NEVER;
});

const SCHEMA = z.strictObject({
  name: z.string().min(1).optional(),
  runtime: z.string().min(1).optional(),
  handler: z.string().min(1).optional(),
  /** MB. */
  memory: z.int().positive().optional(),
  /** Seconds. */
  timeout: z.number().positive().optional(),
  /** MB of /tmp. */
  tmp: z.int().positive().optional(),
  env: variables()
    .refine((env) => Object.keys(env).every((name) => /^[^=]+$/.test(name)), "a name is empty or has a = in it")
    .optional(),
  maxInstances: z.int().positive().optional(),
  provisioned: z.int().nonnegative().optional(),
  /** Events, or the script in this folder that prints them. */
  warmUp: warmUp.optional(),
  /** Make hotter images of instances that serve real requests. */
  learn: z.boolean().optional(),
});

/** What the file may say. */
export type ThawJson = z.infer<typeof SCHEMA>;

/** Reads the folder's file; `{}` when there is none. INVALID_ARGUMENT names the key that is unknown or wrong. */
export async function readThawJson(folder: string): Promise<ThawJson> {
  const path = join(folder, THAW_JSON);
  let text: string;
  try {
    const found = await stat(path);
    // Others may never end, or wait for somebody to write.
    if (!found.isFile()) throw new Error("it is not a file");
    if (found.size > EVENTS_TEXT_BYTES_MAX)
      throw new Error(`it has ${formatBytes(found.size)}, and the limit is ${formatBytes(EVENTS_TEXT_BYTES_MAX)}`);
    text = withoutMark(await readFile(path)).toString();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return {};
    throw new ThawError("INVALID_ARGUMENT", { what: `${path} cannot be read`, why: errorText(error), cause: error });
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new ThawError("INVALID_ARGUMENT", { what: `${path} is not JSON`, why: errorText(error), cause: error });
  }
  const result = SCHEMA.safeParse(value);
  if (result.success) return result.data;
  throw new ThawError("INVALID_ARGUMENT", {
    what: `${path} cannot be used`,
    why: result.error.issues.map(issueText).join("; "),
    fix: `The keys are ${Object.keys(SCHEMA.shape).join(", ")}`,
  });
}

function issueText(issue: z.core.$ZodIssue): string {
  if (issue.code === "unrecognized_keys") {
    return `unknown ${issue.keys.length === 1 ? "key" : "keys"} ${issue.keys.map((key) => JSON.stringify(key)).join(", ")}`;
  }
  return `${issue.path.length === 0 ? "the file" : issue.path.join(".")}: ${issue.message}`;
}
