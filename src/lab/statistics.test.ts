import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  awayFromOne,
  differenceOfMedians,
  geometricMeanOfRatios,
  median,
  noiseOf,
  quantile,
  ratioOfMedians,
  seededRandom,
  summarize,
} from "./statistics.js";

const samples = fc.array(fc.double({ min: 0.001, max: 1e9, noNaN: true }), { minLength: 1, maxLength: 60 });

describe("quantiles", () => {
  it("agree with hand-worked examples", () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 2, 3])).toBe(2.5);
    expect(quantile([1, 2, 3, 4, 5], 0.25)).toBe(2);
    expect(quantile([10, 20], 0.99)).toBeCloseTo(19.9);
  });

  it("of nothing are NaN, so a missing measurement cannot look fast", () => {
    expect(median([])).toBeNaN();
    expect(summarize([])).toEqual({ median: Number.NaN, p99: Number.NaN, iqr: Number.NaN });
    expect(ratioOfMedians([], [1]).value).toBeNaN();
  });

  it("lie between the extremes, never decrease in q, and do not depend on order", () => {
    fc.assert(
      fc.property(
        samples,
        fc.double({ min: 0, max: 1, noNaN: true }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (list, a, b) => {
          const low = quantile(list, Math.min(a, b));
          const high = quantile(list, Math.max(a, b));
          expect(low).toBeGreaterThanOrEqual(Math.min(...list));
          expect(high).toBeLessThanOrEqual(Math.max(...list));
          expect(low).toBeLessThanOrEqual(high);
          expect(quantile([...list].reverse(), a)).toBe(quantile(list, a));
        },
      ),
    );
  });

  it("leave their input as it was", () => {
    const list = [3, 1, 2];
    summarize(list);
    expect(list).toEqual([3, 1, 2]);
  });
});

describe("estimates", () => {
  it("hold their own value inside the interval and repeat exactly", () => {
    fc.assert(
      fc.property(samples, samples, (left, right) => {
        const ratio = ratioOfMedians(left, right);
        expect(ratio.low).toBeLessThanOrEqual(ratio.high);
        expect(ratio.value).toBeCloseTo(median(left) / median(right));
        expect(ratioOfMedians(left, right)).toEqual(ratio);
        const difference = differenceOfMedians(left, right);
        expect(difference.low).toBeLessThanOrEqual(difference.high);
        expect(difference.low).toBeGreaterThanOrEqual(Math.min(...left) - Math.max(...right));
        expect(difference.high).toBeLessThanOrEqual(Math.max(...left) - Math.min(...right));
      }),
      { numRuns: 20 },
    );
  });

  it("are narrow for steady samples and wide for scattered ones", () => {
    const random = seededRandom(7);
    const steady = Array.from({ length: 40 }, () => 100 + random());
    const scattered = Array.from({ length: 40 }, () => 50 + 100 * random());
    const width = (list: number[]) => {
      const { low, high } = ratioOfMedians(list, steady);
      return high - low;
    };
    expect(width(steady)).toBeLessThan(0.01);
    expect(width(scattered)).toBeGreaterThan(0.1);
  });

  it("cover the true ratio of two known distributions about as often as they claim", () => {
    const random = seededRandom(11);
    let covered = 0;
    const trials = 60;
    for (let trial = 0; trial < trials; trial++) {
      const draw = (middle: number) => Array.from({ length: 30 }, () => middle + (random() + random() - 1) * middle * 0.3);
      const { low, high } = ratioOfMedians(draw(90), draw(2));
      if (low <= 45 && 45 <= high) covered += 1;
    }
    expect(covered / trials).toBeGreaterThan(0.85);
  });
});

describe("the geometric mean of ratios", () => {
  const exact = (numerator: number, denominator: number) => ({ numerator: [numerator], denominator: [denominator] });

  it("agrees with hand-worked examples, and has no width where there is one sample each", () => {
    const { value, low, high } = geometricMeanOfRatios([exact(8, 1), exact(1, 2)]);
    expect(value).toBeCloseTo(2);
    expect(low).toBeCloseTo(2);
    expect(high).toBeCloseTo(2);
  });

  it("is not measured when any list is empty, or there is none", () => {
    expect(geometricMeanOfRatios([exact(8, 1), { numerator: [], denominator: [1] }]).value).toBeNaN();
    expect(geometricMeanOfRatios([]).value).toBeNaN();
  });

  it("has its value inside its interval, and grows with any numerator", () => {
    fc.assert(
      fc.property(samples, samples, (numerator, denominator) => {
        const { value, low, high } = geometricMeanOfRatios([{ numerator, denominator }]);
        expect(low).toBeLessThanOrEqual(value * (1 + 1e-9));
        expect(high).toBeGreaterThanOrEqual(value * (1 - 1e-9));
        const doubled = geometricMeanOfRatios([{ numerator: numerator.map((each) => each * 2), denominator }]);
        expect(doubled.value).toBeCloseTo(value * 2, -Math.floor(Math.log10(value)) + 3);
      }),
      { numRuns: 20 },
    );
  });
});

describe("noise", () => {
  it("is the end of the interval that is farther from 1, whichever side it lies on", () => {
    expect(noiseOf([10], [10])).toBe(1);
    expect(noiseOf([5], [10])).toBe(2);
    expect(noiseOf([10], [5])).toBe(2);
    expect(noiseOf([], [5])).toBeNaN();
  });

  it("is told as a ratio of at least 1, with its interval turned round where need be", () => {
    expect(awayFromOne({ value: 2, low: 0.5, high: 4 })).toEqual({ value: 2, low: 0.5, high: 4 });
    expect(awayFromOne({ value: 0.5, low: 0.25, high: 2 })).toEqual({ value: 2, low: 0.5, high: 4 });
    expect(awayFromOne({ value: Number.NaN, low: 1, high: 1 }).value).toBeNaN();
  });
});
