import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { readPressure, watchPressure } from "./pressure.js";

afterEach(() => {
  vi.useRealTimers();
});

describe("memory pressure", () => {
  it("is read in the kernel's form, and unknown where the kernel does not tell", () => {
    const dir = mkdtempSync(join(tmpdir(), "thaw-psi-"));
    const path = join(dir, "memory");
    writeFileSync(path, "some avg10=1.53 avg60=0.87 avg300=0.22 total=1234567\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n");
    expect(readPressure(path)).toBe(1_234_567);
    writeFileSync(path, "");
    expect(readPressure(path)).toBeUndefined();
    rmSync(dir, { recursive: true });
    expect(readPressure(path)).toBeUndefined();
  });

  it("is told once a second while tasks wait for a tenth of the time, and not below", async () => {
    vi.useFakeTimers();
    let total = 0;
    let told = 0;
    const timer = watchPressure(
      () => told++,
      () => total,
    );
    await vi.advanceTimersByTimeAsync(1_000);
    expect(told).toBe(0);
    total += 99_999;
    await vi.advanceTimersByTimeAsync(1_000);
    expect(told).toBe(0);
    total += 100_000;
    await vi.advanceTimersByTimeAsync(1_000);
    expect(told).toBe(1);
    clearInterval(timer);
  });

  it("is not watched where it is unknown", () => {
    expect(
      watchPressure(
        () => undefined,
        () => undefined,
      ),
    ).toBeUndefined();
  });
});
