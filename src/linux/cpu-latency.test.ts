import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { CpuLatency, type CpuLatencyWish, checkCpuLatency } from "./cpu-latency.js";

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
function latencyOf(wish: CpuLatencyWish = 0, driver: string | null = "haltpoll", present = true): CpuLatency {
  if (present) writeFileSync(join(dir, "device"), "");
  if (driver !== null) writeFileSync(join(dir, "driver"), `${driver}\n`);
  const latency = new CpuLatency(wish, { device: join(dir, "device"), driver: join(dir, "driver") });
  open.push(latency);
  return latency;
}

/** The descriptor that lists them is gone again. */
function linkOf(fd: string): string | undefined {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return undefined;
  }
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

  it("wishes what it is told", () => {
    const latency = latencyOf(50, "intel_idle");
    expect(latency.info).toEqual({ driver: "intel_idle", us: 50 });
    latency.awaited();
    expect(wishes()).toEqual([50]);
  });

  it("wishes nothing where it shall not or cannot, and says why", () => {
    for (const [latency, info] of [
      [latencyOf("off"), { driver: "haltpoll" }],
      [latencyOf(0, "none"), { driver: "none", why: "this kernel has no cpuidle driver" }],
    ] as const) {
      expect(latency.info).toEqual(info);
      latency.awaited();
      latency.answered();
      vi.advanceTimersByTime(10);
      expect(wishes()).toEqual([]);
    }
    rmSync(join(dir, "device"));
    expect(latencyOf(0, "haltpoll", false).info).toEqual({
      driver: "haltpoll",
      why: `there is no ${join(dir, "device")} here`,
    });
    rmSync(join(dir, "driver"));
    expect(latencyOf(0, null).info.driver).toBe("none");
  });

  it("fails nobody's request where the kernel does not take a wish, and wishes nothing more", () => {
    writeFileSync(join(dir, "driver"), "haltpoll\n");
    // Whoever writes to it is told that the disk is full.
    const latency = new CpuLatency(0, { device: "/dev/full", driver: join(dir, "driver") });
    open.push(latency);
    expect(latency.info.us).toBe(0);
    latency.awaited();
    latency.answered();
    vi.advanceTimersByTime(10);
    latency.awaited();
    expect(latency.holding).toBe(false);
    expect(latency.info).toEqual({ driver: "haltpoll", why: expect.stringContaining("ENOSPC") });
  });

  it("gives the device back at its end, and with it the wish", () => {
    const opened = () => readdirSync("/proc/self/fd").filter((fd) => linkOf(fd) === join(dir, "device")).length;
    const latency = latencyOf();
    latency.awaited();
    expect(opened()).toBe(1);
    latency.close();
    expect(opened()).toBe(0);
  });

  it("refuses what no kernel could be asked for", () => {
    for (const wish of [-1, 1.5, 3e9, Number.NaN, "lots" as "off"])
      expect(() => checkCpuLatency(wish)).toThrow("cannot be asked for");
    for (const wish of [undefined, "off", 0, 10_000] as const) checkCpuLatency(wish);
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

const here = new CpuLatency(0);
here.close();

it.runIf(here.info.us !== undefined)("is heard by this kernel", () => {
  const latency = new CpuLatency(0);
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
