import { describe, expect, it } from "vitest";
import { COMPARED, loaderNamed, missingLoaders } from "./loaders.js";
import { hasFailed, troubles } from "./report.js";

describe("loaders that this engine lacks", () => {
  it("are failed runs that say why, never gaps", () => {
    const measurements = missingLoaders("hello", COMPARED, ["lazy", "eager", "splice"]);
    expect(measurements.map(({ way }) => way)).toEqual(["thaw lazy-4k", "thaw reap"]);
    expect(hasFailed({ measurements, checks: [], tables: [] })).toBe(true);
    expect(troubles(measurements)[0]).toBe(
      "FAILED: hello, thaw lazy-4k, round 0: not available: this engine has only the loaders lazy, eager, splice",
    );
  });

  it("are none when it has all", () => {
    expect(missingLoaders("hello", COMPARED, COMPARED)).toEqual([]);
    expect(loaderNamed("reap", ["lazy"])).toBeUndefined();
    expect(loaderNamed("lazy", ["lazy"])).toBe("lazy");
  });
});
