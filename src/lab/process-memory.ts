/** What one instance costs the machine: its own pages, its share of others, and what the kernel keeps for it. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { PAGE_BYTES } from "../base/units.js";
import type { Instance } from "../engine/types.js";
import { statFields } from "../linux/process-stat.js";

/** The instance's main process on the host. */
export function hostPid(instance: Instance): number {
  const { hostPid: pid } = instance as Instance & { readonly hostPid?: number };
  if (pid === undefined) throw new Error("this engine does not say which process an instance is");
  return pid;
}

/** Faults of a process so far, of all its threads, that waited for a disk (proc_pid_stat(5)). */
export function majorFaults(pid: number): number {
  return Number(statFields(pid)[9]);
}

/** Bytes. */
export interface ProcessMemory {
  /** Private pages, and of shared ones the part that falls to this process. */
  readonly pss: number;
  readonly privateBytes: number;
  readonly pageTables: number;
}

/** Read from smaps_rollup and status; throws when the process is gone. */
export function processMemory(pid: number): ProcessMemory {
  const rollup = fieldsOf(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"));
  const status = fieldsOf(readFileSync(`/proc/${pid}/status`, "utf8"));
  return {
    pss: rollup("Pss"),
    privateBytes: rollup("Private_Clean") + rollup("Private_Dirty"),
    pageTables: status("VmPTE"),
  };
}

/** What its memory cgroup is charged, bytes: everything, the kernel's part, and the page cache of files on disk that it touched first: what lies in a tmpfs is its memory. */
export interface CgroupMemory {
  readonly total: number;
  readonly kernel: number;
  readonly cache: number;
}

/** Of the memory group that a process is in, of either version. */
export function cgroupMemory(pid: number): CgroupMemory {
  const lines = readFileSync(`/proc/${pid}/cgroup`, "utf8").split("\n");
  const v1 = lines.map((line) => /^\d+:memory:(.*)$/.exec(line)?.[1]).find((path) => path !== undefined);
  if (v1 !== undefined) {
    const dir = join("/sys/fs/cgroup/memory", v1);
    const stat = fieldsOf(readFileSync(join(dir, "memory.stat"), "utf8"));
    return {
      total: number(dir, "memory.usage_in_bytes"),
      kernel: number(dir, "memory.kmem.usage_in_bytes"),
      cache: stat("cache") - stat("shmem"),
    };
  }
  const dir = join("/sys/fs/cgroup", lines[0]?.replace(/^0::/, "") ?? "");
  const stat = fieldsOf(readFileSync(join(dir, "memory.stat"), "utf8"));
  return { total: number(dir, "memory.current"), kernel: stat("kernel"), cache: stat("file") - stat("shmem") };
}

function number(dir: string, name: string): number {
  return Number(readFileSync(join(dir, name), "utf8"));
}

/** `Name:   12 kB` as bytes, `name 12` as it is; 0 for what is not there, such as page tables of a kernel without them. */
function fieldsOf(text: string): (name: string) => number {
  return (name) => {
    const line = new RegExp(`^${name}:?\\s+(\\d+)( kB)?$`, "m").exec(text);
    return Number(line?.[1] ?? 0) * (line?.[2] === undefined ? 1 : 1024);
  };
}

/**
 * Bytes that could be given to a new program without swapping, as the kernel estimates it (MemAvailable), and those that its processors
 * keep in free lists of their own, which that estimate leaves out: since Linux 6.7 hundreds of megabytes lie there for a while after much was freed.
 */
export function availableBytes(): number {
  const onProcessors = [...readFileSync("/proc/zoneinfo", "utf8").matchAll(/^ +count: +(\d+)$/gm)];
  return onProcessors.reduce(
    (sum, [, pages]) => sum + Number(pages) * PAGE_BYTES,
    fieldsOf(readFileSync("/proc/meminfo", "utf8"))("MemAvailable"),
  );
}
