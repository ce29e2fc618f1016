import { describe, expect, it } from "vitest";
import type { FunctionSpec, Image } from "../engine/types.js";
import { Generations, IMAGES_MAX } from "./generations.js";
import { pointsPolicy } from "./testing.js";

const spec = { name: "a" } as FunctionSpec;
const report = { hygieneMs: 0, stoppedMs: 0, totalMs: 0, anonymousBytes: 0, storedBytes: 0, notes: [] };
const image = (generation: number, heat: number): Image => ({
  id: `${generation}`,
  dir: `/images/${generation}`,
  generation,
  heat,
  spec,
  bytesOnDisk: 0,
  report,
});
const entry = (of: Image) => ({ image: of, source: "by-hand", createdMs: 0 }) as const;

function poolOf(...heats: number[]) {
  const policy = pointsPolicy(0);
  const pool = new Generations(policy);
  const images = heats.map((heat, generation) => image(generation, heat));
  for (const each of images) pool.add(entry(each));
  return { policy, pool, images };
}

describe("a pool of images", () => {
  it("is in order of heat, and every image has a number of its own", () => {
    const { pool } = poolOf(0, 30, 5);
    expect(pool.entries.map(({ image: { generation } }) => generation)).toEqual([0, 2, 1]);
    expect(pool.hottest?.generation).toBe(1);
    expect(pool.next).toBe(3);
  });

  it("gives no number twice, unless all images were lost: then it begins at 0, with a policy that knows nothing", () => {
    const { pool, images, policy } = poolOf(0, 10);
    pool.remove(images[1] as Image);
    expect(pool.next).toBe(2);
    expect(policy.begun()).toBe(1);
    pool.remove(images[0] as Image);
    expect(pool.next).toBe(0);
    expect(policy.begun()).toBe(2);
    expect(pool.choose()).toBeUndefined();
    expect(pool.favourite).toBeUndefined();
  });

  it("asks the policy for nothing while there is one image", () => {
    const { pool, policy, images } = poolOf(0);
    policy.choose = () => {
      throw new Error("asked");
    };
    expect(pool.choose()).toBe(images[0]);
  });

  it("has the hottest for its favourite until starts say otherwise; one stray choice changes nothing", () => {
    const { pool, policy, images } = poolOf(0, 1, 10);
    const [cold, warm, hot] = images as [Image, Image, Image];
    expect(pool.favourite).toBe(hot);
    let looks = 0;
    pool.onLook = () => void looks++;
    for (let count = 0; count < 30; count++) {
      policy.choose = () => (count % 10 === 5 ? cold : hot);
      pool.choose();
    }
    expect(pool.favourite).toBe(hot);
    expect(looks).toBe(0);
    policy.choose = () => warm;
    for (let count = 0; count < 30; count++) pool.choose();
    expect(pool.favourite).toBe(warm);
    expect(looks).toBe(1);
    pool.remove(warm);
    expect(pool.favourite).toBe(hot);
  });

  it("does not change its favourite back and forth while a policy draws lots", () => {
    const { pool, policy, images } = poolOf(0, 1);
    let changes = 0;
    let before = pool.favourite;
    for (let count = 0; count < 200; count++) {
      policy.choose = () => images[count % 2] as Image;
      pool.choose();
      if (pool.favourite !== before) changes++;
      before = pool.favourite;
    }
    expect(changes).toBe(0);
  });

  it("asks now and then which images are surplus, and holds at most so many of them", () => {
    const { pool, policy, images } = poolOf(...Array.from({ length: IMAGES_MAX + 2 }, (_, index) => index));
    expect(pool.surplus()).toEqual([images[0], images[1]]);
    policy.surplus = (all) => all.filter(({ generation }) => generation === 5);
    expect(pool.surplus()).toEqual([images[5], images[0]]);
    let looks = 0;
    pool.onLook = () => void looks++;
    for (let count = 0; count < 128; count++) pool.choose();
    expect(looks).toBe(2);
  });

  it("finds out a policy that breaks its contract", () => {
    const { pool, policy } = poolOf(0, 1);
    policy.surplus = (all) => all;
    expect(() => pool.surplus()).toThrow('the heat policy "points" gave up all images');
    policy.choose = () => ({ generation: 9, heat: 0 });
    expect(() => pool.choose()).toThrow('the heat policy "points" chose generation 9, which does not exist');
  });

  it("keeps an image on disk while a start uses it", () => {
    const { pool, images } = poolOf(0, 1);
    const [cold] = images as [Image, Image];
    let removed = 0;
    const [first, second] = [pool.use(cold), pool.use(cold)];
    pool.remove(cold);
    pool.whenUnused(cold, () => void removed++);
    first();
    expect(removed).toBe(0);
    second();
    expect(removed).toBe(1);
    pool.whenUnused(cold, () => void removed++);
    expect(removed).toBe(2);
  });
});
