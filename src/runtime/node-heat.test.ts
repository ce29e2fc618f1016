/** What a Node runtime says of its code's heat, and that preparing for a freeze leaves that code as it is. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { FunctionFrame, HeatMember, PrepareHeader } from "./frames.js";
import { PlainRuntime } from "./plain-process.js";

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

async function ready(source: string, extension = "cjs"): Promise<PlainRuntime> {
  const name = `heat${made++}`;
  writeFileSync(join(root, `${name}.${extension}`), source);
  const bootstrap = "node/bootstrap.cjs";
  const runtime = new PlainRuntime({ interpreter: process.execPath, bootstrap, taskRoot: root, handler: `${name}.handler` });
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

/** Shapes that only live within a request, and functions that nothing but their module knows. */
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
  exports.unused = (node) => never(node);
  exports.handler = async () => depth(parse(new Lexer(text)));`;

describe("the heat of a Node function's code", () => {
  it("is none for a function that was never called, and grows with requests, private functions included", async () => {
    const runtime = await ready(PARSER);
    const cold = await prepare(runtime);
    expect(cold?.tiers).toMatchObject({ baseline: 0, optimised: 0 });
    expect(await invoke(runtime, 1000)).toBe(5);
    const hot = await prepare(runtime);
    // Lexer, next, parse, depth, never, unused, handler; the module itself may be among them.
    expect(hot?.functions).toBeGreaterThanOrEqual(7);
    expect(hot?.tiers.optimised).toBeGreaterThanOrEqual(3);
    // `never` and `unused` have no tier.
    const tiers = Object.values(hot?.tiers ?? {}).reduce((sum, count) => sum + count, 0);
    expect(tiers).toBeLessThanOrEqual((hot?.functions ?? 0) - 2);
    expect(hot?.codeBytes).toBeGreaterThan(cold?.codeBytes ?? Number.POSITIVE_INFINITY);
  });

  it("survives being prepared, however often, with shapes of which no object is left", async () => {
    const runtime = await ready(PARSER);
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
    );
    await invoke(runtime, 2000);
    const before = await prepare(runtime);
    expect(before?.tiers.optimised).toBeGreaterThanOrEqual(1);
    const thaw = { id: "4d5c6c1e-4a0e-4a8c-9b5e-2f6f3c0a1b2d", entropy: "5a".repeat(32), pid: 7, generation: 0 };
    expect((await runtime.invoke("{}", { thaw })).body.toString()).toBe("true");
    const after = await prepare(runtime);
    expect(after?.tiers.optimised).toBeGreaterThanOrEqual(before?.tiers.optimised ?? 0);
  });

  it("is found in modules, classes, accessors, collections and closures", async () => {
    const runtime = await ready(
      `const made = (() => { const hidden = () => 1; return { open: () => hidden() }; })();
       const table = new Map([["a", () => 1]]); const list = [() => 1]; const set = new Set([() => 1]);
       export class Thing { static make() { return new Thing(); } get size() { return 1; } run() { return this.size; } }
       export const handler = async () => Thing.make().run() + made.open() + table.get("a")() + list[0]() + [...set][0]();`,
      "mjs",
    );
    expect(await invoke(runtime)).toBe(5);
    // Thing, make, size, run, open, hidden, three in collections, handler.
    expect((await prepare(runtime))?.functions).toBe(10);
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
