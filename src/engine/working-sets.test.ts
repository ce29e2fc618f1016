import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { decodeWorkingSet, imageFiles, type PageRun, type Recording, type WorkingSet } from "../image/index.js";
import { parsedFacts } from "../image/testing.js";
import { LiveWorkingSet } from "./working-sets.js";

// Anonymous memory of the sample image, 16 pages, and its heap.
const ANON = 0x7f0000000000n;
const pages = (first: number, count: number): PageRun[] => [{ address: ANON + BigInt(first) * 4096n, pages: count }];
const recording = (first: number, count: number, faults = 200): Recording => ({
  written: pages(first, count),
  read: [],
  faults,
  exact: true,
});
const NOTHING = { written: [], read: [], huge: [] };

let dir: string;
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "thaw-sets-"));
});
afterAll(() => rmSync(dir, { recursive: true }));

function readWorkingSet(): WorkingSet {
  const set = decodeWorkingSet(readFileSync(imageFiles(dir).workingSet));
  if (set === undefined) throw new Error("no working set was stored");
  return set;
}

let changes: number;
async function stable(): Promise<LiveWorkingSet> {
  changes = 0;
  const sets = new LiveWorkingSet(dir, parsedFacts(), undefined, () => changes++);
  for (let count = 0; count < 2; count++) {
    expect(sets.claim()).toBe(true);
    await sets.add(recording(0, 8));
  }
  expect(sets.set.stable).toBe(true);
  return sets;
}

/** As many starts as it takes until one shall record; at most `most`. */
function startsUntilWanting(sets: LiveWorkingSet, outside: number, most: number): number {
  for (let starts = 1; starts <= most; starts++) {
    sets.note(outside);
    if (sets.wanting) return starts;
  }
  return Number.POSITIVE_INFINITY;
}

describe("the working set of an open image", () => {
  it("is recorded by one start at a time, and by no more once it is stable", async () => {
    const sets = new LiveWorkingSet(dir, parsedFacts(), undefined, () => undefined);
    expect(sets.claim()).toBe(true);
    expect(sets.claim()).toBe(false);
    sets.release();
    expect(sets.claim()).toBe(true);
    await sets.add(recording(0, 8));
    expect(sets.recorded).toBe(false);
    expect(sets.claim()).toBe(true);
    await sets.add(recording(0, 8));
    expect(sets.recorded).toBe(true);
    expect(sets.claim()).toBe(false);
    // One that began before the last one ended.
    await sets.add(recording(8, 8));
    expect(sets.set.recordings).toBe(2);
  });

  it("leaves out what the image does not bring back, and copies nothing where the image forbids writing", async () => {
    const sets = new LiveWorkingSet(dir, parsedFacts(), undefined, () => undefined);
    for (let count = 0; count < 2; count++) {
      sets.claim();
      // Of /usr/bin/node, mapped to be executed; of the stack; of nothing.
      const written = [0x400000n, 0x7ffe00001000n, 0x600000n].map((address) => ({ address, pages: 1 }));
      await sets.add({ written, read: [], faults: 3, exact: true });
    }
    expect(sets.set.written).toEqual([]);
    expect(sets.set.read).toEqual([{ address: 0x400000n, pages: 1 }]);
  });

  it("is stale when half of the last eight starts had too many faults outside, and serves on until two new recordings", async () => {
    const sets = await stable();
    for (let starts = 0; starts < 20; starts++) sets.note(64);
    expect(sets.wanting).toBe(false);
    expect(startsUntilWanting(sets, 65, 8)).toBe(4);
    expect(sets.renewals).toBe(1);
    expect(sets.claim()).toBe(true);
    await sets.add(recording(8, 8));
    expect(sets.set.written).toEqual(pages(0, 8));
    expect(changes).toBe(2);
    expect(sets.claim()).toBe(true);
    await sets.add(recording(8, 8));
    expect(sets.set.written).toEqual(pages(8, 8));
    expect(changes).toBe(3);
    expect(sets.outside).toEqual([]);
    expect(sets.wanting).toBe(false);
  });

  it("is recorded less and less often when it never fits", async () => {
    const sets = await stable();
    const waits: number[] = [];
    for (let renewal = 0; renewal < 4; renewal++) {
      waits.push(startsUntilWanting(sets, 1000, 5000));
      for (let count = 0; count < 2; count++) {
        sets.claim();
        await sets.add(recording(0, 8));
      }
    }
    expect(waits).toEqual([4, 16, 32, 64]);
  });

  it("is looked at closely in one start of eight, and in every one while the starts do not fit", async () => {
    const sets = await stable();
    const due: boolean[] = [];
    for (let starts = 0; starts < 10; starts++) {
      due.push(sets.scanDue(0));
      sets.note(0);
    }
    expect(due).toEqual([true, ...Array<boolean>(7).fill(false), true, false]);
    expect(sets.scanDue(500)).toBe(true);
    sets.note(500);
    expect(sets.scanDue(0)).toBe(true);
  });

  it("is looked at in one start of 64 once eight looks in a row fitted, until one does not", async () => {
    const sets = await stable();
    const gaps = (count: number): number[] =>
      Array.from({ length: count }, () => {
        sets.note(0);
        for (let starts = 1; ; starts++) {
          if (sets.scanDue(0)) return starts;
          sets.note(0);
        }
      });
    expect(gaps(9)).toEqual([8, 8, 8, 8, 8, 8, 8, 64, 64]);
    sets.note(500);
    expect(sets.scanDue(0)).toBe(true);
    expect(gaps(2)).toEqual([8, 8]);
  });

  describe("that was rehearsed, without the function's own code,", () => {
    async function rehearsed(): Promise<LiveWorkingSet> {
      changes = 0;
      const sets = new LiveWorkingSet(dir, parsedFacts(), undefined, () => changes++);
      for (let count = 0; count < 2; count++) {
        expect(sets.claim()).toBe(true);
        await sets.add({ ...recording(0, 8), rehearsed: true });
      }
      expect(sets.set).toMatchObject({ stable: true, rehearsed: true });
      expect([sets.wanting, sets.tracked]).toEqual([false, false]);
      return sets;
    }

    it("is confirmed by two starts that were looked at and fit", async () => {
      const sets = await rehearsed();
      for (let starts = 0; starts < 2; starts++) {
        expect(sets.scanDue(0)).toBe(true);
        expect(sets.set.rehearsed).toBe(true);
        sets.note(64);
      }
      expect(sets.set.rehearsed).toBeUndefined();
      expect(sets.set.written).toEqual(pages(0, 8));
      expect(changes).toBe(3);
      expect(sets.scanDue(0)).toBe(false);
      await expect.poll(() => readWorkingSet().rehearsed).toBeUndefined();
    });

    it("is recorded anew, also by parked husks, as soon as one start does not fit; that is no renewal", async () => {
      const sets = await rehearsed();
      sets.note(0);
      sets.note(65);
      expect([sets.wanting, sets.tracked, sets.renewals]).toEqual([true, true, 0]);
      for (let count = 0; count < 2; count++) {
        expect(sets.claim()).toBe(true);
        await sets.add(recording(8, 8));
      }
      expect(sets.set.rehearsed).toBeUndefined();
      expect(sets.set.written).toEqual(pages(8, 8));
      expect([sets.wanting, sets.tracked]).toEqual([false, false]);
    });

    it("stays provisional where a start's own recording is merged with it", async () => {
      const sets = new LiveWorkingSet(dir, parsedFacts(), undefined, () => undefined);
      await sets.add({ ...recording(0, 8), rehearsed: true });
      await sets.add(recording(0, 8));
      expect(sets.set).toMatchObject({ recordings: 2, rehearsed: true });
      expect(readWorkingSet().rehearsed).toBe(true);
    });
  });

  describe("of one event alone", () => {
    /** Pages 0 to 3 for every event, and two of its own. */
    const recorded = (event: number): Recording => ({
      ...recording(0, 4),
      written: [...pages(0, 4), ...pages(4 + 2 * event, 2)],
      event,
    });
    async function record(sets: LiveWorkingSet, events: readonly number[]): Promise<void> {
      for (const event of events) {
        expect(sets.claim()).toBe(true);
        await sets.add(recorded(event));
      }
    }
    async function ofOne(): Promise<LiveWorkingSet> {
      const sets = new LiveWorkingSet(dir, parsedFacts(), undefined, () => undefined);
      await record(sets, [1, 1]);
      expect(sets.set).toMatchObject({ stable: true, event: 1 });
      expect(readWorkingSet().event).toBe(1);
      return sets;
    }
    /** Starts with these events that all fit. */
    function starts(sets: LiveWorkingSet, ...events: number[]): boolean {
      for (const event of events) sets.note(0, event);
      return sets.wanting;
    }

    it("copies what that event alone needs, until half of the last eight starts had others, of which each has one vote", async () => {
      const sets = await ofOne();
      expect(sets.set.written).toEqual([...pages(0, 4), ...pages(6, 2)]);
      expect(starts(sets, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1)).toBe(false);
      expect(starts(sets, 2, 3)).toBe(false);
      expect(starts(sets, 4)).toBe(false);
      expect(starts(sets, 4)).toBe(true);
      expect(sets.renewals).toBe(1);
      await record(sets, [2, 2, 2, 3]);
      expect(sets.set).toMatchObject({ recordings: 2, stable: false });
      expect(sets.set.written).toEqual(pages(0, 4));
      await record(sets, [3, 4, 5]);
      // The fourth repetition counts: events seem not to vary any more.
      await record(sets, [5]);
      expect(sets.set).toMatchObject({ recordings: 5, stable: true });
      expect(sets.set.event).toBeUndefined();
      expect(sets.set.written).toEqual(pages(0, 4));
      expect(starts(sets, ...Array.from({ length: 100 }, (_, index) => index))).toBe(false);
    });

    it("is recorded of another event alone when no more come, and less and less often", async () => {
      const sets = await ofOne();
      const waits: number[] = [];
      for (let event = 2; event < 5; event++) {
        let count = 1;
        while (!starts(sets, event)) count++;
        waits.push(count);
        await record(sets, [event, event]);
        expect(sets.set).toMatchObject({ recordings: 2, stable: true, event });
      }
      expect(waits).toEqual([4, 16, 32]);
    });

    it("is recorded of the same event again where others came, and then no more", async () => {
      const sets = await ofOne();
      expect(starts(sets, 2, 3, 4, 5)).toBe(true);
      await record(sets, [1, 1, 1, 1, 1]);
      expect(sets.set).toMatchObject({ recordings: 2, stable: true, event: 1 });
    });

    it("is told so by what was stored", async () => {
      await ofOne();
      const sets = new LiveWorkingSet(dir, parsedFacts(), readWorkingSet(), () => undefined);
      expect(starts(sets, 2, 2, 2, 2)).toBe(true);
    });

    it("stays as it is where events are not known", async () => {
      const sets = await stable();
      expect(starts(sets, 1, 2, 3, 4, 5, 6, 7, 8)).toBe(false);
      const one = await ofOne();
      for (let count = 0; count < 8; count++) one.note(0);
      expect(one.wanting).toBe(false);
    });
  });

  it("counts what is present outside: pages written, 64 KiB read, 2 MiB in one piece", async () => {
    const sets = await stable();
    expect(sets.outsideOf(NOTHING, false)).toBe(0);
    expect(sets.outsideOf({ ...NOTHING, written: pages(6, 5) }, false)).toBe(3);
    // The whole of this mapping lies in one block, in which the set has pages.
    expect(sets.outsideOf({ ...NOTHING, read: pages(0, 16) }, false)).toBe(0);
    const heap = [{ address: 0x500000n, pages: 16 }];
    expect(sets.outsideOf({ ...NOTHING, read: heap }, false)).toBe(1);
    expect(sets.outsideOf({ written: [], read: heap, huge: heap }, false)).toBe(1);
    // Another mapping, which this image does not bring.
    expect(sets.outsideOf({ ...NOTHING, written: [{ address: 0x900000n, pages: 9 }] }, false)).toBe(0);
    const file = [{ address: 0x400000n, pages: 1 }];
    expect(sets.outsideOf({ ...NOTHING, read: file }, false)).toBe(1);
    expect(sets.outsideOf({ ...NOTHING, read: file }, true)).toBe(0);
  });

  it("of thousands of mappings looks for what is present in each, and not at all of it for each", async () => {
    const count = 2_000;
    const start = (index: number): bigint => ANON + BigInt(index) * 8192n;
    const hex = (address: bigint): string => `0x${address.toString(16)}`;
    const regions = Array.from({ length: count }, (_, index) => ({
      kind: "anon" as const,
      start: hex(start(index)),
      end: hex(start(index) + 4096n),
      prot: 3,
    }));
    let looks = 0;
    const present = Array.from({ length: count }, (_, index) => ({
      pages: 1,
      get address() {
        looks++;
        return start(index);
      },
    }));
    const sets = new LiveWorkingSet(dir, parsedFacts({ regions }), undefined, () => undefined);
    await sets.add({ written: present, read: [], faults: count, exact: true });
    expect(sets.set.runs).toHaveLength(count);
    expect(sets.outsideOf({ written: [], read: [...present], huge: [] }, false)).toBe(0);
    // Each with each would be four million, twice.
    expect(looks).toBeLessThan(100 * count);
  });

  it("knows nothing before the first recording", () => {
    const sets = new LiveWorkingSet(dir, parsedFacts(), undefined, () => undefined);
    expect(sets.bound({ minor: 500, major: 0 }, "generic")).toBeUndefined();
  });

  it("takes the faults beyond what it accounts for as outside", async () => {
    const sets = await stable();
    // 200 faults for 8 pages: 192 of the husk's own.
    expect(sets.bound({ minor: 200, major: 0 }, "generic")).toBe(0);
    expect(sets.bound({ minor: 300, major: 5 }, "generic")).toBe(105);
    expect(sets.bound({ minor: 200, major: 0 }, "prefaulted")).toBe(8);
  });
});
