/**
 * The platform before Linux 6.7, on the real kernel: a copy of what was built, whose extractor is told by older-kernel.c that there is no PAGEMAP_SCAN and that
 * userfaultfd notes no writes. What remains are the entries of /proc/PID/pagemap, and soft-dirty bits where this kernel has them.
 */
import { execFileSync } from "node:child_process";
import { chmodSync, cpSync, mkdirSync, renameSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import type { Engine, Loader } from "../src/engine/index.js";
import { ROOT } from "./support/server.js";
import { LANGUAGES, type Language, opened, World, withInstance } from "./support/world.js";

/** Memory of several kinds, an answer that depends on every byte of it, and changes all over. */
const SOURCES: Readonly<Record<Language, readonly [file: string, text: string]>> = {
  node: [
    "index.js",
    `const { createHash } = require("node:crypto");
const rows = Array.from({ length: 40000 }, (_, i) => ({ i, text: "row " + i }));
const blocks = Array.from({ length: 64 }, (_, i) => Buffer.alloc(65536, i));
const zeros = Buffer.alloc(1 << 22);
new WebAssembly.Memory({ initial: 1, maximum: 1024 });
let count = 0;
exports.handler = async ({ change }) => {
  for (let i = 0; i < change; i++, count++) {
    rows[(i * 7919) % rows.length] = { i: count, text: "changed " + count };
    blocks[i % blocks.length][(i * 4099) % 65536] ^= count;
  }
  const hash = createHash("sha256");
  for (const row of rows) hash.update(row.i + row.text);
  for (const block of [...blocks, zeros]) hash.update(block);
  return [count, hash.digest("hex")];
};
`,
  ],
  python: [
    "index.py",
    `import hashlib, mmap
rows = [{"i": i, "text": "row %d" % i} for i in range(40000)]
blocks = [bytearray([i]) * 65536 for i in range(64)]
MAP_NORESERVE = 0x4000
reserved = mmap.mmap(-1, 1 << 32, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
reserved[1 << 31] = 7
count = 0
def handler(event, context):
    global count
    for i in range(event["change"]):
        rows[(i * 7919) % len(rows)] = {"i": count, "text": "changed %d" % count}
        blocks[i % len(blocks)][(i * 4099) % 65536] ^= count & 255
        count += 1
    digest = hashlib.sha256()
    for row in rows: digest.update(("%d%s" % (row["i"], row["text"])).encode())
    for block in blocks: digest.update(block)
    digest.update(reserved[(1 << 31) - 4096 : (1 << 31) + 4096])
    return [count, digest.hexdigest()]
`,
  ],
};

class OlderWorld extends World {
  override async open(): Promise<void> {
    // Below such a folder nothing is transformed before it runs.
    const built = join(this.root, "node_modules/thaw");
    mkdirSync(join(built, "native"), { recursive: true });
    for (const part of ["dist", "native/build", "src/runtime", "package.json"])
      cpSync(join(ROOT, part), join(built, part), { recursive: true });
    symlinkSync(join(ROOT, "node_modules"), join(built, "node_modules"));
    const native = join(built, "native/build");
    execFileSync("gcc", ["-shared", "-fPIC", "-O1", "-Wall", "-o", join(native, "older.so"), join(ROOT, "test/older-kernel.c")]);
    renameSync(join(native, "extractor"), join(native, "real"));
    writeFileSync(join(native, "extractor"), `#!/bin/sh\nLD_PRELOAD=${native}/older.so exec ${native}/real "$@"\n`);
    chmodSync(join(native, "extractor"), 0o755);
    this.extractor = join(native, "extractor");
    const { openEngine } = (await import(join(built, "dist/engine/index.js"))) as typeof import("../src/engine/index.js");
    this.engine = (await openEngine({ dataDir: this.dataDir })) as Engine;
  }

  extractor = "";

  function(language: Language): Parameters<Engine["boot"]>[0] {
    const [file, text] = SOURCES[language];
    const codeDir = join(this.root, language);
    mkdirSync(codeDir, { recursive: true });
    writeFileSync(join(codeDir, file), text);
    return this.specOf(language, codeDir, { memoryMb: 1024 });
  }
}

const world = opened(new OlderWorld());
/** Whether this kernel has soft-dirty bits: it does what it does here, then, with them. */
let writesAreNoted = false;
beforeAll(() => {
  const told = JSON.parse(execFileSync(world.extractor, ["tracking"]).toString()) as { ok: boolean; writes: string };
  expect(told.ok).toBe(false);
  expect(["no", "once"]).toContain(told.writes);
  writesAreNoted = told.writes === "once";
});

const ask = async (instance: { invoke: Awaited<ReturnType<Engine["boot"]>>["invoke"] }, change = 0): Promise<unknown> =>
  JSON.parse((await instance.invoke(JSON.stringify({ change }))).payload.toString());

describe.each(LANGUAGES)("before Linux 6.7, a %s function", (language) => {
  it("is frozen, has in its clones every byte of it, with every loader, and is frozen again", async () => {
    const loaders: readonly Loader[] = ["splice", "lazy", "lazy-4k", "eager", "reap"];
    await withInstance(world.engine.boot(world.function(language)), async (instance) => {
      await ask(instance, 1000);
      const image = await instance.freeze();
      const state = await ask(instance);
      for (const loader of loaders)
        await withInstance(world.engine.thaw(image, { loader }), async (clone) => {
          expect(await ask(clone)).toEqual(state);
          const changed = await ask(clone, 1000);
          if (loader !== "splice") return;
          const next = await clone.freeze();
          expect(await ask(clone)).toEqual(changed);
          await withInstance(world.engine.thaw(next), async (grandchild) => expect(await ask(grandchild)).toEqual(changed));
          await world.engine.removeImage(next);
        });
      expect(await ask(instance)).toEqual(state);
    });
  });

  it("is hibernated again and again, writes only what changed, and has all of its memory", async () => {
    await withInstance(world.engine.boot(world.function(language)), async (instance) => {
      const pages: number[] = [];
      for (let round = 0; round < 3; round++) {
        const state = await ask(instance, round === 0 ? 1000 : 10);
        const { residentBytes, writtenPages } = await instance.hibernate();
        pages.push(writtenPages);
        expect(residentBytes).toBeLessThan(2 << 20);
        expect(await ask(instance)).toEqual(state);
      }
      expect(Math.max(...pages.slice(1))).toBeLessThan((pages[0] ?? 0) / 2);
    });
  });

  it("is frozen while it goes on serving where writes are noted, and otherwise told why not", async () => {
    await withInstance(world.engine.boot(world.function(language)), async (instance) => {
      const before = await ask(instance, 1000);
      const freezing = instance.freeze({ then: "continue", live: true });
      if (writesAreNoted) {
        const image = await freezing;
        await ask(instance, 1000);
        await withInstance(world.engine.thaw(image), async (clone) => expect(await ask(clone)).toEqual(before));
      } else {
        await expect(freezing).rejects.toMatchObject({
          code: "FREEZE_REFUSED",
          why: expect.stringMatching(
            /^what it writes while it is copied cannot be noted \(userfaultfd has no asynchronous write protection/,
          ),
          fix: "boot Linux 6.7 or newer, or one built with CONFIG_MEM_SOFT_DIRTY; freeze what may stand still while it is copied",
        });
        expect(await ask(instance)).toEqual(before);
      }
    });
  });
});
