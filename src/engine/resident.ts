/** How much memory a process has, from /proc. */
import { readFile } from "node:fs/promises";

/** Resident bytes of a process: its own, of those the changed ones, and those that others map too. */
export async function residentMemory(pid: number): Promise<{ privateBytes: number; dirtyBytes: number; sharedBytes: number }> {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, "utf8");
  const sum = (pattern: RegExp): number =>
    [...text.matchAll(pattern)].reduce((total, match) => total + Number(match[1]) * 1024, 0);
  return {
    privateBytes: sum(/^Private_(?:Clean|Dirty):\s+(\d+)/gm),
    dirtyBytes: sum(/^Private_Dirty:\s+(\d+)/gm),
    sharedBytes: sum(/^Shared_(?:Clean|Dirty):\s+(\d+)/gm),
  };
}
