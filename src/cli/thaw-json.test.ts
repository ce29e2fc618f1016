import { execFileSync } from "node:child_process";
import { mkdir, mkdtemp, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { readThawJson } from "./thaw-json.js";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "thaw-json-"));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

const write = (text: string) => writeFile(join(dir, "thaw.json"), text);

it("thaw.json may be missing", async () => {
  expect(await readThawJson(dir)).toEqual({});
});

it("thaw.json holds the settings of a deploy", async () => {
  const settings = {
    name: "a",
    runtime: "nodejs20.x",
    handler: "a.b",
    memory: 256,
    timeout: 2.5,
    tmp: 512,
    env: { A: "1" },
    maxInstances: 2,
    provisioned: 1,
    warmUp: [{ a: 1 }, null],
    learn: true,
  };
  await write(JSON.stringify(settings));
  expect(await readThawJson(dir)).toEqual(settings);
});

it("thaw.json may begin with a byte order mark, as some editors write it", async () => {
  await write('\ufeff{"memory":256}');
  expect(await readThawJson(dir)).toEqual({ memory: 256 });
});

it.each([{ events: [1, 2], requests: 3 }, { events: [] }, { script: "warm-up.mjs" }, { script: "a/b.py", requests: 5 }])(
  "thaw.json may declare warm-up as %j",
  async (warmUp) => {
    await write(JSON.stringify({ warmUp }));
    expect(await readThawJson(dir)).toEqual({ warmUp });
  },
);

it.each([
  [
    '{"memroy": 256}',
    /cannot be used\. unknown key "memroy"\. The keys are name, runtime, handler, memory, timeout, tmp, env, maxInstances, provisioned, warmUp, learn$/,
  ],
  ['{"a": 1, "b": 2}', /unknown keys "a", "b"/],
  ['{"memory": "lots"}', /memory: /],
  ['{"env": {"A": 1}}', /env\.A: /],
  ['{"env": {"A=B": "c"}}', /env: a name is empty or has a = in it/],
  ['{"env": {"__proto__": "c"}}', /env: no variable can be called "__proto__"/],
  ['{"warmUp": "warm-up.mjs"}', /warmUp: it must be a list of events, \{"events": \[\.\.\.\]\} or \{"script": "FILE"\}/],
  ['{"warmUp": {"events": 1}}', /warmUp\.events: /],
  ['{"warmUp": {"script": ""}}', /warmUp\.script: /],
  ['{"warmUp": {"script": "a", "events": []}}', /events/],
  ['{"warmUp": {"script": "a", "requests": 0}}', /warmUp\.requests: /],
  ['{"learn": "yes"}', /learn: /],
  ["[]", /the file: /],
  ["{nope", /is not JSON/],
])("thaw.json with %s is refused", async (text, sentence) => {
  await write(text);
  await expect(readThawJson(dir)).rejects.toThrow(sentence);
});

it.each([
  ["waits for a writer", (path: string) => execFileSync("mkfifo", [path]), /cannot be read\. it is not a file$/],
  ["has no end", (path: string) => symlink("/dev/zero", path), /cannot be read\. it is not a file$/],
  [
    "has no bounds",
    (path: string) => writeFile(path, "").then(() => truncate(path, 2 ** 30)),
    /it has 1 GiB, and the limit is 16 MiB$/,
  ],
])("a thaw.json that %s is refused before it is read", async (_how, make, sentence) => {
  await make(join(dir, "thaw.json"));
  await expect(readThawJson(dir)).rejects.toThrow(sentence);
});

it("a thaw.json that cannot be read is not taken for a missing one", async () => {
  await mkdir(join(dir, "thaw.json"));
  await expect(readThawJson(dir)).rejects.toThrow(/thaw\.json cannot be read/);
});
