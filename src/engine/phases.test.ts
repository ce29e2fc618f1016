import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { STAMPS } from "../image/index.js";
import { phasesOf } from "./phases.js";

/** Stamps of one stage: its arrival, then named ones. */
function stamped(arrival: number, named: Partial<Record<keyof typeof STAMPS, number>> = {}): number[] {
  const stamps = Array.from({ length: 16 }, () => 0);
  stamps[0] = arrival;
  for (const [name, at] of Object.entries(named)) stamps[STAMPS[name as keyof typeof STAMPS]] = at;
  return stamps;
}

describe("the phases of a start", () => {
  it("go from the beginning to the last stamp, each from the end of the one before", () => {
    const { us, phases } = phasesOf(
      1_000_000n,
      { husk: 0n },
      ["thaw"],
      [stamped(1_050_000, { files: 1_150_000, regions: 1_450_000, stack: 1_460_000, threads: 1_500_000 })],
    );
    expect(us).toBe(500);
    expect(phases).toEqual([
      { name: "send", us: 50 },
      { name: "files", us: 100 },
      { name: "regions", us: 300 },
      { name: "stack", us: 10 },
      { name: "threads", us: 40 },
    ]);
  });

  it("begin with what the server did before: the image's pages were read, and the husk was made on the path", () => {
    const ahead = { read: 300_000n, husk: 400_000n };
    const { us, phases } = phasesOf(1_000_000n, ahead, ["thaw"], [stamped(1_710_000, { threads: 1_800_000 })]);
    expect(us).toBe(800);
    expect(phases).toEqual([
      { name: "read", us: 300 },
      { name: "husk", us: 400 },
      { name: "send", us: 10 },
      { name: "threads", us: 90 },
    ]);
  });

  it("give what a stage did behind its last stamp to the stage, until the next one arrives", () => {
    const { phases } = phasesOf(0n, {}, ["time", "resume"], [stamped(10_000), stamped(60_000, { descriptors: 70_000 })]);
    expect(phases).toEqual([
      { name: "send", us: 10 },
      { name: "time", us: 50 },
      { name: "descriptors", us: 10 },
    ]);
  });

  it("of the same name are added up, and those without length left out", () => {
    const { us, phases } = phasesOf(
      0n,
      {},
      ["a", "b"],
      [stamped(0, { tmp: 10_000, descriptors: 10_000 }), stamped(10_000, { tmp: 25_000 })],
    );
    expect(us).toBe(25);
    expect(phases).toEqual([{ name: "tmp", us: 25 }]);
  });

  it("are never negative, even when a husk waited with its work done long before the request", () => {
    const { us, phases } = phasesOf(1_000_000n, {}, ["resume"], [stamped(900_000, { descriptors: 950_000 })]);
    expect([us, phases]).toEqual([0, []]);
  });

  it("of a start without stages, or without stamps, are none", () => {
    expect(phasesOf(5n, {}, [], [])).toEqual({ us: 0, phases: [] });
    expect(phasesOf(5n, {}, ["a"], [])).toEqual({ us: 0, phases: [] });
  });

  it("add up to the whole", () => {
    const names = Object.keys(STAMPS) as (keyof typeof STAMPS)[];
    const stage = fc.array(fc.nat({ max: 10_000_000 }), { minLength: names.length + 1, maxLength: names.length + 1 });
    fc.assert(
      fc.property(fc.array(stage, { minLength: 1, maxLength: 4 }), fc.nat({ max: 5_000_000 }), (stages, madeNs) => {
        const began = 7_000_000_000;
        let now = began + madeNs;
        const stamps = stages.map((steps) => {
          const [arrival = 0, ...rest] = steps;
          now += arrival;
          const named: Partial<Record<keyof typeof STAMPS, number>> = {};
          const at = now;
          for (const [index, name] of names.entries()) named[name] = now += rest[index] ?? 0;
          return stamped(at, named);
        });
        const { us, phases } = phasesOf(
          BigInt(began),
          { husk: BigInt(madeNs) },
          stages.map((_, index) => `stage ${index}`),
          stamps,
        );
        expect(us).toBeCloseTo((now - began) / 1000, 3);
        const sum = phases.reduce((total, phase) => total + phase.us, 0);
        expect(Math.abs(sum - us)).toBeLessThan(0.06 * (phases.length + names.length));
        expect(phases.every((phase) => phase.us > 0)).toBe(true);
        expect(new Set(phases.map(({ name }) => name)).size).toBe(phases.length);
      }),
    );
  });
});
