/** Warm-up, learning and images by heat, as a user types and sees them. */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ThawError } from "../base/errors.js";
import { type Gateway, openGateway } from "../gateway/index.js";
import { openTestPlatform, type TestPlatform } from "../gateway/testing.js";
import type { ImageEntry } from "../platform/types.js";
import { codeHeatText, heatText } from "./heat-text.js";
import { type CliOptions, type CliRun, runCli } from "./testing.js";

let test: TestPlatform;
let gateway: Gateway;
let cwd: string;
let seen: unknown[];

beforeEach(async () => {
  // The policy looks again, now and then, at images that it does not take for the best.
  vi.spyOn(Math, "random").mockReturnValue(0.999_999);
  test = await openTestPlatform();
  gateway = await openGateway({ platform: test.platform });
  cwd = await mkdtemp(join(tmpdir(), "thaw-cli-"));
  await mkdir(join(cwd, "hello"));
  await write("index.mjs", "export const handler = async () => null;\n");
  seen = [];
  test.engine.handler = (event) => {
    seen.push(event);
    return event;
  };
});
afterEach(async () => {
  vi.restoreAllMocks();
  await gateway.close();
  await test.close();
  await rm(cwd, { recursive: true, force: true });
});

const write = (name: string, text: string) => writeFile(join(cwd, "hello", name), text);
const thaw = (args: readonly string[], options: CliOptions = {}): Promise<CliRun> =>
  runCli(args, { url: gateway.url, cwd, env: { PATH: process.env.PATH ?? "" }, ...options });
const images = async (): Promise<ImageEntry[]> =>
  JSON.parse((await thaw(["image", "ls", "hello", "--json"])).out) as ImageEntry[];
const refused = (why: string) => new ThawError("FREEZE_REFUSED", { what: 'Function "hello" could not be frozen', why });

describe("deploy with warm-up events", () => {
  it("of thaw.json: they are replayed, and --wait-hot says how hot it is then", async () => {
    await write("thaw.json", JSON.stringify({ warmUp: { events: ["a", { b: 1 }], requests: 12 } }));
    const run = await thaw(["deploy", "hello", "--wait-hot"]);
    expect(run).toMatchObject({ code: 0, err: "" });
    expect(run.out).toMatch(/\nhello is ready: image of 4 KiB, .*\nhello is hot: image of 4 KiB, heat 12\n$/);
    expect(seen).toEqual(Array.from({ length: 12 }, (_, index) => (index % 2 === 0 ? "a" : { b: 1 })));
    expect((await images()).map(({ heat, source }) => `${heat} ${source}`)).toEqual([
      "0 deploy",
      "1 warm-up",
      "10 warm-up",
      "12 warm-up",
    ]);
    const listed = (await thaw(["ls"])).out.split("\n")[1] ?? "";
    expect(listed).toMatch(/^hello +nodejs20\.x +128 MB +frozen +4 KiB +12 +0 /);
  });

  it("of a script, which runs here, is shown, and is not part of the package", async () => {
    await write("warm-up.mjs", "console.error('two events'); console.log('1\\n{\"two\": 2}');");
    const plain = JSON.parse((await thaw(["deploy", "hello", "--name", "with", "--json"])).out) as { codeBytes: number };
    await write("thaw.json", JSON.stringify({ warmUp: { script: "warm-up.mjs", requests: 2 } }));
    const run = await thaw(["deploy", "hello", "--wait-hot", "--json"]);
    expect(run).toMatchObject({ code: 0, err: "two events\n" });
    const about = JSON.parse(run.out) as { codeBytes: number };
    expect(about).toMatchObject({
      warmUp: { eventCount: 2, requests: 2 },
      image: { state: "ready", heat: { state: "done" }, image: { heat: 2 } },
    });
    expect(seen).toEqual([1, { two: 2 }]);
    expect(about.codeBytes).toBeLessThan(plain.codeBytes);
  });

  it("of a file, instead of those in thaw.json, whose script then is not run", async () => {
    await write("thaw.json", JSON.stringify({ warmUp: { script: "nowhere.mjs" } }));
    await writeFile(join(cwd, "events.jsonl"), '"from the file"\n');
    const run = await thaw(["deploy", "hello", "--warm-up", "events.jsonl", "--wait-hot"]);
    expect(run).toMatchObject({ code: 0, err: "" });
    expect(new Set(seen)).toEqual(new Set(["from the file"]));
    expect((await thaw(["deploy", "hello", "--update", "--no-warm-up", "--json"])).out).not.toContain("warmUp");
  });

  it("that fail: --wait does not mind, --wait-hot exits with 1, and ls goes on to say it", async () => {
    await write("thaw.json", JSON.stringify({ warmUp: ["fine", "bad"] }));
    test.engine.handler = (event) => {
      if (event === "bad") throw new TypeError("no such thing");
    };
    expect((await thaw(["deploy", "hello", "--wait"])).code).toBe(0);
    const run = await thaw(["deploy", "hello", "--update", "--wait-hot"]);
    expect(run.code).toBe(1);
    expect(run.out).toMatch(/\nhello is ready: .*\n$/);
    expect(run.err).toMatch(
      /^error: The warm-up of hello failed\n {2}why: .*request 2 \(warm-up event 2 of 2\) failed: .*no such thing.*\n {2}fix: It serves from the image/,
    );
    const listed = (await thaw(["ls"])).out;
    expect(listed).toMatch(/^hello .* 1 \(warm-up failed\) /m);
    expect(listed).toMatch(/\nhello: .*request 2 \(warm-up event 2 of 2\) failed: .*no such thing/);
    const machine = await thaw(["deploy", "hello", "--update", "--wait-hot", "--json"]);
    expect(JSON.parse(machine.err)).toMatchObject({ error: { code: "WARM_UP_FAILED" } });
  });

  it("cannot be waited for where there are none, or where there is no image", async () => {
    const none = await thaw(["deploy", "hello", "--wait-hot"]);
    expect(none).toMatchObject({ code: 1, out: "" });
    expect(none.err).toMatch(/^error: --wait-hot cannot be used\n {2}why: no warm-up events are declared\n {2}fix: /);
    await write("thaw.json", JSON.stringify({ warmUp: [1] }));
    test.engine.failNext("freeze", refused("it holds an inotify descriptor"));
    const run = await thaw(["deploy", "hello", "--wait-hot"]);
    expect(run.code).toBe(1);
    expect(run.out).toMatch(/hello has no image and will be booted at every start \(.*inotify/);
    expect(run.err).toMatch(/^error: The warm-up of hello failed\n {2}why: there is no image that could be made hotter/);
    expect(run.err).toMatch(/\n {2}fix: `thaw image inspect hello` says why it has none; mend that, and deploy again\n$/);
  });

  it("that take longer than --wait-timeout go on; the command does not", async () => {
    await write("thaw.json", JSON.stringify({ warmUp: ["slow"], timeout: 60 }));
    let release = (): void => undefined;
    test.engine.handler = () =>
      new Promise<void>((resolve) => {
        release = resolve;
      });
    const run = await thaw(["deploy", "hello", "--wait-hot", "--wait-timeout", "0.3"]);
    expect(run.code).toBe(1);
    expect(run.err).toMatch(/^error: The warm-up of hello is not over yet\n {2}why: it takes longer than 0\.3 s\n/);
    expect((await thaw(["ls"])).out).toMatch(/^hello .* 0 \(warming up\) /m);
    test.engine.handler = () => null;
    release();
  });

  it("and nothing is deployed when they cannot be had", async () => {
    await write("thaw.json", JSON.stringify({ warmUp: { script: "warm-up.mjs" } }));
    await write("warm-up.mjs", "console.log('1\\nnope')");
    const run = await thaw(["deploy", "hello"]);
    expect(run).toMatchObject({ code: 1, out: "" });
    expect(run.err).toMatch(
      /^error: The warm-up events cannot be used\n {2}why: line 2 of what warm-up\.mjs printed is not JSON: .*\n {2}fix: Give one JSON value a line\n$/,
    );
    await write("thaw.json", JSON.stringify({ warmUp: Array.from({ length: 1001 }, () => 1) }));
    expect((await thaw(["deploy", "hello"])).err).toMatch(/why: warm-up has more than 1000 events/);
    expect((await thaw(["ls"])).out).toBe("No functions. Deploy one: thaw deploy FOLDER\n");
  });
});

describe("deploy with learning", () => {
  it("says plainly what the images will hold", async () => {
    const run = await thaw(["deploy", "hello", "--learn", "--wait"]);
    expect(run.out).toContain("\nhello learns from traffic: its images will hold remains of real requests\n");
    expect((await thaw(["ls"])).out).toMatch(/^hello .* 0 \(learning\) /m);
  });

  it("is off unless told, and options override thaw.json", async () => {
    expect((await thaw(["deploy", "hello"])).out).not.toContain("learns");
    await write("thaw.json", JSON.stringify({ learn: true }));
    expect((await thaw(["deploy", "hello", "--update"])).out).toContain("learns from traffic");
    expect((await thaw(["deploy", "hello", "--update", "--no-learn"])).out).not.toContain("learns");
  });

  it("does not keep --wait-hot waiting: learning may go on for ever", async () => {
    await write("thaw.json", JSON.stringify({ learn: true, warmUp: { events: [1], requests: 2 } }));
    const run = await thaw(["deploy", "hello", "--wait-hot"]);
    expect(run.out).toMatch(/\nhello is hot: image of 4 KiB, heat 2\n$/);
    expect((await thaw(["ls"])).out).toMatch(/^hello .* 2 \(learning\) /m);
  });
});

describe("images by heat", () => {
  beforeEach(() => thaw(["deploy", "hello", "--wait"]));

  it("are made by hand, listed, and demanded by generation", async () => {
    const heated = await thaw(["heat", "hello", "--requests", "20", "--payload", '{"n":1}']);
    expect(heated).toMatchObject({ code: 0, err: "" });
    expect(heated.out).toMatch(
      /^hello has a new image: generation 1, heat 20, 4 KiB, 3 of 3 functions interpreted\nhandler: [\d.]+ [mu]s for the first of 20 requests, [\d.]+ [mu]s for the last: [\d.]+ times as fast\n$/,
    );
    expect(seen).toEqual(Array.from({ length: 20 }, () => ({ n: 1 })));
    await writeFile(join(cwd, "event.json"), '"file"');
    await thaw(["heat", "hello", "--requests", "1", "--payload", "@event.json", "--from", "0"]);
    expect(seen.at(-1)).toBe("file");

    const listed = (await thaw(["image", "ls", "hello"])).out.split("\n");
    expect(listed[0]).toMatch(/^GENERATION +HEAT +SIZE +CODE +FROM +MADE +USED FOR$/);
    expect(listed[1]).toMatch(/^0 +0 +4 KiB +3 of 3 functions interpreted +deploy +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ +-$/);
    expect(listed[2]).toMatch(/^2 +1 +4 KiB +3 of 3 functions interpreted +by-hand +\S+Z +-$/);
    expect(listed[3]).toMatch(/^1 +20 +4 KiB +3 of 3 functions interpreted +by-hand +\S+Z +most starts$/);
    expect(await images()).toMatchObject([
      { generation: 0, heat: 0, bytes: 4096, chosen: false },
      { generation: 2, heat: 1, chosen: false },
      { generation: 1, heat: 20, chosen: true },
    ]);
    expect((await thaw(["invoke", "hello"])).err).toMatch(/^thaw \(splice\), generation 1, started in /);
    const invoked = await thaw(["invoke", "hello", "--prefer", "thaw;generation=2", "--json"]);
    expect(JSON.parse(invoked.out)).toMatchObject({ start: { kind: "thaw", generation: 2 } });
  });

  it("are told as JSON when that is asked for", async () => {
    const run = await thaw(["heat", "hello", "--requests", "2", "--json"]);
    expect(run).toMatchObject({ code: 0, err: "" });
    expect(JSON.parse(run.out)).toMatchObject({ image: { generation: 1, heat: 2 }, requests: 2, firstMs: expect.any(Number) });
    expect(seen).toEqual([{}, {}]);
  });

  it("are made with the declared events where no payload is given", async () => {
    await write("thaw.json", JSON.stringify({ warmUp: { events: ["a", "b"], requests: 1 } }));
    await thaw(["deploy", "hello", "--update", "--wait-hot"]);
    seen.length = 0;
    expect((await thaw(["heat", "hello", "--requests", "3"])).code).toBe(0);
    expect(seen).toEqual(["a", "b", "a"]);
  });

  it.each([
    [["heat", "nobody"], "FUNCTION_NOT_FOUND", /^error: There is no function "nobody"/],
    [["image", "ls", "nobody"], "FUNCTION_NOT_FOUND", /^error: There is no function "nobody"/],
    [["heat", "hello", "--payload", "{nope"], "INVALID_PAYLOAD", /^error: .*\n {2}why: .*JSON/],
    [["heat", "hello", "--payload", "@nowhere"], "INVALID_PAYLOAD", /^error: The payload cannot be read/],
    [["heat", "hello", "--from", "5"], "INVALID_ARGUMENT", /why: it has no image of generation 5; those that exist are 0/],
    [
      ["invoke", "hello", "--prefer", "thaw;generation=9"],
      "PREFERENCE_UNAVAILABLE",
      /why: it has no such image: generation 0 alone/,
    ],
    [["invoke", "hello", "--prefer", "thaw;generation=x"], "INVALID_ARGUMENT", /why: "x" is not a generation/],
  ])("%j fails with its code", async (args, code, sentence) => {
    const run = await thaw(args);
    expect(run).toMatchObject({ code: 1, out: "" });
    expect(run.err).toMatch(sentence);
    expect(JSON.parse((await thaw([...args, "--json"])).err)).toMatchObject({ error: { code } });
  });

  it.each([
    [["heat", "hello", "--requests", "0"], /It must be a whole number from 1 to 100000\./],
    [["heat", "hello", "--requests", "100001"], /It must be a whole number from 1 to 100000\./],
    [["heat", "hello", "--from", "hottest"], /It must be a whole number from 0 to/],
    [["heat"], /missing required argument 'name'/],
    [["image", "ls"], /missing required argument 'name'/],
  ])("%j is a usage error", async (args, sentence) => {
    const run = await thaw(args);
    expect(run.code).toBe(2);
    expect(run.err).toMatch(sentence);
  });

  it("are not made of a function that fails, and the request is named", async () => {
    test.engine.handler = () => {
      throw new RangeError("too far");
    };
    const run = await thaw(["heat", "hello", "--requests", "3"]);
    expect(run).toMatchObject({ code: 1, out: "" });
    expect(run.err).toMatch(/^error: .*\n {2}why: request 1 failed: .*too far.*\n {2}fix: /);
    expect(await images()).toHaveLength(1);
  });

  it("are none of a function that cannot be frozen", async () => {
    test.engine.failNext("freeze", refused("it has a child"));
    await thaw(["deploy", "hello", "--update", "--wait"]);
    expect(await thaw(["image", "ls", "hello"])).toMatchObject({
      code: 0,
      out: "hello has no image; `thaw image inspect hello` says why\n",
    });
    expect(await images()).toEqual([]);
  });
});

describe("heat in words", () => {
  it("counts the functions in the fastest tier", () => {
    expect(codeHeatText({ functions: 60, tiers: { interpreted: 10, baseline: 7, optimised: 43 } })).toBe(
      "43 of 60 functions optimised",
    );
    expect(codeHeatText({ functions: 8, tiers: { plain: 8, specialised: 0 } })).toBe("8 of 8 functions plain");
    expect(codeHeatText({ functions: 2, tiers: { interpreted: 0, optimised: 0 } })).toBe("none of 2 functions called");
    expect(codeHeatText({ functions: 0, tiers: {} })).toBe("no functions to look at");
  });

  it("says what goes on about hotter images", () => {
    const image = { state: "ready", attempts: 1, image: { heat: 7 } } as Parameters<typeof heatText>[0]["image"];
    const warmUp = { eventCount: 1 };
    expect(heatText({ image: { state: "pending", attempts: 0 } })).toBe("-");
    expect(heatText({ image })).toBe("7");
    expect(heatText({ image: { ...image, heat: { state: "done" } }, warmUp })).toBe("7");
    expect(heatText({ image: { ...image, heat: { state: "running" } }, warmUp })).toBe("7 (warming up)");
    expect(heatText({ image: { ...image, heat: { state: "running", warmUp: "running" } }, warmUp })).toBe("7 (warming up)");
    expect(heatText({ image: { ...image, heat: { state: "running", warmUp: "done" } }, warmUp })).toBe("7 (learning)");
    expect(heatText({ image: { ...image, heat: { state: "failed", warmUp: "failed" } }, warmUp })).toBe("7 (warm-up failed)");
    expect(heatText({ image: { ...image, heat: { state: "failed" } } })).toBe("7 (learning failed)");
  });
});
