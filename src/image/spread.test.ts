/** Mappings in which the input chooses what is written are copied whole, as far as they have room. */
import { describe, expect, it } from "vitest";
import type { Region } from "./facts.js";
import { runPages } from "./page-runs.js";
import { writtenAnywhere } from "./spread.js";
import { type CountedRun, EMPTY_WORKING_SET, type WorkingSet, workingSet } from "./working-set.js";

const PAGE = 4096n;
const heap = (more: Partial<Region> = {}): Region => ({
  kind: "anon",
  start: 0n,
  end: 20_000n * PAGE,
  prot: 3,
  slot: 0n,
  runs: [0, 1000, 2000, 3000],
  ...more,
});
const at = (page: number, pages: number, written: number): CountedRun => ({
  address: BigInt(page) * PAGE,
  pages,
  written,
  read: 0,
});
const setOf = (recordings: number, ...runs: CountedRun[]): WorkingSet => workingSet({ ...EMPTY_WORKING_SET, recordings, runs });

describe("mappings that are written anywhere", () => {
  it("are those of which a start writes many pages that no other one does", () => {
    expect(writtenAnywhere([heap()], setOf(5, at(100, 400, 1)))).toEqual([
      { address: 0n, pages: 1000 },
      { address: 2000n * PAGE, pages: 3000 },
    ]);
    // 300 pages in five recordings are 60 for each.
    expect(writtenAnywhere([heap()], setOf(5, at(100, 300, 1)))).toEqual([]);
    expect(writtenAnywhere([heap()], setOf(5, at(100, 200, 2)))).not.toEqual([]);
  });

  it("are several where the input chooses from all of them, and not those where next to nothing is written", () => {
    const others = [
      heap({ start: 30_000n * PAGE, end: 40_000n * PAGE, runs: [0, 1000] }),
      heap({ start: 50_000n * PAGE, end: 60_000n * PAGE, runs: [0, 5000] }),
    ];
    const set = setOf(5, at(100, 200, 1), at(30_000, 150, 1), at(50_000, 200, 1));
    expect(runPages(writtenAnywhere([heap(), ...others], set))).toBe(5000);
    expect(writtenAnywhere(others, set)).toEqual([]);
  });

  it("are not those where every start writes the same", () => {
    expect(writtenAnywhere([heap()], setOf(5, at(100, 900, 5)))).toEqual([]);
    expect(writtenAnywhere([heap()], setOf(2, at(100, 900, 2)))).toEqual([]);
  });

  it("are not known from one recording", () => {
    expect(writtenAnywhere([heap()], setOf(1, at(100, 900, 1)))).toEqual([]);
  });

  it("are memory of the function's own, and writable", () => {
    const set = setOf(5, at(100, 400, 1));
    for (const other of [
      { prot: 1 },
      { wipe: 1 as const },
      { kind: "stack" as const },
      { kind: "overlay" as const },
      { start: 600n * PAGE },
    ])
      expect(writtenAnywhere([heap(other)], set)).toEqual([]);
  });

  it("have 64 MiB together, first where most is written for the size", () => {
    const large = heap({ runs: [0, 16_000] });
    const small = heap({ start: 30_000n * PAGE, end: 40_000n * PAGE, runs: [0, 500] });
    const set = setOf(5, at(100, 900, 1), at(30_000, 400, 1));
    expect(runPages(writtenAnywhere([large, small], set))).toBe(500);
    expect(runPages(writtenAnywhere([heap({ runs: [0, 15_000] }), small], set))).toBe(15_500);
  });
});
