/** How pages arrive: every loader gives the same function, REAP records and installs, and a splice start asks the disk ahead. */
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { type Image, type Instance, LOADERS, type Loader, type StartResult, type ThawOptions } from "../src/engine/index.js";
import { decodeManifest, decodeWorkingSet, imageFiles, PAGES, prefetchRanges } from "../src/image/index.js";
import { residentPages } from "../src/lab/page-cache.js";
import { flipBit } from "./support/damage.js";
import { packed } from "./support/packing.js";
import { forgetCached } from "./support/page-cache.js";
import { hasStopped, pagerOf } from "./support/pager.js";
import { descendants } from "./support/processes.js";
import { until } from "./support/wait.js";
import { call, hostPid, LANGUAGES, type Language, useWorld } from "./support/world.js";

const OBJECTS = 5000;
const STARTS = 3;
const BLOCK_MB = 12;
const PAGED: readonly Loader[] = ["reap-lazy", "reap-parallel", "reap-file", "reap"];
const world = useWorld();

/** A function that has counted to three and holds many objects. */
function counted(language: Language): Promise<Image> {
  return world.imageAfter(language, ["counter.fill", OBJECTS], "counter.next", "counter.next", "counter.next");
}

/** A start with one request, and what it says of itself once all was counted. */
function started(image: Image, loader: Loader, step = "counter.next", ...args: unknown[]): Promise<StartResult> {
  return world.thawed(
    image,
    async (clone) => {
      await call(clone, step, ...args);
      if (PAGED.includes(loader)) await until("its faults to be counted", () => clone.start.faultsOutside, 30_000);
      // What its asking the disk found is told last.
      await clone.faults();
      return clone.start;
    },
    { loader },
  );
}

describe.each(LANGUAGES)("a %s function", (language) => {
  it("is the same with every loader, at its first start and at later ones", async () => {
    const image = await counted(language);
    for (const loader of LOADERS)
      for (let round = 0; round < STARTS; round++)
        await world.thawed(
          image,
          async (clone) => {
            expect(clone.start.loader).toBe(loader);
            expect(clone.start.fallback).toBeUndefined();
            expect(await call(clone, "counter.next")).toBe(4);
            expect(await call(clone, "counter.read")).toMatchObject({
              count: 4,
              objects: OBJECTS,
              last: `object ${OBJECTS - 1}`,
            });
            expect(await call(clone, "counter.fill", OBJECTS + 9)).toBe(OBJECTS + 9);
          },
          { loader },
        );
    await world.engine.removeImage(image);
  });

  it("asks for its working set from a cold disk, says how much of it was not cached, and does not wait for it", async () => {
    const image = await counted(language);
    // To be moved, its pages leave the page cache.
    await packed(image, () => started(image, "splice"));
    const start = (
      before: (clone: Instance) => Promise<unknown> = async () => undefined,
      options: ThawOptions = {},
    ): Promise<number | undefined> =>
      world.thawed(
        image,
        async (clone) => {
          await before(clone);
          expect(await call(clone, "counter.next")).toBe(4);
          await clone.faults();
          return clone.start.coldPages;
        },
        options,
      );
    /** No request before somebody has looked: it would bring the pages itself. */
    const looked = (clone: Instance) =>
      until("the disk to be asked", () => (clone.start.coldPages ?? 0) > 0 || undefined, 30_000);
    // The first start behind one that read may be too early to find all of it.
    const found = () => expect.poll(() => start(), { timeout: 30_000 }).toBe(0);
    await found();
    // It was all there a moment ago: only a late answer makes anybody look.
    forgetCached(imageFiles(image.dir).pages);
    expect(await start(looked)).toBeGreaterThan(0);
    await found();
    world.engine.park(image, "image", 1, "splice");
    await world.engine.poolsFull(20_000);
    await found();
    forgetCached(imageFiles(image.dir).pages);
    expect(await start(looked, { husk: "parked" })).toBeGreaterThan(0);
    world.engine.park(image, "image", 0, "splice");
    await found();
    const { pages, manifest, workingSet } = imageFiles(image.dir);
    const set = decodeWorkingSet(readFileSync(workingSet));
    if (set === undefined) throw new Error("no working set was stored");
    const { facts } = decodeManifest(readFileSync(manifest), image.dir);
    const ranges = prefetchRanges(facts, set);
    const wanted = ranges.reduce((sum, { file, bytes }) => sum + (file === PAGES ? bytes : 0), 0) / 4096;
    expect(wanted).toBeGreaterThan(50);
    // Mapped under the paths that they have outside.
    const others = [...new Set(ranges.flatMap(({ file }) => (file === PAGES ? [] : [file])))];
    expect(others.length).toBeGreaterThan(0);
    for (const file of others) readFileSync(file);
    // Until nobody remembers that all of it was there.
    await sleep(1_100);
    forgetCached(pages);
    // What else rests is paged out on some machines, at any time, and is counted, too.
    const resident = await residentPages(others);
    const coldOthers = others.reduce((sum, file, at) => sum + Math.ceil(statSync(file).size / 4096) - (resident[at] ?? 0), 0);
    // The husk itself reads the stack, and may be ahead of who asks. Neither less is read than the set, nor what lies around it.
    let read = 0;
    const asked = await start(async (clone) => {
      await looked(clone);
      await expect.poll(async () => (await residentPages([pages]))[0], { timeout: 30_000 }).toBeGreaterThanOrEqual(wanted);
      read = (await residentPages([pages]))[0] ?? 0;
    });
    expect(asked).toBeGreaterThan(wanted * 0.9);
    expect(asked).toBeLessThanOrEqual(wanted + coldOthers);
    expect(read).toBeLessThan(wanted * 1.2);
    await found();
    world.engine.park(image, "image", 1, "splice");
    await world.engine.poolsFull(20_000);
    // Of an early one nothing is on its way before its request.
    forgetCached(imageFiles(image.dir).pages);
    const slowly = (clone: Instance) =>
      language === "node" ? call(clone, "clocks.sleep", 200) : call(clone, "moving.sleep", 0.2);
    expect(await start(slowly, { husk: "parked", early: true, waitMs: 20_000 })).toBeGreaterThan(0);
    world.engine.park(image, "image", 0, "splice");
    await world.engine.removeImage(image);
  });

  it("is recorded by REAP at its first start, and hardly faults outside what was recorded at the next ones", async () => {
    const image = await counted(language);
    const first = await started(image, "reap");
    expect(first).toMatchObject({ recording: true, prefetchedPages: 0 });
    expect(first.faultsOutside).toBeGreaterThan(100);
    for (const loader of ["reap", "reap-file", "reap-parallel"] as const) {
      const outside: number[] = [];
      for (let round = 0; round < STARTS; round++) {
        const next = await started(image, loader);
        expect(next.recording).toBeUndefined();
        expect(next.prefetchedPages).toBe(first.faultsOutside);
        expect(next.pager?.regions).toBeGreaterThan(10);
        outside.push(next.faultsOutside ?? Number.NaN);
      }
      // The same request again; REAP counts 97 % of the faults gone. On a busy machine V8 collects garbage in one start and not in another.
      expect(Math.min(...outside)).toBeLessThan((first.faultsOutside ?? 0) * 0.1);
    }
    // A collection of garbage may be in the one and not in the other.
    expect((await started(image, "reap-lazy")).faultsOutside).toBeGreaterThan((first.faultsOutside ?? 0) * 0.8);
    await world.engine.removeImage(image);
  });

  it("records anew, and says so, when what was recorded is damaged", async () => {
    const image = await counted(language);
    await started(image, "reap");
    const { reapSet, reapTrace } = imageFiles(image.dir);
    const damages: [string, () => void, string][] = [
      ["a bit of the set", () => flipBit(reapSet, 4096 * 3 + 77), "the checksum of its set does not match"],
      ["the end of the set", () => truncateSync(reapSet, 8192), "its set holds 8192 bytes"],
      ["a bit of the trace", () => flipBit(reapTrace, 130), "its trace is damaged"],
      ["all of the trace", () => writeFileSync(reapTrace, ""), "its trace is damaged"],
      ["the whole set", () => rmSync(reapSet), "its set is missing"],
    ];
    for (const [what, damage, why] of damages) {
      damage();
      const start = await started(image, "reap", "counter.read");
      expect(start.recording, what).toBe(true);
      expect(start.fallback, what).toContain(why);
      expect(await started(image, "reap", "counter.read"), what).not.toHaveProperty("fallback");
    }
    // Without any there is nothing to complain about.
    rmSync(reapTrace);
    expect(await started(image, "reap")).not.toHaveProperty("fallback");
    await world.engine.removeImage(image);
  });
});

it("a recording that cannot be read is told by each start, and none of them leaves it open", async () => {
  const image = await counted("python");
  await started(image, "reap");
  const { reapSet } = imageFiles(image.dir);
  rmSync(reapSet);
  mkdirSync(reapSet);
  const keeper = descendants(process.pid).find(({ parent }) => parent === process.pid);
  const isClosed = (): true | undefined => {
    try {
      const fds = readdirSync(`/proc/${keeper?.pid}/fd`);
      return fds.some((fd) => readlinkSync(`/proc/${keeper?.pid}/fd/${fd}`) === reapSet) ? undefined : true;
    } catch {
      // One was closed while we looked.
      return undefined;
    }
  };
  for (let start = 0; start < 3; start++)
    expect((await started(image, "reap", "counter.read")).fallback).toContain("EISDIR: illegal operation on a directory");
  await until("it to be closed", isClosed);
  await world.engine.removeImage(image);
});

describe.each(["reap-lazy", "reap"] as const)("memory that the pager brings (%s)", (loader) => {
  let image: Image;
  beforeAll(async () => {
    image = await world.imageAfter("python", ["paged.fill", BLOCK_MB]);
  });
  const use = <T>(look: (clone: Instance) => Promise<T>): Promise<T> => world.thawed(image, look, { loader });

  it("is what was frozen, page for page", async () => {
    for (let round = 0; round < 2; round++) await use(async (clone) => expect(await call(clone, "paged.wrong")).toBe(0));
  });

  it("is there for what the process forks, and for what that forks", async () => {
    await use(async (clone) => {
      expect(await call(clone, "paged.forks")).toEqual([0, 0]);
      expect(await call(clone, "paged.executes")).toBe("42");
      expect(await call(clone, "paged.many_forks", 300)).toBe(0);
      expect(await call(clone, "paged.wrong", 600)).toBe(0);
    });
  });

  it("is there for the kernel, in the middle of a system call", async () => {
    await use(async (clone) => expect(await call(clone, "paged.kernel_reads")).toEqual([true, true, true]));
  });

  it("is there for a lock that the kernel takes for a thread that waited for it", async () => {
    const waits = await world.imageAfter("python", "paged.wait_for_lock");
    const get = (clone: Instance) => call(clone, "paged.get_lock");
    expect(await world.thawed(waits, get, { loader })).toEqual([0, 0, 0, 0, 0]);
    await world.engine.removeImage(waits);
  });

  it("is zeros once it was given back, and where it grew", async () => {
    await use(async (clone) => expect(await call(clone, "paged.gives_back")).toEqual([true, 0, 0]));
    await use(async (clone) => expect(await call(clone, "paged.shrinks", 50)).toEqual([true, 0]));
    await use(async (clone) => expect(await call(clone, "paged.grows")).toEqual([true, 0]));
  });

  it("costs the pager little, given back page by page and forked as often as one likes", async () => {
    await use(async (clone) => {
      const { pager } = pagerOf(clone);
      const kib = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pager}/status`, "utf8"))?.[1]);
      const before = kib();
      expect(await call(clone, "paged.gives_back_page_by_page", 60)).toEqual([true, 0]);
      expect(kib() - before).toBeLessThan(1024);
      expect(await call(clone, "paged.ends_children")).toBe(0);
    });
  });

  it("does not wait for ever where the pager has no descriptor left for that of a child: the function is ended, and told why", async () => {
    await use(async (clone) => {
      const { pager } = pagerOf(clone);
      const limit = (soft: string) => execFileSync("prlimit", ["--pid", String(pager), `--nofile=${soft}:`]);
      const [, usual = ""] = /open files +(\d+)/.exec(readFileSync(`/proc/${pager}/limits`, "utf8")) ?? [];
      limit("3");
      try {
        await expect(call(clone, "paged.many_forks", 1)).rejects.toMatchObject({
          message: expect.stringContaining("what happens to its memory cannot be read: Too many open files"),
        });
      } finally {
        limit(usual);
      }
    });
    await use(async (next) => expect(await call(next, "paged.many_forks", 2)).toBe(0));
  });

  it("comes though its image is removed before it has come", async () => {
    for (let round = 0; round < 3; round++) {
      const removed = await world.imageAfter("python", ["paged.fill", 2]);
      if (loader === "reap") await world.thawed(removed, (clone) => call(clone, "paged.wrong"), { loader });
      const clone = await world.engine.thaw(removed, { loader, early: true });
      // Its husk has not asked for any of it yet.
      const removing = world.engine.removeImage(removed);
      expect(await call(clone, "paged.wrong")).toBe(0);
      await removing;
      await clone.dispose();
    }
  });

  it("cannot be frozen, hibernated or parked, and says why", async () => {
    await use(async (clone) => {
      await expect(clone.freeze()).rejects.toMatchObject({ code: "FREEZE_REFUSED" });
      await expect(clone.hibernate()).rejects.toMatchObject({
        code: "HIBERNATE_REFUSED",
        message: expect.stringContaining("only the pager knows"),
      });
      expect(await call(clone, "paged.wrong", 0, 100)).toBe(0);
    });
    expect(() => world.engine.park(image, "image", 1, loader)).toThrow(/no husk can be parked with loader/);
    await expect(world.engine.thaw(image, { loader, husk: "parked" })).rejects.toMatchObject({ code: "PREFERENCE_UNAVAILABLE" });
  });

  it("ends with the pager, in the middle of a read: a clear error and a new start, never a wrong page", async () => {
    for (let round = 0, late = 0; round < 10; ) {
      const clone = await world.engine.thaw(image, { loader: "reap-lazy" });
      const { keeper, pager } = pagerOf(clone);
      let answered = false;
      const answer = call(clone, "paged.shout_when_wrong")
        .then(
          () => "answered",
          (error: { code?: string }) => error.code ?? String(error),
        )
        .finally(() => {
          answered = true;
        });
      await sleep((round * 3) / (1 + late));
      process.kill(pager, "SIGSTOP");
      try {
        await until("the pager to stop", () => hasStopped(pager) || undefined, 30_000);
        // Once it has stopped, who waits goes on waiting.
        await until("a page that nobody brings", () => answered || waitsFor(clone) === "handle_userfault" || undefined, 30_000);
        if (answered) {
          // All was read before it stopped: once more, and sooner.
          expect(++late).toBeLessThan(20);
          process.kill(pager, "SIGCONT");
          await clone.dispose();
          continue;
        }
        // The keeper is late, so that the function would have time to read on; it must wait for its end instead.
        process.kill(keeper, "SIGSTOP");
        process.kill(pager, "SIGKILL");
        await sleep(20);
        expect(waitsFor(clone)).toBe("handle_userfault");
      } finally {
        process.kill(keeper, "SIGCONT");
        // Where it was not yet: whoever waits for it would wait for ever.
        if (hasStopped(pager)) process.kill(pager, "SIGKILL");
      }
      round++;
      expect(await answer).toBe("PAGER_LOST");
      expect(clone.alive).toBe(false);
      await clone.dispose();
      // Complete only now: what it wrote before its end is drained then.
      expect(takeLogs(clone)).not.toContain("WRONG PAGE");
      await use(async (next) => expect(await call(next, "paged.wrong", 0, 500)).toBe(0));
    }
  });

  it("ends with the pager between two requests, too; instances of other loaders do not", async () => {
    const paged = await world.engine.thaw(image, { loader });
    const other = await world.engine.thaw(image, { loader: "lazy" });
    expect(await call(paged, "paged.wrong", 0, 10)).toBe(0);
    const ended = new Promise<string>((resolve) => paged.onExit(resolve));
    process.kill(pagerOf(paged).pager, "SIGKILL");
    expect(await ended).toContain("the rest of its memory cannot be brought");
    await expect(call(paged, "paged.wrong")).rejects.toMatchObject({ code: "PAGER_LOST" });
    expect(await call(other, "paged.wrong")).toBe(0);
    await other.dispose();
    await paged.dispose();
  });
});

/** Where in the kernel a process sleeps; empty when it is gone. */
function waitsFor(instance: Instance): string {
  try {
    return readFileSync(`/proc/${hostPid(instance)}/wchan`, "utf8");
  } catch {
    return "";
  }
}

function takeLogs(instance: Instance): string {
  return (instance as Instance & { takeLogs(): Buffer }).takeLogs().toString("utf8");
}

describe("splice", () => {
  it("reads what its working set lacks page by page, and not what lies around it", async () => {
    const image = await world.imageAfter("python", ["paged.fill", BLOCK_MB]);
    // What is moved is read again behind that.
    await packed(image, () => started(image, "splice", "paged.wrong", 0, 1));
    forgetCached(imageFiles(image.dir).pages);
    const start = await world.thawed(image, async (clone) => {
      // Every fiftieth page of the block: none of them was recorded.
      expect(await call(clone, "paged.wrong", 0, null, 50)).toBe(0);
      await clone.faults();
      return clone.start;
    });
    const pages = (BLOCK_MB * 256) / 50;
    const read = (start.faults?.diskBytes ?? 0) / 4096;
    expect(read).toBeGreaterThan(pages * 0.9);
    // The block has 3,072; `lazy` reads them all.
    expect(read).toBeLessThan(pages + 600);
    await world.engine.removeImage(image);
  });

  it("lends what it recorded of the interpreter to reap, whose papers have it in the memory of a virtual machine", async () => {
    const image = await counted("python");
    await started(image, "reap");
    expect(await started(image, "reap")).not.toHaveProperty("coldPages");
    for (let round = 0; round < STARTS; round++) await started(image, "splice");
    expect(await started(image, "reap")).toHaveProperty("coldPages");
    expect(await started(image, "reap-lazy")).not.toHaveProperty("coldPages");
    await world.engine.removeImage(image);
  });
});

describe("lazy-4k", () => {
  it("reads no page from disk that was not asked for", async () => {
    const image = await world.imageAfter("python", ["paged.fill", BLOCK_MB]);
    const read = async (loader: Loader): Promise<number> => {
      await started(image, loader, "paged.wrong", 0, 1);
      forgetCached(imageFiles(image.dir).pages);
      // Every fiftieth page of the block.
      const start = await world.thawed(
        image,
        async (clone) => {
          expect(await call(clone, "paged.wrong", 0, null, 50)).toBe(0);
          await clone.faults();
          expect(hostPid(clone)).toBeGreaterThan(0);
          return clone.start;
        },
        { loader },
      );
      return (start.faults?.diskBytes ?? 0) / 4096;
    };
    const pages = (BLOCK_MB * 256) / 50;
    const random = await read("lazy-4k");
    expect(random).toBeGreaterThan(pages * 0.9);
    // What the interpreter touches beside the block; it is a few hundred pages.
    expect(random).toBeLessThan(pages + 1500);
    expect(await read("lazy")).toBeGreaterThan(BLOCK_MB * 256 * 0.9);
    await world.engine.removeImage(image);
  });
});
