import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { clipRuns, decodeWorkingSet, encodeWorkingSet, intersectRuns, joinRuns, type PageRun, runPages } from "./working-set.js";

const PAGE = 4096n;
const run = fc.record({
  address: fc.bigInt({ min: 0n, max: 2n ** 36n }).map((page) => page * PAGE),
  pages: fc.integer({ min: 1, max: 1 << 20 }),
});
const set = fc.record({ written: fc.array(run, { maxLength: 30 }), read: fc.array(run, { maxLength: 30 }), faults: fc.nat() });
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
      written: [
        { address: 0x7f0000000000n, pages: 3 },
        { address: 0x7f0000100000n, pages: 1 },
      ],
      read: [{ address: 0x400000n, pages: 12 }],
      faults: 345,
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

describe("clipped runs", () => {
  it("hold exactly the pages inside, in the order of the runs", () => {
    fc.assert(
      fc.property(crowded, fc.bigInt({ min: 0n, max: 70n }), fc.bigInt({ min: 0n, max: 70n }), (runs, from, to) => {
        const clipped = clipRuns(runs, from * PAGE, to * PAGE);
        expect(pagesOf(clipped)).toEqual(new Set([...pagesOf(runs)].filter((page) => page >= from && page < to)));
        expect(clipped.every(({ pages }) => pages > 0)).toBe(true);
        expect(clipped.length).toBeLessThanOrEqual(runs.length);
      }),
    );
  });

  it("of neighbouring ranges make up the whole", () => {
    fc.assert(
      fc.property(crowded, fc.bigInt({ min: 0n, max: 70n }), (runs, at) => {
        const both = [...clipRuns(runs, 0n, at * PAGE), ...clipRuns(runs, at * PAGE, 1000n * PAGE)];
        expect(runPages(both)).toBe(runPages(runs));
        expect(joinRuns(both, 0)).toEqual(joinRuns(runs, 0));
      }),
    );
  });
});

describe("runs in both of two lists", () => {
  it("hold exactly the pages that both have, once, in order", () => {
    fc.assert(
      fc.property(crowded, crowded, (first, second) => {
        const both = intersectRuns(first, second);
        const others = pagesOf(second);
        expect(pagesOf(both)).toEqual(new Set([...pagesOf(first)].filter((page) => others.has(page))));
        expect(runPages(both)).toBe(pagesOf(both).size);
        for (const [index, run] of both.slice(1).entries()) expect(run.address > (both[index]?.address ?? 0n)).toBe(true);
      }),
    );
  });
});
