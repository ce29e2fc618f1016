/** An image knows how hot its function was: requests, and what the runtime says of its code. */
import { describe, expect, it } from "vitest";
import type { Image } from "../src/engine/index.js";
import { call, LANGUAGES, useWorld } from "./support/world.js";

const REQUESTS = 1000;
const REQUESTS_MAX = 20_000;
const world = useWorld();
/** The fastest tier. */
const HOT = { node: "optimised", python: "specialised" } as const;

async function frozenAfter(language: (typeof LANGUAGES)[number], requests: number): Promise<Image> {
  const instance = await world.boot(language);
  try {
    for (let i = 0; i < requests; i++) expect(await call(instance, "heat.work")).toBe(3);
    return await instance.freeze({ then: "end" });
  } finally {
    await instance.dispose();
  }
}

/** Frozen after so many requests, or a multiple of that: V8 optimises in threads of its own, which may wait for a processor. */
async function hotImage(language: (typeof LANGUAGES)[number]): Promise<{ image: Image; requests: number; optimised: number }> {
  const instance = await world.boot(language);
  try {
    for (let requests = REQUESTS; ; requests += REQUESTS) {
      for (let i = 0; i < REQUESTS; i++) expect(await call(instance, "heat.work")).toBe(3);
      const image = await instance.freeze();
      const optimised = image.code?.tiers[HOT[language]] ?? 0;
      if (optimised > 0) return { image, requests, optimised };
      expect(requests).toBeLessThan(REQUESTS_MAX);
      await world.engine.removeImage(image);
    }
  } finally {
    await instance.dispose();
  }
}

describe.each(LANGUAGES)("the heat of a %s image", (language) => {
  const hot = HOT[language];

  it("is none before the first request", async () => {
    const image = await frozenAfter(language, 0);
    expect(image).toMatchObject({ generation: 0, heat: 0 });
    expect(image.code?.functions).toBeGreaterThan(0);
    expect(image.code?.tiers[hot]).toBe(0);
    const { generation, heat, code } = await world.engine.inspect(image);
    expect({ generation, heat, code }).toEqual({ generation: 0, heat: 0, code: image.code });
  });

  it("says that its code is optimised after many, still does when thawed and frozen again, and every start tells it", async () => {
    const { image, requests, optimised } = await hotImage(language);
    expect(image.heat).toBe(requests);
    const clone = await world.engine.thaw(image);
    try {
      expect(clone.start).toMatchObject({ kind: "thaw", generation: 0, heat: requests });
      // As it was frozen: nothing ran in between.
      const next = await clone.freeze();
      expect(next).toMatchObject({ generation: 1, heat: requests });
      expect(next.code?.tiers[hot]).toBeGreaterThanOrEqual(optimised);
      expect(await call(clone, "heat.work")).toBe(3);
      await clone.hibernate();
      expect(await clone.wake()).toMatchObject({ kind: "wake", generation: 0, heat: requests });
    } finally {
      await clone.dispose();
    }
  });

  it("is told by parked starts, and by an image that was opened again", async () => {
    const { engine } = world;
    const image = await frozenAfter(language, 1);
    engine.park(image, "image", 1);
    await engine.poolsFull(20_000);
    await world.thawed(
      image,
      async (clone) => {
        expect(await call(clone, "heat.work")).toBe(3);
        expect(clone.start).toMatchObject({ kind: "parked", heat: 1 });
      },
      { husk: "parked" },
    );
    engine.park(image, "image", 0);
    await world.reopen();
    const opened = await world.engine.openImage(image.dir);
    expect(opened.code).toEqual(image.code);
    expect(opened.heat).toBe(1);
  });
});
