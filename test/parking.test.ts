/** Husks with a runtime mapped are kept for what is started again and again, without being asked for, and for as long as any image can use them. */
import { afterEach, describe, expect, it } from "vitest";
import type { Image } from "../src/engine/index.js";
import { until } from "./support/server.js";
import { call, LANGUAGES, useWorld } from "./support/world.js";

const world = useWorld();

async function huskOf(image: Image): Promise<string | undefined> {
  return world.thawed(image, async (clone) => {
    expect(await call(clone, "counter.read")).toMatchObject({ count: 3 });
    return clone.start.husk;
  });
}

const kept = (): number => world.engine.stats().husks.runtime;

afterEach(() => world.engine.pool({ runtime: 0 }));

describe.each(LANGUAGES)("the runtime of a %s function", (language) => {
  it("is kept mapped once it was started from twice", async () => {
    const { engine } = world;
    const image = await world.imageAfter(language, "counter.next", "counter.next", "counter.next");
    engine.pool({ runtime: 2 });
    expect(await huskOf(image)).toBe("generic");
    await engine.poolsFull(20_000);
    expect(kept()).toBe(0);
    expect(await huskOf(image)).toBe("generic");
    await until("two husks wait", () => (kept() === 2 ? true : undefined));
    expect([await huskOf(image), await huskOf(image)]).toEqual(["runtime", "runtime"]);
    await until("they are replaced", () => (kept() === 2 ? true : undefined));
    engine.pool({ runtime: 0 });
    expect(kept()).toBe(0);
    expect(await huskOf(image)).toBe("generic");
    await engine.removeImage(image);
  });

  it("stays mapped when the image is removed by which it was, as long as another one has the same", async () => {
    const { engine } = world;
    const images = [
      await world.imageAfter(language, "counter.next", "counter.next", "counter.next"),
      await world.imageAfter(language, "counter.next", "counter.next", "counter.next"),
    ];
    const [first, second] = images as [Image, Image];
    engine.pool({ runtime: 1 });
    for (let starts = 0; starts < 2; starts++) await huskOf(first);
    await until("a husk waits", () => (kept() === 1 ? true : undefined));
    await engine.removeImage(first);
    await engine.poolsFull(20_000);
    // Made by the other's programs, after the first one's were closed.
    expect(await huskOf(second)).toBe("runtime");
    await engine.poolsFull(20_000);
    expect(await huskOf(second)).toBe("runtime");
    await engine.removeImage(second);
    expect(kept()).toBe(0);
  });

  it("is left to whoever asked for it by name", async () => {
    const { engine } = world;
    const image = await world.imageAfter(language, "counter.next", "counter.next", "counter.next");
    engine.pool({ runtime: 2 });
    engine.park(image, "runtime", 1);
    await engine.poolsFull(20_000);
    for (let starts = 0; starts < 3; starts++) {
      expect(await huskOf(image)).toBe("runtime");
      await engine.poolsFull(20_000);
    }
    expect(kept()).toBe(1);
    engine.pool({ runtime: 0 });
    expect(kept()).toBe(1);
    await engine.removeImage(image);
    expect(kept()).toBe(0);
  });
});
