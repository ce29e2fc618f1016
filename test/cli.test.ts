/** Every command as a user types it, against a real server: what stdout, stderr and the exit code say. */
import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { cli, ROOT, TestServer, temporaryDir, useServers } from "./support/server.js";
import { until } from "./support/wait.js";

const HELLO = join(ROOT, "examples/hello");
const HELLO_PYTHON = join(ROOT, "examples/hello-python");
const NOBODY = "http://127.0.0.1:1";

useServers();

describe("with a server", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start(temporaryDir("cli"));
  });

  /** One command that must succeed, with nothing on stderr, and its JSON. */
  async function json(...args: string[]): Promise<Record<string, unknown>> {
    const run = await server.cli([...args, "--json"]);
    expect(run, run.err).toMatchObject({ code: 0, err: "" });
    expect(run.out).toMatch(/^[^\n]+\n$/);
    return JSON.parse(run.out) as Record<string, unknown>;
  }

  it("serve says in one line where it listens, how it starts functions, which it can run, and where its data is", () => {
    expect(server.output).toBe(
      `thaw listens on ${server.url} (freezing, ${server.output.match(/freezing, (.*)\)/)?.[1]}), data in ${server.dataDir}\n`,
    );
    expect(server.output).toMatch(/nodejs\d+\.x/);
  });

  it("ls without functions says what to type", async () => {
    expect(await server.cli(["ls"])).toEqual({ code: 0, out: "No functions. Deploy one: thaw deploy FOLDER\n", err: "" });
  });

  it("deploy, invoke, ls, logs, image inspect and rm: a function's life by hand", async () => {
    const deployed = await server.cli(["deploy", "examples/hello", "--name", "hello", "--wait"]);
    expect(deployed, deployed.err).toMatchObject({ code: 0, err: "" });
    expect(deployed.out).toMatch(
      /^hello deployed: nodejs\d+\.x, index\.handler, 128 MB, \d+ B of code\nhello is ready: image of [\d.]+ MiB, stopped for [\d.]+ ms while it was made\n$/,
    );

    const first = await server.cli(["invoke", "hello", "--payload", '{"name":"world"}']);
    expect(first.code).toBe(0);
    expect(JSON.parse(first.out)).toEqual({ message: "Hello, world!", requestId: expect.stringMatching(/^[0-9a-f-]{36}$/) });
    expect(first.out.endsWith("}\n")).toBe(true);
    expect(first.err).toMatch(
      /^thaw \(splice\), started in [\d.]+ [um]s, answered in [\d.]+ ms \([\d.]+ ms with this command's connection\)\n$/,
    );
    expect((await server.cli(["invoke", "hello"])).err).toMatch(
      /^reuse, answered in [\d.]+ [um]s \([\d.]+ ms with this command's connection\)\n$/,
    );

    const listed = await server.cli(["ls"]);
    expect(listed.out).toMatch(
      /^NAME +RUNTIME +MEMORY +STATE +IMAGE +HEAT +INSTANCES +RESIDENT +ON DISK +LAST START\nhello +nodejs\d+\.x +128 MB +frozen +[\d.]+ MiB +0 +1 warm +[\d.]+ MiB +- +reuse\n$/,
    );

    const logs = await server.cli(["logs", "hello"]);
    expect(logs).toMatchObject({ code: 0, err: "" });
    expect(logs.out).toMatch(
      /^START RequestId: \S+ Version: \$LATEST\ngreeting world\nEND RequestId: .*\nREPORT RequestId: .*\tMemory Size: 128 MB/,
    );
    expect(logs.out).toContain("greeting nobody in particular\n");

    const inspected = await server.cli(["image", "inspect", "hello"]);
    expect(inspected.code).toBe(0);
    expect(inspected.out).toMatch(
      /^state +ready\nimage +\S+\ndirectory +\S+\/images\/hello\.\S+\ngeneration +0\nheat +0 requests before the freeze\non disk +[\d.]+ MiB\n/,
    );

    expect(await server.cli(["rm", "hello"])).toEqual({ code: 0, out: "hello removed\n", err: "" });
    expect((await server.cli(["invoke", "hello"])).code).toBe(1);
  });

  it("the same for machines: one line of JSON on stdout, nothing on stderr", async () => {
    expect(
      await json("deploy", HELLO_PYTHON, "--wait", "--memory", "256", "--timeout", "2.5", "--env", "A=1", "--env", "B=x=y"),
    ).toMatchObject({
      name: "hello-python",
      runtime: expect.stringMatching(/^python3\.\d+$/),
      handler: "app.handler",
      memoryMb: 256,
      timeoutMs: 2500,
      env: { A: "1", B: "x=y" },
      image: { state: "ready", attempts: 1, image: { generation: 0, heat: 0 } },
    });
    expect(await json("invoke", "hello-python", "--payload", '{"name":"Ö"}', "--trace", "--tail")).toMatchObject({
      payload: { message: "Hello, Ö!", ticket: expect.stringMatching(/^[0-9a-f]{16}$/) },
      executedVersion: "$LATEST",
      start: { kind: "thaw", loader: "splice", generation: 0, us: expect.any(Number) },
      serverUs: expect.any(Number),
      totalUs: expect.any(Number),
      log: expect.stringContaining("greeting Ö\n"),
      trace: {
        start: { phases: expect.any(Array) },
        pages: { written: expect.any(Number) },
        memory: { privateBytes: expect.any(Number) },
      },
    });
    expect(await json("ls")).toMatchObject({
      functions: [{ name: "hello-python", instances: [{ state: "warm" }], counts: { idle: 1 }, lastStart: { kind: "thaw" } }],
    });
    expect(await json("image", "inspect", "hello-python")).toMatchObject({
      state: "ready",
      image: { report: { stoppedMs: expect.any(Number) } },
    });
    expect((await server.cli(["logs", "hello-python", "--json"])).out.split("\n")).toContain('{"line":"greeting Ö"}');
    expect(await json("rm", "hello-python")).toEqual({ removed: "hello-python" });
  });

  it("examples/hot: deploy --wait-hot, image ls, heat, and each generation demanded", { timeout: 180_000 }, async () => {
    const deployed = await server.cli(["deploy", "examples/hot", "--wait-hot"]);
    expect(deployed, deployed.err).toMatchObject({ code: 0, err: "" });
    expect(deployed.out).toMatch(
      /^hot deployed: .*\nhot is ready: image of [\d.]+ MiB, .*\nhot is hot: image of [\d.]+ MiB, heat 1000\n$/,
    );
    const listed = await server.cli(["image", "ls", "hot"]);
    expect(listed.out).toMatch(/^GENERATION +HEAT +SIZE +CODE +FROM +MADE +USED FOR\n0 +0 +[\d.]+ MiB .* deploy .* -\n/);
    expect(listed.out).toMatch(/\n\d+ +1000 +[\d.]+ MiB .* warm-up .* most starts\n$/);

    const heated = await server.cli(["heat", "hot", "--requests", "5", "--from", "0", "--payload", '{"markdown":"# By *hand*"}']);
    expect(heated.out, heated.err).toMatch(
      /^hot has a new image: generation \d+, heat 5, .*\nhandler: .* for the first of 5 requests, .* for the last: [\d.]+ times as fast\n$/,
    );
    const images = (await json("image", "ls", "hot")) as unknown as {
      generation: number;
      heat: number;
      source: string;
      chosen: boolean;
    }[];
    expect(images.find(({ heat }) => heat === 5)).toMatchObject({ source: "by-hand", chosen: false });
    for (const { generation } of images) {
      const run = await json(
        "invoke",
        "hot",
        "--prefer",
        `thaw;generation=${generation};dispose`,
        "--payload",
        '{"markdown":"**so**"}',
      );
      expect(run).toMatchObject({
        payload: { html: "<p><strong>so</strong></p>", words: 1 },
        start: { kind: "thaw", generation },
      });
    }
    expect(await json("rm", "hot")).toEqual({ removed: "hot" });
  });

  it("a warm-up script that fails is named, and nothing is deployed", async () => {
    const cwd = temporaryDir("script");
    writeFileSync(join(cwd, "index.mjs"), "export const handler = async () => null;");
    writeFileSync(join(cwd, "warm-up.mjs"), "console.error('looking for events'); process.exit(4);");
    writeFileSync(join(cwd, "thaw.json"), JSON.stringify({ name: "script", warmUp: { script: "warm-up.mjs" } }));
    expect(await server.cli(["deploy", cwd])).toEqual({
      code: 1,
      out: "",
      err:
        "looking for events\nerror: The warm-up events cannot be used\n  why: warm-up.mjs exited with 4\n" +
        "  fix: Run it by hand in the function's folder, and correct it\n",
    });
    expect((await server.cli(["invoke", "script"])).err).toMatch(/^error: There is no function "script"\n/);
  });

  it("invoke takes the payload from a file or stdin, and demands a kind of start", async () => {
    await server.cli(["deploy", HELLO, "--name", "payloads", "--wait"]);
    const cwd = temporaryDir("payload");
    writeFileSync(join(cwd, "event.json"), '{"name":"file"}');
    const file = await server.cli(["invoke", "payloads", "--payload", "@event.json", "--prefer", "boot"], { cwd });
    expect([file.code, JSON.parse(file.out).message]).toEqual([0, "Hello, file!"]);
    expect(file.err).toMatch(/^boot, started in /);
    const input = await server.cli(["invoke", "payloads", "--payload", "-", "--prefer", "thaw;loader=eager"], {
      input: '{"name":"stdin"}',
    });
    expect(JSON.parse(input.out).message).toBe("Hello, stdin!");
    expect(input.err).toMatch(/^thaw \(eager\), started in /);
  });

  it("invoke exits with 3 when the function fails, its error on stdout", async () => {
    const cwd = temporaryDir("failing");
    writeFileSync(join(cwd, "index.mjs"), "export const handler = async () => { throw new RangeError('too far'); };");
    await server.cli(["deploy", cwd, "--name", "failing", "--wait"]);
    const run = await server.cli(["invoke", "failing"]);
    expect(run.code).toBe(3);
    expect(JSON.parse(run.out)).toMatchObject({ errorType: "RangeError", errorMessage: "too far" });
    expect(run.err).toMatch(/\nerror: the function failed\n$/);
    const machine = await server.cli(["invoke", "failing", "--json"]);
    expect([machine.code, machine.err]).toEqual([3, ""]);
    expect(JSON.parse(machine.out)).toMatchObject({ functionError: "Unhandled", payload: { errorType: "RangeError" } });
  });

  it("deploy --wait fails, with the function's own words, when it cannot be loaded", async () => {
    const cwd = temporaryDir("syntax");
    writeFileSync(join(cwd, "app.py"), "def handler(event, context):\n    return }\n");
    const run = await server.cli(["deploy", cwd, "--name", "syntax", "--handler", "app.handler", "--wait"]);
    expect(run.code).toBe(1);
    expect(run.err).toMatch(/^error: function "syntax" failed while it was loaded\n {2}why: .*(SyntaxError|unmatched).*\n/);
  });

  it("logs --follow prints what comes until it is interrupted, which is no failure", async () => {
    await server.cli(["deploy", HELLO, "--name", "followed", "--wait"]);
    const child = spawn(process.execPath, [join(ROOT, "bin/thaw.mjs"), "logs", "followed", "--follow", "--url", server.url], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    let out = "";
    child.stdout.on("data", (chunk: Buffer) => {
      out += chunk.toString();
    });
    const ended = once(child, "close");
    try {
      for (const name of ["one", "two"]) {
        await server.invoke("followed", { name });
        await until(`the greeting of ${name}`, () => (out.includes(`greeting ${name}\n`) ? true : undefined));
      }
    } finally {
      child.kill("SIGINT");
    }
    expect((await ended)[0]).toBe(0);
    expect(out).toMatch(/greeting one\n.*greeting two\n/s);
  });

  it("THAW_URL and --url name the server, --url first", async () => {
    expect((await cli(["ls"], { url: server.url })).code).toBe(0);
    expect((await cli(["ls", "--url", server.url], { url: NOBODY })).code).toBe(0);
    expect((await cli(["ls", "--url", NOBODY], { url: server.url })).code).toBe(1);
  });

  it.each([
    [["invoke", "nobody"], "FUNCTION_NOT_FOUND", /^error: There is no function "nobody"\n {2}why: .*\n {2}fix: See `thaw ls`/],
    [["logs", "nobody"], "FUNCTION_NOT_FOUND", /^error: There is no function "nobody"\n/],
    [["rm", "nobody"], "FUNCTION_NOT_FOUND", /^error: There is no function "nobody"\n/],
    [["image", "inspect", "nobody"], "FUNCTION_NOT_FOUND", /^error: There is no function "nobody"\n/],
    [["invoke", "payloads", "--payload", "{oops"], "INVALID_PAYLOAD", /^error: The payload is not valid JSON\n {2}why: .*JSON/],
    [
      ["invoke", "payloads", "--prefer", "parked"],
      "PREFERENCE_UNAVAILABLE",
      /^error: .*demands parked\n {2}why: this server parks no husks with this image in them\n/,
    ],
    [
      ["deploy", HELLO, "--name", "payloads"],
      "FUNCTION_EXISTS",
      /^error: Function "payloads" was not deployed\n {2}why: a function of that name exists already\n {2}fix: Deploy with --update/,
    ],
    [["deploy", HELLO, "--name", "old", "--runtime", "nodejs4.x"], "RUNTIME_MISSING", /^error: .*nodejs4\.x/],
  ])("thaw %j fails in words for people, and in JSON for machines", async (args, code, sentence) => {
    const run = await server.cli(args);
    expect(run).toMatchObject({ code: 1, out: "" });
    expect(run.err).toMatch(sentence);
    const machine = await server.cli([...args, "--json"]);
    expect(machine).toMatchObject({ code: 1, out: "" });
    expect(JSON.parse(machine.err).error).toMatchObject({ code, what: expect.any(String) });
  });

  it("a wrong command line exits with 2 and says what is wrong", async () => {
    const run = await server.cli(["deploy", HELLO, "--memory", "lots"]);
    expect([run.code, run.out]).toEqual([2, ""]);
    expect(run.err).toContain("It must be a whole number of at least 1");
  });

  it("doctor finds the machine fit, and the server", async () => {
    const run = await server.cli(["doctor", "--data", server.dataDir]);
    expect(run, run.out).toMatchObject({ code: 0, err: "" });
    for (const check of ["kernel", "privileges", "namespaces", "ptrace", "seccomp", "cgroups", "native", "interpreters", "data"])
      expect(run.out).toMatch(new RegExp(`^ok +${check} +\\S`, "m"));
    expect(run.out).toContain("\nFunctions can be frozen and thawed on this machine.\n");
    expect(run.out).toMatch(new RegExp(`\nAt ${server.url}: thaw \\d+\\.\\d+\\.\\d+, freezing, .*nodejs`));
    expect(await json("doctor", "--data", server.dataDir)).toMatchObject({
      ok: true,
      canFreeze: true,
      server: { pid: server.pid, canFreeze: true },
    });
  });

  it("a second server on the same data directory is refused, and the first one goes on", async () => {
    // What the first one is about to rename, if it were freezing just now.
    const unfinished = join(server.dataDir, "images/.tmp-unfinished");
    mkdirSync(unfinished);
    const second = await cli(["serve", "--data", server.dataDir, "--port", "0"]);
    expect(second.code).toBe(1);
    expect(second.out).toBe("");
    expect(second.err).toBe(
      `error: The data directory ${server.dataDir} cannot be used\n` +
        `  why: a server with process id ${server.pid} is using it\n` +
        "  fix: Stop that server, or give this one another directory with --data\n",
    );
    expect(existsSync(unfinished)).toBe(true);
    expect(JSON.parse((await server.cli(["invoke", "payloads"])).out).message).toBe("Hello, world!");
  });

  it("a second server on the same port is refused", async () => {
    const run = await cli(["serve", "--data", temporaryDir("port"), "--port", new URL(server.url).port]);
    expect(run.code).toBe(1);
    expect(run.err).toMatch(
      /^error: Cannot listen on 127\.0\.0\.1:\d+\n {2}why: Another program listens there, perhaps another thaw\n {2}fix: Stop it, or choose another port with --port\n$/,
    );
  });
});

describe("without a server", () => {
  it.each([["ls"], ["invoke", "x"], ["deploy", HELLO], ["logs", "x"], ["rm", "x"], ["image", "inspect", "x"]])(
    "thaw %s %s says how to start one",
    async (...args) => {
      expect(await cli(args, { url: NOBODY })).toEqual({
        code: 1,
        out: "",
        err:
          `error: No thaw server answers at ${NOBODY}\n` +
          "  why: The connection was refused: nothing listens there\n" +
          "  fix: Start one with `thaw serve`, or name another with --url or THAW_URL\n",
      });
    },
  );

  it("doctor reports nevertheless", async () => {
    const run = await cli(["doctor", "--url", NOBODY, "--data", temporaryDir("doctor")]);
    expect(run.code).toBe(0);
    expect(run.out).toContain(`\nAt ${NOBODY}: no server answers.\n`);
  });
});

describe("as a process", () => {
  const thaw = (args: readonly string[], stdout: "pipe" | number = "pipe"): ChildProcess =>
    spawn(process.execPath, [join(ROOT, "bin/thaw.mjs"), ...args, "--url", NOBODY], { stdio: ["pipe", stdout, "pipe"] });

  /** Ends a command by one SIGINT once it waits for bytes, as `waits` tells of its entries in /proc. */
  async function interrupted(child: ChildProcess, what: string, waits: (proc: string) => boolean): Promise<void> {
    let err = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      err += text;
    });
    await until(what, () => {
      try {
        return waits(`/proc/${child.pid}`) ? true : undefined;
      } catch {
        // A descriptor was closed while we looked.
        return undefined;
      }
    });
    child.kill("SIGINT");
    const [code] = await once(child, "close");
    expect([code, err]).toEqual([130, "interrupted\n"]);
  }
  // Whatever waits for a descriptor has it among the targets of an epoll. A mask of signals would not do: Node itself catches SIGINT before we do.
  const polls = (proc: string, fd: string): boolean =>
    readdirSync(`${proc}/fdinfo`).some((file) =>
      new RegExp(`^tfd:\\s+${fd} `, "m").test(readFileSync(`${proc}/fdinfo/${file}`, "utf8")),
    );

  it("one Ctrl-C ends a command that waits for its payload on stdin", async () => {
    await interrupted(thaw(["invoke", "hello", "--payload", "-"]), "it to wait for stdin", (proc) => polls(proc, "0"));
  });

  it("one Ctrl-C ends a command that waits for somebody to write its payload to a FIFO", async () => {
    const fifo = join(temporaryDir("fifo"), "fifo");
    execFileSync("mkfifo", [fifo]);
    const child = thaw(["invoke", "hello", "--payload", `@${fifo}`]);
    await interrupted(child, "it to wait for the FIFO", (proc) =>
      readdirSync(`${proc}/fd`).some((fd) => readlinkSync(`${proc}/fd/${fd}`) === fifo && polls(proc, fd)),
    );
  });

  it("a payload without end is not read to its end", async () => {
    const run = await cli(["invoke", "hello", "--payload", "@/dev/zero"], { url: NOBODY });
    expect(run.code).toBe(1);
    expect(run.err).toContain("No thaw server answers");
  });

  it("says so when its output cannot be written", async () => {
    const full = openSync("/dev/full", "w");
    const child = thaw(["doctor"], full);
    closeSync(full);
    let err = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      err += text;
    });
    const [code] = await once(child, "close");
    expect([code, err]).toEqual([1, "error: The output cannot be written\n  why: ENOSPC: no space left on device, write\n"]);
  });
});

describe("npx", () => {
  it("builds nothing that is built", () => {
    // npm 9 runs it like this before each command. Without tools it could not build.
    const env = { PATH: "/nowhere", npm_command: "exec", npm_lifecycle_event: "prepare" };
    const prepare = spawnSync(process.execPath, [join(ROOT, "scripts/build.mjs")], { env, encoding: "utf8" });
    expect(prepare).toMatchObject({ status: 0, stdout: "", stderr: "" });
  });
});

describe("serve whose messages nobody reads any more", () => {
  it("goes on, and ends in order when it is told to", async () => {
    const dataDir = temporaryDir("unread");
    const args = [join(ROOT, "bin/thaw.mjs"), "serve", "--boot-only", "--port", "0", "--data", dataDir];
    const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
    child.stderr.destroy();
    await once(child.stdout, "data");
    child.kill("SIGTERM");
    const [code] = await once(child, "close");
    expect(code).toBe(0);
  });
});

describe("serve --boot-only", () => {
  it("runs functions without images, says so everywhere, and gives nothing else", async () => {
    const dataDir = temporaryDir("boot-only");
    const server = await TestServer.start(dataDir, { args: ["--boot-only"] });
    expect(server.output).toMatch(/^thaw listens on \S+ \(booting only, /);
    const deployed = await server.cli(["deploy", HELLO, "--wait"]);
    expect(deployed.code).toBe(0);
    expect(deployed.out).toMatch(
      /\nhello has no image and will be booted at every start \(This server runs functions without images: .*\)\n$/,
    );
    expect((await server.cli(["invoke", "hello"])).err).toMatch(/^boot, started in /);
    expect((await server.cli(["ls"])).out).toMatch(/^hello +\S+ +128 MB +boots +- +- +1 warm +[\d.]+ MiB +- +boot /m);
    const thaw = await server.cli(["invoke", "hello", "--prefer", "thaw"]);
    expect(thaw.code).toBe(1);
    expect(thaw.err).toContain("why: This server runs functions without images");
    await server.stop();

    // The same directory, freezing again: what is there is frozen now.
    const freezing = await TestServer.start(dataDir);
    expect((await freezing.ready("hello")).state).toBe("ready");
    expect((await freezing.invoke("hello", {}, { "x-thaw-prefer": "thaw" })).json.message).toBe("Hello, world!");
    await freezing.stop();
  });
});
