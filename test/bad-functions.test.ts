/**
 * Functions that misbehave: what the caller is told, word for word, and that nothing of them stays. Each is tried in a booted and,
 * where it gets that far, in a thawed instance.
 */
import { existsSync, renameSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import { isThawError } from "../src/base/errors.js";
import { type Engine, type FunctionSpec, type Image, type Instance, type InvokeResult, openEngine } from "../src/engine/index.js";
import { statFields } from "../src/linux/process-stat.js";
import { ask, errorOf, refusal, returned, useBench } from "./support/bench.js";
import { eventually } from "./support/wait.js";
import { hostPid, withInstance } from "./support/world.js";

const bench = useBench();
const MIB = 1024 * 1024;
let hello: Image;

beforeAll(async () => {
  hello = await bench.image(bench.node("exports.handler = async (event) => ({ hello: event.name });"), { name: "first" });
});

afterEach(async () => {
  await bench.quiet();
  await withInstance(bench.engine.thaw(hello), async (instance) =>
    expect(await ask(instance, { name: "again" })).toEqual({ hello: "again" }),
  );
  await bench.quiet();
});

describe("a function whose folder is not there", () => {
  it("is refused by the folder's name, booted and thawed", async () => {
    const codeDir = `${bench.node("").codeDir}/moved-away`;
    const spec = bench.node("", { codeDir });
    await expect(bench.engine.boot(spec)).rejects.toMatchObject({
      code: "CODE_INVALID",
      what: `The code of function "${spec.name}" cannot be opened`,
      why: `cannot open ${codeDir}: No such file or directory`,
    });
    const image = await bench.image(bench.node("exports.handler = async () => 1;", { name: "moved" }));
    await bench.reopen();
    hello = await bench.engine.openImage(hello.dir);
    renameSync(image.spec.codeDir, `${image.spec.codeDir}.moved`);
    await expect(bench.engine.openImage(image.dir)).rejects.toMatchObject({
      code: "CODE_INVALID",
      what: 'The code of function "moved" cannot be opened',
      why: `cannot open ${image.spec.codeDir}: No such file or directory`,
    });
  });
});

describe("a function of which something is missing", () => {
  it("is refused with the names of that, before anything runs", async () => {
    const { version: _, tmpMb: __, ...rest } = bench.node("exports.handler = async () => 1;");
    await expect(bench.engine.boot({ ...rest, memoryMb: "128" } as unknown as FunctionSpec)).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
      what: "the function to boot cannot be used",
      why: expect.stringMatching(/^version: .*string.*; memoryMb: .*number.*; tmpMb: .*number/),
    });
  });
});

const FRAME = `
const fs = require("fs");
function frame(header, body) {
  const head = Buffer.from(JSON.stringify(header)), prefix = Buffer.alloc(12);
  prefix.write("THAW");
  prefix.writeUInt32LE(head.length, 4);
  prefix.writeUInt32LE(body.length, 8);
  return Buffer.concat([prefix, head, Buffer.from(body)]);
}`;

describe("a function that cannot be loaded is refused with the reason", () => {
  const cases: readonly [title: string, spec: () => FunctionSpec, why: RegExp][] = [
    [
      "Node: the module is missing",
      () => bench.node("", { handler: "absent.handler" }),
      /^Runtime\.ImportModuleError: .*Cannot find module 'absent'/,
    ],
    [
      "Node: the handler is missing",
      () => bench.node("exports.other = 1;"),
      /^Runtime\.HandlerNotFound: index\.handler is undefined or not exported$/,
    ],
    [
      "Node: the handler is no function",
      () => bench.node("exports.handler = 1;"),
      /^Runtime\.HandlerNotFound: index\.handler is not a function$/,
    ],
    [
      "Node: the handler's name has no dot",
      () => bench.node("", { handler: "index" }),
      /^Runtime\.MalformedHandlerName: Bad handler 'index'/,
    ],
    [
      "Node: the handler's name leads out",
      () => bench.node("", { handler: "../index.handler" }),
      /^Runtime\.MalformedHandlerName: .*'\.\.' is not allowed/,
    ],
    [
      "Node: a syntax error",
      () => bench.node("exports.handler = async ( => 1;"),
      /^Runtime\.UserCodeSyntaxError: SyntaxError: Unexpected token '=>' \(\/var\/task\/index\.js:1\)$/,
    ],
    [
      "Node: a module that it requires is missing",
      () => bench.node("require('left-pad'); exports.handler = () => 1;"),
      /^Runtime\.ImportModuleError: Error: Cannot find module 'left-pad'/,
    ],
    ["Node: throws", () => bench.node("throw new TypeError('no database');"), /^TypeError: no database$/],
    ["Node: throws something that is no error", () => bench.node("throw { code: 7 };"), /^object: \{"code":7\}$/],
    [
      "Node: rejects",
      () => bench.node("Promise.reject(new Error('too late')); exports.handler = () => 1;"),
      /^Runtime\.UnhandledPromiseRejection: Error: too late$/,
    ],
    ["Node: exits", () => bench.node("process.exit(3);"), /^Runtime exited with error: exit status 3/],
    [
      "Node: kills itself",
      () => bench.node("process.kill(process.pid, 'SIGSEGV'); while (true);"),
      /^Runtime exited with error: signal 11/,
    ],
    [
      "Node: closes descriptor 3",
      () => bench.node("require('fs').closeSync(3); while (true);"),
      /^the function closed its control descriptor \(3\)/,
    ],
    [
      "Node: writes to descriptor 3",
      () => bench.node("require('fs').writeSync(3, 'hello?'); while (true);"),
      /^The function wrote something to descriptor 3 that is not a reply\. "hello\?" came where a frame must begin/,
    ],
    [
      "Node: announces more to descriptor 3 than a frame may have",
      () =>
        bench.node("require('fs').writeSync(3, Buffer.from('THAW\\x10\\0\\0\\0\\xff\\xff\\xff\\x7f', 'latin1')); while (true);"),
      /^The function's reply is too large\. a frame announces 2147483647 bytes and 6291556 are allowed/,
    ],
    [
      "Node: tells an error of its load itself, that is none",
      () => bench.node(`${FRAME} fs.writeSync(3, frame({ type: "initError" }, "no JSON")); while (true);`),
      /^the function wrote something .*\. an error of its load came that is no object of JSON/,
    ],
    [
      "Node: tells an error of its load itself, and nothing of it",
      () => bench.node(`${FRAME} fs.writeSync(3, frame({ type: "initError" }, "null")); while (true);`),
      /^the function wrote something .*\. an error of its load came that is no object of JSON/,
    ],
    [
      "Node: tells an error of its load itself, whose members are no texts",
      () => {
        const members = `{"errorType":"Odd","errorMessage":{"toString":1,"valueOf":1},"trace":' + deep + '}`;
        const deep = 'const deep = "[".repeat(1e5) + "]".repeat(1e5);';
        return bench.node(`${FRAME} ${deep} fs.writeSync(3, frame({ type: "initError" }, '${members}')); while (true);`);
      },
      /^Odd: $/,
    ],
    [
      "Node: throws with a message of megabytes, of which the sentence has the beginning",
      () => bench.node("throw new TypeError('m'.repeat(2e6));"),
      /^TypeError: m{1989}…$/,
    ],
    [
      "Python: the module is missing",
      () => bench.python("", { handler: "absent.handler" }),
      /^Runtime\.ImportModuleError: .*No module named 'absent'/,
    ],
    ["Python: the handler is missing", () => bench.python("other = 1\n"), /^Runtime\.HandlerNotFound: .*handler/],
    [
      "Python: a syntax error",
      () => bench.python("def handler(event, context:\n  return 1\n"),
      /^Runtime\.UserCodeSyntaxError: .*'\(' was never closed|^Runtime\.UserCodeSyntaxError: .*invalid syntax/,
    ],
    ["Python: throws", () => bench.python("raise KeyError('no database')\n"), /^KeyError: 'no database'$/],
    ["Python: exits", () => bench.python("import sys\nsys.exit(4)\n"), /exit status 4|SystemExit/],
    ["Python: leaves at once", () => bench.python("import os\nos._exit(5)\n"), /^Runtime exited with error: exit status 5/],
    ["Python: aborts", () => bench.python("import os\nos.abort()\n"), /^Runtime exited with error: signal 6/],
  ];

  it.each(cases)("%s", async (_title, spec, why) => {
    const error = await refusal(bench.engine.boot(spec()));
    expect(error.code).toBe("INIT_FAILED");
    expect(error.what).toMatch(/^function "test-(node|python)" failed while it was loaded$/);
    expect(error.why).toMatch(why);
    // A reply is made of it.
    expect(JSON.stringify(error.details.error ?? {})).toMatch(/^\{/);
  });

  it("and what it printed comes along", async () => {
    const error = await refusal(
      bench.engine.boot(bench.node("console.log('looking for the database'); throw new Error('none');")),
    );
    expect(error.details.logs).toContain("looking for the database");
    expect(error.details.error).toMatchObject({ errorType: "Error", errorMessage: "none" });
  });

  it.each([
    ["Node: buffers", () => bench.node("const all = []; for (;;) all.push(Buffer.alloc(8 << 20, 1));", { memoryMb: 128 })],
    [
      "Node: objects",
      () => bench.node("const all = []; for (;;) all.push({ a: [1, 2, 3], b: String(Math.random()) });", { memoryMb: 128 }),
    ],
    ["Python", () => bench.python("all = []\nwhile True: all.append(bytearray(8 << 20))\n", { memoryMb: 128 })],
  ] as const)("runs out of memory while it is loaded (%s)", async (_title, spec) => {
    const error = await refusal(bench.engine.boot(spec()));
    expect(error.code).toBe("INIT_FAILED");
    expect(error.why).toContain("the function was killed at its memory limit of 128 MB");
    expect(error.details).toMatchObject({ code: "OUT_OF_MEMORY", type: "Runtime.OutOfMemory" });
  });
});

/** One module for all that a handler can do wrong; `event.do` chooses. */
const NODE = `
const fs = require("fs");
const { spawn } = require("child_process");
const kept = [];
const deeds = {
  throw: () => { throw new RangeError("out of cheese"); },
  reject: () => Promise.reject(new RangeError("out of cheese")),
  throwNothing: () => { throw undefined; },
  later: () => new Promise(() => setImmediate(() => { throw new Error("thrown in a callback"); })),
  unhandled: () => { Promise.reject(new Error("nobody listens")); return new Promise((resolve) => setTimeout(resolve, 5000)); },
  exit: (event) => process.exit(event.code),
  abort: () => process.abort(),
  signal: (event) => { process.kill(process.pid, event.signal); return new Promise(() => setInterval(() => {}, 1000)); },
  loop: () => { for (;;); },
  never: () => { kept.push(setInterval(() => {}, 1000)); return new Promise(() => {}); },
  memory: () => { for (;;) kept.push(Buffer.alloc(8 << 20, 1)); },
  heap: () => { for (;;) kept.push({ a: [1, 2, 3], b: String(Math.random()) }); },
  recursion: () => { const down = (n) => down(n + 1) + 1; return down(0); },
  garbage: () => { fs.writeSync(3, "this is not a frame"); return new Promise(() => setInterval(() => {}, 1000)); },
  garbageLater: () => { setImmediate(() => fs.writeSync(3, Buffer.from([0xff, 0xfe, 0x00]))); return new Promise(() => setInterval(() => {}, 1000)); },
  foreign: () => { const h = Buffer.from(JSON.stringify({ type: "result", requestId: "another", handlerMs: 1, maxMemoryMb: 1 })); const p = Buffer.alloc(12); p.write("THAW"); p.writeUInt32LE(h.length, 4); fs.writeSync(3, Buffer.concat([p, h])); return new Promise(() => setInterval(() => {}, 1000)); },
  huge: () => { const p = Buffer.alloc(13); p.write("THAW"); p.writeUInt32LE(1, 4); p.writeUInt32LE(0x7fffffff, 8); fs.writeSync(3, p); return new Promise(() => setInterval(() => {}, 1000)); },
  closeAndReturn: () => { fs.closeSync(3); return 1; },
  close: () => { fs.closeSync(3); return new Promise(() => setInterval(() => {}, 1000)); },
  flood: (event) => { const line = "x".repeat(1023) + "\\n"; for (let i = 0; i < event.kib; i++) fs.writeSync(1, line); return event.kib; },
  children: () => { for (let i = 0; i < 5; i++) spawn("/bin/sleep", ["1000"], { detached: true, stdio: "ignore" }).unref(); return "left"; },
  large: (event) => "x".repeat(event.bytes),
  echo: (event) => event.text,
  circular: () => { const a = {}; a.a = a; return a; },
  bigint: () => 1n,
  lone: () => "\\ud800 and more",
  nothing: () => undefined,
};
exports.handler = async (event) => (event.do === undefined ? "ready" : deeds[event.do](event));
`;

const PYTHON = `
import ctypes, os, signal, sys, time, threading
kept = []
def throw(event): raise LookupError("out of cheese")
def exit(event): sys.exit(event["code"])
def leave(event): os._exit(event["code"])
def segv(event): ctypes.string_at(0)
def loop(event):
    while True: pass
def sleep(event): time.sleep(1000)
def memory(event):
    while True: kept.append(bytearray(8 << 20))
def recursion(event):
    def down(n): return down(n + 1) + 1
    return down(0)
def garbage(event): os.write(3, b"this is not a frame"); time.sleep(1000)
def close(event): os.close(3); time.sleep(1000)
def closeAndReturn(event): os.close(3)
def flood(event):
    line = "x" * 1023
    for _ in range(event["kib"]): print(line)
    return event["kib"]
def fork(event):
    for _ in range(5):
        if os.fork() == 0: time.sleep(1000)
    return "left"
def forkreturn(event): return os.fork() == 0
def large(event): return "x" * event["bytes"]
def echo(event): return event["text"]
def unserialisable(event): return {1, 2}
def invalid(event): return "\\ud800 and more"
def bytes_out(event): os.write(1, bytes(range(256)) * 4); return "written"
def handler(event, context):
    return globals()[event["do"]](event) if "do" in event else "ready"
`;

const QUICK = { timeoutMs: 1500 };
const NO_EXIT = "the function's process must not exit; return from the handler, and see in its log what it said last";
const CRASHED = "it crashed: look at native add-ons first, and at what it printed before, in its log";
const SENT = "it was sent that signal, by its own code or by somebody on the server's machine";
const images = new Map<string, Image>();
type Way = "booted" | "thawed";

async function start(language: "node" | "python", way: Way, overrides: Partial<FunctionSpec> = {}): Promise<Instance> {
  const key = `${language} ${JSON.stringify(overrides)}`;
  const make = (): FunctionSpec => (language === "node" ? bench.node(NODE, overrides) : bench.python(PYTHON, overrides));
  if (way === "booted") return await bench.engine.boot(make());
  const image = images.get(key) ?? (await (overrides === QUICK ? unused(make()) : bench.image(make())));
  images.set(key, image);
  return await bench.engine.thaw(image);
}

/** An image of what had no request: where the time for one is short, it may be too short for the first. */
function unused(spec: FunctionSpec): Promise<Image> {
  return withInstance(bench.engine.boot(spec), (instance) => instance.freeze({ then: "end" }));
}

describe.each(["booted", "thawed"] as const)("a handler (%s)", (way) => {
  /** Invokes once with a short timeout, and asserts that the instance is over, whatever the answer. */
  async function last(
    language: "node" | "python",
    event: object,
    overrides: Partial<FunctionSpec> = QUICK,
  ): Promise<InvokeResult> {
    return await withInstance(start(language, way, overrides), async (instance) => {
      const reasons: string[] = [];
      instance.onExit((reason) => reasons.push(reason));
      const result = await instance.invoke(JSON.stringify(event));
      expect(result.alive).toBe(false);
      await bench.quiet();
      expect(instance.alive).toBe(false);
      expect(reasons).toHaveLength(1);
      return result;
    });
  }

  it.each([
    ["node", "throw", "RangeError", "out of cheese"],
    ["node", "reject", "RangeError", "out of cheese"],
    ["node", "throwNothing", "undefined", "undefined"],
    ["node", "recursion", "RangeError", "Maximum call stack size exceeded"],
    ["node", "circular", "Runtime.MarshalError", /^Unable to stringify response body: .*circular/],
    ["node", "bigint", "Runtime.MarshalError", /^Unable to stringify response body: .*BigInt/],
    ["python", "throw", "LookupError", "out of cheese"],
    ["python", "recursion", "RecursionError", /^maximum recursion depth exceeded/],
    ["python", "unserialisable", "Runtime.MarshalError", /not JSON serializable/],
  ] as const)("of %s that does «%s» gets its error, and the instance goes on", async (language, deed, type, message) => {
    await withInstance(start(language, way), async (instance) => {
      for (let turn = 0; turn < 2; turn++) {
        const result = await instance.invoke(JSON.stringify({ do: deed }));
        const error = errorOf(result);
        expect(error.errorType).toBe(type);
        expect(error.errorMessage).toMatch(message);
        expect([result.platformError, result.alive]).toEqual([undefined, true]);
      }
      expect(await ask(instance)).toBe("ready");
    });
  });

  it.each([
    ["node", { do: "exit", code: 0 }, "exit status 0", NO_EXIT],
    ["node", { do: "exit", code: 7 }, "exit status 7", NO_EXIT],
    ["node", { do: "abort" }, "signal 6 (SIGABRT)", CRASHED],
    ["node", { do: "signal", signal: "SIGKILL" }, "signal 9 (SIGKILL)", SENT],
    ["python", { do: "leave", code: 9 }, "exit status 9", NO_EXIT],
    ["python", { do: "segv" }, "signal 11 (SIGSEGV)", CRASHED],
  ] as const)("of %s that ends its process (%j) is told so", async (language, event, how, advice) => {
    const result = await last(language, event, { timeoutMs: 20_000 });
    const error = errorOf(result);
    expect(error.errorType).toBe("Runtime.ExitError");
    expect(error.errorMessage?.replace(/^RequestId: \S+ /, "")).toBe(`Error: Runtime exited with error: ${how}. ${advice}`);
    expect(result.platformError).toBe("INSTANCE_EXITED");
  });

  it("of Python that calls sys.exit is told so", async () => {
    await withInstance(start("python", way), async (instance) => {
      const result = await instance.invoke(JSON.stringify({ do: "exit", code: 3 }));
      expect(errorOf(result).errorMessage).toMatch(/exit status 3|SystemExit/);
    });
  });

  it.each([
    ["node", "later", "Error", "thrown in a callback"],
    ["node", "unhandled", "Runtime.UnhandledPromiseRejection", "Error: nobody listens"],
  ] as const)("of %s that lets an error go astray (%s) gets it, and the instance ends", async (language, deed, type, message) => {
    const result = await last(language, { do: deed }, { timeoutMs: 20_000 });
    expect(errorOf(result)).toMatchObject({ errorType: type, errorMessage: message });
  });

  it.each([
    ["node", "loop"],
    ["node", "never"],
    ["python", "loop"],
    ["python", "sleep"],
  ] as const)("of %s that does not end (%s) times out and is killed", async (language, deed) => {
    const result = await last(language, { do: deed });
    const error = errorOf(result);
    expect(error.errorType).toBe("Sandbox.Timedout");
    expect(error.errorMessage).toMatch(/^\d{4}-\d\d-\d\dT[\d:.]+Z \S+ Task timed out after 1\.50 seconds$/);
    expect(result.platformError).toBe("TIMEOUT");
    expect(result.totalMs).toBeGreaterThan(1_490);
    expect(result.totalMs, "killed then, and not some seconds later").toBeLessThan(4_500);
  });

  it.each([
    ["node", "memory"],
    ["node", "heap"],
    ["python", "memory"],
  ] as const)("of %s that takes all memory (%s) is told its limit", async (language, deed) => {
    const result = await last(language, { do: deed }, { memoryMb: 128, timeoutMs: 30_000 });
    const error = errorOf(result);
    expect(error.errorType).toBe("Runtime.OutOfMemory");
    expect(error.errorMessage).toMatch(
      /^RequestId: \S+ Error: the function was killed at its memory limit of 128 MB\. .*raise --memory$/,
    );
    expect(result.platformError).toBe("OUT_OF_MEMORY");
  });

  it.each([
    ["node", "garbage", /"this is not a frame" came where a frame must begin/],
    ["node", "garbageLater", /the bytes fffe00 came where a frame must begin/],
    ["node", "foreign", /a «result» came that nobody asked for/],
    ["python", "garbage", /"this is not a frame" came where a frame must begin/],
    ["node", "close", /the function closed its control descriptor \(3\)/],
    ["python", "close", /the function closed its control descriptor \(3\)/],
    ["node", "closeAndReturn", /the function closed its control descriptor \(3\)/],
    ["python", "closeAndReturn", /the function closed its control descriptor \(3\)/],
  ] as const)("of %s that abuses descriptor 3 (%s) is told so", async (language, deed, message) => {
    const result = await last(language, { do: deed }, { timeoutMs: 20_000 });
    const error = errorOf(result);
    expect(error.errorType).toBe("Runtime.ProtocolViolation");
    expect(error.errorMessage).toMatch(message);
    expect(result.platformError).toBe("PROTOCOL_VIOLATION");
  });

  it("of Node that announces two gigabytes on descriptor 3 is refused before they come", async () => {
    const result = await last("node", { do: "huge" }, { timeoutMs: 20_000 });
    expect(errorOf(result)).toMatchObject({
      errorType: "Function.ResponseSizeTooLarge",
      errorMessage: expect.stringContaining("a frame announces 2147483647 bytes and 6291556 are allowed"),
    });
    expect(result.platformError).toBe("RESPONSE_TOO_LARGE");
  });

  it.each(["node", "python"] as const)("of %s that floods its output is cut, and answers", async (language) => {
    await withInstance(start(language, way), async (instance) => {
      const result = await instance.invoke(JSON.stringify({ do: "flood", kib: 40 * 1024 }));
      expect(returned(result)).toBe(40 * 1024);
      expect(result.logs.length).toBeGreaterThan(4 * MIB - 1);
      expect(result.logs.length).toBeLessThan(4 * MIB + 100);
      expect(result.logs.toString("latin1")).toMatch(/\n\[log cut at 4 MiB\]\n$/);
      const next = await instance.invoke(JSON.stringify({ do: "flood", kib: 1 }));
      expect(next.logs.length).toBe(1024);
    });
  });

  it("of Python may print any bytes", async () => {
    await withInstance(start("python", way), async (instance) => {
      const result = await instance.invoke(JSON.stringify({ do: "bytes_out" }));
      expect(result.logs).toEqual(Buffer.concat(Array(4).fill(Buffer.from(Array.from({ length: 256 }, (_, index) => index)))));
    });
  });

  it("may return text that is no Unicode, and what arrives is still JSON in UTF-8", async () => {
    await withInstance(start("node", way), async (instance) =>
      expect(await ask(instance, { do: "lone" })).toBe("\ud800 and more"),
    );
    await withInstance(start("python", way), async (instance) =>
      expect(await ask(instance, { do: "invalid" })).toBe("\ud800 and more"),
    );
  });

  it.each([
    ["node", "children"],
    ["python", "fork"],
  ] as const)("of %s that leaves children behind answers, and they end with the instance", async (language, deed) => {
    await withInstance(start(language, way), async (instance) => {
      expect(await ask(instance, { do: deed })).toBe("left");
      expect(bench.pids().length).toBeGreaterThanOrEqual(7);
      expect(await ask(instance)).toBe("ready");
    });
    await bench.quiet();
  });

  it("of Python whose child returns from the handler too is answered once", async () => {
    await withInstance(start("python", way), async (instance) => {
      for (let turn = 0; turn < 3; turn++) expect(await ask(instance, { do: "forkreturn" })).toBe(false);
      expect(await ask(instance)).toBe("ready");
    });
  });

  it.each(["node", "python"] as const)("of %s takes and returns six megabytes, byte for byte", async (language) => {
    await withInstance(start(language, way), async (instance) => {
      const text = Array.from({ length: 60_000 }, (_, index) => `${index.toString(36)}·ü`)
        .join("")
        .slice(0, 4_000_000);
      const filled = text + "z".repeat(6 * MIB - 64 - Buffer.byteLength(text));
      expect(await ask(instance, { do: "echo", text: filled })).toBe(filled);
      expect(await ask(instance)).toBe("ready");
    });
  });

  it.each(["node", "python"] as const)("of %s that returns too much is told so, and goes on", async (language) => {
    await withInstance(start(language, way), async (instance) => {
      const result = await instance.invoke(JSON.stringify({ do: "large", bytes: 7 * MIB }));
      expect(errorOf(result)).toMatchObject({
        errorType: "Function.ResponseSizeTooLarge",
        errorMessage: "Response payload size (7340034 bytes) exceeded maximum allowed payload size (6291556 bytes).",
      });
      expect([result.platformError, result.alive]).toEqual(["RESPONSE_TOO_LARGE", true]);
      expect(await ask(instance)).toBe("ready");
    });
  });

  it.each(["node", "python"] as const)("of %s that is given no JSON says so, and goes on", async (language) => {
    await withInstance(start(language, way), async (instance) => {
      const error = errorOf(await instance.invoke("{ not json"));
      expect(error.errorType).toBe("Runtime.UnmarshalError");
      expect(error.errorMessage).toMatch(/^Unable to (un)?marshal|^Unable to parse event/);
      expect(await ask(instance)).toBe("ready");
    });
  });
});

/**
 * Begins an answer, and passes with its bytes sockets whose close waits twenty seconds for a peer that reads nothing. The function closes its
 * own at once, so that whoever got them closes them last.
 */
const PASSES_SOCKETS = `
import array, json, os, socket, struct, time
def full():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    sender = socket.create_connection(listener.getsockname())
    peer = listener.accept()[0]
    sender.setblocking(False)
    try:
        while True: sender.send(bytes(65536))
    except BlockingIOError: pass
    sender.setblocking(True)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 20))
    return sender.detach(), peer
def handler(event, context):
    made = [full() for _ in range(16)]
    out = socket.socket(fileno=os.dup(3))
    header = json.dumps({"type": "result", "requestId": context.aws_request_id, "handlerMs": 1, "maxMemoryMb": 1}).encode()
    out.send(struct.pack("<III", 0x57414854, len(header), 3000000) + header + bytes(900000))
    flags = socket.MSG_OOB if event["urgent"] else 0
    for fd, _ in made:
        out.sendmsg([b"0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))], flags)
        os.close(fd)
    time.sleep(100)
`;

describe("a function that passes descriptors to the keeper", () => {
  it.each([
    ["with a byte", false],
    ["with an urgent byte", true],
  ])("ends, and holds up nobody (%s)", { timeout: 120_000 }, async (_title, urgent) => {
    await withInstance(bench.engine.thaw(hello), async (other) => {
      await withInstance(bench.engine.boot(bench.python(PASSES_SOCKETS)), async (instance) => {
        const ending = instance.invoke(JSON.stringify({ urgent }));
        let over = false;
        const asking = (async () => {
          let longest = 0;
          for (const end = Date.now() + 4000; !over || Date.now() < end; ) {
            const began = Date.now();
            expect(await ask(other, { name: "other" })).toEqual({ hello: "other" });
            longest = Math.max(longest, Date.now() - began);
          }
          return longest;
        })();
        const ended = await ending.finally(() => {
          over = true;
        });
        expect(errorOf(ended).errorMessage).toContain("Runtime exited with error: signal 9");
        // One close alone takes 20 s.
        expect(await asking, "the longest answer of another function, ms").toBeLessThan(15_000);
      });
    });
  });
});

describe("between requests", () => {
  it.each([
    [
      "garbage",
      "const fs = require('fs'); exports.handler = async () => { setTimeout(() => fs.writeSync(3, 'boo'), 20).unref(); return 1; };",
    ],
    ["a late exit", "exports.handler = async () => { setImmediate(() => process.exit(1)); return 1; };"],
  ])("an instance that ends by %s says so to whoever invokes it next", async (_title, source) => {
    await withInstance(bench.engine.boot(bench.node(source, { timeoutMs: 20_000 })), async (instance) => {
      // The deed is done when the function gets to it, in the middle of a request too; those that are read before are answered.
      let told: InvokeResult | Error = await instance.invoke("{}");
      for (const end = Date.now() + 30_000; !(told instanceof Error) && told.functionError === undefined && Date.now() < end; ) {
        expect(returned(told)).toBe(1);
        told = await instance.invoke("{}").catch((error: Error) => error);
      }
      // Which one it is of an exit depends on whether the request had been read.
      if (told instanceof Error) {
        expect(told).toMatchObject({ code: "INSTANCE_EXITED" });
        expect(told.message).toMatch(/ended behind its last answer.*Runtime exited with error: exit status 1\b/);
      } else expect(errorOf(told).errorType).toMatch(/^Runtime\.(ProtocolViolation|ExitError)$/);
      expect(instance.alive).toBe(false);
    });
  });
});

describe("an instance to which nobody can speak any more", () => {
  const source = `
import os, signal, socket, struct, time
def handler(event, context):
    if event.get("do") and os.fork() == 0:
        # The answer goes out before its runtime stands still.
        time.sleep(0.2)
        if event["do"] == "begin": os.write(3, b"THAW" + struct.pack("<II", 100, 6000000))
        if event["do"] == "close":
            os.kill(os.getppid(), signal.SIGSTOP)
            socket.socket(fileno=3).shutdown(socket.SHUT_WR)
        time.sleep(600)
    return 1
`;
  it.each([
    ["its control descriptor is shut by a child, and its runtime stands still", "close", /closed its control descriptor/],
    ["a child of it writes half a frame", "begin", /a frame was begun that nobody asked for/],
  ])("is ended between two requests: %s", async (_title, deed, reason) => {
    await withInstance(bench.engine.boot(bench.python(source, { timeoutMs: 60_000 })), async (instance) => {
      const reasons: string[] = [];
      instance.onExit((why) => reasons.push(why));
      expect(await ask(instance, { do: deed })).toBe(1);
      await eventually(() => expect(reasons).toHaveLength(1));
      expect(reasons[0]).toMatch(reason);
      expect(instance.alive).toBe(false);
    });
  });
});

describe("a function whose end is noticed late", () => {
  it("is told how it ended, and not that it closed its descriptors", async () => {
    await withInstance(bench.engine.boot(bench.node(NODE)), async (instance) => {
      const pid = hostPid(instance);
      const init = Number(statFields(pid)[1]);
      process.kill(init, "SIGSTOP");
      // Until it has run, and heard that, it may still take the end of a child.
      await eventually(() => expect(statFields(init)[0]).toBe("T"));
      const ending = instance.invoke(JSON.stringify({ do: "exit", code: 7 }));
      try {
        await eventually(() => expect(statFields(pid)[0]).toBe("Z"));
        // Longer than the engine waits for the end of a process behind that of its control socket.
        await pause(2000);
      } finally {
        // One that was killed meanwhile shows in the answer.
        if (existsSync(`/proc/${init}`)) process.kill(init, "SIGCONT");
      }
      const result = await ending;
      expect(errorOf(result).errorMessage).toContain("exit status 7");
      expect(result.platformError).toBe("INSTANCE_EXITED");
    });
  });
});

describe("a function that stands in the way of its freezing is refused by name, and goes on", () => {
  const HELPERS = `
import array, ctypes, fcntl, mmap, os, signal, socket, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
kept = []
def vfork():
    # mov rax, 58; syscall; test rax, rax; jnz 1f; 0: jmp 0b; 1: ret
    code = mmap.mmap(-1, 4096, prot=7, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    code.write(b"\\x48\\xc7\\xc0\\x3a\\x00\\x00\\x00\\x0f\\x05\\x48\\x85\\xc0\\x75\\x02\\xeb\\xfe\\xc3")
    kept.append(code)
    threading.Thread(target=ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(code))), daemon=True).start()
    # Until the child is there.
    while len([p for p in os.listdir("/proc") if p.isdigit()]) < 3: time.sleep(0.01)
def filter():
    allow = ctypes.create_string_buffer(b"\\x06\\0\\0\\0\\0\\0\\xff\\x7f")
    program = ctypes.create_string_buffer((1).to_bytes(8, "little") + ctypes.addressof(allow).to_bytes(8, "little"))
    assert libc.syscall(317, 1, 0, program) == 0
def reserve():
    kept.append(libc.mmap(ctypes.c_void_p(0), ctypes.c_size_t(1 << 44), 3, 0x4022, -1, ctypes.c_long(0)))
    ctypes.memset(kept[0], 65, 1)
def fifo(): os.mkfifo("/tmp/fifo")
def sparse():
    with open("/tmp/sparse", "w") as file: file.truncate(1 << 40)
def lease():
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    kept.append(open("/tmp/leased", "w"))
    fcntl.fcntl(kept[-1], fcntl.F_SETLEASE, fcntl.F_WRLCK)
def pathlease():
    open("/tmp/leased", "w").close()
    kept.append(os.open("/tmp/leased", os.O_PATH))  # before the one that has the lease
    lease()
    os.unlink("/tmp/leased")
def codelease(): mappedlease(mmap.PROT_READ | mmap.PROT_EXEC)
def mappedlease(protection=mmap.PROT_READ):
    libc.open.restype = ctypes.c_int
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = libc.open(b"/tmp/leased", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 4096)
    kept.append(libc.mmap(None, ctypes.c_size_t(4096), protection, mmap.MAP_PRIVATE, fd, ctypes.c_long(0)))
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    os.close(fd)
def passed():
    ends = socket.socketpair()
    ends[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [2]))])
    kept.extend(ends)
def child():
    if os.fork() == 0: time.sleep(1000)
def handler(event, context):
    if "do" in event: globals()[event["do"]]()
    return "ready"
`;

  it.each([
    ["vfork", "one of its threads cannot be stopped: it waits in the kernel (for a child of vfork?)"],
    ["filter", "it installed a seccomp filter of its own"],
    ["reserve", "its memory is spread over"],
    ["fifo", "/tmp/fifo is neither a file, a directory nor a link"],
    ["sparse", "/tmp/sparse: more than 64 MiB of temporary files"],
    ["lease", "it holds a lease on /tmp/leased (descriptor "],
    ["pathlease", "there is a lease on /tmp/leased (deleted) (descriptor "],
    ["mappedlease", "there is a lease on /tmp/leased"],
    ["passed", "descriptors that were passed lie unread in a unix socket (descriptor "],
    ["child", "it has a live child process (python"],
  ])("(%s)", async (deed, why) => {
    await withInstance(bench.engine.boot(bench.python(HELPERS)), async (instance) => {
      expect(await ask(instance, { do: deed })).toBe("ready");
      for (let turn = 0; turn < 2; turn++) {
        const error = await refusal(instance.freeze());
        expect(error.code).toBe("FREEZE_REFUSED");
        expect(error.what).toBe('function "test-python" could not be frozen');
        expect(error.why).toContain(why);
        expect(await ask(instance)).toBe("ready");
      }
    });
  });

  it("and of its hibernation (a lease on a library): nobody waits until it is broken", async () => {
    await withInstance(bench.engine.boot(bench.python(HELPERS)), async (instance) => {
      expect(await ask(instance, { do: "codelease" })).toBe("ready");
      const error = await refusal(instance.hibernate());
      expect(error).toMatchObject({ code: "HIBERNATE_REFUSED", why: "there is a lease on /tmp/leased" });
      expect(await ask(instance)).toBe("ready");
    });
  });

  it("(killed by the function itself while it is being frozen): an error, not a wait", async () => {
    const source = `
import os, signal, threading, time
def later():
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
def handler(event, context):
    threading.Thread(target=later, daemon=True).start()
    return "ready"
`;
    await withInstance(bench.engine.boot(bench.python(source)), async (instance) => {
      // Whether the end comes before, during or after a freeze is a matter of luck; each must be told or succeed.
      const first = await instance.invoke("{}");
      if (first.functionError !== undefined) {
        expect(errorOf(first).errorMessage).toContain("Runtime exited with error: signal 9");
        return;
      }
      expect(returned(first)).toBe("ready");
      for (let turn = 0; turn < 20; turn++) {
        try {
          const image = await instance.freeze();
          await bench.engine.removeImage(image);
        } catch (error) {
          expect(isThawError(error)).toBe(true);
          break;
        }
      }
    });
  });
});

describe("what does not end is bounded", () => {
  const hooked = (hook: string): string =>
    `awslambda.snapshot.registerBeforeSnapshot(${hook});\nexports.handler = async (event) => { if (event.stop) setImmediate(() => process.kill(process.pid, "SIGSTOP")); return "ready"; };`;

  async function frozen(engine: Engine, source: string, event: object): Promise<[string, string | undefined]> {
    return await withInstance(engine.boot(bench.node(source)), async (instance) => {
      expect(await ask(instance, event)).toBe("ready");
      const pid = hostPid(instance);
      if ("stop" in event) await eventually(() => expect(statFields(pid)[0]).toBe("T"));
      const error = await refusal(instance.freeze());
      expect(instance.alive).toBe(false);
      return [error.code, error.why];
    });
  }

  it("(a load, a hook before the snapshot, a process that stopped itself): each fails after its time, and nothing stays", {
    timeout: 120_000,
  }, async () => {
    expect(bench.engine).toMatchObject({ graceMs: 30_000 });
    const engine = await openEngine({ dataDir: join(bench.root, "patience"), graceMs: 8_000 });
    try {
      const load = refusal(engine.boot(bench.node("console.log('about to hang'); while (true);")));
      const hooks = [
        frozen(engine, hooked("() => { for (;;); }"), {}),
        frozen(engine, hooked("() => new Promise(() => setInterval(() => {}, 1000))"), {}),
        frozen(engine, hooked("() => {}"), { stop: true }),
      ];
      const error = await load;
      expect([error.code, error.message]).toEqual([
        "INIT_FAILED",
        'function "test-node" did not finish loading. it took longer than 8 s. do less at load',
      ]);
      expect(error.details).toEqual({ code: "TIMEOUT", type: "Sandbox.Timedout", logs: "about to hang\n" });
      for (const hook of hooks)
        expect(await hook).toEqual(["FREEZE_REFUSED", "its before-snapshot hooks took longer than 8 s, and it was ended"]);
    } finally {
      await engine.close();
    }
  });

  it("(a process that stopped itself is frozen without hygiene): its clone runs", async () => {
    const source =
      "exports.handler = async (event) => { if (event.stop) setImmediate(() => process.kill(process.pid, 'SIGSTOP')); return 'ready'; };";
    await withInstance(bench.engine.boot(bench.node(source)), async (instance) => {
      expect(await ask(instance, { stop: true })).toBe("ready");
      const pid = hostPid(instance);
      await eventually(() => expect(statFields(pid)[0]).toBe("T"));
      const outcome = await instance.freeze({ hygiene: false }).catch((error: unknown) => error);
      if (isThawError(outcome)) expect(outcome.code).toBe("FREEZE_REFUSED");
      else await withInstance(bench.engine.thaw(outcome as Image), async (clone) => expect(await ask(clone)).toBe("ready"));
    });
  });
});
