/** What runs in a function before its memory is taken: its before-snapshot hooks, then hygiene. */
import { ThawError } from "../base/errors.js";
import type { PreparedHeader } from "../runtime/frames.js";
import type { LiveInstance } from "./instance.js";

/** What the hooks are run for: who refuses when one of them fails. */
export interface Purpose {
  readonly code: "FREEZE_REFUSED" | "HIBERNATE_REFUSED";
  readonly done: "frozen" | "hibernated";
  readonly collect?: false;
}

export const FREEZING: Purpose = { code: "FREEZE_REFUSED", done: "frozen" };

/** Before-snapshot hooks, and hygiene unless `collect` is false. Returns its milliseconds and, for a freeze, how hot the code is and what is to be seeded anew, where the runtime tells. */
export async function prepare(instance: LiveInstance, { code, done, collect }: Purpose = FREEZING): Promise<PreparedHeader> {
  const { graceMs } = instance.owner;
  // Whoever does not answer this answers nothing any more.
  const tooSlow = (ms: number): ThawError =>
    new ThawError(code, {
      what: `function "${instance.spec.name}" could not be ${done}`,
      why: `its before-snapshot hooks took longer than ${ms / 1000} s, and it was ended`,
      fix: "mend the hook",
    });
  const answer = instance.expect("prepared", tooSlow);
  const image = done === "frozen" ? { heat: true as const, seeds: true as const } : {};
  instance.tell({ type: "prepare", ...(collect === undefined ? {} : { collect }), ...image });
  const timer = setTimeout(() => instance.fail(tooSlow(graceMs)), graceMs);
  const { header, body } = await answer.finally(() => clearTimeout(timer));
  if (header.type === "prepared") return header;
  throw new ThawError(code, {
    what: `function "${instance.spec.name}" could not be ${done}`,
    why: `one of its before-snapshot hooks failed: ${body.toString("utf8").slice(0, 500)}`,
    fix: "mend the hook",
  });
}
