/** What the function set for its process and its threads: prctl(2), how and on which processors they are scheduled. */
import { SYS } from "../linux/syscalls.js";
import type { Facts } from "./facts.js";
import type { ProgramBuilder } from "./program.js";

/**
 * Once there are all threads, and nothing is done any more that would take longer by it. A machine may have none of the processors, and a server be less urgent
 * itself than the function was: then that is left as it is.
 */
export function compileSettings(program: ProgramBuilder, { settings, threads }: Facts): void {
  for (const [index, { number, scheduled, processors }] of threads.entries()) {
    // The main thread has another number in each clone.
    const thread = index === 0 ? 0 : number;
    if (processors !== undefined)
      program.call(
        `processors of thread ${number}`,
        SYS.sched_setaffinity,
        [thread, processors.length, program.data(processors)],
        {
          mayFail: true,
        },
      );
    if (scheduled !== undefined)
      program.call(`scheduling of thread ${number}`, SYS.sched_setattr, [thread, program.data(scheduled), 0], { mayFail: true });
  }
  for (const [setting, value] of settings) program.call(`prctl ${setting}`, SYS.prctl, [setting, value, 0, 0, 0]);
}
