/**
 * Where the numbers were taken. A number without its machine means little, so every result line carries these facts.
 */
import { execFileSync } from "node:child_process";
import { readFileSync, statfsSync } from "node:fs";
import { cpus, loadavg, release, tmpdir, totalmem, version } from "node:os";
import { fileURLToPath } from "node:url";
import { thisMachine } from "../linux/doctor-machine.js";
import { givesBackFreeMemory, restingSeconds } from "../linux/reclaim.js";

/** The root of the package: the directory that holds package.json, from `src/lab` and `dist/lab` alike. */
export const PACKAGE_ROOT = fileURLToPath(new URL("../..", import.meta.url));

/** Facts that stand in every line of `--json`. */
export interface Environment {
  readonly time: string;
  readonly kernel: string;
  readonly cpu: string;
  readonly cores: number;
  readonly memoryMb: number;
  readonly node: string;
  readonly python: string;
  /** Commit of the checkout, `+changes` behind it when files differ; `unknown` outside a checkout. */
  readonly commit: string;
  /** File system that holds the images. */
  readonly dataFilesystem: string;
  /** `v1`, `v2` or `none`: where cgroup limits are set. */
  readonly cgroups: string;
  /** One-minute load average before the run: what else the machine was doing. */
  readonly loadBefore: number;
  /** How the page cache was kept; sections that do otherwise say so. */
  readonly pageCache: string;
  /** Seconds after which pages that rest are paged out (DAMON), or null: what is measured after a longer pause comes from disk. */
  readonly pagedOutAfterS: number | null;
  /** Whether free memory goes back to a host (free page reporting): what takes much of it at once is slower then, and slows what runs beside it. */
  readonly freeMemoryGivenBack: boolean;
}

/**
 * Where what is measured is kept: the directory for temporary files or, where that is in memory (as Debian 13 has it), the one for those that
 * outlive a boot: from memory nothing can be dropped, and nothing in it comes from a disk. Who sets TMPDIR is heeded.
 */
export function scratchDir(): string {
  const chosen = process.env["TMPDIR"] !== undefined;
  return !chosen && filesystemName(tmpdir()) === "tmpfs" ? "/var/tmp" : tmpdir();
}

/** Gathers the facts; `dataDir` is where images will be written. */
export async function readEnvironment(dataDir: string): Promise<Environment> {
  const machine = thisMachine();
  return {
    time: new Date().toISOString(),
    kernel: `${release()} ${version()}`,
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    cores: cpus().length,
    memoryMb: Math.round(totalmem() / 2 ** 20),
    node: process.version,
    python: firstLine("python3", ["--version"]).replace("Python ", "") || "unknown",
    commit: readCommit(),
    dataFilesystem: filesystemName(dataDir),
    cgroups: cgroupLayout(),
    loadBefore: loadavg()[0] ?? Number.NaN,
    pageCache: "warm: files were read by earlier runs, and one round before the first that counts",
    pagedOutAfterS: (await restingSeconds(machine)) ?? null,
    freeMemoryGivenBack: await givesBackFreeMemory(machine),
  };
}

/** The facts in two lines, for people. */
export function describeEnvironment(facts: Environment): string {
  const rest = facts.pagedOutAfterS === null ? "" : `, but what rests for ${facts.pagedOutAfterS} s is paged out (DAMON)`;
  const free = facts.freeMemoryGivenBack ? "; free memory goes back to the host" : "";
  return [
    `${facts.cpu}, ${facts.cores} cores, ${facts.memoryMb} MiB; Linux ${facts.kernel}`,
    `Node ${facts.node}, Python ${facts.python}, commit ${facts.commit}; images on ${facts.dataFilesystem}, cgroups ${facts.cgroups}, load ${facts.loadBefore.toFixed(2)}; page cache warm${rest}${free}`,
  ].join("\n");
}

function readCommit(): string {
  const commit = firstLine("git", ["-C", PACKAGE_ROOT, "rev-parse", "--short=12", "HEAD"]);
  if (!/^[0-9a-f]{7,}$/.test(commit)) return "unknown";
  return firstLine("git", ["-C", PACKAGE_ROOT, "status", "--porcelain"]) === "" ? commit : `${commit}+changes`;
}

/** Empty when the program is missing or fails: both mean "not known" here. */
function firstLine(program: string, args: readonly string[]): string {
  try {
    const text = execFileSync(program, args, { timeout: 5_000, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    return text.split("\n")[0]?.trim() ?? "";
  } catch {
    return "";
  }
}

/** From statfs(2) and linux/magic.h. */
const FILESYSTEMS: Readonly<Record<number, string>> = {
  0xef53: "ext4",
  0x58465342: "xfs",
  0x9123683e: "btrfs",
  0x01021994: "tmpfs",
  0x794c7630: "overlayfs",
};

function filesystemName(dir: string): string {
  const { type } = statfsSync(dir);
  return FILESYSTEMS[type] ?? `file system 0x${type.toString(16)}`;
}

function cgroupLayout(): string {
  const lines = readFileSync("/proc/cgroups", "utf8").split("\n");
  const memory = lines.find((line) => line.startsWith("memory\t"))?.split("\t");
  if (memory === undefined) return "v2";
  // The hierarchy is 0 when the controller belongs to cgroup v2 (cgroups(7)).
  return memory[1] === "0" ? "v2" : "v1";
}
