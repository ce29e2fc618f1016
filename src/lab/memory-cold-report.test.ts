import { describe, expect, it } from "vitest";
import type { ColdSample } from "./cold-start.js";
import { type ColdResult, coldChecks, coldTable, type Disk, diskUs, sumUp } from "./memory-cold-report.js";
import { renderTable } from "./table.js";

const disk: Disk = { directBytesPerSecond: 1e9, bufferedBytesPerSecond: 2e9, readAheadKb: 128 };

function sample(us: number): ColdSample {
  const pages = { imagePages: 1_200, interpreterPages: 300, faultsOutside: Number.NaN, majorFaults: 3 };
  return { us, phases: [], poolUs: 0, blockedUs: us === 9_000 ? Number.NaN : 2_000, ...pages };
}

function result(name: string, times: Readonly<Record<string, readonly number[]>>, unstable = false): ColdResult {
  return {
    workload: { name, about: "for a test", ...(unstable ? { unstable } : {}) },
    libraries: [],
    arms: Object.entries(times).map(([arm, us]) => ({ name: arm, samples: us.map(sample), rounds: [], failures: [] })),
    warmUs: [200, 200],
    workingSetPages: 1_000,
  };
}

const full = (name: string, splice: number) =>
  result(name, {
    "thaw lazy-4k": [40_000, 40_000],
    "thaw lazy": [8_000, 8_000],
    "thaw eager": [20_000, 20_000],
    "thaw splice": [splice, splice],
    "thaw splice again (A/A)": [splice, splice],
    "thaw splice, interpreter cached": [5_000, 5_000],
  });
const verdicts = (each: ColdResult) => Object.fromEntries(coldChecks(each, disk).map(({ what, verdict }) => [what, verdict]));

describe("promises of a cold start", () => {
  it("are held against the faster of the two bandwidths", () => {
    expect(diskUs(1_000, disk)).toBeCloseTo(2_048);
  });

  it("compare with every other loader, and say of a missing one that it was not measured", () => {
    const found = verdicts(full("hello-x", 9_000));
    expect(found["cold: splice / lazy, at most the noise of A/A"]).toBe("FAIL");
    expect(found["cold: splice / eager, at most the noise of A/A"]).toBe("PASS");
    expect(found["cold: splice / reap, at most the noise of A/A"]).toBe("not measured");
    expect(found["cold: splice minus warm, at most 2 x working set / bandwidth"]).toBe("FAIL");
    expect(found["image and interpreter cold, p50"]).toBe("PASS");
    expect(found["image cold, interpreter cached, p50"]).toBe("PASS");
  });

  it("give a start the disk's time for its working set twice, and what a warm request takes", () => {
    expect(verdicts(full("big", 4_200))["cold: splice minus warm, at most 2 x working set / bandwidth"]).toBe("PASS");
    expect(verdicts(full("big", 4_400))["cold: splice minus warm, at most 2 x working set / bandwidth"]).toBe("FAIL");
  });

  it("are not made of absolute times for functions that are not the smallest", () => {
    expect(verdicts(full("big", 4_000))).not.toHaveProperty("image and interpreter cold, p50");
  });

  it("are summed up over functions whose requests touch the same pages", () => {
    const wild = result("wild", { "thaw lazy-4k": [1], "thaw splice": [1_000] }, true);
    const { measured, verdict, what } = sumUp([full("a", 8_000), full("b", 5_000), wild]);
    expect(measured.value).toBeCloseTo(Math.sqrt(5 * 8));
    expect(verdict).toBe("PASS");
    expect(what).toContain("over 2 functions");
  });

  it("are not summed up when one function lacks a loader", () => {
    const lacking = result("a", { "thaw splice": [1_000] });
    expect(sumUp([full("b", 5_000), lacking]).verdict).toBe("not measured");
  });
});

it("a table of cold starts leaves out what was not counted, and shows the rest", () => {
  const text = renderTable(coldTable([full("hello-x", 9_000)], disk), false);
  expect(text).toContain("working set 1,000 pages, 2.05 ms of disk; warm 0.200 ms");
  expect(text).toContain("read_ahead_kb 128");
  expect(text).toMatch(/thaw splice .* 1,200 +300 +500 +– +3\.00 +– +2/);
  expect(text).toMatch(/thaw lazy .* 2\.00 +2/);
});
