import { describe, expect, it } from "vitest";
import { obituary } from "./instance-end.js";
import type { InstanceExit } from "./keeper.js";
import type { FunctionSpec } from "./types.js";

const REQUEST = { requestId: "r-1", beganMs: 0, timeoutMs: 3000 };
const KILLED: InstanceExit = { code: undefined, signal: 9, oomKills: 0, maxRssKb: 0, userUs: 0, systemUs: 0, peakBytes: 0 };

function memoryOf(exit: Partial<InstanceExit>): number {
  const ending = { end: undefined, exit: { ...KILLED, ...exit }, spec: { memoryMb: 128 } as FunctionSpec, heapFull: false };
  return obituary(ending, REQUEST).maxMemoryMb;
}

describe("the memory of an instance that ended", () => {
  it("is the peak of its group, and where the kernel cannot tell that, its largest process", () => {
    expect(memoryOf({ peakBytes: 100 * 2 ** 20, maxRssKb: 60 * 1024 })).toBe(100);
    expect(memoryOf({ maxRssKb: 60 * 1024 })).toBe(60);
    expect(memoryOf({ maxRssKb: 150 * 1024 }), "its limit at most").toBe(128);
  });
});
