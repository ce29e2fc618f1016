import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { silentLogger } from "../base/log.js";
import { type WorkingSet, workingSet } from "../image/index.js";
import { parsedFacts } from "../image/testing.js";
import type { LoadedImage } from "./images.js";
import type { LiveInstance } from "./instance.js";
import type { Keeper } from "./keeper.js";
import { Packer, REST_MS } from "./packing.js";

const START = 0x7f0000000000n;
const PAGE = 4096n;
const PAGES = 512;

/** Every sixteenth page was touched: as many ranges. */
function scattered(): WorkingSet {
  const runs = Array.from({ length: PAGES / 16 }, (_, index) => ({
    address: START + BigInt(index * 16) * PAGE,
    pages: 1,
    written: 2,
    read: 0,
  }));
  return workingSet({ recordings: 2, stable: true, exact: true, order: "address", faults: 32, overhead: 0, runs });
}

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

/** A packer whose extractor only says what it was asked to do. */
function packing() {
  const words: string[] = [];
  const keeper = {
    fileBytes: () => 1,
    closeFile: () => undefined,
    prefetch: async () => [],
    helper: async ([, word = ""]: string[]) => {
      words.push(word);
      return { stdout: Buffer.from('{"ok":true,"parts":32,"bytes":131072,"movedBytes":131072}\n') };
    },
  } as unknown as Keeper;
  const end = `0x${(START + BigInt(PAGES) * PAGE).toString(16)}`;
  const sets = {
    set: scattered(),
    async markPacked(set: WorkingSet) {
      words.push("marked");
      sets.set = { ...set, packed: true };
    },
  };
  const loaded = {
    image: { id: "image", dir: "/images/image" },
    facts: parsedFacts({
      regions: [{ kind: "anon", start: `0x${START.toString(16)}`, end, prot: 3, slot: "0x0", runs: [0, PAGES] }],
    }),
    sets,
    pagesFile: 1,
    closed: false,
    prefetchRanges: () => [],
    gather: async () => {
      words.push("gather");
    },
  } as unknown as LoadedImage;
  return { words, loaded, packer: new Packer(keeper, "extractor", silentLogger()) };
}

const instance = (): LiveInstance => ({}) as LiveInstance;

describe("packing", () => {
  it("waits until the image has rested, so that who comes again and again does not meet it", async () => {
    const { words, loaded, packer } = packing();
    for (let start = 0; start < 5; start++) {
      const one = instance();
      packer.began(one, loaded);
      packer.ended(one);
      await vi.advanceTimersByTimeAsync(REST_MS - 1);
    }
    expect(words).toEqual([]);
    await vi.advanceTimersByTimeAsync(1);
    expect(words).toEqual(["pack", "gather", "marked"]);
    // It lies as it should.
    const again = instance();
    packer.began(again, loaded);
    packer.ended(again);
    await vi.advanceTimersByTimeAsync(REST_MS * 2);
    expect(words).toHaveLength(3);
  });

  it("waits for the last of several instances, and is not begun any more when the engine closes", async () => {
    const { words, loaded, packer } = packing();
    const [first, second] = [instance(), instance()];
    packer.began(first, loaded);
    packer.began(second, loaded);
    packer.ended(first);
    await vi.advanceTimersByTimeAsync(REST_MS * 2);
    expect(words).toEqual([]);
    packer.ended(second);
    packer.close();
    expect(vi.getTimerCount()).toBe(0);
    await vi.advanceTimersByTimeAsync(REST_MS * 2);
    expect(words).toEqual([]);
  });

  it("gathers at once what was started from single pages four times in a row", async () => {
    const { words, loaded, packer } = packing();
    for (let start = 0; start < 4; start++) {
      const one = instance();
      packer.began(one, loaded);
      packer.found(loaded, 0);
      packer.ended(one);
      await vi.advanceTimersByTimeAsync(1);
      expect(words).toEqual(start === 3 ? ["gather"] : []);
    }
  });
});
