import { describe, expect, it } from "vitest";
import { policyChecks, policyMeasurements, policyTable, worstOf } from "./heat-policy-report.js";
import type { ReplayResult } from "./heat-replay.js";
import { renderTable } from "./table.js";

function result(lifetimes: string, ratio: number, freezes: number, policy = "fixed"): ReplayResult {
  const spread = { median: ratio - 0.02, p95: ratio, max: ratio + 0.1 };
  const best = { heat: 100, typicalMs: 1 };
  return {
    function: "node-a",
    policy,
    images: "warm-up",
    lifetimes,
    seeds: 100,
    freezes: { mean: freezes - 0.5, max: freezes },
    fixed: [best],
    best,
    ratio: spread,
    starts: [
      { heat: 0, share: 0.25 },
      { heat: 12, share: 0.25 },
      { heat: 100, share: 0.5 },
    ],
  };
}

describe("the promise of a policy", () => {
  it("is held against the kind of traffic that it does worst with, each figure for itself", () => {
    const results = [result("1 request", 1.02, 7), result("bursts", 1.2, 3), result("1 request", 1.05, 2, "other")];
    expect(worstOf(results)).toEqual([
      { function: "node-a", policy: "fixed", ratio: 1.2, freezes: 7 },
      { function: "node-a", policy: "other", ratio: 1.05, freezes: 2 },
    ]);
    expect(policyChecks(results, [], []).map(({ verdict }) => verdict)).toEqual(["FAIL", "FAIL", "PASS", "PASS"]);
    expect(policyChecks([result("1 request", 1.1, 6)], [], []).map(({ verdict }) => verdict)).toEqual(["PASS", "PASS"]);
  });

  it("is not measured for a function that could not be recorded", () => {
    const found = policyChecks([], ["node-b"], ["fixed"]);
    expect(found.map(({ workload, verdict }) => `${workload}: ${verdict}`)).toEqual([
      "node-b: not measured",
      "node-b: not measured",
    ]);
  });
});

describe("the table of policies", () => {
  it("says by which images was started", () => {
    const text = renderTable(policyTable([result("bursts", 1.08, 4)], "x"), false);
    expect(text).toMatch(/fixed +bursts +100 +1\.06 +1\.08 +3\.50 +4\.00 +0: 25 %, 11–100: 75 %/);
    expect(policyMeasurements([result("bursts", 1.08, 4)])[0]?.facts).toMatchObject({ bestHeat: 100, freezesMax: 4 });
  });
});
