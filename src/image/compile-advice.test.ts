import { describe, expect, it } from "vitest";
import { isMapped, readNothingAround, readsMost, readsScattered } from "./compile-advice.js";
import { isFile, storedPages } from "./facts.js";
import { ProgramBuilder } from "./program.js";
import { parsedFacts } from "./testing.js";
import { EMPTY_WORKING_SET, workingSet } from "./working-set.js";

const facts = parsedFacts();

function advised(which: typeof isMapped): string[] {
  const program = new ProgramBuilder();
  readNothingAround(program, facts, which);
  return program.build().labels.filter((label) => label.startsWith("no read-ahead"));
}

describe("mappings in which nothing is read around a page", () => {
  it("are advised by one call for those that have no other between them", () => {
    // The file with its overlay and the heap behind it; memory that stores nothing, the stack and the vdso are left alone.
    expect(advised(isMapped)).toEqual(["no read-ahead from 0x400000"]);
    expect(advised(isFile)).toEqual(["no read-ahead from 0x400000"]);
  });
});

describe("a function whose pages change with each request", () => {
  const stored = facts.regions.reduce((sum, region) => sum + storedPages(region), 0);
  const once = (address: bigint, pages: number) =>
    workingSet({ ...EMPTY_WORKING_SET, recordings: 2, runs: [{ address, pages, written: 0, read: 1 }] });
  const HEAP = 0x500000n;

  it("is read whole when that brings its pages sooner than one by one", () => {
    expect(stored).toBeGreaterThan(0);
    expect(readsMost(facts, once(HEAP, stored))).toBe(true);
    expect(readsMost(facts, EMPTY_WORKING_SET)).toBe(false);
    expect(readsScattered(facts, once(HEAP, stored))).toBe(true);
  });

  it("is not taken for one where recordings disagree about files of the interpreter, or memory that holds nothing", () => {
    for (const address of [0x400000n, 0x7f0000000000n]) expect(readsScattered(facts, once(address, 1))).toBe(false);
  });

  it("may be one where all that is known was rehearsed: it is read around, and not whole", () => {
    const rehearsed = { ...EMPTY_WORKING_SET, recordings: 2, rehearsed: true };
    expect([readsScattered(facts, rehearsed), readsMost(facts, rehearsed)]).toEqual([true, false]);
  });
});
