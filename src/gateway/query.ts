/** The query strings of control routes. Strict: an unknown or repeated name is an error, not a silent default. */

import { ThawError } from "../base/errors.js";
import { z } from "../base/schema.js";

const wholeNumber = z
  .string()
  .regex(/^\d{1,9}$/, "it must be a whole number")
  .transform(Number);

const setting = z.string().regex(/^[^=]+=/, "it must be NAME=VALUE");

const yesNo = z.enum(["0", "1"], "it must be 0 or 1").transform((text) => text === "1");

/** Seconds, possibly with a fraction, as milliseconds. */
const seconds = z
  .string()
  .regex(/^\d{1,6}(\.\d{1,3})?$/, "it must be a number of seconds")
  .transform((text) => Math.round(Number(text) * 1000));

/** Of a deploy. Memory and tmp in MB, timeout in seconds. */
export const deployQuery = z.strictObject({
  runtime: z.string().optional(),
  handler: z.string().optional(),
  memory: wholeNumber.optional(),
  timeout: seconds.optional(),
  tmp: wholeNumber.optional(),
  maxInstances: wholeNumber.optional(),
  provisioned: wholeNumber.optional(),
  learn: yesNo.optional(),
  description: z.string().optional(),
  env: z
    .union([setting, z.array(setting)])
    .transform((env) => Object.fromEntries([env].flat().map(splitSetting)))
    .optional(),
});

/** Of a wait: seconds. */
export const readyQuery = z.strictObject({ timeout: seconds.optional() });

/** Of heating. */
export const heatQuery = z.strictObject({
  requests: z.string("it must be given").pipe(wholeNumber),
  from: wholeNumber.optional(),
});

/** Of logs. */
export const logsQuery = z.strictObject({ bytes: wholeNumber.optional(), follow: yesNo.default(false) });

function splitSetting(text: string): [string, string] {
  const at = text.indexOf("=");
  return [text.slice(0, at), text.slice(at + 1)];
}

/** Reads a query by its schema. INVALID_ARGUMENT names every parameter that is wrong. */
export function readQuery<S extends z.ZodObject>(schema: S, query: unknown): z.output<S> {
  // Fastify's query objects have no prototype, which zod does not take for plain objects of ours.
  const result = schema.safeParse({ ...(query as object) });
  if (result.success) return result.data;
  const whys = result.error.issues.map((issue) =>
    issue.code === "unrecognized_keys"
      ? `unknown: ${issue.keys.join(", ")}`
      : `${String(issue.path[0])}: ${issueText(issue, query as Record<string, unknown>)}`,
  );
  throw new ThawError("INVALID_ARGUMENT", {
    what: "The query cannot be used",
    why: whys.join("; "),
    fix: `The parameters are ${Object.keys(schema.shape).join(", ")}`,
  });
}

/** For a union zod says only "Invalid input"; the first alternative's complaint is the useful one. Of others a list is a name that was repeated. */
function issueText(issue: z.core.$ZodIssue, query: Readonly<Record<string, unknown>>): string {
  if (issue.code !== "invalid_union" && Array.isArray(query[String(issue.path[0])])) return "it is given more than once";
  if (issue.code === "invalid_union") return issue.errors[0]?.[0]?.message ?? issue.message;
  return issue.message;
}
