/** Whether a process is about to end, as the kernel shows it (proc_pid_stat(5)) before anybody is told. */
import { readFileSync } from "node:fs";
import { statFields } from "./process-stat.js";

/** linux/sched.h: PF_EXITING, PF_SIGNALED. */
const FLAGS_OF_ENDING = 0x4 | 0x400;
const SIGKILL_BIT = 1n << 8n;

/** Also when it is no more. False for one that goes on. */
export function isEnding(pid: number): boolean {
  try {
    // First what comes first: a signal that is no longer pending by then has set the flags.
    const status = readFileSync(`/proc/${pid}/status`, "latin1");
    for (const [, pending] of status.matchAll(/^(?:Sig|Shd)Pnd:\t(\w+)/gm))
      if ((BigInt(`0x${pending}`) & SIGKILL_BIT) !== 0n) return true;
    const [state = "", , , , , , flags] = statFields(pid);
    return state === "Z" || state === "X" || (Number(flags) & FLAGS_OF_ENDING) !== 0;
  } catch {
    return true;
  }
}
