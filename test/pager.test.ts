/** The pager on the real kernel: prefetching, and what its death does and does not end. */
import { closeSync, fdatasyncSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, describe, expect, it } from "vitest";
import type { Instance } from "../src/engine/index.js";
import { Keeper } from "../src/engine/keeper.js";
import { encodePrefetch, type PrefetchRange } from "../src/engine/keeper-messages.js";
import { nativePaths } from "../src/engine/native.js";
import { forgetCached } from "./support/page-cache.js";
import { keeperProcess } from "./support/pager.js";
import { eventually } from "./support/wait.js";
import { call, useWorld } from "./support/world.js";

const PAGES = 400;
const dir = mkdtempSync(join(tmpdir(), "thaw-pager-"));
const keepers: Keeper[] = [];

afterEach(async () => {
  for (const keeper of keepers.splice(0)) await keeper.close();
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

async function open(): Promise<Keeper> {
  const keeper = await Keeper.start({ binary: nativePaths().keeper });
  keepers.push(keeper);
  return keeper;
}

/** A file of {@link PAGES} pages on disk, none of them in the page cache. */
function coldFile(name: string): string {
  const path = join(dir, name);
  const file = openSync(path, "w");
  writeSync(file, Buffer.alloc(PAGES * 4096, 7));
  fdatasyncSync(file);
  closeSync(file);
  forgetCached(path);
  return path;
}

/** Every tenth page of a file. */
function scattered(file: number): PrefetchRange[] {
  return Array.from({ length: PAGES / 10 }, (_, index) => ({ file, offset: BigInt(index * 10 * 4096), bytes: 4096 }));
}

/** Resolves when the keeper has taken all that it was asked before, and handed on what is not its own. */
async function taken(keeper: Keeper): Promise<void> {
  keeper.closeFile(await keeper.openFile("/dev/null"));
}

const processOf = (keeper: Keeper, name: string): number => keeperProcess(keeper.pid, name);

describe("a prefetch", () => {
  it("reads exactly the ranges that it was given, and counts what was not there", async () => {
    const keeper = await open();
    const path = coldFile("exact");
    const file = await keeper.openFile(path);
    expect((await keeper.prefetch(scattered(file))).pages).toBe(PAGES / 10);
    // The kernel may leave a page out, or take one back, where memory is short: that one is asked for again.
    await expect.poll(async () => (await keeper.prefetch(scattered(file))).pages).toBe(0);
    // What lies between them was left alone.
    expect((await keeper.prefetch([{ file, offset: 0n, bytes: PAGES * 4096 }])).pages).toBe(PAGES - PAGES / 10);
  });

  it("reads long ranges whole, and long lists in order", async () => {
    const keeper = await open();
    const file = await keeper.openFile(coldFile("long"));
    expect((await keeper.prefetch([{ file, offset: 0n, bytes: PAGES * 4096 }])).pages).toBe(PAGES);
    const many = Array.from({ length: 5000 }, (_, index) => ({ file, offset: BigInt((index % PAGES) * 4096), bytes: 4096 }));
    expect((await keeper.prefetch(many)).pages).toBe(0);
  });

  it("knows nothing of a file that was closed, and takes a new one under another id", async () => {
    const keeper = await open();
    const path = coldFile("closed");
    const file = await keeper.openFile(path);
    expect((await keeper.prefetch([{ file, offset: 0n, bytes: 4096 }])).pages).toBe(1);
    keeper.closeFile(file);
    expect((await keeper.prefetch([{ file, offset: 0n, bytes: 4096 }])).pages).toBe(-1);
    const again = await keeper.openFile(path);
    expect((await keeper.prefetch([{ file: again, offset: 0n, bytes: 4096 }])).pages).toBe(0);
  });

  it("costs little when all is there", async () => {
    const keeper = await open();
    const file = await keeper.openFile(coldFile("cheap"));
    const ranges = Array.from({ length: 200 }, (_, index) => ({ file, offset: BigInt(index * 2 * 4096), bytes: 4096 }));
    await keeper.prefetch(ranges);
    // 0.1 ms is what it takes; the machine may be busy with other things, so the best counts.
    let best = Number.POSITIVE_INFINITY;
    for (const end = Date.now() + 30_000; best >= 150 && Date.now() < end; )
      for (let round = 0; round < 50; round++) best = Math.min(best, (await keeper.prefetch(ranges)).us);
    expect(best).toBeLessThan(150);
  });
});

describe("an instance whose code is asked for", () => {
  const world = useWorld();
  const ranges = (file: number) => encodePrefetch(scattered(file));
  /** The instance's keeper, a file that is in no cache, and its pager, stopped. */
  async function withStopped(use: (one: Instance, keeper: Keeper, file: number, pager: number) => Promise<void>, warm = false) {
    const one = await world.boot("python");
    const { keeper } = one as unknown as { keeper: Keeper };
    try {
      const file = await keeper.openFile(coldFile("code"));
      if (warm) await keeper.prefetch(scattered(file));
      const pager = processOf(keeper, "thaw-pager");
      process.kill(pager, "SIGSTOP");
      await use(one, keeper, file, pager);
      keeper.closeFile(file);
    } finally {
      await one.dispose();
    }
  }
  const idOf = (one: Instance): number => (one as unknown as { id: number }).id;
  /** The keeper lets go after 25 ms; no machine is so slow that it would seem sooner. */
  const HELD_MS_MIN = 20;

  it("is sent nothing until the disk was asked, or for a while, and then all of it in order", async () => {
    await withStopped(async (one, keeper, file, pager) => {
      const began = performance.now();
      const asked = keeper.prefetchEncoded(ranges(file), { ahead: idOf(one) });
      expect(await call(one, "counter.next")).toBe(1);
      expect(performance.now() - began).toBeGreaterThan(HELD_MS_MIN);
      process.kill(pager, "SIGCONT");
      expect((await asked).pages).toBe(PAGES / 10);
      const again = keeper.prefetchEncoded(ranges(await keeper.openFile(coldFile("other"))), { ahead: idOf(one) });
      expect(await call(one, "counter.next")).toBe(2);
      expect((await again).pages).toBe(PAGES / 10);
    });
  });

  it("goes on when the pager ends", async () => {
    await withStopped(async (one, keeper, file, pager) => {
      const asked = keeper.prefetchEncoded(ranges(file), { ahead: idOf(one) });
      const answer = call(one, "counter.next");
      await taken(keeper);
      process.kill(pager, "SIGKILL");
      expect(await answer).toBe(1);
      expect((await asked).pages).toBe(-1);
    });
  });

  it("does not wait for a pager that hangs", async () => {
    await withStopped(async (one, keeper, file, pager) => {
      const asked = [
        keeper.prefetchEncoded(ranges(file), { ahead: idOf(one) }),
        keeper.prefetchEncoded(ranges(file), { ahead: idOf(one) }),
      ];
      expect(await Promise.race([call(one, "counter.next"), sleep(30_000)])).toBe(1);
      // Those of the second request are in the same queue, behind what the pager has not done yet.
      asked.push(keeper.prefetchEncoded(ranges(file), { ahead: idOf(one) }));
      expect(await Promise.race([call(one, "counter.next"), sleep(30_000)])).toBe(2);
      process.kill(pager, "SIGCONT");
      expect((await Promise.all(asked)).map(({ pages }) => pages)).toEqual([PAGES / 10, 0, 0]);
      expect(await call(one, "counter.next")).toBe(3);
    });
  });

  it("waits for nobody where all is cached, and others never do", async () => {
    const cold = async (one: Instance, keeper: Keeper, file: number, pager: number) => {
      const asked = keeper.prefetchEncoded(ranges(file));
      expect(await call(one, "counter.next")).toBe(1);
      process.kill(pager, "SIGCONT");
      expect((await asked).pages).toBe(PAGES / 10);
    };
    await withStopped(cold);
    const warm = async (one: Instance, keeper: Keeper, file: number, pager: number) => {
      expect(await keeper.prefetchEncoded(ranges(file), { ahead: idOf(one) })).toEqual({ us: 0, pages: 0 });
      expect(await call(one, "counter.next")).toBe(1);
      process.kill(pager, "SIGCONT");
    };
    await withStopped(warm, true);
  });
});

describe("the end of the pager", () => {
  it.each(["thaw-pager", "thaw-holder"])("(%s) fails nothing but what it was asked for; another one goes on", async (name) => {
    const keeper = await open();
    const file = await keeper.openFile(coldFile(`killed-${name}`));
    await keeper.prefetch([{ file, offset: 0n, bytes: 4096 }]);
    const pager = processOf(keeper, "thaw-pager");
    expect(pager).toBeGreaterThan(0);
    process.kill(pager, "SIGSTOP");
    const inFlight = keeper.prefetch([{ file, offset: 4096n, bytes: 4096 }]);
    await taken(keeper);
    process.kill(processOf(keeper, name), "SIGKILL");
    expect((await inFlight).pages).toBe(-1);
    expect((await keeper.prefetch([{ file, offset: 8192n, bytes: 4096 }])).pages).toBe(1);
    expect(processOf(keeper, "thaw-pager")).not.toBe(pager);
  });

  it("is that of the keeper, too", async () => {
    const keeper = await open();
    const pids = ["thaw-pager", "thaw-holder"].map((name) => processOf(keeper, name));
    process.kill(keeper.pid, "SIGKILL");
    await keeper.close();
    await eventually(() => expect(pids.filter(lives)).toEqual([]));
  });
});

function lives(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}
