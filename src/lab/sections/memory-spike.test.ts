import { describe, expect, it } from "vitest";
import type { Platform } from "../../platform/index.js";
import { spike } from "./memory-spike.js";

describe("a spike", () => {
  it("has a sample of each function that was started as meant and answered rightly, and of no other", async () => {
    const platform = {
      invoke: async (name: string, payload: string) => {
        const index = Number(name.slice(name.indexOf("-") + 1));
        const { seed } = JSON.parse(payload) as { seed: number };
        const answer = { function: index === 7 ? 8 : index, seed };
        const result = { payload: Buffer.from(JSON.stringify(answer)), functionError: index === 3 ? "Unhandled" : undefined };
        const start = { kind: index === 5 ? "boot" : "thaw", fallback: index === 6 ? "its image was damaged" : undefined };
        return { result, start };
      },
    } as unknown as Platform;
    const indices = [0, 2, 3, 5, 6, 7, 9];
    const { us, failures } = await spike(platform, "from images", indices, 1, "thaw");
    expect(us).toHaveLength(3);
    expect(failures.map(({ round }) => round)).toEqual([3, 5, 6, 7]);
    expect(failures[2]?.error).toBe("meant to be a thaw, but was thaw: its image was damaged");
  });
});
