/**
 * Hot starts on the real engine, from a deploy to the request: warm-up events, a demanded generation, learning from traffic, heating by
 * hand, images that cannot be used, and events that go wrong. Generations are told apart by a counter in the function's memory.
 */
import { mkdtempSync, readdirSync, rmSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { zipSync } from "fflate";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Engine, openEngine } from "../src/engine/index.js";
import { imageFiles } from "../src/image/index.js";
import { openPlatform } from "../src/platform/index.js";
import { pointsPolicy } from "../src/platform/testing.js";
import type { DeployRequest, Platform, Preference } from "../src/platform/types.js";
import { until } from "./support/wait.js";

const CODE = `
import { spawn } from "node:child_process";
import { createServer } from "node:net";
let count = 0;
export const handler = async ({ fail, child, listen, hang } = {}) => {
  count += 1;
  if (fail) { console.log("about to fail"); throw new TypeError(fail); }
  if (child) spawn("sleep", ["1000"]);
  if (listen) await new Promise((done) => createServer().listen(0, "127.0.0.1", done));
  if (hang) await new Promise((done) => setTimeout(done, 1e6));
  return count;
};
`;

let dataDir: string;
let engine: Engine;
let platform: Platform;

async function open(): Promise<void> {
  engine = await openEngine({ dataDir: join(dataDir, "engine") });
  platform = await openPlatform({ dataDir: join(dataDir, "platform"), engine, heatPolicy: pointsPolicy(0, 1, 10, 100) });
}
async function close(): Promise<void> {
  await platform.close();
  await engine.close();
}
beforeAll(async () => {
  dataDir = mkdtempSync(join(tmpdir(), "thaw-test-heat-"));
  await open();
});
afterAll(async () => {
  await close();
  rmSync(dataDir, { recursive: true, force: true });
});

const zip = zipSync({ "index.mjs": new TextEncoder().encode(CODE) });
const deploy = async (name: string, more: Partial<DeployRequest> = {}): Promise<void> => {
  await platform.deploy({ name, zip, timeoutMs: 30_000, ...more });
  await platform.waitReady(name);
};
/** Warm-up has ended, one way or the other. */
const settled = (name: string): Promise<true> =>
  until(`the warm-up of ${name} to end`, () => platform.get(name).image.heat?.state !== "running");
const heats = (name: string): string[] =>
  platform
    .images(name)
    .map(({ generation, heat, source, chosen }) => `${generation}: ${heat} ${source}${chosen ? " chosen" : ""}`);
const imagesOf = (name: string): string[] =>
  readdirSync(join(dataDir, "platform/images")).filter((image) => image.startsWith(`${name}.`));
const start = async (name: string, prefer?: Preference) => {
  const { start, result } = await platform.invoke(name, "{}", { dispose: true, ...(prefer === undefined ? {} : { prefer }) });
  expect(result.functionError, result.payload.toString()).toBeUndefined();
  return { count: Number(result.payload.toString()), start };
};

describe("warm-up events", () => {
  it("make images of growing heat; the chosen one is the hottest, and each thaws to what it was frozen with", async () => {
    await deploy("warm", { warmUp: { events: [{}, { n: 1 }], requests: 30 } });
    await settled("warm");
    expect(platform.get("warm").image.heat).toEqual({ state: "done" });
    expect(heats("warm")).toEqual(["0: 0 deploy", "1: 1 warm-up", "2: 10 warm-up", "3: 30 warm-up chosen"]);
    expect(await start("warm")).toMatchObject({ count: 31, start: { kind: "thaw", generation: 3, heat: 30 } });
    for (const [generation, heat] of [0, 1, 10, 30].entries()) {
      const { count, start: started } = await start("warm", { kind: "thaw", generation });
      expect([count, started.kind, started.generation, started.heat]).toEqual([heat + 1, "thaw", generation, heat]);
    }
    await expect(start("warm", { kind: "thaw", generation: 9 })).rejects.toThrow("generations 0, 1, 2, 3 exist");
    expect(imagesOf("warm")).toHaveLength(4);
  });

  it("and heating by hand go on after a restart, from images that are there; one that is damaged is dropped for the next", async () => {
    await close();
    const before = imagesOf("warm").sort();
    await open();
    await platform.waitReady("warm");
    expect(heats("warm")).toEqual(["0: 0 deploy", "1: 1 warm-up", "2: 10 warm-up", "3: 30 warm-up chosen"]);
    const report = await platform.heat("warm", { requests: 5, payload: "{}" });
    expect(report).toMatchObject({ requests: 5, image: { generation: 4, heat: 35, source: "by-hand", chosen: true } });
    expect(await start("warm")).toMatchObject({ count: 36, start: { generation: 4 } });
    await close();
    const added = imagesOf("warm").find((image) => !before.includes(image)) ?? "";
    truncateSync(imageFiles(join(dataDir, "platform/images", added)).pages, 4096);
    await open();
    expect(await start("warm")).toMatchObject({ count: 31, start: { kind: "thaw", generation: 3 } });
    expect(await platform.logs("warm")).toContain("thaw: generation 4 cannot be used and is dropped");
    await until("the dropped image to go", () => imagesOf("warm").length === 4);
    await platform.remove("warm");
    expect(imagesOf("warm")).toEqual([]);
  });

  it.each([
    ["throws", { fail: "no name" }, "request 2 (warm-up event 2 of 2) failed: TypeError: no name"],
    ["hangs", { hang: true }, "request 2 (warm-up event 2 of 2) did not answer within 6 s"],
    ["child", { child: true }, /after request 10 \(warm-up event 2 of 2\) it cannot be frozen: .*child/],
    ["listens", { listen: true }, /after request 10 \(warm-up event 2 of 2\) it cannot be frozen: .*listen/],
  ] as const)("that go wrong (%s) are named in the status; what was made before serves on", async (name, event, why) => {
    await deploy(name, { ...(name === "hangs" ? { timeoutMs: 6_000 } : {}), warmUp: { events: [{}, event], requests: 12 } });
    await settled(name);
    expect(platform.get(name).image.heat).toMatchObject({ state: "failed", reason: expect.stringMatching(asPattern(why)) });
    expect(heats(name)).toEqual(["0: 0 deploy", "1: 1 warm-up chosen"]);
    expect(await start(name)).toMatchObject({ count: 2, start: { kind: "thaw", generation: 1 } });
    if (name === "throws") expect(await platform.logs(name)).toContain("about to fail");
    await platform.remove(name);
    expect(imagesOf(name)).toEqual([]);
  });
});

describe("learning from traffic", () => {
  it("takes an image between two requests of an instance that goes on; later instances begin where it was", async () => {
    await deploy("learns", { learn: true });
    for (let count = 1; count <= 12; count++) {
      const { result } = await platform.invoke("learns", "{}");
      expect(result.payload.toString()).toBe(String(count));
      // Sequential traffic: the next request comes while the freeze may still go on.
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
    const learnt = () => platform.images("learns").filter(({ source }) => source === "traffic");
    await until("an image from traffic", () => learnt().length > 0);
    const { counts } = platform.get("learns");
    expect(counts.idle + counts.running + counts.hibernated).toBe(1);
    const hot = learnt().at(-1);
    expect(hot?.heat).toBeGreaterThan(0);
    const heat = hot?.heat ?? 0;
    await platform.invoke("learns", "{}", { dispose: true });
    const { count, start: started } = await start("learns");
    // Another image may have come meanwhile: any of those from traffic will do.
    expect(started.kind).toBe("thaw");
    expect(learnt().map(({ generation }) => generation)).toContain(started.generation);
    expect(count).toBe((started.heat ?? 0) + 1);
    expect(started.heat).toBeGreaterThanOrEqual(heat);
    await platform.remove("learns");
    expect(imagesOf("learns")).toEqual([]);
  });
});

function asPattern(why: string | RegExp): RegExp {
  return typeof why === "string" ? new RegExp(why.replace(/[()]/g, "\\$&")) : why;
}
