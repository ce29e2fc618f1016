/** Waits until what was begun when an image's last instance ended is done. */
import { statfsSync } from "node:fs";
import type { Engine, Image } from "../../src/engine/index.js";
import { until } from "./server.js";

const EXT4_MAGIC = 0xef53;

/** Whether the file system of that path can move parts of a file together. */
export function canPack(path: string): boolean {
  return statfsSync(path).type === EXT4_MAGIC;
}

/** Resolves when the working set lies together on the disk; at once where it is not stable yet, or cannot. */
export async function packed(engine: Engine, image: Image): Promise<void> {
  const set = (await engine.inspect(image)).workingSet;
  if (set?.stable !== true || !canPack(image.dir)) return;
  await until("the working set lies together", async () => (await engine.inspect(image)).workingSet?.packed || undefined);
}
