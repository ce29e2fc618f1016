/** Processes of the machine as /proc shows them. */
import { readdirSync, readlinkSync } from "node:fs";
import { statFields } from "../../src/linux/process-stat.js";

export interface Living {
  readonly pid: number;
  readonly parent: number;
  /** Of the keeper's own session are all sandboxes but those that called setsid. */
  readonly session: number;
  /** Clock ticks after boot: with the pid, a name that is never used again. */
  readonly started: string;
  readonly exe: string;
}

/** All that run. Zombies are dead: what is left of them is their parent's affair. */
export function livingProcesses(): Map<number, Living> {
  const found = new Map<number, Living>();
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const [state = "", parent, , session, ...rest] = statFields(Number(name));
      if (state === "Z" || state === "X") continue;
      const facts = { pid: Number(name), parent: Number(parent), session: Number(session), started: rest[15] ?? "" };
      found.set(facts.pid, { ...facts, exe: readlinkSync(`/proc/${name}/exe`) });
    } catch {
      // Ended while we looked, or a kernel thread.
    }
  }
  return found;
}

/** Everything below `pid`, itself not included. */
export function descendants(pid: number, processes = livingProcesses()): Living[] {
  const children = [...processes.values()].filter(({ parent }) => parent === pid);
  return children.flatMap((child) => [child, ...descendants(child.pid, processes)]);
}

/** Whether the same process, not another of its number, still runs. */
export function isAlive({ pid, started }: Living): boolean {
  return livingProcesses().get(pid)?.started === started;
}
