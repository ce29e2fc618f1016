/** The real server over HTTP: what is invoked, how it says it started, what it refuses and in which words. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { beforeAll, describe, expect, it } from "vitest";
import type { ImageView } from "../src/gateway/index.js";
import { descendants } from "./support/processes.js";
import { type Files, HOLD, type Reply, TestServer, temporaryDir, useServers } from "./support/server.js";
import { until } from "./support/wait.js";

/** Does what the event says. */
const NODE: Files = {
  "index.js": `
let count = 0;
const held = [];
exports.handler = async (event) => {
  while (require("fs").existsSync("${HOLD}")) await new Promise((resolve) => setTimeout(resolve, 20));
  if (event.spin) for (;;);
  if (event.fill) for (;;) held.push(Buffer.alloc(4 << 20, 1));
  if (event.log) console.log(event.log);
  if (event.fail) throw new RangeError(event.fail);
  if (event.exit !== undefined) process.exit(event.exit);
  return { who: process.env.WHO, count: ++count, tag: event.tag };
};`,
};

const PYTHON: Files = {
  "app.py": `
import os, time
count = 0
def handler(event, context):
    global count
    while os.path.exists("${HOLD}"): time.sleep(0.02)
    if "sleep" in event: time.sleep(event["sleep"])
    if "log" in event: print(event["log"])
    if "fail" in event: raise ValueError(event["fail"])
    if "fill" in event:
        held = []
        while True: held.append(bytearray(b"x" * (4 << 20)))
    count += 1
    return {"who": os.environ.get("WHO"), "count": count, "tag": event.get("tag")}
`,
};

const LANGUAGES = [
  { language: "node", files: NODE, settings: { memory: "256" }, error: "RangeError" },
  { language: "python", files: PYTHON, settings: { handler: "app.handler", memory: "256" }, error: "ValueError" },
] as const;

/** Of an error reply: status, exception and what X-Thaw-Error says. */
function refusal(reply: Reply): { status: number; type: string | null; code: string; text: string } {
  const error = JSON.parse(reply.headers.get("x-thaw-error") ?? "{}") as { code: string; what: string; why: string; fix: string };
  const text = [error.what, error.why, error.fix].join(" | ");
  return { status: reply.status, type: reply.headers.get("x-amzn-errortype"), code: error.code, text };
}

useServers();

describe("a server", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start(temporaryDir("server"), { args: ["--max-instances", "64"] });
    for (const { language, files, settings } of LANGUAGES)
      await server.deployReady(language, files, { ...settings, env: `WHO=${language}` });
  });

  describe.each(LANGUAGES)("with a $language function", ({ language, error }) => {
    it("answers, and says version, request and start", async () => {
      const reply = await server.invoke(language, { tag: "ü" });
      expect(reply.status).toBe(200);
      expect(reply.json).toEqual({ who: language, count: 1, tag: "ü" });
      expect(reply.headers.get("x-amz-executed-version")).toBe("$LATEST");
      expect(reply.headers.get("x-amzn-requestid")).toMatch(/^[0-9a-f-]{36}$/);
      expect(reply.headers.get("content-type")).toBe("application/json");
      expect(reply.start).toMatchObject({ kind: "thaw", loader: "splice", generation: 0, us: expect.any(Number) });
      const again = await server.invoke(language);
      expect(again.json.count).toBe(2);
      expect(again.start).toEqual({ kind: "reuse", generation: 0, heat: 0, us: 0 });
    });

    it("takes an empty body as {}, and a qualifier or an ARN for its name", async () => {
      const arn = `arn:aws:lambda:us-east-1:000000000000:function:${language}`;
      for (const name of [`${language}:$LATEST`, arn, `${arn}:$LATEST`]) {
        expect((await server.invoke(name, "")).json.who).toBe(language);
      }
    });

    it("returns the end of the log with Tail", async () => {
      const reply = await server.invoke(language, { log: `words of ${language}` }, { "x-amz-log-type": "Tail" });
      const log = Buffer.from(reply.headers.get("x-amz-log-result") ?? "", "base64").toString();
      const id = reply.headers.get("x-amzn-requestid");
      expect(log).toMatch(new RegExp(`^START RequestId: ${id} Version: \\$LATEST\nwords of ${language}\nEND RequestId: ${id}\n`));
      expect(log).toMatch(
        /\nREPORT RequestId: \S+\tDuration: [\d.]+ ms\tBilled Duration: \d+ ms\tMemory Size: 256 MB\tMax Memory Used: \d+ MB/,
      );
      expect((await server.invoke(language)).headers.get("x-amz-log-result")).toBeNull();
    });

    it("answers a failing handler with 200, the function's error and its type", async () => {
      const reply = await server.invoke(language, { fail: "no such order" });
      expect(reply.status).toBe(200);
      expect(reply.headers.get("x-amz-function-error")).toBe("Unhandled");
      expect(reply.json).toMatchObject({ errorType: error, errorMessage: "no such order" });
      expect((await server.invoke(language)).json.who).toBe(language);
    });

    it("gives every demanded kind of start, and no other", async () => {
      const kinds: readonly (readonly [string, object])[] = [
        ["boot", { kind: "boot" }],
        ["boot;husk=fresh", { kind: "boot" }],
        ["thaw", { kind: "thaw", loader: "splice", generation: 0 }],
        ["thaw;loader=lazy", { kind: "thaw", loader: "lazy", generation: 0 }],
        ["thaw;loader=eager", { kind: "thaw", loader: "eager", generation: 0 }],
        ["thaw;loader=splice;husk=pooled", { kind: "thaw", loader: "splice", generation: 0 }],
        ["thaw;husk=fresh", { kind: "thaw", loader: "splice", generation: 0 }],
      ];
      for (const [prefer, start] of kinds) {
        const reply = await server.invoke(language, { tag: prefer }, { "x-thaw-prefer": `${prefer};dispose` });
        expect(reply.json, prefer).toEqual({ who: language, count: 1, tag: prefer });
        expect(reply.start, prefer).toMatchObject(start);
        expect(reply.start.us, prefer).toBeGreaterThan(0);
        expect(reply.start.fallback, prefer).toBeUndefined();
      }
      expect((await server.invoke(language, {}, { "x-thaw-prefer": "reuse" })).start.kind).toBe("reuse");
    });

    it("shows phases, pages by source and memory to who asks", async () => {
      const reply = await server.invoke(language, {}, { "x-thaw-prefer": "thaw;dispose", "x-thaw-trace": "1" });
      const trace = JSON.parse(reply.headers.get("x-thaw-trace") ?? "");
      expect(trace.start).toMatchObject({ kind: "thaw", loader: "splice", generation: 0 });
      expect(trace.start.phases.length).toBeGreaterThan(3);
      for (const { name, us } of trace.start.phases)
        expect({ name, us }).toEqual({ name: expect.any(String), us: expect.any(Number) });
      const told = trace.start.phases.reduce((sum: number, { us }: { us: number }) => sum + us, 0);
      expect(told, "all of them: they add up to the start").toBeGreaterThan(trace.start.us * 0.95);
      expect(trace.pages.written).toBeGreaterThan(0);
      expect(trace.pages.image + trace.pages.file).toBeGreaterThan(0);
      expect(trace.memory.privateBytes).toBeGreaterThan(100_000);
      expect(trace.totalMs).toBeGreaterThanOrEqual(trace.handlerMs);
      for (const prefer of ["boot", "thaw;husk=fresh"]) {
        const { start, headers } = await server.invoke(language, {}, { "x-thaw-prefer": `${prefer};dispose` });
        const total = Number(/dur=([\d.]+)/.exec(headers.get("server-timing") ?? "")?.[1]);
        expect(total, "the start is part of the whole").toBeGreaterThan(Number(start.us) / 1000);
      }
      expect((await server.invoke(language)).headers.get("x-thaw-trace")).toBeNull();
    });

    it("names the memory limit when it kills", async () => {
      const reply = await server.invoke(language, { fill: true });
      expect(reply.status).toBe(200);
      expect(reply.headers.get("x-thaw-platform-error")).toBe("OUT_OF_MEMORY");
      expect(reply.json.errorType).toBe("Runtime.OutOfMemory");
      expect(reply.json.errorMessage).toContain("the function was killed at its memory limit of 256 MB");
      expect((await server.invoke(language)).json).toMatchObject({ who: language });
    });

    it("kills at the timeout, and starts anew", async () => {
      await server.deployReady(`${language}-brief`, language === "node" ? NODE : PYTHON, {
        ...(language === "python" ? { handler: "app.handler" } : {}),
        timeout: "3",
      });
      const reply = await server.invoke(`${language}-brief`, language === "node" ? { spin: true } : { sleep: 60 });
      expect(reply.headers.get("x-amz-function-error")).toBe("Unhandled");
      expect(reply.headers.get("x-thaw-platform-error")).toBe("TIMEOUT");
      expect(reply.json.errorMessage).toMatch(/Task timed out after 3\.00 seconds$/);
      expect((await server.cli(["logs", `${language}-brief`])).out).toContain(`\n${reply.json.errorMessage}\nEND RequestId: `);
      const next = await server.invoke(`${language}-brief`);
      expect(next.json.count).toBe(1);
      expect(next.start.kind).toBe("thaw");
    });
  });

  it("ends the instance after the reply with ;dispose", async () => {
    await server.invoke("node");
    const before = (await server.view("node")).counts.idle;
    expect(before).toBeGreaterThan(0);
    await server.invoke("node", {}, { "x-thaw-prefer": "reuse;dispose" });
    expect((await server.view("node")).counts.idle).toBe(before - 1);
  });

  it("checks without running with DryRun", async () => {
    const before = (await server.metrics()).invocations;
    const dry = { "x-amz-invocation-type": "DryRun" };
    expect(await server.invoke("node", {}, dry)).toMatchObject({ status: 204, text: "" });
    expect((await server.invoke("nobody", {}, dry)).status).toBe(404);
    expect((await server.invoke("node", "{", dry)).status).toBe(400);
    expect((await server.metrics()).invocations).toBe(before);
  });

  it("says so when the process of a function exits, and the next request finds another", async () => {
    const reply = await server.invoke("node", { exit: 3 });
    expect(reply.headers.get("x-amz-function-error")).toBe("Unhandled");
    expect(reply.json.errorType).toMatch(/^Runtime\./);
    expect((await server.invoke("node")).json.who).toBe("node");
  });

  it("tells in the log what an instance died of after it had answered", async () => {
    const files = {
      "app.py": `
import os, sys, threading, time
def die():
    while os.path.exists("${HOLD}"): time.sleep(0.02)
    print("nobody waits for this", file=sys.stderr, flush=True)
    os._exit(3)
def handler(event, context):
    threading.Thread(target=die).start()
    return 1
`,
    };
    await server.deployReady("dies", files, { handler: "app.handler" });
    const release = await server.hold("dies");
    expect((await server.invoke("dies")).json).toBe(1);
    release();
    await expect.poll(async () => (await server.cli(["logs", "dies"])).out).toContain("thaw: an idle instance ended by itself");
    expect((await server.cli(["logs", "dies"])).out).toMatch(
      /END RequestId[\s\S]*nobody waits for this\nthaw: an idle instance ended by itself: .*exit status 3\b/,
    );
    expect((await server.cli(["rm", "dies"])).code).toBe(0);
  });

  it("runs a function in the time zone that its environment names", async () => {
    const node = { "index.js": `exports.handler = async () => new Date(0).getHours();` };
    const python = { "app.py": `import time\ndef handler(event, context):\n    return time.localtime(0).tm_hour\n` };
    await server.deployReady("zone-node", node, { env: "TZ=Asia/Tokyo" });
    await server.deployReady("zone-python", python, { env: "TZ=Asia/Tokyo", handler: "app.handler" });
    for (const name of ["zone-node", "zone-python"]) {
      for (const kind of ["boot", "thaw"])
        expect((await server.invoke(name, {}, { "x-thaw-prefer": kind })).json, `${name} ${kind}`).toBe(9);
      expect((await server.cli(["rm", name])).code).toBe(0);
    }
  });

  it("gives the next request to another instance when one ends behind its answer", async () => {
    const ends = `setImmediate(() => { const end = Date.now() + 300; while (Date.now() < end); process.exit(3); }); return 1;`;
    const files = { "index.js": `exports.handler = async (event) => { if (event.ends) { ${ends} } return process.pid; };` };
    await server.deployReady("leaves", files, { timeout: "10" });
    expect((await server.invoke("leaves", '{"ends": true}')).json).toBe(1);
    const next = await server.invoke("leaves");
    expect([next.status, next.headers.get("x-amz-function-error")]).toEqual([200, null]);
    expect((await server.cli(["logs", "leaves"])).out).toMatch(/thaw: an idle instance ended by itself: .*exit status 3\b/);
    expect((await server.cli(["rm", "leaves"])).code).toBe(0);
  });

  it("gives the next request to another instance when one never comes back from its last", async () => {
    const forged = `const answer = { type: "result", requestId: context.awsRequestId, handlerMs: 0, maxMemoryMb: 1 };
      const header = Buffer.from(JSON.stringify(answer)), prefix = Buffer.alloc(12);
      prefix.write("THAW"), prefix.writeUInt32LE(header.length, 4), prefix.writeUInt32LE(1, 8);
      require("fs").writeSync(3, Buffer.concat([prefix, header, Buffer.from("1")])); for (;;);`;
    const rests = "setImmediate(() => { for (;;); }); return 1;";
    const ways = `if (event.way === "forged") { ${forged} } if (event.way === "rests") { ${rests} } return 2;`;
    await server.deployReady(
      "stays",
      { "index.js": `exports.handler = async (event, context) => { ${ways} };` },
      { timeout: "2" },
    );
    for (const way of ["forged", "rests"]) {
      expect((await server.invoke("stays", { way })).json).toBe(1);
      const next = await server.invoke("stays");
      expect([next.json, next.headers.get("x-amz-function-error"), next.start.kind]).toEqual([2, null, "thaw"]);
      const dispose = await server.invoke("stays", {}, { "x-thaw-prefer": "reuse;dispose" });
      expect(dispose.status).toBe(200);
    }
    expect((await server.cli(["rm", "stays"])).code).toBe(0);
  });

  it("tells in the log what a function died of while its image was made", async () => {
    const later = 'setImmediate(() => setImmediate(() => { throw new Error("no database"); }));';
    await server.deploy("late", { "index.js": `${later} exports.handler = async () => 1;` }, { handler: "index.handler" });
    await expect.poll(async () => (await server.cli(["logs", "late"])).out).toContain("thaw: no image could be made");
    expect((await server.cli(["logs", "late"])).out).toMatch(
      /^ERROR.*no database.*\nthaw: no image could be made: .*exit status 1\b/m,
    );
    expect((await server.invoke("late")).json).toBe(1);
    expect((await server.cli(["rm", "late"])).code).toBe(0);
  });

  it("refuses what it cannot take, with Lambda's exception and our sentence", async () => {
    const large = Buffer.alloc(20 * 1024 * 1024, 0x20);
    const cases: readonly (readonly [Promise<Reply>, number, string, string, RegExp])[] = [
      [
        server.invoke("node", "{oops"),
        400,
        "InvalidRequestContentException",
        "INVALID_PAYLOAD",
        /The payload is not valid JSON \| .*JSON/,
      ],
      [
        server.invoke("node", Buffer.from([0x22, 0xff, 0x22])),
        400,
        "InvalidRequestContentException",
        "INVALID_PAYLOAD",
        /it is not UTF-8/,
      ],
      [server.invoke("node", large), 413, "RequestTooLargeException", "PAYLOAD_TOO_LARGE", /The limit is 6 MiB/i],
      [server.invoke("nobody"), 404, "ResourceNotFoundException", "FUNCTION_NOT_FOUND", /There is no function "nobody"/],
      [server.invoke("node:v7"), 404, "ResourceNotFoundException", "FUNCTION_NOT_FOUND", /has no version or alias "v7"/],
      [
        server.invoke("node", {}, { "x-amz-invocation-type": "Event" }),
        400,
        "InvalidParameterValueException",
        "INVALID_ARGUMENT",
        /no queue yet/,
      ],
      [
        server.invoke("node", {}, { "x-thaw-prefer": "hot" }),
        400,
        "InvalidParameterValueException",
        "INVALID_ARGUMENT",
        /"hot" is not a kind of start/,
      ],
      [
        server.invoke("node", {}, { "x-thaw-prefer": "thaw;loader=harvest" }),
        400,
        "InvalidParameterValueException",
        "INVALID_ARGUMENT",
        /"harvest" is not a loader/,
      ],
    ];
    for (const [sent, status, type, code, text] of cases) {
      const reply = await sent;
      expect(refusal(reply)).toEqual({ status, type, code, text: expect.stringMatching(text) });
      expect(reply.json.Type).toBe("User");
      expect(reply.json.message ?? reply.json.Message).toMatch(/\w/);
    }
    const encoded = await server.invoke("node", {}, { "content-encoding": "gzip" });
    expect([encoded.status, encoded.headers.get("x-amzn-errortype")]).toEqual([415, "UnsupportedMediaTypeException"]);
  });

  it("refuses a second function of one name, unless it is an update", async () => {
    const twin = await server.deploy("node", NODE);
    expect(twin.status).toBe(409);
    expect(twin.json.error).toMatchObject({
      code: "FUNCTION_EXISTS",
      what: 'Function "node" was not deployed',
      why: "a function of that name exists already",
      fix: "Deploy with --update to replace it, or choose another name",
    });
    await server.deployReady("changed", NODE, { env: "WHO=first" });
    expect((await server.invoke("changed")).json.who).toBe("first");
    expect((await server.deploy("changed", NODE, { env: "WHO=second" }, "PUT")).status).toBe(200);
    expect((await server.invoke("changed")).json.who).toBe("second");
    await server.ready("changed");
    const thawed = await server.invoke("changed", {}, { "x-thaw-prefer": "thaw" });
    expect(thawed.json).toMatchObject({ who: "second", count: 1 });
  });

  it("refuses code that cannot work, before it takes the name", async () => {
    const broken = await server.deploy("broken", { "readme.txt": "no code" });
    expect([broken.status, broken.json.error.code]).toEqual([400, "CODE_INVALID"]);
    const missing = await server.deploy("broken", NODE, { runtime: "ruby3.2" });
    expect([missing.status, missing.json.error.code]).toEqual([502, "RUNTIME_MISSING"]);
    expect(missing.json.error.what + missing.json.error.why).toContain("nodejs");
    expect((await server.list()).map(({ name }) => name)).not.toContain("broken");
  });

  it("says what a function that cannot be loaded died of, at every request", async () => {
    await server.deploy("unloadable", { "index.js": "throw new TypeError('no configuration'); exports.handler = () => 1;" });
    const ready = await server.request("GET", "/thaw/v1/functions/unloadable/ready?timeout=30");
    expect(ready.json.error).toMatchObject({ code: "INIT_FAILED", why: expect.stringContaining("no configuration") });
    const reply = await server.invoke("unloadable");
    expect(reply.status).toBe(200);
    expect(reply.headers.get("x-amz-function-error")).toBe("Unhandled");
    expect(reply.json).toMatchObject({ errorType: "TypeError", errorMessage: "no configuration" });
    expect(reply.start.kind).toBe("boot");
  });

  it("says so also of one that reports nothing, with Lambda's name for it, and has in the log what it printed", async () => {
    await server.deploy("quits", { "index.js": "console.log('looking'); process.exit(3); exports.handler = () => 1;" });
    await server.request("GET", "/thaw/v1/functions/quits/ready?timeout=30");
    const log = async (): Promise<string> => (await server.request("GET", "/thaw/v1/functions/quits/logs")).text;
    expect(await log()).toMatch(/looking\n[\s\S]*no image could be made.*exit status 3/);
    const reply = await server.invoke("quits", {}, { "x-amz-log-type": "Tail" });
    const why = `RequestId: ${reply.headers.get("x-amzn-requestid")} Error: function "quits" failed while it was loaded. Runtime exited with error: exit status 3`;
    expect(reply.json).toMatchObject({ errorType: "Runtime.ExitError", errorMessage: expect.stringContaining(why) });
    expect(reply.headers.get("x-thaw-platform-error")).toBe("INIT_FAILED");
    const tail = Buffer.from(reply.headers.get("x-amz-log-result") ?? "", "base64").toString();
    expect(tail).toContain(`looking\n${reply.json.errorMessage}\nEND`);
  });

  it("tells a function by which name it was called", async () => {
    await server.deploy("named", { "index.js": "exports.handler = async (event, { invokedFunctionArn }) => invokedFunctionArn" });
    const arn = "arn:aws:lambda:eu-west-1:123456789012:function:named";
    const called = async (name: string, query = ""): Promise<unknown> =>
      (await server.request("POST", `/2015-03-31/functions/${encodeURIComponent(name)}/invocations${query}`)).json;
    expect(await called("named")).toBe("arn:aws:lambda:us-east-1:000000000000:function:named");
    expect(await called("named", "?Qualifier=$LATEST")).toBe("arn:aws:lambda:us-east-1:000000000000:function:named:$LATEST");
    expect([await called(arn), await called(`${arn}:$LATEST`)]).toEqual([arn, `${arn}:$LATEST`]);
  });

  it("runs by boot what cannot be frozen, and says which and why", async () => {
    const files = { "index.js": "require('fs').watch('/tmp'); exports.handler = async () => 'watching';" };
    const status = await server.deployReady("watcher", files);
    expect(status.state).toBe("refused");
    expect(status.reason).toMatch(/function "watcher" could not be frozen.*inotify.*close it before loading ends/);
    const reply = await server.invoke("watcher");
    expect([reply.json, reply.start.kind]).toEqual(["watching", "boot"]);
    const demanded = await server.invoke("watcher", {}, { "x-thaw-prefer": "thaw" });
    expect(refusal(demanded)).toMatchObject({
      status: 409,
      code: "PREFERENCE_UNAVAILABLE",
      text: expect.stringContaining("inotify"),
    });
    expect((await server.cli(["ls"])).out).toMatch(/^watcher +nodejs\S+ +128 MB +boots \(refused\)/m);
    expect((await server.cli(["logs", "watcher"])).out).toContain("thaw: the function cannot be frozen and runs by boot");
  });

  it("says why a demanded start cannot be had", async () => {
    await server.deployReady("cold", NODE);
    const reuse = refusal(await server.invoke("cold", {}, { "x-thaw-prefer": "reuse" }));
    expect(reuse).toMatchObject({ status: 409, type: "ResourceConflictException", code: "PREFERENCE_UNAVAILABLE" });
    expect(reuse.text).toContain("demands reuse | it has no running instance | Invoke it once without a preference first");
    const parked = refusal(await server.invoke("cold", {}, { "x-thaw-prefer": "parked" }));
    expect(parked).toMatchObject({
      status: 409,
      code: "PREFERENCE_UNAVAILABLE",
      text: expect.stringContaining("this server parks no husks"),
    });
  });

  it("makes a demanded reuse wait for a busy instance, and reports the wait apart", async () => {
    await server.deployReady("shared", NODE);
    const release = await server.hold("shared");
    const busy = server.invoke("shared", { tag: "busy" });
    await until("the instance to run", async () => ((await server.view("shared")).counts.running > 0 ? true : undefined));
    const waiting = server.invoke("shared", {}, { "x-thaw-prefer": "reuse" });
    await until("the request to wait", async () => ((await server.view("shared")).counts.waiting > 0 ? true : undefined));
    release();
    const reuse = await waiting;
    expect(reuse.json.count).toBe(2);
    expect(reuse.start).toEqual({ kind: "reuse", generation: 0, heat: 0, us: 0, wait: expect.any(Number) });
    expect((await busy).json.tag).toBe("busy");
  });

  it.each(["boot", "thaw"])("can %s while it is held up itself, and reads all that happened meanwhile at once", async (kind) => {
    for (const heldUpAfterMs of [2, 5, 8, 11, 14]) {
      const started = server.invoke("node", { tag: heldUpAfterMs }, { "x-thaw-prefer": `${kind};dispose` });
      await pause(heldUpAfterMs);
      server.kill("SIGSTOP");
      await pause(250);
      server.kill("SIGCONT");
      expect((await started).json).toEqual({ who: "node", count: 1, tag: heldUpAfterMs });
    }
  });

  it("gives each of 50 requests in flight on three functions its own answer", async () => {
    await server.deployReady("third", NODE, { env: "WHO=third" });
    const names = ["node", "python", "third"];
    const { idle } = (await server.metrics()).instances;
    const releases = await Promise.all(names.map((name) => server.hold(name)));
    const asked = Array.from({ length: 50 }, async (_, index) => {
      const name = names[index % 3] ?? "";
      return { name, tag: `tag ${index}`, reply: await server.invoke(name, { tag: `tag ${index}` }) };
    });
    await until("all to run", async () => ((await server.metrics()).instances.running === asked.length ? true : undefined));
    for (const release of releases) release();
    const replies = await Promise.all(asked);
    for (const { name, tag, reply } of replies) {
      expect(reply.status).toBe(200);
      expect(reply.json).toMatchObject({ who: name, tag });
    }
    // One request at a time in one instance: while all were in flight, nobody shared.
    expect(replies.filter(({ reply }) => reply.start.kind === "thaw").length).toBeGreaterThanOrEqual(asked.length - idle);
  });

  it("deploys a folder by the command line as well", async () => {
    const folder = join(temporaryDir("code"), "tickets");
    mkdirSync(folder);
    writeFileSync(join(folder, "app.py"), PYTHON["app.py"] ?? "");
    const args = ["deploy", folder, "--handler", "app.handler", "--env", "WHO=cli", "--wait"];
    const run = await server.cli(args);
    expect(run, run.err).toMatchObject({ code: 0, err: "" });
    expect(run.out).toMatch(
      /^tickets deployed: python3\.\d+, app\.handler, 128 MB, .*\ntickets is ready: image of [\d.]+ MiB, stopped for [\d.]+ ms while it was made\n$/,
    );
    expect((await server.invoke("tickets")).json.who).toBe("cli");
  });

  it("forgets what was removed", async () => {
    const reply = await server.request("DELETE", "/thaw/v1/functions/tickets");
    expect([reply.status, reply.text]).toEqual([204, ""]);
    expect((await server.invoke("tickets")).status).toBe(404);
    expect((await server.request("DELETE", "/thaw/v1/functions/tickets")).json.error.code).toBe("FUNCTION_NOT_FOUND");
  });
});

describe("a server with few instances", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start(temporaryDir("limits"), {
      args: ["--max-instances", "2", "--pool", "0"],
    });
    for (const name of ["a", "b", "c"]) await server.deployReady(name, NODE, name === "a" ? { maxInstances: "1" } : {});
  });

  /** Starts a request that is not answered before it is released, and returns once its instance runs. */
  async function occupy(name: string): Promise<{ release: () => void; done: Promise<Reply> }> {
    const { running } = (await server.view(name)).counts;
    const release = await server.hold(name);
    const done = server.invoke(name);
    await until(`${name} to run`, async () => ((await server.view(name)).counts.running > running ? true : undefined));
    return { release, done };
  }

  it("has no husk to give when the pool is off, and says so", async () => {
    const pooled = refusal(await server.invoke("b", {}, { "x-thaw-prefer": "thaw;husk=pooled" }));
    expect(pooled).toMatchObject({
      status: 409,
      code: "PREFERENCE_UNAVAILABLE",
      text: expect.stringContaining("it would have come another way (thaw, splice, fresh)"),
    });
    expect((await server.invoke("b", {}, { "x-thaw-prefer": "thaw;dispose" })).start.kind).toBe("thaw");
  });

  it("refuses beyond the limit of a function, and beyond its own", async () => {
    const first = await occupy("a");
    const own = await server.invoke("a");
    expect(refusal(own)).toMatchObject({ status: 429, type: "TooManyRequestsException", code: "TOO_MANY_INSTANCES" });
    expect(refusal(own).text).toContain(
      "the one instance that it may have is busy | Try again, or deploy it with a higher --max-instances",
    );
    expect(own.json).toMatchObject({ Type: "User", Reason: "ReservedFunctionConcurrentInvocationLimitExceeded" });
    expect(own.headers.get("retry-after")).toBe("1");
    const second = await occupy("b");
    const overall = await server.invoke("c");
    expect(refusal(overall).text).toContain("all 2 instances that this server may have are busy");
    expect(overall.json.Reason).toBe("ConcurrentInvocationLimitExceeded");
    for (const { release, done } of [first, second]) {
      release();
      expect((await done).status).toBe(200);
    }
  });

  it("evicts an idle instance of another function rather than refuse", async () => {
    await server.invoke("a");
    await server.invoke("b");
    expect((await server.metrics()).instances).toMatchObject({ idle: 2, max: 2 });
    const { evictions, throttles } = await server.metrics();
    expect((await server.invoke("c")).status).toBe(200);
    expect(await server.metrics()).toMatchObject({ evictions: evictions + 1, throttles, instances: { idle: 2 } });
    // The one that was idle longest went.
    expect((await server.view("a")).counts.idle).toBe(0);
    expect((await server.invoke("b")).start.kind).toBe("reuse");
  });
});

describe("a server that keeps idle instances for a second", () => {
  it("lets an idle instance go when its time is over, and thaws again", async () => {
    const server = await TestServer.start(temporaryDir("keep-alive"), { args: ["--keep-alive", "1", "--pool", "0"] });
    await server.deployReady("b", NODE);
    expect((await server.invoke("b")).status).toBe(200);
    await until("all idle instances to end", async () => ((await server.metrics()).instances.idle === 0 ? true : undefined));
    await until("their processes to end", async () => ((await server.metrics()).engine.instances === 0 ? true : undefined));
    expect((await server.invoke("b")).start.kind).toBe("thaw");
  });
});

describe("a server with parked husks", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start(temporaryDir("parked"), { args: ["--park", "prefaulted=1", "--pool", "1"] });
    await server.deployReady("node", NODE, { env: "WHO=node" });
    // Behind that only requests start anything.
    await until("its rehearsals to end", async () => {
      const { json } = await server.request("GET", "/thaw/v1/functions/node/image");
      return (json as ImageView).inspection?.workingSet?.stable === true || undefined;
    });
  });

  /** Four requests that are all there before another husk can be made. */
  async function four(prefer: string): Promise<Reply[]> {
    const { keeper } = server;
    process.kill(keeper.pid, "SIGSTOP");
    try {
      const replies = Array.from({ length: 4 }, (_, tag) => server.invoke("node", { tag }, { "x-thaw-prefer": prefer }));
      await until("four requests", async () => {
        const { running, starting } = (await server.metrics()).instances;
        return running + starting === 4 ? true : undefined;
      });
      process.kill(keeper.pid, "SIGCONT");
      return await Promise.all(replies);
    } finally {
      process.kill(keeper.pid, "SIGCONT");
    }
  }

  it("starts from the parked husk, and makes who comes next wait for another, reported apart", async () => {
    await until("a husk to be parked", async () => ((await server.metrics()).engine.husks.prefaulted === 1 ? true : undefined));
    const replies = await four("parked;dispose");
    for (const [tag, reply] of replies.entries()) {
      expect(reply.json, reply.text).toEqual({ who: "node", count: 1, tag });
      expect(reply.start).toMatchObject({ kind: "parked", loader: "splice", generation: 0, us: expect.any(Number) });
    }
    expect(replies.filter(({ start }) => typeof start.wait === "number").length).toBeGreaterThanOrEqual(3);
  });

  it("waits for a pooled husk too", async () => {
    const replies = await four("thaw;husk=pooled;dispose");
    for (const [tag, reply] of replies.entries()) expect(reply.json, reply.text).toEqual({ who: "node", count: 1, tag });
    expect(replies.filter(({ start }) => typeof start.wait === "number").length).toBeGreaterThanOrEqual(2);
  });

  it("replaces a parked husk that somebody killed", async () => {
    await until("a husk to be parked", async () => ((await server.metrics()).engine.husks.prefaulted === 1 ? true : undefined));
    await until("no instance", async () => ((await server.metrics()).engine.instances === 0 ? true : undefined));
    // Every sandbox without an instance: the children of the keeper's children that no request started.
    const living = () => descendants(server.keeper.pid).filter(({ exe }) => exe.endsWith("/husk"));
    const husks = living();
    expect(husks.length).toBeGreaterThanOrEqual(1);
    for (const { pid } of husks) process.kill(pid, "SIGKILL");
    // Others are made in their places only by a server that noticed.
    await until("others in their places", () => {
      const others = living().filter(({ pid }) => !husks.some((husk) => husk.pid === pid));
      return others.length >= husks.length ? true : undefined;
    });
    const reply = await server.invoke("node", { tag: "after" }, { "x-thaw-prefer": "parked;dispose" });
    expect(reply.json, reply.text).toEqual({ who: "node", count: 1, tag: "after" });
    expect(reply.start.kind).toBe("parked");
  });

  it("uses a parked husk by itself when one is there", async () => {
    await until("a husk to be parked", async () => ((await server.metrics()).engine.husks.prefaulted === 1 ? true : undefined));
    expect((await server.invoke("node")).start.kind).toBe("parked");
  });
});
