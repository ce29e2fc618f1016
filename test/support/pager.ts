/** The pager's process, found from outside. */
import { readdirSync, readFileSync } from "node:fs";
import type { Instance } from "../../src/engine/index.js";
import { statFields } from "../../src/linux/process-stat.js";
import { hostPid } from "./world.js";

function parentOf(pid: number): { name: string; parent: number; state: string } | undefined {
  try {
    const [state = "", parent] = statFields(pid);
    return { name: readFileSync(`/proc/${pid}/comm`, "utf8").trim(), parent: Number(parent), state };
  } catch {
    return undefined;
  }
}

/** The living process of that name whose parent, or whose parent's parent, is the keeper. 0: none. */
export function keeperProcess(keeper: number, name: string): number {
  for (const entry of readdirSync("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    const found = parentOf(Number(entry));
    if (found === undefined || found.name !== name || found.state === "Z") continue;
    if (found.parent === keeper || parentOf(found.parent)?.parent === keeper) return Number(entry);
  }
  return 0;
}

/** Whether SIGSTOP has taken effect; nothing else runs in a process before it is told to go on, or killed. */
export function hasStopped(pid: number): boolean {
  return parentOf(pid)?.state === "T";
}

/** The keeper that an instance belongs to, and its pager. */
export function pagerOf(instance: Instance): { readonly keeper: number; readonly pager: number } {
  const init = parentOf(hostPid(instance))?.parent ?? 0;
  const keeper = parentOf(init)?.parent ?? 0;
  const pager = keeperProcess(keeper, "thaw-pager");
  if (pager === 0) throw new Error("there is no pager");
  return { keeper, pager };
}
