/** The pager on the real kernel: prefetching, and what its death does and does not end. */
import { closeSync, fdatasyncSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, describe, expect, it } from "vitest";
import { Keeper, type PrefetchRange } from "../src/engine/keeper.js";
import { nativePaths } from "../src/engine/native.js";
import { forgetCached } from "./support/page-cache.js";
import { keeperProcess } from "./support/pager.js";

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

const processOf = (keeper: Keeper, name: string): number => keeperProcess(keeper.pid, name);

describe("a prefetch", () => {
  it("reads exactly the ranges that it was given, and counts what was not there", async () => {
    const keeper = await open();
    const path = coldFile("exact");
    const file = await keeper.openFile(path);
    expect((await keeper.prefetch(scattered(file))).pages).toBe(PAGES / 10);
    expect((await keeper.prefetch(scattered(file))).pages).toBe(0);
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
    const times: number[] = [];
    for (let round = 0; round < 50; round++) times.push((await keeper.prefetch(ranges)).us);
    // 0.1 ms is what it takes; the machine may be busy with other things, so the best counts.
    expect(Math.min(...times)).toBeLessThan(150);
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
    await sleep(20);
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
    for (let tries = 0; tries < 100 && pids.some(lives); tries++) await sleep(20);
    expect(pids.filter(lives)).toEqual([]);
  });
});

function lives(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}
