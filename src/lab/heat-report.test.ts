import { describe, expect, it } from "vitest";
import { type HeatSample, STEADY, STEADY_PAUSED } from "./heat-arms.js";
import { HEATS } from "./heat-images.js";
import {
  aroundTable,
  enoughHeat,
  firstTable,
  gainTable,
  type HeatResult,
  HOT_AGAIN,
  heatChecks,
  heatMeasurements,
  loadOverHot,
  nearSteady,
  THIRD,
  thawRatio,
  wayOf,
} from "./heat-report.js";
import { renderTable } from "./table.js";

interface Figures {
  readonly load: number;
  readonly hot: number;
  readonly steady: number;
  readonly third?: Partial<HeatSample>;
  readonly hotSample?: Partial<HeatSample>;
}

const sample = (handlerUs: number, more: Partial<HeatSample> = {}): HeatSample => ({
  handlerUs,
  startUs: 1_000,
  aroundUs: 2_000,
  phases: [],
  faults: 300,
  ...more,
});

/** Steady samples, so that every interval is a point. */
function result(name: string, { load, hot, steady, third = {}, hotSample = {} }: Figures): HeatResult {
  const arm = (way: string, each: HeatSample) => ({ name: way, samples: [each, each, each], rounds: [0, 1, 2], failures: [] });
  const between = [hot * 1.6, hot * 1.4, hot * 1.05];
  return {
    workload: name,
    language: name.startsWith("node") ? "node" : "python",
    about: "for a test",
    arms: [
      arm(wayOf(0), sample(load)),
      ...HEATS.slice(1, 4).map((heat, index) => arm(wayOf(heat), sample(between[index] ?? hot))),
      arm(wayOf(1_000), sample(hot, hotSample)),
      arm(THIRD, sample(hot, third)),
      arm(HOT_AGAIN, sample(hot)),
      arm("boot", sample(load * 2)),
      arm(STEADY, sample(steady)),
      arm(STEADY_PAUSED, sample(steady)),
    ],
    curve: Array.from({ length: 1_000 }, (_, index) => 10 / (1 + index)),
    imageBytes: { load: 8e6 },
  };
}

const verdicts = (results: readonly HeatResult[]) =>
  heatChecks(results).map(({ workload, what, verdict }) => `${workload}: ${what}: ${verdict}`);

describe("promises of hot starts", () => {
  it("are kept in the geometric mean over JavaScript alone", () => {
    const quick = result("node-a", { load: 9_000, hot: 1_000, steady: 900 });
    const slow = result("node-b", { load: 1_000, hot: 1_000, steady: 900 });
    const python = result("python-a", { load: 1_000, hot: 1_000, steady: 900 });
    const [mean] = heatChecks([quick, slow, python]);
    expect(mean).toMatchObject({ workload: "JavaScript, 2 functions", verdict: "PASS" });
    expect(mean?.measured.value).toBeCloseTo(3);
    expect(heatChecks([slow, python])[0]?.verdict).toBe("FAIL");
  });

  it("are missed by a function whose whole interval lies below 1", () => {
    const slower = result("node-a", { load: 900, hot: 1_000, steady: 900 });
    expect(loadOverHot(slower).high).toBeLessThan(1);
    expect(verdicts([slower])).toContain("node-a: first request: load / hot, upper end of its interval: FAIL");
    const same = result("node-a", { load: 1_000, hot: 1_000, steady: 900 });
    expect(verdicts([same])).toContain("node-a: first request: load / hot, upper end of its interval: PASS");
  });

  it("hold near the steady state by ratio or by difference, for six of eight", () => {
    const byRatio = result("node-a", { load: 9_000, hot: 5_000, steady: 4_000 });
    const byDifference = result("node-b", { load: 9_000, hot: 600, steady: 100 });
    const neither = result("node-c", { load: 9_000, hot: 601, steady: 100 });
    expect([byRatio, byDifference, neither].map((each) => nearSteady(each))).toEqual([true, true, false]);
    const count = (near: number, far: number) =>
      heatChecks([...Array(near).fill(byRatio), ...Array(far).fill(neither)])[1]?.verdict;
    expect(count(6, 2)).toBe("PASS");
    expect(count(5, 3)).toBe("FAIL");
    expect(count(9, 3)).toBe("PASS");
    expect(count(8, 4)).toBe("FAIL");
  });

  it("hold the worse of start and everything around the handler against the image after load", () => {
    const quickStart = result("node-a", { load: 9, hot: 1, steady: 1, third: { startUs: 500, aroundUs: 2_600 } });
    expect(thawRatio(quickStart, THIRD).value).toBeCloseTo(1.3);
    expect(verdicts([quickStart])).toEqual(
      expect.arrayContaining([
        "node-a: before the handler: hot / load, first generation: PASS",
        "node-a: before the handler: hot / load, third generation: FAIL",
      ]),
    );
    const slowStart = result("node-a", { load: 9, hot: 1, steady: 1, hotSample: { startUs: 1_300, aroundUs: 1_900 } });
    expect(thawRatio(slowStart, wayOf(1_000)).value).toBeCloseTo(1.3);
  });

  it("are not measured where an arm is missing", () => {
    const whole = result("node-a", { load: 9_000, hot: 1_000, steady: 900 });
    const without = { ...whole, arms: whole.arms.filter(({ name }) => name !== wayOf(1_000)) };
    const found = heatChecks([without]);
    expect(found[0]?.verdict).toBe("not measured");
    expect(found[1]).toMatchObject({ measured: { value: 0 }, verdict: "FAIL" });
    expect(enoughHeat(without)).toBeUndefined();
  });
});

describe("tables of hot starts", () => {
  const one = result("node-a", { load: 9_000, hot: 1_000, steady: 900 });

  it("name the least heat that is nearly as quick as the quickest", () => {
    expect(enoughHeat(one)).toBe(100);
    const text = renderTable(firstTable([one], "x"), false);
    expect(text).toMatch(/node-a +9\.00 +1\.60 +1\.40 +1\.05 +1\.00 +1\.00 +0\.900 +0\.900 +9\.00x +9\.00 … 9\.00 +1\.11x +100/);
  });

  it("show failed runs", () => {
    const [first, ...rest] = one.arms;
    if (first === undefined) throw new Error("bug: no arms");
    const failing = { ...one, arms: [{ ...first, failures: [{ round: 2, error: "no" }] }, ...rest] };
    expect(renderTable(firstTable([failing], "x"), false)).toContain("1 failed");
    expect(heatMeasurements(failing)[0]?.failures).toEqual([{ round: 2, error: "no" }]);
  });

  it("show costs around the handler, and how much quicker the function gets", () => {
    expect(renderTable(aroundTable([one]), false)).toMatch(/heat 1000, generation 3 +1\.00 +2\.00 +1\.00x/);
    // Boot's first 18 ms, hundredth 0.1 ms.
    expect(renderTable(gainTable([one]), false)).toMatch(/node-a +18\.0 +0\.100 +180x +90\.0x +10\.0x +20\.0x +10\.0x +1\.11x/);
  });

  it("keep every sample and the instance's whole curve for --json", () => {
    const found = heatMeasurements(one);
    expect(found.map(({ way }) => way)).toEqual([...one.arms.map(({ name }) => name), "one instance, request by request"]);
    expect(found[0]).toMatchObject({ unit: "us", samples: [9_000, 9_000, 9_000], phases: { start: [1_000, 1_000, 1_000] } });
    expect(found.at(-1)?.samples.length).toBe(1_000);
  });
});
