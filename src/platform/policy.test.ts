import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { histogramPolicy } from "./histogram-policy.js";
import { IdleTimes } from "./idle-times.js";
import { fixedPolicy, type IdleStep } from "./policy.js";

const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;

function idleTimes(...times: number[]): IdleTimes {
  const idle = new IdleTimes("f");
  for (const time of times) idle.add(time);
  return idle;
}
const repeat = (ms: number, count: number): number[] => Array.from({ length: count }, () => ms);
const actions = (steps: readonly IdleStep[]): string[] => steps.map(({ action }) => action);

describe("the histogram of idle times", () => {
  it("bounds every percentile within a fifth, from a tenth of a second to a day", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 101, max: 24 * HOUR }), { minLength: 1 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (times, part) => {
          const idle = idleTimes(...times);
          const sorted = [...times].sort((a, b) => a - b);
          const exact = sorted[Math.max(1, Math.ceil(part * times.length)) - 1] ?? 0;
          const bounds = idle.percentile(part);
          expect(bounds?.fromMs).toBeLessThanOrEqual(exact);
          expect(bounds?.toMs).toBeGreaterThanOrEqual(exact);
          expect(bounds?.toMs).toBeLessThanOrEqual(exact * 1.2);
        },
      ),
    );
  });

  it("counts what is longer than a day as out of bounds, and nothing else", () => {
    const idle = idleTimes(0, 50, HOUR, 48 * HOUR);
    expect([idle.count, idle.outOfBounds, idle.lastMs]).toEqual([4, 1, 48 * HOUR]);
    expect(idle.percentile(1)?.fromMs).toBeLessThan(HOUR);
    expect(new IdleTimes("f").percentile(0.5)).toBeUndefined();
  });
});

describe("a histogram that was saved", () => {
  it("is the same when it is recalled", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 60 * HOUR })), (times) => {
        const idle = idleTimes(...times);
        const recalled = new IdleTimes("f");
        recalled.recall(JSON.parse(JSON.stringify(idle.save())));
        expect(recalled).toEqual(idle);
      }),
    );
  });

  it.each([
    null,
    {},
    { count: 2, outOfBounds: 0, bins: [[1, 1]] },
    { count: 1, outOfBounds: 0, bins: [[80, 1]] },
    { count: -1, outOfBounds: -1, bins: [] },
  ])("is refused when it makes no sense: %j", (saved) => {
    const idle = idleTimes(MINUTE);
    expect(() => idle.recall(saved)).toThrow();
    expect(idle).toEqual(idleTimes(MINUTE));
  });
});

describe("fixed times", () => {
  it("keep warm, then hibernated, then only the image", () => {
    expect(fixedPolicy().decide(idleTimes())).toEqual([
      { afterMs: 60_000, action: "hibernate" },
      { afterMs: 3_660_000, action: "dispose" },
    ]);
    expect(fixedPolicy({ keepWarmMs: 5_000, keepHibernatedMs: 10_000 }).decide(idleTimes())).toEqual([
      { afterMs: 5_000, action: "hibernate" },
      { afterMs: 15_000, action: "dispose" },
    ]);
  });

  it("end an instance when keepAlive is over, warm or not", () => {
    expect(fixedPolicy({ keepAliveMs: 30_000 }).decide(idleTimes())).toEqual([{ afterMs: 30_000, action: "dispose" }]);
    expect(fixedPolicy({ keepAliveMs: 30_000, keepWarmMs: 10_000 }).decide(idleTimes())).toEqual([
      { afterMs: 10_000, action: "hibernate" },
      { afterMs: 30_000, action: "dispose" },
    ]);
  });
});

describe("the histogram policy", () => {
  const policy = histogramPolicy({ keepWarmMs: MINUTE, keepHibernatedMs: HOUR });
  const fixed = fixedPolicy({ keepWarmMs: MINUTE, keepHibernatedMs: HOUR }).decide(idleTimes());

  it("hibernates a function that comes every ten minutes at once, and wakes it just before", () => {
    const steps = policy.decide(idleTimes(...repeat(10 * MINUTE, 50)));
    expect(actions(steps)).toEqual(["hibernate", "wake", "hibernate", "dispose"]);
    const [first, wake, again, end] = steps.map(({ afterMs }) => afterMs) as [number, number, number, number];
    expect(first).toBe(SECOND);
    expect(wake).toBeGreaterThan(7 * MINUTE);
    expect(wake).toBeLessThan(10 * MINUTE);
    expect(again).toBeGreaterThan(10 * MINUTE);
    expect(again).toBeLessThan(14 * MINUTE);
    expect(end).toBe(again + HOUR);
  });

  it("keeps one that comes every two seconds warm until just after that, not for a minute", () => {
    const steps = policy.decide(idleTimes(...repeat(2 * SECOND, 50)));
    expect(actions(steps)).toEqual(["hibernate", "dispose"]);
    expect(steps[0]?.afterMs).toBeGreaterThan(2 * SECOND);
    expect(steps[0]?.afterMs).toBeLessThan(3 * SECOND);
  });

  it("follows a function whose times change", () => {
    const idle = idleTimes(...repeat(2 * SECOND, 50));
    expect(actions(policy.decide(idle))).toEqual(["hibernate", "dispose"]);
    for (const time of repeat(10 * MINUTE, 2_000)) idle.add(time);
    expect(actions(policy.decide(idle))).toEqual(["hibernate", "wake", "hibernate", "dispose"]);
  });

  it("goes by the head and the tail, not by the mean", () => {
    const steps = policy.decide(idleTimes(...repeat(MINUTE, 50), ...repeat(3 * MINUTE, 50)));
    expect(steps[1]).toMatchObject({ action: "wake" });
    expect(steps[1]?.afterMs).toBeLessThan(MINUTE);
    expect(steps[2]?.afterMs).toBeGreaterThan(3 * MINUTE);
  });

  it.each([
    ["nothing is known", []],
    ["too little is known", repeat(10 * MINUTE, 9)],
    ["the times have no shape", Array.from({ length: 80 }, (_, bin) => 110 * 2 ** (bin / 4))],
    ["most of them are longer than a day", [...repeat(10 * MINUTE, 10), ...repeat(48 * HOUR, 11)]],
  ])("falls back to the fixed times while %s", (_, times) => {
    expect(policy.decide(idleTimes(...times))).toEqual(fixed);
  });

  it("never keeps an instance beyond keepAlive", () => {
    const steps = histogramPolicy({ keepAliveMs: 5 * MINUTE }).decide(idleTimes(...repeat(10 * MINUTE, 50)));
    expect(steps.map(({ action, afterMs }) => [action, afterMs])).toEqual([
      ["hibernate", SECOND],
      ["dispose", 5 * MINUTE],
    ]);
  });
});
