/**
 * What is read from the database is checked before anything is done with it: SQLite has no checksums, a damaged page may be read as
 * other rows, and what no row names is removed from disk.
 */

import { ThawError } from "../base/errors.js";
import { whole, z } from "../base/schema.js";

const text = z.string();

const config = z.object({
  runtime: text,
  handler: text,
  memoryMb: whole,
  timeoutMs: whole,
  env: z.record(text, text),
  tmpMb: whole,
  description: text,
  maxInstances: whole.optional(),
  provisioned: whole.optional(),
  warmUp: z.object({ events: z.array(z.unknown()).min(1), requests: whole }).optional(),
  learn: z.boolean().optional(),
});

const functionName = text.regex(/^[a-zA-Z0-9_-]{1,64}$/);
const heatState = z.enum(["running", "done", "failed"]);

/** A row of `versions`, its config parsed. */
export const VERSION_ROW = z.object({
  function_name: functionName,
  version: text,
  revision_id: text,
  modified_ms: whole,
  config,
  code_hex: text.regex(/^[0-9a-f]+$/),
  code_bytes: whole,
  image_state: z.enum(["pending", "ready", "refused", "failed"]),
  image_reason: text.nullable(),
  warm_up_state: heatState.nullable(),
  warm_up_reason: text.nullable(),
});

/** A row of `images`, its summary parsed. */
export const IMAGE_ROW = z.object({
  // One name inside the directory of images, which may be removed by it.
  dir: text.regex(/^[a-zA-Z0-9_-][^/\0]*$/),
  function_name: functionName,
  version: text,
  generation: whole,
  heat: whole,
  source: z.enum(["deploy", "warm-up", "traffic", "by-hand"]),
  created_ms: whole,
  summary: z.object({ id: text, bytesOnDisk: whole, report: z.record(text, z.unknown()) }).nullable(),
});

/** Throws DATABASE_FAILED, naming the function, unless `row` is what `schema` says. */
export function checkRow<R extends { readonly function_name: string }>(schema: z.ZodObject, row: R): void {
  const { error } = schema.safeParse(row);
  if (error !== undefined) throw damaged(row, [...new Set(error.issues.map(({ path }) => path.join(".")))].join(", "));
}

/** The value of a column with JSON. */
export function parseColumn<R extends { readonly function_name: string }>(row: R, column: keyof R & string): unknown {
  try {
    return JSON.parse(String(row[column]));
  } catch (error) {
    throw damaged(row, column, error);
  }
}

function damaged({ function_name: name }: { readonly function_name: string }, where: string, cause?: unknown): ThawError {
  const parts = {
    what: "The functions could not be read from the database",
    why: `the database is damaged: what it says of function ${JSON.stringify(name)} makes no sense (${where})`,
    fix: "Restore it from a backup, or start with another data directory",
  };
  return new ThawError("DATABASE_FAILED", cause === undefined ? parts : { ...parts, cause });
}
