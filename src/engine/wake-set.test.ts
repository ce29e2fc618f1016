import { describe, expect, it } from "vitest";
import type { Keeper } from "./keeper.js";
import { MappedFiles } from "./mapped-files.js";
import { WakeSet } from "./wake-set.js";

const OWN = 1;
const CODE = 7;
const files = new MappedFiles({ openMapped: () => Promise.resolve(CODE) } as unknown as Keeper);
const turn = () => new Promise((resolve) => setImmediate(resolve));
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

describe("what watched wakes touched", () => {
  async function watched(...recordings: readonly (readonly [own: readonly number[], others: unknown])[]): Promise<WakeSet> {
    const set = await recorded([page(0, 500), code(page(0, 500))]);
    for (const [own, others] of recordings) await set.recordWatched(OWN, files, 1, { touched: own, written: [], files: others });
    return set;
  }
  const pagesOf = ({ ranges }: WakeSet): number[][] => ranges.map(({ offset, bytes }) => [Number(offset) / 4096, bytes / 4096]);

  it("takes the place of what was present, gaps of four pages joined", async () => {
    const set = await watched([[...page(1), ...page(6), ...page(100)], code(page(20))]);
    expect(pagesOf(set)).toEqual([
      [20, 1],
      [1, 6],
      [100, 1],
    ]);
    await set.record(OWN, files, 1, page(0, 500), code(page(0, 500)));
    expect(pagesOf(set)).toHaveLength(3);
  });

  it("is all of it at first; of three wakes, what two touched of the instance's own memory, and all that any touched of other files", async () => {
    const wake = (own: number, other: number) => [[...page(0), ...page(own), ...page(own, 2)], code(page(other))] as const;
    const set = await watched(wake(50, 20), wake(100, 40));
    expect(pagesOf(set)).toEqual([
      [20, 1],
      [40, 1],
      [0, 1],
      [50, 2],
      [100, 2],
    ]);
    expect(set.wanting).toBe(true);
    await set.recordWatched(OWN, files, 1, { touched: [...page(0), ...page(101)], written: [], files: code(page(60)) });
    expect(pagesOf(set)).toEqual([
      [20, 1],
      [40, 1],
      [60, 1],
      [0, 1],
      [101, 1],
    ]);
    expect(set.wanting).toBe(false);
  });

  it("is watched anew when four wakes had to wait for many other pages, then only after eight", async () => {
    const set = await watched([page(1), []], [page(1), []], [page(1), []]);
    const misfits = (count: number): void => {
      for (let index = 0; index < count; index++) set.note(65);
    };
    set.note(64);
    misfits(3);
    expect(set.wanting).toBe(false);
    misfits(1);
    expect(set.wanting).toBe(true);
    await set.recordWatched(OWN, files, 1, { touched: page(1), written: [], files: [] });
    misfits(7);
    expect(set.wanting).toBe(false);
    misfits(1);
    expect(set.wanting).toBe(true);
  });
});

describe("what stays in memory", () => {
  /** Each wake touches pages 0 to 999. */
  async function watchedWakes(...written: readonly (readonly (readonly number[])[])[]): Promise<WakeSet> {
    const set = new WakeSet();
    for (const one of written)
      await set.recordWatched(OWN, files, 1, { touched: page(0, 1000), written: one.flat(), files: code(page(3)) });
    return set;
  }
  const pages = (list: readonly number[]): number[] => list.map((bytes) => bytes / 4096);

  it("is what two of three wakes wrote, once three were watched; alone between pages that are read, it is read with them", async () => {
    const wake = [page(10), page(20, 2)];
    expect((await watchedWakes(wake, wake)).kept).toEqual([]);
    const set = await watchedWakes(wake, [page(20, 30)], [page(10), page(70)]);
    expect(pages(set.kept)).toEqual([10, 1, 20, 2]);
    // Gaps of four pages are joined: what lies alone in a range is read with it.
    expect(set.ranges.map(({ file, offset, bytes }) => [file, ...pages([Number(offset), bytes])])).toEqual([
      [CODE, 3, 1],
      [OWN, 0, 1000],
    ]);
  });

  it("is not read ahead", async () => {
    const set = await watchedWakes(...[1, 2, 3].map(() => [page(100, 50), page(995, 5)]));
    expect(pages(set.kept)).toEqual([100, 50, 995, 5]);
    expect(set.ranges.slice(1).map(({ offset, bytes }) => pages([Number(offset), bytes]))).toEqual([
      [0, 100],
      [150, 845],
    ]);
  });

  it("is read ahead by a wake before which it was not kept, because that is to be watched", async () => {
    const set = await watchedWakes(...[1, 2, 3].map(() => [page(100, 50)]));
    const own = () => set.ranges.slice(1).map(({ offset, bytes }) => pages([Number(offset), bytes]));
    expect(own()).toEqual([
      [0, 100],
      [150, 850],
    ]);
    for (let index = 0; index < 4; index++) set.note(10_000);
    expect(set.kept).toEqual([]);
    // As each hibernation ends.
    set.recordWritten(OWN, []);
    expect(own()).toEqual([[0, 1000]]);
    await set.recordWatched(OWN, files, 1, { touched: page(0, 1000), written: page(100, 50), files: code(page(3)) });
    expect(own()).toEqual([
      [0, 100],
      [150, 850],
    ]);
  });

  it("is at most half a megabyte, of what is read one by one before what lies together", async () => {
    const wake = [page(0, 100), page(200, 60), page(300), page(400, 2)];
    expect(pages((await watchedWakes(wake, wake, wake)).kept)).toEqual([0, 65, 200, 60, 300, 1, 400, 2]);
  });

  it("is nothing when the next wake is to be watched, which tells it anew", async () => {
    const wake = [page(100, 50)];
    const set = await watchedWakes(wake, wake, wake);
    for (let index = 0; index < 4; index++) set.note(10_000);
    expect(set.kept).toEqual([]);
    await set.recordWatched(OWN, files, 1, { touched: page(0, 1000), written: page(600), files: [] });
    expect(pages(set.kept)).toEqual([100, 50]);
    for (let index = 0; index < 8; index++) set.note(10_000);
    await set.recordWatched(OWN, files, 1, { touched: page(0, 1000), written: page(600), files: [] });
    expect(pages(set.kept)).toEqual([600, 1]);
  });
});

describe("memory that is filled from one end", () => {
  const behind = (...wakes: readonly (readonly (readonly number[])[])[]): number[][] => {
    const set = new WakeSet();
    for (const written of wakes) set.recordWritten(OWN, written.flat());
    return set.ranges.map(({ offset, bytes }) => [Number(offset) / 4096, bytes / 4096]);
  };

  it("is read ahead behind its front, as much as was filled the last time, within bounds", () => {
    expect(behind([page(10, 5)], [page(14, 3)])).toEqual([[17, 16]]);
    // The page that was begun may have been full.
    expect(behind([page(10, 5)], [page(15, 30)])).toEqual([[45, 30]]);
    expect(behind([page(10, 5)], [page(15, 500)])).toEqual([[515, 64]]);
    // Pages in one run that the extractor tells apart.
    expect(behind([page(10, 5)], [page(14), page(15, 2)])).toEqual([[17, 16]]);
  });

  it("is what goes on where the last wake ended, and nothing else that is written", () => {
    expect(behind([page(10, 5)])).toEqual([]);
    expect(behind([page(10, 5)], [page(16, 3)])).toEqual([]);
    expect(behind([page(10, 5)], [page(10, 5)])).toEqual([]);
    expect(behind([page(10, 5)], [page(8, 3)])).toEqual([]);
  });

  it("is known until its front is left or passed", () => {
    expect(behind([page(10)], [page(10, 2)], [page(11)])).toEqual([[12, 16]]);
    expect(behind([page(10)], [page(10, 2)], [page(11)], [page(11, 3)])).toEqual([[14, 16]]);
    expect(behind([page(10)], [page(10, 2)], [page(40)])).toEqual([]);
  });

  it("comes behind what was recorded", async () => {
    const set = await recorded([page(3), []]);
    set.recordWritten(OWN, page(10));
    set.recordWritten(OWN, page(10, 2));
    await set.recordWatched(OWN, files, 1, { touched: page(5), written: [], files: [] });
    expect(set.ranges.map(({ offset }) => Number(offset) / 4096)).toEqual([5, 12]);
  });
});

describe("files that instances map", () => {
  function counted(): { files: MappedFiles; open: Set<number> } {
    const open = new Set<number>();
    let last = 0;
    const openMapped = async (): Promise<number> => {
      open.add(++last);
      return last;
    };
    return { files: new MappedFiles({ openMapped, closeFile: (id: number) => open.delete(id) } as unknown as Keeper), open };
  }
  const two = [
    { file: "fe:0:12", mapping: "0-1", ranges: page(1) },
    { file: "fe:0:13", mapping: "2-3", ranges: page(1) },
  ];

  it("are closed with the last instance that reads ahead from them, and opened anew for the next", async () => {
    const { files, open } = counted();
    const [first, second, third] = [new WakeSet(), new WakeSet(), new WakeSet()];
    await first.record(OWN, files, 1, [], two);
    await second.record(OWN, files, 2, [], two.slice(1));
    expect(open.size).toBe(2);
    files.release(first);
    await turn();
    expect([...open]).toEqual([2]);
    files.release(second);
    await turn();
    expect(open.size).toBe(0);
    await third.record(OWN, files, 3, [], two);
    expect([...open]).toEqual([3, 4]);
    expect(third.ranges.map(({ file }) => file)).toEqual([3, 4]);
  });

  it("are not held by an instance that ends while they are opened for it", async () => {
    const { files, open } = counted();
    const set = new WakeSet();
    const recording = set.record(OWN, files, 1, [], two);
    files.release(set);
    await recording;
    await turn();
    expect(open.size).toBe(0);
  });
});
