import { execFileSync } from "node:child_process";
import { mkdir, mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { type AddressInfo, createServer as createTcpServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { MIB } from "../base/units.js";
import { FakeEnd } from "../engine/fake.js";
import { type Gateway, openGateway } from "../gateway/index.js";
import { openTestPlatform, type TestPlatform } from "../gateway/testing.js";
import { until } from "../platform/testing.js";
import { type CliOptions, type CliRun, runCli } from "./testing.js";

let test: TestPlatform;
let gateway: Gateway;
let cwd: string;

beforeEach(async () => {
  test = await openTestPlatform();
  gateway = await openGateway({ platform: test.platform });
  cwd = await mkdtemp(join(tmpdir(), "thaw-cli-"));
  await mkdir(join(cwd, "hello"));
  await writeFile(join(cwd, "hello", "index.mjs"), "export const handler = async () => null;\n");
});
afterEach(async () => {
  await gateway.close();
  await test.close();
  await rm(cwd, { recursive: true, force: true });
});

const thaw = (args: readonly string[], options: CliOptions = {}): Promise<CliRun> =>
  runCli(args, { url: gateway.url, cwd, ...options });

describe("a function's life by hand", () => {
  it("deploy, invoke, ls, logs, image inspect, rm", async () => {
    const deployed = await thaw(["deploy", "hello", "--wait"]);
    expect(deployed).toMatchObject({ code: 0, err: "" });
    expect(deployed.out).toMatch(/^hello deployed: nodejs20\.x, index\.handler, 128 MB, .* of code\n/);
    expect(deployed.out).toMatch(/\nhello is ready: image of 4 KiB, stopped for 2\.0 ms while it was made\n$/);

    test.engine.handler = (event, context) => {
      context.log("greeting\n");
      return { hello: (event as { name: string }).name };
    };
    const invoked = await thaw(["invoke", "hello", "--payload", '{"name":"world"}']);
    expect(invoked).toMatchObject({ code: 0, out: '{"hello":"world"}\n' });
    expect(invoked.err).toMatch(
      /^thaw \(splice\), started in 1\.8 ms, answered in [\d.]+ [um]s \([\d.]+ ms with this command's connection\)\n$/,
    );

    const listed = await thaw(["ls"]);
    expect(listed.out.split("\n")).toEqual([
      "NAME   RUNTIME     MEMORY  STATE   IMAGE  HEAT  INSTANCES  RESIDENT  ON DISK  LAST START",
      "hello  nodejs20.x  128 MB  frozen  4 KiB  0     1 warm     1.2 MiB   -        thaw 1.8 ms",
      "",
    ]);

    expect((await thaw(["logs", "hello"])).out).toContain("\ngreeting\n");
    expect((await thaw(["image", "inspect", "hello"])).out).toMatch(/^state +ready\nimage +fake-1\n/);
    expect(await thaw(["rm", "hello"])).toEqual({ code: 0, out: "hello removed\n", err: "" });
    expect((await thaw(["ls"])).out).toBe("No functions. Deploy one: thaw deploy FOLDER\n");
  });

  it("the same for machines: JSON on stdout and nothing else", async () => {
    const json = async (...args: string[]): Promise<Record<string, unknown>> => {
      const run = await thaw([...args, "--json"]);
      expect(run).toMatchObject({ code: 0, err: "" });
      expect(run.out.trim().split("\n")).toHaveLength(1);
      return JSON.parse(run.out) as Record<string, unknown>;
    };
    expect(await json("deploy", "hello", "--wait")).toMatchObject({ name: "hello", memoryMb: 128, image: { state: "ready" } });
    const trace = { start: { kind: "thaw" }, pages: { written: 300 } };
    expect(await json("invoke", "hello", "--trace", "--tail")).toMatchObject({
      payload: { event: {}, function: "hello" },
      executedVersion: "$LATEST",
      start: { kind: "thaw", loader: "splice", generation: 0, us: 1800 },
      log: expect.stringContaining("START RequestId"),
      trace,
    });
    expect(await json("ls")).toMatchObject({ functions: [{ name: "hello", lastStart: { kind: "thaw" } }] });
    expect(await json("image", "inspect", "hello")).toMatchObject({ state: "ready" });
    expect(await json("doctor")).toMatchObject({
      ok: true,
      canFreeze: true,
      checks: [{ name: "kernel" }],
      server: { pid: process.pid },
    });
    expect(await json("rm", "hello")).toEqual({ removed: "hello" });
  });

  it("logs as JSON are one object a line", async () => {
    await thaw(["deploy", "hello", "--wait"]);
    test.engine.handler = (_event, context) => context.log("naïve\n");
    await thaw(["invoke", "hello"]);
    const lines = (await thaw(["logs", "hello", "--json"])).out.trim().split("\n");
    expect(lines.map((line) => (JSON.parse(line) as { line: string }).line)).toContain("naïve");
  });

  it("logs --follow goes on until it is interrupted, which is no failure", async () => {
    await thaw(["deploy", "hello", "--wait"]);
    test.engine.handler = (event, context) => context.log(`got ${event}\n`);
    const stop = new AbortController();
    const following = thaw(["logs", "hello", "--follow"], { stop, onOut: (out) => out.includes("got 2\n") && stop.abort() });
    await thaw(["invoke", "hello", "--payload", "1"]);
    await thaw(["invoke", "hello", "--payload", "2"]);
    const run = await following;
    expect(run).toMatchObject({ code: 0, err: "" });
    expect(run.out).toMatch(/got 1\n.*got 2\n/s);
  });

  it("logs --follow says that the log ended when its function is removed", async () => {
    await thaw(["deploy", "hello", "--wait"]);
    await thaw(["invoke", "hello"]);
    let removed: Promise<CliRun> | undefined;
    const onOut = (): void => {
      removed ??= thaw(["rm", "hello"]);
    };
    const run = await thaw(["logs", "hello", "--follow"], { onOut });
    expect(run.code).toBe(0);
    expect(run.err).toBe("the log ends here: the function was removed, or the server is stopping\n");
    expect((await removed)?.code).toBe(0);
  });
});

describe("deploy", () => {
  it("takes defaults from thaw.json, and options before them", async () => {
    await writeFile(
      join(cwd, "hello", "thaw.json"),
      JSON.stringify({ name: "other", memory: 256, timeout: 5, env: { A: "file", B: "file" } }),
    );
    const run = await thaw([
      "deploy",
      "hello",
      "--json",
      "--memory",
      "512",
      "--env",
      "A=option",
      "--env",
      "C=x=y",
      "--max-instances",
      "3",
    ]);
    expect(JSON.parse(run.out)).toMatchObject({
      name: "other",
      memoryMb: 512,
      timeoutMs: 5000,
      env: { A: "option", B: "file", C: "x=y" },
      maxInstances: 3,
    });
  });

  it("replaces only when told", async () => {
    await thaw(["deploy", "hello"]);
    const again = await thaw(["deploy", "hello"]);
    expect(again.code).toBe(1);
    expect(again.err).toMatch(/^error: .*"hello".*\n {2}(why|fix): /);
    expect((await thaw(["deploy", "hello", "--update"])).code).toBe(0);
  });

  it("says when a function cannot have an image, and is no failure", async () => {
    test.engine.failNext(
      "freeze",
      new ThawError("FREEZE_REFUSED", { what: "It cannot be frozen", why: "it holds an inotify descriptor" }),
    );
    const run = await thaw(["deploy", "hello", "--wait"]);
    expect(run.code).toBe(0);
    expect(run.out).toMatch(/hello has no image and will be booted at every start \(.*inotify descriptor.*\)\n$/);
    expect((await thaw(["ls"])).out).toMatch(
      / boots \(refused\) .*\nhello: It cannot be frozen\. it holds an inotify descriptor\n$/,
    );
  });

  it("fails when the function cannot be loaded", async () => {
    test.engine.failNext(
      "boot",
      new ThawError("INIT_FAILED", { what: 'Function "hello" failed while it was loaded', why: "SyntaxError" }),
    );
    const run = await thaw(["deploy", "hello", "--wait"]);
    expect(run.code).toBe(1);
    expect(run.err).toMatch(/^error: Function "hello" failed while it was loaded\n {2}why: SyntaxError\n/);
    expect((await thaw(["ls"])).out).toMatch(/\nhello: Function "hello" failed while it was loaded\. SyntaxError\n$/);
  });

  it.each([
    [["deploy", "nowhere"], /^error: .*nowhere cannot be deployed\n {2}why: It does not exist\n {2}fix: /],
    [["deploy", "hello", "--handler", "app.handler"], /^error: Handler "app.handler" is not in .*\n {2}why: There is no app\.js/],
    [["deploy", "hello", "--runtime", "cobol85"], /^error: .*cobol85/],
    [["deploy", "hello", "--name", "he llo"], /^error: .*he llo/],
    [["deploy", "hello", "--memory", "1"], /^error: .*\n {2}why: .*128/],
  ])("%j fails", async (args, sentence) => {
    const run = await thaw(args);
    expect(run.code).toBe(1);
    expect(run.out).toBe("");
    expect(run.err).toMatch(sentence);
  });

  it.each([
    [["deploy", "hello", "--memory", "lots"], /It must be a whole number of at least 1/],
    [["deploy", "hello", "--timeout", "soon"], /It must be a number of seconds/],
    [["deploy", "hello", "--env", "A"], /It must be NAME=VALUE/],
    [["deploy"], /missing required argument 'path'/],
    [["deploy", "hello", "--colour"], /unknown option '--colour'/],
    [["explode"], /unknown command 'explode'/],
    [["serve", "--port", "70000"], /It must be a whole number from 0 to 65535/],
    [["serve", "--memory-budget", "lots"], /It must be a size of at least 1M, such as 500M or 2G/],
    [["serve", "--memory-budget", "512"], /It must be a size of at least 1M, such as 500M or 2G/],
    [["serve", "--policy", "magic"], /It must be one of fixed, histogram/],
    [["serve", "--heat-policy", "magic"], /It must be one of fixed, pronghorn/],
    [["deploy", "hello", "--provisioned", "1001"], /It must be a whole number from 0 to 1000/],
    [["serve", "--park-loader", "reap"], /It must be one of lazy, eager, splice/],
    [["serve", "--park", "sofa=1"], /It must be one of runtime, image, prefaulted/],
  ])("%j is a usage error", async (args, sentence) => {
    const run = await thaw(args);
    expect(run.code).toBe(2);
    expect(run.err).toMatch(sentence);
  });
});

describe("a usage error", () => {
  it.each([
    [["deploy"], "missing required argument 'path'"],
    [["explode"], "unknown command 'explode'"],
    [["invoke", "hello", "extra"], "too many arguments for 'invoke'. Expected 1 argument but got 2."],
    [["logs", "hello", "--follow", "--bytes", "10"], "option '--bytes <n>' cannot be used with option '-f, --follow'"],
  ])("of %j is JSON for machines", async (args, what) => {
    const run = await thaw([...args, "--json"]);
    expect(run).toMatchObject({ code: 2, out: "" });
    expect(JSON.parse(run.err)).toEqual({
      error: { code: "INVALID_ARGUMENT", what, fix: "Add --help for what there is", details: {} },
    });
  });
});

describe("a name that a URL has for a directory", () => {
  it.each([["rm"], ["logs"], ["image", "inspect"], ["wake"]])("%s .", async (...command) => {
    for (const name of [".", ".."]) {
      const run = await thaw([...command, name]);
      expect(run).toMatchObject({ code: 1, out: "" });
      expect(run.err).toMatch(`error: There is no function "${name}"\n`);
    }
  });
});

describe("invoke", () => {
  beforeEach(() => thaw(["deploy", "hello", "--wait"]));

  it("takes the payload from a file or from stdin", async () => {
    await writeFile(join(cwd, "event.json"), "[1]");
    expect(JSON.parse((await thaw(["invoke", "hello", "--payload", "@event.json"])).out).event).toEqual([1]);
    expect(JSON.parse((await thaw(["invoke", "hello", "--payload", "-"], { input: "[2]" })).out).event).toEqual([2]);
  });

  it("takes it from a file that begins with a byte order mark, as some editors write it", async () => {
    await writeFile(join(cwd, "event.json"), "\ufeff[1]");
    expect(JSON.parse((await thaw(["invoke", "hello", "--payload", "@event.json"])).out).event).toEqual([1]);
    expect(JSON.parse((await thaw(["invoke", "hello", "--payload", "-"], { input: "\ufeff[2]" })).out).event).toEqual([2]);
  });

  it("takes it from a FIFO, up to the end of who writes to it", async () => {
    const fifo = join(cwd, "fifo");
    execFileSync("mkfifo", [fifo]);
    const run = thaw(["invoke", "hello", "--payload", "@fifo"]);
    const writer = await open(fifo, "w");
    for (const text of ["[1,", "2]"]) await writer.write(text);
    await writer.close();
    expect(JSON.parse((await run).out).event).toEqual([1, 2]);
  });

  it("exits with 3 when the function fails, its error on stdout", async () => {
    test.engine.handler = () => {
      throw new RangeError("too far");
    };
    const run = await thaw(["invoke", "hello"]);
    expect(run.code).toBe(3);
    expect(JSON.parse(run.out)).toMatchObject({ errorType: "RangeError", errorMessage: "too far" });
    expect(run.err).toMatch(/\nerror: the function failed\n$/);
  });

  it("names what ended the function", async () => {
    test.engine.handler = () => {
      throw new FakeEnd("TIMEOUT");
    };
    expect((await thaw(["invoke", "hello"])).err).toContain("error: the function failed (TIMEOUT)\n");
    const json = await thaw(["invoke", "hello", "--json"]);
    expect(json.code).toBe(3);
    expect(JSON.parse(json.out)).toMatchObject({ functionError: "Unhandled", platformError: "TIMEOUT" });
  });

  it("demands a kind of start", async () => {
    expect((await thaw(["invoke", "hello", "--prefer", "boot;dispose"])).err).toMatch(/^boot, started in 90 ms/);
  });

  it("says when the start was not the intended one", async () => {
    test.engine.failNext("thaw", new ThawError("IMAGE_DAMAGED", { what: "The image is damaged", why: "bit 7 is wrong" }));
    expect((await thaw(["invoke", "hello"])).err).toMatch(/\nnot as intended: .*bit 7 is wrong/);
  });

  it.each([
    [["invoke", "hello", "--payload", "{nope"], "INVALID_PAYLOAD", /^error: .*\n {2}why: .*JSON/],
    [["invoke", "hello", "--payload", "@nowhere"], "INVALID_PAYLOAD", /^error: The payload cannot be read\n {2}why: ENOENT/],
    [["invoke", "nobody"], "FUNCTION_NOT_FOUND", /^error: .*"nobody"/],
    [["invoke", "hello", "--prefer", "magic"], "INVALID_ARGUMENT", /fix: Use one of boot, thaw, parked, reuse, wake/],
    [["logs", "nobody"], "FUNCTION_NOT_FOUND", /^error: .*"nobody"/],
    [["logs", "nobody", "--follow"], "FUNCTION_NOT_FOUND", /^error: .*"nobody"/],
    [["rm", "nobody"], "FUNCTION_NOT_FOUND", /^error: .*"nobody"/],
    [["image", "inspect", "nobody"], "FUNCTION_NOT_FOUND", /^error: .*"nobody"/],
    [["rm", "../server"], "FUNCTION_NOT_FOUND", /^error: /],
    [["rm", ".."], "FUNCTION_NOT_FOUND", /^error: There is no function "\.\."/],
    [["invoke", ".."], "FUNCTION_NOT_FOUND", /^error: There is no function "\.\."/],
  ])("%j fails with its code", async (args, code, sentence) => {
    const run = await thaw(args);
    expect(run).toMatchObject({ code: 1, out: "" });
    expect(run.err).toMatch(sentence);
    const json = await thaw([...args, "--json"]);
    expect(json).toMatchObject({ code: 1, out: "" });
    expect(JSON.parse(json.err).error.code).toBe(code);
  });
});

describe("without a server", () => {
  it.each([
    ["ls"],
    ["invoke", "hello"],
    ["deploy", "hello"],
    ["logs", "hello"],
    ["rm", "hello"],
    ["image", "inspect", "hello"],
    ["hibernate", "hello"],
    ["wake", "hello"],
  ])("%s %s says how to start one", async (...args) => {
    // Port 1 needs a privileged listener that no test machine has.
    const run = await thaw([...args, "--url", "http://127.0.0.1:1"]);
    expect(run.code).toBe(1);
    expect(run.err).toBe(
      "error: No thaw server answers at http://127.0.0.1:1\n" +
        "  why: The connection was refused: nothing listens there\n" +
        "  fix: Start one with `thaw serve`, or name another with --url or THAW_URL\n",
    );
  });

  it("doctor still reports", async () => {
    const run = await thaw(["doctor", "--url", "http://127.0.0.1:1"]);
    expect(run.code).toBe(0);
    expect(run.out).toContain("At http://127.0.0.1:1: no server answers.");
  });

  it("a URL that is none is refused", async () => {
    expect((await thaw(["ls", "--url", "nowhere"])).err).toMatch(
      /^error: "nowhere" is not the URL of a server\n {2}fix: It looks like http:/,
    );
  });

  it("a server that is not ours is recognised", async () => {
    const other = createServer((_request, reply) => reply.writeHead(404).end("<h1>Not Found</h1>"));
    await new Promise<void>((resolve) => {
      other.listen(0, "127.0.0.1", resolve);
    });
    const url = `http://127.0.0.1:${(other.address() as AddressInfo).port}`;
    const run = await thaw(["ls", "--url", url]);
    other.close();
    expect(run.code).toBe(1);
    expect(run.err).toMatch(/^error: What answers at .* is not a thaw server\n {2}why: it replied with status 404 and no JSON\n/);
  });

  it.each([
    [200, "application/json", "{}"],
    [200, "application/json", "null"],
    [200, "text/html", "<h1>Welcome</h1>"],
    [200, "application/json", ""],
    [302, "text/html", ""],
  ])("a server that is not ours is recognised by its success (%i, %s, %j)", async (status, type, body) => {
    const other = createServer((_request, reply) => reply.writeHead(status, { "content-type": type }).end(body));
    await new Promise<void>((resolve) => {
      other.listen(0, "127.0.0.1", resolve);
    });
    const url = `http://127.0.0.1:${(other.address() as AddressInfo).port}`;
    const commands = [
      "ls",
      "invoke x",
      "logs x",
      "rm x",
      "hibernate x",
      "image inspect x",
      "image ls x",
      "heat x",
      "deploy hello",
    ];
    const seen: [string, CliRun][] = [];
    for (const command of commands) seen.push([command, await thaw([...command.split(" "), "--url", url])]);
    other.close();
    for (const [command, run] of seen) {
      expect(run, command).toMatchObject({ code: 1, out: "" });
      expect(run.err, command).toMatch(/^error: What answers at .* is not a thaw server\n {2}why: .+\n {2}fix: /);
    }
  });

  it("a reply without end is left, and a line without end is cut", async () => {
    const piece = Buffer.alloc(MIB, "x");
    const endless = createServer((_request, reply) => {
      reply.writeHead(200, { "content-type": "text/plain" });
      const write = (): void => {
        while (!reply.destroyed && reply.write(piece));
      };
      reply.on("drain", write);
      write();
    });
    await new Promise<void>((resolve) => {
      endless.listen(0, "127.0.0.1", resolve);
    });
    const url = `http://127.0.0.1:${(endless.address() as AddressInfo).port}`;
    const run = await thaw(["ls", "--url", url]);
    expect(run).toMatchObject({ code: 1, out: "" });
    expect(run.err).toContain(`error: What answers at ${url} is not a thaw server\n  why: its reply has more than 64 MiB\n`);
    const stop = new AbortController();
    const { out } = await thaw(["logs", "hello", "--json", "--url", url], { stop, onOut: () => stop.abort() });
    expect(out.length).toBeGreaterThan(16 * MIB);
    expect(out.length).toBeLessThan(18 * MIB);
    endless.close();
  }, 30_000);

  it("nothing that a server says of a function rewrites the terminal", async () => {
    const evil = "\u001b[2J\u009b2J";
    const start = { "x-thaw-start": "kind=thaw;us=1", "x-thaw-platform-error": "\u009b2J", "x-amz-function-error": "Unhandled" };
    const view = { name: evil, codeSha256: "", runtime: evil, handler: evil, learn: true, image: { state: "ready" } };
    const image = { generation: 0, heat: 1, bytesOnDisk: 1, report: { stoppedMs: 1 }, bytes: 1 };
    const replies: Readonly<Record<string, object>> = {
      "POST /thaw/v1/functions/hello": view,
      [`GET /thaw/v1/functions/${encodeURIComponent(evil)}/ready`]: { state: "ready", image, heat: { state: "done" } },
      "POST /thaw/v1/functions/hello/heat": { image, requests: evil, firstMs: 1, lastMs: 1 },
      "POST /2015-03-31/functions/hello/invocations": {},
    };
    const trace = JSON.stringify({ a: evil }).replaceAll("\u009b", "\\u009b");
    const other = createServer((request, reply) => {
      const found = replies[`${request.method} ${request.url?.split("?")[0]}`];
      reply.writeHead(200, { ...start, "x-thaw-trace": trace }).end(JSON.stringify(found));
    });
    await new Promise<void>((resolve) => {
      other.listen(0, "127.0.0.1", resolve);
    });
    const url = `http://127.0.0.1:${(other.address() as AddressInfo).port}`;
    await writeFile(join(cwd, "events.json"), "[1]");
    for (const command of ["deploy hello --warm-up events.json --wait-hot", "heat hello", "invoke hello --trace"]) {
      const run = await thaw([...command.split(" "), "--url", url]);
      expect(`${run.out}${run.err}`, command).toContain("[2J 2J");
      expect(`${run.out}${run.err}`, command).toMatch(/^[\P{Cc}\n]+$/u);
    }
    other.close();
  });

  it.each([
    ["x-thaw-trace", "{nope"],
    ["x-thaw-start", 'kind=thaw;fallback="\\q"'],
  ])("a server that is not ours is recognised by a header that cannot be read (%s: %s)", async (name, value) => {
    const other = createServer((_request, reply) =>
      reply.writeHead(200, { "x-thaw-start": "kind=thaw", [name]: value }).end("1"),
    );
    await new Promise<void>((resolve) => {
      other.listen(0, "127.0.0.1", resolve);
    });
    const run = await thaw(["invoke", "x", "--url", `http://127.0.0.1:${(other.address() as AddressInfo).port}`]);
    other.close();
    expect(run).toMatchObject({ code: 1, out: "" });
    expect(run.err).toMatch(/is not a thaw server\n {2}why: what its reply says of the start is not JSON: /);
  });

  it.each([
    ["before it replied", (socket: Socket) => socket.destroy()],
    [
      "in the middle of its reply",
      (socket: Socket) => socket.end("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 9\r\n\r\nhalf"),
    ],
  ])("a server that went away %s is not taken for one that never ran", async (_when, reply) => {
    const dying = createTcpServer((socket) => socket.once("data", () => reply(socket)));
    await new Promise<void>((resolve) => {
      dying.listen(0, "127.0.0.1", resolve);
    });
    const url = `http://127.0.0.1:${(dying.address() as AddressInfo).port}`;
    for (const command of ["invoke hello", "logs hello --follow"]) {
      const run = await thaw([...command.split(" "), "--url", url]);
      expect(run.code).toBe(1);
      expect(run.err).toMatch(/^error: The server at \S+ went away before its reply was complete\n {2}why: It ended, or /);
    }
    dying.close();
  });

  it("a URL of TLS where none is spoken is told", async () => {
    const run = await thaw(["ls", "--url", gateway.url.replace("http:", "https:")]);
    expect(run.err).toContain("why: What listens there speaks no TLS: its URL begins with http://\n");
  });

  it("an environment that no address can carry is refused by name", async () => {
    const run = await thaw(["deploy", "hello", "--env", `A=${"x".repeat(70_000)}`]);
    expect(run.code).toBe(1);
    expect(run.err).toContain("why: Its address and headers are larger than 64 KiB\n");
  });

  it("an interrupted command says so", async () => {
    await thaw(["deploy", "hello", "--wait"]);
    const stop = new AbortController();
    test.engine.handler = () => new Promise(() => stop.abort());
    expect(await thaw(["invoke", "hello"], { stop })).toEqual({ code: 130, out: "", err: "interrupted\n" });
  });
});

describe("hibernate and wake", () => {
  beforeEach(() => thaw(["deploy", "hello", "--wait"]));

  it("say what they did, and ls shows it", async () => {
    await thaw(["invoke", "hello"]);
    expect(await thaw(["hibernate", "hello"])).toEqual({
      code: 0,
      out: "1 instance of hello hibernated: 1.1 MiB given back, 1.2 MiB on disk\n",
      err: "",
    });
    expect((await thaw(["ls"])).out).toMatch(/hello .* 1 hibernated +60 KiB +1\.2 MiB +thaw 1\.8 ms\n$/);
    expect((await thaw(["invoke", "hello", "--prefer", "wake"])).err).toMatch(/^wake, started in 900 us, answered in /);
    await thaw(["hibernate", "hello"]);
    expect((await thaw(["wake", "hello"])).out).toBe("1 instance of hello woken\n");
    await thaw(["hibernate", "hello"]);
    const json = await thaw(["wake", "hello", "--json"]);
    expect(JSON.parse(json.out)).toMatchObject({ name: "hello", instances: 1, skipped: 0 });
  });

  it("say of one that failed why", async () => {
    test.engine.handler = () => new Promise((resolve) => setTimeout(resolve, 50));
    await Promise.all([thaw(["invoke", "hello"]), thaw(["invoke", "hello"])]);
    test.engine.failNext("hibernate", new ThawError("HIBERNATE_REFUSED", { what: "it holds what is still with the pager" }));
    expect((await thaw(["hibernate", "hello"])).out).toMatch(
      /^1 instance of hello hibernated: .*; 1 not: it holds what is still with the pager\n$/,
    );
  });

  it("do not say of what ended meanwhile that it goes on", async () => {
    await thaw(["invoke", "hello"]);
    test.engine.delayMs.hibernate = 30;
    const hibernating = thaw(["hibernate", "hello"]);
    await until(() => test.platform.get("hello").instances[0]?.state === "deflating");
    for (const instance of test.engine.live) instance.crash("signal 9");
    expect(await hibernating).toEqual({
      code: 0,
      out: "0 instances of hello hibernated: 0 B given back, 0 B on disk; 1 not: a request took it, or it ended (see `thaw logs hello`)\n",
      err: "",
    });
  });

  it("say why there is nothing to do", async () => {
    expect(await thaw(["hibernate", "hello"])).toEqual({
      code: 1,
      out: "",
      err:
        'error: Function "hello" has nothing to hibernate\n  why: it has no instance\n' +
        "  fix: Invoke it first: `thaw invoke hello`; `thaw ls` shows its instances\n",
    });
    const json = await thaw(["wake", "hello", "--json"]);
    expect(json.code).toBe(1);
    expect(JSON.parse(json.err).error.code).toBe("NO_INSTANCE");
    expect((await thaw(["wake", "nobody"])).err).toContain('There is no function "nobody"');
  });

  it("ls --json has every instance by state", async () => {
    await thaw(["invoke", "hello"]);
    const { functions } = JSON.parse((await thaw(["ls", "--json"])).out) as { functions: object[] };
    expect(functions).toMatchObject([
      { name: "hello", instances: [{ id: 2, state: "warm", residentBytes: 1_228_800, hibernatedBytes: 0 }] },
    ]);
  });

  it("deploy takes a number of provisioned husks, from the option or from thaw.json, and ls shows it", async () => {
    await writeFile(join(cwd, "hello", "thaw.json"), JSON.stringify({ provisioned: 3 }));
    const run = await thaw(["deploy", "hello", "--update", "--wait", "--json"]);
    expect(JSON.parse(run.out)).toMatchObject({ provisioned: 3 });
    expect((await thaw(["ls"])).out).toMatch(/ 3 provisioned /);
    expect(JSON.parse((await thaw(["deploy", "hello", "--update", "--json", "--provisioned", "1"])).out)).toMatchObject({
      provisioned: 1,
    });
  });
});

describe("doctor", () => {
  it("tells what fails and what to do, and exits non-zero", async () => {
    const run = await thaw(["doctor"], {
      machine: {
        ok: false,
        canFreeze: false,
        canBoot: true,
        interpreters: [],
        checks: [
          { name: "kernel", ok: true, required: true, says: "Linux 6.18" },
          { name: "ptrace", ok: false, required: true, says: "not permitted", fix: "run as root" },
          { name: "cgroups", ok: false, required: false, says: "no swap accounting" },
        ],
      },
    });
    expect(run.code).toBe(1);
    expect(run.out.split("\n").slice(0, 9)).toEqual([
      "       CHECK    FOUND",
      "ok     kernel   Linux 6.18",
      "FAILS  ptrace   not permitted",
      "warns  cgroups  no swap accounting",
      "",
      "What to do:",
      "  ptrace: run as root",
      "",
      "Functions cannot be frozen on this machine. `thaw serve --boot-only` runs them without images.",
    ]);
  });
});

it.each([[["serve", "--data", ""]], [["serve", "--host="]], [["doctor", "--data", ""]], [["deploy", ""]]])(
  "%j: nothing is not taken for the working directory, nor for every address",
  async (args) => {
    const run = await thaw(args);
    expect([run.code, run.err]).toEqual([2, expect.stringContaining("is invalid")]);
    expect(run.err).toContain("It must not be empty.");
  },
);

describe("help", () => {
  it("lists the commands and exits with 0", async () => {
    const run = await thaw(["--help"]);
    expect(run.code).toBe(0);
    for (const command of ["serve", "deploy", "invoke", "ls", "logs", "rm", "hibernate", "wake", "image", "doctor"])
      expect(run.out).toMatch(new RegExp(`^  ${command}\\b`, "m"));
  });

  it("is what a bare `thaw` shows", async () => {
    const run = await thaw([]);
    expect(run.code).toBe(2);
    expect(run.err).toContain("Usage: thaw");
  });
});
