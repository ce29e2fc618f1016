/**
 * What of a frozen process may run before there is a request for it. Nothing of the function's code may: it would run unasked, at the
 * cost of nobody, and before the runtime has renewed what must be unique. But whoever only waits may wait ahead.
 */

import { CONTROL_FD } from "./channels.js";
import type { Facts, ThreadFacts } from "./facts.js";
import { register } from "./frame.js";

/** Node's runtime reads with the first, Python's with the second. */
const READS: readonly bigint[] = [0n, 19n];

/** Whether this is a main thread that waits in the runtime's own read of the next request. */
export function waitsForRequest(main: ThreadFacts): boolean {
  return READS.includes(register(main, "rax")) && register(main, "rdi") === BigInt(CONTROL_FD);
}

/**
 * Whether the whole process may be resumed ahead: its main thread then blocks in the runtime's read of the next request, all others sleep
 * until that one wakes them, and no timer can wake or interrupt any of them. (Pending signals and POSIX timers are refused at the freeze.)
 */
export function mayResumeAhead({ threads, itimers, descriptors }: Facts): boolean {
  const [main, ...others] = threads;
  if (main === undefined || !waitsForRequest(main)) return false;
  const armed = descriptors.some((one) => one.kind === "timerfd" && (one.ticks > 0 || one.value[0] !== 0 || one.value[1] !== 0));
  const ticking = itimers.some(([, , seconds, micros]) => seconds !== 0 || micros !== 0);
  return others.every(({ sleeps }) => sleeps) && !armed && !ticking;
}
