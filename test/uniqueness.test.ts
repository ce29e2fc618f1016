/**
 * No two thaws, of one image or of images down its line, draw the same random value or run under a process id that the
 * line had before. 200 thaws over three generations: an image, one frozen from a thawed instance, one frozen from a thawed
 * instance of that.
 */
import { chmodSync, cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Image, Instance } from "../src/engine/index.js";
import { until } from "./support/wait.js";
import { call, hostPid, LANGUAGES, useWorld } from "./support/world.js";

const THAWS = [80, 60, 60] as const;
/** A worker or thread costs a start more than a thaw: every so many thaws suffice. */
const WORKER_EVERY = 5;
const world = useWorld();

/** Values by source, each with the thaw that drew it. */
class Draws {
  private readonly seen = new Map<string, Map<string, string>>();
  readonly repeats: string[] = [];

  add(values: Readonly<Record<string, unknown>>, who: string): void {
    for (const [source, drawn] of Object.entries(values)) {
      const value = JSON.stringify(drawn);
      const of = this.seen.get(source) ?? new Map<string, string>();
      this.seen.set(source, of);
      const before = of.get(value);
      if (before !== undefined) this.repeats.push(`${source}: ${value} came to ${before} and to ${who}`);
      of.set(value, who);
    }
  }

  /** Values drawn of each source. */
  counts(): number[] {
    return [...this.seen.values()].map((of) => of.size);
  }
}

interface Identity {
  readonly pid: number;
  readonly self: number;
}

async function drawTwice(instance: Instance, draws: Draws, who: string, withWorker: boolean): Promise<void> {
  draws.add(await call(instance, "random.draw", withWorker), `${who}, first request`);
  draws.add(await call(instance, "random.draw", false), `${who}, second request`);
}

describe.each(LANGUAGES)("200 thaws of %s over three generations", (language) => {
  it("draw distinct values from every source, and so does what was frozen and goes on", async () => {
    const draws = new Draws();
    const frozen: { instance: Instance; name: string }[] = [];
    const images: Image[] = [];
    const linePids: number[] = [];
    let instance = await world.boot(language);
    let name = "the boot";
    for (const [generation, thaws] of THAWS.entries()) {
      const { pid } = await call<Identity>(instance, "random.pid");
      linePids.push(pid);
      await drawTwice(instance, draws, `${name} before its freeze`, true);
      const image = await instance.freeze();
      images.push(image);
      frozen.push({ instance, name });
      for (let thaw = 0; thaw < thaws; thaw++) {
        const who = `thaw ${thaw} of generation ${generation}`;
        const loader = (["splice", "lazy", "eager"] as const)[thaw % 3] ?? "lazy";
        await world.thawed(
          image,
          async (clone) => {
            const identity = await call<Identity>(clone, "random.pid");
            expect(identity.pid).toBe(identity.self);
            expect(linePids).not.toContain(identity.pid);
            await drawTwice(clone, draws, who, thaw % WORKER_EVERY === 0);
          },
          { loader },
        );
        // What was frozen goes on beside its clones.
        if (thaw % 20 === 0) await drawTwice(instance, draws, `${name} after its freeze, ${thaw}`, false);
      }
      // The next generation is frozen from a clone that has drawn nothing since its thaw: its caches are those of the image.
      instance = await world.engine.thaw(image);
      name = `the parent of generation ${generation + 1}`;
      if (generation === 1) {
        // Frozen before it used any randomness, under another pid: a third process of that line must not come back to the first one.
        const silent = await instance.freeze();
        images.push(silent);
        for (let thaw = 0; thaw < 10; thaw++) {
          await world.thawed(silent, (clone) => drawTwice(clone, draws, `thaw ${thaw} of the silent image`, false));
        }
      }
    }
    await instance.dispose();
    for (const { instance: parent, name: who } of frozen) await drawTwice(parent, draws, `${who} at the end`, true);
    for (const { instance: parent } of frozen) await parent.dispose();
    for (const image of images) await world.engine.removeImage(image);
    expect(draws.repeats).toEqual([]);
    const drawn = draws.counts();
    expect(drawn.length).toBeGreaterThan(15);
    // Workers and threads draw now and then, all else twice in each thaw.
    expect(drawn.filter((count) => count > 400).length).toBeGreaterThanOrEqual(drawn.length - 3);
    expect(Math.min(...drawn)).toBeGreaterThanOrEqual(40);
  }, 120_000);
});

describe("clones of one image that run at the same time", () => {
  it.each(LANGUAGES)("draw distinct values (%s)", async (language) => {
    const image = await world.imageAfter(language, ["random.draw", true]);
    const draws = new Draws();
    world.engine.park(image, "image", 4);
    await world.engine.poolsFull(20_000);
    const parked = await Promise.all([1, 2, 3, 4].map(() => world.engine.thaw(image, { husk: "parked" })));
    const fresh = await Promise.all([1, 2, 3, 4].map(() => world.engine.thaw(image, { husk: "fresh", early: true })));
    await Promise.all([...parked, ...fresh].map((clone, index) => drawTwice(clone, draws, `clone ${index}`, true)));
    for (const clone of [...parked, ...fresh]) await clone.dispose();
    await world.engine.removeImage(image);
    expect(draws.repeats).toEqual([]);
    expect(Math.max(...draws.counts())).toBe(16);
  });
});

describe.each([
  {
    what: "a Python thread",
    language: "python",
    start: "random.keep_drawing",
    tell: "random.drawn_by_thread",
    sources: 5,
    kept: 0,
  },
  { what: "a Node worker", language: "node", start: "random.keepDrawing", tell: "random.drawnByWorker", sources: 6, kept: 1 },
  {
    what: "a Node worker with flags of its own",
    language: "node",
    start: ["random.keepDrawing", ["--no-warnings"]],
    tell: "random.drawnByWorker",
    sources: 6,
    kept: 1,
  },
] as const)("$what that draws all the time, in 20 clones of one image", ({ language, start, tell, sources, kept }) => {
  /** Three draws of each clone's thread, and of what it took ahead one. */
  const countsOf = (clones: number): number[] => [...new Array(kept).fill(clones), ...new Array(sources).fill(3 * clones)];

  it.each(["splice", "lazy", "eager", "reap"] as const)(
    "draws others from its first draw on, before any request (%s)",
    async (loader) => {
      const image = await world.imageAfter(language, start);
      const draws = new Draws();
      for (let thaw = 0; thaw < 20; thaw++) {
        const draw = async (clone: Instance): Promise<void> => {
          const tasks = `/proc/${hostPid(clone)}/task`;
          const own = /^NSpid:.*\s(\d+)$/m.exec(readFileSync(`/proc/${hostPid(clone)}/status`, "utf8"))?.[1];
          await until("the thread to have drawn", () =>
            readdirSync(tasks).find((tid) => readFileSync(`${tasks}/${tid}/comm`, "utf8") === `drew as ${own}\n`),
          );
          const drawn = await call<Record<string, unknown>[]>(clone, tell);
          expect(drawn).toHaveLength(3 + kept);
          for (const values of drawn) draws.add(values, `thaw ${thaw}`);
        };
        await world.thawed(image, draw, { loader });
      }
      await world.engine.removeImage(image);
      expect(draws.repeats).toEqual([]);
      expect(draws.counts()).toEqual(countsOf(20));
    },
    60_000,
  );

  it.each([false, true])("does so where a husk was parked, and in what is frozen of a clone (live: %s)", async (live) => {
    const first = await world.imageAfter(language, start);
    const parent = await world.engine.thaw(first);
    const image = await parent.freeze({ live });
    world.engine.park(image, "prefaulted", 4);
    await world.engine.poolsFull(20_000);
    const parked = await Promise.all([1, 2, 3, 4].map(() => world.engine.thaw(image, { husk: "parked" })));
    const draws = new Draws();
    for (const [index, clone] of [parent, ...parked].entries())
      for (const values of await call<Record<string, unknown>[]>(clone, tell)) draws.add(values, `clone ${index}`);
    for (const clone of [parent, ...parked]) await clone.dispose();
    for (const one of [first, image]) await world.engine.removeImage(one);
    expect(draws.repeats).toEqual([]);
    expect(draws.counts()).toEqual(countsOf(5));
  });
});

/** Libraries that take more random bytes than they need now, or some for each process; and a bundle that has them without their names on the path. */
const KEEPING = `
const crypto = require("node:crypto");
const { v7 } = require("uuid");
const { ObjectId } = require("bson");
// Of the same lengths, and drawn in the same ways; but these are keys, and no library's.
const keys = [
  crypto.randomBytes(5), crypto.randomFillSync(new Uint8Array(256)), crypto.webcrypto.getRandomValues(new Uint8Array(2688)),
  crypto.randomBytes(4096), crypto.randomFillSync(new Uint8Array(8192), 0, 8192), crypto.randomFillSync(new Uint8Array(1024)),
  crypto.randomBytes(256), crypto.randomBytes(3072), crypto.randomFillSync(new Uint8Array(4000)),
];
const asked = new Promise((resolve, reject) => crypto.randomBytes(4096, (error, bytes) => (error ? reject(error) : resolve(bytes))));
let pool, at;
const fillPool = (bytes) => {
  if (pool === undefined || at + bytes > pool.length) {
    pool = Buffer.allocUnsafe(bytes * 128);
    crypto.randomFillSync(pool);
    at = 0;
  }
  at += bytes;
};
const bundled = () => {
  fillPool(21);
  return pool.subarray(at - 21, at).toString("hex");
};
// As engine.io does it: asked for while the program goes on.
function Base64Id() {}
Base64Id.prototype.getRandomBytes = function () {
  if (this.stock === undefined) {
    this.stock = null;
    crypto.randomBytes(4096, (error, bytes) => { this.stock = error ?? bytes; });
  }
  this.at = (this.at ?? 0) + 12;
  return (this.stock?.subarray(this.at - 12, this.at) ?? crypto.randomBytes(12)).toString("hex");
};
const session = new Base64Id();
// As ws does it: by offset and size.
const masks = Buffer.alloc(8192);
let mask = masks.length;
class Sender {
  static frame() {
    if (mask === masks.length) {
      crypto.randomFillSync(masks, 0, masks.length);
      mask = 0;
    }
    mask += 8;
    return masks.subarray(mask - 8, mask).toString("hex");
  }
}
// As dd-trace does it.
const spans = new Uint8Array(65_536);
let span = 0;
function pseudoRandom() {
  if (span === 0) crypto.randomFillSync(spans);
  span = (span + 8) % spans.length;
  return Buffer.from(spans.subarray(span, span + 8)).toString("hex");
}
// As uuidv7 does it: in words.
class BufferedCryptoRandom {
  words = new Uint32Array(8);
  at = 8;
  nextUint32() {
    if (this.at === 8) {
      crypto.webcrypto.getRandomValues(this.words);
      this.at = 0;
    }
    return this.words[this.at++];
  }
}
const words = new BufferedCryptoRandom();
// As generate-password does it: a byte for each letter.
let letters, letter;
function getNextRandomValue() {
  if (letters === undefined || letter === letters.length) {
    letters = crypto.randomBytes(256);
    letter = 0;
  }
  return letters[letter++];
}
const password = () => Array.from({ length: 12 }, getNextRandomValue).join();
// As id128 does it.
const stock = new Uint8Array(4000);
let taken = stock.length;
function randomBytes(size) {
  if (taken + size >= stock.length) {
    crypto.randomFillSync(stock);
    taken = 0;
  }
  return Buffer.from(stock.slice(taken, (taken += size))).toString("hex");
}
// As @fastify/session does it: when it is loaded, in a bundle.
const { "node_modules/@fastify/session/lib/idGenerator.js": load } = {
  "node_modules/@fastify/session/lib/idGenerator.js"(ids = crypto.randomBytes(3072), at = 0) {
    return () => ids.subarray(at, (at += 24)).toString("base64");
  },
};
const bundledSession = load();
// As Emscripten does it, behind two helpers.
let randomFill = (view) => {
  randomFill = (bytes) => crypto.randomFillSync(bytes);
  return randomFill(view);
};
const device = new Uint8Array(1024);
let left = 0;
const randomByte = () => {
  if (left === 0) {
    randomFill(device);
    left = device.length;
  }
  return device[--left];
};
exports.handler = async () => {
  const { nanoid } = await import("nanoid");
  const key = await asked;
  return {
    keys: [...keys, key].map((key) => crypto.createHash("sha256").update(key).digest("hex")),
    // Without the time that they begin with: the clones run in the same second.
    drawn: { nanoid: nanoid(), uuid: v7().slice(19), bson: new ObjectId().toHexString().slice(8, 18), bundled: bundled(),
      uuidRandom: require("uuid-random")(), session: session.getRandomBytes(), mask: Sender.frame(), word: words.nextUint32(), span: pseudoRandom(), password: password(),
      id128: randomBytes(16), fastify: require("@fastify/session")(), fastifyBundled: bundledSession(), device: Array.from({ length: 8 }, randomByte).join() },
  };
};
`;

/** What uuid-random is, as far as it counts here: it is known by where it lies. */
const UUID_RANDOM = `
let stock, at;
module.exports = () => {
  if (stock === undefined || at === stock.length) {
    stock = ((n) => crypto.getRandomValues(new Uint8Array(n)))(4096);
    at = 0;
  }
  at += 16;
  return Buffer.from(stock.subarray(at - 16, at)).toString("hex");
};
`;

/** What @fastify/session is, as far as it counts here: it draws when it is loaded, by no function with a name. */
const FASTIFY_SESSION = `
const ids = require("node:crypto").randomBytes(3072);
let at = 0;
module.exports = () => ids.subarray(at, (at += 24)).toString("base64");
`;

describe("clones of an image whose libraries had drawn random bytes ahead", () => {
  let codeDir = "";
  beforeAll(() => {
    codeDir = mkdtempSync(join(tmpdir(), "thaw-test-"));
    chmodSync(codeDir, 0o755);
    writeFileSync(join(codeDir, "index.js"), KEEPING);
    for (const name of ["bson", "nanoid", "uuid"])
      cpSync(join(import.meta.dirname, "../node_modules", name), join(codeDir, "node_modules", name), { recursive: true });
    for (const [name, code] of [
      ["uuid-random", UUID_RANDOM],
      ["@fastify/session", FASTIFY_SESSION],
    ] as const) {
      mkdirSync(join(codeDir, "node_modules", name), { recursive: true });
      writeFileSync(join(codeDir, "node_modules", name, "index.js"), code);
    }
  });
  afterAll(() => rmSync(codeDir, { recursive: true, force: true }));

  it("draw others, while the function's own keys stay, also from an image of a clone and in what was frozen", async () => {
    const draws = new Draws();
    const keys = new Set<string>();
    const parents: Instance[] = [];
    const draw = async (instance: Instance, who: string): Promise<void> => {
      const { payload, functionError } = await instance.invoke("{}");
      expect(functionError, payload.toString()).toBeUndefined();
      const answer = JSON.parse(payload.toString()) as { keys: string[]; drawn: Record<string, string> };
      draws.add(answer.drawn, who);
      keys.add(answer.keys.join());
    };
    let instance = await world.boot("node", { codeDir, handler: "index.handler" });
    for (const generation of [0, 1]) {
      await draw(instance, `the parent of generation ${generation}`);
      const image = await instance.freeze();
      parents.push(instance);
      for (let thaw = 0; thaw < 8; thaw++)
        await world.thawed(image, (clone) => draw(clone, `thaw ${thaw} of generation ${generation}`));
      if (generation === 0) instance = await world.engine.thaw(image);
      await world.engine.removeImage(image);
    }
    expect(draws.repeats).toEqual([]);
    expect(draws.counts()).toEqual(new Array(14).fill(18));
    expect(keys.size).toBe(1);
    for (const parent of parents) await parent.dispose();
  });
});

/** A library of SQLite with connections that live at the freeze: to memory, and to a file. */
const SQLITE = `
const Database = require("libsql");
const open = { memory: new Database(":memory:"), file: new Database("/tmp/some.db") };
const draw = (db) => db.prepare("select random() || '-' || hex(randomblob(8)) drawn").get().drawn;
exports.handler = async () => Object.fromEntries(Object.entries(open).map(([name, db]) => [name, draw(db)]));
`;

describe("clones of an image with open connections of SQLite in Node", () => {
  let codeDir = "";
  beforeAll(() => {
    codeDir = mkdtempSync(join(tmpdir(), "thaw-test-"));
    chmodSync(codeDir, 0o755);
    writeFileSync(join(codeDir, "index.js"), SQLITE);
    for (const name of ["libsql", "@libsql", "@neon-rs", "detect-libc"])
      cpSync(join(import.meta.dirname, "../node_modules", name), join(codeDir, "node_modules", name), { recursive: true });
  });
  afterAll(() => rmSync(codeDir, { recursive: true, force: true }));

  it("draw others from random() and randomblob(), also from an image of a clone", async () => {
    const draws = new Draws();
    const draw = async (instance: Instance, who: string): Promise<void> => {
      const { payload, functionError } = await instance.invoke("{}");
      expect(functionError, payload.toString()).toBeUndefined();
      draws.add(JSON.parse(payload.toString()) as Record<string, string>, who);
    };
    let instance = await world.boot("node", { codeDir, handler: "index.handler" });
    for (const generation of [0, 1]) {
      await draw(instance, `the parent of generation ${generation}`);
      const image = await instance.freeze();
      await instance.dispose();
      for (let thaw = 0; thaw < 3; thaw++)
        await world.thawed(image, (clone) => draw(clone, `thaw ${thaw} of generation ${generation}`));
      if (generation === 0) instance = await world.engine.thaw(image);
      await world.engine.removeImage(image);
    }
    expect(draws.repeats).toEqual([]);
    expect(draws.counts()).toEqual([8, 8]);
  });
});
