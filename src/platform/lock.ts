/**
 * One server for each data directory. `thaw.lock` names its owner by process id, start time and boot, so that neither a
 * reused process id nor a reboot is taken for a living owner.
 *
 * The file appears with its content in one step (link(2) of a finished file). Taking over from a dead owner has one winner: the
 * takeover itself is a link named after the dead owner, and whoever holds it looks again before it replaces the lock.
 */
import { linkSync, readFileSync, renameSync, rmSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ThawError } from "../base/errors.js";
import { temporaryPath } from "../base/fsync.js";
import { processStart } from "../linux/process-stat.js";

/** A held lock. */
export interface DataLock {
  /** Idempotent. */
  release(): void;
}

/** Within this process several platforms may run (tests, the lab); the file names only the process. */
const heldHere = new Set<string>();

/** Takes the lock of `dataDir`. INVALID_ARGUMENT, naming the owner, when somebody else holds it. */
export function lockDataDir(dataDir: string): DataLock {
  const path = join(dataDir, "thaw.lock");
  if (heldHere.has(path)) throw inUse(dataDir, process.pid);
  const mine = identity(process.pid) ?? `${process.pid} unknown unknown`;
  const temporary = temporaryPath(path);
  try {
    writeFileSync(temporary, mine, { flag: "wx", mode: 0o600 });
    if (!tryLink(temporary, path)) takeOver(dataDir, path, temporary);
  } finally {
    rmSync(temporary, { force: true });
  }
  heldHere.add(path);
  let held = true;
  return {
    release() {
      if (!held) return;
      held = false;
      heldHere.delete(path);
      if (readText(path) === mine) unlinkSync(path);
    },
  };
}

function takeOver(dataDir: string, path: string, temporary: string): void {
  const owner = readText(path);
  const pid = Number.parseInt(owner ?? "", 10);
  if (owner === undefined || isAlive(owner)) throw inUse(dataDir, pid);
  const claim = `${path}.after-${owner.replaceAll(/[^0-9a-zA-Z-]/g, "_")}`;
  // A claim whose maker died in these few lines is as stale as the lock itself.
  const claimant = readText(claim);
  if (claimant !== undefined && !isAlive(claimant)) rmSync(claim, { force: true });
  if (!tryLink(temporary, claim)) throw inUse(dataDir, Number.parseInt(readText(claim) ?? "", 10));
  try {
    if (readText(path) !== owner) throw inUse(dataDir, Number.parseInt(readText(path) ?? "", 10));
    renameSync(temporary, path);
  } finally {
    rmSync(claim, { force: true });
  }
}

function tryLink(from: string, to: string): boolean {
  try {
    linkSync(from, to);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

/** Undefined when it cannot be read. */
function readText(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

function isAlive(owner: string): boolean {
  return identity(Number.parseInt(owner, 10)) === owner;
}

/** `pid starttime boot`. */
function identity(pid: number): string | undefined {
  if (!Number.isInteger(pid)) return undefined;
  if (process.platform !== "linux") return isRunning(pid) ? `${pid} - -` : undefined;
  // A zombie has none, and holds nothing any more.
  const start = processStart(pid);
  const boot = readText("/proc/sys/kernel/random/boot_id")?.trim();
  return start === undefined || boot === undefined ? undefined : `${pid} ${start} ${boot}`;
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

function inUse(dataDir: string, pid: number): ThawError {
  return new ThawError("INVALID_ARGUMENT", {
    what: `The data directory ${dataDir} cannot be used`,
    why: Number.isInteger(pid) ? `a server with process id ${pid} is using it` : "another server is using it",
    fix: "Stop that server, or give this one another directory with --data",
  });
}
