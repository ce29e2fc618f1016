import { describe, expect, it } from "vitest";
import { nowMs, nowUs, sleep } from "./clock.js";

describe("the clock", () => {
  it("gives microseconds and milliseconds of the same origin", () => {
    const ms = nowMs();
    const us = nowUs();
    expect(us / 1000).toBeGreaterThanOrEqual(ms);
    expect(us / 1000).toBeLessThanOrEqual(nowMs());
  });

  it("sleeps at least as long as asked", async () => {
    const start = nowMs();
    await sleep(20);
    expect(nowMs() - start).toBeGreaterThanOrEqual(19);
  });

  it("wakes with the signal's reason when aborted, before or during the sleep", async () => {
    const early = new AbortController();
    early.abort(new Error("already over"));
    await expect(sleep(60_000, early.signal)).rejects.toThrow("already over");
    const late = new AbortController();
    const sleeping = sleep(60_000, late.signal);
    late.abort(new Error("stop now"));
    await expect(sleeping).rejects.toThrow("stop now");
  });
});
