/**
 * What of files is in the page cache, and how to get it out: native/cache.c and native/blocked.c. A sample taken "from a cold disk" is one
 * whose files had no page in memory when it began, and that is counted before each, not assumed.
 */
import { execFile } from "node:child_process";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { uptime } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { parseReply } from "../engine/native.js";
import type { Cleanup } from "./bounded.js";
import { PACKAGE_ROOT } from "./environment.js";

const EXTRACTOR = join(PACKAGE_ROOT, "native/build/extractor");
const MS_MAX = 60_000;

/** Runs the extractor; throws what it says when it fails. */
async function extractor(...args: readonly string[]): Promise<Readonly<Record<string, unknown>>> {
  const { stdout } = await promisify(execFile)(EXTRACTOR, args, { timeout: MS_MAX, maxBuffer: 8 << 20 }).catch(
    (error: { stdout?: string; message: string }) => {
      if (error.stdout !== undefined && error.stdout !== "") return { stdout: error.stdout };
      throw new Error(`extractor ${args[0]}: ${error.message}`);
    },
  );
  const reply = parseReply(Buffer.from(stdout));
  if (!reply.ok) throw new Error(`extractor ${args[0]}: ${String(reply["why"])}`);
  return reply;
}

/** Pages of 4 KiB of each file that are in the page cache. */
export async function residentPages(files: readonly string[]): Promise<number[]> {
  return files.length === 0 ? [] : ((await extractor("resident", ...files))["pages"] as number[]);
}

/**
 * Flushes the files and drops them from the page cache.
 * @param keptMax pages that may stay all together, where a process that must live maps some
 * @throws when more stay, which is so while a process maps them: what follows would not start from a cold disk
 */
export async function evict(files: readonly string[], keptMax = 0): Promise<void> {
  if (files.length === 0) return;
  const left = (await extractor("evict", ...files))["pages"] as number[];
  if (left.reduce((sum, pages) => sum + pages, 0) <= keptMax) return;
  const kept = files.flatMap((file, index) => ((left[index] ?? 0) > 0 ? [`${left[index]} of ${file}`] : []));
  throw new Error(`not a cold disk: pages stay in the page cache: ${kept.slice(0, 3).join(", ")}`);
}

/** Reads all that the files hold into the page cache. */
export async function fetchAll(files: readonly string[]): Promise<void> {
  if (files.length > 0) await extractor("fetch", ...files);
}

/**
 * One path, below /proc/PID/map_files, for each file that a process maps and whose name begins with one of `prefixes`: opens files, too, that were
 * removed or never had a name, such as those of hibernated memory.
 */
export function mappedFilesOf(pid: number, prefixes: readonly string[]): string[] {
  const found = new Map<string, string>();
  for (const line of readFileSync(`/proc/${pid}/maps`, "utf8").split("\n")) {
    const [, range, file, path = ""] = /^(\S+) \S+ \S+ (\S+ \d+) +(\/.*)$/.exec(line) ?? [];
    if (range === undefined || file === undefined || !prefixes.some((prefix) => path.startsWith(prefix))) continue;
    if (!found.has(file)) found.set(file, `/proc/${pid}/map_files/${range.replace(/(^|-)0+(?=[0-9a-f])/g, "$1")}`);
  }
  return [...found.values()];
}

/** All regular files below a directory, but for those that are being written: they are renamed when they are whole. */
export async function filesBelow(dir: string): Promise<string[]> {
  const entries = await readdir(dir, { withFileTypes: true, recursive: true });
  return entries
    .filter((entry) => entry.isFile() && !entry.name.startsWith(".tmp-"))
    .map((entry) => join(entry.parentPath, entry.name));
}

/** Bytes a second that the device gives when one file is read in order, without and with the page cache. */
export interface Bandwidth {
  readonly directBytesPerSecond: number;
  readonly bufferedBytesPerSecond: number;
}

/** Reads `file`, which nobody may have mapped, twice from the device. */
export async function readBandwidth(file: string): Promise<Bandwidth> {
  const { bytes, directNs, bufferedNs } = await extractor("bandwidth", file);
  const perSecond = (ns: unknown) => (Number(bytes) * 1e9) / Number(ns);
  return { directBytesPerSecond: perSecond(directNs), bufferedBytesPerSecond: perSecond(bufferedNs) };
}

/**
 * Microseconds that all threads of a process waited for block devices so far. Needs {@link countDelays} before it was made. NaN when the kernel lost
 * count: a thread that is woken between announcing that it waits and waiting is charged the time since the machine started, once for each time.
 */
export async function blockedUs(pid: number): Promise<number> {
  const us = Number((await extractor("blocked", String(pid)))["ns"]) / 1000;
  return us < uptime() * 0.5e6 ? us : Number.NaN;
}

const DELAYS = "/proc/sys/kernel/task_delayacct";

/** Switches the kernel's delay accounting on, for the whole machine, until the run ends. */
export function countDelays(cleanup: Pick<Cleanup, "add">): void {
  const before = readFileSync(DELAYS, "utf8");
  if (before.trim() === "1") return;
  writeFileSync(DELAYS, "1");
  cleanup.add("switching delay accounting off", () => writeFileSync(DELAYS, before));
}

/** `read_ahead_kb` of the device that holds a path; NaN where it cannot be told. */
export function readAheadKb(path: string): number {
  const { dev } = statSync(path);
  // makedev(3): major and minor of glibc's dev_t.
  const [major, minor] = [(dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xfff00)];
  try {
    return Number(readFileSync(`/sys/dev/block/${major}:${minor}/bdi/read_ahead_kb`, "utf8"));
  } catch {
    return readAheadOfParent(major, minor);
  }
}

/** A partition has no queue of its own. */
function readAheadOfParent(major: number, minor: number): number {
  for (const path of ["queue/read_ahead_kb", "../queue/read_ahead_kb"]) {
    try {
      return Number(readFileSync(`/sys/dev/block/${major}:${minor}/${path}`, "utf8"));
    } catch {}
  }
  return Number.NaN;
}
