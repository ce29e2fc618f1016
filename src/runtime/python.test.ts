import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { FunctionFrame, HeatMember, ThawHeader } from "./frames.js";
import { PlainRuntime, SOURCE_DIR } from "./testing.js";

const PYTHON = ["/usr/bin/python3.11", "/usr/bin/python3", "/usr/local/bin/python3"].find((path) => existsSync(path));
const THAW: ThawHeader = { id: "4d5c6c1e-4a0e-4a8c-9b5e-2f6f3c0a1b2d", entropy: "5a".repeat(32), pid: 7, generation: 0 };

let root: string;
const running: PlainRuntime[] = [];

beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), "runtime-python-"));
});
afterAll(() => rmSync(root, { recursive: true, force: true }));
afterEach(async () => {
  for (const runtime of running.splice(0)) await runtime.dispose();
});

function start(handler: string, files: Record<string, string>): PlainRuntime {
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(root, name)), { recursive: true });
    writeFileSync(join(root, name), content);
  }
  const runtime = new PlainRuntime({
    interpreter: PYTHON ?? "python3",
    flags: ["-s"],
    bootstrap: "python/bootstrap.py",
    taskRoot: root,
    handler,
  });
  running.push(runtime);
  return runtime;
}

async function ready(source: string): Promise<PlainRuntime> {
  const runtime = start("ready.handler", { "ready.py": source });
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

describe.skipIf(PYTHON === undefined)("loading a Python handler", () => {
  it.each<[string, string, Record<string, string>]>([
    ["a module", "plain.handler", { "plain.py": "def handler(e, c): return 'found'" }],
    ["a module in a folder", "folder/deep.handler", { "folder/deep.py": "def handler(e, c): return 'found'" }],
    ["a package", "pack.mod.handler", { "pack/__init__.py": "", "pack/mod.py": "handler = lambda e, c: 'found'" }],
    ["a module that has a name of ours", "bootstrap.handler", { "bootstrap.py": "def handler(e, c): return 'found'" }],
  ])("finds %s", async (_name, handler, files) => {
    const runtime = start(handler, files);
    expect((await runtime.next()).header.type).toBe("ready");
    expect(await value(runtime)).toBe("found");
    rmSync(join(root, "bootstrap.py"), { force: true });
  });

  it.each<[string, string, Record<string, string>, string, string]>([
    [
      "a missing module",
      "nowhere.handler",
      {},
      "Runtime.ImportModuleError",
      "Unable to import module 'nowhere': No module named 'nowhere'",
    ],
    [
      "a missing import",
      "lacks.handler",
      { "lacks.py": "import absent_package" },
      "Runtime.ImportModuleError",
      "Unable to import module 'lacks': No module named 'absent_package'",
    ],
    [
      "a missing function",
      "empty.handler",
      { "empty.py": "" },
      "Runtime.HandlerNotFound",
      "Handler 'handler' missing on module 'empty'",
    ],
    [
      "what cannot be called",
      "five.handler",
      { "five.py": "handler = 5" },
      "Runtime.HandlerNotFound",
      "Handler 'handler' on module 'five' is not callable",
    ],
    [
      "dots upwards",
      "../up.handler",
      {},
      "Runtime.MalformedHandlerName",
      "Bad handler '../up.handler': '..' is not allowed in it",
    ],
    ["no dot", "nodot", {}, "Runtime.MalformedHandlerName", "Bad handler 'nodot': it must look like module.function"],
    ["a built-in module", "sys.exit", {}, "Runtime.BuiltInModuleConflict", "Cannot use built-in module sys as a handler module"],
    [
      "a syntax error",
      "broken.handler",
      { "broken.py": "def handler(:" },
      "Runtime.UserCodeSyntaxError",
      "Syntax error in module 'broken'",
    ],
    ["an error of its own", "throws.handler", { "throws.py": "raise RuntimeError('no luck')" }, "RuntimeError", "no luck"],
  ])("reports %s", async (_name, handler, files, errorType, message) => {
    const runtime = start(handler, files);
    const frame = await runtime.next();
    expect(frame.header.type).toBe("initError");
    expect(json(frame).errorType).toBe(errorType);
    expect(json(frame).errorMessage).toContain(message);
    expect(await runtime.exited).toBe(1);
    expect(runtime.output).toContain(`[ERROR] ${errorType}: `);
  });

  it("does not take the function's files for modules that the runtime itself needs", async () => {
    const names = ["types", "json", "resource", "enum", "re", "operator", "snapshot_restore_py"];
    try {
      const files = Object.fromEntries(names.map((name) => [`${name}.py`, "raise RuntimeError('not the runtime\\'s')"]));
      const runtime = start("named.handler", { ...files, "named.py": "def handler(e, c): return 'found'" });
      expect((await runtime.next()).header.type).toBe("ready");
      expect(await value(runtime)).toBe("found");
    } finally {
      for (const name of names) rmSync(join(root, `${name}.py`), { force: true });
    }
  });

  it("finds a handler in the function's own resource.py, a name that the runtime alone has use for", async () => {
    try {
      const runtime = start("resource.handler", { "resource.py": "def handler(e, c): return [__name__, c.tenant_id]" });
      expect((await runtime.next()).header.type).toBe("ready");
      expect(await value(runtime)).toEqual(["resource", null]);
    } finally {
      rmSync(join(root, "resource.py"), { force: true });
    }
  });

  it("ends with the code that the module chose", async () => {
    const runtime = start("quits.handler", { "quits.py": "import sys; sys.exit(7)" });
    await expect(runtime.next()).rejects.toThrow("the runtime ended (7)");
  });
});

describe.skipIf(PYTHON === undefined)("a Python handler", () => {
  it("gets Lambda's context", async () => {
    const runtime = await ready(`
import os
def handler(event, c):
    c.log("logged\\n")
    return {**{k: getattr(c, k) for k in ("aws_request_id", "function_name", "function_version", "memory_limit_in_mb", "log_group_name", "log_stream_name", "invoked_function_arn")},
            "remaining": c.get_remaining_time_in_millis(), "custom": c.client_context and c.client_context.custom, "app": c.client_context and [c.client_context.client.app_title, c.client_context.client.installation_id], "identity": c.identity.cognito_identity_id, "trace": os.environ.get("_X_AMZN_TRACE_ID")}`);
    const deadlineMs = Date.now() + 60_000;
    const seen = await value(
      runtime,
      {},
      { deadlineMs, clientContext: '{"custom":{"a":1},"client":{"app_title":"t"}}', traceId: "Root=1-2-3" },
    );
    expect(seen).toMatchObject({
      app: ["t", null],
      aws_request_id: "request-1",
      function_name: "plain",
      function_version: "1",
      memory_limit_in_mb: "128",
      log_group_name: "/aws/lambda/plain",
      log_stream_name: "[1]",
      custom: { a: 1 },
      identity: null,
      trace: "Root=1-2-3",
    });
    expect(seen.remaining).toBeGreaterThanOrEqual(deadlineMs - Date.now() - 1);
    expect(seen.remaining).toBeLessThanOrEqual(60_000);
    expect((await value(runtime)).trace).toBe(null);
  });

  it.each<[string, string, unknown]>([
    ["None", "None", null],
    ["text beyond ASCII", "{'a': 'ü😀'}", { a: "ü😀" }],
    ["half a surrogate pair", "'\\ud83d'", "\ud83d"],
    ["decimals", "[D('19.90'), D('3'), D('-0.5'), {'n': D('1E+2')}]", [19.9, 3, -0.5, { n: 100 }]],
    ["a decimal beside half a surrogate pair", "[D('1.5'), '\\ud83d', D('2')]", [1.5, "\ud83d", 2]],
    ["bytes in it, which are text", "{'a': 'ü'.encode()}", { a: "ü" }],
    ["bytes, as they are", "b'{\"a\": 1}'", { a: 1 }],
  ])("answers with %s", async (_name, expression, expected) => {
    const source = `from decimal import Decimal as D\ndef handler(e, c): return ${expression}`;
    expect(await value(await ready(source))).toEqual(expected);
  });

  it("logs what it is told to, with level, time and request, as in Lambda", async () => {
    const runtime = await ready(
      "import logging\nlog = logging.getLogger()\nlog.setLevel(logging.INFO)\nlog.info('loading')\ndef handler(e, c):\n    log.debug('no')\n    log.info('n is %d', 5)\n    logging.getLogger('lib').error('bad')\n    return len(log.handlers)",
    );
    expect(await value(runtime)).toBe(1);
    await value(runtime, {}, { requestId: "request-2" });
    await runtime.dispose();
    const time = "\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}Z";
    const lines = [
      "\\[INFO\\]\t@\t\tloading",
      ...["request-1", "request-2"].flatMap((id) => [`\\[INFO\\]\t@\t${id}\tn is 5`, `\\[ERROR\\]\t@\t${id}\tbad`]),
    ];
    expect(runtime.output).toMatch(new RegExp(`^${lines.join("\n").replaceAll("@", time)}\n$`));
  });

  it("ends each record that it logs with its line, also one with a traceback", async () => {
    const runtime = await ready(
      "import logging\nlog = logging.getLogger()\ndef handler(e, c):\n    try: {}['k']\n    except KeyError: log.exception('lookup failed')\n    log.warning('next', stack_info=True)\n    print('printed')",
    );
    await value(runtime);
    await runtime.dispose();
    expect(runtime.output).toMatch(
      /\tlookup failed\nTraceback .*\nKeyError: 'k'\n\[WARNING\]\t[^\n]*\tnext\nStack .*stack_info=True\)\nprinted\n$/s,
    );
  });

  it("may have a logging.py of its own", async () => {
    const runtime = start("ownlog/app.handler", {
      "ownlog/__init__.py": "",
      "ownlog/app.py":
        "import sys, os\nsys.path.insert(0, os.path.dirname(__file__))\nimport logging\ndef handler(e, c): return logging.mine",
      "ownlog/logging.py": "mine = 'mine'",
    });
    expect((await runtime.next()).header.type).toBe("ready");
    expect(await value(runtime)).toBe("mine");
  });

  it("answers with each digit of a decimal, as Lambda does", async () => {
    const digits = ["12345678901234567890", "12345678901234567890.123", "0.1234567890123456789", "1.10", "-0.50", "1E+400"];
    const runtime = await ready(
      "from decimal import Decimal\ndef handler(e, c): return {'all': [Decimal(each) for each in e], 'text': 'ü'}",
    );
    for (const each of [digits, digits.slice(1)])
      expect((await runtime.invoke(JSON.stringify(each))).body.toString()).toBe(`{"all": [${each.join(", ")}], "text": "ü"}`);
  });

  it("finds all members of its context in the instance itself, and may set them", async () => {
    const runtime = await ready(
      "def handler(e, c):\n    c.identity.cognito_identity_id = 'mine'\n    return [sorted(k for k in vars(c) if k[0] != '_'), c.identity.cognito_identity_id]",
    );
    const members =
      "aws_request_id client_context function_name function_version identity invoked_function_arn log_group_name log_stream_name memory_limit_in_mb tenant_id";
    expect(await value(runtime)).toEqual([members.split(" "), "mine"]);
  });

  it("is not called with an event that is nested too deeply to be read", async () => {
    const runtime = await ready("def handler(e, c): return 'called'");
    const frame = await runtime.invoke("[".repeat(200_000));
    expect(json(frame)).toMatchObject({ errorType: "Runtime.UnmarshalError" });
    expect(await value(runtime)).toBe("called");
  });

  it("is told its error though it closed its stderr", async () => {
    const runtime = await ready("import os\ndef handler(e, c):\n    os.close(2)\n    raise ValueError('quiet')");
    expect(json(await runtime.invoke("{}")).errorMessage).toBe("quiet");
  });

  it.each<[string, string, string, string]>([
    ["an exception", "raise ValueError('bad')", "ValueError", "bad"],
    ["an exception that has no text", "raise Mute()", "Mute", "the exception's text cannot be shown"],
    ["an exception whose text would end it", "raise Deaf()", "Deaf", "the exception's text cannot be shown"],
    [
      "a set, which JSON cannot hold",
      "return {1}",
      "Runtime.MarshalError",
      "Unable to marshal response: Object of type set is not JSON serializable",
    ],
    [
      "a circular list",
      "l = []; l.append(l); return l",
      "Runtime.MarshalError",
      "Unable to marshal response: Circular reference detected",
    ],
    [
      "NaN",
      "return float('nan')",
      "Runtime.MarshalError",
      "Unable to marshal response: Out of range float values are not JSON compliant",
    ],
    [
      "a decimal that is no number",
      "return __import__('decimal').Decimal('NaN')",
      "Runtime.MarshalError",
      "Unable to marshal response: Out of range float values are not JSON compliant",
    ],
    ["bytes that are no text", "return [b'\\xff']", "Runtime.MarshalError", "Unable to marshal response: 'utf-8' codec"],
    ["endless recursion", "return (lambda f: f(f))(lambda f: f(f))", "RecursionError", "maximum recursion depth exceeded"],
  ])("fails with %s and goes on", async (_name, body, errorType, message) => {
    const runtime = await ready(
      `class Mute(Exception):\n    def __str__(self): raise KeyError()\nclass Deaf(Exception):\n    def __str__(self): raise SystemExit(3)\ndef handler(e, c):\n    if e.get("fine"): return "fine"\n    ${body}`,
    );
    const frame = await runtime.invoke("{}");
    expect(frame.header.type).toBe("error");
    expect(json(frame)).toMatchObject({ errorType, requestId: "request-1" });
    expect(json(frame).errorMessage).toContain(message);
    expect(await value(runtime, { fine: true })).toBe("fine");
  });

  it("shows where an error came from, without frames of the runtime", async () => {
    const runtime = await ready("def handler(e, c):\n    return deep()\ndef deep():\n    raise ValueError('here')\n");
    const trace = (json(await runtime.invoke("{}")) as { stackTrace: string[] }).stackTrace;
    // Newer versions mark the place only where that is not the whole line.
    expect(trace.map((frame) => frame.replace(/^ +\^+\n/m, ""))).toEqual([
      `  File "${root}/ready.py", line 2, in handler\n    return deep()\n`,
      `  File "${root}/ready.py", line 4, in deep\n    raise ValueError('here')\n`,
    ]);
  });

  it("ends without a word when it exits", async () => {
    const runtime = await ready("import sys\ndef handler(e, c): sys.exit(3)");
    await expect(runtime.invoke("{}")).rejects.toThrow("the runtime ended (3)");
  });

  it("answers once when it forked a child that returns as well", async () => {
    const runtime = await ready(
      "import os\ndef handler(e, c):\n    pid = os.fork()\n    if pid: os.waitpid(pid, 0)\n    return pid",
    );
    expect(await value(runtime)).toBeGreaterThan(0);
    expect(await value(runtime)).toBeGreaterThan(0);
  });

  it.each(["fork", "spawn", "forkserver"])("starts processes of multiprocessing by %s", async (method) => {
    const runtime = await ready(
      // What the fork server leaves in its folder goes with the function's.
      `import multiprocessing, tempfile\ntempfile.tempdir = ${JSON.stringify(root)}\ndef work(end): end.send('worked')\ndef handler(e, c):\n    m = multiprocessing.get_context('${method}')\n    ours, theirs = m.Pipe()\n    p = m.Process(target=work, args=(theirs,))\n    p.start()\n    theirs.close()\n    said = ours.recv() if ours.poll(50) else None\n    p.join()\n    return [said, p.exitcode]`,
    );
    expect(await value(runtime)).toEqual(["worked", 0]);
  });

  it("is told of a reply that contains itself or cannot be written, and may give what was in it afterwards", async () => {
    const runtime = await ready(
      "inner = [1]\nround = [inner]\nround.append(round)\ndef handler(e, c): return {'round': round, 'odd': [inner, {1}], 'deep': [inner]}[e]",
    );
    for (const [event, message] of [
      ["round", "Circular reference detected"],
      ["odd", "Object of type set is not JSON serializable"],
    ]) {
      const frame = await runtime.invoke(JSON.stringify(event));
      expect(json(frame)).toMatchObject({
        errorType: "Runtime.MarshalError",
        errorMessage: `Unable to marshal response: ${message}`,
      });
      expect(await value(runtime, "deep")).toEqual([[1]]);
    }
  });

  it("gets any JSON as its event, white space around it included, and names the place of a mistake", async () => {
    const runtime = await ready("def handler(e, c): return [e]");
    for (const text of [' \n{"a": [1.5, null, "\\u00e9\ud83d\ude00"]}\r\n', "3", '"text"', "[[], {}]", "true", ""])
      expect(json(await runtime.invoke(text))).toEqual([text === "" ? {} : JSON.parse(text)]);
    for (const [text, told] of [
      ['{"a": 1} x', "Extra data: line 1 column 10 (char 9)"],
      ["{'a': 1}", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"],
      [" ", "Expecting value: line 1 column 2 (char 1)"],
    ] as const)
      expect(json(await runtime.invoke(text)).errorMessage).toBe(`Unable to unmarshal input: ${told}`);
  });

  it("is not run, nor are streams of the function's own flushed, where the runtime rehearses before a freeze", async () => {
    const runtime = await ready(
      [
        "import os",
        "calls = []",
        "def handler(e, c):",
        "    if e == 'told': return calls",
        "    calls.append(e)",
        "    return os.environ.get('_X_AMZN_TRACE_ID')",
      ].join("\n"),
    );
    expect(await value(runtime, "first", { traceId: "Root=1" })).toBe("Root=1");
    runtime.send({ type: "prepare" });
    expect((await runtime.next()).header.type).toBe("prepared");
    expect(await value(runtime, "second")).toBe(null);
    expect(await value(runtime, "told")).toEqual(["first", "second"]);
    expect(runtime.output).toBe("");

    const other = await ready(
      "import sys\ncalls = []\nclass Stream:\n    def write(self, text): pass\n    def flush(self): calls.append(1)\nsys.stdout = Stream()\ndef handler(e, c): return len(calls)",
    );
    const before = await value(other);
    other.send({ type: "prepare" });
    expect((await other.next()).header.type).toBe("prepared");
    // By the answers to the request and to the preparing, no more.
    expect(await value(other)).toBe(before + 2);
  });

  it("is told about an event that is not JSON", async () => {
    const runtime = await ready("def handler(e, c): return e");
    expect(json(await runtime.invoke("{no")).errorType).toBe("Runtime.UnmarshalError");
    expect(await value(runtime, [1])).toEqual([1]);
    expect((await runtime.invoke("")).body.toString()).toBe("{}");
  });

  it.each([1_000_000, 6_000_000])("carries %d bytes each way", async (size) => {
    const runtime = await ready("def handler(e, c): return e");
    const text = "é".repeat(size / 2);
    expect((await value(runtime, text)) === text).toBe(true);
    expect(await value(runtime, "small")).toBe("small");
  });

  it("is told that its reply is too large, and goes on", async () => {
    const runtime = await ready("def handler(n, c): return 'x' * n");
    const frame = await runtime.invoke("6300000");
    expect(frame.header).toMatchObject({ type: "error", platformError: "RESPONSE_TOO_LARGE" });
    expect(await value(runtime, 2)).toBe("xx");
  });

  it("has all of its output in the pipe before the answer", async () => {
    const runtime = await ready(
      "import sys\nnoise = 'x' * 100\ndef handler(e, c):\n    for _ in range(3000): print(noise)\n    sys.stdout.write('no line end')\n    return 1",
    );
    await value(runtime);
    await runtime.dispose();
    expect(runtime.output).toHaveLength(3000 * 101 + "no line end".length);
  });

  it("keeps answering when it replaced what the runtime stands on", async () => {
    const runtime = await ready(
      "import json, os, time\njson.dumps = lambda *a, **k: b'no'\njson.loads = None\nos.write = os.readv = None\ntime.perf_counter = lambda: -1.0\ndef handler(e, c):\n    if e['a'] == 0: raise ValueError('zero')\n    return e['a']",
    );
    expect(await value(runtime, { a: 3 })).toBe(3);
    expect(json(await runtime.invoke('{"a":0}')).errorMessage).toBe("zero");
    expect(await value(runtime, { a: 4 })).toBe(4);
  });

  it("ends when the server is gone", async () => {
    const runtime = await ready(
      "import threading, time\nthreading.Thread(target=lambda: time.sleep(60)).start()\ndef handler(e, c): return 1",
    );
    await value(runtime);
    runtime.process.stdio[3]?.destroy();
    expect(await runtime.exited).toBe(0);
  });
});

describe.skipIf(PYTHON === undefined)("snapshot hooks in Python", () => {
  const HOOKS = `
from snapshot_restore_py import register_before_snapshot, register_after_restore
order = []
register_before_snapshot(order.append, "before 1")
@register_before_snapshot
def second(): order.append("before 2")
register_after_restore(order.append, "after 1")
@register_after_restore
def third(): order.append("after 2")
def handler(e, c):
    seen = list(order); order.clear(); return seen`;

  it("run before-hooks last in, first out, and after-hooks first in, first out", async () => {
    const runtime = await ready(HOOKS);
    runtime.send({ type: "prepare" });
    expect((await runtime.next()).header.type).toBe("prepared");
    expect(await value(runtime)).toEqual(["before 2", "before 1"]);
    expect(await value(runtime, {}, { thaw: THAW })).toEqual(["after 1", "after 2"]);
    expect(await value(runtime)).toEqual([]);
  });

  it("are not run, and nothing that was drawn is forgotten, where the runtime rehearses before a freeze", async () => {
    const runtime = await ready(
      [
        "import random, snapshot_restore_py as s",
        "seen = []",
        "s.register_after_restore(lambda: seen.append('after'))",
        "chosen = random.Random(42)",
        "def handler(e, c): return [seen, chosen.random() if e == 'draw' else None]",
      ].join("\n"),
    );
    runtime.send({ type: "prepare" });
    expect((await runtime.next()).header.type).toBe("prepared");
    expect(await value(runtime, "draw")).toEqual([[], 0.6394267984578837]);
    expect(await value(runtime, {}, { thaw: THAW })).toEqual([["after"], null]);
  });

  it("report a before-hook that raises, and serve on; an after-hook that raises ends the instance", async () => {
    const runtime = await ready(
      "from snapshot_restore_py import *\ndef no(): raise ValueError('not now')\nimport snapshot_restore_py as s\ns.register_before_snapshot(no); s.register_after_restore(no)\ndef handler(e, c): return 1",
    );
    runtime.send({ type: "prepare" });
    const frame = await runtime.next();
    expect(frame.header.type).toBe("prepareError");
    expect(json(frame).errorMessage).toBe("not now");
    expect(await value(runtime)).toBe(1);
    expect(json(await runtime.invoke("{}", { thaw: THAW }))).toMatchObject({
      errorType: "Runtime.AfterRestoreError",
      errorMessage: "ValueError: not now",
    });
    expect(await runtime.exited).toBe(1);
  });

  it("say which code is specialised, where the interpreter does that; methods and inner functions included", async () => {
    const runtime = await ready(`
class Thing:
    def __init__(self): self.x = 1
    def grown(self): return self.x + 1
def never(n): return sum(i + n for i in range(n))
def handler(e, c):
    def add(a, b): return a + b
    total = 0
    for _ in range(50): total = add(total, Thing().grown())
    return total`);
    const prepared = async (): Promise<HeatMember | undefined> => {
      runtime.send({ type: "prepare", heat: true });
      const { header } = await runtime.next();
      return header.type === "prepared" ? header.heat : undefined;
    };
    const asked = spawnSync(PYTHON ?? "python3", ["-c", "import sys; print(sys.version_info >= (3, 11))"], { encoding: "utf8" });
    const specialises = asked.stdout.trim() === "True";
    const cold = await prepared();
    // __init__, grown, never, its generator, handler, add.
    expect(cold).toEqual(specialises ? { functions: 6, tiers: { plain: 6, specialised: 0 } } : undefined);
    for (let i = 0; i < 50; i++) expect(await value(runtime)).toBe(100);
    // __init__, grown, handler, add.
    expect(await prepared()).toEqual(specialises ? { functions: 6, tiers: { plain: 2, specialised: 4 } } : undefined);
    expect(await prepared()).toEqual(specialises ? { functions: 6, tiers: { plain: 2, specialised: 4 } } : undefined);
  });

  it("leave a thread without a running loop when its loop ended, also where somebody replaced how that is noted", async () => {
    const runtime = await ready(
      [
        "import asyncio, threading",
        "from asyncio import events",
        "threading.Thread(target=asyncio.new_event_loop().run_forever, daemon=True).start()",
        "def handler(e, c):",
        "    names = ['_set_running_loop', '_get_running_loop', 'get_running_loop']",
        "    own = {name: getattr(events, name) for name in names}",
        "    for name in names: setattr(events, name, getattr(events, '_py_' + name))",
        "    asyncio.new_event_loop().run_until_complete(asyncio.sleep(0))",
        "    for name in names: setattr(events, name, own[name])",
        "    return events._get_running_loop() is None",
      ].join("\n"),
    );
    runtime.send({ type: "prepare", seeds: true });
    expect((await runtime.next()).header.type).toBe("prepared");
    expect(await value(runtime)).toBe(true);
  });

  it("collect garbage, and keep the survivors out of later collections", async () => {
    const runtime = await ready(
      "import gc\nclass C: alive = 0\nclass N:\n    def __init__(self): self.me = self; C.alive += 1\n    def __del__(self): C.alive -= 1\ngc.disable()\nfor _ in range(10): N()\ndef handler(e, c): return [C.alive, gc.get_freeze_count()]",
    );
    expect(await value(runtime)).toEqual([10, 0]);
    for (const _ of [1, 2]) {
      runtime.send({ type: "prepare" });
      expect((await runtime.next()).header.type).toBe("prepared");
      const [alive, frozen] = await value(runtime);
      expect(alive).toBe(0);
      expect(frozen).toBeGreaterThan(1000);
    }
  });
});

describe.skipIf(PYTHON === undefined)("memory of Python", () => {
  /** How far into their pools the next objects of each size lie, in pages; before, and behind settling. */
  const script = (before: string) => `
import sys
sys.path.insert(0, ${JSON.stringify(`${SOURCE_DIR}python`)})
from thaw_runtime import pools
${before}
pools.settle()
print([id(bytes(size - 33)) % pools._POOL_BYTES // 4096 for size in range(48, 513, 16)])
`;
  const pagesOf = (before: string, env: NodeJS.ProcessEnv = {}) => {
    const { stdout, stderr } = spawnSync(PYTHON ?? "python3", ["-s", "-B", "-c", script(before)], {
      encoding: "utf8",
      env: { ...process.env, ...env },
    });
    expect(stderr).toBe("");
    return new Set<number>(JSON.parse(stdout));
  };

  it("goes on at the beginning of pools once it is settled, whatever was freed before, and again", () => {
    const holes =
      "held = [bytes(size - 33) for size in range(48, 513, 16) for _ in range(1000)]\nheld = held[::7] + held[-1:]\nheld = held[:5]";
    expect(pagesOf("")).toEqual(new Set([0]));
    expect(pagesOf(`${holes}\npools.settle()\nmore = [bytes(15) for _ in range(99)]`)).toEqual(new Set([0]));
  });

  it("is left alone where more is free than filling is worth, or another allocator is at work", () => {
    // 10,000 holes of 336 bytes are not filled, and what was made to fill them is gone.
    const many = "held = [bytes(300) for _ in range(20000)]; held = held[::2]";
    const bounded = "pools.settle()\nassert not [one for one in pools._filling if type(one) is bytes and len(one) == 303]";
    pagesOf(`${many}\n${bounded}`);
    expect(pagesOf("", { PYTHONMALLOC: "malloc" }).size).toBeGreaterThan(1);
  });
});

describe.skipIf(PYTHON === undefined)("uniqueness after a thaw of Python", () => {
  /** Runs a script that prints objects, one JSON line each. */
  function linesOf(script: string): Record<string, unknown>[] {
    const { stdout, stderr } = spawnSync(PYTHON ?? "python3", ["-s", "-B", "-c", script], { encoding: "utf8" });
    if (stdout === "") throw new Error(stderr);
    return stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  }

  /** Forks: two processes in the very same state, as two thaws are. Prints what each draws, one JSON line each. */
  function forks(renew: string): Record<string, unknown>[] {
    const script = `
import sys, os, json
sys.path.insert(0, ${JSON.stringify(`${SOURCE_DIR}python`)})
from thaw_runtime import unique
unique.install()
import random, uuid, threading, secrets
class Mine(random.Random): pass
own, mine, chosen, gone = random.Random(), Mine(), random.Random(42), random.Random()
random.seed(7); random.gauss(0, 1); uuid.uuid1(); del gone
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        ${renew}
        print(json.dumps({"module": random.random(), "gauss": random.gauss(0, 1), "own": own.random(), "mine": mine.getrandbits(60), "chosen": chosen.random(),
            "uuid1node": uuid.uuid1().node, "uuid4": str(uuid.uuid4()), "secret": secrets.token_hex(8), "thread": threading.main_thread().native_id == threading.get_native_id(), "tracked": len(unique._generators)}), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
`;
    return linesOf(script);
  }

  it("is needed: without it two clones draw the same", () => {
    const [a, b] = forks("pass");
    for (const name of ["own", "mine", "chosen"]) expect(a?.[name]).toBe(b?.[name]);
  });

  it("makes two clones of one state differ, even with the same entropy from the server", () => {
    const [a, b] = forks(`unique.renew({"id": "", "entropy": "5a" * 32, "pid": 1, "generation": 0})`);
    for (const name of ["module", "gauss", "own", "mine", "uuid1node", "uuid4", "secret"])
      expect(a?.[name], name).not.toBe(b?.[name]);
    expect([a?.thread, b?.thread]).toEqual([true, true]);
  });

  it("leaves the sequence of a seed that the user chose, and forgets generators that are gone", () => {
    const [a, b] = forks(`unique.renew({"id": "", "entropy": "5a" * 32, "pid": 1, "generation": 0})`);
    expect(a?.chosen).toBe(b?.chosen);
    expect(a?.tracked).toBe(3 + 0);
  });

  it("leaves a state that the user set, and renews who has one of a generator that is renewed", () => {
    const [a, b] = linesOf(`
import sys, os, json, copy, pickle
sys.path.insert(0, ${JSON.stringify(`${SOURCE_DIR}python`)})
from thaw_runtime import unique
unique.install()
import random
class Mine(random.Random): pass
stored = pickle.dumps(Mine(42))
put_back, drawn = random.Random(), random.Random()
saved = put_back.getstate(); put_back.seed(42); put_back.random(); put_back.setstate(saved)
as_module = random.Random(42); as_module.setstate(random.getstate())
kept = {"unpickled": pickle.loads(stored), "copied": copy.copy(random.Random(42)), "set": random.Random()}
kept["set"].setstate(random.Random(7).getstate())
renewed = {"putBack": put_back, "asModule": as_module, "copyOfDrawn": copy.deepcopy(drawn), "pickledDrawn": pickle.loads(pickle.dumps(drawn))}
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        unique.renew({"id": "", "entropy": "5a" * 32, "pid": 1, "generation": 0})
        print(json.dumps({name: one.random() for name, one in {**kept, **renewed}.items()}), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
`);
    for (const name of ["unpickled", "copied", "set"]) expect(a?.[name], name).toBe(b?.[name]);
    for (const name of ["putBack", "asModule", "copyOfDrawn", "pickledDrawn"]) expect(a?.[name], name).not.toBe(b?.[name]);
  });

  /** As {@link forks}, with numpy: the real one where THAW_TEST_NUMPY names the directory that has it, else a model of what we rely on. */
  function numpyForks(renew: string): Record<string, unknown>[] {
    const script = `
import sys, os, json, gc
sys.path[:0] = ${JSON.stringify([`${SOURCE_DIR}python`, process.env["THAW_TEST_NUMPY"] ?? join(import.meta.dirname, "../../test/fixtures/numpy")])}
from thaw_runtime import unique
unique.install()
import copy, numpy, pickle
random = numpy.random
unneeded = unique._numpy_draws == unique._numpy_seen
own, chosen, state, seeded = random.default_rng(), random.default_rng(42), random.RandomState(), random.RandomState(42)
sequence, counted = random.SeedSequence(), random.SeedSequence(42)
for one in (random, state, seeded): one.standard_normal()
copied, chosen_copied = copy.deepcopy(own), copy.deepcopy(chosen)
loaded, chosen_loaded = pickle.loads(pickle.dumps(random.default_rng())), pickle.loads(pickle.dumps(chosen))
given, restored = random.default_rng(42), random.default_rng()
given.bit_generator.state, restored.bit_generator.state = random.default_rng().bit_generator.state, random.default_rng(42).bit_generator.state
gc.freeze()
unique.remember()
remembered = gc.get_freeze_count() > 0
late = random.default_rng(sequence.spawn(1)[0])
unique.remember()
def child(of): return random.default_rng(of.spawn(1)[0]).random()
pickled = b"thaw_runtime" in pickle.dumps(own.bit_generator._seed_seq.entropy)
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        ${renew}
        print(json.dumps({"module": random.random_sample(), "moduleNormal": random.standard_normal(), "own": own.random(), "state": state.random_sample(), "stateNormal": state.standard_normal(),
            "spawned": child(sequence), "ownSpawned": child(own.bit_generator._seed_seq), "late": late.random(), "lateSpawned": child(late.bit_generator._seed_seq),
            "copied": copied.random(), "chosenCopied": chosen_copied.random(), "loaded": loaded.random(), "chosenLoaded": chosen_loaded.random(),
            "given": given.random(), "restored": restored.random(),
            "chosen": chosen.random(), "seeded": seeded.random_sample(), "counted": child(counted), "unneeded": unneeded, "remembered": remembered, "pickled": pickled}), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
`;
    return linesOf(script);
  }
  const DRAWN = [
    "module",
    "moduleNormal",
    "own",
    "state",
    "stateNormal",
    "spawned",
    "ownSpawned",
    "late",
    "lateSpawned",
    "copied",
    "loaded",
    "given",
  ];

  it("is needed for numpy, too", () => {
    const [a, b] = numpyForks("pass");
    for (const name of DRAWN) expect(a?.[name], name).toBe(b?.[name]);
  });

  it("renews what numpy seeded from the system, and leaves what the user seeded", () => {
    const [a, b] = numpyForks(`unique.renew({"id": "", "entropy": "5a" * 32, "pid": 1, "generation": 0})`);
    for (const name of DRAWN) expect(a?.[name], name).not.toBe(b?.[name]);
    const kept = (of?: Record<string, unknown>): unknown[] => [
      of?.chosen,
      of?.seeded,
      of?.counted,
      of?.chosenCopied,
      of?.chosenLoaded,
      of?.restored,
    ];
    expect(kept(a)).toEqual(kept(b));
    // Its import alone is no reason to look through the heap; what was put aside there stays so; and what others unpickle is a plain number.
    expect([a?.unneeded, a?.remembered, a?.pickled]).toEqual([true, true, false]);
  });

  /** As {@link forks}, with modules that have generators of their own: models, or the real ones where THAW_TEST_NATIVE names a directory that has them. */
  function nativeForks(before: string): Record<string, unknown>[] {
    const script = `
import sys, os, json
sys.path[:0] = ${JSON.stringify([`${SOURCE_DIR}python`, process.env["THAW_TEST_NATIVE"] ?? join(import.meta.dirname, "../../test/fixtures/native-generators")])}
from thaw_runtime import unique
unique.install()
import uuid_utils, polars, numba
if hasattr(numba, "drawn"):
    drawn = numba.drawn
else:
    import random, numpy
    drawn = numba.njit(lambda: (random.random(), numpy.random.random()))
shuffled = getattr(polars, "shuffled", None) or (lambda: polars.Series(range(1000)).shuffle().to_list())
uuid_utils.uuid4(), shuffled(), drawn()
${before}
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        unique.renew({"id": "", "entropy": "5a" * 32, "pid": 1, "generation": 0})
        print(json.dumps({"uuid": str(uuid_utils.uuid4()), "shuffled": shuffled(), "one": drawn()[0], "other": drawn()[1]}), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
`;
    return linesOf(script);
  }

  it("renews what native modules can be given a seed for, and leaves what the user seeded", () => {
    const [a, b] = nativeForks("pass");
    for (const name of ["uuid", "shuffled", "one", "other"]) expect(a?.[name], name).not.toEqual(b?.[name]);
    const [c, d] = nativeForks("polars.set_random_seed(42)");
    expect(c?.uuid).not.toBe(d?.uuid);
    expect(c?.shuffled).toEqual(d?.shuffled);
  });

  it("also reaches what was looked for before it was imported", async () => {
    const runtime = await ready(
      "import importlib.util\nimportlib.util.find_spec('random')\nimport random\nstate = random.getstate()\ndef handler(e, c): return random.getstate() != state",
    );
    expect(await value(runtime, {}, { thaw: THAW })).toBe(true);
  });

  it("reaches other interpreters of the process, and leaves those alone that run", async () => {
    const runtime = await ready(`
import os, threading
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
one, busy = interpreters.create(), interpreters.create()
wait, go_on = os.pipe()
threading.Thread(target=lambda: interpreters.run_string(busy, f"import os; os.read({wait}, 1)")).start()
def handler(event, context):
    if event == "end":
        os.write(go_on, b"x")
    reading, writing = os.pipe()
    interpreters.run_string(one, f"import os, random, uuid; os.write({writing}, repr([hash(random.getstate()), uuid.uuid1().node]).encode())")
    return eval(os.read(reading, 4096))`);
    const before = await value(runtime);
    const after = await value(runtime, "end", { thaw: THAW });
    for (const index of [0, 1]) expect(after[index]).not.toBe(before[index]);
  });

  it("is all that a rehearsal does: neither after-hooks nor the handler run", async () => {
    const runtime = await ready(`
import random
from snapshot_restore_py import register_after_restore
register_after_restore(lambda: print("hook"))
def handler(e, c): print("handler")`);
    expect(await value(runtime, { a: 1 }, { thaw: THAW, rehearsal: true })).toEqual({ a: 1 });
    await expect.poll(() => runtime.output).toBe("rehearsal\n");
  });

  it("happens before after-hooks", async () => {
    const runtime = await ready(`
import random
from snapshot_restore_py import register_after_restore
seen = []
state = random.getstate()
register_after_restore(lambda: seen.append(random.getstate() != state))
def handler(e, c): return seen`);
    expect(await value(runtime, {}, { thaw: THAW })).toEqual([true]);
  });
});
