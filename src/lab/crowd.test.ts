import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { atOnce, machineShare } from "./crowd.js";

describe("many at once", () => {
  it("does each once, in order, and never more at once than there are lanes", async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: 30 }), fc.integer({ min: 1, max: 6 }), async (count, lanes) => {
        const begun: number[] = [];
        let running = 0;
        let most = 0;
        await atOnce(count, lanes, async (index) => {
          begun.push(index);
          most = Math.max(most, ++running);
          await new Promise((resolve) => setImmediate(resolve));
          running -= 1;
        });
        expect(begun).toEqual(Array.from({ length: count }, (_, index) => index));
        expect(most).toBeLessThanOrEqual(lanes);
      }),
      { numRuns: 20 },
    );
  });

  it("begins no more after a failure, lets those under way end, and throws it", async () => {
    const ended: number[] = [];
    const work = atOnce(100, 2, async (index) => {
      await new Promise((resolve) => setTimeout(resolve, index === 0 ? 20 : 1));
      if (index === 1) throw new Error("the second one failed");
      ended.push(index);
    });
    await expect(work).rejects.toThrow("the second one failed");
    expect(ended).toEqual([0]);
  });
});

describe("the machine's share", () => {
  it("is what was missing while they were there, beside the mean of before and after", () => {
    expect(machineShare(1_000, 400, 1_040)).toEqual({ bytes: 620, driftBytes: 40 });
  });

  it("is not measured when the machine moved by itself, or nothing was missing", () => {
    expect(machineShare(1_000, 400, 1_400).bytes).toBeNaN();
    expect(machineShare(1_000, 1_100, 1_050).bytes).toBeNaN();
  });
});
