/** How pages arrive: what a start from a cold disk asks for. */
import { describe, expect, it } from "vitest";
import type { Image } from "../src/engine/index.js";
import { imageFiles } from "../src/image/index.js";
import { forgetCached } from "./support/page-cache.js";
import { call, LANGUAGES, type Language, useWorld } from "./support/world.js";

const OBJECTS = 5000;
const STARTS = 3;
const world = useWorld();

/** A function that has counted to three and holds many objects. */
function counted(language: Language): Promise<Image> {
  return world.imageAfter(language, ["counter.fill", OBJECTS], "counter.next", "counter.next", "counter.next");
}

describe.each(LANGUAGES)("splice from a cold disk (%s)", (language) => {
  it("asks for the working set, says how much of it was not cached, and starts without waiting for it", async () => {
    const image = await counted(language);
    const start = (): Promise<number | undefined> =>
      world.thawed(image, async (clone) => {
        expect(await call(clone, "counter.next")).toBe(4);
        await clone.faults();
        return clone.start.coldPages;
      });
    for (let round = 0; round < STARTS; round++) await start();
    expect(await start()).toBe(0);
    forgetCached(imageFiles(image.dir).pages);
    expect(await start()).toBeGreaterThan(50);
    expect(await start()).toBe(0);
    await world.engine.removeImage(image);
  });
});
