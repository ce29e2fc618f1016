/**
 * Recording on the real kernel: what a function touches is known, page by page, and the recorded set must be that. The functions hold
 * arrays of 16 MiB and touch the pages that the event names, spread so that the kernel's fault-around would map many more.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { Image, Instance, StartResult } from "../src/engine/index.js";
import {
  decodeManifest,
  decodeWorkingSet,
  type Facts,
  imageFiles,
  joinRuns,
  type PageRun,
  prefetchRanges,
  runPages,
  SortedRuns,
  storedPages,
  type WorkingSet,
} from "../src/image/index.js";
import { evictPatiently } from "../src/lab/cold-start.js";
import { residentPages } from "../src/lab/page-cache.js";
import { ROOT, useServers } from "./support/server.js";
import { LANGUAGES, type Language, useWorld } from "./support/world.js";

const ARRAYS = 6;
const ARRAY_PAGES = 4096;

const SOURCES: Readonly<Record<Language, readonly [file: string, text: string]>> = {
  node: [
    "index.js",
    `const arrays = Array.from({ length: ${ARRAYS} }, (_, index) => new Uint8Array(${ARRAY_PAGES} * 4096).fill(index + 1));
exports.handler = async ({ array, read, write }) => {
  let sum = 0;
  for (let step = 0; step < read; step++) sum += arrays[array][((step * 2654435761) % ${ARRAY_PAGES}) * 4096 + 2048];
  for (let step = 0; step < write; step++) arrays[array][((step * 40503 + 7) % ${ARRAY_PAGES}) * 4096 + 2048] = 99;
  return sum;
};
`,
  ],
  python: [
    "index.py",
    `arrays = [bytearray(bytes([index + 1]) * ${ARRAY_PAGES * 4096}) for index in range(${ARRAYS})]
def handler(event, context):
    one = arrays[event["array"]]
    total = 0
    for step in range(event["read"]):
        total += one[((step * 2654435761) % ${ARRAY_PAGES}) * 4096 + 2048]
    for step in range(event["write"]):
        one[((step * 40503 + 7) % ${ARRAY_PAGES}) * 4096 + 2048] = 99
    return total
`,
  ],
};

interface Event {
  readonly array: number;
  readonly read: number;
  readonly write: number;
  /** Tells it from others that touch the same. */
  readonly id?: number;
}

const world = useWorld();

/** The pages that an event touches: both sequences visit every page once before they repeat. */
async function imageOf(language: Language, warm: Event): Promise<Image> {
  const dir = join(world.dataDir, `arrays-${language}`);
  mkdirSync(dir, { recursive: true });
  const [file, text] = SOURCES[language];
  writeFileSync(join(dir, file), text);
  const instance = await world.boot(language, { codeDir: dir, name: `arrays-${language}` });
  await ask(instance, warm);
  return instance.freeze({ then: "end" });
}

async function ask(instance: Instance, event: Event): Promise<void> {
  const result = await instance.invoke(JSON.stringify(event));
  expect(result.functionError, result.payload.toString()).toBeUndefined();
  expect(JSON.parse(result.payload.toString())).toBe(event.read * (event.array + 1));
}

/** Thaws, asks once, and tells how it started once that was counted. */
async function start(image: Image, event: Event): Promise<StartResult> {
  return world.thawed(image, async (clone) => {
    await ask(clone, event);
    await clone.faults();
    return clone.start;
  });
}

async function recordUntilStable(image: Image, event: Event, varied = false): Promise<number> {
  for (let starts = 1; ; starts++) {
    expect((await start(image, varied ? { ...event, id: starts } : event)).recording).toBe(true);
    if ((await world.engine.inspect(image)).workingSet?.stable === true) return starts;
    expect(starts).toBeLessThan(5);
  }
}

function factsOf(image: Image): Facts {
  return decodeManifest(readFileSync(imageFiles(image.dir).manifest), image.dir).facts;
}

function setOf(image: Image): WorkingSet {
  const set = decodeWorkingSet(readFileSync(imageFiles(image.dir).workingSet));
  if (set === undefined) throw new Error("no working set was stored");
  return set;
}

function pagesOf(runs: readonly PageRun[]): Set<bigint> {
  return new Set(
    runs.flatMap(({ address, pages }) => Array.from({ length: pages }, (_, page) => address + BigInt(page) * 4096n)),
  );
}

/** Pages of a list that lie in memory which holds at least one of the arrays. */
function inArrays(facts: Facts, runs: readonly PageRun[]): PageRun[] {
  return facts.regions
    .filter((region) => region.kind !== "file" && storedPages(region) >= ARRAY_PAGES)
    .flatMap(({ start, end }) => new SortedRuns(runs).within(start, end));
}

/** So many faults outside its set a start that fits may have: a few dozen are noise, and so is a tenth of the set. How many there are depends on the interpreter. */
const faultsThatFit = (image: Image): number => Math.max(64, runPages(setOf(image).runs) / 10);

const QUIET: Event = { array: 0, read: 0, write: 0 };
const READ = 600;
const WRITE = 250;
/** Fewer than may lie outside a set that fits. */
const OWN = 40;

describe.each(LANGUAGES)("the working set of a %s function", (language) => {
  it("has the pages that it touches and no others, those that it writes apart, and is stable after a few recordings", async () => {
    const image = await imageOf(language, QUIET);
    const facts = factsOf(image);
    const event: Event = { array: 2, read: READ, write: WRITE };
    const written = new Set(Array.from({ length: WRITE }, (_, step) => (step * 40503 + 7) % ARRAY_PAGES));
    const onlyRead = Array.from({ length: READ }, (_, step) => (step * 2654435761) % ARRAY_PAGES).filter(
      (page) => !written.has(page),
    );
    const first = await start(image, event);
    expect(first).toMatchObject({ recording: true, prefetchedPages: 0 });
    // Everything came by demand, from memory or from disk.
    expect((first.faults?.minor ?? 0) + (first.faults?.major ?? 0)).toBeGreaterThan(READ + WRITE);
    await recordUntilStable(image, event);
    const set = setOf(image);
    expect(set).toMatchObject({ exact: true, stable: true, order: "address" });
    // Exactly what another event does not touch. What else lies in those mappings (the heap of the interpreter) is the few that remain.
    const quiet = await imageOf(language, QUIET);
    await recordUntilStable(quiet, QUIET);
    const base = inArrays(factsOf(quiet), [...setOf(quiet).written, ...setOf(quiet).read]);
    const others = runPages(joinRuns(base, 0));
    const counts = [runPages(inArrays(facts, set.written)), runPages(inArrays(facts, set.read))] as const;
    expect(counts[0]).toBeGreaterThanOrEqual(written.size);
    expect(counts[1]).toBeGreaterThanOrEqual(onlyRead.length);
    expect(counts[0] + counts[1]).toBeLessThanOrEqual((written.size + onlyRead.length) * 1.03 + others);
    // From then on nothing is recorded, and what is written is copied ahead.
    const next = await start(image, event);
    expect(next.recording).toBeUndefined();
    expect(next.prefetchedPages).toBe(runPages(set.written));
    expect(next.faultsOutside).toBeLessThanOrEqual(faultsThatFit(image));
    await world.engine.removeImage(image);
    await world.engine.removeImage(quiet);
  });

  it("covers the interpreter's files, also where a pooled husk had mapped them ahead", async () => {
    const image = await imageOf(language, QUIET);
    await recordUntilStable(image, QUIET);
    const alone = setOf(image);
    const files = (set: WorkingSet): PageRun[] =>
      factsOf(image)
        .regions.filter(({ kind }) => kind === "file")
        .flatMap(({ start, end }) => new SortedRuns([...set.read, ...set.written]).within(start, end));
    expect(runPages(files(alone))).toBeGreaterThan(100);
    const ranges = prefetchRanges(factsOf(image), alone);
    expect(ranges.filter(({ file }) => file.startsWith("/")).length).toBeGreaterThan(5);
    expect(ranges[0]?.file).toBe("pages");
    // An image of the same interpreter, recorded in husks that have this set mapped.
    const other = await imageOf(language, QUIET);
    world.engine.park(image, "runtime", 3);
    await world.engine.poolsFull(20_000);
    const first = await start(other, QUIET);
    expect(first).toMatchObject({ recording: true, husk: "runtime" });
    await recordUntilStable(other, QUIET);
    const size = runPages(files(alone));
    // What the interpreter's other threads did at the time is in one recording and not in the next: 32 of 480 pages were seen.
    const known = pagesOf(files(alone));
    expect([...pagesOf(files(setOf(other)))].filter((page) => !known.has(page)).length).toBeLessThan(size * 0.15);
    expect(runPages(files(setOf(other)))).toBeGreaterThan(size * 0.8);
    expect(runPages(files(setOf(other)))).toBeLessThan(size * 1.2);
    world.engine.park(image, "runtime", 0);
    await world.engine.removeImage(other);
    await world.engine.removeImage(image);
  });

  it("that no longer fits is recorded anew, and fits again", async () => {
    const image = await imageOf(language, QUIET);
    // Reads alone may cost next to nothing: where the page cache holds 2 MiB in one piece, one fault maps them all.
    const before: Event = { array: 0, read: READ, write: 2 * WRITE };
    const after: Event = { array: 4, read: READ, write: 2 * WRITE };
    await recordUntilStable(image, before, true);
    const few = faultsThatFit(image);
    expect(few).toBeLessThan(2 * WRITE);
    for (let index = 0; index < 9; index++) expect((await start(image, before)).faultsOutside).toBeLessThanOrEqual(few);
    let misfits = 0;
    let starts = 0;
    for (let last = await start(image, after); last.recording === undefined; last = await start(image, after)) {
      if ((last.faultsOutside ?? 0) >= 2 * WRITE) misfits++;
      // One start in eight is looked at closely, then each, until half of the last eight did not fit.
      expect(++starts).toBeLessThan(16);
    }
    expect(misfits).toBe(4);
    // The first of the new recordings has been made; the old set serves until there are two.
    let more = 1;
    while ((await start(image, after)).recording === true) expect(++more).toBeLessThanOrEqual(5);
    expect(more).toBeGreaterThanOrEqual(2);
    for (let index = 0; index < 9; index++) {
      const fitting = await start(image, after);
      expect(fitting.recording).toBeUndefined();
      expect(fitting.faultsOutside).toBeLessThanOrEqual(faultsThatFit(image));
    }
    expect((await world.engine.inspect(image)).workingSet).toMatchObject({ renewals: 1, stable: true, recordings: more });
    await world.engine.removeImage(image);
  });

  it("that was recorded with one event alone has no page of its own any more, once starts have others", async () => {
    const image = await imageOf(language, QUIET);
    // No count of faults tells: each event writes less elsewhere than a set may lack.
    const writing = (array: number): Event => ({ array, read: 0, write: OWN });
    await recordUntilStable(image, writing(0));
    const narrow = await start(image, writing(0));
    for (let index = 0; index < 4; index++) {
      const { recording, prefetchedPages, faultsOutside } = await start(image, writing(1 + index));
      expect([recording, prefetchedPages]).toEqual([undefined, narrow.prefetchedPages]);
      expect(faultsOutside).toBeLessThanOrEqual(faultsThatFit(image));
    }
    let recorded = 0;
    while ((await start(image, writing(recorded % ARRAYS))).recording === true) expect(++recorded).toBeLessThanOrEqual(8);
    expect(recorded).toBeGreaterThanOrEqual(2);
    const wide = await start(image, writing(0));
    expect(wide.recording).toBeUndefined();
    expect(wide.prefetchedPages).toBeLessThan(narrow.prefetchedPages - OWN / 2);
    expect((await world.engine.inspect(image)).workingSet).toMatchObject({ renewals: 1, stable: true });
    await world.engine.removeImage(image);
  });
});

describe.each(LANGUAGES)("a %s function that reads other pages with each request", (language) => {
  it("has its image read in order before it starts, where the disk has to bring that, and not where memory has it", async () => {
    const image = await imageOf(language, QUIET);
    const reading = (array: number): Event => ({ array, read: ARRAY_PAGES / 2, write: 0 });
    for (let recorded = 0; (await start(image, reading(recorded))).recording === true; recorded++)
      expect(recorded).toBeLessThan(ARRAYS - 1);
    const { pages } = imageFiles(image.dir);
    const stored = factsOf(image).regions.reduce((sum, region) => sum + storedPages(region), 0);
    expect((await start(image, reading(ARRAYS - 1))).coldPages).toBe(0);
    // What was there a moment ago is not asked for. By then its bytes have been gathered, too, behind the end of the last instance, for which all of them are read.
    await sleep(1_500);
    await evictPatiently([pages]);
    // All who come meanwhile wait for the same reading.
    const [cold, other] = await Promise.all([start(image, reading(ARRAYS - 1)), start(image, reading(ARRAYS - 2))]);
    expect([cold.phases[0]?.name, other.phases[0]?.name]).toEqual(["read", "read"]);
    expect(Math.max(cold.coldPages ?? 0, other.coldPages ?? 0)).toBeGreaterThan(stored * 0.8);
    expect((await residentPages([pages]))[0]).toBeGreaterThanOrEqual(stored);
    const warm = await start(image, reading(ARRAYS - 1));
    expect([warm.coldPages, warm.faults?.major]).toEqual([0, 0]);
    await world.engine.removeImage(image);
  });
});

describe.each(LANGUAGES)("the working set of a %s function that was rehearsed", (language) => {
  it("spares its first requests the recording, and is confirmed by them where they touch little else", async () => {
    const image = await imageOf(language, QUIET);
    await world.engine.prepareImage(image, { record: "rehearsal" });
    expect((await world.engine.inspect(image)).workingSet).toMatchObject({ stable: true, rehearsed: true });
    for (let starts = 0; starts < 3; starts++) {
      const { recording, prefetchedPages, faultsOutside } = await start(image, QUIET);
      expect([recording, prefetchedPages > 100, (faultsOutside ?? 1000) < 64]).toEqual([undefined, true, true]);
    }
    // On the disk a moment later.
    const inspected = async () => (await world.engine.inspect(image)).workingSet;
    await expect.poll(inspected, { timeout: 10_000 }).toMatchObject({ rehearsed: false, renewals: 0 });
    // Once it is known nothing is rehearsed, nor recorded.
    await world.engine.prepareImage(image, { record: () => "no JSON" });
    await world.engine.removeImage(image);
  });

  it("is recorded by the next ones where the first touches more", async () => {
    const image = await imageOf(language, QUIET);
    await world.engine.prepareImage(image, { record: "rehearsal" });
    const event: Event = { array: 2, read: READ, write: WRITE };
    expect((await start(image, event)).recording).toBeUndefined();
    // What was rehearsed serves until there are two recordings.
    for (const rehearsed of [true, false]) {
      expect((await start(image, event)).recording).toBe(true);
      expect((await world.engine.inspect(image)).workingSet).toMatchObject({ rehearsed });
    }
    expect(runPages(inArrays(factsOf(image), setOf(image).written))).toBeGreaterThanOrEqual(WRITE);
    await world.engine.removeImage(image);
  });

  it("serves husks, too, that were parked before", async () => {
    const image = await imageOf(language, QUIET);
    world.engine.park(image, "prefaulted", 2);
    await world.engine.poolsFull(20_000);
    await world.engine.prepareImage(image, { record: "rehearsal" });
    await world.engine.poolsFull(20_000);
    for (let starts = 0; starts < 2; starts++) {
      const clone = await world.engine.thaw(image, { husk: "parked" });
      await ask(clone, QUIET);
      expect(clone.start.recording).toBeUndefined();
      expect(clone.start.prefetchedPages).toBeGreaterThan(100);
      await clone.dispose();
    }
    world.engine.park(image, "prefaulted", 0);
    await world.engine.removeImage(image);
  });

  it("is not needed where requests are given that may be made", async () => {
    const image = await imageOf(language, QUIET);
    const event: Event = { array: 2, read: READ, write: WRITE };
    await world.engine.prepareImage(image, { record: () => JSON.stringify(event) });
    const set = setOf(image);
    expect(set).toMatchObject({ stable: true });
    expect(set.rehearsed).toBeUndefined();
    expect((await start(image, event)).recording).toBeUndefined();
    expect(runPages(inArrays(factsOf(image), set.written))).toBeGreaterThanOrEqual(WRITE);
    await world.engine.removeImage(image);
  });
});

describe("on a kernel that cannot switch its fault-around off", () => {
  useServers();

  it("a set is recorded all the same, says that it is not exact, and is used", async () => {
    const dir = join(world.dataDir, "inexact");
    mkdirSync(dir, { recursive: true });
    writeFileSync(join(dir, "index.py"), SOURCES.python[1]);
    const spec = { ...world.spec("python"), codeDir: dir, name: "inexact" };
    const script = join(dir, "run.mjs");
    writeFileSync(
      script,
      `import { openEngine } from ${JSON.stringify(join(ROOT, "dist/engine/index.js"))};
const warnings = [];
const quiet = () => undefined;
const log = { debug: quiet, info: quiet, warn: (_details, text) => warnings.push(text), error: quiet };
const engine = await openEngine({ dataDir: ${JSON.stringify(join(dir, "data"))}, log });
try {
  const booted = await engine.boot(${JSON.stringify(spec)});
  const image = await booted.freeze({ then: "end" });
  for (let start = 0; start < 5; start++) {
    const clone = await engine.thaw(image);
    await clone.invoke(JSON.stringify({ array: 0, read: 100, write: 100 }));
    await clone.dispose();
  }
  const clone = await engine.thaw(image);
  console.log(JSON.stringify({ warnings, set: (await engine.inspect(image)).workingSet, start: clone.start }));
} finally {
  await engine.close();
}
`,
    );
    const hidden = 'mount --bind /dev/null /dev/userfaultfd && exec "$@"';
    const out = execFileSync("unshare", ["--mount", "sh", "-c", hidden, "sh", process.execPath, script], { timeout: 50_000 });
    const { warnings, set, start: used } = JSON.parse(out.toString());
    expect(warnings).toEqual(["working sets cannot be recorded exactly: pages beside those that a function touches count too"]);
    expect(set).toMatchObject({ exact: false });
    expect(set.recordings).toBeGreaterThanOrEqual(2);
    // Copies are not inflated, only what is shared.
    expect(used.prefetchedPages).toBeGreaterThanOrEqual(100);
    expect(used.prefetchedPages).toBeLessThan(600);
  });
});

describe("memory in thousands of pieces", () => {
  it("is frozen and recorded once, not twice", async () => {
    const dir = join(world.dataDir, "pieces");
    mkdirSync(dir, { recursive: true });
    // The kernel reports ranges in lots; each page that was written is one.
    const source = `const memory = new Uint8Array(${ARRAY_PAGES} * 4096);
for (let page = 0; page < 3900; page += 2) memory[page * 4096] = 1;
exports.handler = async ({ array }) => { let sum = 0; for (let page = 0; page < 3900; page += 2) sum += memory[page * 4096]++; return sum * 0; };
`;
    writeFileSync(join(dir, "index.js"), source);
    const instance = await world.boot("node", { codeDir: dir, name: "pieces" });
    const image = await instance.freeze({ then: "end" });
    for (const { runs = [] } of factsOf(image).regions)
      for (let index = 2; index < runs.length; index += 2)
        expect(runs[index]).toBeGreaterThanOrEqual((runs[index - 2] ?? 0) + (runs[index - 1] ?? 0));
    // Reads all pages against the digest.
    await world.engine.inspect(image);
    await start(image, QUIET);
    for (const { written, read } of setOf(image).runs) expect(written + read).toBe(1);
    await world.engine.removeImage(image);
  });
});

describe("an instance that was recorded", () => {
  it("has nothing registered any more and can be frozen at once", async () => {
    const image = await imageOf("node", QUIET);
    const clone = await world.engine.thaw(image);
    expect(clone.start.recording).toBe(true);
    await ask(clone, { array: 1, read: 10, write: 10 });
    const next = await clone.freeze({ then: "end" });
    expect((await start(next, { array: 1, read: 10, write: 0 })).recording).toBe(true);
    await world.engine.removeImage(next);
    await world.engine.removeImage(image);
  });

  it("is one at a time; those beside it start by what is known", async () => {
    const image = await imageOf("node", QUIET);
    const clones = [await world.engine.thaw(image), await world.engine.thaw(image)];
    expect(clones.map(({ start: { recording } }) => recording)).toEqual([true, undefined]);
    // One that ends without an answer leaves the place to another.
    await clones[0]?.dispose();
    expect((await start(image, QUIET)).recording).toBe(true);
    await clones[1]?.dispose();
    await world.engine.removeImage(image);
  });

  it("leaves the other loaders alone", async () => {
    const image = await imageOf("node", QUIET);
    for (const loader of ["lazy", "eager"] as const)
      await world.thawed(image, async (clone) => expect(clone.start.recording).toBeUndefined(), { loader });
    await world.engine.removeImage(image);
  });
});

describe("what a start took", () => {
  it("counts pages that came from disk as such, with their bytes", async () => {
    const image = await imageOf("node", QUIET);
    await start(image, QUIET);
    execFileSync("python3", [
      "-c",
      "import os,sys\nf=os.open(sys.argv[1],os.O_RDONLY)\nos.fsync(f)\nos.posix_fadvise(f,0,0,os.POSIX_FADV_DONTNEED)",
      imageFiles(image.dir).pages,
    ]);
    const { faults } = await world.thawed(
      image,
      async (clone) => {
        await ask(clone, { array: 3, read: 200, write: 0 });
        await clone.faults();
        return clone.start;
      },
      { loader: "lazy" },
    );
    expect(faults?.major).toBeGreaterThan(0);
    expect(faults?.diskBytes).toBeGreaterThan(200 * 4096);
    await world.engine.removeImage(image);
  });
});

describe("a function whose husks are parked", () => {
  it.each(["image", "prefaulted"] as const)("(%s) is recorded by the first of them", async (level) => {
    const image = await imageOf("python", QUIET);
    const event: Event = { array: 1, read: 300, write: 100 };
    world.engine.park(image, level, 1);
    const parked = async (): Promise<StartResult> => {
      await world.engine.poolsFull(20_000);
      return world.thawed(
        image,
        async (clone) => {
          await ask(clone, event);
          await clone.faults();
          return clone.start;
        },
        { husk: "parked" },
      );
    };
    // The third was made before the second had answered.
    for (const recording of [true, true])
      expect(await parked()).toMatchObject({ kind: "parked", husk: level, prefetchedPages: 0, recording });
    expect(runPages(inArrays(factsOf(image), setOf(image).written))).toBeGreaterThanOrEqual(100);
    await parked();
    const last = await parked();
    expect(last.recording).toBeUndefined();
    expect(last.faultsOutside).toBeLessThan(64);
    if (level === "prefaulted") {
      expect(last.prefetchedPages).toBe(runPages(setOf(image).written));
      expect(last.faults?.minor).toBeLessThan(400);
    }
    world.engine.park(image, level, 0);
    await world.engine.removeImage(image);
  });
});
