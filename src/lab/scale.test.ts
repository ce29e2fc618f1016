import { describe, expect, it } from "vitest";
import { scale } from "./scale.js";

describe("the scale of a run", () => {
  it("is what is promised, unless the environment asks for less", () => {
    expect(scale("THAW_BENCH_FUNCTIONS", {})).toBe(10_000);
    expect(scale("THAW_BENCH_FUNCTIONS", { THAW_BENCH_FUNCTIONS: "50" })).toBe(50);
  });

  it.each(["", "0", "-1", "1e3", "many"])("is never %j", (text) => {
    expect(() => scale("THAW_BENCH_SPIKE", { THAW_BENCH_SPIKE: text })).toThrow("THAW_BENCH_SPIKE cannot be");
  });
});
