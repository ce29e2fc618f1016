import { readdirSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { FakeEnd } from "../engine/fake.js";
import { openTestBed, pointsPolicy, type TestBed, until, zipOf } from "./testing.js";
import type { DeployRequest } from "./types.js";

let bed: TestBed;
afterEach(async () => {
  await bed.close();
});

const EVENTS = ["zero", { one: 1 }, null];
const deploy = (more: Partial<DeployRequest> = {}) =>
  bed.platform.deploy({ name: "a", zip: zipOf(), warmUp: { events: EVENTS, requests: 20 }, ...more });
const status = () => bed.platform.get("a").image.heat;
const settled = () => until(() => status()?.state !== "running");
const heats = () => bed.platform.images("a").map(({ generation, heat, source }) => `${generation}: ${heat} ${source}`);
const imagesOnDisk = (): string[] => readdirSync(join(bed.dataDir, "images"));
const refusal = new ThawError("FREEZE_REFUSED", {
  what: 'Function "a" could not be frozen',
  why: "it has a child process (pid 7)",
});

describe("warm-up events", () => {
  it("make hotter images at the policy's points, and a last one at the end; generation 0 serves meanwhile", async () => {
    const seen: unknown[] = [];
    const policy = pointsPolicy(0, 1, 10, 100);
    bed = await openTestBed({ heatPolicy: policy });
    bed.engine.handler = (event) => seen.push(event);
    expect((await deploy()).image.heat).toEqual({ state: "running" });
    expect((await bed.platform.waitReady("a")).image).toMatchObject({ generation: 0, heat: 0 });
    await settled();
    expect(status()).toEqual({ state: "done" });
    expect(heats()).toEqual(["0: 0 deploy", "1: 1 warm-up", "2: 10 warm-up", "3: 20 warm-up"]);
    expect(seen).toEqual(Array.from({ length: 20 }, (_, index) => EVENTS[index % EVENTS.length]));
    expect(policy.answers).toEqual(Array.from({ length: 20 }, (_, index) => `0 ${index + 1}`));
    expect(bed.platform.images("a").map(({ chosen }) => chosen)).toEqual([false, false, false, true]);
    expect(bed.platform.metrics()).toMatchObject({ freezes: 1, heatFreezes: 3, heatFailures: 0, invocations: 0 });
    expect((await bed.platform.invoke("a", "")).start).toMatchObject({ kind: "thaw", generation: 3, heat: 20 });
    // The private instances have ended: what lives is the one that answered.
    expect(bed.engine.live.size).toBe(1);
    expect(imagesOnDisk()).toHaveLength(4);
  });

  it("take no place of those that requests compete for", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 1), maxInstances: 1 });
    let release = (): void => undefined;
    bed.engine.handler = (event) => (event === "zero" ? new Promise<void>((resolve) => (release = resolve)) : event);
    await deploy({ warmUp: { events: ["zero"], requests: 1 }, timeoutMs: 60_000 });
    await bed.platform.waitReady("a");
    await until(() => bed.engine.live.size === 1);
    expect((await bed.platform.invoke("a", "7")).start).toMatchObject({ kind: "thaw", generation: 0 });
    release();
    await settled();
    expect(status()).toEqual({ state: "done" });
  });

  it("are not replayed further than the policy wants, nor when it wants nothing", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 4) });
    await deploy();
    await settled();
    expect(heats()).toEqual(["0: 0 deploy", "1: 4 warm-up"]);
    await bed.close();
    bed = await openTestBed({ heatPolicy: pointsPolicy(0) });
    await deploy();
    await settled();
    expect(heats()).toEqual(["0: 0 deploy"]);
  });

  it("wait while the first image of another function is made", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 2) });
    const order: string[] = [];
    bed.engine.handler = async () => {
      order.push("warm-up");
      if (order.length > 1) return;
      bed.engine.delayMs.freeze = 30;
      await bed.platform.deploy({ name: "b", zip: zipOf() });
      void bed.platform.waitReady("b").then(() => order.push("b is ready"));
    };
    await deploy();
    await settled();
    expect(order).toEqual(["warm-up", "b is ready", "warm-up"]);
  });

  it("that throw: the status names event and error, the log has its output, generation 0 serves, and it is not tried again", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 10), heatBackoffMs: 1 });
    bed.engine.handler = (event, { log }) => {
      if (event !== null) return event;
      log("the third is empty\n");
      throw new TypeError("no name");
    };
    await deploy();
    await settled();
    expect(status()).toEqual({
      state: "failed",
      reason:
        'Function "a" could not be made hotter. request 3 (warm-up event 3 of 3) failed: TypeError: no name. The images that exist serve on. ' +
        "See its log with `thaw logs`, correct the function or the events, and deploy it again",
    });
    expect(await bed.platform.logs("a")).toContain(
      "thaw: warm-up: request 3 (warm-up event 3 of 3) failed: TypeError: no name\nthe third is empty\n",
    );
    expect((await bed.platform.invoke("a", "1")).start).toMatchObject({ kind: "thaw", generation: 0 });
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(bed.engine.calls.filter((call) => call === "freeze a")).toHaveLength(1);
    expect(bed.platform.metrics()).toMatchObject({ heatFreezes: 0, heatFailures: 1, invocations: 1 });
    bed = await bed.restart();
    await bed.platform.waitReady("a");
    expect(status()).toMatchObject({ state: "failed", reason: expect.stringContaining("warm-up event 3") });
    expect(bed.engine.calls.filter((call) => call.startsWith("thaw"))).toEqual([]);
  });

  it("that fail later keep the images that were made before", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 1, 10) });
    bed.engine.handler = (_event, { served }) => {
      if (served === 4) throw new Error("enough");
    };
    await deploy();
    await settled();
    expect(status()?.reason).toContain("request 5 (warm-up event 2 of 3) failed: Error: enough");
    expect(heats()).toEqual(["0: 0 deploy", "1: 1 warm-up"]);
  });

  it("that hang obey the function's timeout", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 10) });
    bed.engine.handler = () => new Promise(() => undefined);
    await deploy({ timeoutMs: 1_000 });
    await settled();
    expect(status()?.reason).toContain("request 1 (warm-up event 1 of 3) did not answer within 1 s");
    expect(heats()).toEqual(["0: 0 deploy"]);
    await until(() => bed.engine.live.size === 0);
  });

  it.each([
    ["INSTANCE_EXITED", "ended the process"],
    ["OUT_OF_MEMORY", "took more than its 128 MB of memory"],
  ] as const)("after which the process is gone (%s) are named", async (platformError, words) => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 10) });
    bed.engine.handler = () => {
      throw new FakeEnd(platformError);
    };
    await deploy();
    await settled();
    expect(status()?.reason).toContain(`request 1 (warm-up event 1 of 3) ${words}`);
    expect(heats()).toEqual(["0: 0 deploy"]);
    expect((await bed.platform.invoke("a", "")).start.generation).toBe(0);
  });

  it("whose instance is killed from outside are named", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 10) });
    bed.engine.handler = () => {
      for (const instance of bed.engine.live) instance.crash("killed");
      return new Promise(() => undefined);
    };
    await deploy();
    await settled();
    expect(status()?.reason).toContain("request 1 (warm-up event 1 of 3) ended the process");
  });

  it("that leave what cannot be frozen are named, with what it is", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 2, 10) });
    bed.engine.handler = (_event, { served }) => {
      if (served === 1) bed.engine.failNext("freeze", refusal);
    };
    await deploy();
    await settled();
    expect(status()?.reason).toContain(
      'after request 2 (warm-up event 2 of 3) it cannot be frozen: Function "a" could not be frozen. it has a child process (pid 7)',
    );
    expect(heats()).toEqual(["0: 0 deploy"]);
    expect(imagesOnDisk()).toHaveLength(1);
  });

  it("whose image cannot be thawed publish nothing", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 1), heatBackoffMs: 1 });
    bed.engine.handler = () => bed.engine.failNext("thaw", new ThawError("THAW_FAILED", { what: "the thaw stage failed" }));
    await deploy();
    await settled();
    expect(status()).toMatchObject({ state: "failed", reason: "the thaw stage failed" });
    expect(heats()).toEqual(["0: 0 deploy"]);
    await until(() => imagesOnDisk().length === 1);
    expect(bed.platform.metrics().imagesDropped).toBe(0);
  });

  it("on a full disk are tried again a few times, and no more", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 1), heatBackoffMs: 1 });
    const full = Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC" });
    bed.engine.handler = () => bed.engine.failNext("freeze", full);
    await deploy();
    await settled();
    expect(status()).toMatchObject({ state: "failed", reason: expect.stringContaining("the disk is full") });
    expect(bed.platform.metrics()).toMatchObject({ heatFailures: 4, heatFreezes: 0 });
  });

  it("on a disk that was full go on when there is room", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 1), heatBackoffMs: 1 });
    let times = 0;
    bed.engine.handler = () => {
      const full = Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC" });
      if (times++ === 0) bed.engine.failNext("freeze", full);
    };
    await deploy();
    await settled();
    expect(status()).toEqual({ state: "done" });
    expect(heats()).toEqual(["0: 0 deploy", "1: 1 warm-up"]);
  });

  it("go on after a freeze that failed for the moment, or whose extractor somebody killed", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 1), heatBackoffMs: 1 });
    let times = 0;
    bed.engine.handler = () => {
      if (times++ === 0) bed.engine.failNext("freeze", new ThawError("FREEZE_FAILED", { what: "a thread took too long to end" }));
    };
    await deploy();
    await settled();
    expect(status()).toEqual({ state: "done" });
    expect(heats()).toEqual(["0: 0 deploy", "1: 1 warm-up"]);
    expect(bed.platform.metrics()).toMatchObject({ heatFailures: 1, heatFreezes: 1 });
  });

  it("of a function without an image are not replayed, and the status says why", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 1) });
    bed.engine.failNext("freeze", refusal);
    await deploy();
    await bed.platform.waitReady("a");
    expect(status()).toEqual({
      state: "failed",
      reason: "there is no image that could be made hotter; see the image's own state",
    });
  });

  it("go on after a restart from the hottest image, and are not repeated when they were done", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 5, 10) });
    const seen: unknown[] = [];
    bed.engine.handler = (event, { served }) => {
      seen.push(event);
      return served === 6 ? new Promise(() => undefined) : event;
    };
    await deploy({ timeoutMs: 60_000 });
    await until(() => seen.length === 7);
    expect(heats()).toEqual(["0: 0 deploy", "1: 5 warm-up"]);
    bed = await bed.restart();
    seen.length = 0;
    bed.engine.handler = (event) => seen.push(event);
    await settled();
    expect(heats()).toEqual(["0: 0 deploy", "1: 5 warm-up", "2: 10 warm-up"]);
    // Request 6 is the third event again: they are in turn over the whole lineage.
    expect(seen).toEqual([EVENTS[2], EVENTS[0], EVENTS[1], EVENTS[2], EVENTS[0]]);
    bed = await bed.restart();
    bed.engine.handler = (event) => seen.push(event);
    await bed.platform.waitReady("a");
    expect(status()).toEqual({ state: "done" });
    expect(heats()).toEqual(["0: 0 deploy", "1: 5 warm-up", "2: 10 warm-up"]);
    expect((await bed.platform.invoke("a", "")).start).toMatchObject({ kind: "thaw", generation: 2, heat: 10 });
    expect(seen).toHaveLength(6);
  });

  it("begin at 0 anew when the code changes; nothing is left of the images before", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 1) });
    await deploy();
    await settled();
    await bed.platform.deploy({ name: "a", zip: zipOf({ "index.mjs": "export const handler = 2" }), update: true });
    await bed.platform.waitReady("a");
    await until(() => imagesOnDisk().length === 1);
    expect(heats()).toEqual(["0: 0 deploy"]);
    expect(status()).toBeUndefined();
    expect(bed.platform.get("a").warmUp).toBeUndefined();
  });

  it("are given up when the function is removed or the server stops while they run", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 1, 10) });
    let hangs = 0;
    bed.engine.handler = (_event, { served }) => (served === 3 ? new Promise(() => void hangs++) : undefined);
    await deploy({ timeoutMs: 60_000 });
    await until(() => hangs === 1);
    await bed.platform.remove("a");
    expect(imagesOnDisk()).toEqual([]);
    expect(bed.engine.live.size).toBe(0);
    await deploy({ timeoutMs: 60_000 });
    await until(() => hangs === 2);
    await bed.platform.close();
    expect(bed.engine.live.size).toBe(0);
    // What was made before stays, and generation 2 was never begun.
    expect(imagesOnDisk()).toHaveLength(2);
  });

  it("that wait while first images of other functions are made keep nobody from removing the function", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 2) });
    bed.engine.handler = async (_event, { served }) => {
      if (served > 0) return;
      bed.engine.delayMs.boot = 1e9;
      await bed.platform.deploy({ name: "b", zip: zipOf() });
    };
    await deploy();
    await until(() => bed.platform.list().length === 2);
    await bed.platform.remove("a");
    expect(bed.platform.list().map(({ name }) => name)).toEqual(["b"]);
    await bed.platform.remove("b");
  });

  it("of a function whose only image is dropped before their turn, and cannot be made at once, are replayed when there is another", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 2) });
    let over = (): void => undefined;
    bed.engine.handler = (_event, { served }) =>
      served === 0 && bed.platform.list().length === 1 ? new Promise<void>((resolve) => (over = resolve)) : undefined;
    // Its replay keeps the others waiting.
    await bed.platform.deploy({ name: "first", zip: zipOf(), warmUp: { events: EVENTS, requests: 2 }, timeoutMs: 60_000 });
    await bed.platform.waitReady("first");
    await until(() => bed.engine.live.size === 1);
    await deploy();
    await bed.platform.waitReady("a");
    bed.engine.failNext("thaw", new ThawError("IMAGE_DAMAGED", { what: "the image cannot be used" }));
    bed.engine.failNext("freeze", new ThawError("FREEZE_FAILED", { what: "it was not frozen", why: "of the moment" }));
    expect((await bed.platform.invoke("a", "", { dispose: true })).start.kind).toBe("boot");
    await until(() => bed.platform.get("a").image.reason?.includes("not frozen") === true);
    over();
    await until(() => bed.platform.get("first").image.heat?.state === "done");
    await settled();
    expect(status()?.state).toBe("done");
    expect(heats()).toEqual(["0: 0 deploy", "1: 2 warm-up"]);
  });

  it("do not begin while the memory budget has no room for one more instance", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0, 1), heatBackoffMs: 1, memoryBudgetBytes: 2_000_000 });
    await bed.platform.deploy({ name: "busy", zip: zipOf() });
    await bed.platform.waitReady("busy");
    let release = (): void => undefined;
    bed.engine.handler = (event) => (event === "wait" ? new Promise<void>((resolve) => (release = resolve)) : event);
    const running = bed.platform.invoke("busy", '"wait"');
    await until(() => bed.platform.get("busy").counts.running === 1);
    await deploy();
    await settled();
    expect(status()?.reason).toContain("the memory budget has no room for the");
    release();
    await running;
  });
});
