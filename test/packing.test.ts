/** Parts of a file are moved together on the disk, and neither the file nor who uses it notices. */
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { decodeWorkingSet, imageFiles } from "../src/image/index.js";
import { evict } from "../src/lab/page-cache.js";
import { canPack, onParts, packed } from "./support/packing.js";
import { call, LANGUAGES, useWorld } from "./support/world.js";

/** Not the system's temporary directory, which may have no disk below it. */
const dir = mkdtempSync("/var/tmp/thaw-packing-");
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const PAGE = 4096;
const PAGES = 2000;
/** Every fifth page, from the end to the beginning. */
const PARTS = Array.from({ length: PAGES / 5 }, (_, index) => PAGES - 5 - index * 5);

function makeFile(where: string): string {
  const path = join(where, `pages-${process.pid}`);
  writeFileSync(path, Buffer.concat(Array.from({ length: PAGES }, (_, index) => Buffer.alloc(PAGE, `page ${index} `))));
  return path;
}

function pack(path: string, pages: readonly number[]): Record<string, unknown> {
  const { stdout } = onParts(
    "pack",
    path,
    pages.map((page) => [page, 1]),
  );
  return JSON.parse(stdout);
}

const digest = (path: string): string => createHash("sha256").update(readFileSync(path)).digest("hex");
/** Not the number of its blocks: its map may need more of them. */
const identity = (path: string): unknown[] => {
  const { ino, size, mtimeNs, ctimeNs } = statSync(path, { bigint: true });
  return [ino, size, mtimeNs, ctimeNs];
};

/** First block of each page, by FIBMAP's successor; empty where filefrag is not installed. */
function places(path: string): number[] {
  const out = spawnSync("filefrag", ["-v", "-b4096", path]);
  if (out.error !== undefined) return [];
  const place: number[] = [];
  for (const [, logical, end, physical] of out.stdout.toString().matchAll(/^\s*\d+:\s+(\d+)\.\.\s*(\d+):\s+(\d+)\.\./gm))
    for (let page = Number(logical); page <= Number(end); page++) place[page] = Number(physical) + page - Number(logical);
  return place;
}

describe("packing a file", () => {
  it.runIf(canPack(dir))("puts its parts side by side, in their order, and changes nothing that can be read of it", async () => {
    const path = makeFile(dir);
    execFileSync("sync", [path]);
    const [before, was] = [digest(path), identity(path)];
    expect(pack(path, PARTS)).toEqual({
      ok: true,
      parts: PARTS.length,
      bytes: PARTS.length * PAGE,
      movedBytes: PARTS.length * PAGE,
    });
    expect(digest(path)).toBe(before);
    expect(identity(path)).toEqual(was);
    const place = places(path);
    if (place.length > 0) {
      const neighbours = PARTS.slice(1).filter((page, index) => place[page] === (place[PARTS[index] as number] as number) + 1);
      // The free space may be in a few pieces itself.
      expect(neighbours.length).toBeGreaterThan(PARTS.length * 0.9);
    }
    // From the disk, too.
    await evict([path]);
    expect(digest(path)).toBe(before);
  });

  it("says so where a file system cannot", () => {
    const path = makeFile("/dev/shm");
    try {
      const before = digest(path);
      expect(pack(path, PARTS)).toMatchObject({ ok: false, code: "unsupported" });
      expect(digest(path)).toBe(before);
    } finally {
      rmSync(path);
    }
  });
});

const world = useWorld();

describe.each(LANGUAGES)("the image of a %s function", (language) => {
  it("is packed when its set is stable and its last instance has ended; it stays whole, and its starts have all their state", async () => {
    const image = await world.imageAfter(language, ["counter.fill", 5000], "counter.next");
    const was = identity(imageFiles(image.dir).pages);
    const start = (): Promise<unknown> =>
      world.thawed(image, async (clone) => ({ ...(await call<object>(clone, "counter.read")), pid: undefined }));
    const state = await start();
    await packed(image, async () => expect(await start()).toEqual(state));
    // Reads and checks every byte.
    const { workingSet } = await world.engine.inspect(image);
    expect(workingSet?.packed).toBe(canPack(image.dir));
    expect(decodeWorkingSet(readFileSync(imageFiles(image.dir).workingSet))?.packed === true).toBe(canPack(image.dir));
    // Its bytes were written again, in larger pieces: it is the file that it was, and nobody takes it for a changed one.
    expect(identity(imageFiles(image.dir).pages).slice(0, 2)).toEqual(was.slice(0, 2));
    const phases = await world.thawed(image, async (clone) => {
      await call(clone, "counter.read");
      return clone.start.phases.map(({ name }) => name);
    });
    expect(phases).not.toContain("verify");
    await evict([imageFiles(image.dir).pages]);
    expect(await start()).toEqual(state);
    await world.engine.removeImage(image);
  });
});
