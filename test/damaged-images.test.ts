/**
 * Images that were damaged, cut short or made for something else, and disks that are full or forbid code: each is refused with
 * the reason, never run, and the function boots as before.
 */
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { zipSync } from "fflate";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import { createLogger, silentLogger } from "../src/base/log.js";
import { type FunctionSpec, type Image, openEngine } from "../src/engine/index.js";
import { decodeRawManifest, decodeWorkingSet, encodeManifest, imageFiles, type RawManifest } from "../src/image/index.js";
import { stageCode } from "../src/platform/code.js";
import { lockDataDir } from "../src/platform/lock.js";
import { received } from "../src/platform/testing.js";
import { Uploads } from "../src/platform/uploads.js";
import { ask, Bench, refusal, useBench } from "./support/bench.js";
import { eventually } from "./support/wait.js";
import { withInstance } from "./support/world.js";

const bench = useBench();
const PAGE = 4096;
/** Keeps something in /tmp, so that every kind of file of an image exists. */
const SOURCE = `
import os
table = {i: str(i) * 3 for i in range(20000)}
open("/tmp/kept", "w").write("kept since loading")
def handler(event, context): return [len(table), open("/tmp/kept").read()]
`;
const ANSWER = [20000, "kept since loading"];
let spec: FunctionSpec;
let whole: Image;
let copies = 0;

beforeAll(async () => {
  spec = bench.python(SOURCE);
  whole = await bench.image(spec);
  // The first clone records the working set.
  await withInstance(bench.engine.thaw(whole), async (instance) => expect(await ask(instance)).toEqual(ANSWER));
  await withInstance(bench.engine.thaw(whole), async (instance) => expect(await ask(instance)).toEqual(ANSWER));
  const { manifest, pages, tmp, workingSet } = imageFiles(whole.dir);
  expect([manifest, pages, tmp, workingSet].map((path) => statSync(path).size > 0)).toEqual([true, true, true, true]);
});

afterEach(() => bench.quiet());

/** A copy of the whole image, in a directory that the engine has not seen. */
function copy(from = whole.dir): string {
  const dir = join(bench.root, `image-${++copies}`);
  // A page space is terabytes of holes: nothing that copies these may be used.
  execFileSync("cp", ["-r", "--sparse=always", from, dir]);
  return dir;
}

function flip(path: string, bit: number): void {
  const fd = openSync(path, "r+");
  const byte = Buffer.alloc(1);
  readSync(fd, byte, 0, 1, Math.floor(bit / 8));
  byte.writeUInt8(byte.readUInt8(0) ^ (1 << (bit % 8)));
  writeSync(fd, byte, 0, 1, Math.floor(bit / 8));
  closeSync(fd);
}

/** Byte offsets of pages that hold data, from the manifest. */
function storedPages(dir: string): number[] {
  const { facts } = rawManifest(dir);
  return facts.regions.flatMap(({ slot, runs = [] }) => {
    const pages: number[] = [];
    for (let index = 0; index + 1 < runs.length; index += 2) {
      for (let page = 0; page < (runs[index + 1] ?? 0); page++)
        pages.push(Number(BigInt(slot ?? "0x0")) + ((runs[index] ?? 0) + page) * PAGE);
    }
    return pages;
  });
}

function rawManifest(dir: string): RawManifest {
  const path = imageFiles(dir).manifest;
  return decodeRawManifest(readFileSync(path), path);
}

function rewriteManifest(dir: string, change: (manifest: RawManifest) => void): void {
  const manifest = rawManifest(dir);
  change(manifest);
  writeFileSync(imageFiles(dir).manifest, encodeManifest(manifest));
}

/** Opens and thaws; whichever of the two refuses. What can be opened is removed again. */
async function refusedThaw(dir: string): Promise<{ code: string; message: string }> {
  let image: Image | undefined;
  try {
    return await refusal(
      (async () => {
        image = await bench.engine.openImage(dir);
        const instance = await bench.engine.thaw(image);
        await instance.dispose();
        throw new Error("a damaged image was run");
      })(),
    );
  } finally {
    if (image !== undefined) await bench.engine.removeImage(image);
    rmSync(dir, { recursive: true, force: true });
  }
}

async function works(dir: string): Promise<void> {
  const image = await bench.engine.openImage(dir);
  await withInstance(bench.engine.thaw(image), async (instance) => expect(await ask(instance)).toEqual(ANSWER));
  await bench.engine.removeImage(image);
  expect(existsSync(dir)).toBe(false);
}

/** Offsets at which to cut a file: its ends, and some between. */
function cuts(size: number): number[] {
  return [
    ...new Set([0, 1, Math.floor(size / 3), Math.floor(size / 2), size - PAGE, size - 1].filter((cut) => cut >= 0 && cut < size)),
  ];
}

describe("an image", () => {
  it("that was copied is as good as the first", async () => {
    await works(copy());
  });

  it.each(["manifest", "pages", "tmp"] as const)(
    "whose %s is cut short anywhere is refused with the file's name",
    { timeout: 120_000 },
    async (name) => {
      for (const length of cuts(statSync(imageFiles(whole.dir)[name]).size)) {
        const dir = copy();
        truncateSync(imageFiles(dir)[name], length);
        const error = await refusedThaw(dir);
        expect(error.code, `${length} bytes`).toBe("IMAGE_DAMAGED");
        expect(error.message).toContain(imageFiles(dir)[name]);
        expect(error.message).toContain("frozen anew");
      }
    },
  );

  it.each(["manifest", "pages", "tmp"] as const)("that lacks its %s is refused with the file's name", async (name) => {
    const dir = copy();
    rmSync(imageFiles(dir)[name]);
    const error = await refusedThaw(dir);
    expect(error.code).toBe("IMAGE_DAMAGED");
    expect(error.message).toContain(imageFiles(dir)[name]);
  });

  it("that is not there at all is refused with its name", async () => {
    const error = await refusal(bench.engine.openImage(join(bench.root, "nowhere")));
    expect(error.code).toBe("IMAGE_DAMAGED");
    expect(error.message).toContain(join(bench.root, "nowhere"));
  });

  it.each(["manifest", "tmp"] as const)("with any bit of its %s flipped is refused", async (name) => {
    const dir = copy();
    const path = imageFiles(dir)[name];
    await fc.assert(
      fc.asyncProperty(fc.nat({ max: statSync(path).size * 8 - 1 }), async (bit) => {
        flip(path, bit);
        const error = await refusal(bench.engine.openImage(dir));
        flip(path, bit);
        expect(["IMAGE_DAMAGED", "IMAGE_MISMATCH"]).toContain(error.code);
      }),
      { numRuns: 40 },
    );
    await works(dir);
  });

  it("with any bit of a stored page flipped is refused at its first use", { timeout: 120_000 }, async () => {
    const pages = storedPages(whole.dir);
    expect(pages.length).toBeGreaterThan(100);
    await fc.assert(
      fc.asyncProperty(fc.nat({ max: pages.length - 1 }), fc.nat({ max: PAGE * 8 - 1 }), async (page, bit) => {
        const dir = copy();
        flip(imageFiles(dir).pages, (pages[page] ?? 0) * 8 + bit);
        const error = await refusedThaw(dir);
        expect(error.code).toBe("IMAGE_DAMAGED");
        expect(error.message).toMatch(/its digest is 0x[0-9a-f]+ where 0x[0-9a-f]+ was written/);
      }),
      { numRuns: 12 },
    );
  });

  it("with a stored page damaged is told so when it is prepared, and no later start is spared the look", async () => {
    const dir = copy();
    flip(imageFiles(dir).pages, (storedPages(dir)[0] ?? 0) * 8 + 5);
    const image = await bench.engine.openImage(dir);
    for (const use of [() => bench.engine.prepareImage(image), () => bench.engine.thaw(image)]) {
      await expect(use()).rejects.toMatchObject({ code: "IMAGE_DAMAGED" });
    }
  });

  it("with bytes where there were none, or none where there were some, is refused", { timeout: 60_000 }, async () => {
    const [first = 0] = storedPages(whole.dir);
    const size = statSync(imageFiles(whole.dir).pages).size;
    const changes: ((fd: number) => void)[] = [
      (fd) => writeSync(fd, "x", size - 1),
      (fd) => writeSync(fd, Buffer.alloc(PAGE), 0, PAGE, first),
      (fd) => ftruncateSync(fd, size + PAGE),
    ];
    for (const change of changes) {
      const dir = copy();
      const fd = openSync(imageFiles(dir).pages, "r+");
      change(fd);
      closeSync(fd);
      expect((await refusedThaw(dir)).code).toBe("IMAGE_DAMAGED");
    }
  });

  it("that is damaged while it is open and in use is refused from then on, and used again once it is mended", async () => {
    const dir = copy();
    const image = await bench.engine.openImage(dir);
    await withInstance(bench.engine.thaw(image), async (instance) => expect(await ask(instance)).toEqual(ANSWER));
    const bit = (storedPages(dir).at(-1) ?? 0) * 8 + 77;
    flip(imageFiles(dir).pages, bit);
    for (const loader of ["lazy", "eager", "splice"] as const)
      expect((await refusal(bench.engine.thaw(image, { loader }))).code).toBe("IMAGE_DAMAGED");
    flip(imageFiles(dir).pages, bit);
    await withInstance(bench.engine.thaw(image), async (instance) => expect(await ask(instance)).toEqual(ANSWER));
    await bench.engine.removeImage(image);
  });

  it("that is damaged while it is open is refused before a thread of it runs, which would not wait for a request", async () => {
    const threaded = bench.python(`
import os, threading, time
def run():
    while True:
        time.sleep(0.0001)
        try:
            pipe = os.open("/var/task/ran", os.O_WRONLY | os.O_NONBLOCK)
            os.write(pipe, b"x")
            os.close(pipe)
        except OSError: pass
threading.Thread(target=run, daemon=True).start()
def handler(event, context): return 1
`);
    const path = join(threaded.codeDir, "ran");
    execFileSync("mkfifo", ["--mode=666", path]);
    const image = await bench.image(threaded);
    const pipe = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const room = Buffer.alloc(1 << 16);
      await withInstance(bench.engine.thaw(image), async (instance) => {
        expect(await ask(instance)).toBe(1);
        await eventually(() => expect(readSync(pipe, room)).toBeGreaterThan(0));
      });
      await bench.quiet();
      while (readSync(pipe, room) > 0);
      flip(imageFiles(image.dir).pages, (storedPages(image.dir)[0] ?? 0) * 8);
      for (let starts = 0; starts < 20; starts++)
        expect((await refusal(bench.engine.thaw(image, { early: true }))).code).toBe("IMAGE_DAMAGED");
      await bench.quiet();
      expect(readSync(pipe, room)).toBe(0);
    } finally {
      closeSync(pipe);
    }
    await bench.engine.removeImage(image);
  });

  it("whose damaged pages were replaced by whole ones is refused: what is open is the damaged file", async () => {
    const dir = copy();
    const image = await bench.engine.openImage(dir);
    const spare = copy();
    flip(imageFiles(dir).pages, (storedPages(dir)[0] ?? 0) * 8);
    renameSync(imageFiles(spare).pages, imageFiles(dir).pages);
    const error = await refusal(bench.engine.thaw(image));
    expect([error.code, error.why]).toEqual(["IMAGE_DAMAGED", "another file took its place since it was opened"]);
    await bench.engine.removeImage(image);
    rmSync(spare, { recursive: true });
  });

  it("whose pages were removed while it was open is refused", async () => {
    const dir = copy();
    const image = await bench.engine.openImage(dir);
    rmSync(imageFiles(dir).pages);
    const error = await refusal(bench.engine.thaw(image));
    expect([error.code, error.why]).toEqual(["IMAGE_DAMAGED", "it is missing"]);
    await bench.engine.removeImage(image);
  });

  it("that is parked is refused too once its pages are damaged", async () => {
    const dir = copy();
    const image = await bench.engine.openImage(dir);
    bench.engine.park(image, "prefaulted", 1);
    await bench.engine.poolsFull(20_000);
    flip(imageFiles(dir).pages, (storedPages(dir).at(-1) ?? 0) * 8);
    expect((await refusal(bench.engine.thaw(image, { husk: "parked" }))).code).toBe("IMAGE_DAMAGED");
    await bench.engine.removeImage(image);
  });

  it("that is parked serves on when its file was touched, and the pages are those that were written", async () => {
    const image = await bench.image(spec);
    bench.engine.park(image, "image", 1);
    await bench.engine.poolsFull(20_000);
    const parked = bench.engine.thaw(image, { husk: "parked" });
    await withInstance(parked, async (instance) => expect(await ask(instance)).toEqual(ANSWER));
    await bench.engine.poolsFull(20_000);
    // The time of its last change, which a copy by links alters, too.
    chmodSync(imageFiles(image.dir).pages, 0o644);
    chmodSync(imageFiles(image.dir).pages, 0o600);
    const touched = bench.engine.thaw(image, { husk: "parked" });
    await withInstance(touched, async (instance) => expect(await ask(instance)).toEqual(ANSWER));
    await bench.engine.removeImage(image);
  });

  it("without a usable working set starts all the same, and gets a new one", async () => {
    const size = statSync(imageFiles(whole.dir).workingSet).size;
    const damages: ((path: string) => void)[] = [
      (path) => rmSync(path),
      (path) => truncateSync(path, 0),
      (path) => truncateSync(path, size - 1),
      (path) => flip(path, size * 4),
      (path) => writeFileSync(path, "nonsense"),
    ];
    for (const damage of damages) {
      const dir = copy();
      damage(imageFiles(dir).workingSet);
      const image = await bench.engine.openImage(dir);
      for (let turn = 0; turn < 2; turn++)
        await withInstance(bench.engine.thaw(image), async (instance) => expect(await ask(instance)).toEqual(ANSWER));
      expect(decodeWorkingSet(readFileSync(imageFiles(dir).workingSet))).toMatchObject({ recordings: 2 });
      await bench.engine.removeImage(image);
    }
  });

  it("is refused again by the next server, and the function boots there", async () => {
    const dir = copy();
    flip(imageFiles(dir).pages, (storedPages(dir)[0] ?? 0) * 8);
    const other = new Bench();
    await other.open();
    try {
      const image = await other.engine.openImage(dir);
      expect((await refusal(other.engine.thaw(image))).code).toBe("IMAGE_DAMAGED");
      await withInstance(other.engine.boot(spec), async (instance) => expect(await ask(instance)).toEqual(ANSWER));
    } finally {
      await other.end();
      rmSync(dir, { recursive: true });
    }
  });
});

describe("an image made for something else", () => {
  it.each([
    [
      "kernel",
      (manifest: RawManifest) => (manifest.fingerprint.kernel = "5.10.0 #1 SMP"),
      /was made for another kernel\. it was made for 5\.10\.0 #1 SMP, this is /,
    ],
    [
      "CPU",
      (manifest: RawManifest) => (manifest.fingerprint.cpu = "f".repeat(64)),
      /was made for another CPU\. it was made for features ffffffffffff, this is features [0-9a-f]{12}/,
    ],
    [
      "thaw",
      (manifest: RawManifest) => (manifest.fingerprint.runtime = "e".repeat(64)),
      /was made for another thaw\. it was made for runtime eeeeeeeeeeee, this is runtime [0-9a-f]{12}/,
    ],
    [
      "thaw, which did not note its runtime",
      (manifest: RawManifest) => delete manifest.fingerprint.runtime,
      /was made for another thaw\. it was made for an older runtime, this is runtime [0-9a-f]{12}/,
    ],
  ])("(another %s) is refused with both", async (_title, change, message) => {
    const dir = copy();
    rewriteManifest(dir, change);
    const error = await refusedThaw(dir);
    expect(error.code).toBe("IMAGE_MISMATCH");
    expect(error.message).toMatch(message);
    expect(error.message).toContain(dir);
  });

  it("(another format) is refused with both versions", async () => {
    const dir = copy();
    const text = readFileSync(imageFiles(dir).manifest, "latin1");
    writeFileSync(imageFiles(dir).manifest, text.replace(/^thaw-manifest \d+/, "thaw-manifest 99"), "latin1");
    const error = await refusedThaw(dir);
    expect(error.code).toBe("IMAGE_MISMATCH");
    expect(error.message).toMatch(/has format 99\. this thaw reads format \d+/);
  });

  it("(an interpreter or library that changed in any respect) is refused with the file's name", { timeout: 60_000 }, async () => {
    const paths = [
      ...new Set(
        rawManifest(whole.dir).facts.regions.flatMap(({ path, identity }) =>
          path !== undefined && identity !== undefined ? [path] : [],
        ),
      ),
    ];
    expect(paths.length).toBeGreaterThan(2);
    const changes: ((identity: NonNullable<RawManifest["facts"]["regions"][number]["identity"]>) => void)[] = [
      (identity) => (identity.inode = "0x1"),
      (identity) => (identity.size = `0x${(BigInt(identity.size) + 1n).toString(16)}`),
      (identity) => identity.mtimeNs++,
      (identity) => identity.ctimeS--,
    ];
    for (const [index, path] of paths.entries()) {
      const dir = copy();
      rewriteManifest(dir, (manifest) => {
        for (const region of manifest.facts.regions)
          if (region.path === path && region.identity !== undefined) changes[index % changes.length]?.(region.identity);
      });
      const error = await refusedThaw(dir);
      expect(error.code).toBe("IMAGE_MISMATCH");
      expect(error.message).toBe(
        `the image does not fit this machine any more: ${path} is not the file it was made with. its size, inode or times differ. the function boots and is frozen anew`,
      );
    }
  });

  it("(a library that is gone) is refused with the file's name", async () => {
    const dir = copy();
    const [victim] = rawManifest(dir).facts.regions.flatMap(({ path, identity }) =>
      path !== undefined && identity !== undefined ? [path] : [],
    );
    rewriteManifest(dir, (manifest) => {
      for (const region of manifest.facts.regions) if (region.path === victim) region.path = "/usr/lib/libgone.so.1";
    });
    const error = await refusedThaw(dir);
    expect([error.code, error.message]).toEqual([
      "IMAGE_MISMATCH",
      "the image does not fit this machine any more: /usr/lib/libgone.so.1 is not the file it was made with. it is gone. the function boots and is frozen anew",
    ]);
  });

  it("(a function's own library, in its code, that changed) is refused with the file's name", async () => {
    const library = bench.python(
      "import ctypes\nlib = ctypes.CDLL('/var/task/lib.so')\ndef handler(event, context): return lib.answer()\n",
    );
    const build = (answer: number): void => {
      writeFileSync(join(bench.root, "lib.c"), `int answer(void) { return ${answer}; }\n`);
      execFileSync("gcc", ["-shared", "-fPIC", "-o", join(library.codeDir, "lib.so"), join(bench.root, "lib.c")]);
    };
    build(41);
    const image = await bench.image(library);
    await withInstance(bench.engine.thaw(image), async (instance) => expect(await ask(instance)).toBe(41));
    for (const change of [
      () => utimesSync(join(library.codeDir, "lib.so"), 1, 1),
      () => build(42),
      () => rmSync(join(library.codeDir, "lib.so")),
    ]) {
      change();
      const error = await refusal(bench.engine.thaw(image));
      expect(error.code).toBe("IMAGE_MISMATCH");
      expect(error.message).toContain("/var/task/lib.so is not the file it was made with");
    }
    build(42);
    await withInstance(bench.engine.boot(library), async (instance) => expect(await ask(instance)).toBe(42));
    await bench.engine.removeImage(image);
  });

  it("(code that is gone) is refused, and names the directory", async () => {
    const gone = bench.python(SOURCE);
    const image = await bench.image(gone);
    const dir = copy(image.dir);
    rmSync(gone.codeDir, { recursive: true });
    const error = await refusal(bench.engine.openImage(dir));
    expect(error.message).toContain(gone.codeDir);
    await expect(bench.engine.thaw(image)).rejects.toThrow();
    await expect(bench.engine.boot(gone)).rejects.toThrow(gone.codeDir);
    await bench.engine.removeImage(image);
  });
});

/** A file system of its own below the bench's directory, for as long as `body` takes. */
async function onMount(options: string, body: (dir: string) => Promise<void>): Promise<void> {
  const dir = join(bench.root, `mount-${++copies}`);
  mkdirSync(dir);
  execFileSync("mount", ["-t", "tmpfs", "-o", options, "thaw-test", dir]);
  try {
    await body(dir);
  } finally {
    execFileSync("umount", [dir]);
  }
}

async function withEngine(
  dataDir: string,
  body: (engine: Bench["engine"]) => Promise<void>,
  log = silentLogger(),
): Promise<void> {
  const engine = await openEngine({ dataDir, log });
  engine.pool({ generic: 0 });
  try {
    await body(engine);
  } finally {
    await engine.close();
  }
}

describe("a disk that is full while code is unpacked", () => {
  it.each([
    ["the function's directory", "nr_inodes=1", "app.py", []],
    ["a directory of the package", "nr_inodes=3", "lib/deep/app.py", ["function"]],
  ])("where %s would be made, is told as that, and leaves nothing", async (_title, options, path, left) => {
    const zip = await received(zipSync({ [path]: new Uint8Array() }));
    await onMount(`size=1m,${options}`, async (dir) => {
      const code = join(dir, "function", "code");
      const error = await refusal(stageCode(zip, code));
      expect(error.message).toMatch(/^The code package could not be unpacked\. the disk is full\. Free some space/);
      expect(readdirSync(dir, { recursive: true })).toEqual(left);
      execFileSync("mount", ["-o", "remount,nr_inodes=100", dir]);
      await (await stageCode(zip, code)).publish();
      expect(existsSync(join(code, path))).toBe(true);
    });
  });
});

describe("a disk that is full while a package is received", () => {
  it.each([
    ["where its file would be made", "size=1m,nr_inodes=1", 10_000],
    ["in the middle of it", "size=1m", 5_000_000],
  ])("%s, is told as that, and leaves nothing", async (_title, options, bytes) => {
    await onMount(options, async (dir) => {
      const error = await refusal(new Uploads(dir).receive([Buffer.alloc(bytes)]));
      expect(error.message).toMatch(/^The code package could not be received\. the disk is full\. Free some space/);
      expect(readdirSync(dir)).toEqual([]);
      const { bfree, blocks } = statfsSync(dir);
      expect(bfree).toBe(blocks);
    });
  });
});

describe("a disk that is full when a server starts", () => {
  it("keeps nothing of the lock that could not be written, however often that is tried", async () => {
    await onMount("size=4k", async (dir) => {
      writeFileSync(join(dir, "filler"), Buffer.alloc(PAGE));
      for (let turn = 0; turn < 2; turn++) expect(() => lockDataDir(dir)).toThrow("ENOSPC");
      expect(readdirSync(dir)).toEqual(["filler"]);
      rmSync(join(dir, "filler"));
      lockDataDir(dir).release();
      expect(readdirSync(dir)).toEqual([]);
    });
  });
});

describe("a disk that is full while freezing", () => {
  it.each([
    ["of space, from the beginning", "size=1m"],
    ["of space, in the middle of the pages", "size=4m"],
    ["of files, from the beginning", "size=64m,nr_inodes=2"],
    ["of files, in the middle", "size=64m,nr_inodes=4"],
    ["of files, before the last", "size=64m,nr_inodes=5"],
  ])("(%s) fails the freeze by name, leaves nothing, and the instance goes on", async (_title, options) => {
    await onMount(options, async (dir) => {
      await withEngine(dir, async (engine) => {
        await withInstance(engine.boot(spec), async (instance) => {
          expect(await ask(instance)).toEqual(ANSWER);
          for (let turn = 0; turn < 2; turn++) {
            const error = await refusal(instance.freeze());
            expect(error.code).toBe("RESOURCE_EXHAUSTED");
            expect(error.message).toMatch(
              /^function "test-python" could not be frozen\. .*[Nn]o space left on.*device.*\. free some space where the server keeps its images \(--data\)$/,
            );
            expect(readdirSync(join(dir, "images"))).toEqual([]);
            expect(await ask(instance)).toEqual(ANSWER);
          }
          // With room again, the very same instance is frozen.
          execFileSync("mount", ["-o", "remount,size=256m,nr_inodes=10000", dir]);
          const image = await instance.freeze({ then: "end" });
          await withInstance(engine.thaw(image), async (clone) => expect(await ask(clone)).toEqual(ANSWER));
        });
      });
    });
  });

  it("and one that fills before the working set is recorded costs nothing but that", async () => {
    await onMount("size=128m,nr_inodes=20", async (dir) => {
      const told: string[] = [];
      const log = createLogger({ level: "warn", destination: { write: (line: string) => void told.push(line) } });
      const body = async (engine: Bench["engine"]): Promise<void> => {
        const booted = await engine.boot(spec);
        const image = await booted.freeze({ then: "end" });
        for (let index = 0; index < 20; index++) {
          try {
            writeFileSync(join(dir, `filler-${index}`), "");
          } catch {
            // Full now.
          }
        }
        const answer = async (): Promise<void> => {
          for (let turn = 0; turn < 2; turn++)
            await withInstance(engine.thaw(image), async (clone) => expect(await ask(clone)).toEqual(ANSWER));
        };
        await answer();
        expect(existsSync(imageFiles(image.dir).workingSet)).toBe(false);
        await answer();
        expect(told).toEqual([expect.stringContaining("ENOSPC")]);
        execFileSync("mount", ["-o", "remount,nr_inodes=1000", dir]);
        await answer();
        expect(existsSync(imageFiles(image.dir).workingSet)).toBe(true);
      };
      await withEngine(dir, body, log);
    });
  });
});

describe("a data directory that is mounted noexec", () => {
  it("is refused when the engine opens, with what to do; without images it will do", async () => {
    await onMount("size=64m,noexec", async (dir) => {
      const error = await refusal(openEngine({ dataDir: join(dir, "data") }));
      expect(error.code).toBe("UNSUPPORTED_PLATFORM");
      expect(error.message).toBe(
        `images cannot be kept in ${dir}/data. ${dir} is mounted noexec, and an image holds code. choose another directory with --data, or: mount -o remount,exec ${dir}`,
      );
      const engine = await openEngine({ dataDir: join(dir, "data"), bootOnly: true });
      await withInstance(engine.boot(spec), async (instance) => expect(await ask(instance)).toEqual(ANSWER));
      await engine.close();
      execFileSync("mount", ["-o", "remount,exec", dir]);
      await withEngine(
        join(dir, "data"),
        async (other) => await withInstance(other.boot(spec), async (instance) => expect(await ask(instance)).toEqual(ANSWER)),
      );
    });
  });
});
