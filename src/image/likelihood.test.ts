import { describe, expect, it } from "vitest";
import { forecast } from "./likelihood.js";
import { runPages } from "./page-runs.js";
import { type CountedRun, EMPTY_WORKING_SET, workingSet } from "./working-set.js";

/** A set of five recordings, in which `seen[r - 1]` pages were seen by r of them. */
function setOf(...seen: readonly number[]) {
  const runs = seen.flatMap((pages, index): CountedRun[] =>
    pages === 0 ? [] : [{ address: BigInt(index + 1) << 40n, pages, written: 0, read: index + 1 }],
  );
  return workingSet({ ...EMPTY_WORKING_SET, recordings: 5, runs });
}

describe("what the next start will touch", () => {
  it("has no page that few recordings saw, when none of them was seen again", () => {
    const { likely, misses } = forecast(setOf(600, 2, 0, 0, 1000));
    expect(runPages(likely)).toBe(0);
    // 600 / 5 that nobody saw, and one in so many of the 600.
    expect(misses).toBeCloseTo(120 + (2 * 2) / 5);
  });

  it("has those that come back", () => {
    const { likely, misses } = forecast(setOf(300, 200, 200, 200, 1000));
    expect(runPages(likely)).toBe(500);
    expect(misses).toBeCloseTo(60);
  });

  it("is nothing while nothing was recorded, and anything after one recording", () => {
    expect(forecast(EMPTY_WORKING_SET)).toEqual({ likely: [], misses: 0 });
    const runs: CountedRun[] = [{ address: 0n, pages: 70, written: 0, read: 1 }];
    expect(forecast(workingSet({ ...EMPTY_WORKING_SET, recordings: 1, runs }))).toEqual({ likely: [], misses: 70 });
  });
});
