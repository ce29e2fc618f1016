/**
 * Control groups: which layout the machine has, the directories under which the keeper makes one for each sandbox,
 * the writes that set a limit, and the sweep of what a killed server left.
 *
 * v1 (and hybrid: v1 controllers beside an empty cgroup2) has one tree for each controller; v2 has one tree. Ours is
 * `<mount>/thaw/<pid>-<start time of that process>/h<N>`: the name says whose it is, so a later server knows what it may remove.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { errorText, ThawError } from "../base/errors.js";
import { processStart } from "./process-stat.js";

/** The controllers that limit a sandbox. */
export const CONTROLLERS = ["memory", "cpu", "pids"] as const;
export type Controller = (typeof CONTROLLERS)[number];

/** What {@link probeCgroups} found. `mounts`: for v1 one entry for each controller, for v2 only `unified`. */
export interface CgroupLayout {
  readonly version: "v1" | "v2";
  readonly mounts: Readonly<Record<string, string>>;
  /** Whether the kernel counts swap, and so can limit it: with memory (v1) or apart (v2, where {@link makeParents} finds out). */
  readonly swapLimit: boolean;
}

/** Where the keeper makes a server's cgroups: name of the controller to directory. */
export interface CgroupParents {
  readonly layout: CgroupLayout;
  readonly dirs: Readonly<Record<string, string>>;
}

/** What one function may take. */
export interface Limits {
  readonly memoryMb: number;
  /** Processors: 0.5 is half of one. */
  readonly cpus: number;
  /** Processes and threads of the function; the sandbox's init is not counted. */
  readonly pids: number;
}

/** One write into a cgroup, in order. */
export interface LimitWrite {
  readonly controller: string;
  readonly file: string;
  readonly value: string;
}

const OURS = "thaw";
const CPU_PERIOD_US = 100_000;
/** The kernel refuses less. */
const CPU_QUOTA_US_MIN = 1_000;
const SWEEP_TRIES = 100;
const SWEEP_PAUSE_MS = 20;

/** Reads the mounts. SANDBOX_FAILED when memory, cpu and pids cannot all be limited in one way. */
export function probeCgroups(
  mountinfo = readFileSync("/proc/self/mountinfo", "utf8"),
  exists: (path: string) => boolean = existsSync,
): CgroupLayout {
  const v1: Record<string, string> = {};
  let unified: string | undefined;
  for (const line of mountinfo.split("\n")) {
    const match = /^\d+ \d+ \S+ \S+ (\S+) .* - (cgroup2?) \S+ (\S+)$/.exec(line);
    if (match === null) continue;
    const [, escaped = "", type, options = ""] = match;
    const path = escaped.replaceAll(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
    if (type === "cgroup2") unified ??= path;
    else for (const option of options.split(",")) if (isController(option)) v1[option] ??= path;
  }
  if (CONTROLLERS.every((name) => v1[name] !== undefined)) {
    return { version: "v1", mounts: v1, swapLimit: exists(join(v1["memory"] ?? "", "memory.memsw.limit_in_bytes")) };
  }
  const offered = unified === undefined ? [] : readWords(join(unified, "cgroup.controllers"));
  const missing = CONTROLLERS.filter((name) => !offered.includes(name));
  if (unified === undefined || missing.length > 0) {
    throw new ThawError("SANDBOX_FAILED", {
      what: "Functions cannot be limited on this machine",
      why: `no cgroup hierarchy offers ${(unified === undefined ? CONTROLLERS : missing).join(", ")} (v1 has ${Object.keys(v1).join(", ") || "none"}, v2 has ${offered.join(", ") || "none"})`,
      fix: "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), or mount the v1 controllers memory, cpu and pids",
    });
  }
  return { version: "v2", mounts: { unified }, swapLimit: true };
}

function isController(name: string): name is Controller {
  return (CONTROLLERS as readonly string[]).includes(name);
}

function readWords(path: string): string[] {
  try {
    return readFileSync(path, "utf8").trim().split(/\s+/);
  } catch {
    return [];
  }
}

/** Makes this server's parent directories, and lends them their controllers where the layout is v2. `label` tells several of one process apart. */
export function makeParents(layout: CgroupLayout, label = ""): CgroupParents {
  const owner = `${process.pid}-${processStart(process.pid) ?? "0"}${label === "" ? "" : `-${label}`}`;
  const dirs: Record<string, string> = {};
  try {
    for (const [name, mount] of Object.entries(layout.mounts)) {
      const dir = join(mount, OURS, owner);
      mkdirSync(dir, { recursive: true });
      dirs[name] = dir;
      if (layout.version === "v2") {
        for (const path of [mount, join(mount, OURS), dir])
          writeFileSync(join(path, "cgroup.subtree_control"), CONTROLLERS.map((controller) => `+${controller}`).join(" "));
      }
    }
  } catch (error) {
    for (const dir of Object.values(dirs)) for (const empty of [dir, dirname(dir)]) removeIfEmpty(empty);
    if ((error as NodeJS.ErrnoException).code === "EBUSY") throw crowded(layout.mounts["unified"] ?? "", error);
    throw new ThawError("SANDBOX_FAILED", {
      what: "The cgroups for functions cannot be made",
      why: errorText(error),
      fix: "run the server as root, outside a container that mounts /sys/fs/cgroup read-only",
      cause: error,
    });
  }
  if (layout.version === "v1") return { layout, dirs };
  // The root of the hierarchy has no such file on any kernel, the directories below it where swap is counted.
  return { layout: { ...layout, swapLimit: existsSync(join(dirs["unified"] ?? "", "memory.swap.max")) }, dirs };
}

/** Version 2 lends controllers only from the root of the hierarchy, or from a cgroup in which no process lives ("no internal processes"). */
function crowded(mount: string, cause: unknown): ThawError {
  return new ThawError("SANDBOX_FAILED", {
    what: "The cgroups for functions cannot be made",
    why: `processes live in ${mount} itself, which is a container's cgroup and not the root: from there the kernel lends no controllers`,
    fix: emptyMount(mount),
    cause,
  });
}

/** What makes room in the cgroup of a container that has one of its own. */
export function emptyMount(mount: string): string {
  return `give this container the host's cgroups (docker: --privileged --cgroupns=host), or move its processes down first: mkdir ${mount}/init && for p in $(cat ${mount}/cgroup.procs); do echo $p > ${mount}/init/cgroup.procs; done`;
}

/** Removes the parents once the keeper ended; it removed what was below. Idempotent. */
export async function removeParents(parents: CgroupParents): Promise<void> {
  for (const dir of Object.values(parents.dirs)) {
    await removeTree(dir);
    removeIfEmpty(dirname(dir));
  }
}

function removeIfEmpty(dir: string): void {
  try {
    rmdirSync(dir);
  } catch {
    // Another server's, or gone.
  }
}

/** Removes the cgroups of servers that are gone, and kills what may still live in them. Returns how many parents were removed. */
export async function sweepCgroups(layout: CgroupLayout): Promise<number> {
  let removed = 0;
  for (const mount of Object.values(layout.mounts)) {
    for (const name of subdirectories(join(mount, OURS))) {
      const [, pid, start] = /^(\d+)-(\d+)/.exec(name) ?? [];
      if (pid === undefined || processStart(Number(pid)) === start) continue;
      await removeTree(join(mount, OURS, name));
      removed++;
    }
    removeIfEmpty(join(mount, OURS));
  }
  return removed;
}

function subdirectories(dir: string): string[] {
  try {
    return readdirSync(dir, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name);
  } catch {
    return [];
  }
}

/** Busy for a moment after its last process was killed, hence the tries. */
async function removeTree(dir: string): Promise<void> {
  for (const name of subdirectories(dir)) await removeTree(join(dir, name));
  for (let attempt = 0; attempt < SWEEP_TRIES && existsSync(dir); attempt++) {
    try {
      rmdirSync(dir);
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EBUSY") return;
      killAll(dir);
      await sleep(SWEEP_PAUSE_MS);
    }
  }
}

function killAll(dir: string): void {
  for (const word of readWords(join(dir, "cgroup.procs"))) {
    const pid = Number(word);
    if (!Number.isInteger(pid) || pid <= 1) continue;
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // Ended by itself.
    }
  }
}

/** The writes that set limits on a cgroup in whatever state its last user left it. */
export function limitWrites(layout: CgroupLayout, limits: Limits): LimitWrite[] {
  const bytes = String(Math.ceil(limits.memoryMb) * 1024 * 1024);
  const quota = String(Math.max(CPU_QUOTA_US_MIN, Math.round(limits.cpus * CPU_PERIOD_US)));
  const pids = String(limits.pids + 1);
  if (layout.version === "v2") {
    return [
      ...(layout.swapLimit ? [{ controller: "unified", file: "memory.swap.max", value: "0" }] : []),
      { controller: "unified", file: "memory.max", value: bytes },
      { controller: "unified", file: "cpu.max", value: `${quota} ${CPU_PERIOD_US}` },
      { controller: "unified", file: "pids.max", value: pids },
    ];
  }
  // memory may never be above memory + swap: the sum is freed, then both are set.
  const swap = (value: string): LimitWrite[] =>
    layout.swapLimit ? [{ controller: "memory", file: "memory.memsw.limit_in_bytes", value }] : [];
  return [
    ...swap("-1"),
    { controller: "memory", file: "memory.limit_in_bytes", value: bytes },
    ...swap(bytes),
    { controller: "cpu", file: "cpu.cfs_quota_us", value: quota },
    { controller: "pids", file: "pids.max", value: pids },
  ];
}
