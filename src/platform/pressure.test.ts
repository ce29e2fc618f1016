import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
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
    const [psi, vmstat] = [join(dir, "memory"), join(dir, "vmstat")];
    const some = "some avg10=1.53 avg60=0.87 avg300=0.22 total=1234567\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n";
    writeFileSync(psi, some);
    writeFileSync(
      vmstat,
      "pgscan_kswapd 30\npgscan_direct 12\npgscan_direct_throttle 5\npgscan_khugepaged 7\npgscan_file 1000\n",
    );
    expect(readPressure(psi, vmstat)).toEqual({ stalledUs: 1_234_567, scannedPages: 42 });
    writeFileSync(psi, "");
    expect(readPressure(psi, vmstat)).toBeUndefined();
    writeFileSync(psi, some);
    writeFileSync(vmstat, "pgscan_direct 12\n");
    expect(readPressure(psi, vmstat)).toBeUndefined();
    rmSync(dir, { recursive: true });
    expect(readPressure(psi, vmstat)).toBeUndefined();
  });

  it("finds what it counts on this kernel", () => {
    const vmstat = readFileSync("/proc/vmstat", "utf8");
    for (const name of ["pgscan_kswapd", "pgscan_direct"]) expect(vmstat).toMatch(new RegExp(`^${name} \\d+$`, "m"));
  });

  it("is told once a second while tasks wait for a tenth of the time, and not below", async () => {
    vi.useFakeTimers();
    let total = 0;
    let told = 0;
    const timer = watchPressure(
      () => told++,
      () => ({ stalledUs: total, scannedPages: total }),
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

  it("is nothing of the machine's where tasks wait at the limit of their own group alone", async () => {
    vi.useFakeTimers();
    let [stalledUs, scannedPages, told] = [0, 50, 0];
    const timer = watchPressure(
      () => told++,
      () => ({ stalledUs, scannedPages }),
    );
    stalledUs += 400_000;
    await vi.advanceTimersByTimeAsync(1_000);
    expect(told).toBe(0);
    stalledUs += 400_000;
    scannedPages += 1;
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
