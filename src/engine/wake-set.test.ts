import { describe, expect, it } from "vitest";
import type { Keeper } from "./keeper.js";
import { MappedFiles, WakeSet } from "./wake-set.js";

const OWN = 1;
const CODE = 7;
const files = new MappedFiles({ openFile: () => Promise.resolve(CODE) } as unknown as Keeper);
const page = (index: number, pages = 1): readonly number[] => [index * 4096, pages * 4096];
const code = (...ranges: readonly (readonly number[])[]) =>
  ranges.map((one, index) => ({ file: "fe:0:12", mapping: `${index}-${index + 1}`, ranges: one }));

async function recorded(...recordings: readonly (readonly [own: readonly number[], others: unknown])[]): Promise<WakeSet> {
  const set = new WakeSet();
  for (const [own, others] of recordings) await set.record(OWN, files, 1, own, others);
  return set;
}

describe("what a wake reads ahead", () => {
  it("is code first, then the instance's own memory", async () => {
    const { ranges } = await recorded([page(3, 2), code(page(9))]);
    expect(ranges).toEqual([
      { file: CODE, offset: 9n * 4096n, bytes: 4096 },
      { file: OWN, offset: 3n * 4096n, bytes: 8192 },
    ]);
  });

  it("has the pages of all mappings of a file, those without any too, once", async () => {
    const { ranges } = await recorded([[], code(page(9), page(10), page(9), [])]);
    expect(ranges).toEqual([{ file: CODE, offset: 9n * 4096n, bytes: 8192 }]);
  });

  it("forgets own memory with the second wake that does not touch it, code with the fourth", async () => {
    const once = [page(1), code(page(20))] as const;
    const later = [page(5), code(page(40))] as const;
    const offsets = async (laterWakes: number) =>
      (await recorded(once, ...Array.from({ length: laterWakes }, () => later))).ranges.map(
        ({ offset }) => Number(offset) / 4096,
      );
    expect(await offsets(1)).toEqual([20, 40, 1, 5]);
    expect(await offsets(2)).toEqual([20, 40, 5]);
    expect(await offsets(3)).toEqual([20, 40, 5]);
    expect(await offsets(4)).toEqual([40, 5]);
  });
});
