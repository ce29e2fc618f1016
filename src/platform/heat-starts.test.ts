/** Starts when there are several images: which one is thawed, what happens when it cannot be, and for which husks are parked. */
import { readdirSync, readFileSync } from "node:fs";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import type { FakeEngineOptions } from "../engine/fake.js";
import { openTestBed, type PointsPolicy, pointsPolicy, type TestBed, until, zipOf } from "./testing.js";
import type { DeployRequest, PlatformOptions } from "./types.js";

let bed: TestBed;
let policy: PointsPolicy;
afterEach(async () => {
  await bed.close();
});

/** A function with images of heat 0, 1 and 3, generations 0 to 2. */
async function ready(options: Partial<PlatformOptions> = {}, more: Partial<DeployRequest> = {}): Promise<void> {
  policy = pointsPolicy(0);
  bed = await openTestBed({ heatPolicy: policy, ...options });
  await bed.platform.deploy({ name: "a", zip: zipOf(), ...more });
  await bed.platform.waitReady("a");
  await bed.platform.heat("a", { requests: 1 });
  await bed.platform.heat("a", { requests: 2 });
}
const restart = async (options?: FakeEngineOptions): Promise<void> => {
  bed = await bed.restart(options);
};
const thaw = (request = {}) => bed.platform.invoke("a", "", { dispose: true, ...request });
const prefer = (generation: number) => ({ prefer: { kind: "thaw", generation } as const });
const generations = () => bed.platform.images("a").map(({ generation }) => generation);
const imagesOnDisk = (): string[] => readdirSync(join(bed.dataDir, "images"));
const dirOf = (generation: number): string => {
  const stored = imagesOnDisk().map((name) => join(bed.dataDir, "images", name));
  const id = bed.platform.images("a").find((image) => image.generation === generation)?.id;
  return stored.find((dir) => readManifestId(dir) === id) ?? "";
};
/** Undefined for one that is just being removed. */
const readManifestId = (dir: string): string | undefined => {
  try {
    return (JSON.parse(readFileSync(join(dir, "manifest.json"), "utf8")) as { id: string }).id;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
};

const broken = (code: "THAW_FAILED" | "IMAGE_DAMAGED" = "THAW_FAILED") => new ThawError(code, { what: "The pages are cut off" });

describe("a demanded generation", () => {
  it("is thawed, hot or not", async () => {
    await ready();
    expect((await thaw()).start).toMatchObject({ kind: "thaw", generation: 2, heat: 3 });
    expect((await thaw(prefer(0))).start).toMatchObject({ kind: "thaw", generation: 0, heat: 0 });
    expect((await thaw(prefer(1))).start).toMatchObject({ kind: "thaw", generation: 1, heat: 1 });
  });

  it("that does not exist is refused, with those that do", async () => {
    await ready();
    await expect(thaw(prefer(7))).rejects.toThrow(
      'Function "a" was not started: the request demands thaw of generation 7. it has no such image: generations 0, 1, 2 exist. ' +
        "Use one of those that `thaw image ls a` lists",
    );
    expect(bed.engine.live.size).toBe(0);
  });

  it("that cannot be thawed is dropped, and the request is told; the others stay", async () => {
    await ready();
    bed.engine.failNext("start", broken());
    await expect(thaw(prefer(1))).rejects.toThrow("The pages are cut off. Try again: other images are there");
    expect(generations()).toEqual([0, 2]);
  });
});

describe("an image that fails to thaw", () => {
  for (const operation of ["thaw", "start"] as const) {
    it(`(${operation}) is dropped: the next best serves that very request, which says so`, async () => {
      await ready();
      bed.engine.failNext(operation, broken());
      const { start, result } = await thaw();
      expect(result.functionError).toBeUndefined();
      expect(start).toMatchObject({ kind: "thaw", generation: 1, heat: 1, fallback: "The pages are cut off" });
      expect(generations()).toEqual([0, 1]);
      expect(bed.platform.get("a")).toMatchObject({
        image: { state: "ready" },
        lastFallback: { reason: "The pages are cut off" },
      });
      expect(bed.platform.metrics()).toMatchObject({ fallbacks: 1, imagesDropped: 1, freezes: 1, starts: { boot: 0, thaw: 1 } });
      expect(await bed.platform.logs("a")).toContain(
        "thaw: generation 2 cannot be used and is dropped; the other images serve: The pages are cut off",
      );
      await until(() => imagesOnDisk().length === 2);
      expect((await thaw()).start.fallback).toBeUndefined();
      await restart();
      await bed.platform.waitReady("a");
      expect(generations()).toEqual([0, 1]);
    });
  }

  it("takes all of them with it when none can be thawed: only then is it booted, and generation 0 is made anew", async () => {
    await ready();
    bed.engine.failNext("thaw", broken("IMAGE_DAMAGED"), 3);
    const { start } = await thaw();
    expect(start).toMatchObject({ kind: "boot", fallback: "The pages are cut off" });
    expect(bed.platform.metrics()).toMatchObject({ imagesDropped: 3, fallbacks: 1 });
    await until(() => bed.platform.get("a").image.state === "ready");
    expect(bed.platform.images("a")).toMatchObject([{ generation: 0, heat: 0, source: "deploy", chosen: true }]);
    expect(policy.begun()).toBe(2);
    await until(() => imagesOnDisk().length === 1);
    expect((await thaw()).start).toMatchObject({ kind: "thaw", generation: 0 });
  });

  it("is dropped once, however many requests meet it at the same time; each is served by another", async () => {
    await ready();
    const hot = bed.platform.images("a").at(-1)?.id;
    bed.engine.delayMs.thaw = 10;
    await rm(dirOf(2), { recursive: true });
    const outcomes = await Promise.all(Array.from({ length: 5 }, () => thaw()));
    expect(outcomes.map(({ start }) => start.generation)).toEqual(Array(5).fill(1));
    expect(bed.platform.images("a").map(({ id }) => id)).not.toContain(hot);
    expect(bed.platform.metrics()).toMatchObject({ imagesDropped: 1, fallbacks: 5 });
  });

  it("has warm-up events replayed again only when all images were lost", async () => {
    policy = pointsPolicy(0, 1);
    bed = await openTestBed({ heatPolicy: policy });
    let replayed = 0;
    bed.engine.handler = () => ++replayed;
    await bed.platform.deploy({ name: "a", zip: zipOf(), warmUp: { events: [1], requests: 1 } });
    await until(() => bed.platform.get("a").image.heat?.state === "done");
    bed.engine.failNext("thaw", broken());
    await thaw();
    expect(replayed).toBe(2);
    expect(bed.platform.get("a").image.heat).toEqual({ state: "done" });
    bed.engine.failNext("thaw", broken());
    await thaw();
    await until(() => bed.platform.get("a").image.heat?.state === "done" && generations().length === 2);
    expect(replayed).toBe(4);
  });
});

describe("images that the policy gives up", () => {
  it("are removed; instances that came from them go on", async () => {
    await ready();
    await bed.platform.invoke("a", "", prefer(0));
    policy.surplus = (images) => images.filter(({ heat }) => heat < 3);
    await bed.platform.heat("a", { requests: 1 });
    expect(generations()).toEqual([2, 3]);
    await until(() => imagesOnDisk().length === 2);
    expect((await bed.platform.invoke("a", "")).start).toMatchObject({ kind: "reuse", generation: 0 });
    await restart();
    await bed.platform.waitReady("a");
    expect(generations()).toEqual([2, 3]);
  });

  it("stay on disk while a start uses them", async () => {
    await ready();
    bed.engine.delayMs.thaw = 40;
    const before = bed.engine.calls.length;
    const started = thaw(prefer(0));
    await until(() => bed.engine.calls.includes("thaw a", before));
    policy.surplus = (images) => images.filter(({ generation }) => generation === 0);
    bed.engine.delayMs.thaw = 0;
    await bed.platform.heat("a", { requests: 1 });
    expect(generations()).toEqual([1, 2, 3]);
    expect((await started).start).toMatchObject({ kind: "thaw", generation: 0 });
    await until(() => imagesOnDisk().length === 3);
  });
});

describe("husks", () => {
  const parked = () => Object.fromEntries(bed.platform.images("a").map(({ generation }) => [generation, parkedAt(generation)]));
  const parkedAt = (generation: number) => Object.fromEntries(bed.engine.parked.get(dirOf(generation)) ?? []);

  it("are parked for the favourite alone; those of the one before are given up", async () => {
    await ready({ parked: { image: 1, prefaulted: 2 } });
    expect(parked()).toEqual({ 0: { image: 0, prefaulted: 0 }, 1: { image: 0, prefaulted: 0 }, 2: { image: 1, prefaulted: 2 } });
    expect((await thaw()).start).toMatchObject({ kind: "parked", generation: 2 });
    bed.engine.failNext("thaw", broken());
    expect((await thaw()).start).toMatchObject({ generation: 1 });
    expect(parkedAt(1)).toMatchObject({ image: 1 });
  });

  it("that are parked for another image than the policy chose are left alone", async () => {
    await ready({ parked: { prefaulted: 2 } });
    policy.choose = ([coldest]) => coldest as never;
    expect((await thaw()).start).toMatchObject({ kind: "thaw", generation: 0 });
    expect(parkedAt(2)).toEqual({ prefaulted: 2 });
  });

  it("follow when the policy changes its mind for good", async () => {
    await ready({ parked: { prefaulted: 9 } });
    policy.choose = ([coldest]) => coldest as never;
    for (let count = 0; count < 10; count++) await thaw();
    await until(() => (parkedAt(0)["prefaulted"] ?? 0) > 0);
    expect(parkedAt(2)).toEqual({ prefaulted: 0 });
    expect(bed.platform.images("a").map(({ chosen }) => chosen)).toEqual([true, false, false]);
  });

  it("that are provisioned come before any choice", async () => {
    await ready({}, { provisioned: 1 });
    policy.choose = ([coldest]) => coldest as never;
    expect((await thaw()).start).toMatchObject({ kind: "parked", generation: 2 });
    expect((await thaw()).start).toMatchObject({ kind: "thaw", generation: 0 });
  });

  it("are parked for the favourite again after a restart", async () => {
    await ready({ parked: { prefaulted: 1 } });
    await restart();
    await until(() => bed.engine.stats().husks.prefaulted === 1);
    expect(parkedAt(2)).toEqual({ prefaulted: 1 });
  });
});

describe("after a restart", () => {
  it("all images are there, and the hottest alone is opened at once", async () => {
    await ready();
    const before = bed.platform.images("a");
    const hot = dirOf(2).split("/").at(-1);
    await restart();
    await bed.platform.waitReady("a");
    expect(bed.platform.images("a")).toEqual(before);
    expect(bed.engine.calls).toEqual([`openImage ${hot}`]);
    expect((await thaw(prefer(0))).start).toMatchObject({ generation: 0 });
    expect((await bed.platform.heat("a", { requests: 1 })).image).toMatchObject({ generation: 3, heat: 4 });
  });

  it("a damaged one is dropped, counted and told in the log; the next one serves", async () => {
    await ready();
    await writeFile(join(dirOf(2), "manifest.json"), "{");
    await restart();
    expect((await thaw()).start).toMatchObject({ kind: "thaw", generation: 1 });
    expect(generations()).toEqual([0, 1]);
    expect(bed.platform.metrics()).toMatchObject({ imagesDropped: 1, fallbacks: 0, freezes: 0 });
    expect(await bed.platform.logs("a")).toContain("thaw: generation 2 cannot be used and is dropped");
    await until(() => imagesOnDisk().length === 2);
  });

  it("without any that can be used it is booted, says why, and generation 0 is made anew", async () => {
    await ready();
    for (const name of imagesOnDisk()) await rm(join(bed.dataDir, "images", name, "manifest.json"));
    await restart();
    expect((await thaw()).start).toMatchObject({
      kind: "boot",
      fallback: expect.stringContaining("its manifest cannot be read"),
    });
    await until(() => bed.platform.get("a").image.state === "ready");
    expect(generations()).toEqual([0]);
    await until(() => imagesOnDisk().length === 1);
  });

  it("without freezing, they stay for the next server that can", async () => {
    await ready();
    await restart({ canFreeze: false });
    expect(bed.platform.images("a")).toEqual([]);
    await restart({});
    await bed.platform.waitReady("a");
    expect(generations()).toEqual([0, 1, 2]);
  });
});
