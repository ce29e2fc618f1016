import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Histogram } from "./histogram.js";

describe("Histogram", () => {
  it("counts a value at a bound below it, and what is beyond the last apart", () => {
    const histogram = new Histogram([1, 10]);
    for (const value of [0, 1, 1.5, 10, 10.5, 99]) histogram.add(value);
    expect(histogram.view()).toEqual({ buckets: [2, 2, 2], count: 6, sum: 122 });
  });

  it("has every value in one bucket", () => {
    const values = fc.array(fc.double({ min: 0, max: 100, noNaN: true }));
    const bounds = fc.uniqueArray(fc.integer({ min: 0, max: 100 })).map((list) => list.sort((a, b) => a - b));
    fc.assert(
      fc.property(values, bounds, (added, limits) => {
        const histogram = new Histogram(limits);
        for (const value of added) histogram.add(value);
        const { buckets, count } = histogram.view();
        expect(count).toBe(added.length);
        limits.forEach((limit, index) => {
          const below = buckets.slice(0, index + 1).reduce((sum, each) => sum + each, 0);
          expect(below).toBe(added.filter((value) => value <= limit).length);
        });
      }),
    );
  });
});
