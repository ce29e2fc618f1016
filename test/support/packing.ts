/** What is done to page spaces beside their starts: by hand, and by the engine when an image's last instance has ended. */
import { spawnSync } from "node:child_process";
import { closeSync, existsSync, openSync, readFileSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { encodeParts } from "../../src/engine/gather.js";
import type { Image } from "../../src/engine/index.js";
import { decodeWorkingSet, imageFiles, type WorkingSet } from "../../src/image/index.js";
import { ROOT } from "./server.js";
import { until } from "./wait.js";

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

/** What is stored, if anything is: the engine's inspection would read the pages, too. */
function stored(image: Image): WorkingSet | undefined {
  const { workingSet } = imageFiles(image.dir);
  return existsSync(workingSet) ? decodeWorkingSet(readFileSync(workingSet)) : undefined;
}

/** A set is stable after five recordings at most; a start ends before what it recorded is stored, and one in a while records nothing. */
const STARTS_MAX = 20;
const RECORDED_MS = 2_000;
/** Moving waits for the disk several times, whatever else that has to do. */
const PACKED_MS_MAX = 50_000;

/** Has it started until its working set is stable, and resolves when that lies together on the disk; where that cannot be, when it is stable. */
export async function packed(image: Image, start: () => Promise<unknown>): Promise<void> {
  for (let starts = 0; stored(image)?.stable !== true; starts++) {
    if (starts === STARTS_MAX) throw new Error(`the working set is not stable after ${STARTS_MAX} starts`);
    const before = stored(image)?.recordings ?? 0;
    await start();
    for (const end = Date.now() + RECORDED_MS; (stored(image)?.recordings ?? 0) === before && Date.now() < end; ) await sleep(5);
  }
  if (canPack(image.dir)) await until("the working set lies together", () => stored(image)?.packed, PACKED_MS_MAX);
}
