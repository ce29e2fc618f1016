import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { FunctionFrame, ThawHeader } from "./frames.js";
import { type PlainOptions, PlainRuntime, SOURCE_DIR } from "./testing.js";

const THAW: ThawHeader = { id: "4d5c6c1e-4a0e-4a8c-9b5e-2f6f3c0a1b2d", entropy: "5a".repeat(32), pid: 7, generation: 0 };

let root: string;
const running: PlainRuntime[] = [];

beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), "runtime-node-"));
});
afterAll(() => rmSync(root, { recursive: true, force: true }));
afterEach(async () => {
  for (const runtime of running.splice(0)) await runtime.dispose();
});

/** Writes files below the root of the tests, and starts a runtime on one of them. */
function start(handler: string, files: Record<string, string>, options: Partial<PlainOptions> = {}): PlainRuntime {
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(root, name)), { recursive: true });
    writeFileSync(join(root, name), content);
  }
  const runtime = new PlainRuntime({
    interpreter: process.execPath,
    bootstrap: "node/bootstrap.cjs",
    taskRoot: root,
    handler,
    ...options,
  });
  running.push(runtime);
  return runtime;
}

/** A runtime that has loaded `source` and whose handler is the export `handler`. */
async function ready(source: string, options: Partial<PlainOptions> = {}): Promise<PlainRuntime> {
  const runtime = start("ready.handler", { "ready.js": source }, options);
  expect((await runtime.next()).header.type).toBe("ready");
  return runtime;
}

function json(frame: FunctionFrame): ReturnType<typeof JSON.parse> {
  return JSON.parse(frame.body.toString());
}

async function value(runtime: PlainRuntime, event: unknown = {}, header = {}): Promise<ReturnType<typeof JSON.parse>> {
  const frame = await runtime.invoke(JSON.stringify(event), header);
  expect([frame.header.type, frame.body.toString()]).toEqual(["result", frame.body.toString()]);
  return json(frame);
}

/** A module that counts how often it ran. */
const COUNTS = "globalThis.ran = (globalThis.ran ?? 0) + 1;";

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);

describe("loading a Node handler", () => {
  it.each<[string, string, Record<string, string>]>([
    ["CommonJS", "cjs.handler", { "cjs.js": "exports.handler = async () => 'found';" }],
    ["a nested export", "nested.a.b", { "nested.js": "exports.a = { b: async () => 'found' };" }],
    ["a folder", "folder/deep.handler", { "folder/deep.js": "exports.handler = async () => 'found';" }],
    [".mjs", "esm.handler", { "esm.mjs": "export const handler = async () => 'found';" }],
    ["awaiting at top level", "tla.handler", { "tla.mjs": "await 1; export const handler = async () => 'found';" }],
    [".cjs", "old.handler", { "old.cjs": "exports.handler = async () => 'found';" }],
    [
      ".js in a module package",
      "pkg/index.handler",
      { "pkg/package.json": '{"type":"module"}', "pkg/index.js": "export const handler = async () => 'found';" },
    ],
    [
      ".js before .mjs",
      "both.handler",
      { "both.js": "exports.handler = async () => 'found';", "both.mjs": "export const handler = async () => 'wrong';" },
    ],
    ["a package", "some-package.handler", { "node_modules/some-package/index.js": "exports.handler = async () => 'found';" }],
    ["no extension", "bare.handler", { bare: "exports.handler = async () => 'found';" }],
    ["ESM syntax in .js", "plainesm.handler", { "plainesm.js": "export const handler = async () => 'found';" }],
  ])("finds %s", async (_name, handler, files) => {
    const runtime = start(handler, files);
    expect((await runtime.next()).header.type).toBe("ready");
    expect(await value(runtime)).toBe("found");
  });

  it.each<[string, string, Record<string, string>, string, string]>([
    ["a missing module", "nowhere.handler", {}, "Runtime.ImportModuleError", "Cannot find module 'nowhere'"],
    [
      "a missing import",
      "lacks.handler",
      { "lacks.js": "require('absent-package');" },
      "Runtime.ImportModuleError",
      "Cannot find module 'absent-package'",
    ],
    [
      "a missing ESM import",
      "lacksesm.handler",
      { "lacksesm.mjs": "import 'absent-package';" },
      "Runtime.ImportModuleError",
      "Cannot find package 'absent-package'",
    ],
    [
      "an ESM import of what is not exported",
      "nosuch.handler",
      { "nosuch.mjs": "import { nowhere } from './given.mjs';", "given.mjs": "export const here = 1;" },
      "Runtime.UserCodeSyntaxError",
      "'./given.mjs' does not provide an export named 'nowhere'",
    ],
    [
      "an ESM syntax error",
      "brokenesm.handler",
      { "brokenesm.mjs": "export const handler = ;" },
      "Runtime.UserCodeSyntaxError",
      "SyntaxError: Unexpected token ';'",
    ],
    [
      "an error of an ESM module's own",
      "throwsesm.handler",
      { "throwsesm.mjs": "import './once.cjs'; throw new RangeError('ran: ' + globalThis.ran);", "once.cjs": COUNTS },
      "RangeError",
      "ran: 1",
    ],
    [
      "a module that awaits at top level and throws",
      "throwstla.handler",
      {
        "throwstla.mjs": "import './once.cjs'; await 1; throw new RangeError('ran: ' + globalThis.ran);",
        "once.cjs": COUNTS,
      },
      "RangeError",
      "ran: 1",
    ],
    [
      "a required module that awaits at top level",
      "requirestla.handler",
      { "requirestla.mjs": "import './needs.cjs';", "needs.cjs": "require('./awaits.mjs');", "awaits.mjs": "await 1;" },
      "Error",
      "require()",
    ],
    [
      "a missing export",
      "empty.handler",
      { "empty.js": "" },
      "Runtime.HandlerNotFound",
      "empty.handler is undefined or not exported",
    ],
    [
      "an export that is no function",
      "five.handler",
      { "five.js": "exports.handler = 5;" },
      "Runtime.HandlerNotFound",
      "five.handler is not a function",
    ],
    [
      "dots upwards",
      "../up.handler",
      {},
      "Runtime.MalformedHandlerName",
      "'../up.handler' is not a valid handler name: '..' is not allowed in it",
    ],
    ["no dot", "nodot", {}, "Runtime.MalformedHandlerName", "Bad handler 'nodot': it must look like file.export"],
    [
      "a syntax error",
      "broken.handler",
      { "broken.js": "exports.handler = async () => {" },
      "Runtime.UserCodeSyntaxError",
      "SyntaxError: Unexpected end of input",
    ],
    ["an error of its own", "throws.handler", { "throws.js": "throw new RangeError('no luck');" }, "RangeError", "no luck"],
    [
      "a rejection",
      "rejects.handler",
      { "rejects.js": "Promise.reject(new Error('lost')); exports.handler = async () => {};" },
      "Runtime.UnhandledPromiseRejection",
      "Error: lost",
    ],
    [
      "a load that never ends",
      "stuck.handler",
      { "stuck.mjs": "await new Promise(() => {});" },
      "Runtime.NodeJsExit",
      "the event loop ran empty while the handler was being loaded",
    ],
  ])("reports %s", async (_name, handler, files, errorType, message) => {
    const runtime = start(handler, files);
    const frame = await runtime.next();
    expect(frame.header.type).toBe("initError");
    const error = json(frame);
    expect(error.errorType).toBe(errorType);
    expect(error.errorMessage).toContain(message);
    expect(Array.isArray(error.trace)).toBe(true);
    expect(await runtime.exited).toBe(1);
  });

  it("loads ESM modules once, by the conditions of an import, and without threads to read them where Node can do that", async () => {
    const runtime = start("graph.handler", {
      "graph.mjs": `import './once.cjs';
        import { readdirSync } from 'node:fs';
        import data from './data.json' with { type: 'json' };
        import { kind } from 'two-kinds';
        import * as self from './graph.mjs';
        export const handler = async () => ({
          kind, data, url: import.meta.url, ran: globalThis.ran, same: self.handler === (await import('./graph.mjs')).handler,
          threads: readdirSync('/proc/self/task').length,
        });`,
      "once.cjs": COUNTS,
      "data.json": '{"a":1}',
      "node_modules/two-kinds/package.json": '{"exports":{"import":"./import.mjs","require":"./require.cjs"}}',
      "node_modules/two-kinds/import.mjs": "export const kind = 'import';",
      "node_modules/two-kinds/require.cjs": "exports.kind = 'require';",
    });
    const common = await ready("exports.handler = async () => require('node:fs').readdirSync('/proc/self/task').length;");
    expect((await runtime.next()).header.type).toBe("ready");
    const { threads, ...rest } = await value(runtime);
    expect(rest).toEqual({ kind: "import", data: { a: 1 }, url: `file://${root}/graph.mjs`, ran: 1, same: true });
    const reads = major < 20 || major === 21 || major === 23 || ((major === 20 || major === 22) && minor < 20);
    expect(threads - (await value(common))).toBe(reads ? 4 : 0);
    expect(runtime.output).toBe("");
  });

  it.runIf(major >= 24)("imports what cannot be loaded in one go: WebAssembly, up to Node 24", async () => {
    const runtime = start("assembled.handler", {
      "assembled.mjs": "import './once.cjs'; import './empty.wasm'; export const handler = async () => globalThis.ran;",
      "empty.wasm": "\0asm\x01\0\0\0",
      "once.cjs": COUNTS,
    });
    expect((await runtime.next()).header.type).toBe("ready");
    expect(await value(runtime)).toBe(1);
  });

  it("leaves imports to those that hook into them", async () => {
    const hooks = `data:text/javascript,${encodeURIComponent(
      `import { register } from 'node:module'; register('data:text/javascript,' + encodeURIComponent(
        "export async function load(url, context, next) { const r = await next(url, context); return url.endsWith('/hooked.mjs') ? { ...r, source: String(r.source).replace('plain', 'hooked') } : r; }"))`,
    )}`;
    const runtime = start(
      "hooked.handler",
      { "hooked.mjs": "export const handler = async () => 'plain';" },
      { env: { NODE_OPTIONS: `--import=${hooks}` } },
    );
    expect((await runtime.next()).header.type).toBe("ready");
    expect(await value(runtime)).toBe("hooked");
  });

  it("names the line of a syntax error, also in a file that the handler requires", async () => {
    const runtime = start("requires.handler", {
      "requires.js": "require('./mistaken');",
      "mistaken.js": "const a = 1;\nconst b = 1 +;",
    });
    expect(json(await runtime.next()).errorMessage).toBe(`SyntaxError: Unexpected token ';' (${root}/mistaken.js:2)`);
  });

  it("names the line in ES modules, too, of which Node itself tells nobody: in the handler's and in one that it imports", async () => {
    const mistaken = "const a = 1;\nconst b = 1 +;";
    const own = start("wrong.handler", { "wrong.mjs": `export const handler = 1;\n${mistaken}` });
    expect(json(await own.next()).errorMessage).toBe(`SyntaxError: Unexpected token ';' (${root}/wrong.mjs:3)`);
    const other = start("imports.handler", {
      "imports.mjs": "import fs from 'node:fs';\nexport { b } from './lib/between.mjs';",
      "lib/between.mjs": `export * from ${JSON.stringify("../faulty.mjs")};`,
      "faulty.mjs": mistaken,
    });
    expect(json(await other.next()).errorMessage).toBe(`SyntaxError: Unexpected token ';' (${root}/faulty.mjs:2)`);
  });

  it("says of a missing module who requires it, and no file that nobody has", async () => {
    const gone = json(await start("gone.handler", { "readme.txt": "" }).next());
    expect(gone).toMatchObject({ errorType: "Runtime.ImportModuleError", errorMessage: "Error: Cannot find module 'gone'" });
    const inner = json(await start("asks.handler", { "asks.js": "require('left-pad')" }).next());
    expect(inner.errorMessage).toBe(`Error: Cannot find module 'left-pad'\nRequire stack:\n- ${root}/asks.js`);
  });

  it("ends with the code that the module chose, and says nothing, when the module exits", async () => {
    const runtime = start("quits.handler", { "quits.js": "process.exit(7);" });
    await expect(runtime.next()).rejects.toThrow("the runtime ended (7)");
  });
});

describe("a Node handler", () => {
  it("gets Lambda's context", async () => {
    const runtime = await ready(
      `exports.handler = async (event, c) => ({ ...c, remaining: c.getRemainingTimeInMillis(), type: typeof c.memoryLimitInMB, trace: process.env._X_AMZN_TRACE_ID })`,
    );
    const deadlineMs = Date.now() + 60_000;
    const seen = await value(runtime, {}, { deadlineMs, clientContext: '{"custom":{"a":1}}', traceId: "Root=1-2-3" });
    expect(seen).toMatchObject({
      awsRequestId: "request-1",
      functionName: "plain",
      functionVersion: "1",
      memoryLimitInMB: "128",
      type: "string",
      logGroupName: "/aws/lambda/plain",
      logStreamName: "[1]",
      clientContext: { custom: { a: 1 } },
      callbackWaitsForEmptyEventLoop: true,
      trace: "Root=1-2-3",
    });
    expect(seen.remaining).toBeGreaterThanOrEqual(deadlineMs - Date.now());
    expect(seen.remaining).toBeLessThanOrEqual(60_000);
    expect((await value(runtime)).trace).toBeUndefined();
  });

  it.each<[string, string, string]>([
    ["a value", "async () => ({ a: 'ü😀' })", '{"a":"ü😀"}'],
    ["undefined", "async () => {}", "null"],
    ["a function, which JSON cannot hold", "async () => () => 1", "null"],
    ["a value without a promise", "(event) => 5", "5"],
    ["a promise-like object", "() => ({ then: (done) => done('like') })", '"like"'],
    ["a callback", "(event, context, callback) => { setTimeout(() => callback(null, 6), 5); }", "6"],
    ["context.succeed", "(event, context) => { setTimeout(context.succeed, 5, 7); }", "7"],
    ["context.done", "(event, context) => { context.done(null, 8); }", "8"],
    ["nothing, without a promise", "() => {}", "null"],
    ["a promise that nothing can settle", "() => new Promise(() => {})", "null"],
  ])("answers with %s", async (_name, source, expected) => {
    const runtime = await ready(`exports.handler = ${source};`);
    for (const round of [1, 2]) {
      const frame = await runtime.invoke("{}", { requestId: `round-${round}` });
      expect(frame.header).toMatchObject({ type: "result", requestId: `round-${round}` });
      expect(frame.body.toString()).toBe(expected);
    }
  });

  it("is warned once when it uses the callback", async () => {
    const runtime = await ready("exports.handler = (e, c, callback) => callback(null, 1);");
    await value(runtime);
    await value(runtime);
    await runtime.dispose();
    expect(runtime.output.split("callback handlers are on the way out")).toHaveLength(2);
  });

  it.each([
    ["() => 'x'", "x"],
    ["(event, context) => 0", 0],
    ["(event, context) => setTimeout(() => context.succeed({ ok: 1 }), 5)", { ok: 1 }],
    [
      "(event, context) => require('http').createServer().listen(0, function () { this.close(() => context.done(null, 'closed')); })",
      "closed",
    ],
  ])("that returns what is no promise has answered so when nothing else does: %s", async (source, answer) => {
    const runtime = await ready(`exports.handler = ${source}`);
    expect([await value(runtime), await value(runtime)]).toEqual([answer, answer]);
  });

  it("fails by context.fail though it has returned a value", async () => {
    const runtime = await ready(
      "exports.handler = (event, context) => { setTimeout(() => context.fail(new Error('later')), 5); return true; }",
    );
    expect(json(await runtime.invoke("{}"))).toMatchObject({ errorType: "Error", errorMessage: "later" });
  });

  it("answers a callback once nothing is left to run, or at once when it says so", async () => {
    const source = (wait: boolean, ms: number) =>
      `let late = false; exports.handler = (e, c, callback) => { c.callbackWaitsForEmptyEventLoop = ${wait}; const was = late; setTimeout(() => { late = true; }, ${ms}); callback(null, was); };`;
    const waits = await ready(source(true, 50));
    await value(waits);
    expect(await value(waits)).toBe(true);
    // What falls due between two requests runs with the second.
    const hurries = await ready(source(false, 60_000));
    await value(hurries);
    expect(await value(hurries)).toBe(false);
  });

  it.each<[string, string, string]>([
    ["is called by an async handler", "async (e, c, callback) => { callback(null, 'called'); }", "called"],
    ["is called before the promise is rejected", "async (e, c, callback) => { callback(null, 'called'); throw 1; }", "called"],
    ["is called before it throws", "(e, c, callback) => { callback(null, 'called'); throw 1; }", "called"],
    ["is called twice", "(e, c, callback) => { callback(null, 'first'); callback(null, 'second'); }", "first"],
    ["is called before context.done", "(e, c, callback) => { callback(null, 'first'); c.done(null, 'second'); }", "first"],
  ])("answers with what came first when the callback %s", async (_name, source, expected) => {
    expect(await value(await ready(`exports.handler = ${source};`))).toBe(expected);
  });

  it("answers an error of the callback at once, whatever is left to run", async () => {
    const runtime = await ready("setInterval(() => {}, 1000); exports.handler = (e, c, callback) => callback(new Error('now'));");
    expect(json(await runtime.invoke("{}")).errorMessage).toBe("now");
  });

  it("fails when it is async and nothing can settle its promise, and goes on", async () => {
    const runtime = await ready("exports.handler = async (e) => { if (!e.fine) await new Promise(() => {}); return 'fine'; };");
    const frame = await runtime.invoke("{}");
    expect(frame.header.type).toBe("error");
    expect(json(frame).errorType).toBe("Runtime.NodeJsExit");
    expect(await value(runtime, { fine: true })).toBe("fine");
  });

  it.each<[string, string, string, string]>([
    ["an Error", "throw new TypeError('bad')", "TypeError", "bad"],
    ["a text", "throw 'just text'", "string", "just text"],
    ["null", "throw null", "null", "null"],
    ["undefined", "throw undefined", "undefined", "undefined"],
    ["a circular object", "const o = {}; o.o = o; throw o", "object", "[object Object]"],
    ["an object", "throw { code: 5 }", "object", '{"code":5}'],
    [
      "an Error whose members throw",
      "throw Object.defineProperty(new Error(), 'message', { get() { throw 1; } })",
      "Error",
      "cannot be read",
    ],
    [
      "a proxy that refuses everything",
      "throw new Proxy({}, { get() { throw 1; }, getPrototypeOf() { throw 1; } })",
      "",
      "cannot be",
    ],
    ["a circular result", "const o = {}; o.o = o; return o", "Runtime.MarshalError", "Converting circular structure"],
    ["a BigInt", "return 1n", "Runtime.MarshalError", "BigInt"],
  ])("fails with %s and goes on", async (_name, body, errorType, message) => {
    const runtime = await ready(`exports.handler = async (event) => { if (event.fine) return 'fine'; ${body} };`);
    const frame = await runtime.invoke("{}");
    expect(frame.header.type).toBe("error");
    expect(json(frame).errorType).toContain(errorType);
    expect(json(frame).errorMessage).toContain(message);
    expect(await value(runtime, { fine: true })).toBe("fine");
  });

  it("logs what an error has of its own, which the reply has not; and the reply's words where that cannot be written", async () => {
    const runtime = await ready(`exports.handler = async ({ odd }) => {
      const error = new Error("fetch failed", { cause: new TypeError("refused") });
      error.code = "E1";
      if (odd) error.self = error;
      throw error;
    }`);
    const reply = json(await runtime.invoke("{}"));
    expect(Object.keys(reply)).toEqual(["errorType", "errorMessage", "trace"]);
    const logged = JSON.parse(runtime.output.split("Invoke Error\t")[1]?.split("\n")[0] ?? "");
    expect(logged).toMatchObject({ ...reply, code: "E1", cause: { errorType: "TypeError", errorMessage: "refused" } });
    const odd = json(await runtime.invoke('{"odd":true}'));
    expect(JSON.parse(runtime.output.split("Invoke Error\t")[2]?.split("\n")[0] ?? "")).toEqual(odd);
  });

  it.each([
    [
      "Promise.reject({ name: 'Odd', message: 'looks like one', stack: 'Odd: looks like one' })",
      { errorType: "Odd", errorMessage: "looks like one" },
    ],
    ["Promise.reject({ a: 1 })", { errorType: "object", errorMessage: '{"a":1}' }],
  ])("that throws what looks like an error, or is an object, is told so: %s", async (source, error) => {
    const runtime = await ready(`exports.handler = () => ${source}`);
    expect(json(await runtime.invoke("{}"))).toMatchObject(error);
  });

  it("has console.fatal", async () => {
    const runtime = await ready("exports.handler = async () => console.fatal('the %s', 'end')");
    await runtime.invoke("{}");
    expect(runtime.output).toContain("the end\n");
  });

  it("shows where an error came from", async () => {
    const runtime = await ready("exports.handler = async () => deep();\nfunction deep() { throw new Error('here'); }");
    expect(json(await runtime.invoke("{}")).trace.slice(0, 2)).toEqual(["Error: here", expect.stringContaining("ready.js:2:")]);
  });

  it.each<[string, string, string, string]>([
    [
      "an exception outside of its promise",
      "setTimeout(() => { throw new Error('outside'); }, 5); await new Promise(() => {})",
      "Error",
      "outside",
    ],
    [
      "a rejection that nobody handles",
      "Promise.reject(new Error('nobody')); await new Promise((r) => setTimeout(r, 1000))",
      "Runtime.UnhandledPromiseRejection",
      "Error: nobody",
    ],
  ])("answers and ends after %s", async (_name, body, errorType, message) => {
    const runtime = await ready(`exports.handler = async () => { ${body}; };`);
    const frame = await runtime.invoke("{}");
    expect(frame.header.type).toBe("error");
    expect(json(frame)).toMatchObject({ errorType, errorMessage: message });
    expect(await runtime.exited).toBe(1);
  });

  it("ends without a word when it exits", async () => {
    const runtime = await ready("exports.handler = async () => process.exit(3);");
    await expect(runtime.invoke("{}")).rejects.toThrow("the runtime ended (3)");
  });

  it("is told about an event that is not JSON", async () => {
    const runtime = await ready("exports.handler = async (event) => event;");
    expect(json(await runtime.invoke("{no")).errorType).toBe("Runtime.UnmarshalError");
    expect(await value(runtime, [1])).toEqual([1]);
    expect((await runtime.invoke("")).body.toString()).toBe("{}");
  });

  it.each([1_000_000, 6_000_000])("carries %d bytes each way", async (size) => {
    const runtime = await ready("exports.handler = async (event) => event;");
    const text = "é".repeat(size / 2);
    expect((await value(runtime, text)) === text).toBe(true);
    expect(await value(runtime, "small")).toBe("small");
  });

  it("is told that its reply is too large, and goes on", async () => {
    const runtime = await ready("exports.handler = async (n) => 'x'.repeat(n);");
    const frame = await runtime.invoke("6300000");
    expect(frame.header).toMatchObject({ type: "error", platformError: "RESPONSE_TOO_LARGE" });
    expect(json(frame).errorMessage).toBe(
      "Response payload size (6300002 bytes) exceeded maximum allowed payload size (6291556 bytes).",
    );
    expect(await value(runtime, 2)).toBe("xx");
  });

  it("has all of its output in the pipe before the answer", async () => {
    const runtime = await ready(
      "exports.handler = async () => { for (let i = 0; i < 3000; i++) console.log(String(i).padEnd(400, '.')); console.error('end'); return process.stdout.writableLength; };",
    );
    expect(await value(runtime)).toBe(0);
    const before = runtime.output.length;
    await runtime.dispose();
    expect(runtime.output.length).toBeGreaterThanOrEqual(3000 * 401);
    expect(before).toBeGreaterThan(0);
  });

  it("runs nothing between requests; what fell due runs with the next, and a new timer takes its full time", async () => {
    const runtime = await ready(
      "let ticks = 0; exports.handler = async (e) => { if (e.start) { setInterval(() => ticks++, 5).unref(); return 0; } const before = ticks; const t = performance.now(); await new Promise((r) => setTimeout(r, 60)); return { before, after: ticks, took: performance.now() - t }; };",
    );
    await value(runtime, { start: true });
    await new Promise((resolve) => setTimeout(resolve, 200));
    const { before, after, took } = await value(runtime);
    expect(before).toBeLessThanOrEqual(1);
    expect(after).toBeGreaterThan(before);
    expect(took).toBeGreaterThanOrEqual(59);
  });

  it.each<[string, string]>([
    [
      "calls back",
      "(e, c, callback) => { const seen = als.getStore(); als.run(e.who, () => setTimeout(() => callback(null, seen), 1)); }",
    ],
    ["calls context.done", "(e, c) => { const seen = als.getStore(); als.run(e.who, () => c.done(null, seen)); }"],
    ["enters it for good", "async (e) => { const seen = als.getStore(); als.enterWith(e.who); return seen; }"],
  ])("never sees a request's AsyncLocalStorage in the next one, when it %s", async (_name, source) => {
    const runtime = await ready(
      `const als = new (require("async_hooks").AsyncLocalStorage)(); als.enterWith("loaded"); exports.handler = ${source};`,
    );
    for (const who of ["a", "b", "c"]) expect(await value(runtime, { who })).toBe("loaded");
  });

  it("keeps answering when it replaced what the runtime stands on", async () => {
    const runtime = await ready(
      "const fs = require('fs'); fs.readSync = fs.writeSync = () => { throw 1; }; globalThis.setImmediate = () => {}; JSON.stringify = () => 'no'; process.exit = () => {}; exports.handler = async (e) => e.a;",
    );
    expect((await runtime.invoke('{"a":3}')).body.toString()).toBe("3");
    expect((await runtime.invoke('{"a":4}')).body.toString()).toBe("4");
  });

  it("is served, and told, when it made descriptor 3 non-blocking", async () => {
    const runtime = await ready(
      "const s = new (require('net').Socket)({ fd: 3, readable: false }); s.unref(); exports.handler = async (e) => e;",
    );
    const text = "x".repeat(3_000_000);
    expect((await value(runtime, text)) === text).toBe(true);
    expect(await value(runtime, 1)).toBe(1);
    await runtime.dispose();
    expect(runtime.output.split("descriptor 3 was made non-blocking")).toHaveLength(2);
  });

  it("streams into one buffer", async () => {
    const runtime = await ready(
      "exports.handler = awslambda.streamifyResponse(async (event, stream) => { stream = awslambda.HttpResponseStream.from(stream, { statusCode: 201 }); stream.write('one '); setTimeout(() => stream.end('two'), 5); });",
    );
    const frame = await runtime.invoke("{}");
    expect(frame.header).toMatchObject({ type: "result", contentType: "application/vnd.awslambda.http-integration-response" });
    expect(frame.body.toString()).toBe(`{"statusCode":201}${"\0".repeat(8)}one two`);
  });

  it.each<[string, string, string]>([
    [
      "its last prelude",
      "for (const statusCode of [200, 500]) awslambda.HttpResponseStream.from(s, { statusCode }); s.end('x');",
      `{"statusCode":500}${"\0".repeat(8)}x`,
    ],
    ["objects as JSON", "s.write({ a: 1 }); s.write([2]); s.end();", '{"a":1}[2]'],
    [
      "what a buffer held when it was written",
      "const b = Buffer.from('one '); await new Promise((r) => s.write(b, r)); b.fill('x'); s.end('two');",
      "one two",
    ],
    ["what it ended with, though it never returns", "s.end('x'); await new Promise(() => {});", "x"],
    ["what it wrote, though it never ends it", "s.write('x');", "x"],
  ])("streams %s", async (_name, body, expected) => {
    const runtime = await ready(`exports.handler = awslambda.streamifyResponse(async (event, s) => { ${body} });`);
    for (const _round of [1, 2]) {
      const frame = await runtime.invoke("{}");
      expect([frame.header.type, frame.body.toString()]).toEqual(["result", expected]);
    }
  });

  it.each<[string, string, string, string]>([
    ["destroys its stream", "s.write('x'); s.destroy();", "Error", "the response stream was destroyed before it ended"],
    [
      "neither returns nor ends",
      "s.write('x'); await new Promise(() => {});",
      "Runtime.NodeJsExit",
      "neither returned nor ended",
    ],
    ["names an object as content type", "s.setContentType({}); s.end('x');", "TypeError", "a content type is a text"],
  ])("that streams and %s is told so, and goes on", async (_name, body, errorType, message) => {
    const runtime = await ready(
      `exports.handler = awslambda.streamifyResponse(async (event, s) => { if (event.fine) return s.end('fine'); ${body} });`,
    );
    const frame = await runtime.invoke("{}");
    expect(frame.header.type).toBe("error");
    expect(json(frame)).toMatchObject({ errorType, errorMessage: expect.stringContaining(message) });
    expect((await runtime.invoke('{"fine":true}')).body.toString()).toBe("fine");
  });

  it("ends when the server is gone", async () => {
    const runtime = await ready("setInterval(() => {}, 1000); exports.handler = async () => 1;");
    await value(runtime);
    runtime.process.stdio[3]?.destroy();
    expect(await runtime.exited).toBe(0);
  });

  it("does not hand descriptor 3 to its children", async () => {
    const runtime = await ready(
      "exports.handler = async () => require('child_process').execSync('ls -l /proc/self/fd').toString().match(/ 3 -> .*/)[0];",
    );
    expect(await value(runtime)).not.toContain("socket");
  });

  it("keeps the heap limit of its command line, and Node's code cache", async () => {
    const runtime = await ready("exports.handler = async () => require('v8').getHeapStatistics().heap_size_limit / 1048576;", {
      // Newer versions reckon the young generation in, with half-spaces of 32 MB.
      flags: ["--max-old-space-size=100", "--max-semi-space-size=4"],
    });
    expect(await value(runtime)).toBeLessThan(160);
    await runtime.dispose();
    expect(runtime.output).toBe("");
  });
});

describe("snapshot hooks in Node", () => {
  it("run before-hooks last in, first out, and after-hooks first in, first out, under every name", async () => {
    const runtime = start("hooks.handler", {
      "hooks.mjs": `
          import v8, { startupSnapshot } from "node:v8"; import { createRequire } from "node:module"; import * as imported from "thaw-snapshot";
          const order = []; const note = async (name) => { await 1; order.push(name); };
          const required = createRequire(import.meta.url)("thaw-snapshot");
          awslambda.snapshot.registerBeforeSnapshot(() => note("before 1")); imported.registerBeforeSnapshot(note, "before 2"); startupSnapshot.addSerializeCallback(note, "before 3");
          awslambda.snapshot.registerAfterRestore(() => note("after 1")); required.registerAfterRestore(note, "after 2"); v8.startupSnapshot.addDeserializeCallback(note, "after 3");
          export const handler = async () => order.splice(0);`,
    });
    rmSync(join(root, "node_modules/thaw-snapshot"), { force: true });
    mkdirSync(join(root, "node_modules"), { recursive: true });
    symlinkSync(`${SOURCE_DIR}node/packages/thaw-snapshot`, join(root, "node_modules/thaw-snapshot"));
    expect((await runtime.next()).header.type).toBe("ready");
    runtime.send({ type: "prepare" });
    const prepared = await runtime.next();
    expect(prepared.header.type).toBe("prepared");
    expect(await value(runtime)).toEqual(["before 3", "before 2", "before 1"]);
    expect(await value(runtime, {}, { thaw: THAW })).toEqual(["after 1", "after 2", "after 3"]);
    expect(await value(runtime)).toEqual([]);
  });

  it("are left out of a rehearsal, as are the handler and what waits for the event loop", async () => {
    for (const waiting of ["setInterval(() => console.log('timer'), 1);", ""]) {
      const runtime = await ready(
        `${waiting} awslambda.snapshot.registerAfterRestore(() => console.log('hook')); exports.handler = async () => console.log('handler');`,
      );
      await new Promise((resolve) => setTimeout(resolve, 10));
      const before = runtime.output;
      expect(await value(runtime, { a: 1 }, { thaw: THAW, rehearsal: true })).toEqual({ a: 1 });
      await new Promise((resolve) => setTimeout(resolve, 50));
      expect(runtime.output.slice(before.length)).toBe("rehearsal\n");
      await runtime.dispose();
    }
  });

  it("report a before-hook that throws, and serve on", async () => {
    const runtime = await ready(
      "awslambda.snapshot.registerBeforeSnapshot(() => { throw new Error('not now'); }); exports.handler = async () => 1;",
    );
    runtime.send({ type: "prepare" });
    const frame = await runtime.next();
    expect(frame.header.type).toBe("prepareError");
    expect(json(frame).errorMessage).toBe("not now");
    expect(await value(runtime)).toBe(1);
  });

  it("answer and end when an after-hook throws or never finishes", async () => {
    for (const [hook, message] of [
      ["throw new RangeError('half-way')", "RangeError: half-way"],
      ["return new Promise(() => {})", "Error: an after-restore hook never finished"],
    ]) {
      const runtime = await ready(
        `awslambda.snapshot.registerAfterRestore(() => { ${hook}; }); exports.handler = async () => 1;`,
      );
      const frame = await runtime.invoke("{}", { thaw: THAW });
      expect(json(frame)).toMatchObject({ errorType: "Runtime.AfterRestoreError", errorMessage: message });
      expect(await runtime.exited).toBe(1);
    }
  });
});

describe("uniqueness after a thaw of Node", () => {
  it("randomUUID and randomInt are the replaced ones under every name, and keep Node's manners", async () => {
    const runtime = await ready(`
      const crypto = require("crypto"); const { randomUUID, randomInt } = crypto; const { promisify } = require("util");
      const refuses = (f) => { try { f(); return "accepted"; } catch (error) { return error.code; } };
      exports.handler = async () => {
        const esm = await import("node:crypto"); const bare = await import("crypto");
        return {
          same: [esm.randomUUID === randomUUID, esm.default.randomInt === randomInt, bare.randomInt === randomInt],
          uuids: [randomUUID(), randomUUID({}), randomUUID({ disableEntropyCache: true }), globalThis.crypto.randomUUID(), esm.webcrypto.randomUUID()],
          ints: [randomInt(10), randomInt(5, 6), randomInt(-3, -1), await promisify(randomInt)(1, 2), await new Promise((r) => randomInt(1, (e, n) => r(n)))],
          wide: randomInt(0, 2 ** 48 - 1),
          refused: [() => randomInt(), () => randomInt(5, 5), () => randomInt(1.5), () => randomInt(0, 2 ** 48), () => randomInt(1, 2, 3), () => randomUUID(5), () => randomUUID({ disableEntropyCache: 1 }), () => crypto.webcrypto.randomUUID.call({})].map(refuses),
          names: [Math.random.name, randomUUID.name, randomInt.name, Math.random.length, randomInt.length, "prototype" in Math.random, Object.keys(Math).length],
        };
      };`);
    const seen = await value(runtime);
    expect(seen.same).toEqual([true, true, true]);
    expect(new Set(seen.uuids).size).toBe(5);
    for (const uuid of seen.uuids) expect(uuid).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    expect(seen.ints[0]).toBeLessThan(10);
    expect(seen.ints[1]).toBe(5);
    expect([-3, -2]).toContain(seen.ints[2]);
    expect(seen.ints.slice(3)).toEqual([1, 0]);
    expect(Number.isSafeInteger(seen.wide)).toBe(true);
    expect(seen.refused).toEqual([
      "ERR_INVALID_ARG_TYPE",
      "ERR_OUT_OF_RANGE",
      "ERR_INVALID_ARG_TYPE",
      "ERR_OUT_OF_RANGE",
      "ERR_INVALID_ARG_TYPE",
      "ERR_INVALID_ARG_TYPE",
      "ERR_INVALID_ARG_TYPE",
      "ERR_INVALID_THIS",
    ]);
    expect(seen.names).toEqual(["random", "randomUUID", "randomInt", 0, 3, false, 0]);
  });

  it("process.pid is what the kernel says, also in a new worker, whose Math.random is its own", async () => {
    const runtime = await ready(`
      const { Worker } = require("worker_threads");
      const worker = () => new Promise((r) => new Worker("require('worker_threads').parentPort.postMessage([process.pid, Math.random()])", { eval: true }).once("message", r));
      exports.handler = async () => ({ pid: process.pid, live: Number(require("fs").readlinkSync("/proc/self")), ppid: process.ppid, workers: [await worker(), await worker()] });`);
    const seen = await value(runtime, {}, { thaw: { ...THAW, pid: 999_999 } });
    expect(seen.pid).toBe(runtime.process.pid);
    expect(seen.live).toBe(seen.pid);
    expect(seen.ppid).toBe(process.pid);
    expect(seen.workers.map((one: number[]) => one[0])).toEqual([seen.pid, seen.pid]);
    expect(seen.workers[0][1]).not.toBe(seen.workers[1][1]);
  });

  it("leaves a sandbox's own Math alone, and refuses what vm refuses", async () => {
    const runtime = await ready(`
      const vm = require("vm"); const own = { random: () => 4 };
      const code = (f) => { try { f(); return "accepted"; } catch (error) { return error.code; } };
      exports.handler = async () => [vm.runInNewContext("Math.random()", { Math: own }), vm.runInNewContext("Math.random.name + Object.keys(Math).length"), vm.runInNewContext("a + 1", { a: 1 }, "file.js"),
        code(() => vm.createContext(5)), code(() => vm.runInNewContext("1", {}, { contextName: 5 })), vm.isContext(vm.createContext({}, { name: "x" }))];`);
    expect(await value(runtime)).toEqual([4, "random0", 2, "ERR_INVALID_ARG_TYPE", "ERR_INVALID_ARG_TYPE", true]);
  });
});
