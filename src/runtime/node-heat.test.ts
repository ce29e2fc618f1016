/** What a Node runtime says of its code's heat, and that preparing for a freeze leaves that code as it is. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { sleep } from "../base/clock.js";
import type { FunctionFrame, HeatMember, InvokeHeader, PrepareHeader } from "./frames.js";
import { PlainRuntime, SOURCE_DIR } from "./testing.js";

let root: string;
let made = 0;
const running: PlainRuntime[] = [];

beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), "runtime-heat-"));
});
afterAll(() => rmSync(root, { recursive: true, force: true }));
afterEach(async () => {
  for (const runtime of running.splice(0)) await runtime.dispose();
});

async function ready(source: string, extension = "cjs", flags: readonly string[] = []): Promise<PlainRuntime> {
  const name = `heat${made++}`;
  writeFileSync(join(root, `${name}.${extension}`), source);
  const runtime = new PlainRuntime({
    interpreter: process.execPath,
    flags,
    bootstrap: "node/bootstrap.cjs",
    taskRoot: root,
    handler: `${name}.handler`,
    // As in the sandbox: requests have the members that rehearsed ones have.
    env: { AWS_LAMBDA_FUNCTION_NAME: "plain", AWS_LAMBDA_FUNCTION_VERSION: "1" },
  });
  running.push(runtime);
  expect((await runtime.next()).header.type).toBe("ready");
  return runtime;
}

async function invoke(runtime: PlainRuntime, times = 1): Promise<unknown> {
  let frame: FunctionFrame | undefined;
  for (let i = 0; i < times; i++) frame = await runtime.invoke("{}");
  expect(frame?.header.type, frame?.body.toString()).toBe("result");
  return JSON.parse(frame?.body.toString() ?? "null");
}

async function prepare(runtime: PlainRuntime, options: Partial<PrepareHeader> = { heat: true }): Promise<HeatMember | undefined> {
  runtime.send({ type: "prepare", ...options });
  const { header } = await runtime.next();
  if (header.type !== "prepared") throw new Error(`not prepared but ${header.type}`);
  return header.heat;
}

/** Optimised code is there when the request that called for it is answered, not when V8's threads have had a processor. */
const AT_ONCE = ["--no-concurrent-recompilation"];

/** Shapes that only live within a request, and a function that nothing but its module knows. */
const PARSER = `
  class Lexer { constructor(text) { this.text = text; this.at = 0; }
    next() { const token = {}; token.char = this.text[this.at++]; if (token.char === "(") token.opens = true; return token; } }
  function parse(lexer) { const node = {}; node.kids = []; let kid;
    for (let token = lexer.next(); token.char !== undefined && token.char !== ")"; token = lexer.next()) {
      if (token.opens) kid = parse(lexer); else { kid = {}; kid.leaf = token.char; }
      node.kids.push(kid); }
    return node; }
  function depth(node) { let deepest = 0; if (node.kids) for (const kid of node.kids) deepest = Math.max(deepest, depth(kid)); return deepest + 1; }
  function never(node) { return node; }
  const text = "(a(b(c)d)e)(f(g))".repeat(40);
  Object.assign(exports, { Lexer, parse, depth, unused: (node) => never(node) });
  exports.handler = async () => depth(parse(new Lexer(text)));`;

describe("the heat of a Node function's code", () => {
  it("is none for a function that was never called, and grows with requests", async () => {
    const runtime = await ready(PARSER, "cjs", AT_ONCE);
    const cold = await prepare(runtime);
    expect(cold?.tiers).toMatchObject({ baseline: 0, optimised: 0 });
    expect(await invoke(runtime, 1000)).toBe(5);
    const hot = await prepare(runtime);
    // Lexer, next, parse, depth, unused, handler; `never` is private.
    expect(hot?.functions).toBe(6);
    expect(hot?.tiers.optimised).toBeGreaterThanOrEqual(3);
    // `unused` has no tier.
    const tiers = Object.values(hot?.tiers ?? {}).reduce((sum, count) => sum + count, 0);
    expect(tiers).toBeLessThanOrEqual(5);
    expect(hot?.codeBytes).toBeGreaterThan(cold?.codeBytes ?? Number.POSITIVE_INFINITY);
  });

  it("survives being prepared, however often, with shapes of which no object is left", async () => {
    const runtime = await ready(PARSER, "cjs", AT_ONCE);
    await invoke(runtime, 1000);
    const optimised = (await prepare(runtime))?.tiers.optimised ?? 0;
    expect(optimised).toBeGreaterThanOrEqual(3);
    // Collections twice as many as age bytecode away, and no request in between.
    for (let i = 0; i < 4; i++) {
      const again = await prepare(runtime);
      expect(again?.tiers.optimised).toBeGreaterThanOrEqual(optimised);
    }
    expect(await invoke(runtime)).toBe(5);
  });

  it("survives a thaw that renews Math.random, which the code has inlined", async () => {
    const runtime = await ready(
      `function roll(times) { let sum = 0; for (let i = 0; i < times; i++) sum += Math.random(); return sum; }
       exports.roll = roll; exports.handler = async () => roll(200) > 0;`,
      "cjs",
      AT_ONCE,
    );
    await invoke(runtime, 2000);
    const before = await prepare(runtime);
    expect(before?.tiers.optimised).toBeGreaterThanOrEqual(1);
    const thaw = { id: "4d5c6c1e-4a0e-4a8c-9b5e-2f6f3c0a1b2d", entropy: "5a".repeat(32), pid: 7, generation: 0 };
    expect((await runtime.invoke("{}", { thaw })).body.toString()).toBe("true");
    const after = await prepare(runtime);
    expect(after?.tiers.optimised).toBeGreaterThanOrEqual(before?.tiers.optimised ?? 0);
  });

  it("is found in modules, classes, accessors and collections, as far as exports refer to them", async () => {
    const runtime = await ready(
      `export const made = (() => { const hidden = () => 1; return { open: () => hidden() }; })();
       export const table = new Map([["a", () => 1]]); export const list = [() => 1]; export const set = new Set([() => 1]);
       export class Thing { static make() { return new Thing(); } get size() { return 1; } run() { return this.size; } }
       export const handler = async () => Thing.make().run() + made.open() + table.get("a")() + list[0]() + [...set][0]();`,
      "mjs",
    );
    expect(await invoke(runtime)).toBe(5);
    // Thing, make, size, run, open, three in collections, handler. What closures enclose is not seen.
    expect((await prepare(runtime))?.functions).toBe(9);
  });

  it("is looked for as long as it has a processor, however long it waits for one", () => {
    // Whenever it looks at the clock, a second has passed.
    const script = `
      let ms = 0; performance.now = () => (ms += 1000);
      const { codeHeat } = require(${JSON.stringify(`${SOURCE_DIR}node/heat.cjs`)});
      const handler = () => 1; const exported = { handler, other: () => 2, more: { inner: () => 3 } };
      console.log(codeHeat({ root: "/nowhere", handler, exports: exported }, codeHeat).functions);`;
    const { stdout, stderr } = spawnSync(process.execPath, ["-e", script], { encoding: "utf8" });
    expect([stdout, stderr]).toEqual(["3\n", ""]);
  });

  it("calls nothing of the function: no getter, no trap of a proxy, no iterator", async () => {
    const runtime = await ready(
      `let touched = 0; const touch = () => { touched += 1; throw new Error("hands off"); };
       const traps = { get: touch, ownKeys: touch, getOwnPropertyDescriptor: touch, getPrototypeOf: touch };
       exports.proxy = new Proxy({}, traps); exports.callable = new Proxy(() => {}, traps);
       Object.defineProperty(exports, "getter", { get: touch, enumerable: true });
       class Odd extends Map { get size() { return touch(); } [Symbol.iterator]() { return touch(); } }
       exports.odd = new Odd(); exports.long = Array(1e6).fill(0);
       globalThis.FinalizationRegistry = globalThis.setTimeout = touch;
       exports.handler = async () => touched;`,
    );
    await invoke(runtime);
    expect((await prepare(runtime))?.functions).toBeGreaterThanOrEqual(4);
    expect(await invoke(runtime)).toBe(0);
  });

  it("keeps no function alive and leaves nothing behind", async () => {
    const runtime = await ready(
      `const before = Reflect.ownKeys(globalThis).length; let ref;
       exports.handler = async () => { const gone = ref && ref.deref() === undefined; ref = new WeakRef(() => ref);
         return { gone, more: Reflect.ownKeys(globalThis).length - before, flags: process.execArgv }; };`,
    );
    await invoke(runtime);
    expect(await prepare(runtime)).toBeDefined();
    expect(await invoke(runtime)).toEqual({ gone: true, more: 0, flags: [] });
  });

  it("is not looked for unless asked, nor where nothing is collected", async () => {
    const runtime = await ready(PARSER);
    await invoke(runtime);
    expect(await prepare(runtime, {})).toBeUndefined();
    expect(await prepare(runtime, { collect: false, heat: true })).toBeUndefined();
  });
});

/** Streams, emitters, ticks, immediates and timers: what Node itself optimises for a function. */
const STREAMS = `
  const { EventEmitter } = require("node:events"); const { Transform } = require("node:stream");
  exports.handler = async () => {
    let sum = 0;
    const bus = new EventEmitter().on("number", (n) => { sum += n; });
    for (let i = 0; i < 20; i++) bus.emit("number", i);
    await new Promise((resolve) => process.nextTick(() => setImmediate(resolve)));
    const double = new Transform({ objectMode: true, transform: (n, _, done) => done(null, n * 2) });
    for (let i = 0; i < 3; i++) double.write(i);
    double.end();
    for await (const n of double) sum += n;
    return sum;
  };`;

/** Ends a source whose handler then also runs something that falls back when it is told to, in the way that is looked for. */
const FALLS = `
  const { handler } = exports; const next = (object) => object.n + 1;
  exports.handler = async ({ fall }) => {
    for (let n = 0; n < 100; n++) next({ n });
    if (fall) next({ other: 1, n: "text" });
    return handler();
  };`;

describe("optimised code, Node's own included,", () => {
  it.each([
    ["streams, emitters and ticks", STREAMS, 196],
    ["one turn of the event loop for each request", PARSER, 5],
  ])("stays when a function with %s is prepared, and at the first request of a clone", async (_, source, answer) => {
    const file = join(root, `deopts${made}`);
    writeFileSync(file, "");
    const runtime = await ready(source + FALLS, "cjs", [
      "--trace-deopt",
      "--redirect-code-traces",
      `--redirect-code-traces-to=${file}`,
    ]);
    let read = 0;
    /** What fell back since it was last asked. */
    const fallen = (): string[] => {
      const trace = readFileSync(file, "utf8");
      const fresh = trace.slice(read);
      read = trace.length;
      return fresh.match(/\[(?:bailout|marking dependent)[^\n]*/g) ?? [];
    };
    await prepare(runtime);
    // V8's threads may wait for a processor; at once, the code would be optimised by other feedback.
    for (let tries = 0, optimised = 0; optimised === 0; tries++) {
      expect(tries).toBeLessThan(10);
      expect(await invoke(runtime, 2000)).toBe(answer);
      optimised = (await prepare(runtime))?.tiers.optimised ?? 0;
    }
    expect(await invoke(runtime, 100)).toBe(answer);
    fallen();
    for (let generation = 1; generation <= 2; generation++) {
      expect((await prepare(runtime))?.tiers.optimised).toBeGreaterThanOrEqual(1);
      expect(fallen()).toEqual([]);
      const thaw = { id: "4d5c6c1e-4a0e-4a8c-9b5e-2f6f3c0a1b2d", entropy: "5a".repeat(32), pid: 7, generation };
      expect((await runtime.invoke("{}", { thaw })).body.toString()).toBe(String(answer));
      expect(fallen()).toEqual([]);
    }
    await runtime.invoke(`{"fall":true}`);
    expect(fallen()).not.toEqual([]);
  });
});

describe("garbage", () => {
  it("is collected when a Node function is prepared, and finalizers have run", async () => {
    const runtime = await ready(
      `let finalized = 0; const registry = new FinalizationRegistry(() => finalized++);
       let garbage = Array.from({ length: 300_000 }, (_, i) => ({ i, text: "object " + i })); registry.register(garbage, 0);
       exports.handler = async () => { garbage = undefined; return { registry: String(registry), finalized, heap: process.memoryUsage().heapUsed }; };`,
    );
    const before = (await invoke(runtime)) as { heap: number };
    await prepare(runtime, {});
    const after = (await invoke(runtime)) as { finalized: number; heap: number };
    expect(after.finalized).toBe(1);
    expect(before.heap - after.heap).toBeGreaterThan(15e6);
  });
});

/** All functions that ran from one request's handler to the next one's, Node's own included. */
const COUNTING = `
  const { Session } = require("node:inspector");
  const session = new Session();
  session.connect();
  let result = [];
  const take = () => session.post("Profiler.takePreciseCoverage", (_error, taken) => { result = taken.result; });
  session.post("Profiler.enable");
  session.post("Profiler.startPreciseCoverage", { callCount: true, detailed: false });
  exports.handler = async () => {
    take();
    return result.flatMap(({ url, functions }) => functions.filter(({ ranges }) => ranges[0].count > 0).map(({ functionName }) => url + " " + functionName));
  };`;

describe("a request", () => {
  it("runs few functions of Node's and the runtime's: V8 writes to each, and every clone copies the pages", async () => {
    const runtime = await ready(COUNTING);
    await invoke(runtime, 3);
    const ran = (await invoke(runtime)) as string[];
    const own = ran.filter((name) => /^node:(?!inspector)|runtime\/node\//.test(name));
    expect(own.length).toBeGreaterThan(15);
    expect(own.length, own.join("\n")).toBeLessThanOrEqual(57);
  });

  it("makes no shape of an object anew, the first of a clone: V8 forgets those that a collection finds without objects", async () => {
    const log = join(root, "shapes.log");
    const runtime = await ready("exports.handler = async (event) => ({ answer: event.question, more: { a: 1 } });", "cjs", [
      "--log-maps",
      "--no-logfile-per-isolate",
      `--logfile=${log}`,
    ]);
    const shapes = () => [...readFileSync(log, "utf8").matchAll(/^map,Transition,.*,(.+)$/gm)].map(([, property]) => property);
    const ask = async (header: Partial<InvokeHeader> = {}) => {
      const { header: told, body } = await runtime.invoke('{"question":"who","is":{"asking":1}}', header);
      expect(told.type).toBe("result");
      expect(JSON.parse(body.toString())).toEqual({ answer: "who", more: { a: 1 } });
      // The log is written behind the answer.
      await sleep(100);
    };
    await ask();
    expect(shapes()).toEqual(expect.arrayContaining(["awsRequestId", "maxMemoryMb", "question", "answer"]));
    await prepare(runtime, {});
    await sleep(100);
    const before = shapes().length;
    await ask({ thaw: { id: "", entropy: "ab".repeat(32), pid: runtime.process.pid ?? 0, generation: 0 } });
    expect(shapes().slice(before)).toEqual([]);
  });

  it("makes a context of young objects only, which go with the next minor collection", () => {
    const measure = `
      const { Context } = require(${JSON.stringify(join(SOURCE_DIR, "node/context.cjs"))});
      const header = { deadlineMs: 1, functionName: "f", functionVersion: "1", memoryMb: 128, invokedArn: "a", requestId: "r" };
      const make = () => { for (let i = 0; i < 1000; i++) new Context(header, () => {}); };
      const old = () => require("node:v8").getHeapSpaceStatistics().find((space) => space.space_name === "old_space").space_used_size;
      make();
      gc();
      const before = old();
      make();
      console.log((old() - before) / 1000);`;
    const { stdout, stderr } = spawnSync(process.execPath, ["--expose-gc", "--eval", measure], { encoding: "utf8" });
    expect(Number.parseFloat(stdout), stderr).toBeLessThan(50);
  });
});
