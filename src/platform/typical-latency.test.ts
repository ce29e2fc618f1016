import { describe, expect, it } from "vitest";
import { TypicalLatency } from "./typical-latency.js";

const of = (...samples: number[]) => {
  const typical = new TypicalLatency();
  for (const sample of samples) typical.add(sample);
  return typical;
};

describe("what is typical of a latency", () => {
  it("is not known before there is one, and not told by what is none", () => {
    expect(of(Number.NaN, -1)).toMatchObject({ count: 0, ms: Number.NaN });
  });

  it("is the lowest of few, and nearly the median of many", () => {
    expect(of(9, 4, 7).ms).toBe(4);
    expect(of(9, 4, 7, 5, 6, 8, 3).ms).toBe(5);
    const many = of(...Array.from({ length: 48 }, (_, index) => ((index * 31) % 48) + 1));
    expect(many.ms).toBeGreaterThanOrEqual(19);
    expect(many.ms).toBeLessThanOrEqual(24);
  });

  it("counts what most starts meet, and no hiccup however large", () => {
    expect(of(...Array.from({ length: 24 }, (_, index) => (index % 4 === 0 ? 1 : 8))).ms).toBe(8);
    expect(of(2, Number.POSITIVE_INFINITY, 2, 1e300, 2, 3, 2).ms).toBe(2);
  });

  it("forgets", () => {
    expect(of(...Array.from({ length: 48 }, () => 1), ...Array.from({ length: 48 }, () => 5)).ms).toBe(5);
  });
});
