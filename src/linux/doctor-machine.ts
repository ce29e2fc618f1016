/**
 * What the doctor may look at and try. Every look at the machine goes through {@link Machine}, so that a test can
 * present a machine that is not this one.
 */
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { constants } from "node:fs";
import { access, mkdir, open, readdir, readFile, rm, rmdir, stat, statfs } from "node:fs/promises";
import { dirname, join } from "node:path";
import { CpuLatency, type CpuLatencyInfo } from "./cpu-latency.js";
import { findInterpreters, type Interpreter } from "./interpreters.js";

/** One question and its answer. */
export interface Check {
  /** Short and stable: `kernel`, `cgroups`, … */
  readonly name: string;
  readonly ok: boolean;
  /** Whether `ok: false` keeps functions from running or being frozen; otherwise it is advice. */
  readonly required: boolean;
  /** Whether, when not ok, it also keeps functions from running by boot; absent: the check's name tells. */
  readonly stopsBoots?: boolean;
  /** What was found, one sentence. */
  readonly says: string;
  /** What to do about it; present when not ok. */
  readonly fix?: string;
}

/** How a command ended. `missing`: there is no such command. */
export interface CommandResult {
  readonly ok: boolean;
  readonly missing: boolean;
  /** stdout, or stderr when the command failed; trimmed. */
  readonly output: string;
}

/** Looks at and tries things. What is tried leaves nothing behind; `try…` resolves to why it failed, or undefined. */
export interface Machine {
  readonly platform: string;
  readonly arch: string;
  /** Content of a small text file, or undefined when it cannot be read. */
  read(path: string): Promise<string | undefined>;
  isExecutable(path: string): Promise<boolean>;
  exists(path: string): Promise<boolean>;
  /** Nearest directory at or above `path` that exists. */
  nearestDirectory(path: string): Promise<string>;
  run(command: string, args: readonly string[]): Promise<CommandResult>;
  tryDirectory(parent: string, then?: (path: string) => Promise<void>): Promise<string | undefined>;
  trySparseFile(dir: string, bytes: number): Promise<string | undefined>;
  tryMapFiles(): Promise<string | undefined>;
  freeBytes(dir: string): Promise<number>;
  /** What {@link CpuLatency} can ask for. */
  cpuLatency(): CpuLatencyInfo;
  /** What functions could run on. Asking each takes 50 ms of a processor, and where version managers put scripts before them, five times as much. */
  interpreters(): Promise<readonly Interpreter[]>;
}

const COMMAND_MS_MAX = 5000;

function reason(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return code ?? message;
}

async function attempt(action: () => Promise<void>): Promise<string | undefined> {
  try {
    await action();
    return undefined;
  } catch (error) {
    return reason(error);
  }
}

function run(command: string, args: readonly string[]): Promise<CommandResult> {
  return new Promise((resolve) => {
    execFile(command, [...args], { timeout: COMMAND_MS_MAX, killSignal: "SIGKILL" }, (error, stdout, stderr) => {
      if (error === null) return resolve({ ok: true, missing: false, output: stdout.trim() });
      const missing = (error as NodeJS.ErrnoException).code === "ENOENT";
      const words = error.killed === true ? `no answer within ${COMMAND_MS_MAX / 1000} s` : stderr.trim() || error.message;
      resolve({ ok: false, missing, output: words });
    });
  });
}

/** Writes one page at the far end of a sparse file, and reads it again: the file system must store what lies there. */
async function trySparseFile(dir: string, bytes: number): Promise<void> {
  const path = join(dir, `.tmp-doctor-${randomBytes(6).toString("hex")}`);
  const file = await open(path, "wx+", 0o600);
  try {
    await rm(path);
    const page = randomBytes(4096);
    await file.write(page, 0, page.length, bytes - page.length);
    const read = Buffer.alloc(page.length);
    await file.read(read, 0, read.length, bytes - page.length);
    if (!read.equals(page)) throw new Error("what was written there could not be read again");
  } finally {
    await file.close();
  }
}

/** Opens a mapped file of this process as the engine opens those of a function: through its mapping, not its path. */
async function tryMapFiles(): Promise<void> {
  const dir = "/proc/self/map_files";
  const names = await readdir(dir);
  const file = await open(join(dir, names[0] ?? "none"), "r");
  await file.close();
}

async function tryDirectory(parent: string, then?: (path: string) => Promise<void>): Promise<void> {
  const path = join(parent, `thaw-doctor-${randomBytes(6).toString("hex")}`);
  await mkdir(path);
  try {
    await then?.(path);
  } finally {
    await rmdir(path);
  }
}

async function nearestDirectory(path: string): Promise<string> {
  for (let dir = path; ; dir = dirname(dir)) {
    try {
      if ((await stat(dir)).isDirectory()) return dir;
    } catch {
      // Not made yet, or not ours to see: what counts is the file system it will be made on.
    }
    if (dir === dirname(dir)) return dir;
  }
}

async function canAccess(path: string, mode: number): Promise<boolean> {
  return (await attempt(() => access(path, mode))) === undefined;
}

/** The machine this process runs on. */
export function thisMachine(): Machine {
  return {
    platform: process.platform,
    arch: process.arch,
    read: (path) => readFile(path, "utf8").catch(() => undefined),
    isExecutable: (path) => canAccess(path, constants.X_OK),
    exists: (path) => canAccess(path, constants.F_OK),
    nearestDirectory,
    run,
    tryDirectory: (parent, then) => attempt(() => tryDirectory(parent, then)),
    trySparseFile: (dir, bytes) => attempt(() => trySparseFile(dir, bytes)),
    tryMapFiles: () => attempt(tryMapFiles),
    cpuLatency() {
      const latency = new CpuLatency(0);
      latency.close();
      return latency.info;
    },
    freeBytes: async (dir) => {
      const facts = await statfs(dir);
      return facts.bavail * facts.bsize;
    },
    interpreters: () => findInterpreters(),
  };
}
