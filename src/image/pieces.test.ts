import { describe, expect, it } from "vitest";
import type { Region } from "./facts.js";
import { copyWorthy, pieces } from "./pieces.js";
import { runPages } from "./working-set.js";

const PAGE = 4096n;
const MIB = 2n ** 20n;

function region(more: Partial<Region>): Region {
  return { kind: "anon", start: 2n * MIB, end: 8n * MIB, prot: 3, slot: 4n * MIB, runs: [0, 1536], ...more };
}

describe("pieces", () => {
  it("are the whole blocks of a mapping that are at least half full", () => {
    expect(pieces([region({})])).toEqual([2n, 4n, 6n].map((at) => ({ address: at * MIB, offset: (at + 2n) * MIB, base: false })));
    expect(pieces([region({ runs: [0, 256, 512, 255, 1024, 100, 1200, 156] })]).map(({ address }) => address)).toEqual([
      2n * MIB,
      6n * MIB,
    ]);
  });

  it("are no blocks that a mapping's end cuts, however full", () => {
    const cut = region({ start: 3n * MIB, end: 7n * MIB, slot: 5n * MIB, runs: [0, 1024] });
    expect(pieces([cut])).toEqual([{ address: 4n * MIB, offset: 6n * MIB, base: false }]);
    expect(pieces([region({ end: 4n * MIB - PAGE, runs: [0, 511] })])).toEqual([]);
  });

  it("are none where memory and page space differ within 2 MiB, or nothing is mapped from it", () => {
    expect(pieces([region({ slot: 4n * MIB + PAGE })])).toEqual([]);
    expect(pieces([region({ kind: "stack" })])).toEqual([]);
    expect(pieces([region({ wipe: 1 })])).toEqual([]);
    expect(pieces([region({ runs: undefined, slot: undefined })])).toEqual([]);
  });

  it("are none in which a recorded start wrote: they are mapped page by page from then on", () => {
    const run = { address: 4n * MIB - PAGE, pages: 2, read: 1 };
    expect(pieces([region({})], [{ ...run, written: 0 }])).toHaveLength(3);
    expect(pieces([region({})], [{ ...run, written: 1 }]).map(({ address }) => address)).toEqual([6n * MIB]);
    expect(pieces([region({})], [{ ...run, pages: 1, written: 1 }]).map(({ address }) => address)).toEqual([4n * MIB, 6n * MIB]);
  });

  it("of a base lie in its page space", () => {
    expect(pieces([region({ kind: "base", end: 4n * MIB, runs: [0, 512] })])).toEqual([
      { address: 2n * MIB, offset: 4n * MIB, base: true },
    ]);
  });
});

describe("pages worth copying ahead", () => {
  const written = [
    { address: 2n * MIB - 2n * PAGE, pages: 4 },
    { address: 7n * MIB, pages: 1 },
  ];

  it("are all where there are no pieces", () => {
    expect(runPages(copyWorthy(written, []))).toBe(5);
  });

  it("are none in a piece: what is read there is mapped by one entry", () => {
    expect(copyWorthy(written, pieces([region({ end: 4n * MIB, runs: [0, 512] })]))).toEqual([
      { address: 2n * MIB - 2n * PAGE, pages: 2 },
      { address: 7n * MIB, pages: 1 },
    ]);
    expect(copyWorthy(written, pieces([region({ start: 0n, slot: 2n * MIB, runs: [0, 2048] })]))).toEqual([]);
  });
});
