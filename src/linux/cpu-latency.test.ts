import { closeSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { CpuLatency, type CpuLatencyWish } from "./cpu-latency.js";

const FREE = 2_000_000_000;
let dir: string;
let open: CpuLatency[] = [];

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "thaw-latency-"));
  vi.useFakeTimers();
});
afterEach(() => {
  for (const one of open) one.close();
  open = [];
  vi.useRealTimers();
  rmSync(dir, { recursive: true });
});

/** A device that keeps all that was ever wished, and a driver of that name. */
function latencyOf(wish?: CpuLatencyWish, driver: string | null = "haltpoll", present = true): CpuLatency {
  if (present) writeFileSync(join(dir, "device"), "");
  if (driver !== null) writeFileSync(join(dir, "driver"), `${driver}\n`);
  const latency = new CpuLatency(wish, { device: join(dir, "device"), driver: join(dir, "driver") });
  open.push(latency);
  return latency;
}

function wishes(): number[] {
  const bytes = readFileSync(join(dir, "device"));
  return Array.from({ length: bytes.length / 4 }, (_, index) => bytes.readInt32LE(index * 4));
}

describe("CpuLatency", () => {
  it("wishes from the first request until a millisecond after the last answer", () => {
    const latency = latencyOf();
    expect(wishes()).toEqual([]);
    latency.awaited();
    latency.awaited();
    expect(wishes()).toEqual([0]);
    latency.answered();
    vi.advanceTimersByTime(2);
    expect(latency.holding).toBe(true);
    latency.answered();
    expect(wishes()).toEqual([0]);
    vi.advanceTimersByTime(1);
    expect(wishes()).toEqual([0, FREE]);
    expect(latency.holding).toBe(false);
  });

  it("goes on without another word where requests follow each other", () => {
    const latency = latencyOf();
    for (let request = 0; request < 20; request++) {
      latency.awaited();
      vi.advanceTimersByTime(3);
      latency.answered();
    }
    expect(wishes()).toEqual([0]);
  });

  it("does not keep processors awake for a function that runs for long", () => {
    const latency = latencyOf();
    latency.awaited();
    vi.advanceTimersByTime(6);
    expect(wishes()).toEqual([0, FREE]);
    latency.answered();
    vi.advanceTimersByTime(6);
    expect(wishes()).toEqual([0, FREE]);
    latency.awaited();
    expect(wishes()).toEqual([0, FREE, 0]);
  });

  it("wishes what suits the driver, or what it is told", () => {
    expect(latencyOf("auto", "haltpoll").info).toEqual({ driver: "haltpoll", us: 0 });
    const real = latencyOf("auto", "intel_idle");
    expect(real.info).toEqual({ driver: "intel_idle", us: 2 });
    real.awaited();
    expect(wishes()).toEqual([2]);
    expect(latencyOf(50, "intel_idle").info.us).toBe(50);
  });

  it("wishes nothing where it shall not or cannot, and says why", () => {
    for (const [latency, info] of [
      [latencyOf("off"), { driver: "haltpoll" }],
      [latencyOf("auto", "none"), { driver: "none", why: "this kernel has no cpuidle driver" }],
    ] as const) {
      expect(latency.info).toEqual(info);
      latency.awaited();
      latency.answered();
      vi.advanceTimersByTime(10);
      expect(wishes()).toEqual([]);
    }
    rmSync(join(dir, "device"));
    expect(latencyOf("auto", "haltpoll", false).info).toEqual({
      driver: "haltpoll",
      why: `there is no ${join(dir, "device")} here`,
    });
    rmSync(join(dir, "driver"));
    expect(latencyOf("auto", null).info.driver).toBe("none");
  });

  it("is silent after its end", () => {
    const latency = latencyOf();
    latency.awaited();
    latency.close();
    latency.close();
    latency.answered();
    latency.awaited();
    vi.advanceTimersByTime(10);
    expect(wishes()).toEqual([0]);
    expect(latency.holding).toBe(false);
  });
});

const here = new CpuLatency();
here.close();

it.runIf(here.info.us !== undefined)("is heard by this kernel", () => {
  const latency = new CpuLatency();
  const fd = openSync("/dev/cpu_dma_latency", "r");
  try {
    latency.awaited();
    const now = Buffer.alloc(4);
    readSync(fd, now, 0, 4, 0);
    expect(now.readInt32LE()).toBeLessThanOrEqual(here.info.us ?? -1);
  } finally {
    closeSync(fd);
    latency.close();
  }
});
