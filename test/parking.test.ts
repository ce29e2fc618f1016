/** Husks with a runtime mapped are kept for what is started again and again, without being asked for, and for as long as any image can use them. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import type { Image, Instance } from "../src/engine/index.js";
import { until } from "./support/wait.js";
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

describe("an image that a former server wrote", () => {
  it("is opened for the husks that are parked for it", async () => {
    const image = await world.imageAfter("node", "counter.next", "counter.next", "counter.next");
    await world.reopen();
    world.engine.rememberImage(image);
    world.engine.park(image, "image", 1);
    // Not before it was opened, and not before the husk is there.
    await world.engine.poolsFull(20_000);
    expect(world.engine.stats().husks.image).toBe(1);
    await world.thawed(image, async (clone) => expect(await call(clone, "counter.read")).toMatchObject({ count: 3 }), {
      husk: "parked",
    });
    await world.engine.removeImage(image);
  });
});

describe.each(LANGUAGES)("the runtime of a %s function", (language) => {
  it("is kept mapped once it was started from twice", async () => {
    const { engine } = world;
    const image = await world.imageAfter(language, "counter.next", "counter.next", "counter.next");
    engine.pool({ runtime: 2 });
    // The boot before took one, if any was ready by then.
    await engine.poolsFull(20_000);
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

describe("a Python function whose input chooses from a large heap", () => {
  /** Looks 300 objects up, and so writes their reference counts. */
  const SOURCE = `
table = [{"id": index, "tail": (index,)} for index in range(60_000)]
def handler(event, context):
    kept = [table[(event["seed"] * 104_729 + step * 7_919) % len(table)] for step in range(300)]
    return sum(one["id"] for one in kept)
`;

  it("has all of that heap copied in a husk that is parked prefaulted, and a thaw has not", async () => {
    const { engine, dataDir } = world;
    const codeDir = join(dataDir, "table");
    mkdirSync(codeDir);
    writeFileSync(join(codeDir, "app.py"), SOURCE);
    const instance = await world.boot("python", { name: "table", codeDir, handler: "app.handler" });
    const image = await instance.freeze({ then: "end" });
    let seed = 0;
    const ask = async (clone: Instance) => {
      seed += 1;
      const { payload, functionError } = await clone.invoke(JSON.stringify({ seed }));
      expect([functionError, Number(payload.toString())]).toEqual([undefined, expect.any(Number)]);
      const { prefetchedPages, recording } = clone.start;
      return { minor: (await clone.faults())?.minor ?? Number.NaN, prefetchedPages, recording };
    };
    for (let recorded: boolean | undefined = true; recorded === true; ) {
      expect(seed).toBeLessThan(8);
      recorded = (await world.thawed(image, ask)).recording;
    }
    const thawed = await world.thawed(image, ask);
    engine.pool({ generic: 0 });
    engine.park(image, "prefaulted", 1);
    await engine.poolsFull(20_000);
    const parked = await world.thawed(image, ask, { husk: "parked" });
    expect(parked.prefetchedPages).toBeGreaterThan(thawed.prefetchedPages + 2_000);
    expect(thawed.minor).toBeGreaterThan(300);
    expect(parked.minor).toBeLessThan(thawed.minor / 3);
    engine.pool({ generic: 2 });
    await engine.removeImage(image);
  });
});
