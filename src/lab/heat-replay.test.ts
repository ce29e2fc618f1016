import { describe, expect, it } from "vitest";
import { fixedPoints } from "../platform/fixed-points.js";
import type { HeatPolicy, ImagePoint } from "../platform/heat-policy.js";
import { pronghorn } from "../platform/pronghorn.js";
import { geometricLifetimes, LIFETIMES, type RecordedLatencies, type ReplayResult, replayPolicies } from "./heat-replay.js";
import { seededRandom } from "./statistics.js";

const HEATS = [0, 1, 10, 100, 1_000];
const STARTS = 60;
const REQUESTS = 20;

/**
 * A function whose request after `served` others costs `ms(served)`, and a fixed part more when it is the first after a thaw. One start of
 * twelve meets a hiccup of 48 ms.
 */
function recording(name: string, ms: (served: number) => number, noise = 0.1): RecordedLatencies {
  const random = seededRandom(name.length * 7_919);
  const latency = (served: number, first: boolean) => (ms(served) + (first ? 0.5 : 0)) * (1 + noise * (2 * random() - 1));
  const points = HEATS.map((heat) => ({
    heat,
    starts: Array.from({ length: STARTS }, (_, start) =>
      Array.from(
        { length: REQUESTS },
        (_, index) => latency(heat + index, index === 0) + (index === 0 && start % 12 === 5 ? 48 : 0),
      ),
    ),
  }));
  return { function: name, points };
}

const FUNCTIONS: readonly RecordedLatencies[] = [
  recording("flat", () => 3),
  recording("improving", (served) => 1 + 9 / Math.sqrt(1 + served)),
  recording("worsening", (served) => 2 + 0.5 * Math.log2(1 + served)),
  recording("noisy", (served) => (served < 50 ? 4 : 2), 0.4),
  // Nothing is gained at 1 and 10: the compiler comes at the sixtieth request.
  recording("two phases", (served) => (served < 60 ? 8 : 1.5)),
  recording("best in the middle", (served) => 2 + Math.abs(Math.log10(1 + served) - 1)),
];

/** Millions of decisions, on a machine that may do other things: not a bound on their time. */
const MINUTES = { timeout: 300_000 };
const OPTIONS = { seeds: 60, requests: 2_000 };
const SHORT = LIFETIMES.slice(0, 2);
const broken = (results: readonly ReplayResult[]) =>
  results.filter(({ ratio }) => !(ratio.p95 <= 1.1)).map((result) => `${result.function}, ${result.lifetimes}`);

describe("replayed on recorded latencies, after 300 requests", () => {
  it(
    "fixed points are within a tenth of the best of them, in 95 of 100 runs of every function, with at most 6 freezes",
    MINUTES,
    () => {
      const results = replayPolicies(FUNCTIONS, [fixedPoints()], { ...OPTIONS, lifetimes: SHORT });
      expect(results).toHaveLength(FUNCTIONS.length * SHORT.length);
      expect(broken(results)).toEqual([]);
      expect(Math.max(...results.map(({ freezes }) => freezes.max))).toBeLessThanOrEqual(6);
      const flat = results.filter((result) => result.function === "flat");
      const improving = results.filter((result) => result.function === "improving");
      expect(flat[0]?.freezes.mean).toBeLessThan(improving[0]?.freezes.mean ?? 0);
    },
  );

  it("Pronghorn's policy is so where it has not to be hotter than it gets, with at most 6 freezes", MINUTES, () => {
    const results = replayPolicies(FUNCTIONS, [pronghorn()], { ...OPTIONS, lifetimes: SHORT.slice(0, 1) });
    expect(Math.max(...results.map(({ freezes }) => freezes.max))).toBeLessThanOrEqual(6);
    expect(broken(results)).not.toContain("flat, 1 request");
    expect(broken(results)).not.toContain("two phases, 1 request");
  });

  it("naive policies are not", MINUTES, () => {
    const naive = (
      name: string,
      choose: (images: readonly ImagePoint[]) => ImagePoint,
      points: readonly number[],
    ): HeatPolicy => ({
      name,
      begin: () => ({
        choose,
        freezeAt: (images) => points.find((point) => point > Math.max(...images.map(({ heat }) => heat))),
        answered: () => {},
        surplus: () => [],
      }),
    });
    const hottest = (images: readonly ImagePoint[]) => images.reduce((hot, image) => (image.heat > hot.heat ? image : hot));
    const coldest = (images: readonly ImagePoint[]) => images.reduce((cold, image) => (image.heat < cold.heat ? image : cold));
    const only = (policy: HeatPolicy) =>
      broken(replayPolicies(FUNCTIONS, [policy], { seeds: 5, requests: 2_000, lifetimes: SHORT.slice(0, 1) }));
    expect(only(naive("hottest", hottest, HEATS))).toEqual(["worsening, 1 request", "best in the middle, 1 request"]);
    expect(only(naive("after the first request", hottest, [1]))).toContain("two phases, 1 request");
    expect(only(naive("never", coldest, []))).toContain("improving, 1 request");
  });
});

describe("a replay", () => {
  const always = (generation: number, freezeAt: (heat: number) => number | undefined = () => undefined): HeatPolicy => ({
    name: "always",
    begin: () => ({
      choose: (images) => images[Math.min(generation, images.length - 1)] as ImagePoint,
      freezeAt: (images) => freezeAt(images.at(-1)?.heat ?? 0),
      answered: () => {},
      surplus: () => [],
    }),
  });
  const plain: RecordedLatencies = {
    function: "plain",
    points: [
      { heat: 0, starts: [[8, 4]] },
      { heat: 10, starts: [[2, 1]] },
    ],
  };
  const one = [geometricLifetimes(1)];
  const run = (policy: HeatPolicy, options: Partial<Parameters<typeof replayPolicies>[2]> = {}) => {
    const [result] = replayPolicies([plain], [policy], { seeds: 2, requests: 400, lifetimes: one, ...options });
    if (result === undefined) throw new Error("no result");
    return result;
  };

  it("tells what each point alone would have cost, and which is the best", () => {
    const result = run(always(0));
    expect(result.fixed).toEqual([
      { heat: 0, typicalMs: 8 },
      { heat: 10, typicalMs: 2 },
    ]);
    expect(result.best.heat).toBe(10);
    expect(result.ratio).toEqual({ median: 4, p95: 4, max: 4 });
    expect(result.starts).toEqual([{ heat: 0, share: 1 }]);
  });

  it("counts freezes of the private instance, which answers ten requests for each real one", () => {
    const policy = always(9, (heat) => (heat < 10 ? 10 : undefined));
    const result = run(policy);
    expect(result.freezes).toEqual({ mean: 1, max: 1 });
    expect(result.ratio.max).toBe(1);
    // The first request is served before that image is there; all others from it.
    expect(run(policy, { requests: 100, settled: 0 }).ratio.max).toBeCloseTo((8 + 99 * 2) / 100 / 2);
  });

  it("treats an image between two recorded heats as the colder one", () => {
    const result = run(always(9, (heat) => (heat < 9 ? 9 : undefined)));
    expect(result.starts).toEqual([{ heat: 9, share: 1 }]);
    expect(result.ratio.max).toBe(4);
  });

  it("takes images from traffic only where instances live that long", () => {
    const freezeAtTen = always(9, (heat) => (heat < 10 ? 10 : undefined));
    expect(run(freezeAtTen, { images: "traffic" }).freezes.max).toBe(0);
    const long = run(freezeAtTen, { images: "traffic", lifetimes: [geometricLifetimes(50)] });
    expect(long.freezes).toEqual({ mean: 1, max: 1 });
    expect(long.starts).toEqual([{ heat: 10, share: 1 }]);
  });

  it("makes an instance that lives on as hot as its requests made it", () => {
    const forever = { name: "forever", draw: () => 1_000 };
    // 8, then 4 until the tenth request; from the twelfth on as an instance that was thawed at heat 10 and is past its first request.
    const typicalMs = (settled: number, requests: number) =>
      run(always(0), { lifetimes: [forever], settled, requests }).fixed[0]?.typicalMs;
    expect(typicalMs(100, 300)).toBe(1);
    expect(typicalMs(0, 1)).toBe(8);
  });

  it("judges by what is typical, not by a hiccup that was recorded", () => {
    const [result] = replayPolicies([{ function: "hiccup", points: [{ heat: 0, starts: [[2], [2], [48]] }] }], [always(0)], {
      seeds: 3,
      requests: 600,
      lifetimes: one,
    });
    expect(result?.best.typicalMs).toBe(2);
    expect(result?.ratio.max).toBe(1);
  });

  it("draws lifetimes of the mean that they are named for", () => {
    for (const mean of [1, 4, 20]) {
      const random = seededRandom(mean);
      const { name, draw } = geometricLifetimes(mean);
      const lives = Array.from({ length: 20_000 }, () => draw(random));
      expect(Math.min(...lives)).toBe(1);
      expect(lives.reduce((sum, life) => sum + life, 0) / lives.length / mean).toBeCloseTo(1, 1);
      expect(name).toContain(`${mean}`);
    }
  });

  it("refuses a policy that chooses an image which does not exist, or gives up all", () => {
    const wrong = (decider: Partial<ReturnType<HeatPolicy["begin"]>>): HeatPolicy => ({
      name: "wrong",
      begin: () => ({ ...always(0).begin(), ...decider }),
    });
    expect(() => run(wrong({ choose: () => ({ generation: 5, heat: 5 }) }))).toThrow("does not exist: heat 5");
    expect(() => run(wrong({ surplus: (images) => images }))).toThrow("gave up every image");
  });

  it("refuses recordings that it cannot replay, by name", () => {
    const replay = (points: RecordedLatencies["points"]) => () =>
      replayPolicies([{ function: "f", points }], [always(0)], { seeds: 1, requests: 10 });
    expect(replay([])).toThrow("f does not begin at heat 0");
    expect(replay([{ heat: 1, starts: [[1]] }])).toThrow("f does not begin at heat 0");
    const zero = { heat: 0, starts: [[1]] };
    expect(replay([zero, { heat: 9, starts: [[1]] }, { heat: 3, starts: [[1]] }])).toThrow("f is not in order of heat");
    expect(replay([zero, { heat: 9, starts: [] }])).toThrow("f at heat 9 lacks latencies");
    expect(replay([zero, { heat: 9, starts: [[Number.NaN]] }])).toThrow("f at heat 9 lacks latencies");
  });
});
