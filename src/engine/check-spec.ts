/** Functions come from whoever uses the engine as a library, too, in plain JavaScript. */
import { ThawError } from "../base/errors.js";
import { specSchema } from "../image/index.js";
import type { FunctionSpec } from "./types.js";

/** INVALID_ARGUMENT names each member that is missing or of another type: an image could not be made of it. */
export function checkSpec(spec: FunctionSpec): void {
  const { success, error } = specSchema.safeParse(spec);
  if (success) return;
  const whys = error.issues.map(({ path, message }) => `${path.join(".") || "it"}: ${message}`);
  throw new ThawError("INVALID_ARGUMENT", {
    what: "the function to boot cannot be used",
    why: whys.join("; "),
    fix: "give it all members of a FunctionSpec (src/engine/types.ts)",
  });
}
