import { describe, expect, it } from "vitest";
import type { Platform } from "../platform/index.js";
import { checkMany, deployMany, functionName, packageOf } from "./many-functions.js";

describe("many functions", () => {
  it("have names in order and code of their own", () => {
    expect([functionName(2), functionName(10)].sort()).toEqual([functionName(2), functionName(10)]);
    expect(Buffer.from(packageOf(2)).equals(Buffer.from(packageOf(4)))).toBe(false);
  });

  it("cannot answer for each other, or for another request", () => {
    const reply = Buffer.from('{"function":4,"seed":9}');
    expect(() => checkMany(4, 9, reply)).not.toThrow();
    expect(() => checkMany(2, 9, reply)).toThrow("function 2, seed 9, answered");
    expect(() => checkMany(4, 8, reply)).toThrow("answered");
  });

  it("count only those that have their image, however many come after one that failed", async () => {
    const platform = {
      deploy: async ({ name }: { name: string }) => {
        if (name === functionName(1)) throw new Error("no room");
      },
      waitReady: async (name: string) => (name === functionName(3) ? { state: "failed", reason: "why" } : { state: "ready" }),
    } as unknown as Platform;
    const deployed = await deployMany({ progress: () => {} }, platform, 6, () => undefined);
    expect(deployed.indices).toEqual([0, 2, 4, 5]);
    expect(deployed.failures).toEqual([
      { round: 1, error: "no room" },
      { round: 3, error: "its image is failed: why" },
    ]);
  });
});
