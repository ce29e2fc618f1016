/** How much memory a process has, from /proc. */
import { readFile } from "node:fs/promises";
import type { Husk } from "./husk.js";

/** Resident bytes of a process: its own, of those the changed ones, and those that others map too. Rejects with `ended` when it has. */
export async function residentMemory(
  husk: Husk,
  ended: () => Error,
): Promise<{ privateBytes: number; dirtyBytes: number; sharedBytes: number }> {
  const text = await readFile(`/proc/${husk.host.pid}/smaps_rollup`, "utf8").catch(async (error: NodeJS.ErrnoException) => {
    if (error.code !== "ENOENT" && error.code !== "ESRCH") throw error;
    await husk.gone();
    throw ended();
  });
  const sum = (pattern: RegExp): number =>
    [...text.matchAll(pattern)].reduce((total, match) => total + Number(match[1]) * 1024, 0);
  return {
    privateBytes: sum(/^Private_(?:Clean|Dirty):\s+(\d+)/gm),
    dirtyBytes: sum(/^Private_Dirty:\s+(\d+)/gm),
    sharedBytes: sum(/^Shared_(?:Clean|Dirty):\s+(\d+)/gm),
  };
}
