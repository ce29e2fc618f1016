import { describe, expect, it } from "vitest";
import { FakeEngine } from "../engine/fake.js";
import { checkOptions } from "./check-options.js";
import type { PlatformOptions } from "./types.js";

const told = (options: object): string => {
  try {
    checkOptions({ dataDir: "/none", engine: new FakeEngine(), ...options } as PlatformOptions);
    return "";
  } catch (error) {
    return (error as Error).message;
  }
};

describe("numbers that a platform is opened with", () => {
  it("may be left out, and may be without end where that means never", () => {
    const never = Number.POSITIVE_INFINITY;
    expect(told({})).toBe("");
    expect(
      told({
        maxInstances: 1,
        keepWarmMs: never,
        keepHibernatedMs: 0,
        memoryBudgetBytes: never,
        drainMs: 0,
        parked: { image: 2 },
      }),
    ).toBe("");
  });

  it.each([
    [{ maxInstances: Number.NaN }, "maxInstances is NaN, and it must be a whole number from 1 to 100000"],
    [{ maxInstances: 0 }, "maxInstances is 0, and it must be a whole number from 1 to 100000"],
    [{ maxInstances: "8" }, "maxInstances is 8, and it must be a whole number from 1 to 100000"],
    [{ genericHusks: 1.5 }, "genericHusks is 1.5, and it must be a whole number from 0 to 100000"],
    [{ drainMs: Number.POSITIVE_INFINITY }, "drainMs is Infinity, and it must be a number from 0 to 2147483647"],
    [{ keepWarmMs: -1 }, "keepWarmMs is -1, and it must be a number at least 0"],
    [{ memoryBudgetBytes: 0 }, "memoryBudgetBytes is 0, and it must be a number at least 1"],
    [{ parked: { prefaulted: -2 } }, "parked.prefaulted is -2, and it must be a whole number from 0 to 100000"],
  ])("are refused by name: %o", (options, why) => {
    expect(told(options)).toBe(
      `The platform cannot be opened. ${why}. Leave out what shall have its default (src/platform/types.ts)`,
    );
  });

  it("are all named that are wrong", () => {
    expect(told({ maxInstances: -1, heatBackoffMs: 0 })).toContain(
      "maxInstances is -1, and it must be a whole number from 1 to 100000; heatBackoffMs is 0, and it must be a number from 1 to 2147483647",
    );
  });
});
