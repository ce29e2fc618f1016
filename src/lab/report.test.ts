import { describe, expect, it } from "vitest";
import { check, checksTable, exactly, hasFailed, jsonLines, type Measurement, troubles } from "./report.js";
import { renderTable } from "./table.js";

const measurement: Measurement = { workload: "hello", way: "boot", unit: "us", samples: [1.5, 2], failures: [] };
const environment = { kernel: "6.18", cpu: "x", commit: "abc" } as never;

describe("check", () => {
  it("passes and fails at the bound, and never passes what was not measured", () => {
    expect(check("w", "x", exactly(45), ">=", 45, "").verdict).toBe("PASS");
    expect(check("w", "x", exactly(44.9), ">=", 45, "").verdict).toBe("FAIL");
    expect(check("w", "x", exactly(2.5), "<=", 2.5, "ms").verdict).toBe("PASS");
    expect(check("w", "x", exactly(1), "=", 0, "").verdict).toBe("FAIL");
    expect(check("w", "x", exactly(Number.NaN), "<=", 1, "").verdict).toBe("not measured");
    expect(check("w", "x", exactly(1), "<=", Number.NaN, "").verdict).toBe("not measured");
  });

  it("is shown with its interval", () => {
    const text = renderTable(
      checksTable([check("node-80mb", "boot / thaw", { value: 50, low: 47, high: 53.1 }, ">=", 45, "")]),
      false,
    );
    expect(text).toMatch(/node-80mb +boot \/ thaw +>= 45\.0 +50\.0 +47\.0 … 53\.1 +PASS/);
  });
});

describe("a failed run", () => {
  const failed: Measurement = { ...measurement, failures: [{ round: 3, error: "no" }], cutShort: "time" };

  it("decides the exit code and is named; a missed figure does neither", () => {
    const missed = [check("w", "x", exactly(2), "<=", 1, "")];
    expect(hasFailed({ measurements: [measurement], checks: missed, tables: [] })).toBe(false);
    expect(hasFailed({ measurements: [failed], checks: [], tables: [] })).toBe(true);
    expect(troubles([measurement, failed])).toEqual(["FAILED: hello, boot, round 3: no", "CUT SHORT: hello, boot: time"]);
  });

  it("is in the JSON lines, each of which stands alone", () => {
    const lines = jsonLines(
      "starts",
      { measurements: [failed], checks: [check("w", "x", exactly(2), "<=", 1, "")], tables: [] },
      environment,
    );
    const [first, second] = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(first).toMatchObject({
      section: "starts",
      type: "measurement",
      samples: [1.5, 2],
      failures: [{ round: 3, error: "no" }],
      environment,
    });
    expect(second).toMatchObject({ section: "starts", type: "check", verdict: "FAIL", bound: 1, environment });
  });
});
