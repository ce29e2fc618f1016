import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { fixedPoints } from "./fixed-points.js";
import type { HeatDecider, HeatPolicy, ImagePoint } from "./heat-policy.js";
import { pronghorn } from "./pronghorn.js";

/** A generator of our own: this room does not import the laboratory's. */
function sequence(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

const POLICIES: readonly HeatPolicy[] = [fixedPoints(), pronghorn()];

/** Whatever may be said to a decider, in any order. */
type Word =
  | { readonly say: "choose" | "surplus" | "vanish" | "freeze" }
  | { readonly say: "add"; readonly heat: number }
  | { readonly say: "answer"; readonly image: number; readonly served: number; readonly ms: number };
const heats = fc.oneof(fc.constantFrom(0, 1, 10, 100, 1_000), fc.nat(5_000));
const latencies = fc.oneof(
  fc.double({ min: 0.01, max: 100, noNaN: true }),
  fc.constantFrom(Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, -1, 0, 1e-300, Number.MAX_VALUE),
);
const words: fc.Arbitrary<Word> = fc.oneof(
  fc.record({ say: fc.constantFrom("choose" as const, "surplus" as const, "vanish" as const, "freeze" as const) }),
  fc.record({ say: fc.constant("add" as const), heat: heats }),
  fc.record({
    say: fc.constant("answer" as const),
    image: fc.nat(20),
    served: fc.oneof(
      { arbitrary: fc.integer({ min: 1, max: 30 }), weight: 9 },
      { arbitrary: fc.integer({ min: -5, max: 5_000 }), weight: 1 },
    ),
    ms: latencies,
  }),
);

/** Plays words to a decider and checks every answer; returns what it answered. */
function talk(decider: HeatDecider, said: readonly Word[]): unknown[] {
  const images: ImagePoint[] = [{ generation: 0, heat: 0 }];
  const answers: unknown[] = [];
  let generation = 0;
  let from: ImagePoint = images[0] as ImagePoint;
  for (const word of said) {
    if (word.say === "choose") {
      from = decider.choose(images);
      expect(images).toContain(from);
      answers.push(from.generation);
    } else if (word.say === "freeze") {
      const next = decider.freezeAt(images, from);
      if (next !== undefined) {
        expect(Number.isSafeInteger(next)).toBe(true);
        expect(next).toBeGreaterThan(from.heat);
      }
      answers.push(next);
    } else if (word.say === "surplus") {
      const lost = decider.surplus(images);
      expect(new Set(lost).size).toBe(lost.length);
      for (const image of lost) expect(images).toContain(image);
      expect(lost.length).toBeLessThan(images.length);
      for (const image of lost) images.splice(images.indexOf(image), 1);
      answers.push(lost.map((image) => image.generation));
    } else if (word.say === "add") {
      images.push({ generation: ++generation, heat: word.heat });
    } else if (word.say === "vanish") {
      if (images.length > 1) images.splice(generation % images.length, 1);
    } else if (word.say === "answer") {
      const image = images[word.image % images.length] ?? from;
      decider.answered(image, image.heat + word.served, word.ms);
    }
  }
  return answers;
}

describe.each(POLICIES.map((policy) => [policy.name, policy] as const))("the policy %s", (_, policy) => {
  it("chooses an image that exists, freezes later than it thawed, and never gives up all, whatever it is told", () => {
    fc.assert(
      fc.property(fc.array(words, { maxLength: 300 }), fc.nat(), (said, seed) => {
        talk(policy.begin(sequence(seed)), said);
      }),
      { numRuns: 300 },
    );
  });

  it("decides the same with the same random numbers", () => {
    fc.assert(
      fc.property(fc.array(words, { maxLength: 200 }), fc.nat(), (said, seed) => {
        expect(talk(policy.begin(sequence(seed)), said)).toEqual(talk(policy.begin(sequence(seed)), said));
      }),
    );
  });

  it("goes on with what was saved as if nothing had been, while it remembers each sample", () => {
    const ms = fc.integer({ min: 1, max: 9_999 });
    const told = fc.array(fc.record({ image: fc.nat(4), served: fc.integer({ min: 1, max: 5 }), ms }), { maxLength: 10 });
    fc.assert(
      fc.property(told, told, fc.nat(), (before, after, seed) => {
        const images = [0, 1, 10, 100].map((heat, generation) => ({ generation, heat }));
        const tell = (decider: HeatDecider, answers: typeof before) => {
          for (const { image, served, ms } of answers) {
            const from = images[image % images.length] as ImagePoint;
            decider.answered(from, from.heat + served, ms);
          }
        };
        const decide = (decider: HeatDecider) => [
          ...Array.from({ length: 20 }, () => decider.choose(images).generation),
          ...images.map((from) => decider.freezeAt(images, from)),
          decider.surplus(images),
        ];
        // One generator: what decides after the restart draws what the other one would have drawn.
        let random = sequence(seed);
        const whole = policy.begin(() => random());
        whole.choose(images);
        tell(whole, before);
        const halved = policy.begin(() => random(), JSON.parse(JSON.stringify(whole.save?.())));
        tell(whole, after);
        tell(halved, after);
        random = sequence(seed + 1);
        const expected = decide(whole);
        random = sequence(seed + 1);
        expect(decide(halved)).toEqual(expected);
      }),
    );
  });

  it("saves some kilobytes, however much it was told, and chooses as well after that", () => {
    const images = [0, 1, 10].map((heat, generation) => ({ generation, heat }));
    const decider = policy.begin(sequence(3));
    play(decider, images, 3_000, ({ heat }) => 10.123456789 / (1 + heat));
    for (let request = 1; request < 2_000; request++) decider.answered(images[2] as ImagePoint, 10 + request, 1 / request);
    const saved = JSON.stringify(decider.save?.());
    expect(saved.length).toBeLessThan(16 * 1024);
    const chosen = play(policy.begin(sequence(4), JSON.parse(saved)), images, 100, ({ heat }) => 10 / (1 + heat));
    expect(chosen.filter(({ heat }) => heat === 10).length).toBeGreaterThan(80);
  });

  it("refuses what it never saved", () => {
    for (const saved of [null, 1, "x", [], {}, { ...(policy.begin().save?.() as object), steps: -1, taken: "x" }]) {
      expect(() => policy.begin(Math.random, saved)).toThrow();
    }
  });

  it("serves from generation 0 when that is all there is, and from any image when no latency ever comes", () => {
    const decider = policy.begin(sequence(1));
    const images = [{ generation: 0, heat: 0 }];
    for (let start = 0; start < 100; start++) expect(decider.choose(images)).toBe(images[0]);
    const many = [0, 1, 10].map((heat, generation) => ({ generation, heat }));
    for (let start = 0; start < 200; start++) expect(many).toContain(decider.choose(many));
    expect(decider.surplus(many).length).toBeLessThan(many.length);
  });

  it("goes on with what is left when the image in use vanishes", () => {
    const decider = policy.begin(sequence(1));
    const images = [0, 1, 10].map((heat, generation) => ({ generation, heat }));
    play(decider, images, 200, ({ heat }) => 10 - heat);
    const left = images.slice(0, 1);
    expect(decider.choose(left)).toBe(left[0]);
    const other = [...left, { generation: 7, heat: 10 }];
    expect(other).toContain(decider.choose(other));
  });

  it("begins each version anew", () => {
    const fresh = policy.begin(sequence(1));
    const images = [0, 1, 10].map((heat, generation) => ({ generation, heat }));
    play(policy.begin(sequence(2)), images, 200, ({ heat }) => 10 - heat);
    expect(fresh.freezeAt(images.slice(0, 1), images[0] as ImagePoint)).toBeGreaterThan(0);
  });

  it("finds the best image among given ones, through noise and hiccups", () => {
    for (const slow of [
      (heat: number) => 10 / (1 + heat),
      (heat: number) => 1 + heat,
      (heat: number) => Math.abs(heat - 10) + 1,
    ]) {
      const wins: number[] = [];
      for (let seed = 1; seed <= 20; seed++) {
        const random = sequence(seed + 77);
        const decider = policy.begin(sequence(seed));
        const images = [0, 1, 10].map((heat, generation) => ({ generation, heat }));
        const noisy = ({ heat }: ImagePoint) => slow(heat) * (0.9 + 0.2 * random()) + (random() < 0.05 ? 48 : 0);
        play(decider, images, 150, noisy);
        const chosen = play(decider, images, 200, noisy);
        const best = images.reduce((low, image) => (slow(image.heat) < slow(low.heat) ? image : low));
        wins.push(chosen.filter((image) => image === best).length / chosen.length);
      }
      wins.sort((a, b) => a - b);
      expect(wins[wins.length / 2]).toBeGreaterThan(0.8);
    }
  });
});

/** Starts that answer one request each. */
function play(
  decider: HeatDecider,
  images: readonly ImagePoint[],
  starts: number,
  ms: (image: ImagePoint) => number,
): ImagePoint[] {
  return Array.from({ length: starts }, () => {
    const image = decider.choose(images);
    decider.answered(image, image.heat + 1, ms(image));
    return image;
  });
}

describe("fixed points", () => {
  const ladder = (...heats: number[]) => heats.map((heat, generation) => ({ generation, heat }));
  const zero: ImagePoint = { generation: 0, heat: 0 };

  it("are taken in order, each once", () => {
    const decider = fixedPoints().begin(sequence(1));
    expect(decider.freezeAt(ladder(0), zero)).toBe(1);
    expect(decider.freezeAt(ladder(0, 1), zero)).toBe(10);
    expect(decider.freezeAt(ladder(0, 1, 10), zero)).toBe(100);
    expect(decider.freezeAt(ladder(0, 1, 10, 100), zero)).toBe(1000);
    expect(decider.freezeAt(ladder(0, 1, 10, 100, 1000), zero)).toBeUndefined();
    // What was given up is not taken again.
    expect(decider.freezeAt(ladder(0, 1), zero)).toBeUndefined();
  });

  it("end when the last step did not pay", () => {
    const decider = fixedPoints().begin(sequence(1));
    play(decider, ladder(0), 10, () => 5);
    expect(decider.freezeAt(ladder(0), zero)).toBe(1);
    play(decider, ladder(0, 1), 40, () => 5);
    expect(decider.freezeAt(ladder(0, 1), zero)).toBeUndefined();
  });

  it("go on while each step pays", () => {
    const decider = fixedPoints().begin(sequence(1));
    play(decider, ladder(0), 10, () => 5);
    play(decider, ladder(0, 1), 40, ({ heat }) => 5 - 2 * heat);
    expect(decider.freezeAt(ladder(0, 1), zero)).toBe(10);
  });

  it("go on when live instances show that code is compiled later", () => {
    const decider = fixedPoints().begin(sequence(1));
    const images = ladder(0, 1, 10);
    play(decider, images, 100, () => 5);
    const ten = images[2] as ImagePoint;
    expect(decider.freezeAt(images, ten)).toBeUndefined();
    for (let request = 4; request <= 10; request++) decider.answered(zero, request, 3);
    for (let request = 14; request <= 60; request++) decider.answered(ten, request, request < 40 ? 3 : 1);
    expect(decider.freezeAt(images, ten)).toBe(100);
  });

  it("end a warm-up whose requests got no faster between the last two points", () => {
    const decider = fixedPoints().begin(sequence(1));
    for (let request = 1; request <= 100; request++) decider.answered(zero, request, request === 1 ? 9 : 2 + 0.1 * (request % 3));
    expect(decider.freezeAt(ladder(0, 1, 10, 100), zero)).toBeUndefined();
    const faster = fixedPoints().begin(sequence(1));
    for (let request = 1; request <= 100; request++) faster.answered(zero, request, 9 / Math.sqrt(request));
    expect(faster.freezeAt(ladder(0, 1, 10, 100), zero)).toBe(1000);
  });

  it("give up what is worse for sure, and keep the coldest", () => {
    const decider = fixedPoints().begin(sequence(1));
    const images = ladder(0, 1, 10);
    play(decider, images, 100, ({ heat }) => (heat === 10 ? 1 : 5));
    expect(decider.surplus(images)).toEqual([]);
    // Five tries do not condemn; eight do.
    const slow = images[1] as ImagePoint;
    for (let start = 0; start < 8; start++) decider.answered(slow, slow.heat + 1, 5);
    expect(decider.surplus(images)).toEqual([slow]);
  });

  it("keep what only looks slower: bad luck passes, what was given up does not come back", () => {
    const decider = fixedPoints().begin(sequence(1));
    const images = ladder(0, 1, 10);
    const unlucky = images[1] as ImagePoint;
    play(decider, images, 100, ({ heat }) => (heat === 10 ? 1 : 1.3));
    for (let start = 0; start < 20; start++) decider.answered(unlucky, unlucky.heat + 1, 1.3);
    expect(decider.surplus(images)).toEqual([]);
  });

  it("give up the slowest beyond the most they keep", () => {
    const decider = fixedPoints([0, 1]).begin(sequence(1));
    const images = ladder(0, 1, 2, 3, 4, 5, 6, 7, 8, 9);
    play(decider, images, 300, ({ heat }) => 1 + heat * 0.02);
    expect(decider.surplus(images).map(({ heat }) => heat)).toEqual(expect.arrayContaining([8, 9]));
    expect(images.length - decider.surplus(images).length).toBeLessThanOrEqual(8);
    expect(decider.surplus(images)).not.toContain(images[0]);
  });

  it("follow a function that changes", () => {
    const decider = fixedPoints().begin(sequence(1));
    const images = ladder(0, 1);
    play(decider, images, 200, ({ heat }) => (heat === 1 ? 4 : 5));
    play(decider, images, 1_000, ({ heat }) => (heat === 1 ? 9 : 5));
    const chosen = play(decider, images, 100, ({ heat }) => (heat === 1 ? 9 : 5));
    expect(chosen.filter(({ heat }) => heat === 0).length).toBeGreaterThan(80);
  });

  it("weigh the requests after the first where instances live to see them", () => {
    const images = ladder(0, 1);
    // Generation 0 answers its first request a little faster, and all others at half the speed.
    const live = (requests: number) => {
      const decider = fixedPoints().begin(sequence(1));
      let zeros = 0;
      for (let start = 0; start < 300; start++) {
        const image = decider.choose(images);
        if (start >= 200 && image.heat === 0) zeros++;
        decider.answered(image, image.heat + 1, image.heat === 0 ? 8 : 9.5);
        for (let served = 2; served <= requests; served++) decider.answered(image, image.heat + served, image.heat === 0 ? 4 : 2);
      }
      return zeros;
    };
    expect(live(1)).toBeGreaterThan(80);
    expect(live(10)).toBeLessThan(20);
  });

  it("do not condemn an image for one hiccup at a request that few instances live to answer", () => {
    const decider = fixedPoints().begin(sequence(1));
    const images = ladder(0, 1, 10);
    const start = (image: ImagePoint, requests: number, hiccupAt = 0) => {
      for (let served = 1; served <= requests; served++) {
        decider.answered(image, image.heat + served, served === hiccupAt ? 50 : image.heat === 10 ? 1 : 1.3);
      }
    };
    for (const image of images) {
      start(image, 5);
      start(image, 20, image.heat === 10 ? 15 : 0);
    }
    let tens = 0;
    for (let chosen = 0; chosen < 20; chosen++) {
      const image = decider.choose(images);
      if (image.heat === 10) tens++;
      start(image, 5);
    }
    expect(tens).toBeGreaterThan(15);
  });

  it("learn nothing from what other points taught", () => {
    expect(() => fixedPoints([0, 5]).begin(Math.random, fixedPoints().begin().save?.())).toThrow("with the points 0, 1, 10");
  });

  it("are refused unless they are whole, not negative, and rising", () => {
    for (const points of [[], [-1, 2], [0, 0], [1, 0], [0.5], [Number.NaN]]) {
      expect(() => fixedPoints(points)).toThrow("Images cannot be taken at the heats");
    }
  });
});

describe("Pronghorn's policy", () => {
  const zero: ImagePoint = { generation: 0, heat: 0 };

  it("draws the next point from the range ahead, and reaches further the longer instances live", () => {
    const points = (lived: number) => {
      const decider = pronghorn().begin(sequence(3));
      for (let request = 1; request <= lived; request++) decider.answered(zero, request, 5);
      return Array.from({ length: 200 }, () => decider.freezeAt([zero], zero) ?? 0);
    };
    expect(Math.max(...points(1))).toBeLessThanOrEqual(8);
    expect(Math.max(...points(50))).toBeGreaterThan(100);
    expect(Math.min(...points(50))).toBeGreaterThan(0);
  });

  it("draws fast request numbers more often", () => {
    const decider = pronghorn().begin(sequence(3));
    // A freeze after request n is worth what request n + 1 costs.
    for (let request = 1; request <= 9; request++) decider.answered(zero, request, request === 5 ? 1 : 10);
    const counts = new Map<number, number>();
    for (let draw = 0; draw < 2_000; draw++) {
      const point = decider.freezeAt([zero], zero) ?? 0;
      counts.set(point, (counts.get(point) ?? 0) + 1);
    }
    expect(counts.get(4) ?? 0).toBeGreaterThan(5 * (counts.get(3) ?? 0));
  });

  it("keeps the best two fifths of a full pool, a tenth of the rest, and the coldest", () => {
    const decider = pronghorn().begin(sequence(3));
    const images = Array.from({ length: 15 }, (_, generation) => ({ generation, heat: generation * 10 }));
    for (const image of images) decider.answered(image, image.heat + 1, 20 - image.generation);
    expect(decider.surplus(images.slice(0, 14))).toEqual([]);
    const lost = new Set(decider.surplus(images));
    for (const image of images.slice(-6)) expect(lost).not.toContain(image);
    expect(lost).not.toContain(images[0]);
    expect(images.length - lost.size).toBeGreaterThanOrEqual(7);
    expect(images.length - lost.size).toBeLessThanOrEqual(8);
  });

  it("ends after six freezes, and after two that did not pay", () => {
    const images: ImagePoint[] = [zero];
    const decider = pronghorn().begin(sequence(3));
    let freezes = 0;
    for (let start = 0; start < 500; start++) {
      const image = decider.choose(images);
      const next = decider.freezeAt(images, image);
      for (let request = image.heat + 1; request <= image.heat + 30; request++) {
        decider.answered(image, request, 100 / request);
        if (request === next) images.push({ generation: ++freezes, heat: request });
      }
    }
    expect(freezes).toBe(6);

    const flat: ImagePoint[] = [zero];
    const other = pronghorn().begin(sequence(3));
    let flatFreezes = 0;
    for (let start = 0; start < 500; start++) {
      const image = other.choose(flat);
      if (other.freezeAt(flat, image) !== undefined && start % 20 === 0) {
        flat.push({ generation: ++flatFreezes, heat: (flat.at(-1)?.heat ?? 0) + 3 });
      }
      for (let served = 1; served <= 5; served++) other.answered(image, image.heat + served, 5);
    }
    expect(flatFreezes).toBe(2);
  });
});
