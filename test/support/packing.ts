/** What is done to page spaces beside their starts: by hand, and by the engine when an image's last instance has ended. */
import { spawnSync } from "node:child_process";
import { closeSync, openSync, readFileSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { encodeParts } from "../../src/engine/gather.js";
import type { Image } from "../../src/engine/index.js";
import { decodeWorkingSet, imageFiles, type WorkingSet } from "../../src/image/index.js";
import { ROOT, until } from "./server.js";

const EXTRACTOR = join(ROOT, "native/build/extractor");
const EXT4_MAGIC = 0xef53;
const PAGE_BYTES = 4096;

/** Has the extractor pack or gather parts of a file, each a page and a number of pages. */
export function onParts(
  command: "pack" | "gather",
  path: string,
  parts: readonly (readonly [page: number, pages: number])[],
): { status: number | null; stdout: string } {
  const list = join("/dev/shm", `thaw-parts-${process.pid}`);
  writeFileSync(
    list,
    encodeParts(parts.map(([page, pages]) => ({ offset: BigInt(page * PAGE_BYTES), bytes: pages * PAGE_BYTES }))),
  );
  const fd = openSync(list, "r");
  try {
    return spawnSync(EXTRACTOR, [command, path], { stdio: ["ignore", "pipe", "inherit", fd], encoding: "utf8", timeout: 30_000 });
  } finally {
    closeSync(fd);
    rmSync(list);
  }
}

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
