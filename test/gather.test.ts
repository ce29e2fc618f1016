/** Blocks of a file are had by one fault each once the page cache holds them in one piece, and nothing else changes. */
import { spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statfsSync, statSync, writeFileSync, writeSync } from "node:fs";
import { release } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { evict, residentPages } from "../src/lab/page-cache.js";
import { ROOT } from "./support/server.js";

const EXTRACTOR = join(ROOT, "native/build/extractor");
/** Not the system's temporary directory, which may have no disk below it. */
const dir = mkdtempSync("/var/tmp/thaw-gather-");
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const BLOCK = 2 << 20;
const BLOCK_PAGES = BLOCK / 4096;
/** Blocks with data; the others are holes. 3 is half full. */
const DATA = [0, 1, 3, 7];

/** Whether the page cache can have pieces of 2 MiB here: ext4 since Linux 6.16. */
function hasPieces(): boolean {
  const [major = 0, minor = 0] = release().split(".").map(Number);
  const enabled = readFileSync("/sys/kernel/mm/transparent_hugepage/enabled", "utf8");
  return statfsSync(dir).type === 0xef53 && (major > 6 || (major === 6 && minor >= 16)) && !enabled.includes("[never]");
}

function makeFile(): string {
  const path = join(dir, "pages");
  const fd = openSync(path, "w");
  for (const block of DATA) writeSync(fd, randomBytes(block === 3 ? BLOCK / 2 : BLOCK), 0, undefined, block * BLOCK);
  closeSync(fd);
  return path;
}

function gather(path: string, blocks: readonly number[]): { status: number | null; stdout: string; stderr: string } {
  const bytes = Buffer.alloc(blocks.length * 8);
  for (const [index, block] of blocks.entries()) bytes.writeBigUInt64LE(BigInt(block * BLOCK), index * 8);
  const list = join(dir, "blocks");
  writeFileSync(list, bytes);
  const fd = openSync(list, "r");
  try {
    const { status, stdout, stderr } = spawnSync(EXTRACTOR, ["gather", path], {
      stdio: ["ignore", "pipe", "pipe", fd],
      timeout: 30_000,
    });
    return { status, stdout: stdout.toString(), stderr: stderr.toString() };
  } finally {
    closeSync(fd);
  }
}

/** Page faults of a process that maps each block at an aligned address and reads all its pages. */
function faultsOf(path: string, blocks: readonly number[]): number[] {
  const code = `
import ctypes, os, resource, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p] + [ctypes.c_long] * 5
fd, size = os.open(sys.argv[1], os.O_RDONLY), 2 << 20
for block in sys.argv[2:]:
    room = libc.mmap(None, 2 * size, 0, 0x22, -1, 0)
    at = libc.mmap((room + size - 1) // size * size, size, 1, 0x12, fd, int(block) * size)
    view = (ctypes.c_char * size).from_address(at)
    sum(view[i][0] for i in range(0, 4096 * 64, 4096))
    libc.munmap(ctypes.c_void_p(at), ctypes.c_long(size))
    at = libc.mmap(at, size, 1, 0x12, fd, int(block) * size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    sum(view[i][0] for i in range(0, size, 4096))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
`;
  const { stdout } = spawnSync("python3", ["-c", code, path, ...blocks.map(String)], { timeout: 30_000 });
  return stdout.toString().trim().split("\n").map(Number);
}

const digest = (path: string): string => createHash("sha256").update(readFileSync(path)).digest("hex");
const identity = (path: string): unknown[] => {
  const { ino, size, blocks, mtimeNs, ctimeNs } = statSync(path, { bigint: true });
  return [ino, size, blocks, mtimeNs, ctimeNs];
};

describe("gathering blocks of a file", () => {
  it("has the page cache hold them and no others, and leaves the file as it is", async () => {
    const path = makeFile();
    const before = digest(path);
    await evict([path]);
    const was = identity(path);
    expect(gather(path, DATA)).toEqual({ status: 0, stdout: `{"ok":true,"blocks":${DATA.length}}\n`, stderr: "" });
    expect(identity(path)).toEqual(was);
    // Without pieces a fault brings what the device reads ahead, which may be less.
    if (hasPieces()) expect(await residentPages([path])).toEqual([DATA.length * BLOCK_PAGES]);
    expect(digest(path)).toBe(before);
  });

  it.runIf(hasPieces())("lets each be mapped by one fault, also where it was cached page by page before", async () => {
    const path = makeFile();
    await evict([path]);
    // In small pieces: reads of one page each.
    spawnSync("python3", [
      "-c",
      "import os,sys\nf=os.open(sys.argv[1],0)\nos.posix_fadvise(f,0,0,1)\nfor i in range(0,os.fstat(f).st_size,4096): os.pread(f,1,i)",
      path,
    ]);
    const single = faultsOf(path, DATA);
    expect(single).toHaveLength(DATA.length);
    for (const faults of single) expect(faults).toBeGreaterThanOrEqual(16);
    expect(gather(path, DATA).status).toBe(0);
    const gathered = faultsOf(path, DATA);
    expect(gathered).toHaveLength(DATA.length);
    for (const faults of gathered) expect(faults).toBeLessThanOrEqual(3);
  });

  it("passes over what lies beyond the end, and says what is wrong with a list", () => {
    const path = makeFile();
    expect(gather(path, [0, 1_000]).status).toBe(0);
    expect(gather(path, [])).toMatchObject({ status: 1, stdout: expect.stringContaining("holds no blocks") });
    expect(gather(join(dir, "none"), [0])).toMatchObject({ status: 1, stdout: expect.stringContaining("cannot open") });
  });
});
