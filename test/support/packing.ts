/** Waits until what was begun when an image's last instance ended is done. */
import { readFileSync, statfsSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { Image } from "../../src/engine/index.js";
import { decodeWorkingSet, imageFiles, type WorkingSet } from "../../src/image/index.js";
import { until } from "./server.js";

const EXT4_MAGIC = 0xef53;

/** Whether the file system of that path can move parts of a file together. */
export function canPack(path: string): boolean {
  return statfsSync(path).type === EXT4_MAGIC;
}

/** What is stored: the engine's inspection would read the pages, too. */
function stored(image: Image): WorkingSet | undefined {
  return decodeWorkingSet(readFileSync(imageFiles(image.dir).workingSet));
}

/** What the last start recorded may still be on its way to the disk. */
const WRITTEN_MS = 200;

/** Resolves when the working set lies together on the disk; soon where it is not stable yet, at once where it cannot. */
export async function packed(image: Image): Promise<void> {
  if (!canPack(image.dir)) return;
  for (const end = Date.now() + WRITTEN_MS; stored(image)?.stable !== true; await sleep(10)) if (Date.now() > end) return;
  await until("the working set lies together", () => stored(image)?.packed);
}
