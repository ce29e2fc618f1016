/** What was installed, built and configured on this machine. */
import { join, relative, sep } from "node:path";
import { formatBytes, GIB, MIB, TIB } from "../base/units.js";
import type { Check, Machine } from "./doctor-machine.js";
import { hiddenBelow, type Interpreter } from "./interpreters.js";
import { mountOf } from "./mounts.js";
import { givesBackFreeMemory, restingSeconds } from "./reclaim.js";

const HELPERS = ["keeper", "husk", "extractor", "shim.so"] as const;

/** Whether the native helpers are built. */
export async function checkNative(machine: Machine, dir: string): Promise<Check> {
  const missing: string[] = [];
  for (const helper of HELPERS) if (!(await machine.isExecutable(join(dir, helper)))) missing.push(helper);
  if (missing.length === 0) return { name: "native", ok: true, required: true, says: "The native helpers are built." };
  const absent: string[] = [];
  for (const tool of ["gcc", "make"]) if ((await machine.run(tool, ["--version"])).missing) absent.push(tool);
  const tools =
    absent.length === 0 ? "" : `, and ${absent.join(" and ")} to build them ${absent.length === 1 ? "is" : "are"} missing too`;
  return {
    name: "native",
    ok: false,
    required: true,
    says: `Native helpers are missing in ${dir}: ${missing.join(", ")}${tools}.`,
    fix: absent.length === 0 ? "npm run build" : "apt-get install gcc make libc6-dev, then npm run build.",
  };
}

/** The runtimes that functions may name, and what each is: what the PATH has may be a script that starts something else. */
export function checkInterpreters(interpreters: readonly Interpreter[]): Check {
  const base = { name: "interpreters", required: true };
  const found: string[] = [];
  const hidden: string[] = [];
  for (const { id, version, path } of interpreters) {
    const dir = hiddenBelow(path);
    if (dir === undefined) found.push(`${id} (${version} at ${path})`);
    else hidden.push(`${id} (${version} at ${path}) is not used: functions have a ${dir} of their own.`);
  }
  if (found.length > 0) return { ...base, ok: true, says: [`Functions can use ${found.join(", ")}.`, ...hidden].join(" ") };
  if (hidden.length > 0)
    return {
      ...base,
      ok: false,
      says: hidden.join(" "),
      fix: "Install an interpreter elsewhere, below /usr/local or /opt for example.",
    };
  return { ...base, ok: false, says: "Neither node nor python3 is on the PATH.", fix: "apt-get install nodejs python3" };
}

/** Page spaces are sparse: mappings lie at their offsets, and tails for growth behind them (limit of ext4: 16 TiB). */
const SPARSE_BYTES = 8 * TIB;

/** Whether images can be kept in the data directory, and run from there. */
export async function checkDataDir(machine: Machine, dataDir: string): Promise<Check> {
  const base = { name: "data", required: true };
  const dir = await machine.nearestDirectory(dataDir);
  const [below = ""] = relative(dir, dataDir).split(sep);
  if (below !== "" && (await machine.exists(join(dir, below)))) {
    return {
      ...base,
      ok: false,
      stopsBoots: true,
      says: `The data directory ${dataDir} cannot be made: ${join(dir, below)} is a file.`,
      fix: "Choose another directory with --data.",
    };
  }
  const mount = mountOf(dir, (await machine.read("/proc/self/mounts")) ?? "");
  if (mount?.options.includes("noexec") === true) {
    return {
      ...base,
      ok: false,
      says: `The data directory ${dataDir} is on ${mount.point}, which is mounted noexec: the code pages of an image could not be mapped.`,
      fix: `Choose another directory with --data, or: mount -o remount,exec ${mount.point}`,
    };
  }
  const refused = await machine.trySparseFile(dir, SPARSE_BYTES);
  const type = mount?.type ?? "unknown file system";
  if (refused === undefined) {
    return {
      ...base,
      ok: true,
      says: `The data directory ${dataDir} (${type}) takes sparse files of ${formatBytes(SPARSE_BYTES)}, and may hold code.`,
    };
  }
  // Whether it takes them cannot be told now; that there is no room is told by the check of the disk.
  if (refused === "ENOSPC") return { ...base, ok: true, says: `The data directory ${dataDir} (${type}) is full.` };
  const tooSmall = refused === "EFBIG";
  return {
    ...base,
    ok: false,
    stopsBoots: !tooSmall,
    says: tooSmall
      ? `The data directory ${dataDir} is on ${type}, which takes no sparse file of ${formatBytes(SPARSE_BYTES)}.`
      : `No file can be written in ${dir} (for the data directory ${dataDir}): ${refused}.`,
    fix: tooSmall
      ? "Choose a directory on ext4 (with blocks of 4 KiB, which a small one has not by itself: mkfs.ext4 -b 4096) or xfs with --data."
      : "Choose a directory with --data that root may write to.",
  };
}

const DISK_BYTES_MIN = 256 * MIB;
const DISK_BYTES_WANTED = 2 * GIB;

/** Whether there is room for images. */
export async function checkDisk(machine: Machine, dataDir: string): Promise<Check> {
  const free = await machine.freeBytes(await machine.nearestDirectory(dataDir));
  const says = `${formatBytes(free)} are free for code and images.`;
  if (free >= DISK_BYTES_WANTED) return { name: "disk", ok: true, required: false, says };
  // An image is as large as its function's anonymous memory, and two generations exist for a moment.
  return {
    name: "disk",
    ok: false,
    required: free < DISK_BYTES_MIN,
    says: `Only ${says}`,
    fix: `Make room (${formatBytes(DISK_BYTES_WANTED)} are a good start; an image takes as much as its function's memory), or choose another directory with --data.`,
  };
}

const PIDS_WANTED = 4096;
const FILES_WANTED = 4096;
const NAMESPACES_WANTED = 512;

/** Processes, descriptors, namespaces. */
export async function checkLimits(machine: Machine): Promise<Check> {
  const number = async (path: string): Promise<number> => Number((await machine.read(path)) ?? Number.NaN);
  const pids = await number("/proc/sys/kernel/pid_max");
  const [, openFiles] = /^Max open files\s+(\S+)/m.exec((await machine.read("/proc/self/limits")) ?? "") ?? [];
  const files = openFiles === "unlimited" ? Number.POSITIVE_INFINITY : Number(openFiles);
  const low: string[] = [];
  const fixes: string[] = [];
  if (pids < PIDS_WANTED) {
    low.push(`kernel.pid_max is ${pids}`);
    fixes.push("sysctl -w kernel.pid_max=32768");
  }
  if (files < FILES_WANTED) {
    low.push(`this process may open ${files} files`);
    fixes.push("ulimit -n 20000 (systemd: LimitNOFILE=20000)");
  }
  for (const kind of ["user", "pid", "mnt", "ipc", "uts", "net", "cgroup"]) {
    const most = await number(`/proc/sys/user/max_${kind}_namespaces`);
    if (most >= NAMESPACES_WANTED || Number.isNaN(most)) continue;
    low.push(`user.max_${kind}_namespaces is ${most}`);
    fixes.push(`sysctl -w user.max_${kind}_namespaces=10000`);
  }
  if (low.length === 0)
    return { name: "limits", ok: true, required: false, says: `Up to ${pids} processes and ${files} open files.` };
  return {
    name: "limits",
    ok: false,
    required: false,
    says: `Low limits: ${low.join(", ")}. Every instance takes some processes and descriptors, and a namespace of each kind.`,
    fix: fixes.join("; "),
  };
}

/** Whether reserved address space counts as memory. */
export async function checkOvercommit(machine: Machine): Promise<Check> {
  const base = { name: "overcommit", required: false };
  const mode = (await machine.read("/proc/sys/vm/overcommit_memory"))?.trim();
  if (mode !== "2") return { ...base, ok: true, says: "Address space can be reserved without memory behind it." };
  return {
    ...base,
    ok: false,
    says: "The kernel counts reserved address space as used memory (vm.overcommit_memory is 2): few instances will fit.",
    fix: "sysctl -w vm.overcommit_memory=0",
  };
}

/** Whether idle processors could be kept from deep sleep while a request is answered. Nothing is wrong where they cannot. */
export function checkIdleProcessors(machine: Machine): Check {
  const { driver, us, why } = machine.cpuLatency();
  const says =
    us === undefined
      ? `They sleep as deeply as they like, and cannot be kept from it: ${why}.`
      : `They sleep as deeply as they like (driver ${driver}); \`serve --cpu-latency 0\` keeps all of them awake while a request is answered.`;
  return { name: "idle processors", ok: true, required: false, says };
}

/** Whether images stay in the page cache. */
export async function checkPageCache(machine: Machine): Promise<Check> {
  const base = { name: "page cache", required: false };
  const seconds = await restingSeconds(machine);
  if (seconds === undefined) return { ...base, ok: true, says: "Images stay in the page cache until their memory is needed." };
  return {
    ...base,
    ok: false,
    says: `Pages that nobody touched for ${seconds} s are paged out (DAMON), images among them: functions that rest so long start from disk.`,
    fix: "Nothing, where memory is short: starts from disk are prefetched. Else end that scheme (/sys/kernel/mm/damon, or damon_reclaim's parameters), or keep husks parked (`thaw serve --park image=1`).",
  };
}

/** Whether memory that is free costs no more than other memory. */
export async function checkFreeMemory(machine: Machine): Promise<Check> {
  const base = { name: "free memory", required: false };
  if (!(await givesBackFreeMemory(machine))) return { ...base, ok: true, says: "Free memory stays with this machine." };
  return {
    ...base,
    ok: false,
    says: "Free memory is given back to the host (free page reporting): what takes much of it at once, a boot or a freeze, waits until the host has made it anew, and slows all others meanwhile.",
    fix: "Nothing, where the host is short of memory. Else have it start this machine with a balloon that does not report free pages.",
  };
}
