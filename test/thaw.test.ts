/** Freezing and thawing: state, independence of clones, every loader with every kind of husk, generations, images on disk. */
import { cpSync, existsSync, readdirSync, readFileSync, readlinkSync, renameSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import { describe, expect, it } from "vitest";
import { type Image, LOADERS, type Loader, type ThawOptions } from "../src/engine/index.js";
import { decodeManifest, imageFiles } from "../src/image/index.js";
import { ABI_CONSTANTS } from "../src/linux/abi.js";
import { descendants } from "./support/processes.js";
import { call, hostPid, LANGUAGES, mappingCount, useWorld, World } from "./support/world.js";

const OBJECTS = 5000;
/** Loaders that husks can be parked with. */
const PARKED: readonly Loader[] = ["lazy", "eager", "splice"];
const world = useWorld();

/** Those that were compiled and handed over, by their inodes. */
function programsOfKeeper(): string[] {
  const keepers = descendants(process.pid).filter(({ parent }) => parent === process.pid);
  expect(keepers).toHaveLength(1);
  const dir = `/proc/${keepers[0]?.pid}/fd`;
  const files = readdirSync(dir).map((fd) => `${readlinkSync(join(dir, fd))} ${statSync(join(dir, fd)).ino}`);
  return files.filter((file) => file.startsWith("/memfd:thaw-program")).sort();
}

interface Counter {
  readonly count: number;
  readonly objects: number;
  readonly last: string;
  readonly pid: number;
}

/** A function that has counted to three and holds many objects. */
function counted(language: (typeof LANGUAGES)[number]): Promise<Image> {
  return world.imageAfter(language, ["counter.fill", OBJECTS], "counter.next", "counter.next", "counter.next");
}

/** Of each mapping of a process, by smaps. */
function anonymousPages(pid: number): { start: bigint; name: string; pages: number }[] {
  const mapping = /^([0-9a-f]+)-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)\n(?:(?![0-9a-f]+-).*\n)*?Anonymous: +(\d+) kB/gm;
  return [...readFileSync(`/proc/${pid}/smaps`, "utf8").matchAll(mapping)].map(([, start, name = "", kilobytes]) => ({
    start: BigInt(`0x${start}`),
    name,
    pages: Number(kilobytes) / 4,
  }));
}

const sum = (mappings: readonly { pages: number }[]): number => mappings.reduce((total, { pages }) => total + pages, 0);

/** Two clones at once, each with the state of the freeze and blind to what the other writes. */
async function expectTwoClones(image: Image, options: ThawOptions): Promise<string[]> {
  const clones = [await world.engine.thaw(image, options), await world.engine.thaw(image, options)];
  try {
    const [first, second] = clones as [(typeof clones)[0], (typeof clones)[0]];
    expect(await call(first, "counter.next")).toBe(4);
    expect(await call(first, "counter.next")).toBe(5);
    expect(await call(second, "counter.next")).toBe(4);
    expect(await call(first, "counter.fill", OBJECTS + 7)).toBe(OBJECTS + 7);
    const { pid, ...rest } = await call<Counter>(second, "counter.read");
    expect(rest).toEqual({ count: 4, objects: OBJECTS, last: `object ${OBJECTS - 1}` });
    expect(pid).not.toBe((await call<Counter>(first, "counter.read")).pid);
    return clones.map((clone) => `${clone.start.kind} ${clone.start.loader} ${clone.start.husk} ${clone.start.generation}`);
  } finally {
    for (const clone of clones) await clone.dispose();
  }
}

describe.each(LANGUAGES)("a thawed %s function", (language) => {
  it("has the state of the freeze, with every loader and every husk", async () => {
    const { engine } = world;
    const image = await counted(language);
    for (const loader of LOADERS) {
      expect(await expectTwoClones(image, { loader, husk: "fresh" })).toEqual(Array(2).fill(`thaw ${loader} fresh 0`));
      engine.pool({ generic: 2 });
      await engine.poolsFull(20_000);
      expect(await expectTwoClones(image, { loader })).toEqual(Array(2).fill(`thaw ${loader} generic 0`));
      engine.pool({ generic: 0 });
      engine.park(image, "runtime", 2, loader);
      await engine.poolsFull(20_000);
      expect(await expectTwoClones(image, { loader })).toEqual(Array(2).fill(`thaw ${loader} runtime 0`));
      engine.park(image, "runtime", 0, loader);
      if (!PARKED.includes(loader)) continue;
      for (const level of ["image", "prefaulted"] as const) {
        engine.park(image, level, 2, loader);
        await engine.poolsFull(20_000);
        expect(await expectTwoClones(image, { loader, husk: "parked" })).toEqual(Array(2).fill(`parked ${loader} ${level} 0`));
        engine.park(image, level, 0, loader);
      }
    }
    await engine.removeImage(image);
  });

  it("leaves the frozen instance going on, apart from its clones", async () => {
    const instance = await world.boot(language);
    await call(instance, "counter.fill", OBJECTS);
    expect(await call(instance, "counter.next")).toBe(1);
    const image = await instance.freeze();
    expect(await call(instance, "counter.next")).toBe(2);
    await world.thawed(image, async (clone) => {
      expect(await call(clone, "counter.next")).toBe(2);
      expect(await call(clone, "counter.next")).toBe(3);
      expect(await call(instance, "counter.next")).toBe(3);
      expect(await call<Counter>(clone, "counter.read")).toMatchObject({ count: 3, objects: OBJECTS });
    });
    expect(await call<Counter>(instance, "counter.read")).toMatchObject({ count: 3, objects: OBJECTS });
    expect(instance.served).toBe(5);
    await instance.dispose();
  });

  it("has few pages of the husk that it was, and of its stack none from calls that have returned", async () => {
    const image = await counted(language);
    const expectFew = async (options: ThawOptions) => {
      const clone = await world.engine.thaw(image, options);
      try {
        expect(await call(clone, "counter.next")).toBe(4);
        const pages = anonymousPages(hostPid(clone));
        expect(
          sum(pages.filter(({ start }) => start >= ABI_CONSTANTS.HUSK_ZONE_START && start < ABI_CONSTANTS.HUSK_ZONE_END)),
        ).toBeLessThanOrEqual(8);
        expect(sum(pages.filter(({ name }) => name === "[stack]"))).toBeLessThanOrEqual(6);
      } finally {
        await clone.dispose();
      }
    };
    await expectFew({ husk: "fresh" });
    for (const level of ["runtime", "image"] as const) {
      world.engine.park(image, level, 1);
      await world.engine.poolsFull(20_000);
      await expectFew(level === "image" ? { husk: "parked" } : {});
      world.engine.park(image, level, 0);
    }
  });

  it("ends with the freeze when that was asked for", async () => {
    const instance = await world.boot(language);
    await call(instance, "counter.next");
    const pid = hostPid(instance);
    const image = await instance.freeze({ then: "end" });
    expect(instance.alive).toBe(false);
    expect(existsSync(`/proc/${pid}`)).toBe(false);
    await world.thawed(image, async (clone) => expect(await call(clone, "counter.next")).toBe(2));
  });

  it("can be frozen again and again, without more mappings each time", async () => {
    let image = await counted(language);
    const regions: number[] = [];
    const mappings: number[] = [];
    for (let generation = 0; generation <= 4; generation++) {
      expect(image.generation).toBe(generation);
      expect(image.heat).toBe(4 + 2 * generation);
      regions.push(decodeManifest(readFileSync(imageFiles(image.dir).manifest), image.dir).facts.regions.length);
      const clone = await world.engine.thaw(image);
      expect(await call(clone, "counter.next")).toBe(4 + generation);
      mappings.push(mappingCount(hostPid(clone)));
      expect(await call<Counter>(clone, "counter.read")).toMatchObject({ objects: OBJECTS, last: `object ${OBJECTS - 1}` });
      image = await clone.freeze({ then: "end" });
    }
    // A thaw may split what a boot had in one piece; the generations after it must not.
    const [first = 0, second = 0, ...later] = regions;
    expect(second).toBeLessThanOrEqual(first * 1.15);
    for (const count of later) expect(count).toBeLessThanOrEqual(second + 6);
    const [, earlyMappings = 0] = mappings;
    expect(mappings.at(-1)).toBeLessThanOrEqual(earlyMappings + 6);
  });

  it("records what first requests touch, and copies what two of them wrote from then on", async () => {
    const image = await counted(language);
    for (let recording = 0; recording < 2; recording++) {
      expect(existsSync(imageFiles(image.dir).workingSet)).toBe(recording > 0);
      await world.thawed(image, async (clone) => {
        expect(clone.start.prefetchedPages).toBe(0);
        expect(await call(clone, "counter.next")).toBe(4);
        // The second request waits for the recording.
        expect(await call(clone, "counter.next")).toBe(5);
      });
    }
    expect(existsSync(imageFiles(image.dir).workingSet)).toBe(true);
    // What three recordings are too few for is recorded further.
    while ((await world.engine.inspect(image)).workingSet?.stable === false)
      await world.thawed(image, async (clone) => expect(await call(clone, "counter.next")).toBe(4));
    await world.thawed(image, async (clone) => {
      expect(clone.start.prefetchedPages).toBeGreaterThan(10);
      expect(await call(clone, "counter.next")).toBe(4);
      const pages = await clone.pages();
      expect(pages.written).toBeGreaterThan(0);
      expect(pages.image + pages.file).toBeGreaterThan(pages.written);
      const { privateBytes, sharedBytes } = await clone.memory();
      expect(privateBytes).toBeGreaterThanOrEqual(pages.written * 4096);
      expect(privateBytes + sharedBytes).toBeGreaterThanOrEqual((pages.written + pages.image) * 4096);
    });
  });

  it("tells its pages also when its image was removed while it lives", async () => {
    const image = await counted(language);
    await world.thawed(image, async (clone) => {
      expect(await call(clone, "counter.next")).toBe(4);
      const before = await clone.pages();
      await world.engine.removeImage(image);
      expect((await clone.pages()).image).toBeGreaterThan(before.image / 2);
    });
  });

  it("takes a request that was queued before it ran", async () => {
    const image = await counted(language);
    const clone = await world.engine.thaw(image, { early: true, husk: "fresh" });
    expect(await call(clone, "counter.next")).toBe(4);
    expect(clone.start.phases.length).toBeGreaterThan(3);
    expect(clone.start.us).toBeGreaterThan(0);
    await clone.dispose();
  });

  it("goes on when a request is refused because its context is too large", async () => {
    const instance = await world.boot(language);
    expect(await call(instance, "counter.next")).toBe(1);
    const clientContext = JSON.stringify(Array(15_500).fill(""));
    await expect(instance.invoke("{}", { clientContext })).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    expect(await call(instance, "counter.next")).toBe(2);
    await instance.dispose();
  });
});

describe("an image", () => {
  it("is opened by the next engine, and thaws there", async () => {
    const image = await counted("node");
    await world.reopen();
    const opened = await world.engine.openImage(image.dir);
    expect(opened).toEqual(image);
    // No program is kept: each server makes its own, for the husk that it has.
    const kept = Object.values(imageFiles(image.dir)).map((path) => basename(path));
    for (const file of readdirSync(image.dir)) expect(kept).toContain(file);
    await world.thawed(opened, async (clone) => {
      expect(await call(clone, "counter.next")).toBe(4);
      // The bytes of its pages were checked at this first use.
      expect(clone.start.phases.map(({ name }) => name)).toContain("verify");
    });
    await world.thawed(opened, async (clone) => {
      expect(clone.start.phases.map(({ name }) => name)).not.toContain("verify");
    });
  });

  it("that a server opens when it begins can be started from meanwhile", async () => {
    const image = await counted("node");
    await world.reopen();
    world.engine.rememberImage(image);
    const [clone] = await Promise.all([
      world.engine.thaw(image),
      world.engine.openImage(image.dir),
      world.engine.openImage(image.dir),
    ]);
    expect(await call(clone, "counter.next")).toBe(4);
    await clone.dispose();
  });

  it("that was prepared is neither checked nor compiled by its first start", async () => {
    const image = await counted("node");
    // What is not known of an image cannot be prepared: it is recorded.
    for (let start = 0, recording = true; recording && start < 6; start++) {
      await world.thawed(image, async (clone) => {
        await call(clone, "counter.next");
        recording = clone.start.recording === true;
      });
    }
    await world.reopen();
    const opened = await world.engine.openImage(image.dir);
    await world.engine.prepareImage(opened);
    const programs = programsOfKeeper();
    expect(programs.length).toBeGreaterThan(2);
    await world.thawed(opened, async (clone) => {
      expect(await call(clone, "counter.next")).toBe(4);
      expect(clone.start.phases.map(({ name }) => name)).not.toContain("verify");
      expect(programsOfKeeper()).toEqual(programs);
    });
  });

  it("is of no use to an engine that did not open it", async () => {
    const image = await counted("python");
    const other = new World();
    try {
      await other.open();
      await expect(other.engine.thaw(image)).rejects.toMatchObject({ code: "IMAGE_NOT_READY" });
    } finally {
      await other.end();
    }
  });

  it("is removed with its pools and its directory", async () => {
    const { engine } = world;
    const image = await counted("python");
    engine.park(image, "prefaulted", 1);
    await engine.poolsFull(20_000);
    expect(engine.stats().husks.prefaulted).toBe(1);
    const clone = await engine.thaw(image, { husk: "fresh" });
    await engine.removeImage(image);
    expect(engine.stats().husks.prefaulted).toBe(0);
    expect(existsSync(image.dir)).toBe(false);
    // Who runs already keeps the pages that it maps, and can be frozen with them.
    expect(await call(clone, "counter.next")).toBe(4);
    expect(await call<Counter>(clone, "counter.read")).toMatchObject({ objects: OBJECTS });
    const next = await clone.freeze({ then: "end" });
    expect(next.generation).toBe(1);
    await world.thawed(next, async (one) => {
      expect(await call(one, "counter.next")).toBe(5);
      expect(await call<Counter>(one, "counter.read")).toMatchObject({ objects: OBJECTS, last: `object ${OBJECTS - 1}` });
    });
    await expect(engine.thaw(image)).rejects.toMatchObject({ code: "IMAGE_NOT_READY" });
  });

  it("leaves nothing on the disk when it cannot be opened after its freeze", async () => {
    const spec = world.spec("node");
    const codeDir = join(world.dataDir, "code");
    cpSync(spec.codeDir, codeDir, { recursive: true });
    const instance = await world.engine.boot({ ...spec, codeDir });
    const before = world.imageNames();
    renameSync(codeDir, join(world.dataDir, "moved"));
    await expect(instance.freeze()).rejects.toMatchObject({ code: "CODE_INVALID" });
    expect(world.imageNames()).toEqual(before);
    expect(await call(instance, "counter.next")).toBe(1);
    await instance.dispose();
  });

  it("goes where the caller says", async () => {
    const instance = await world.boot("python");
    const dir = join(world.dataDir, "elsewhere");
    const image = await instance.freeze({ dir, then: "end" });
    expect(image.dir).toBe(dir);
    await world.thawed(image, async (clone) => expect(await call(clone, "counter.next")).toBe(1));
    await world.engine.removeImage(image);
    expect(existsSync(dir)).toBe(false);
  });
});

describe("a thaw that prefers a parked husk", () => {
  const unavailable = (image: Image, loader: Loader) => world.engine.thaw(image, { husk: "parked", loader });

  it("fails by name when none is parked for that image and loader", async () => {
    const image = await counted("python");
    await expect(unavailable(image, "lazy")).rejects.toMatchObject({
      code: "PREFERENCE_UNAVAILABLE",
      message:
        'no husk is parked for function "fixtures-python" with loader lazy. none is configured. start the server with --park, or ask for another kind of start',
    });
    world.engine.park(image, "image", 1, "eager");
    await world.engine.poolsFull(20_000);
    await expect(unavailable(image, "lazy")).rejects.toMatchObject({ code: "PREFERENCE_UNAVAILABLE" });
    await world.thawed(image, async (clone) => expect(clone.start.kind).toBe("parked"), { husk: "parked", loader: "eager" });
    world.engine.park(image, "image", 0, "eager");
  });

  it("waits for the pool to refill when that was asked for, and reports the wait", async () => {
    const image = await counted("python");
    world.engine.park(image, "image", 1);
    const clone = await world.engine.thaw(image, { husk: "parked", waitMs: 20_000 });
    expect(clone.start.kind).toBe("parked");
    expect(clone.start.waitUs).toBeGreaterThan(0);
    expect(await call(clone, "counter.next")).toBe(4);
    await clone.dispose();
    world.engine.park(image, "image", 0);
  });
});
