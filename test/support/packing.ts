/** Waits until what was begun when an image's last instance ended is done. */
import { readFileSync, statfsSync } from "node:fs";
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

/** Resolves when the working set lies together on the disk; at once where it is not stable yet, or cannot. */
export async function packed(image: Image): Promise<void> {
  if (stored(image)?.stable !== true || !canPack(image.dir)) return;
  await until("the working set lies together", () => stored(image)?.packed);
}
