/**
 * Faults of a process, as the kernel counts them (proc_pid_stat(5), proc_pid_io(5)). Reading one takes 10 us and does not
 * disturb the process.
 */
import { readFileSync } from "node:fs";
import { statFields } from "../linux/process-stat.js";

/** Totals since the process began, all threads. */
export interface ProcessFaults {
  readonly minor: number;
  /** Those that waited for a disk. */
  readonly major: number;
  /** Time its main thread was blocked on disks, in the kernel's ticks of 10 ms; always 0 unless the kernel accounts for it. */
  readonly blockedTicks: number;
}

export const NO_FAULTS: ProcessFaults = { minor: 0, major: 0, blockedTicks: 0 };

/** Where {@link statFields} has them. */
const FIELDS = { minflt: 7, majflt: 9, delayacctBlkioTicks: 39 } as const;

/** Undefined when the process is gone. */
export function processFaults(pid: number): ProcessFaults | undefined {
  try {
    const fields = statFields(pid);
    return {
      minor: Number(fields[FIELDS.minflt]),
      major: Number(fields[FIELDS.majflt]),
      blockedTicks: Number(fields[FIELDS.delayacctBlkioTicks]),
    };
  } catch {
    return undefined;
  }
}

/** Bytes that a process made the kernel read from disks: by its faults, with their read-ahead. What the server prefetches is not in it. */
export function diskBytesOf(pid: number): number {
  try {
    return Number(/^read_bytes: (\d+)/m.exec(readFileSync(`/proc/${pid}/io`, "utf8"))?.[1] ?? 0);
  } catch {
    return 0;
  }
}

let accounted: boolean | undefined;

/** Whether the kernel measures how long tasks are blocked on disks: sysctl kernel.task_delayacct, or `delayacct` when it boots. */
export function blockingIsAccounted(): boolean {
  if (accounted === undefined) {
    try {
      accounted = readFileSync("/proc/sys/kernel/task_delayacct", "utf8").trim() === "1";
    } catch {
      accounted = false;
    }
  }
  return accounted;
}
