import { execFileSync } from "node:child_process";
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Interrupted, type Io } from "./io.js";
import { readEvents, runScript, scriptOf, warmUpFrom } from "./warm-up.js";

let dir: string;
let err: string;
let stop: AbortController;
let io: Io;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "thaw-warm-up-"));
  err = "";
  stop = new AbortController();
  io = {
    out: async () => {},
    err: (text) => {
      err += text;
    },
    readInput: async () => Buffer.alloc(0),
    env: { PATH: process.env.PATH, GREETING: "hello" },
    cwd: "/nonexistent",
    stop: stop.signal,
    interactive: false,
  };
});
afterEach(() => rm(dir, { recursive: true, force: true }));

async function file(name: string, text: string, mode = 0o644): Promise<string> {
  await writeFile(join(dir, name), text);
  await chmod(join(dir, name), mode);
  return name;
}

/** Whether a process is there, and no zombie. */
async function lives(pid: number): Promise<boolean> {
  const status = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  return status !== "" && !/\) [ZX] /.test(status);
}

async function gone(pid: number): Promise<void> {
  while (await lives(pid)) await new Promise((done) => setTimeout(done, 5));
}

describe("events of a file", () => {
  it("are a JSON list, or one JSON value a line", async () => {
    await file("list.json", '[{"a": 1}, 2]');
    await file("lines.jsonl", '{"a": 1}\n\n"two"\r\n');
    expect(await readEvents(io, join(dir, "list.json"))).toEqual({ events: [{ a: 1 }, 2] });
    expect(await readEvents(io, join(dir, "lines.jsonl"))).toEqual({ events: [{ a: 1 }, "two"] });
  });

  it.each(["marked.json", "marked.jsonl"])("may begin with a byte order mark, as some editors write it (%s)", async (name) => {
    await file(name, `\ufeff${name.endsWith("l") ? "1" : "[1]"}`);
    expect(await readEvents(io, join(dir, name))).toEqual({ events: [1] });
  });

  it.each([
    ["nowhere.json", undefined, /nowhere\.json cannot be read: ENOENT.*Check --warm-up/],
    ["a.json", "{nope", /a\.json is not JSON: .*A file with one event a line must be called \.jsonl/],
    ["a.json", '{"a": 1}', /a\.json holds no list/],
    ["a.json", "[]", /a\.json gives no event/],
    ["a.jsonl", "\n", /a\.jsonl gives no event/],
    ["a.jsonl", "1\n\n{nope\n", /line 3 of .*a\.jsonl is not JSON/],
    ["a.json", `${"[".repeat(100_000)}${"]".repeat(100_000)}`, /a\.json are nested too deeply\. Give flatter ones/],
    ["/dev/zero", undefined, /zero has more than 16 MiB/],
    ["a.json", JSON.stringify(["x".repeat(1024 * 1024)]), /a\.json have 1 MiB, and the limit is 1 MiB/],
  ])("in %s are refused with the reason (case %#)", async (name, text, sentence) => {
    if (text !== undefined) await file(name, text);
    const refused = readEvents(io, resolve(dir, name));
    await expect(refused).rejects.toMatchObject({ code: "INVALID_ARGUMENT", what: "The warm-up events cannot be used" });
    await expect(refused).rejects.toThrow(sentence);
  });
});

it("events of a FIFO are waited for until the command is interrupted", async () => {
  const path = join(dir, "fifo");
  execFileSync("mkfifo", [path]);
  const reading = readEvents(io, path);
  stop.abort();
  await expect(reading).rejects.toBeInstanceOf(Interrupted);
});

describe("what thaw.json declares", () => {
  it("is a list, events with a number of requests, or a script", async () => {
    expect(await warmUpFrom(io, dir, [1, 2])).toEqual({ events: [1, 2] });
    expect(await warmUpFrom(io, dir, { events: [1], requests: 10 })).toEqual({ events: [1], requests: 10 });
    await file("warm-up.mjs", "for (const name of ['a', 'b']) console.log(JSON.stringify({ name }));");
    expect(await warmUpFrom(io, dir, { script: "warm-up.mjs", requests: 20 })).toEqual({
      events: [{ name: "a" }, { name: "b" }],
      requests: 20,
    });
    await file("silent.mjs", "");
    await expect(warmUpFrom(io, dir, { script: "silent.mjs" })).rejects.toThrow(/silent\.mjs gives no event/);
    await expect(warmUpFrom(io, dir, [])).rejects.toThrow(/thaw\.json gives no event/);
  });

  it("leaves the script out of the package, by the name that it has there", () => {
    expect(scriptOf({ script: "./warm/up.mjs" })).toBe("warm/up.mjs");
    expect(scriptOf([1])).toBeUndefined();
    expect(scriptOf({ events: [1] })).toBeUndefined();
    expect(scriptOf(undefined)).toBeUndefined();
  });
});

describe("a warm-up script", () => {
  it("runs in the folder, with the environment, and its errors are shown", async () => {
    await file("data.json", '{"n": 3}');
    await file(
      "a.cjs",
      "console.error('thinking, naïvely'); console.log(JSON.stringify([process.env.GREETING, require('fs').readFileSync('data.json', 'utf8')]));",
    );
    expect(await runScript(io, dir, "a.cjs")).toEqual([["hello", '{"n": 3}']]);
    expect(err).toBe("thinking, naïvely\n");
  });

  it("may be Python, or any executable", async () => {
    await file("a.py", "import json\nfor n in range(3): print(json.dumps({'n': n}))\n");
    await file("a.sh", "#!/bin/sh\necho '\"shell\"'\n", 0o755);
    expect(await runScript(io, dir, "a.py")).toEqual([{ n: 0 }, { n: 1 }, { n: 2 }]);
    expect(await runScript(io, dir, "a.sh")).toEqual(["shell"]);
  });

  it.each([
    ["a.mjs", "console.log(1); process.exitCode = 7;", /a\.mjs exited with 7\. Run it by hand/],
    ["a.mjs", "process.kill(process.pid, 'SIGTERM'); setTimeout(() => {}, 60_000);", /a\.mjs was ended by SIGTERM/],
    ["a.mjs", "console.log(1); console.log('two');", /line 2 of what a\.mjs printed is not JSON/],
    ["a.mjs", "console.log('x'.repeat(5000));", /a\.mjs printed more than 4 KiB/],
    ["a.mjs", "console.error('x'.repeat(5000));", /a\.mjs printed more than 4 KiB/],
    ["a.sh", "#!/bin/sh\n", /a\.sh is neither a \.mjs, \.js, \.cjs or \.py file nor executable/],
    ["nowhere.mjs", undefined, /nowhere\.mjs cannot be run: ENOENT/],
    ["../a.mjs", undefined, /\.\.\/a\.mjs cannot be run: ENOENT|\.\.\/a\.mjs is outside the function's folder/],
    ["../../bin/true", undefined, /is outside the function's folder|cannot be run/],
    [".", undefined, /\. is outside the function's folder/],
  ])("%s is refused with the reason (case %#)", async (name, text, sentence) => {
    if (text !== undefined) await file(name, text);
    const refused = runScript(io, dir, name, { ms: 20_000, bytes: 4096 });
    await expect(refused).rejects.toMatchObject({ code: "INVALID_ARGUMENT", what: "The warm-up events cannot be used" });
    await expect(refused).rejects.toThrow(sentence);
  });

  it("is not followed out of the folder by a link, and a folder is none", async () => {
    await mkdir(join(dir, "function"));
    await mkdir(join(dir, "function", "sub.mjs"));
    await file("a.mjs", "console.log(1)");
    await expect(runScript(io, join(dir, "function"), "../a.mjs")).rejects.toThrow(/is outside the function's folder/);
    await expect(runScript(io, join(dir, "function"), "sub.mjs")).rejects.toThrow(/sub\.mjs is not a file/);
  });

  it("without its interpreter is refused by the interpreter's name", async () => {
    await file("a.py", "print(1)\n");
    await expect(runScript({ ...io, env: { PATH: dir } }, dir, "a.py")).rejects.toThrow(
      /a\.py needs python3, which is not found/,
    );
    await file("a.sh", "#!/nowhere\necho 1\n", 0o755);
    await expect(runScript(io, dir, "a.sh")).rejects.toThrow(/a\.sh needs the interpreter in its first line, which is not found/);
  });

  it("that does not end is killed with everything that it started", async () => {
    await file("a.sh", "#!/bin/sh\nsleep 600 &\necho $! >&2\nsleep 600\n", 0o755);
    await expect(runScript(io, dir, "a.sh", { ms: 3000, bytes: 4096 })).rejects.toThrow(/a\.sh did not end within 3 s/);
    const pid = Number(err);
    expect(pid).toBeGreaterThan(1);
    await gone(pid);
  });

  it("leaves nothing running when it ends by itself", async () => {
    await file("a.sh", "#!/bin/sh\nsleep 600 &\necho $!\n", 0o755);
    const [pid] = await runScript(io, dir, "a.sh");
    await gone(pid as number);
  });

  it("ends with the command when that is interrupted", async () => {
    await file("a.sh", "#!/bin/sh\necho $$ >&2\nsleep 600\n", 0o755);
    const { err: show } = io;
    const running = runScript(
      {
        ...io,
        err: (text) => {
          show(text);
          stop.abort();
        },
      },
      dir,
      "a.sh",
    );
    await expect(running).rejects.toBeInstanceOf(Interrupted);
    await gone(Number(err));
    await expect(runScript(io, dir, "a.sh")).rejects.toBeInstanceOf(Interrupted);
  });
});
