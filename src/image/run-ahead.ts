/**
 * What of a frozen process may run before there is a request for it. Nothing of the function's code may: it would run unasked, at the
 * cost of nobody, and before the runtime has renewed what must be unique. But whoever only waits may wait ahead.
 */

import type { Facts, ThreadFacts } from "./facts.js";
import { register } from "./frame.js";
import { CONTROL_FD } from "./launch.js";

/** Node's runtime reads with the first, Python's with the second. */
const READS: readonly bigint[] = [0n, 19n];
const SYS_FUTEX = 202n;
const SYS_EPOLL_WAIT = 232n;
const SYS_EPOLL_PWAIT = 281n;

/**
 * Whether a thread stands before a call that ends only when another thread wants it: a futex or epoll wait without a time
 * limit. It may go to sleep ahead of the resume, for nothing of the function runs before that which could wake it.
 */
export function sleepsUntilWoken(thread: ThreadFacts): boolean {
  const call = register(thread, "rax");
  const limit = register(thread, "r10");
  if (call === SYS_FUTEX) return limit === 0n;
  return (call === SYS_EPOLL_WAIT || call === SYS_EPOLL_PWAIT) && BigInt.asIntN(32, limit) < 0n;
}

/**
 * Whether the whole process may be resumed ahead: its main thread then blocks in the runtime's read of the next request, all others sleep
 * until that one wakes them, and no timer can wake or interrupt any of them. (Pending signals and POSIX timers are refused at the freeze.)
 */
export function mayResumeAhead({ threads, itimers, descriptors }: Facts): boolean {
  const [main, ...others] = threads;
  if (main === undefined || !READS.includes(register(main, "rax")) || register(main, "rdi") !== BigInt(CONTROL_FD)) return false;
  const armed = descriptors.some((one) => one.kind === "timerfd" && (one.ticks > 0 || one.value[0] !== 0 || one.value[1] !== 0));
  const ticking = itimers.some(([, , seconds, micros]) => seconds !== 0 || micros !== 0);
  return others.every(sleepsUntilWoken) && !armed && !ticking;
}
