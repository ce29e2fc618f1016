import { readFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
// The example begins here.
import type { HeatPolicy } from "./types.js";

/** The hottest image of those that were taken after 50 and 500 requests, nothing learned. */
const twoSteps: HeatPolicy = {
  name: "two-steps",
  begin: () => ({
    choose: (images) => images.reduce((hot, image) => (image.heat > hot.heat ? image : hot)),
    freezeAt: (images, from) => [50, 500].find((point) => point > Math.max(from.heat, ...images.map(({ heat }) => heat))),
    answered: () => {},
    surplus: (images) => images.filter(({ heat }) => heat > 0 && images.some((other) => other.heat > heat)),
  }),
};
// The example ends here.

const SOURCE = new URL(import.meta.url);
const DOCUMENT = new URL("../../docs/design/heat.md", SOURCE);

describe("the policy that the documentation gives as an example", () => {
  it("is this one, word for word", async () => {
    const source = await readFile(SOURCE, "utf8");
    const example = source.slice(source.indexOf("import type"), source.indexOf("// The example ends"));
    expect(await readFile(DOCUMENT, "utf8")).toContain(example);
  });

  it("does what it says", () => {
    const decider = twoSteps.begin();
    const images = [0, 50, 500].map((heat, generation) => ({ generation, heat }));
    const [zero, fifty, hot] = images as [(typeof images)[0], (typeof images)[0], (typeof images)[0]];
    expect(decider.choose(images)).toBe(hot);
    expect(decider.freezeAt([zero], zero)).toBe(50);
    expect(decider.freezeAt([zero, fifty], zero)).toBe(500);
    expect(decider.freezeAt(images, hot)).toBeUndefined();
    expect(decider.surplus(images)).toEqual([fifty]);
    expect(decider.surplus([zero])).toEqual([]);
  });
});
