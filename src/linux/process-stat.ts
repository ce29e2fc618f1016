/** What /proc/PID/stat says of a process (proc_pid_stat(5)). */
import { readFileSync } from "node:fs";

/**
 * Its fields from the state on, so counted from 0 where the manual counts from 3: the name before them may hold anything. Throws when the
 * process is gone.
 */
export function statFields(pid: number): string[] {
  const text = readFileSync(`/proc/${pid}/stat`, "latin1");
  return text.slice(text.lastIndexOf(")") + 2).split(" ");
}

/** Start time of a process in ticks since boot, undefined when it is gone. */
export function processStart(pid: number): string | undefined {
  try {
    const fields = statFields(pid);
    return fields[0] === "Z" || fields[0] === "X" ? undefined : fields[19];
  } catch {
    return undefined;
  }
}
