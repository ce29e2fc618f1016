/** Pools wait while a start is under way and a moment longer, and twenty milliseconds at most. */
import { describe, expect, it } from "vitest";
import { Quiet } from "./quiet.js";

describe("pools", () => {
  it("are refilled at once while nothing starts", () => {
    expect(new Quiet().waitMs(1000)).toBe(0);
  });

  it("wait for a start, however slow, and for its answer", () => {
    const quiet = new Quiet();
    quiet.began(1000);
    for (const now of [1000, 1003, 1009, 1016]) expect(quiet.waitMs(now)).toBe(3);
    quiet.spoke(1016.5);
    expect(quiet.waitMs(1016.5)).toBe(2);
    expect(quiet.waitMs(1018.4)).toBe(1);
    expect(quiet.waitMs(1018.5)).toBe(0);
  });

  it("wait for all starts that are under way", () => {
    const quiet = new Quiet();
    quiet.began(1000);
    quiet.began(1001);
    quiet.spoke(1004);
    expect(quiet.waitMs(1007)).toBe(3);
    quiet.spoke(1008);
    expect(quiet.waitMs(1010)).toBe(0);
  });

  it("wait no longer than twenty milliseconds, then not until they are full, and then as long again", () => {
    const quiet = new Quiet();
    quiet.began(1000);
    quiet.began(1010);
    quiet.spoke(1015);
    expect(quiet.waitMs(1018)).toBe(2);
    for (const now of [1020, 1021, 1025]) expect(quiet.waitMs(now)).toBe(0);
    quiet.filled(1025);
    // The second one is still under way.
    expect(quiet.waitMs(1026)).toBe(3);
    expect(quiet.waitMs(1044.5)).toBe(1);
    expect(quiet.waitMs(1045)).toBe(0);
    quiet.spoke(1046);
    quiet.filled(1047);
    expect(quiet.waitMs(1048)).toBe(0);
    quiet.began(2000);
    expect(quiet.waitMs(2001)).toBe(3);
  });
});
