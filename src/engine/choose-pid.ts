/** The process ids of husks. */
import { assert } from "../base/errors.js";

const PID_MIN = 300;
const PID_SPAN = 29_000;

/** Any will do. */
export const NO_PIDS: ReadonlySet<number> = new Set();

/** One that no process of the lineage had, so that whoever keeps its own notices that it is another one. */
export function choosePid(avoid: ReadonlySet<number>): number {
  for (let tries = 0; tries < 1000; tries++) {
    const pid = PID_MIN + Math.floor(Math.random() * PID_SPAN);
    if (!avoid.has(pid)) return pid;
  }
  assert(false, "no pid outside the lineage");
}
