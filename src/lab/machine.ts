/**
 * What the machine and our own processes use at a moment: CPU time, memory, processes, descriptors, mounts, cgroups.
 * Read from /proc; see proc(5) and cgroups(7).
 */
import { readdirSync, readFileSync } from "node:fs";
import { statFields } from "../linux/process-stat.js";

/** Clock ticks a second in /proc (USER_HZ, fixed by the kernel's ABI on x86-64). */
const TICKS_PER_SECOND = 100;

/** Busy CPU time of the whole machine since boot in microseconds: user, nice, system, irq, softirq. Steal is not ours. */
export function machineCpuUs(): number {
  const fields = readFileSync("/proc/stat", "utf8").split("\n")[0]?.trim().split(/\s+/).slice(1).map(Number) ?? [];
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = fields;
  return ((user + nice + system + irq + softirq) * 1e6) / TICKS_PER_SECOND;
}

/**
 * CPU time of this process, its children, and all of theirs that have ended and were waited for, in microseconds: with every
 * sandbox ended, the whole of what its processes took. The kernel's own threads are not in it.
 */
export function familyCpuUs(): number {
  const own = process.cpuUsage();
  const children = childrenOf(readParents());
  const ticks = children.reduce((sum, pid) => sum + unlessGone(() => cpuTicks(pid), 0), 0);
  return own.user + own.system + (ticks * 1e6) / TICKS_PER_SECOND;
}

/** utime, stime, cutime, cstime of proc_pid_stat(5), counted from the field behind the command's name. */
function cpuTicks(pid: number): number {
  const fields = statFields(pid);
  return [11, 12, 13, 14].reduce((sum, index) => sum + Number(fields[index]), 0);
}

/** One row of the soak table. */
export interface Usage {
  /** Processes below this one, itself included. */
  readonly processes: number;
  /** All processes of the machine: also shows those that escaped to another parent. */
  readonly machineProcesses: number;
  /** Resident bytes of this process and the keeper, without sandboxes. */
  readonly serverBytes: number;
  /** The machine's memory that is neither free nor reclaimable. */
  readonly usedBytes: number;
  /** Slab, kernel stacks and page tables. */
  readonly kernelBytes: number;
  /** Open descriptors of this process and its direct children. */
  readonly descriptors: number;
  /** Mounts that this process and its direct children see. */
  readonly mounts: number;
  /** Live and dying memory cgroups, as /proc/cgroups counts them (trap 23 of the design: zombies count). */
  readonly cgroups: number;
}

/** Reads {@link Usage} now. Processes that end while being read count as gone. */
export function readUsage(): Usage {
  const parents = readParents();
  const family = [process.pid, ...childrenOf(parents)];
  const memory = readMeminfo();
  const sum = (read: (pid: number) => number) => family.reduce((total, pid) => total + unlessGone(() => read(pid), 0), 0);
  return {
    processes: [...parents.keys()].filter((pid) => descendsFromUs(pid, parents)).length,
    machineProcesses: parents.size,
    serverBytes: sum(residentBytes),
    usedBytes: memory("MemTotal") - memory("MemAvailable"),
    kernelBytes: memory("Slab") + memory("KernelStack") + memory("PageTables"),
    descriptors: sum((pid) => readdirSync(`/proc/${pid}/fd`).length),
    mounts: sum((pid) => readFileSync(`/proc/${pid}/mountinfo`, "utf8").trimEnd().split("\n").length),
    cgroups: cgroupCount(),
  };
}

function readParents(): Map<number, number> {
  const parents = new Map<number, number>();
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const parent = unlessGone(() => Number(statFields(Number(name))[1]), -1);
    if (parent >= 0) parents.set(Number(name), parent);
  }
  return parents;
}

function childrenOf(parents: ReadonlyMap<number, number>): number[] {
  return [...parents].filter(([, parent]) => parent === process.pid).map(([pid]) => pid);
}

/** Our child whose command has that name; undefined when there is none. */
export function childNamed(name: string): number | undefined {
  return childrenOf(readParents()).find((pid) =>
    unlessGone(() => readFileSync(`/proc/${pid}/comm`, "utf8").trim() === name, false),
  );
}

function descendsFromUs(pid: number, parents: ReadonlyMap<number, number>): boolean {
  for (let at: number | undefined = pid, steps = 0; at !== undefined && steps < 64; at = parents.get(at), steps++) {
    if (at === process.pid) return true;
  }
  return false;
}

function residentBytes(pid: number): number {
  const line = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
  return Number(line?.[1] ?? 0) * 1024;
}

function readMeminfo(): (name: string) => number {
  const text = readFileSync("/proc/meminfo", "utf8");
  return (name) => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(text)?.[1] ?? Number.NaN) * 1024;
}

function cgroupCount(): number {
  const line = readFileSync("/proc/cgroups", "utf8")
    .split("\n")
    .find((each) => each.startsWith("memory\t"));
  const [, hierarchy, count] = line?.split("\t") ?? [];
  if (hierarchy !== undefined && hierarchy !== "0") return Number(count);
  const stat = readFileSync("/sys/fs/cgroup/cgroup.stat", "utf8");
  const value = (name: string) => Number(new RegExp(`^${name} (\\d+)$`, "m").exec(stat)?.[1] ?? 0);
  return value("nr_descendants") + value("nr_dying_descendants");
}

/** A process may end between being listed and being read. */
function unlessGone<T>(read: () => T, gone: T): T {
  try {
    return read();
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === "ENOENT" || code === "ESRCH") return gone;
    throw error;
  }
}
