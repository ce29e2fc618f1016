/**
 * The preload shim under the real kernel: V8's heap in far fewer mappings, and an allocator that never hands out the
 * same page twice, nor one that is still in use, whatever is unmapped, by however many threads, before or after a fork.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "..");
const shim = join(root, "native/build/shim.so");

const dir = mkdtempSync(join(tmpdir(), "thaw-shim-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

beforeAll(() => {
  execFileSync("make", ["--silent", "-C", join(root, "native"), "build/shim.so"]);
});

function run(command: string, args: string[], preload: boolean): string {
  const { LD_PRELOAD: _, ...env } = process.env;
  const child = spawnSync(command, args, {
    encoding: "utf8",
    env: preload ? { ...env, LD_PRELOAD: shim } : env,
    timeout: 50_000,
    maxBuffer: 64 << 20,
  });
  if (child.status !== 0) throw new Error(`${command} ended with ${child.status ?? child.signal}: ${child.stderr}`);
  return child.stdout;
}

const OBJECTS = `
  const keep = [];
  for (let i = 0; i < 200000; i++) keep.push({ id: i, name: "item " + i, tags: [i, i + 1] });
  const maps = require("node:fs").readFileSync("/proc/self/maps", "utf8").trim().split("\\n").length;
  let sum = 0;
  for (const item of keep) sum += item.id + item.tags[1] + item.name.length;
  console.log(JSON.stringify({ maps, sum }));`;

describe("node with the shim", () => {
  it("keeps 200,000 objects in well under two thirds of the mappings, with the same contents", () => {
    const plain = JSON.parse(run(process.execPath, ["-e", OBJECTS], false));
    const packed = JSON.parse(run(process.execPath, ["-e", OBJECTS], true));
    expect(packed.sum).toBe(plain.sum);
    expect(packed.maps).toBeLessThan(plain.maps * 0.66);
  });

  it("works with workers that allocate at once, WebAssembly, large arrays, and child processes", () => {
    const script = `
      const { Worker, isMainThread, parentPort, workerData } = require("node:worker_threads");
      const { execFileSync } = require("node:child_process");
      const churn = (seed) => {
        let kept = [], sum = 0;
        for (let round = 0; round < 20; round++) {
          kept = kept.filter((_, i) => i % 3 !== 0);
          for (let i = 0; i < 20000; i++) kept.push({ value: seed + i, text: "x".repeat(i % 50) });
          const large = new Array(300000).fill(round);
          sum += large[299999];
        }
        for (const item of kept) sum += item.value - seed + item.text.length;
        return sum;
      };
      if (!isMainThread) { parentPort.postMessage(churn(workerData)); return; }
      const memory = new WebAssembly.Memory({ initial: 1, maximum: 100 });
      memory.grow(50);
      new Uint8Array(memory.buffer).fill(7);
      const here = churn(1);
      const workers = [2, 3, 4].map((seed) => new Promise((resolve, reject) =>
        new Worker(__filename, { workerData: seed }).on("message", resolve).on("error", reject)));
      Promise.all(workers).then((sums) => {
        const child = Number(execFileSync(process.execPath, ["-p", "6 * 7"], { encoding: "utf8" }));
        console.log(JSON.stringify({ same: sums.every((sum) => sum === here), wasm: memory.buffer.byteLength, child }));
      });`;
    const file = join(dir, "churn.cjs");
    writeFileSync(file, script);
    expect(JSON.parse(run(process.execPath, [file], true))).toEqual({ same: true, wasm: 51 * 65536, child: 42 });
  });
});

/** Drives the interposed functions through ctypes, against a model: each live page holds a byte that only its owner knows. */
const EXERCISE = `
import ctypes, os, random, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PAGE, UNIT, RW, ANON = 4096, 262144, 3, 0x22

def arena_bounds():
    at = libc.mmap(0x7000_0000_0000, UNIT, RW, ANON, -1, 0)
    assert libc.munmap(at, UNIT) == 0
    return at & ~(UNIT - 1)

def exercise(seed, rounds, shared):
    rng, live = random.Random(seed), {}
    tag = seed % 250 + 1
    def check(at, pages):
        for n in pages:
            assert ctypes.string_at(at + n * PAGE, 8) == bytes([tag]) * 8, "a page in use was overwritten"
    for _ in range(rounds):
        if live and rng.random() < 0.55:
            at = rng.choice(list(live))
            pages = live[at]
            first = rng.choice(sorted(pages))
            run = 1
            while first + run in pages and rng.random() < 0.99: run += 1
            check(at, range(first, first + run))
            assert libc.munmap(at + first * PAGE, run * PAGE) == 0
            pages -= set(range(first, first + run))
            check(at, pages)
            if not pages: del live[at]
        else:
            size = rng.choice([UNIT, 508 * 1024, 508 * 1024, UNIT * rng.randint(1, 12), UNIT + PAGE * rng.randint(1, 200)])
            at = libc.mmap(0x7000_0000_0000 + rng.randrange(1 << 20) * UNIT, size, RW, ANON, -1, 0)
            assert at is not None and at != ctypes.c_void_p(-1).value
            assert ctypes.string_at(at, size).count(0) == size, "fresh memory is not zero"
            ctypes.memset(at, tag, size)
            live[at] = set(range(size // PAGE))
            shared.add(at)
    for at, pages in live.items():
        check(at, pages)
        for n in pages: assert libc.munmap(at + n * PAGE, PAGE) == 0
`;

describe("the arena", () => {
  const python = (script: string): string => run("python3", ["-c", EXERCISE + script], true).trim();

  it("gives V8's over-allocated pages adjacent places: 100 pages merge into one mapping", () => {
    const mappings = python(`
start = None
for n in range(100):
    at = libc.mmap(0x7000_0000_0000 + n * 7 * UNIT, 508 * 1024, RW, ANON, -1, 0)
    assert at % UNIT == 0
    assert libc.munmap(at + UNIT, 252 * 1024) == 0
    start = start or at
print(sum(1 for line in open("/proc/self/maps") for a, b in [[int(x, 16) for x in line.split()[0].split("-")]] if a < start + 100 * UNIT and b > start))
print([line.split()[1] for line in open("/proc/self/maps") if line.startswith("%x-" % start)][0])`);
    expect(mappings).toBe("1\nrw-p");
  });

  it("never hands out a page in use while threads map and unmap at random", () => {
    const out = python(`
failures = []
def work(seed):
    try: exercise(seed, 400, set())
    except BaseException as error: failures.append(repr(error))
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
[t.start() for t in threads]; [t.join() for t in threads]
print(failures or "sound")`);
    expect(out).toBe("sound");
  });

  it("goes on in a child after fork, apart from its parent", () => {
    const out = python(`
mine = libc.mmap(0x7000_0000_0000, UNIT, RW, ANON, -1, 0)
ctypes.memset(mine, 9, UNIT)
child = os.fork()
if child == 0:
    try:
        exercise(77, 200, set())
        os._exit(0 if ctypes.string_at(mine, UNIT).count(9) == UNIT else 1)
    except BaseException: os._exit(2)
exercise(78, 200, set())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ctypes.string_at(mine, UNIT).count(9) == UNIT)`);
    expect(out).toBe("0 True");
  });

  it("takes back everything: after random use the first place is free again", () => {
    expect(python("first = arena_bounds()\nexercise(5, 600, set())\nprint(arena_bounds() == first)")).toBe("True");
  });

  it("leaves alone what is not V8's: fixed, shared, executable, small, without a hint", () => {
    const out = python(`
arena = arena_bounds()
inside = lambda at: arena <= at < arena + (4 << 30)
far = 0x2000_0000_0000
cases = [(None, UNIT, RW, ANON), (far, UNIT, RW, ANON | 0x10), (far, UNIT, RW, 0x21), (far, UNIT, 7, ANON), (far, PAGE, RW, ANON), (far, 128 << 20, 0, ANON)]
print([inside(libc.mmap(*case, -1, 0)) for case in cases], inside(libc.mmap(far + (1 << 32), UNIT, RW, ANON, -1, 0)))`);
    expect(out).toBe("[False, False, False, False, False, False] True");
  });

  it("unmaps what straddles its edge on both sides, as the kernel would", () => {
    const out = python(`
arena = arena_bounds()
before = libc.mmap(arena - PAGE, PAGE, RW, ANON | 0x100000, -1, 0)
at = libc.mmap(0x7000_0000_0000, UNIT, RW, ANON, -1, 0)
assert at == arena and before == arena - PAGE, "something lies below the arena already"
assert libc.munmap(before, PAGE + UNIT) == 0
lines = [l for l in open("/proc/self/maps") for a, b in [[int(x, 16) for x in l.split()[0].split("-")]] if a < arena and b > arena - PAGE]
print(lines, libc.mmap(0x7000_0000_0000, UNIT, RW, ANON, -1, 0) == arena, libc.munmap(arena + 1, PAGE), ctypes.get_errno())`);
    expect(out).toBe("[] True -1 22");
  });

  it("falls back to the kernel when it is full", () => {
    const out = python(`
first = arena_bounds()
places = [libc.mmap(0x7000_0000_0000, 64 << 20, 0, ANON, -1, 0) for _ in range(70)]
inside = sum(first <= at < first + (4 << 30) for at in places)
print(inside, len(set(places)))`);
    expect(out).toBe("64 70");
  });
});
