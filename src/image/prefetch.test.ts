import { describe, expect, it } from "vitest";
import { expectedFaults, faultModel } from "./fault-model.js";
import { classify, packedRanges, prefetchRanges, samplePages } from "./prefetch.js";
import { parsedFacts } from "./testing.js";
import { type CountedRun, EMPTY_WORKING_SET, type WorkingSet, workingSet } from "./working-set.js";

// Of the sample: /usr/bin/node at 0x400000 with an overlay (slot 0) over its second page, a heap at 0x500000 (slot 0x10000000,
// pages 0, 1 and 5 stored), anonymous memory that stores nothing at 0x7f0000000000, a stack (slot 0x20000000, its second page).
const facts = parsedFacts();
const ANON = 0x7f0000000000n;

function setOf(
  runs: readonly (readonly [address: bigint, pages: number, written: number])[],
  rest: Partial<WorkingSet> = {},
): WorkingSet {
  const counted = runs.map(([address, pages, written]): CountedRun => ({ address, pages, written, read: 2 - written }));
  return workingSet({ ...EMPTY_WORKING_SET, recordings: 2, ...rest, runs: counted });
}

const STACK = { file: "pages", offset: 0x20001000n, bytes: 4096 };

describe("what a start reads from disk", () => {
  it("is the stack, then code, then what is written, then what is read, from the page space or from files", () => {
    const set = setOf([
      [0x400000n, 1, 0],
      [0x500000n, 1, 2],
      [0x501000n, 1, 0],
    ]);
    expect(prefetchRanges(facts, set)).toEqual([
      STACK,
      { file: "/usr/bin/node", offset: 0n, bytes: 4096 },
      { file: "pages", offset: 0x10000000n, bytes: 4096 },
      { file: "pages", offset: 0x10001000n, bytes: 4096 },
    ]);
  });

  it("ends with what few recordings touched", () => {
    const runs: CountedRun[] = [
      { address: 0x400000n, pages: 1, written: 1, read: 0 },
      { address: 0x500000n, pages: 1, written: 0, read: 3 },
      { address: 0x501000n, pages: 1, written: 1, read: 1 },
    ];
    expect(prefetchRanges(facts, workingSet({ ...EMPTY_WORKING_SET, recordings: 3, runs }))).toEqual([
      STACK,
      { file: "pages", offset: 0x10000000n, bytes: 8192 },
      { file: "/usr/bin/node", offset: 0n, bytes: 4096 },
    ]);
  });

  it("has no zero page, and takes changed pages of a file from the image", () => {
    const set = setOf([
      [0x401000n, 1, 0],
      [0x502000n, 3, 2],
      [ANON, 4, 2],
    ]);
    expect(prefetchRanges(facts, set)).toEqual([STACK, { file: "pages", offset: 0n, bytes: 4096 }]);
    expect(classify(facts, set.written)).toEqual({ image: 0, file: 0, zero: 7 });
    expect(classify(facts, set.read)).toEqual({ image: 1, file: 0, zero: 0 });
  });

  it("takes what the image shares from its base's page space, and counts it as its own", () => {
    const shared = {
      ...facts,
      regions: facts.regions.map((one) => (one.kind === "heap" ? { ...one, kind: "base" as const } : one)),
    };
    const set = setOf([
      [0x500000n, 1, 0],
      [0x505000n, 1, 2],
    ]);
    expect(prefetchRanges(shared, set)).toEqual([
      STACK,
      { file: "base", offset: 0x10005000n, bytes: 4096 },
      { file: "base", offset: 0x10000000n, bytes: 4096 },
    ]);
    expect(classify(shared, set.read)).toEqual({ image: 1, file: 0, zero: 0 });
  });

  it("joins ranges at most four pages apart", () => {
    const set = setOf([[0x500000n, 6, 0]]);
    expect(prefetchRanges(facts, set)).toEqual([STACK, { file: "pages", offset: 0x10000000n, bytes: 6 * 4096 }]);
    expect(classify(facts, set.read)).toEqual({ image: 3, file: 0, zero: 3 });
  });

  it("has no gap in a page space that is packed, whose parts lie elsewhere than what is between them", () => {
    const set = setOf([
      [0x400000n, 1, 0],
      [0x500000n, 6, 0],
    ]);
    const stored = [
      { file: "pages", offset: 0x10000000n, bytes: 2 * 4096 },
      { file: "pages", offset: 0x10005000n, bytes: 4096 },
    ];
    expect(prefetchRanges(facts, { ...set, packed: true })).toEqual([
      STACK,
      { file: "/usr/bin/node", offset: 0n, bytes: 4096 },
      ...stored,
    ]);
    expect(packedRanges(facts, set)).toEqual([STACK, ...stored]);
  });

  it("keeps the order of access where the set has it", () => {
    const runs = [
      [0x500000n, 1, 0],
      [0x400000n, 1, 0],
    ] as const;
    const files = (set: WorkingSet): string[] => prefetchRanges(facts, set).map(({ file }) => file);
    expect(files(setOf(runs, { order: "access" }))).toEqual(["pages", "pages", "/usr/bin/node"]);
    expect(files(setOf(runs))).toEqual(["pages", "/usr/bin/node", "pages"]);
  });

  it("ignores what lies in no mapping", () => {
    expect(prefetchRanges(facts, setOf([[0x600000n, 8, 0]]))).toEqual([STACK]);
  });
});

describe("the faults that a set accounts for", () => {
  const set = setOf(
    [
      [0x500000n, 3, 2],
      [0x503000n, 2, 1],
      [0x50e000n, 4, 0],
    ],
    { overhead: 50 },
  );

  it("are one for each page written, and one for each 64 KiB read", () => {
    expect(expectedFaults(faultModel(set), false, false)).toBe(50 + 5 + 2);
  });

  it("are one for each page while they come from disk", () => {
    expect(expectedFaults(faultModel(set), false, true)).toBe(50 + 5 + 6);
  });

  it("are none but the overhead when all was mapped before", () => {
    expect(expectedFaults(faultModel(set), true, false)).toBe(50);
  });

  it("are in the overhead where the recording was not exact", () => {
    expect(expectedFaults(faultModel({ ...set, exact: false }), false, false)).toBe(50 + 5);
  });
});

describe("samples of a page space", () => {
  it("are stored pages, evenly spread, and all of them where there are few", () => {
    const all = [0n, 0x10000000n, 0x10001000n, 0x10005000n, 0x20001000n];
    const offsets = (count: number): bigint[] => samplePages(facts, count).map(({ offset }) => offset);
    expect(offsets(100)).toEqual(all);
    expect(offsets(5)).toEqual(all);
    expect(offsets(2)).toEqual([0x10000000n, 0x20001000n]);
    expect(samplePages(facts, 1)).toEqual([{ file: "pages", offset: 0x10001000n, bytes: 4096 }]);
  });
});
