/** What an image stores of a process: neither memory that holds zeros nor pages of files that nobody changed. */
import { closeSync, existsSync, openSync, readSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { imageFiles, type Region, readImage } from "../src/image/index.js";
import { call, LANGUAGES, useWorld } from "./support/world.js";

const PAGE = 4096;
/** Between two changed pages of a file so many clean ones are stored with them: one mapping costs less than two. */
const GAP_PAGES_MAX = 32;
const ZERO = Buffer.alloc(PAGE);
const MIB = 2 ** 20;

const world = useWorld();

/** Bytes of one page of a file; what lies beyond its end is zeros. */
function pageOf(fd: number, offset: bigint): Buffer {
  const page = Buffer.alloc(PAGE);
  readSync(fd, page, 0, PAGE, offset);
  return page;
}

/** Indices of the pages of a region that are stored. */
function* storedIn({ runs = [] }: Region): Generator<number> {
  for (let index = 0; index + 1 < runs.length; index += 2)
    for (let page = 0; page < (runs[index + 1] ?? 0); page++) yield (runs[index] ?? 0) + page;
}

describe.each(LANGUAGES)("the image of a %s function", (language) => {
  it("holds no zero page, and none of a file but such as were changed and small gaps between them", async () => {
    const instance = await world.boot(language);
    // Written, and zero again.
    await call(instance, "memory.zeros", 64 * MIB);
    const { privateBytes } = await instance.memory();
    expect(privateBytes).toBeGreaterThan(64 * MIB);
    const image = await instance.freeze({ then: "end" });
    expect(image.bytesOnDisk).toBeLessThan(privateBytes - 60 * MIB);
    const { regions } = (await readImage(image.dir)).manifest.facts;
    const pages = openSync(imageFiles(image.dir).pages, "r");
    let overlays = 0;
    try {
      for (const region of regions) {
        const { kind, slot, start, end } = region;
        if (kind === "file" || kind === "shared") expect([...storedIn(region)]).toEqual([]);
        if (slot === undefined) continue;
        const stored = new Set(storedIn(region));
        for (const index of stored) expect(pageOf(pages, slot + BigInt(index * PAGE)).equals(ZERO)).toBe(false);
        // It lies on the mapping of its file.
        const below = regions.find((one) => one.kind === "file" && one.start <= start && end <= one.end);
        // The shim has another name outside.
        if (kind !== "overlay" || below?.path === undefined || !existsSync(below.path)) continue;
        overlays++;
        const file = openSync(below.path, "r");
        const offset = (below.offset ?? 0n) + (start - below.start);
        const count = Number(end - start) / PAGE;
        let clean = 0;
        for (let index = 0; index < count; index++) {
          const theirs = pageOf(file, offset + BigInt(index * PAGE));
          const ours = stored.has(index) ? pageOf(pages, slot + BigInt(index * PAGE)) : ZERO;
          // A page may have been written with what was there.
          clean = ours.equals(theirs) ? clean + 1 : 0;
          expect(clean).toBeLessThanOrEqual(GAP_PAGES_MAX);
        }
        closeSync(file);
      }
    } finally {
      closeSync(pages);
    }
    expect(overlays).toBeGreaterThan(0);
    await world.engine.removeImage(image);
  });
});
