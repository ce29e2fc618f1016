/** The engine as a library, in the hands of whoever has not read all of its documentation. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Engine, type FunctionSpec, openEngine } from "../src/engine/index.js";
import { CpuLatency } from "../src/linux/cpu-latency.js";

const dir = mkdtempSync(join(tmpdir(), "thaw-library-"));
const code = join(dir, "code");
let engine: Engine;

const spec: FunctionSpec = {
  name: "hello",
  version: "1",
  runtime: "nodejs20.x",
  codeDir: code,
  handler: "index.handler",
  memoryMb: 128,
  timeoutMs: 10_000,
  env: {},
  tmpMb: 64,
};

beforeAll(async () => {
  mkdirSync(code, { mode: 0o755 });
  writeFileSync(join(code, "index.js"), "exports.handler = async (event) => ({ hello: event.name });\n", { mode: 0o644 });
  engine = await openEngine({ dataDir: relative(process.cwd(), join(dir, "data")), cpuLatency: 10_000 });
  const [runtime] = engine.runtimes.filter(({ id }) => id.startsWith("nodejs"));
  Object.assign(spec, { runtime: runtime?.id });
});
afterAll(async () => {
  await engine.close();
  rmSync(dir, { recursive: true, force: true });
});

describe("an engine", () => {
  it("whose data directory is relative freezes and thaws", async () => {
    const instance = await engine.boot(spec);
    const image = await instance.freeze({ then: "end" });
    const clone = await engine.thaw(image);
    expect((await clone.invoke('{"name":"world"}')).payload.toString()).toBe('{"hello":"world"}');
    await clone.dispose();
    await expect(engine.thaw(image, { loader: "nonsense" as "lazy" })).rejects.toThrow('the loader "nonsense" is unknown');
    expect(() => engine.park(image, "image", -1)).toThrow("cannot be kept");
    expect(() => engine.pool({ generic: -1 })).toThrow("cannot be kept");
    await engine.removeImage(image);
  });

  it("passes its wish for awake processors on", () => {
    const same = new CpuLatency(10_000);
    same.close();
    expect(engine.cpuLatency.info).toEqual(same.info);
  });

  it("that is opened with a wish no kernel takes is refused before anything is made", async () => {
    const asked = openEngine({ dataDir: join(dir, "other"), cpuLatency: 3e9 });
    await expect(asked).rejects.toThrow("a wake-up latency of 3000000000 cannot be asked for");
  });

  it("refuses what is no payload, or a second one at once, and other instances answer on", async () => {
    const [one, other] = await Promise.all([engine.boot(spec), engine.boot(spec)]);
    const answer = other.invoke('{"name":"you"}');
    await expect(one.invoke({ name: "world" } as unknown as string)).rejects.toThrow("it is of the type object");
    const first = one.invoke('{"name":"me"}');
    await expect(one.invoke("{}")).rejects.toThrow("one request at a time");
    expect((await first).payload.toString()).toBe('{"hello":"me"}');
    expect((await answer).payload.toString()).toBe('{"hello":"you"}');
    await expect(one.freeze({ dir: "image" })).rejects.toThrow("it is no absolute path");
    await Promise.all([one.dispose(), other.dispose()]);
  });

  it("goes on where a listener of an instance's end throws, which is told as any uncaught error", async () => {
    const uncaught = new Promise<Error>((resolve) => {
      const before = process.listeners("uncaughtException");
      process.removeAllListeners("uncaughtException");
      process.once("uncaughtException", (error) => {
        for (const listener of before) process.on("uncaughtException", listener);
        resolve(error);
      });
    });
    const instance = await engine.boot(spec);
    const ends: string[] = [];
    instance.onExit(() => {
      throw new Error("mine");
    });
    instance.onExit((reason) => ends.push(reason));
    await instance.dispose();
    expect((await uncaught).message).toBe("mine");
    expect(ends).toEqual(["disposed"]);
    expect(engine.stats().instances).toBe(0);
  });
});
