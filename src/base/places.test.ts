import { expect, it } from "vitest";
import { Places } from "./places.js";

it("places are taken by so many at once, and given on in turn, also by who failed", async () => {
  const places = new Places(2);
  const begun: number[] = [];
  const ends: ((error?: Error) => void)[] = [];
  const works = [0, 1, 2, 3].map((index) =>
    places.take(() => {
      begun.push(index);
      return new Promise<number>((resolve, reject) => {
        ends[index] = (error) => (error === undefined ? resolve(index) : reject(error));
      });
    }),
  );
  expect(begun).toEqual([0, 1]);
  ends[1]?.(new Error("no"));
  await expect(works[1]).rejects.toThrow("no");
  expect(begun).toEqual([0, 1, 2]);
  ends[2]?.();
  ends[0]?.();
  expect([await works[2], await works[0]]).toEqual([2, 0]);
  ends[3]?.();
  expect(await works[3]).toBe(3);
  expect(await places.take(async () => "free")).toBe("free");
});
