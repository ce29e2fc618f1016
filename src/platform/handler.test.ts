import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { findEntry } from "./handler.js";

const RUNTIMES = ["nodejs20.x", "python3.11"];
let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "thaw-handler-"));
});
afterEach(async () => {
  await rm(dir, { recursive: true, force: true });
});

async function find(files: Record<string, string>, given: { runtime?: string; handler?: string } = {}, runtimes = RUNTIMES) {
  for (const [name, text] of Object.entries(files)) await writeFile(join(dir, name), text);
  return findEntry(dir, Object.keys(files), given, runtimes);
}

describe("a handler that cannot be guessed", () => {
  it("is asked for, when none of the usual files is there", async () => {
    await expect(find({ "readme.md": "hello" })).rejects.toThrow(
      "The code package has no handler that could be guessed. it has none of the usual files (index.js, index.mjs, app.js, handler.js, " +
        "lambda_function.py, main.py, app.py, …). Name it with --handler FILE.EXPORT, and the runtime with --runtime",
    );
  });

  it("is found by who packed a folder instead of what is in it", async () => {
    const packed = ["myfn/index.js", "myfn/lib/a.js", "__MACOSX/myfn/._index.js", ".DS_Store"];
    await expect(findEntry(dir, packed, {}, RUNTIMES)).rejects.toThrow(
      "all of it lies in its folder myfn. Deploy what is in that folder, without the folder itself; or name it with --handler myfn/FILE.EXPORT",
    );
    for (const others of [["myfn/index.js", "readme.md"], ["a/index.js", "b/index.js"], [".DS_Store"]]) {
      await expect(findEntry(dir, others, {}, RUNTIMES)).rejects.toThrow("none of the usual files");
    }
  });

  it("is TypeScript, which has to be made JavaScript first", async () => {
    const source = ["node_modules/zod/index.d.ts", "src/types.d.ts", "src/index.ts", "tsconfig.json"];
    await expect(findEntry(dir, source, {}, RUNTIMES)).rejects.toThrow(
      "it has TypeScript (src/index.ts) and none of the usual files of JavaScript (index.js, …), which is what runs. Compile or bundle it",
    );
    await expect(findEntry(dir, ["index.js", "src/index.ts"], { runtime: "python3.11" }, RUNTIMES)).rejects.toThrow(
      "it has none of the usual files of python3.11 (lambda_function.py, main.py, app.py, …). Name it",
    );
    for (const others of [["types.d.ts"], ["node_modules/a/index.ts", "readme.md"]])
      await expect(findEntry(dir, others, {}, RUNTIMES)).rejects.toThrow("none of the usual files");
  });

  it("is asked for, when the usual file exports nothing of that name", async () => {
    await expect(find({ "index.js": "console.log(1)" })).rejects.toThrow("index.js exports no function named handler");
  });

  it("does not hide a package.json that Node would refuse", async () => {
    await expect(find({ "package.json": "{", "index.js": "exports.handler = 1" })).rejects.toThrow(
      "The code package's package.json cannot be read",
    );
  });

  it("names the runtimes of this machine, when another is wanted", async () => {
    await expect(find({}, { runtime: "ruby3.3", handler: "a.b" })).rejects.toThrow(
      'Runtime "ruby3.3" is not available. this machine has nodejs20.x, python3.11. Use one of those',
    );
    await expect(find({ "app.py": "def handler(e, c): pass" }, {}, ["nodejs20.x"])).rejects.toThrow(
      'Runtime "Python" is not available',
    );
  });

  it("with a given handler whose file is missing", async () => {
    await expect(find({ "index.js": "" }, { handler: "other.handler" })).rejects.toThrow(
      'The runtime for handler "other.handler" could not be guessed. the code package has no file other.js, .mjs, .cjs or .py',
    );
  });
});

describe("runtime and handler are guessed", () => {
  const cases: [string, Record<string, string>, string, string][] = [
    ["an ES module", { "index.mjs": "export const handler = async () => 1" }, "nodejs20.x", "index.handler"],
    ["an async function", { "index.mjs": "export async function handler() {}" }, "nodejs20.x", "index.handler"],
    ["a list of exports", { "app.mjs": "const handler = 1; export { other, handler };" }, "nodejs20.x", "app.handler"],
    ["CommonJS", { "index.js": "exports.handler = async () => 1" }, "nodejs20.x", "index.handler"],
    ["module.exports", { "handler.cjs": "module.exports = { a, handler };" }, "nodejs20.x", "handler.handler"],
    [
      "package.json's main",
      { "package.json": '{"main":"./start.js"}', "start.js": "exports.handler = 1" },
      "nodejs20.x",
      "start.handler",
    ],
    [
      "Lambda's Python name",
      { "lambda_function.py": "def lambda_handler(event, context):\n" },
      "python3.11",
      "lambda_function.lambda_handler",
    ],
    ["an async def", { "app.py": "import x\nasync def handler(event, context): ..." }, "python3.11", "app.handler"],
    ["an assignment", { "main.py": "handler = make()" }, "python3.11", "main.handler"],
  ];
  for (const [what, files, runtime, handler] of cases) {
    it(`from ${what}`, async () => expect(await find(files)).toEqual({ runtime, handler }));
  }

  it("the runtime alone, from a given handler's file", async () => {
    expect(await find({ "work.py": "" }, { handler: "work.run" })).toEqual({ runtime: "python3.11", handler: "work.run" });
    expect(await find({ "work.mjs": "" }, { handler: "work.run" })).toEqual({ runtime: "nodejs20.x", handler: "work.run" });
  });

  it("the handler alone, among the files of a given runtime", async () => {
    const files = { "index.mjs": "export const handler = 1", "app.py": "def handler(e, c): pass" };
    expect(await find(files, { runtime: "python3.11" })).toEqual({ runtime: "python3.11", handler: "app.handler" });
  });
});
