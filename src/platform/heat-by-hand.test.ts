import { readdirSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { openTestBed, pointsPolicy, type TestBed, until, zipOf } from "./testing.js";
import type { DeployRequest, PlatformOptions } from "./types.js";

let bed: TestBed;
afterEach(async () => {
  await bed.close();
});

async function ready(options: Partial<PlatformOptions> = {}, more: Partial<DeployRequest> = {}): Promise<void> {
  bed = await openTestBed({ heatPolicy: pointsPolicy(0), ...options });
  await bed.platform.deploy({ name: "a", zip: zipOf(), ...more });
  await bed.platform.waitReady("a");
}
const heats = () => bed.platform.images("a").map(({ generation, heat, source }) => `${generation}: ${heat} ${source}`);
const imagesOnDisk = (): string[] => readdirSync(join(bed.dataDir, "images"));

describe("heating by hand is refused", () => {
  const refusals: readonly (readonly [object, string])[] = [
    [{ requests: 0 }, "the number of requests is 0, and it must be a whole number from 1 to 100000. Use --requests 1000"],
    [{ requests: 100_001 }, "the number of requests is 100001, and it must be a whole number from 1 to 100000"],
    [{ requests: 1.5 }, "the number of requests is 1.5"],
    [{ requests: "10" }, "the number of requests is 10"],
    [{ requests: 1, payload: "{" }, "The payload is not valid JSON"],
    [{ requests: 1, from: 3 }, "it has no image of generation 3; those that exist are 0. See `thaw image ls a`"],
  ];
  for (const [request, sentence] of refusals) {
    it(`with ${JSON.stringify(request)}`, async () => {
      await ready();
      await expect(bed.platform.heat("a", request as never)).rejects.toThrow(sentence);
      expect(heats()).toEqual(["0: 0 deploy"]);
    });
  }

  it("for a function that does not exist, and before there is an image", async () => {
    bed = await openTestBed({ heatPolicy: pointsPolicy(0) });
    await expect(bed.platform.heat("a", { requests: 1 })).rejects.toThrow('There is no function "a"');
    bed.engine.delayMs.freeze = 50;
    await bed.platform.deploy({ name: "a", zip: zipOf() });
    await expect(bed.platform.heat("a", { requests: 1 })).rejects.toMatchObject({
      code: "IMAGE_NOT_READY",
      message: expect.stringContaining('Function "a" was not heated. its first image is still being made'),
    });
  });

  it("while the memory budget has no room", async () => {
    await ready({ memoryBudgetBytes: 2_000_000 });
    let release = (): void => undefined;
    bed.engine.handler = () => new Promise<void>((resolve) => (release = resolve));
    const running = bed.platform.invoke("a", "");
    await until(() => bed.platform.get("a").counts.running === 1);
    await expect(bed.platform.heat("a", { requests: 1 })).rejects.toMatchObject({ code: "RESOURCE_EXHAUSTED" });
    release();
    await running;
  });
});

describe("heating by hand", () => {
  it("makes a hotter image from the hottest, which the next start gets; the report says what it cost", async () => {
    await ready();
    const seen: unknown[] = [];
    bed.engine.handler = (event) => seen.push(event);
    const report = await bed.platform.heat("a", { requests: 30, payload: '{"n":1}' });
    expect(report).toMatchObject({ requests: 30, image: { generation: 1, heat: 30, source: "by-hand", chosen: true } });
    expect(report.firstMs).toBeGreaterThanOrEqual(0);
    expect(report.lastMs).toBeGreaterThanOrEqual(0);
    expect(seen).toEqual(Array(30).fill({ n: 1 }));
    expect((await bed.platform.heat("a", { requests: 5 })).image).toMatchObject({ generation: 2, heat: 35 });
    expect(seen.at(-1)).toEqual({});
    expect((await bed.platform.invoke("a", "")).start).toMatchObject({ kind: "thaw", generation: 2, heat: 35 });
    expect(bed.engine.live.size).toBe(1);
    expect(imagesOnDisk()).toHaveLength(3);
    expect(bed.platform.metrics()).toMatchObject({ heatFreezes: 2, invocations: 1, freezes: 1 });
  });

  it("from a colder image has a number of its own; the list is in order of heat", async () => {
    await ready();
    await bed.platform.heat("a", { requests: 30 });
    await bed.platform.heat("a", { requests: 5, from: 0 });
    expect(heats()).toEqual(["0: 0 deploy", "2: 5 by-hand", "1: 30 by-hand"]);
  });

  it("sends the declared warm-up events in turn when no payload is given", async () => {
    const seen: unknown[] = [];
    await ready({}, { warmUp: { events: [1, 2], requests: 1 } });
    bed.engine.handler = (event) => seen.push(event);
    await bed.platform.heat("a", { requests: 3 });
    expect(seen).toEqual([1, 2, 1]);
  });

  it("ends between two requests, without an image, when nobody waits for it any more; one whose turn had not come begins none", async () => {
    await ready();
    const left = new AbortController();
    let served = 0;
    bed.engine.handler = () => {
      served += 1;
      if (served === 3) left.abort();
    };
    const jobs = [3, 4].map((requests) => bed.platform.heat("a", { requests: 10 * requests, signal: left.signal }));
    for (const job of jobs)
      await expect(job).rejects.toMatchObject({ code: "WARM_UP_FAILED", message: expect.stringContaining("waits no more") });
    expect([served, heats()]).toEqual([3, ["0: 0 deploy"]]);
    await until(() => bed.engine.live.size === 0);
  });

  it("is told of a request that fails, by its number; nothing that serves is touched", async () => {
    await ready();
    bed.engine.handler = (_event, { served }) => {
      if (served === 2) throw new RangeError("too hot");
    };
    await expect(bed.platform.heat("a", { requests: 5 })).rejects.toMatchObject({
      code: "WARM_UP_FAILED",
      message: expect.stringContaining("request 3 failed: RangeError: too hot"),
    });
    expect(heats()).toEqual(["0: 0 deploy"]);
    expect(bed.platform.get("a").image.heat).toBeUndefined();
    await until(() => bed.engine.live.size === 0);
  });

  it("is told of what cannot be frozen, and of an image that cannot be thawed; neither is published", async () => {
    await ready();
    bed.engine.failNext(
      "freeze",
      new ThawError("FREEZE_REFUSED", { what: "it could not be frozen", why: "it listens on port 80" }),
    );
    await expect(bed.platform.heat("a", { requests: 1 })).rejects.toThrow(
      "after request 1 it cannot be frozen: it could not be frozen. it listens on port 80",
    );
    bed.engine.handler = () => bed.engine.failNext("thaw", new ThawError("THAW_FAILED", { what: "the thaw stage failed" }));
    await expect(bed.platform.heat("a", { requests: 1 })).rejects.toThrow("the thaw stage failed");
    expect(heats()).toEqual(["0: 0 deploy"]);
    expect(imagesOnDisk()).toHaveLength(1);
  });

  it("from an image that cannot be thawed drops that one, as a start does", async () => {
    await ready();
    await bed.platform.heat("a", { requests: 1 });
    bed.engine.failNext("thaw", new ThawError("IMAGE_DAMAGED", { what: "the pages are cut off" }));
    await expect(bed.platform.heat("a", { requests: 1 })).rejects.toThrow("the pages are cut off");
    expect(heats()).toEqual(["0: 0 deploy"]);
    expect(bed.platform.metrics().imagesDropped).toBe(1);
  });

  it("says when the policy gives the new image up at once", async () => {
    const policy = pointsPolicy(0);
    await ready({ heatPolicy: policy });
    policy.surplus = (images) => images.filter(({ generation }) => generation === 1);
    await expect(bed.platform.heat("a", { requests: 1 })).rejects.toThrow("the policy gave the new image up at once");
    await until(() => imagesOnDisk().length === 1);
  });

  it("whose image went while it waited for its turn is told so, and whoever comes then has a turn", async () => {
    await ready();
    await bed.platform.heat("a", { requests: 1 });
    bed.engine.failNext("thaw", new ThawError("IMAGE_DAMAGED", { what: "the pages are cut off" }));
    const both = [bed.platform.heat("a", { requests: 1 }), bed.platform.heat("a", { requests: 1, from: 1 })];
    const ended = await Promise.allSettled(both);
    expect(ended.map((one) => one.status === "rejected" && String(one.reason))).toEqual([
      expect.stringContaining("the pages are cut off"),
      expect.stringContaining("it has no image of generation 1; those that exist are 0"),
    ]);
    expect((await bed.platform.heat("a", { requests: 1 })).image).toMatchObject({ generation: 2, heat: 1 });
  });

  it("is one at a time, and ends when the function is removed", async () => {
    await ready();
    let hanging = 0;
    bed.engine.handler = () => new Promise(() => void hanging++);
    const first = bed.platform.heat("a", { requests: 1 });
    const second = bed.platform.heat("a", { requests: 1 });
    const ended = Promise.allSettled([first, second]);
    await until(() => hanging === 1);
    expect(bed.engine.live.size).toBe(1);
    await bed.platform.remove("a");
    expect((await ended).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    for (const one of [first, second]) await expect(one).rejects.toThrow("the function was removed meanwhile");
    expect(imagesOnDisk()).toEqual([]);
    expect(bed.engine.live.size).toBe(0);
  });
});
