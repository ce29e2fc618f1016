import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { addRecording, RECORDINGS_MAX } from "./merge.js";
import { joinRuns, type PageRun, runPages, SortedRuns } from "./page-runs.js";
import {
  type CountedRun,
  decodeWorkingSet,
  EMPTY_WORKING_SET,
  encodeWorkingSet,
  RECORDINGS_MIN,
  type WorkingSet,
  workingSet,
} from "./working-set.js";

const PAGE = 4096n;
const run = fc.record({
  address: fc.bigInt({ min: 0n, max: 2n ** 36n }).map((page) => page * PAGE),
  pages: fc.integer({ min: 1, max: 1 << 20 }),
});
const set = fc
  .record({
    recordings: fc.integer({ min: 1, max: 9 }),
    stable: fc.boolean(),
    exact: fc.boolean(),
    order: fc.constantFrom("address", "access"),
    faults: fc.nat(),
    overhead: fc.nat(),
    runs: fc.array(fc.tuple(run, fc.nat(), fc.nat()), { maxLength: 30 }),
  })
  .map(({ runs, ...rest }) =>
    workingSet({
      ...rest,
      runs: runs.map(([pages, a, b]): CountedRun => {
        const written = a % (rest.recordings + 1);
        return { ...pages, written, read: Math.max(written === 0 ? 1 : 0, b % (rest.recordings - written + 1)) };
      }),
    }),
  );
/** Few addresses, so that runs overlap, touch and repeat. */
const crowded = fc.array(
  fc.record({ address: fc.bigInt({ min: 0n, max: 60n }).map((page) => page * PAGE), pages: fc.integer({ min: 1, max: 8 }) }),
  { maxLength: 20 },
);

function pagesOf(runs: readonly PageRun[]): Set<bigint> {
  const pages = new Set<bigint>();
  for (const { address, pages: count } of runs)
    for (let index = 0n; index < BigInt(count); index++) pages.add(address / PAGE + index);
  return pages;
}

const end = ({ address, pages }: PageRun): bigint => address + BigInt(pages) * PAGE;

describe("a working set", () => {
  it("is read as it was written", () => {
    fc.assert(
      fc.property(set, (value) => {
        expect(decodeWorkingSet(encodeWorkingSet(value))).toEqual(value);
      }),
    );
  });

  it("cut short at any byte, or with any bit flipped, is none, and nothing is thrown", () => {
    const whole = encodeWorkingSet({
      ...EMPTY_WORKING_SET,
      recordings: 2,
      faults: 345,
      runs: [
        { address: 0x400000n, pages: 12, written: 0, read: 2 },
        { address: 0x7f0000000000n, pages: 3, written: 2, read: 0 },
      ],
    });
    for (let length = 0; length < whole.length; length++)
      expect(decodeWorkingSet(whole.subarray(0, length)), `${length} bytes`).toBeUndefined();
    for (let bit = 0; bit < whole.length * 8; bit++) {
      const bytes = Buffer.from(whole);
      bytes.writeUInt8(bytes.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
      expect(decodeWorkingSet(bytes), `bit ${bit}`).toBeUndefined();
    }
  });

  it("is none when the bytes are anything else", () => {
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 200 }), fc.json()), (bytes) => {
        expect(decodeWorkingSet(Buffer.from(bytes as string))).toBeUndefined();
      }),
    );
  });
});

describe("joined runs", () => {
  it("hold all pages of the runs, and others only inside gaps that are small enough", () => {
    fc.assert(
      fc.property(crowded, fc.integer({ min: 0, max: 6 }), (runs, gap) => {
        const joined = joinRuns(runs, gap);
        const before = pagesOf(runs);
        const after = pagesOf(joined);
        for (const page of before) expect(after).toContain(page);
        for (const page of after) {
          if (before.has(page)) continue;
          let left = page;
          while (!before.has(left)) left--;
          let right = page;
          while (!before.has(right)) right++;
          expect(Number(right - left - 1n)).toBeLessThanOrEqual(gap);
        }
        expect(runPages(joined)).toBe(after.size);
      }),
    );
  });

  it("are sorted, lie further apart than the gap, and are not changed by joining again", () => {
    fc.assert(
      fc.property(crowded, fc.integer({ min: 0, max: 6 }), (runs, gap) => {
        const joined = joinRuns(runs, gap);
        for (const [index, next] of joined.entries()) {
          const last = joined[index - 1];
          if (last !== undefined) expect(next.address - end(last)).toBeGreaterThan(BigInt(gap) * PAGE);
        }
        expect(joinRuns(joined, gap)).toEqual(joined);
        expect(joinRuns([...runs].reverse(), gap)).toEqual(joined);
      }),
    );
  });
});

describe("the runs inside a range", () => {
  it("hold exactly the pages inside, by address, in whatever order all runs are", () => {
    fc.assert(
      fc.property(crowded, fc.bigInt({ min: 0n, max: 70n }), fc.bigInt({ min: 0n, max: 70n }), (runs, from, to) => {
        const disjoint = joinRuns(runs, 0);
        const clipped = new SortedRuns(disjoint).within(from * PAGE, to * PAGE);
        expect(new SortedRuns([...disjoint].reverse()).within(from * PAGE, to * PAGE)).toEqual(clipped);
        expect([...clipped].sort((a, b) => Number(a.address - b.address))).toEqual(clipped);
        expect(pagesOf(clipped)).toEqual(new Set([...pagesOf(runs)].filter((page) => page >= from && page < to)));
        expect(clipped.every(({ pages }) => pages > 0)).toBe(true);
        expect(clipped.length).toBeLessThanOrEqual(runs.length);
      }),
    );
  });

  it("are found without a look at all the others", () => {
    let looks = 0;
    const runs = Array.from({ length: 10_000 }, (_, index) => ({
      pages: 1,
      get address() {
        looks++;
        return BigInt(index) * 2n * PAGE;
      },
    }));
    const sorted = new SortedRuns(runs);
    looks = 0;
    expect(sorted.within(9_000n * PAGE, 9_005n * PAGE).map(({ address }) => address / PAGE)).toEqual([9_000n, 9_002n, 9_004n]);
    expect(looks).toBeLessThan(100);
  });

  it("of neighbouring ranges make up the whole", () => {
    fc.assert(
      fc.property(crowded, fc.bigInt({ min: 0n, max: 70n }), (runs, at) => {
        const sorted = new SortedRuns(joinRuns(runs, 0));
        const both = [...sorted.within(0n, at * PAGE), ...sorted.within(at * PAGE, 1000n * PAGE)];
        expect(runPages(both)).toBe(pagesOf(runs).size);
        expect(joinRuns(both, 0)).toEqual(joinRuns(runs, 0));
      }),
    );
  });
});

describe("merged recordings", () => {
  /** A recording: what was written, and of what was read the rest. */
  const recording = fc.tuple(crowded, crowded).map(([written, read]) => ({
    written: joinRuns(written, 0),
    read: joinRuns(
      [...pagesOf(read)].filter((page) => !pagesOf(written).has(page)).map((page) => ({ address: page * PAGE, pages: 1 })),
      0,
    ),
    faults: 1000,
    exact: true,
  }));

  it("copy what more than half of them wrote, and hold each page that any touched in one of both lists", () => {
    fc.assert(
      fc.property(fc.array(recording, { minLength: 1, maxLength: 7 }), (recordings) => {
        const merged = recordings.reduce<WorkingSet>(addRecording, EMPTY_WORKING_SET);
        const timesWritten = new Map<bigint, number>();
        const touched = new Set<bigint>();
        for (const one of recordings) {
          for (const page of pagesOf(one.written)) timesWritten.set(page, (timesWritten.get(page) ?? 0) + 1);
          for (const page of [...pagesOf(one.written), ...pagesOf(one.read)]) touched.add(page);
        }
        const often = [...touched].filter(
          (page) => recordings.length >= RECORDINGS_MIN && (timesWritten.get(page) ?? 0) * 2 > recordings.length,
        );
        expect(pagesOf(merged.written)).toEqual(new Set(often));
        expect(pagesOf(merged.read)).toEqual(new Set([...touched].filter((page) => !often.includes(page))));
        expect(runPages(merged.runs)).toBe(touched.size);
        expect(merged.recordings).toBe(recordings.length);
        expect(decodeWorkingSet(encodeWorkingSet(merged))).toEqual(merged);
      }),
    );
  });

  const pages = (from: number, count: number): PageRun[] => [{ address: BigInt(from) * PAGE, pages: count }];
  const record = (set: WorkingSet, from: number): WorkingSet =>
    addRecording(set, { written: pages(from, 100), read: pages(10_000 + from, 900), faults: 1100, exact: true });

  it("are stable once one brings less than two pages in a hundred", () => {
    const first = record(EMPTY_WORKING_SET, 0);
    expect(first).toMatchObject({ recordings: 1, stable: false, overhead: 100, written: [] });
    expect(record(first, 0)).toMatchObject({ recordings: 2, stable: true, written: pages(0, 100), read: pages(10_000, 900) });
    expect(record(first, 9)).toMatchObject({ recordings: 2, stable: true });
    const second = record(first, 30);
    expect(second).toMatchObject({ recordings: 2, stable: false, written: pages(30, 70) });
    expect(record(second, 30)).toMatchObject({ recordings: 3, stable: false, written: pages(30, 100) });
    expect(record(record(second, 30), 30)).toMatchObject({ recordings: 4, stable: true });
  });

  it("are no more than five, even if each brings something new", () => {
    let set = EMPTY_WORKING_SET;
    for (let index = 0; !set.stable; index++) set = record(set, 2000 * index);
    expect(set.recordings).toBe(RECORDINGS_MAX);
    expect(runPages(set.written)).toBe(0);
    expect(runPages(set.read)).toBe(RECORDINGS_MAX * 1000);
  });
});
