import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { FakeEngine } from "../engine/fake.js";
import { Deadline } from "./bounded.js";
import { HEATS, remembered, withHeatImages } from "./heat-images.js";
import { echoWorkload } from "./testing.js";

const temporary = mkdtempSync(join(tmpdir(), "thaw-heat-images-"));
afterAll(() => rmSync(temporary, { recursive: true, force: true }));

const workload = echoWorkload(temporary);
const options = () => ({ deadline: new Deadline(30_000), progress: () => {}, third: true });

/** Answers with its event. */
function engineIn(name: string, handler = (event: unknown) => event): FakeEngine {
  const dir = join(temporary, name);
  mkdirSync(dir);
  const engine = new FakeEngine({ dir });
  engine.handler = handler;
  return engine;
}

describe("images by heat", () => {
  it("have served what their names say, in the first generation, and in the third after three freezes", async () => {
    const engine = engineIn("all");
    const seen = await withHeatImages(engine, workload, options(), async ({ byHeat, third, steady, curve }) => {
      expect([...byHeat].map(([heat, image]) => [heat, image.heat, image.generation])).toEqual(
        HEATS.map((heat) => [heat, heat, heat === 0 ? 0 : 1]),
      );
      expect(third).toMatchObject({ heat: 1_000, generation: 3 });
      expect(steady.served).toBe(1_000);
      expect(curve.length).toBe(1_000);
      return [...byHeat.values(), third].map((image) => image?.dir ?? "");
    });
    expect(engine.stats().instances).toBe(0);
    for (const dir of seen) expect(() => readdirSync(dir)).toThrow("ENOENT");
  });

  it("are made without a third generation where nobody asked for one", async () => {
    await withHeatImages(engineIn("short"), workload, { ...options(), third: false }, async ({ third, byHeat }) => {
      expect(third).toBeUndefined();
      expect([...byHeat.keys()]).toEqual([...HEATS]);
    });
  });

  it("are not made from wrong answers, and leave nothing behind then", async () => {
    let asked = 0;
    const engine = engineIn("wrong", (event) => (++asked > 700 ? { seed: "another" } : event));
    await expect(withHeatImages(engine, workload, options(), async () => {})).rejects.toThrow("wrong reply of echo");
    expect(engine.stats().instances).toBe(0);
  });

  it("are given up when the time is over", async () => {
    const late = { ...options(), deadline: new Deadline(0) };
    await expect(withHeatImages(engineIn("late"), workload, late, async () => {})).rejects.toThrow("after 0 of 1000 requests");
  });
});

describe("a remembered workload", () => {
  it("asks different questions, computes each once, and answers them as before", () => {
    const computed: number[] = [];
    const known = remembered({ ...workload, reply: (seed) => ({ seed: computed.push(seed) * 0 + seed }) });
    const seeds = [0, 1, 39, 40, 1_003, -17];
    for (const seed of seeds) expect(known.reply(seed)).toEqual(known.event(seed));
    expect(known.reply(41)).toEqual({ seed: 1 });
    expect(computed).toEqual([0, 1, 39, 3, 23]);
  });
});
