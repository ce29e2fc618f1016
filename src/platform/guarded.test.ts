import { describe, expect, it } from "vitest";
import { createLogger } from "../base/log.js";
import { guardedHeat, guardedIdle } from "./guarded.js";
import type { HeatDecider, HeatPolicy, ImagePoint } from "./heat-policy.js";
import type { IdleFacts } from "./idle-times.js";
import type { IdlePolicy } from "./policy.js";

const IMAGES: readonly ImagePoint[] = [
  { generation: 0, heat: 0 },
  { generation: 2, heat: 100 },
  { generation: 1, heat: 10 },
];
const [COLD, HOT] = IMAGES as [ImagePoint, ImagePoint];

function listening() {
  const lines: string[] = [];
  return { lines, log: createLogger({ level: "error", destination: { write: (line: string) => void lines.push(line) } }) };
}

const kept: HeatDecider = { choose: () => COLD, freezeAt: () => 7, answered: () => undefined, surplus: () => [HOT] };
const policyOf = (decider: Partial<HeatDecider>): HeatPolicy => ({ name: "mine", begin: () => ({ ...kept, ...decider }) });
const throwing = (): never => {
  throw new Error("as it does");
};

describe("a policy of heat", () => {
  it("that keeps the rules decides", () => {
    const { log, lines } = listening();
    const decider = guardedHeat(policyOf({ save: () => 5 }), log).begin();
    expect([decider.choose(IMAGES), decider.freezeAt(IMAGES, COLD), decider.surplus(IMAGES), decider.save?.()]).toEqual([
      COLD,
      7,
      [HOT],
      5,
    ]);
    expect(guardedHeat(policyOf({}), log).begin().save).toBeUndefined();
    expect(lines).toEqual([]);
  });

  it("that throws is done without, and told of once for each method", () => {
    const { log, lines } = listening();
    const all = { choose: throwing, freezeAt: throwing, answered: throwing, surplus: throwing, save: throwing };
    const decider = guardedHeat(policyOf(all), log).begin();
    for (let turn = 0; turn < 2; turn++) {
      expect(decider.choose(IMAGES)).toEqual(HOT);
      expect(decider.freezeAt(IMAGES, COLD)).toBeUndefined();
      decider.answered(COLD, 1, 5);
      expect(decider.surplus(IMAGES)).toEqual([]);
      expect(decider.save?.()).toBeUndefined();
    }
    expect(lines).toHaveLength(5);
    expect(lines[0]).toContain('"policy":"mine","method":"choose"');
    expect(lines[0]).toContain("as it does");
  });

  it.each<[string, Partial<HeatDecider>]>([
    ["an image that is not there", { choose: () => ({ generation: 9, heat: 9 }) }],
    ["nothing", { choose: () => undefined as unknown as ImagePoint }],
  ])("that chooses %s gets the hottest", (_, decider) => {
    expect(guardedHeat(policyOf(decider), listening().log).begin().choose(IMAGES)).toEqual(HOT);
  });

  it.each([Number.NaN, 0, 10, 10.5, "70" as unknown as number])("that would freeze at %s has nothing frozen", (at) => {
    const decider = guardedHeat(policyOf({ freezeAt: () => at }), listening().log).begin();
    expect(decider.freezeAt(IMAGES, { generation: 1, heat: 10 })).toBeUndefined();
  });

  it("that gives up all, or answers no list, gives up none", () => {
    const all = guardedHeat(policyOf({ surplus: (images) => images }), listening().log).begin();
    const none = guardedHeat(policyOf({ surplus: () => undefined as unknown as ImagePoint[] }), listening().log).begin();
    expect([all.surplus(IMAGES), none.surplus(IMAGES)]).toEqual([[], []]);
  });

  it("that cannot begin is done without; one that cannot go on with what was saved says so, and begins anew", () => {
    const { log, lines } = listening();
    const policy = guardedHeat({ name: "mine", begin: throwing }, log);
    expect(policy.begin().freezeAt([COLD], COLD)).toBe(1);
    expect(lines).toHaveLength(1);
    expect(() => policy.begin(undefined, {})).toThrow("as it does");
  });
});

describe("a policy of idle times", () => {
  const facts = {} as IdleFacts;
  const idleOf = (decide: IdlePolicy["decide"]) => guardedIdle({ name: "mine", decide }, listening().log);

  it("that answers a plan decides", () => {
    const plan = [{ afterMs: 5, action: "dispose" as const }];
    expect(idleOf(() => plan).decide(facts)).toBe(plan);
  });

  it.each<[string, IdlePolicy["decide"]]>([
    ["throws", throwing],
    ["answers nothing", () => undefined as never],
    ["answers a list of nothing", () => [null] as never],
    ["does not know when", () => [{ afterMs: Number.NaN, action: "hibernate" }]],
    ["forgot when", () => [{ action: "dispose" }] as never],
    ["wants something before the request ended", () => [{ afterMs: -1, action: "dispose" }]],
    ["asks for what cannot be done", () => [{ afterMs: 5, action: "freeze" as never }]],
  ])("that %s has instances kept as by default", (_, decide) => {
    expect(idleOf(decide).decide(facts)).toEqual([
      { afterMs: 60_000, action: "hibernate" },
      { afterMs: 3_660_000, action: "dispose" },
    ]);
  });
});
