import { readdirSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { openTestBed, type PointsPolicy, pointsPolicy, type TestBed, until, zipOf } from "./testing.js";
import type { DeployRequest, PlatformOptions } from "./types.js";

let bed: TestBed;
let policy: PointsPolicy;
afterEach(async () => {
  await bed.close();
});

async function ready(
  points: readonly number[],
  more: Partial<DeployRequest> = {},
  options: Partial<PlatformOptions> = {},
): Promise<void> {
  policy = pointsPolicy(...points);
  bed = await openTestBed({ heatPolicy: policy, heatBackoffMs: 1, ...options });
  await bed.platform.deploy({ name: "a", zip: zipOf(), learn: true, ...more });
  await bed.platform.waitReady("a");
}
const invoke = (request = {}) => bed.platform.invoke("a", "", request);
const invokeTimes = async (times: number): Promise<void> => {
  for (let count = 0; count < times; count++) await invoke();
};
const heats = () => bed.platform.images("a").map(({ generation, heat, source }) => `${generation}: ${heat} ${source}`);
const imagesOnDisk = (): string[] => readdirSync(join(bed.dataDir, "images"));
const liveFreezes = () => bed.engine.calls.filter((call) => call === "freeze-live a").length;

describe("learning from traffic", () => {
  it("is off unless it is asked for: nothing is frozen, and only the policy is told how long answers took", async () => {
    await ready([0, 1, 2], { learn: false });
    await invokeTimes(5);
    expect(liveFreezes()).toBe(0);
    expect(heats()).toEqual(["0: 0 deploy"]);
    expect(bed.platform.get("a").image.heat).toBeUndefined();
    expect(bed.platform.get("a").learn).toBe(false);
    expect(policy.answers).toEqual(["0 1", "0 2", "0 3", "0 4", "0 5"]);
  });

  it("freezes an instance between two requests as it goes on, and keeps what a private instance made of that", async () => {
    await ready([0, 3]);
    expect(bed.platform.get("a")).toMatchObject({ learn: true, image: { heat: { state: "running" } } });
    await invokeTimes(2);
    expect(liveFreezes()).toBe(0);
    await invoke();
    await until(() => bed.platform.images("a").length === 2);
    expect(heats()).toEqual(["0: 0 deploy", "1: 3 traffic"]);
    expect(bed.engine.calls.filter((call) => /freeze|remove/.test(call))).toEqual([
      "freeze a",
      "freeze-live a",
      "freeze a",
      "removeImage a",
    ]);
    await until(() => imagesOnDisk().length === 2);
    // The one that was frozen goes on.
    const { start } = await invoke({ dispose: true });
    expect(start).toMatchObject({ kind: "reuse", generation: 0, heat: 0 });
    expect((await invoke()).start).toMatchObject({ kind: "thaw", generation: 1, heat: 3 });
    expect(policy.answers.slice(-2)).toEqual(["0 4", "1 4"]);
    expect(bed.platform.get("a").image.heat).toEqual({ state: "done" });
    expect(bed.platform.metrics()).toMatchObject({ heatFreezes: 1, heatFailures: 0 });
  });

  it("counts requests over the lineage: an instance of a hotter image reaches the next point", async () => {
    await ready([0, 2, 5]);
    await invokeTimes(2);
    await until(() => bed.platform.images("a").length === 2);
    await invoke({ dispose: true });
    await invokeTimes(3);
    await until(() => bed.platform.images("a").length === 3);
    expect(heats()).toEqual(["0: 0 deploy", "1: 2 traffic", "2: 5 traffic"]);
  });

  it("answers requests that come while the instance is frozen", async () => {
    await ready([0, 1]);
    bed.engine.delayMs.freeze = 50;
    await invoke();
    expect(liveFreezes()).toBe(1);
    expect((await invoke()).start.kind).toBe("reuse");
    expect(heats()).toEqual(["0: 0 deploy"]);
    await until(() => bed.platform.images("a").length === 2);
    // What was answered before the process was stopped counts.
    expect(heats()[1]).toBe("1: 2 traffic");
  });

  it("is not disturbed by the policy of idle instances: neither hibernated nor ended before the freeze is done", async () => {
    await ready([0, 1], {}, { keepWarmMs: 0, keepHibernatedMs: 0 });
    bed.engine.delayMs.freeze = 50;
    await invoke();
    await until(() => bed.platform.images("a").length === 2);
    await until(() => bed.engine.live.size === 0);
    expect(bed.platform.metrics()).toMatchObject({ heatFreezes: 1, heatFailures: 0 });
  });

  it("is not disturbed by hand: an instance that is being frozen is not hibernated", async () => {
    await ready([0, 1]);
    bed.engine.delayMs.freeze = 50;
    await invoke();
    await expect(bed.platform.hibernate("a")).rejects.toMatchObject({
      code: "NO_INSTANCE",
      message: 'Function "a" has nothing to hibernate. an image is being taken of its instance. Try again in a moment',
    });
    await until(() => bed.platform.images("a").length === 2);
    expect(await bed.platform.hibernate("a")).toMatchObject({ instances: 1 });
    expect(bed.platform.metrics()).toMatchObject({ heatFailures: 0, hibernateFailures: 0 });
  });

  it("is waited for by who needs the instance's place", async () => {
    await ready([0, 1], {}, { maxInstances: 1 });
    await bed.platform.deploy({ name: "b", zip: zipOf() });
    await bed.platform.waitReady("b");
    bed.engine.delayMs.freeze = 50;
    await invoke();
    expect(liveFreezes()).toBe(1);
    expect((await bed.platform.invoke("b", "")).start.kind).toBe("thaw");
    await until(() => bed.platform.images("a").length === 2);
    expect(bed.platform.metrics()).toMatchObject({ evictions: 1, heatFailures: 0, throttles: 0 });
  });

  it("freezes one instance for a point, however many reach it at once", async () => {
    await ready([0, 1]);
    await Promise.all(Array.from({ length: 4 }, () => invoke()));
    await until(() => bed.platform.images("a").length === 2);
    await Promise.all(Array.from({ length: 4 }, () => invoke()));
    expect(liveFreezes()).toBe(1);
  });

  it("takes nothing from an instance that was booted, or that ends with its request", async () => {
    await ready([0, 1]);
    await invoke({ prefer: { kind: "boot" }, dispose: true });
    await invoke({ dispose: true });
    expect(liveFreezes()).toBe(0);
    expect(policy.answers).toEqual(["0 1"]);
  });

  it("does not tell the policy of errors", async () => {
    await ready([0]);
    bed.engine.handler = () => {
      throw new Error("no");
    };
    await invoke();
    expect(policy.answers).toEqual([]);
  });

  it("ends for good with what cannot be frozen, and the status says what that is", async () => {
    await ready([0, 1]);
    const why = "it has a child process (pid 7)";
    bed.engine.failNext("freeze", new ThawError("FREEZE_REFUSED", { what: 'Function "a" could not be frozen', why }));
    await invoke();
    await until(() => bed.platform.get("a").image.heat?.state === "failed");
    expect(bed.platform.get("a").image.heat?.reason).toBe(`Function "a" could not be frozen. ${why}`);
    await invokeTimes(3);
    expect(liveFreezes()).toBe(1);
    expect(await bed.platform.logs("a")).toContain(
      `thaw: learning from traffic has failed: Function "a" could not be frozen. ${why}`,
    );
    expect((await invoke({ dispose: true })).start).toMatchObject({ kind: "reuse" });
  });

  it("goes on with the next instance when one cannot be frozen for the way in which it was started", async () => {
    await ready([0, 1]);
    const what = "an instance that was started with loader reap cannot be frozen";
    bed.engine.failNext("freeze", new ThawError("FREEZE_REFUSED", { what, details: { scope: "instance" } }));
    await invokeTimes(2);
    expect(liveFreezes()).toBe(1);
    expect(bed.platform.get("a").image.heat).toEqual({ state: "running" });
    await invoke({ dispose: true });
    await invoke();
    await until(() => bed.platform.images("a").length === 2);
    expect(heats()).toEqual(["0: 0 deploy", "1: 1 traffic"]);
    expect(bed.platform.metrics()).toMatchObject({ heatFailures: 0 });
  });

  it("is tried again a few times while the disk is full, and no more; no raw image is left", async () => {
    await ready([0, 1]);
    bed.engine.failNext("freeze", Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" }), 100);
    await until(() => {
      void invoke();
      return bed.platform.get("a").image.heat?.state === "failed";
    });
    expect(bed.platform.get("a").image.heat?.reason).toContain("the disk is full");
    expect(liveFreezes()).toBe(4);
    expect(imagesOnDisk()).toHaveLength(1);
  });

  it("removes the raw image when nothing can be made of it", async () => {
    await ready([0, 1]);
    bed.engine.delayMs.freeze = 30;
    await invoke();
    bed.engine.failNext("thaw", new ThawError("THAW_FAILED", { what: "the thaw stage failed" }));
    await until(() => bed.platform.metrics().heatFailures === 1);
    await until(() => imagesOnDisk().length === 1);
    expect(heats()).toEqual(["0: 0 deploy"]);
  });

  it("leaves nothing when the function is removed, or the server stops, while an instance is frozen", async () => {
    await ready([0, 1]);
    bed.engine.delayMs.freeze = 50;
    await invoke();
    await bed.platform.remove("a");
    expect(imagesOnDisk()).toEqual([]);
    expect(bed.engine.live.size).toBe(0);
    await bed.platform.deploy({ name: "a", zip: zipOf(), learn: true });
    await bed.platform.waitReady("a");
    await invoke();
    await bed.platform.close();
    expect(imagesOnDisk()).toHaveLength(1);
    expect(bed.engine.live.size).toBe(0);
    expect(bed.platform.metrics().heatFailures).toBe(0);
  });
});
