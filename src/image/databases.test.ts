import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { findDatabases } from "./databases.js";
import { type Facts, factsSchema } from "./facts.js";
import { sampleFacts } from "./testing.js";

const HEAP = 0x500000;
const PAGE_BYTES = 4096;
const DEVICE = 0x3an;
const INODE = 7n;

let root: string;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "thaw-test-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

/** A process that has that file open twice, and a heap of which pages 0, 2 and 3 are stored. */
function facts(more: { empty?: 1 } = {}): Facts {
  const database = { device: `0x${DEVICE.toString(16)}`, inode: `0x${INODE.toString(16)}`, ...more };
  const opened = (fd: number) =>
    ({ fd, flags: 2, pos: "0x0", kind: "file", path: "/tmp/data.db", mode: 0o644, database }) as const;
  return factsSchema.parse(
    sampleFacts({
      descriptors: [{ fd: 3, flags: 2, pos: 0, kind: "control" }, opened(8), opened(9)],
      regions: [{ kind: "heap", start: "0x500000", end: "0x510000", prot: 3, slot: "0x1000", runs: [0, 1, 2, 2] }],
    }),
  );
}

/** The page space with these words at these addresses. */
function pages(...words: readonly [at: number, value: bigint][]): string {
  const bytes = Buffer.alloc(0x11000);
  for (const [at, value] of words) bytes.writeBigUInt64LE(value, PAGE_BYTES + at - HEAP);
  const path = join(root, "pages");
  writeFileSync(path, bytes);
  return path;
}

/** The numbers of the file, and what may lead there. */
const info = (at: number): [number, bigint][] => [
  [at, DEVICE],
  [at + 8, INODE],
];
const lead = (at: number, to: number, fd: number): [number, bigint][] => [
  [at, BigInt(to)],
  [at + 8, BigInt(fd) | (4n << 32n)],
];

describe("a database of SQLite that is open", () => {
  it("is found where a pointer leads that has one of its descriptors behind it, also across pages", async () => {
    const at = HEAP + 3 * PAGE_BYTES - 8;
    const path = pages(...info(HEAP + 64), ...info(at), ...lead(HEAP + 512, at, 9));
    expect(await findDatabases(facts(), path)).toEqual({ databases: [{ at: BigInt(at), fd: 8 }], notes: [] });
  });

  it("is in the image's report where nothing leads to its numbers, unless it has no byte yet", async () => {
    const path = pages(...info(HEAP + 64), ...lead(HEAP + 512, HEAP + 64, 7), ...lead(HEAP + 640, HEAP + 72, 8));
    const note = expect.stringContaining("a database of SQLite is open (/tmp/data.db, descriptor 8)");
    expect(await findDatabases(facts(), path)).toEqual({ databases: [], notes: [note] });
    expect(await findDatabases(facts({ empty: 1 }), path)).toEqual({ databases: [], notes: [] });
  });

  it("is not looked for beyond some places: memory may be full of such numbers", async () => {
    const many = Array.from({ length: 40 }, (_, index) => HEAP + 64 + index * 16);
    const leads = many.flatMap((at, index) => lead(HEAP + 2 * PAGE_BYTES + index * 16, at, 8));
    const { databases } = await findDatabases(facts(), pages(...many.flatMap(info), ...leads));
    expect(databases.map(({ at }) => Number(at))).toEqual(many.slice(0, 16));
  });

  it("may be named in no memory that the process cannot write", async () => {
    const path = pages(...info(HEAP + 64), ...lead(HEAP + 512, HEAP + 64, 8));
    const { regions, ...others } = facts();
    const found = await findDatabases({ ...others, regions: regions.map((one) => ({ ...one, prot: 1 })) }, path);
    expect(found.databases).toEqual([]);
  });
});
