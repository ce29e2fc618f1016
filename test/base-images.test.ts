/**
 * Images made from a base: the function is loaded into a clone of its frozen runtime. It must not be able to tell, two functions must
 * not share what has to be unique, and what is shared on disk must be whole, or nothing runs from it.
 */
import {
  chmodSync,
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { FunctionSpec, Image, Instance } from "../src/engine/index.js";
import { basePath, decodeManifest, imageFiles, prefetchRanges, readImage } from "../src/image/index.js";
import { evict, residentPages } from "../src/lab/page-cache.js";
import { ask, refusal, useBench } from "./support/bench.js";
import { eventually } from "./support/wait.js";
import { withInstance } from "./support/world.js";

const bench = useBench();

const NODE = `
const { randomUUID, randomBytes } = require("node:crypto");
console.log("loaded", module.id !== ".");
let count = 0;
globalThis.seen = { env: { ...process.env }, cwd: process.cwd(), argv: process.argv.slice(1), title: process.title,
  main: require.main.filename, file: __filename, paths: module.paths[0], resolved: require.resolve("thaw-snapshot"),
  heap: require("node:v8").getHeapStatistics().heap_size_limit };
exports.handler = async (event, context) => event.draw
  ? [Math.random(), randomUUID(), randomBytes(8).toString("hex"), process.pid]
  : { ...globalThis.seen, count: ++count, log: [context.logGroupName, context.logStreamName] };
`;
const PYTHON = `
import os, sys
print("loaded")
import beside
count = 0
seen = {"env": dict(os.environ), "cwd": os.getcwd(), "argv": sys.argv, "path": sys.path, "beside": beside.WORD}
def handler(event, context):
    global count
    count += 1
    return {**seen, "count": count, "log": [context.log_group_name, context.log_stream_name]}
`;

const DRAWING = `
import os, random, secrets, uuid
def handler(event, context): return [random.random(), str(uuid.uuid4()), secrets.token_hex(8), os.getpid()]
`;

function functions(overrides: Partial<FunctionSpec> = {}): Record<"node" | "python", FunctionSpec> {
  const python = bench.python("", overrides);
  return {
    node: bench.node(NODE, overrides),
    python: { ...python, codeDir: bench.code({ "index.py": PYTHON, "beside.py": 'WORD = "beside"' }) },
  };
}

async function imageOf(spec: FunctionSpec, base = true): Promise<Image> {
  const instance = await bench.engine.boot(spec, { base });
  return await instance.freeze({ then: "end" });
}

async function baseIdOf(image: Image): Promise<string | undefined> {
  return (await readImage(image.dir)).manifest.base?.id;
}

function bases(): string[] {
  const dir = join(bench.dataDir, "bases");
  return existsSync(dir) ? readdirSync(dir).filter((name) => name !== "empty") : [];
}

/** Changes one byte of stored pages, and the time of the change. */
function damage(path: string, at: bigint): void {
  const fd = openSync(path, "r+");
  const byte = Buffer.alloc(1);
  readSync(fd, byte, 0, 1, Number(at));
  byte[0] = (byte[0] ?? 0) ^ 1;
  writeSync(fd, byte, 0, 1, Number(at));
  closeSync(fd);
}

describe.each(["node", "python"] as const)("a %s function loaded into a clone of its runtime", (language) => {
  it("sees what it would see after a boot: environment, places, modules, context", async () => {
    const spec = functions({ env: { GREETING: "hello", EMPTY: "" } })[language];
    const [booted, based] = [await imageOf(spec, false), await imageOf(spec)];
    expect([await baseIdOf(booted), await baseIdOf(based)]).toEqual([undefined, expect.any(String)]);
    const answer = (image: Image) => withInstance(bench.engine.thaw(image), (instance) => ask(instance));
    const [expected, seen] = [await answer(booted), await answer(based)];
    expect(seen).toEqual(expected);
    expect(seen).toMatchObject({ count: 1, cwd: "/var/task", env: { GREETING: "hello", EMPTY: "" } });
    expect(JSON.stringify(seen)).not.toContain("THAW_BASE");
    for (const image of [booted, based]) await bench.engine.removeImage(image);
  });

  it("writes the log of its loading, and reports an error at load as a boot does", async () => {
    const broken =
      language === "node" ? bench.node('throw new TypeError("no luck")') : bench.python('raise TypeError("no luck")');
    const missing = language === "node" ? bench.node("exports.other = 1") : bench.python("other = 1");
    for (const spec of [broken, missing]) {
      const [booted, based] = [await refusal(bench.engine.boot(spec)), await refusal(bench.engine.boot(spec, { base: true }))];
      expect([based.code, based.message, based.details]).toEqual([booted.code, booted.message, booted.details]);
    }
    const instance = await bench.engine.boot(functions()[language], { base: true });
    const result = await instance.invoke("{}");
    expect(result.logs.toString()).toContain("loaded");
    await instance.dispose();
  });

  it("draws other random numbers than every function and clone of the same base", async () => {
    const spec = language === "node" ? functions().node : bench.python(DRAWING);
    const images = [await imageOf(spec), await imageOf(spec)];
    const drawn: unknown[][] = [];
    for (const image of images)
      for (let clone = 0; clone < 8; clone++)
        await withInstance(bench.engine.thaw(image), async (instance: Instance) => {
          drawn.push((await ask(instance, { draw: true })) as unknown[]);
        });
    for (const source of [0, 1, 2]) expect(new Set(drawn.map((row) => row[source])).size, `source ${source}`).toBe(drawn.length);
    const lineage = (await readImage(images[0]?.dir ?? "")).manifest.lineagePids;
    // The base's pid and the clone's in which the function was loaded: OpenSSL reseeds itself under any other.
    expect(lineage).toHaveLength(2);
    expect(drawn.map((row) => row[3]).filter((pid) => lineage.includes(pid as number))).toEqual([]);
    for (const image of images) await bench.engine.removeImage(image);
  });

  it("stores fewer pages, and goes on sharing them when it is frozen again", async () => {
    const spec = functions()[language];
    const plain = await imageOf(spec, false);
    const first = await imageOf(spec);
    expect(first.bytesOnDisk).toBeLessThan(plain.bytesOnDisk * 0.85);
    const clone = await bench.engine.thaw(first);
    expect(await ask(clone)).toMatchObject({ count: 1 });
    const second = await clone.freeze({ then: "end" });
    expect([second.generation, await baseIdOf(second)]).toEqual([1, await baseIdOf(first)]);
    await bench.engine.removeImage(first);
    for (const loader of ["lazy", "eager", "splice"] as const)
      await withInstance(bench.engine.thaw(second, { loader }), async (instance) =>
        expect(await ask(instance)).toMatchObject({ count: 2 }),
      );
    const { base } = await bench.engine.inspect(second);
    expect(base).toMatchObject({ id: await baseIdOf(second) });
    expect(base?.sharedPages).toBeGreaterThan(400);
    for (const image of [plain, second]) await bench.engine.removeImage(image);
  });
});

describe("an image with a base", () => {
  const PYTHON_MEMORY = `
table = {f"key{i}": i for i in range(500)}
count = 0
def handler(event, context):
    global count
    if "change" in event: table[f"key{event['change']}"] = -1
    count += 1
    return [count, str(sum(value * (1 + len(key)) for key, value in table.items()))]
`;
  const MEMORY = `
const { createHash } = require("node:crypto");
const table = new Map();
for (let i = 0; i < 2000; i++) table.set("key" + i, { i, text: "value of " + i });
let count = 0;
exports.handler = async (event) => {
  if (event.change !== undefined) table.set("key" + event.change, { i: event.change, text: "changed" });
  const hash = createHash("sha256");
  for (const [key, { i, text }] of table) hash.update(key + i + text);
  return [++count, hash.digest("hex")];
};`;

  const languages = ["node", "python"] as const;
  it.each(languages)("has all its state after hibernation and wake, and is frozen from three files (%s)", async (language) => {
    const image = await imageOf(language === "node" ? bench.node(MEMORY) : bench.python(PYTHON_MEMORY));
    expect(await baseIdOf(image)).toBeDefined();
    const clone = await bench.engine.thaw(image);
    expect(await ask(clone, { change: 7 })).toMatchObject([1, expect.any(String)]);
    const [, changed] = (await ask(clone)) as [number, string];
    for (const count of [3, 4]) {
      const report = await clone.hibernate();
      expect([report.cancelled, report.writtenPages > 0]).toEqual([false, true]);
      expect(await ask(clone)).toMatchObject([count, changed]);
    }
    await clone.hibernate();
    const asleep = await clone.freeze();
    expect(await ask(clone)).toMatchObject([5, changed]);
    const woken = await clone.freeze({ then: "end" });
    for (const [frozen, count] of [
      [asleep, 5],
      [woken, 6],
    ] as const) {
      // What ran for a while has changed more; in Node it shares too little by then.
      if (language === "python") expect(await baseIdOf(frozen)).toBe(await baseIdOf(image));
      for (const loader of ["lazy", "eager", "splice", "splice"] as const)
        await withInstance(bench.engine.thaw(frozen, { loader }), async (instance) =>
          expect(await ask(instance)).toMatchObject([count, changed]),
        );
    }
    for (const one of [image, asleep, woken]) await bench.engine.removeImage(one);
  });

  it("is stored whole where most of it is its own, and so is what is frozen of its clones", async () => {
    const big = 'const own = require("node:crypto").randomBytes(48 << 20); let count = 0;';
    const sum = 'require("node:crypto").createHash("sha256").update(own).digest("hex")';
    const instance = await bench.engine.boot(bench.node(`${big} exports.handler = async () => [${sum}, ++count];`), {
      base: true,
    });
    expect(instance.start.phases.map(({ name }) => name)).toEqual(["base", "load"]);
    const [seen] = (await ask(instance)) as [string];
    const first = await instance.freeze({ then: "end" });
    const clone = await bench.engine.thaw(first);
    expect(await ask(clone)).toEqual([seen, 2]);
    const second = await clone.freeze({ then: "end" });
    for (const [image, count] of [
      [first, 2],
      [second, 3],
    ] as const) {
      expect([await baseIdOf(image), existsSync(basePath(image.dir))]).toEqual([undefined, false]);
      await withInstance(bench.engine.thaw(image), async (again) => expect(await ask(again)).toEqual([seen, count]));
      await bench.engine.removeImage(image);
    }
  });

  it("is brought by the pager, too: by faults, by its recorded pages, by their file", async () => {
    const image = await imageOf(bench.node(MEMORY));
    const answers = new Set<string>();
    for (const loader of ["reap-lazy", "reap", "reap", "reap-file", "reap-parallel", "lazy-4k", "lazy"] as const)
      await withInstance(bench.engine.thaw(image, { loader }), async (instance) => {
        expect(instance.start.fallback).toBeUndefined();
        answers.add(JSON.stringify(await ask(instance)));
      });
    expect(answers.size).toBe(1);
    await bench.engine.removeImage(image);
  });

  it("has its shared pages in the working set, which is read ahead from the base's page space", async () => {
    const image = await imageOf(functions().node);
    await withInstance(bench.engine.thaw(image), (instance) => ask(instance));
    const { manifest, workingSet } = await readImage(image.dir);
    if (workingSet === undefined) throw new Error("the first start recorded nothing");
    const ranges = prefetchRanges(manifest.facts, workingSet).filter(({ file }) => file === "base");
    expect(ranges.length).toBeGreaterThan(0);
    const base = basePath(image.dir);
    await evict([base]);
    await withInstance(bench.engine.thaw(image), async (instance) => {
      // Before the request, which would bring what it touches by itself.
      await eventually(() => expect(instance.start.coldPages).toBeGreaterThan(0));
      expect(await ask(instance)).toMatchObject({ count: 1 });
    });
    // All of them, whether the function came to touch them or not, once the disk has brought them.
    const bytes = ranges.reduce((sum, range) => sum + range.bytes, 0);
    await expect
      .poll(async () => (await residentPages([base]))[0], { timeout: 20_000, interval: 100 })
      .toBeGreaterThanOrEqual(bytes / 4096);
    for (const level of ["image", "prefaulted"] as const) {
      bench.engine.park(image, level, 1);
      await bench.engine.poolsFull(20_000);
      await withInstance(bench.engine.thaw(image, { husk: "parked", waitMs: 10_000 }), async (instance) =>
        expect(await ask(instance)).toMatchObject({ count: 1 }),
      );
      bench.engine.park(image, level, 0);
    }
    await bench.engine.removeImage(image);
  });
});

describe("a base", () => {
  it("is not used by functions whose environment must be there when the process begins", async () => {
    for (const env of [{ NODE_OPTIONS: "--no-warnings" }, { NODE_PATH: "/tmp" }, { LD_LIBRARY_PATH: "/tmp" }, { LC_ALL: "C" }]) {
      const image = await imageOf(functions({ env }).node);
      expect(await baseIdOf(image), JSON.stringify(env)).toBeUndefined();
      await bench.engine.removeImage(image);
    }
    const image = await imageOf(functions({ env: { NODE_ENV: "production" } }).node);
    expect(await baseIdOf(image)).toBeDefined();
    await bench.engine.removeImage(image);
  });

  it("belongs to one set of flags: another memory size is another heap limit in Node, and the same base in Python", async () => {
    const ids: Record<string, (string | undefined)[]> = {};
    for (const language of ["node", "python"] as const)
      for (const memoryMb of [256, 512]) {
        const image = await imageOf(functions({ memoryMb })[language]);
        ids[language] = [...(ids[language] ?? []), await baseIdOf(image)];
        await bench.engine.removeImage(image);
      }
    expect(ids["node"]?.[0]).not.toBe(ids["node"]?.[1]);
    expect(ids["python"]?.[0]).toBe(ids["python"]?.[1]);
  });

  it("is found again after a restart, and images outlive its directory", async () => {
    const spec = functions().python;
    const image = await imageOf(spec);
    const id = await baseIdOf(image);
    await bench.reopen();
    const again = await imageOf(spec);
    expect(await baseIdOf(again)).toBe(id);
    rmSync(join(bench.dataDir, "bases"), { recursive: true });
    await bench.reopen();
    const opened = await bench.engine.openImage(image.dir);
    await withInstance(bench.engine.thaw(opened), async (instance) => expect(await ask(instance)).toMatchObject({ count: 1 }));
    const other = await imageOf(spec);
    expect(await baseIdOf(other)).not.toBe(id);
    for (const one of [opened, other]) await bench.engine.removeImage(one);
    rmSync(again.dir, { recursive: true });
  });

  it("that is damaged is refused with its name by the images above it, and made anew", async () => {
    const spec = functions().python;
    const image = await imageOf(spec);
    const id = await baseIdOf(image);
    const region = (await readImage(image.dir)).manifest.facts.regions.find(({ kind }) => kind === "base");
    const first = BigInt(region?.runs?.[0] ?? 0) * 4096n;
    damage(basePath(image.dir), (region?.slot ?? 0n) + first);
    const refused = await refusal(bench.engine.thaw(image));
    expect([refused.code, refused.message]).toEqual(["IMAGE_DAMAGED", expect.stringContaining(`its base image ${id}`)]);
    const anew = await imageOf(spec);
    expect(await baseIdOf(anew)).not.toBe(id);
    await withInstance(bench.engine.thaw(anew), async (instance) => expect(await ask(instance)).toMatchObject({ count: 1 }));
    for (const one of [image, anew]) await bench.engine.removeImage(one);
  });

  it("is made whatever the umask of the server, and of who copied its data", async () => {
    const spec = functions().node;
    await bench.engine.removeImage(await imageOf(spec));
    await bench.reopen();
    const dir = join(bench.dataDir, "bases");
    for (const name of bases()) rmSync(join(dir, name), { recursive: true });
    chmodSync(join(dir, "empty"), 0o700);
    const image = await imageOf(spec);
    expect(await baseIdOf(image)).toEqual(expect.any(String));
    await bench.engine.removeImage(image);
  });

  it("that is missing or cut short is refused when an image above it is opened", async () => {
    const image = await imageOf(functions().python);
    const id = (await baseIdOf(image)) ?? "";
    await bench.reopen();
    rmSync(basePath(image.dir));
    expect((await refusal(bench.engine.openImage(image.dir))).message).toContain(`its base image ${id} is missing`);
    rmSync(image.dir, { recursive: true });
  });

  it("made for another thaw or interpreter is swept when the next one is made", async () => {
    const dir = join(bench.dataDir, "bases");
    const spec = functions().python;
    await bench.engine.removeImage(await imageOf(spec));
    await bench.reopen();
    for (const name of bases()) {
      const { spec: made } = decodeManifest(readFileSync(imageFiles(join(dir, name)).manifest), name);
      if (made.runtime === spec.runtime) renameSync(join(dir, name), join(dir, `0123456789abcdef-${name.slice(17)}`));
    }
    const before = bases().filter((name) => name.startsWith("0123456789abcdef"));
    expect(before).not.toEqual([]);
    await bench.engine.removeImage(await imageOf(spec));
    expect(bases().filter((name) => before.includes(name))).toEqual([]);
  });
});
