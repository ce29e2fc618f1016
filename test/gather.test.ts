/** Runs of a file lie in few pieces in the page cache once they were gathered, and nothing else changes. */
import { spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statfsSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { evict } from "../src/lab/page-cache.js";
import { olderThan } from "./support/kernel.js";
import { onParts } from "./support/packing.js";

/** Not the system's temporary directory, which may have no disk below it. */
const dir = mkdtempSync("/var/tmp/thaw-gather-");
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const PAGE = 4096;
const BLOCK_PAGES = 512;
/** Page and length of what holds data; the rest are holes. A whole block, windows of 16 pages, a run that is aligned to nothing, single pages. */
const RUNS = [
  [0, BLOCK_PAGES],
  [BLOCK_PAGES + 16, 16],
  [BLOCK_PAGES + 64, 32],
  [BLOCK_PAGES + 101, 7],
  [3 * BLOCK_PAGES, 1],
  [3 * BLOCK_PAGES + 33, 1],
] as const;

/** Whether the page cache can have large pieces here: ext4 since Linux 6.16. */
function hasPieces(): boolean {
  return statfsSync(dir).type === 0xef53 && !olderThan(6, 16);
}

function makeFile(): string {
  const path = join(dir, "pages");
  const fd = openSync(path, "w");
  for (const [page, pages] of RUNS) writeSync(fd, randomBytes(pages * PAGE), 0, undefined, page * PAGE);
  closeSync(fd);
  return path;
}

function python(code: string, ...args: string[]): string {
  const { stdout, stderr, status } = spawnSync("python3", ["-c", code, ...args], { timeout: 30_000, encoding: "utf8" });
  expect(status, stderr).toBe(0);
  return stdout.trim();
}

/** Reads each page alone. */
async function cacheSinglePages(path: string): Promise<void> {
  await evict([path]);
  const numbers = RUNS.flatMap(([page, pages]) => Array.from({ length: pages }, (_, index) => String(page + index)));
  python(
    "import os,sys\nf=os.open(sys.argv[1],0)\nos.posix_fadvise(f,0,0,1)\nfor i in sys.argv[2:]: os.pread(f,1,int(i)*4096)",
    path,
    ...numbers,
  );
}

/** In how many pieces the page cache has each of the runs. */
function piecesOf(path: string): number[] {
  const code = `
import mmap, os, struct, sys, ctypes
f = os.open(sys.argv[1], os.O_RDWR)
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p] + [ctypes.c_long] * 5
pagemap, flags = open("/proc/self/pagemap", "rb", 0), open("/proc/kpageflags", "rb", 0)
def word(file, index):
    file.seek(index * 8)
    return struct.unpack("Q", file.read(8))[0]
for run in sys.argv[2:]:
    page, pages = map(int, run.split(":"))
    at = libc.mmap(None, pages * 4096, 1, 1, f, page * 4096)
    pieces = 0
    for index in range(pages):
        ctypes.c_char.from_address(at + index * 4096).value
        kind = word(flags, word(pagemap, at // 4096 + index) & ((1 << 55) - 1)) >> 15 & 3
        pieces += kind != 2
    print(pieces)
`;
  return python(code, path, ...RUNS.map(([page, pages]) => `${page}:${pages}`))
    .split("\n")
    .map(Number);
}

const digest = (path: string): string => createHash("sha256").update(readFileSync(path)).digest("hex");
/** Its times change. */
const identity = (path: string): unknown[] => {
  const { ino, size, blocks } = statSync(path, { bigint: true });
  return [ino, size, blocks];
};
const SINGLE = RUNS.map(([, pages]) => pages);
const WHOLE = [0, 4 * BLOCK_PAGES] as const;

describe("gathering parts of a file", () => {
  it("leaves its bytes and its holes as they are, in the page cache and on the disk", async () => {
    const path = makeFile();
    await cacheSinglePages(path);
    const [before, was] = [digest(path), identity(path)];
    // Single pages cannot be in fewer pieces.
    const runs = hasPieces() ? RUNS.filter(([, pages]) => pages > 1).length : expect.any(Number);
    const { status, stdout } = onParts("gather", path, [WHOLE]);
    expect([status, JSON.parse(stdout)]).toEqual([0, { ok: true, runs }]);
    expect(identity(path)).toEqual(was);
    expect(digest(path)).toBe(before);
    await evict([path]);
    expect(digest(path)).toBe(before);
  });

  it.runIf(hasPieces())("has the page cache hold each run in as few pieces as its place allows", async () => {
    const path = makeFile();
    await cacheSinglePages(path);
    expect(piecesOf(path)).toEqual(SINGLE);
    expect(onParts("gather", path, [WHOLE]).status).toBe(0);
    const [block = 0, window, two = 0, odd = 0, ...single] = piecesOf(path);
    // Memory may lack the largest one.
    expect(block).toBeLessThanOrEqual(8);
    expect([window, single]).toEqual([1, [1, 1]]);
    expect(two).toBeLessThanOrEqual(2);
    // 101, 102, 104…107
    expect(odd).toBe(3);
  });

  it.runIf(hasPieces())("touches no other window than those that the parts lie in", async () => {
    const path = makeFile();
    await cacheSinglePages(path);
    const parts = [
      [BLOCK_PAGES + 20, 1],
      [BLOCK_PAGES + 66, 2],
    ] as const;
    expect(onParts("gather", path, parts).status).toBe(0);
    const [block, window, two, odd] = piecesOf(path);
    expect([block, window, two, odd]).toEqual([SINGLE[0], 1, 17, SINGLE[3]]);
  });

  it("reads what the page cache lacks", async () => {
    const path = makeFile();
    const before = digest(path);
    await evict([path]);
    expect(onParts("gather", path, [WHOLE]).status).toBe(0);
    expect(digest(path)).toBe(before);
  });

  it("passes over what lies beyond the end, and says what is wrong with a list", () => {
    const path = makeFile();
    expect(onParts("gather", path, [[1_000_000, 3]]).status).toBe(0);
    expect(onParts("gather", path, [])).toMatchObject({ status: 1, stdout: expect.stringContaining("holds no parts") });
    expect(onParts("gather", join(dir, "none"), [WHOLE])).toMatchObject({
      status: 1,
      stdout: expect.stringContaining("cannot open"),
    });
  });
});
