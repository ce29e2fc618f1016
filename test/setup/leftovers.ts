/**
 * Nothing outlives the suite. The set-up notes the machine's processes, mounts and cgroups; the teardown looks
 * again and fails the run, naming everything of ours that is new.
 *
 * "Ours" must hold for processes that were re-parented, that replaced their environment, and on a machine where
 * somebody else runs a server too. A process is ours when it, or one of its living ancestors, carries this run's mark
 * in its environment; or when it executes one of our programs and no ancestor but PID 1 lived before the suite
 * (an orphan: the ancestor that would tell whose it is has gone). A mount is ours when its path says thaw; a cgroup too, unless
 * it names a living server that is not ours.
 */
import { randomUUID } from "node:crypto";
import { existsSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { statFields } from "../../src/linux/process-stat.js";

/** Environment variable that marks this run's processes; workers, and what they start, inherit it. */
export const RUN_MARK = "THAW_TEST_RUN";

const ROOT = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const SETTLE_MS = 30_000;

export interface ProcessFacts {
  readonly pid: number;
  readonly parent: number;
  /** Clock ticks after boot: together with the pid it names a process for good. */
  readonly started: string;
  readonly exe: string;
  readonly command: string;
  readonly environment: string;
}

export interface MachineFacts {
  readonly processes: ReadonlyMap<number, ProcessFacts>;
  readonly mounts: ReadonlySet<string>;
  readonly cgroups: ReadonlySet<string>;
}

/** Reads one process; undefined when it has gone, is a zombie (its parent's affair) or a kernel thread. */
function readProcess(pid: number): ProcessFacts | undefined {
  try {
    const fields = statFields(pid);
    const command = readFileSync(`/proc/${pid}/cmdline`, "latin1").replaceAll("\0", " ").trim();
    if (fields[0] === "Z" || fields[0] === "X") return undefined;
    return {
      pid,
      parent: Number(fields[1]),
      started: fields[19] ?? "",
      exe: readlinkSync(`/proc/${pid}/exe`),
      command,
      environment: readFileSync(`/proc/${pid}/environ`, "latin1"),
    };
  } catch {
    return undefined;
  }
}

function cgroupsBelow(dir: string, found: Set<string>): void {
  let entries: { name: string; isDirectory(): boolean }[];
  try {
    entries = readdirSync(dir, { withFileTypes: true });
  } catch {
    return;
  }
  for (const entry of entries) {
    if (!entry.isDirectory()) continue;
    const path = join(dir, entry.name);
    if (path.includes("thaw")) found.add(path);
    cgroupsBelow(path, found);
  }
}

/** What the machine holds now. */
export function readMachine(): MachineFacts {
  const processes = new Map<number, ProcessFacts>();
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const facts = readProcess(Number(name));
    if (facts !== undefined) processes.set(facts.pid, facts);
  }
  const mounts = new Set<string>();
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    if (line.includes("thaw") || line.includes(ROOT)) mounts.add(line.split(" ").slice(2).join(" "));
  }
  const cgroups = new Set<string>();
  if (existsSync("/sys/fs/cgroup")) cgroupsBelow("/sys/fs/cgroup", cgroups);
  return { processes, mounts, cgroups };
}

function isOurProgram(facts: ProcessFacts, root: string): boolean {
  const inBuild = facts.exe.startsWith(join(root, "native/build/")) || facts.exe.startsWith("/run/thaw/");
  return inBuild || facts.command.includes(join(root, "dist/")) || facts.command.includes(join(root, "bin/thaw.mjs"));
}

function chainOf(facts: ProcessFacts, machine: MachineFacts): ProcessFacts[] {
  const chain = [facts];
  for (
    let next = machine.processes.get(facts.parent);
    next !== undefined && next.pid > 1;
    next = machine.processes.get(next.parent)
  ) {
    if (chain.includes(next)) break;
    chain.push(next);
  }
  return chain;
}

export interface LeftoverContext {
  /** Value of {@link RUN_MARK} in this run. */
  readonly mark: string;
  /** The test runner, whose own workers end by themselves. */
  readonly runnerPid: number;
  /** The project's directory. */
  readonly root: string;
}

/** One line for each process, mount and cgroup of ours that is in `after` and was not in `before`. */
export function findLeftovers(before: MachineFacts, after: MachineFacts, context: LeftoverContext): string[] {
  const isOld = (facts: ProcessFacts): boolean => before.processes.get(facts.pid)?.started === facts.started;
  const isMarked = (facts: ProcessFacts): boolean => `\0${facts.environment}`.includes(`\0${RUN_MARK}=${context.mark}\0`);
  const found: string[] = [];
  for (const facts of after.processes.values()) {
    const isWorker = facts.parent === context.runnerPid && facts.command.includes("vitest");
    if (facts.pid === context.runnerPid || isWorker || isOld(facts)) continue;
    const chain = chainOf(facts, after);
    if (chain.some(isMarked) || (isOurProgram(facts, context.root) && !chain.some(isOld))) {
      found.push(`process ${facts.pid} (parent ${facts.parent}): ${facts.command || facts.exe}`);
    }
  }
  /** A server's cgroups carry its pid and start time (src/linux/cgroups.ts): is it alive, and not one of ours? */
  const isElsewhere = (cgroup: string): boolean => {
    const [, pid, started] = /\/thaw\/(\d+)-(\d+)/.exec(cgroup) ?? [];
    const owner = after.processes.get(Number(pid));
    return owner !== undefined && owner.started === started && !chainOf(owner, after).some(isMarked);
  };
  for (const mount of after.mounts) if (!before.mounts.has(mount)) found.push(`mount ${mount}`);
  for (const cgroup of after.cgroups) {
    if (before.cgroups.has(cgroup) || isElsewhere(cgroup)) continue;
    // The directory that all servers share is there while any of them is.
    const isShared =
      cgroup.endsWith("/thaw") && [...after.cgroups].some((other) => other.startsWith(`${cgroup}/`) && isElsewhere(other));
    if (!isShared) found.push(`cgroup ${cgroup}`);
  }
  return found;
}

/** The runner calls this before the first kernel test; the function that it returns, after the last. */
export default function setup(): () => Promise<void> {
  const mark = randomUUID();
  process.env[RUN_MARK] = mark;
  const before = readMachine();
  return async () => {
    const context = { mark, runnerPid: process.pid, root: ROOT };
    const deadline = Date.now() + SETTLE_MS;
    let seen = findLeftovers(before, readMachine(), context);
    let found = seen;
    // An exit that is under way is no leftover: SIGKILL and the end of a pid namespace take a moment. Nor is what one look alone sees:
    // a process of somebody else's whose parent came or went while the machine was read looks like an orphan.
    while (seen.length > 0 && Date.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      const again = findLeftovers(before, readMachine(), context);
      found = again.filter((one) => seen.includes(one));
      seen = again;
    }
    if (found.length === 0) return;
    // The runner prints what a teardown throws, and then exits with 0.
    process.exitCode = 1;
    throw new Error(`the suite left ${found.length} thing${found.length === 1 ? "" : "s"} behind:\n  ${found.join("\n  ")}`);
  };
}
