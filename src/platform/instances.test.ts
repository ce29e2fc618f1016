import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import { ThawError } from "../base/errors.js";
import { FakeEnd } from "../engine/fake.js";
import type { ThawOptions } from "../engine/types.js";
import { openTestBed, type TestBed, until, zipOf } from "./testing.js";
import type { PlatformOptions, Preference } from "./types.js";

let bed: TestBed;
let gates: (() => void)[] = [];
afterEach(async () => {
  for (const open of gates.splice(0)) open();
  await bed.close();
});

/** A bed whose functions wait, when the event says `{"wait":true}`, until the test opens the gate. */
async function openBed(
  options: Partial<PlatformOptions>,
  names: string[],
  perFunction: { maxInstances?: number } = {},
): Promise<void> {
  gates = [];
  bed = await openTestBed(options);
  bed.engine.handler = async (event, context) => {
    if ((event as { wait?: boolean }).wait === true) await new Promise<void>((resolve) => gates.push(resolve));
    return { instance: context.instanceId, served: context.served };
  };
  for (const name of names) {
    await bed.platform.deploy({ name, zip: zipOf(), ...perFunction });
    await bed.platform.waitReady(name);
  }
}

const wait = JSON.stringify({ wait: true });

describe("a request is refused", () => {
  it("when all instances of the server are busy, with the limit", async () => {
    await openBed({ maxInstances: 2 }, ["a", "b"]);
    const busy = [bed.platform.invoke("a", wait), bed.platform.invoke("b", wait)];
    await until(() => gates.length === 2);
    await expect(bed.platform.invoke("a", "")).rejects.toThrow(
      'Function "a" was not started. all 2 instances that this server may have are busy. ' +
        "Try again, or start the server with a higher --max-instances",
    );
    expect(bed.platform.metrics().throttles).toBe(1);
    for (const open of gates) open();
    await Promise.all(busy);
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("reuse");
  });

  it("when all instances of the function are busy, though the server has room", async () => {
    await openBed({ maxInstances: 5 }, ["a"], { maxInstances: 1 });
    const busy = bed.platform.invoke("a", wait);
    await until(() => gates.length === 1);
    await expect(bed.platform.invoke("a", "")).rejects.toThrow("the one instance that it may have is busy");
    for (const open of gates) open();
    await busy;
  });

  it("when it demands reuse and there is no instance", async () => {
    await openBed({}, ["a"]);
    await expect(bed.platform.invoke("a", "", { prefer: { kind: "reuse" } })).rejects.toThrow(
      'Function "a" was not started: the request demands reuse. it has no running instance. Invoke it once without a preference first',
    );
  });

  it("when it demands reuse and the only instance ends instead of becoming free", async () => {
    await openBed({}, ["a"]);
    const busy = bed.platform.invoke("a", wait, { dispose: true });
    await until(() => gates.length === 1);
    const demanding = bed.platform.invoke("a", "", { prefer: { kind: "reuse" } });
    demanding.catch(() => {});
    gates.shift()?.();
    await busy;
    await expect(demanding).rejects.toThrow("none of its instances that were running or starting became free");
  });

  it("when it demands parked and the server parks none", async () => {
    await openBed({}, ["a"]);
    await expect(bed.platform.invoke("a", "", { prefer: { kind: "parked" } })).rejects.toThrow("this server parks no husks");
  });

  it("when it demands a thaw and the function cannot be frozen", async () => {
    bed = await openTestBed();
    bed.engine.failNext(
      "freeze",
      new ThawError("FREEZE_REFUSED", {
        what: 'function "a" could not be frozen',
        why: "it holds an inotify descriptor (fd 21)",
      }),
    );
    await bed.platform.deploy({ name: "a", zip: zipOf() });
    expect(await bed.platform.waitReady("a")).toMatchObject({ state: "refused" });
    await expect(bed.platform.invoke("a", "", { prefer: { kind: "thaw" } })).rejects.toThrow(
      'the request demands thaw. function "a" could not be frozen. it holds an inotify descriptor (fd 21)',
    );
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("boot");
  });

  it("when it demands a thaw and the image is damaged: it gets no boot instead", async () => {
    await openBed({}, ["a"]);
    bed.engine.failNext(
      "thaw",
      new ThawError("IMAGE_DAMAGED", { what: "The image cannot be used", why: "its manifest ends at byte 12" }),
    );
    await expect(bed.platform.invoke("a", "", { prefer: { kind: "thaw" } })).rejects.toThrow("its manifest ends at byte 12");
    await until(() => bed.platform.get("a").image.state === "ready");
    expect((await bed.platform.invoke("a", "", { prefer: { kind: "thaw" } })).start.kind).toBe("thaw");
  });

  it.each<[what: string, prefer: Preference, came: ThawOptions, told: string]>([
    [
      "a pooled husk and one had to be made on the path",
      { kind: "thaw", husk: "pooled" },
      { husk: "fresh" },
      "it would have come another way (thaw, splice, fresh). Try again when the pools are full",
    ],
    [
      "a loader that its image cannot have",
      { kind: "thaw", loader: "splice" },
      { loader: "eager" },
      "its images are loaded by eager alone: its allocator relies on zeros where memory was given back. Demand loader=eager, or none",
    ],
  ])("when it demands %s", async (_what, prefer, came, told) => {
    await openBed({}, ["a"]);
    const thaw = bed.engine.thaw.bind(bed.engine);
    bed.engine.thaw = (image) => thaw(image, came);
    await expect(bed.platform.invoke("a", "", { prefer })).rejects.toThrow(told);
    expect(bed.engine.live.size).toBe(0);
  });
});

describe("instances", () => {
  it("are reused before anything is thawed, the last used first", async () => {
    await openBed({}, ["a"]);
    const order: number[] = [];
    const note = async () => {
      const { result } = await bed.platform.invoke("a", wait);
      order.push(JSON.parse(result.payload.toString()).instance);
    };
    const both = [note(), note()];
    await until(() => gates.length === 2);
    gates.shift()?.();
    await until(() => bed.platform.get("a").counts.idle === 1);
    gates.shift()?.();
    await Promise.all(both);
    const next = await bed.platform.invoke("a", "");
    expect(next.start).toMatchObject({ kind: "reuse", generation: 0, us: 0, phases: [] });
    expect(JSON.parse(next.result.payload.toString()).instance).toBe(order[1]);
  });

  it("never serve two requests at once", async () => {
    await openBed({ maxInstances: 50 }, ["a"]);
    const outcomes = await Promise.all(Array.from({ length: 40 }, () => bed.platform.invoke("a", "")));
    // The fake asserts that no instance gets a second request while one runs.
    expect(outcomes.every((outcome) => outcome.result.functionError === undefined)).toBe(true);
  });

  it("that are idle, of any function, are evicted before anyone is refused: the longest idle first, and never more than allowed live", async () => {
    await openBed({ maxInstances: 2 }, ["a", "b", "c"]);
    bed.engine.delayMs.dispose = 10;
    bed.engine.liveMax = 0;
    await bed.platform.invoke("a", "");
    await bed.platform.invoke("b", "");
    expect((await bed.platform.invoke("c", "")).start.kind).toBe("thaw");
    expect([...bed.engine.live].map((instance) => instance.spec.name).sort()).toEqual(["b", "c"]);
    expect(bed.platform.metrics()).toMatchObject({ evictions: 1, instances: { idle: 2, running: 0, max: 2 } });
    expect(bed.engine.liveMax).toBe(2);
  });

  it("that are ending are waited for, so that one client with ;dispose and one place is never refused", async () => {
    await openBed({ maxInstances: 1 }, ["a"]);
    bed.engine.delayMs.dispose = 5;
    bed.engine.liveMax = 0;
    for (let round = 0; round < 10; round++) {
      const { start } = await bed.platform.invoke("a", "", { prefer: { kind: "thaw" }, dispose: true });
      expect(start.kind).toBe("thaw");
    }
    expect(bed.engine.liveMax).toBe(1);
  });

  it("end when they were idle for the keep-alive time", async () => {
    await openBed({ keepAliveMs: 40 }, ["a"]);
    await bed.platform.invoke("a", "");
    expect(bed.engine.live.size).toBe(1);
    await until(() => bed.engine.live.size === 0);
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("thaw");
  });

  it("that died while idle are not used", async () => {
    await openBed({}, ["a"]);
    await bed.platform.invoke("a", "");
    for (const instance of bed.engine.live) instance.crash("killed from outside");
    expect(bed.platform.get("a").counts.idle).toBe(0);
    const { start, result } = await bed.platform.invoke("a", "");
    expect(start.kind).toBe("thaw");
    expect(result.functionError).toBeUndefined();
  });

  it("that died while idle are told in the log, with what they had printed since their last answer", async () => {
    await openBed({}, ["a"]);
    await bed.platform.invoke("a", "");
    for (const instance of bed.engine.live) {
      instance.printed = "Error: nobody caught this";
      instance.crash("exit status 1");
    }
    await until(() => bed.engine.live.size === 0);
    expect(await bed.platform.logs("a")).toMatch(
      /\nError: nobody caught this\nthaw: an idle instance ended by itself: exit status 1\n$/,
    );
  });

  it("that died right behind their answer are told, too; those that died of a request are not told twice", async () => {
    await openBed({}, ["a"]);
    await bed.platform.invoke("a", "");
    const [instance] = [...bed.engine.live];
    const invoke = instance?.invoke.bind(instance);
    if (instance === undefined || invoke === undefined) throw new Error("no instance is there");
    instance.invoke = async (...args) => {
      const answer = await invoke(...args);
      instance.crash("exit status 3");
      return answer;
    };
    expect((await bed.platform.invoke("a", "")).result.functionError).toBeUndefined();
    await until(() => bed.engine.live.size === 0);
    const told = /thaw: an idle instance ended by itself: (.*)\n/g;
    expect([...(await bed.platform.logs("a")).matchAll(told)].map(([, reason]) => reason)).toEqual(["exit status 3"]);
    bed.engine.handler = () => {
      throw new FakeEnd("INSTANCE_EXITED");
    };
    expect((await bed.platform.invoke("a", "")).result.platformError).toBe("INSTANCE_EXITED");
    await until(() => bed.engine.live.size === 0);
    expect([...(await bed.platform.logs("a")).matchAll(told)]).toHaveLength(1);
  });

  it("that had ended before they read a request cost that request nothing, and are told", async () => {
    await openBed({}, ["a"]);
    await bed.platform.invoke("a", "");
    const [instance] = [...bed.engine.live];
    if (instance === undefined) throw new Error("no instance is there");
    instance.invoke = async () => {
      instance.crash("exit status 3");
      throw new ThawError("INSTANCE_EXITED", { what: "the instance ended before it had read the request" });
    };
    const { result, start } = await bed.platform.invoke("a", "");
    expect(result.functionError).toBeUndefined();
    expect(start.kind).toBe("thaw");
    await until(() => bed.engine.live.size === 1);
    expect(await bed.platform.logs("a")).toContain("thaw: an idle instance ended by itself: exit status 3\n");
    expect(bed.platform.metrics().instances).toMatchObject({ running: 0, starting: 0, idle: 1 });
  });

  it("of which one cost a request its time cost it none a second time: it is answered by one that has served nobody", async () => {
    await openBed({}, ["a"]);
    await Promise.all([bed.platform.invoke("a", ""), bed.platform.invoke("a", ""), bed.platform.invoke("a", "")]);
    await until(() => bed.platform.metrics().instances.idle === 3);
    let met = 0;
    for (const instance of bed.engine.live)
      instance.invoke = async () => {
        met++;
        instance.crash("exit status 3");
        throw new ThawError("INSTANCE_EXITED", { what: "the instance ended before it had read the request" });
      };
    const { result, start } = await bed.platform.invoke("a", "");
    expect(result.functionError).toBeUndefined();
    expect([start.kind, met]).toEqual(["thaw", 1]);
  });

  it("that are ended leave what they had printed since their last answer in the log, and no word of their end", async () => {
    await openBed({ keepAliveMs: 30 }, ["a"]);
    await bed.platform.invoke("a", "");
    for (const instance of bed.engine.live) instance.printed = "later\n";
    await until(() => bed.engine.live.size === 0);
    expect(await bed.platform.logs("a")).toMatch(/\nREPORT .*\nlater\n$/);
  });

  it("whose invoke fails with an error of the platform are ended, and the error is told", async () => {
    await openBed({}, ["a"]);
    bed.engine.failNext("invoke", new ThawError("KEEPER_FAILED", { what: "The keeper ended" }));
    await expect(bed.platform.invoke("a", "")).rejects.toThrow("The keeper ended");
    await until(() => bed.engine.live.size === 0);
    expect(bed.platform.metrics().instances).toEqual({ running: 0, idle: 0, hibernated: 0, starting: 0, waiting: 0, max: 32 });
  });
});

describe("a demanded start", () => {
  it("is exactly that, even when an idle instance is there", async () => {
    await openBed({ parked: { prefaulted: 1 } }, ["a"]);
    await bed.platform.invoke("a", "", { prefer: { kind: "boot" } });
    for (const loader of ["lazy", "eager", "splice"] as const) {
      const { start } = await bed.platform.invoke("a", "", { prefer: { kind: "thaw", loader } });
      expect(start).toMatchObject({ kind: "thaw", loader });
    }
    expect((await bed.platform.invoke("a", "", { prefer: { kind: "thaw", husk: "fresh" } })).start.husk).toBe("fresh");
    expect((await bed.platform.invoke("a", "", { prefer: { kind: "parked" } })).start).toMatchObject({
      kind: "parked",
      husk: "prefaulted",
    });
    expect((await bed.platform.invoke("a", "", { prefer: { kind: "reuse" } })).start.kind).toBe("reuse");
  });

  it("of a boot takes another husk when its own is lost, once; so does a boot that nobody demanded", async () => {
    bed = await openTestBed({}, { canFreeze: false });
    await bed.platform.deploy({ name: "a", zip: zipOf() });
    const lost = new ThawError("SANDBOX_FAILED", { what: "a husk ended before its boot stage was done" });
    for (const request of [{ prefer: { kind: "boot" } }, {}] as const) {
      bed.engine.failNext("boot", lost);
      expect((await bed.platform.invoke("a", "", { ...request, dispose: true })).start.kind).toBe("boot");
      bed.engine.failNext("boot", lost, 2);
      await expect(bed.platform.invoke("a", "", { ...request, dispose: true })).rejects.toThrow("a husk ended");
    }
  });

  it("of reuse waits for an instance that is running, and reports the wait apart", async () => {
    await openBed({}, ["a"]);
    const busy = bed.platform.invoke("a", wait);
    await until(() => gates.length === 1);
    const demanding = bed.platform.invoke("a", "", { prefer: { kind: "reuse" } });
    await until(() => bed.platform.get("a").counts.waiting === 1);
    expect(bed.platform.metrics().instances.waiting).toBe(1);
    await new Promise((resolve) => setTimeout(resolve, 30));
    gates.shift()?.();
    const { start } = await demanding;
    expect(start.kind).toBe("reuse");
    expect(start.us).toBe(0);
    expect(start.waitUs).toBeGreaterThan(20_000);
    await busy;
    expect(bed.platform.metrics().instances).toMatchObject({ running: 0, idle: 1, waiting: 0 });
  });

  it("of a thaw waits for the image, and reports the wait apart", async () => {
    await openBed({}, []);
    bed.engine.delayMs.freeze = 40;
    await bed.platform.deploy({ name: "a", zip: zipOf() });
    const { start } = await bed.platform.invoke("a", "", { prefer: { kind: "thaw" } });
    expect(start.kind).toBe("thaw");
    expect(start.waitUs).toBeGreaterThan(20_000);
  });

  it("of parked waits for the pool", async () => {
    await openBed({ parked: { image: 1 } }, ["a"]);
    await bed.platform.invoke("a", "", { prefer: { kind: "parked" }, dispose: true });
    const [levels] = bed.engine.parked.values();
    const thaw = vi.spyOn(bed.engine, "thaw");
    const demanding = bed.platform.invoke("a", "", { prefer: { kind: "parked" } });
    await until(() => thaw.mock.calls.length === 1);
    await new Promise((resolve) => setTimeout(resolve, 30));
    levels?.set("image", 1);
    const { start } = await demanding;
    expect(start.kind).toBe("parked");
    expect(start.waitUs).toBeGreaterThan(20_000);
  });

  it("of none takes a parked husk first, then thaws", async () => {
    await openBed({ parked: { image: 1 } }, ["a"]);
    expect((await bed.platform.invoke("a", "", { dispose: true })).start.kind).toBe("parked");
    const { start } = await bed.platform.invoke("a", "", { dispose: true });
    expect(start.kind).toBe("thaw");
    expect(start.fallback).toBeUndefined();
  });
});

it("whatever comes at once: never more instances than allowed, each request answered or refused by name, no place lost", async () => {
  const request = fc.record({
    name: fc.constantFrom("a", "b", "c"),
    prefer: fc.constantFrom(undefined, undefined, "boot" as const, "thaw" as const, "reuse" as const),
    dispose: fc.boolean(),
    dies: fc.boolean(),
    afterMs: fc.nat(8),
  });
  await openBed({ maxInstances: 3, keepAliveMs: 5_000 }, ["a", "b", "c"], { maxInstances: 2 });
  const handler = bed.engine.handler;
  bed.engine.handler = async (event, context) => {
    await new Promise((resolve) => setTimeout(resolve, 2));
    if ((event as { dies?: boolean }).dies === true) throw new FakeEnd("INSTANCE_EXITED");
    return handler(event, context);
  };
  bed.engine.delayMs.dispose = 1;
  bed.engine.delayMs.thaw = 1;
  bed.engine.liveMax = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(request, { minLength: 1, maxLength: 30 }), async (requests) => {
      const results = await Promise.allSettled(
        requests.map(async ({ name, prefer, dispose, dies, afterMs }) => {
          await new Promise((resolve) => setTimeout(resolve, afterMs));
          await bed.platform.invoke(name, JSON.stringify({ dies }), {
            dispose,
            prefer: prefer === undefined ? undefined : { kind: prefer },
          });
        }),
      );
      for (const result of results) {
        if (result.status === "rejected" && !["TOO_MANY_INSTANCES", "PREFERENCE_UNAVAILABLE"].includes(result.reason.code))
          throw result.reason;
      }
      expect(bed.engine.liveMax).toBeLessThanOrEqual(3);
      expect(bed.platform.metrics().instances).toMatchObject({ running: 0, starting: 0 });
      await until(() => bed.engine.live.size === bed.platform.metrics().instances.idle);
    }),
    { numRuns: 30, seed: 1 },
  );
  expect((await bed.platform.invoke("a", "")).result.functionError).toBeUndefined();
}, 60_000);
