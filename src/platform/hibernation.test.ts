import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import { isThawError, ThawError } from "../base/errors.js";
import { createLogger } from "../base/log.js";
import { MIB } from "../base/units.js";
import { openTestBed, type TestBed, until, zipOf } from "./testing.js";
import type { IdlePolicy, PlatformOptions } from "./types.js";

let bed: TestBed;
afterEach(async () => {
  vi.useRealTimers();
  await bed.close();
});

/** From here on time stands still but for {@link pass}: where a machine that is slow would skip a state, or make a gap smaller. */
function stopTime(): void {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
}
async function pass(ms: number): Promise<void> {
  // In steps, as what becomes due in one of them may be over in the next.
  for (let step = 0; step < 10; step++) {
    await vi.advanceTimersByTimeAsync(ms / 10);
    for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
  }
}

const WARM = 80 * MIB;
const WOKEN = 20 * MIB;

async function openBed(options: Partial<PlatformOptions> = {}, names = ["a"]): Promise<void> {
  bed = await openTestBed(options);
  Object.assign(bed.engine.residentBytes, { warm: WARM, woken: WOKEN, hibernated: MIB / 2 });
  for (const name of names) await deploy(name);
}
async function deploy(name: string, more: object = {}): Promise<void> {
  await bed.platform.deploy({ name, zip: zipOf(), ...more });
  await bed.platform.waitReady(name);
}
const states = (name = "a"): string[] => bed.platform.get(name).instances.map(({ state }) => state);
const calls = (operation: string): string[] => bed.engine.calls.filter((call) => call.startsWith(operation));
const fullDisk = (): ThawError =>
  new ThawError("RESOURCE_EXHAUSTED", { what: 'function "a" could not be hibernated', why: "the disk is full" });
const wake = { prefer: { kind: "wake" } } as const;

describe("an instance that nobody uses", () => {
  it("is hibernated after its time, woken by the next request with the same memory, and ends when its time is over", async () => {
    await openBed({ keepWarmMs: 30_000, keepHibernatedMs: 400_000 });
    stopTime();
    bed.engine.handler = (_, { instanceId, served }) => ({ instanceId, served });
    const first = await bed.platform.invoke("a", "");
    await pass(29_000);
    expect(states()).toEqual(["warm"]);
    await pass(2_000);
    expect(bed.platform.get("a")).toMatchObject({
      instances: [{ state: "hibernated", residentBytes: MIB / 2, hibernatedBytes: 300 * 4096 }],
      counts: { running: 0, idle: 0, hibernated: 1, starting: 0, waiting: 0 },
    });

    const second = await bed.platform.invoke("a", "");
    expect(second.start).toMatchObject({ kind: "wake", us: 900, phases: [{ name: "prefetch" }] });
    const { instanceId } = JSON.parse(first.result.payload.toString());
    expect(JSON.parse(second.result.payload.toString())).toEqual({ instanceId, served: 1 });
    expect(states()).toEqual(["woken"]);
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("reuse");

    await pass(31_000);
    expect(states()).toEqual(["hibernated"]);
    await pass(398_000);
    expect(states()).toEqual(["hibernated"]);
    await pass(2_000);
    expect([states(), bed.engine.live.size]).toEqual([[], 0]);
    expect(bed.platform.metrics()).toMatchObject({
      hibernations: 2,
      wakes: 1,
      starts: { thaw: 1, wake: 1, reuse: 1 },
      deflationsCancelled: 0,
      evictions: 0,
      memory: { hibernatedBytes: 0 },
    });
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("thaw");
  });

  it("ends when its time is over, also when that comes while a request waits in vain for room to wake it", async () => {
    await openBed({ memoryBudgetBytes: 3 * WARM + 2 * WOKEN, keepWarmMs: 10_000, keepHibernatedMs: 20_000 });
    await deploy("busy", { timeoutMs: 900_000 });
    bed.engine.residentBytes.warm = WOKEN;
    await deploy("small");
    bed.engine.residentBytes.warm = WARM;
    stopTime();
    await bed.platform.invoke("a", "");
    await pass(25_000);
    expect(states()).toEqual(["hibernated"]);
    let open = (): void => undefined;
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    bed.engine.handler = (_, { spec }) => (spec.name === "busy" ? gate : undefined);
    const busy = [1, 2, 3].map(() => bed.platform.invoke("busy", ""));
    bed.engine.delayMs.dispose = 10_000;
    await bed.platform.invoke("small", "", { dispose: true });
    // It waits for the memory of what ends, which is not enough.
    const asked = bed.platform.invoke("a", "").catch((error: unknown) => error);
    await pass(11_000);
    expect(await asked).toMatchObject({ code: "TOO_MANY_INSTANCES" });
    bed.engine.delayMs.dispose = 0;
    await pass(11_000);
    expect(states()).toEqual([]);
    open();
    await Promise.all(busy);
  });

  it("stays warm where hibernating would save nothing, and ends when its time is over", async () => {
    await openBed({ keepWarmMs: 20_000, keepHibernatedMs: 150_000 });
    bed.engine.residentBytes.warm = MIB;
    stopTime();
    await bed.platform.invoke("a", "");
    await pass(169_000);
    expect(states()).toEqual(["warm"]);
    expect(calls("hibernate")).toEqual([]);
    await pass(2_000);
    expect(states()).toEqual([]);
  });

  it("is taken out of its deflation by a request, which waits for no cycle", async () => {
    await openBed({ keepWarmMs: 10 });
    bed.engine.delayMs.hibernate = 2_000;
    stopTime();
    await bed.platform.invoke("a", "");
    await pass(20);
    expect(states()).toEqual(["deflating"]);
    // Time stands still: whatever waited for the cycle would wait for ever.
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("reuse");
    await pass(2_000);
    expect(bed.platform.metrics()).toMatchObject({ deflationsCancelled: 1, hibernations: 0 });
    // Another cycle may have begun meanwhile.
    await pass(2_000);
  });

  it("was not woken by a request that takes it out of its deflation, whatever becomes known of an earlier wake", async () => {
    await openBed();
    await bed.platform.invoke("a", "");
    await bed.platform.hibernate("a");
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("wake");
    bed.engine.delayMs.hibernate = 60_000;
    const hibernating = bed.platform.hibernate("a");
    await until(() => states()[0] === "deflating");
    bed.engine.handler = () => {
      for (const instance of bed.engine.live) instance.start = { ...instance.start, faultsOutside: 3 };
      return null;
    };
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("reuse");
    expect(await hibernating).toMatchObject({ instances: 0 });
    expect(bed.platform.metrics()).toMatchObject({ wakes: 1, starts: { wake: 1, reuse: 1 } });
  });

  it("goes on being deflated while another one is idle", async () => {
    await openBed();
    bed.engine.handler = () => new Promise((resolve) => setTimeout(resolve, 20));
    await Promise.all([1, 2].map(() => bed.platform.invoke("a", "")));
    bed.engine.delayMs.hibernate = 50;
    const hibernating = bed.platform.hibernate("a");
    await until(() => states().includes("deflating"));
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("reuse");
    expect((await hibernating).instances).toBeGreaterThan(0);
    expect(bed.platform.metrics().deflationsCancelled).toBe(0);
  });

  it("is woken ahead of the request that its policy foresees, and hibernated again when none came", async () => {
    const policy: IdlePolicy = {
      name: "test",
      decide: () => [
        { afterMs: 10_000, action: "hibernate" },
        { afterMs: 100_000, action: "wake" },
        { afterMs: 300_000, action: "hibernate" },
      ],
    };
    await openBed({ policy });
    stopTime();
    await bed.platform.invoke("a", "");
    await pass(11_000);
    expect(states()).toEqual(["hibernated"]);
    await pass(90_000);
    expect(states()).toEqual(["woken"]);
    await pass(200_000);
    expect(states()).toEqual(["hibernated"]);
    expect(calls("wake")).toHaveLength(1);
    expect(bed.platform.metrics()).toMatchObject({ hibernations: 2, wakes: 1 });
  });

  it("is not woken ahead while another instance is warm anyway", async () => {
    let first = true;
    const policy: IdlePolicy = {
      name: "test",
      decide() {
        if (!first) return [];
        first = false;
        return [
          { afterMs: 10, action: "hibernate" },
          { afterMs: 60, action: "wake" },
        ];
      },
    };
    await openBed({ policy });
    let open = (): void => undefined;
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    bed.engine.handler = async (event) => (event === 2 ? gate : undefined);
    const busy = bed.platform.invoke("a", "2");
    await until(() => bed.platform.get("a").counts.running === 1);
    await bed.platform.invoke("a", "1");
    open();
    await busy;
    await until(() => bed.platform.get("a").counts.hibernated === 1);
    await new Promise((resolve) => setTimeout(resolve, 120));
    expect(calls("wake")).toEqual([]);
  });

  it("tells its policy how long its function was idle, over updates of the function too", async () => {
    const seen: (number | undefined)[] = [];
    const policy: IdlePolicy = {
      name: "test",
      decide({ name, count, lastMs }) {
        expect([name, count]).toEqual(["a", seen.length]);
        seen.push(lastMs);
        return [];
      },
    };
    await openBed({ policy });
    await bed.platform.invoke("a", "");
    await new Promise((resolve) => setTimeout(resolve, 60));
    await bed.platform.invoke("a", "");
    expect(seen[0]).toBeUndefined();
    expect(seen[1]).toBeGreaterThan(50);
    await deploy("a", { update: true });
    await bed.platform.invoke("a", "");
    expect(bed.platform.metrics().invocations).toBe(3);
  });

  it("is forgotten when it is killed while it is hibernated: the next request is thawed", async () => {
    await openBed({ keepWarmMs: 10 });
    await bed.platform.invoke("a", "");
    await until(() => states()[0] === "hibernated");
    for (const instance of bed.engine.live) instance.crash("killed");
    await until(() => bed.engine.live.size === 0);
    expect(states()).toEqual([]);
    expect(bed.platform.metrics().memory).toEqual({ residentBytes: 0, hibernatedBytes: 0 });
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("thaw");
  });

  it("is gone after a restart; functions and images are there", async () => {
    await openBed({ keepWarmMs: 10 });
    await bed.platform.invoke("a", "");
    await until(() => states()[0] === "hibernated");
    bed = await bed.restart();
    expect(states()).toEqual([]);
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("thaw");
  });
});

describe("when hibernating fails", () => {
  it("because the disk is full, it stays warm, that is logged once, and tried again at growing distances", async () => {
    const lines: string[] = [];
    const log = createLogger({ level: "error", destination: { write: (line: string) => lines.push(line) } });
    await openBed({ keepWarmMs: 10, log, hibernateBackoffMs: 40 });
    bed.engine.failNext("hibernate", fullDisk(), 3);
    stopTime();
    await bed.platform.invoke("a", "");
    const times: number[] = [];
    for (let ms = 0; ms < 1_000; ms += 10) {
      await pass(10);
      if (calls("hibernate").length > times.length) times.push(performance.now());
    }
    expect(times).toHaveLength(4);
    expect(states()).toEqual(["hibernated"]);
    const gaps = times.slice(1).map((time, index) => time - (times[index] ?? 0));
    expect(gaps[0]).toBeGreaterThan(30);
    expect(gaps[1]).toBeGreaterThan(70);
    expect(gaps[2]).toBeGreaterThan(150);
    expect(lines).toHaveLength(1);
    expect(lines[0]).toContain("instances cannot be hibernated");
    expect(bed.platform.metrics()).toMatchObject({ hibernateFailures: 3, hibernations: 1 });
  });

  it("because it is refused, that function is kept warm until it is deployed again, and its state says why", async () => {
    await openBed({ keepWarmMs: 10 });
    const refused = new ThawError("HIBERNATE_REFUSED", {
      what: 'function "a" could not be hibernated',
      why: "its allocator relies on zeros",
    });
    bed.engine.failNext("hibernate", refused);
    await bed.platform.invoke("a", "");
    await until(() => bed.platform.get("a").hibernateRefused !== undefined);
    expect(bed.platform.get("a").hibernateRefused).toBe(refused.message);
    await expect(bed.platform.invoke("a", "", wake)).rejects.toThrow(
      `the request demands wake. ${refused.message}. Demand another kind of start, or none`,
    );
    await bed.platform.invoke("a", "");
    await new Promise((resolve) => setTimeout(resolve, 60));
    expect(calls("hibernate")).toHaveLength(1);
    expect(states()).toEqual(["warm"]);
    await expect(bed.platform.invoke("a", "", wake)).rejects.toThrow("its allocator relies on zeros");

    await deploy("a", { update: true });
    expect(bed.platform.get("a").hibernateRefused).toBeUndefined();
    await bed.platform.invoke("a", "");
    await until(() => states()[0] === "hibernated");
  });

  it("because a hook of its never came back, which cost that instance, its function is kept warm, too", async () => {
    await openBed({ keepWarmMs: 10 });
    const why = "its before-snapshot hooks took longer than 30 s, and it was ended";
    const refused = new ThawError("HIBERNATE_REFUSED", { what: 'function "a" could not be hibernated', why });
    bed.engine.delayMs.hibernate = 20;
    bed.engine.failNext("hibernate", refused, 2);
    const end = async (times: number): Promise<void> => {
      await until(() => calls("hibernate").length === times);
      for (const instance of bed.engine.live) instance.crash("failed");
    };
    await bed.platform.invoke("a", "");
    await end(1);
    await until(() => bed.platform.get("a").hibernateRefused === refused.message);
    await bed.platform.invoke("a", "");
    await new Promise((resolve) => setTimeout(resolve, 60));
    expect([calls("hibernate").length, states()]).toEqual([1, ["warm"]]);
    const byHand = bed.platform.hibernate("a").catch((error: unknown) => error);
    await end(2);
    expect(await byHand).toBe(refused);
  });

  it("because one instance is refused for how it came, that one is kept warm, and others of its function are hibernated", async () => {
    await openBed({ keepWarmMs: 10 });
    const refused = {
      what: 'function "a" could not be hibernated',
      why: "it was started by reap",
      details: { scope: "instance" },
    };
    bed.engine.failNext("hibernate", new ThawError("HIBERNATE_REFUSED", refused));
    await bed.platform.invoke("a", "");
    await until(() => calls("hibernate").length === 1);
    await new Promise((resolve) => setTimeout(resolve, 60));
    expect([calls("hibernate").length, states()]).toEqual([1, ["warm"]]);
    expect(bed.platform.get("a").hibernateRefused).toBeUndefined();
    await bed.platform.invoke("a", "", { prefer: { kind: "thaw" } });
    await until(() => states().includes("hibernated"));
    expect(states()).toEqual(["warm", "hibernated"]);
  });

  it("in any other way, its function pauses and others go on", async () => {
    await openBed({ keepWarmMs: 10 }, ["a", "b"]);
    bed.engine.failNext("hibernate", new ThawError("HIBERNATE_FAILED", { what: "hibernating failed", why: "EINVAL" }));
    stopTime();
    await bed.platform.invoke("a", "");
    await pass(20);
    expect(calls("hibernate a")).toHaveLength(1);
    await bed.platform.invoke("b", "");
    await pass(20);
    expect([states("b"), states("a")]).toEqual([["hibernated"], ["warm"]]);
    await pass(1_500);
    expect(states("a")).toEqual(["hibernated"]);
  });
});

describe("a request that demands a wake", () => {
  it("gets a hibernated instance and no other", async () => {
    await openBed();
    await expect(bed.platform.invoke("a", "", wake)).rejects.toThrow(
      'Function "a" was not started: the request demands wake. it has no hibernated instance. Invoke it, then hibernate it: `thaw hibernate a`',
    );
    await bed.platform.invoke("a", "");
    await expect(bed.platform.invoke("a", "", wake)).rejects.toThrow("it has no hibernated instance");
    await bed.platform.hibernate("a");
    expect((await bed.platform.invoke("a", "", wake)).start.kind).toBe("wake");
    expect(bed.platform.metrics().starts).toMatchObject({ thaw: 1, wake: 1 });
  });

  it("waits for one that is being hibernated", async () => {
    await openBed();
    bed.engine.delayMs.hibernate = 60;
    stopTime();
    await bed.platform.invoke("a", "");
    const hibernating = bed.platform.hibernate("a");
    await pass(20);
    expect(states()).toEqual(["deflating"]);
    const waking = bed.platform.invoke("a", "", wake);
    await pass(0);
    expect(bed.platform.get("a").counts.waiting).toBe(1);
    await pass(40);
    const { start } = await waking;
    expect(start.kind).toBe("wake");
    expect(start.waitUs).toBe(40_000);
    await hibernating;
    expect(bed.platform.get("a").counts).toEqual({ running: 0, idle: 1, hibernated: 0, starting: 0, waiting: 0 });
  });

  it("is told at once when none will be hibernated: it failed, or another request took the only one", async () => {
    await openBed();
    bed.engine.delayMs.hibernate = 60;
    stopTime();
    await bed.platform.invoke("a", "");
    bed.engine.failNext("hibernate", new ThawError("HIBERNATE_FAILED", { what: "hibernating failed", why: "EINVAL" }));
    for (const requests of [[wake], [wake, wake]]) {
      const hibernating = bed.platform.hibernate("a").catch((error: unknown) => error);
      await pass(20);
      const waking = requests.map((request) => bed.platform.invoke("a", "", request).catch((error: unknown) => error));
      await pass(60);
      await hibernating;
      const told = await Promise.all(waking);
      expect(told.at(-1)).toMatchObject({ code: "PREFERENCE_UNAVAILABLE", why: "it has no hibernated instance" });
    }
    expect(bed.platform.metrics().starts).toMatchObject({ wake: 1 });
  });

  it("is not what one that demands reuse gets", async () => {
    await openBed();
    await bed.platform.invoke("a", "");
    await bed.platform.hibernate("a");
    await expect(bed.platform.invoke("a", "", { prefer: { kind: "reuse" } })).rejects.toThrow("demands reuse");
    expect((await bed.platform.invoke("a", "", { prefer: { kind: "thaw" } })).start.kind).toBe("thaw");
    expect(states().sort()).toEqual(["hibernated", "warm"]);
  });
});

describe("by hand", () => {
  it.each([1, 2])(
    "passes over an instance that ends meanwhile, and says how where there was no other (%i)",
    async (instances) => {
      await openBed();
      bed.engine.handler = () => new Promise((resolve) => setTimeout(resolve, 20));
      await Promise.all(Array.from({ length: instances }, () => bed.platform.invoke("a", "")));
      const [crashing] = bed.engine.live;
      bed.engine.delayMs.hibernate = 30;
      const hibernating = bed.platform.hibernate("a").catch((error: unknown) => error);
      bed.engine.failNext("hibernate", new ThawError("INSTANCE_EXITED", { what: "Runtime exited with error: signal 9" }));
      await until(() => crashing?.state === "deflating");
      crashing?.crash("signal 9");
      if (instances === 1)
        expect(await hibernating).toMatchObject({ code: "INSTANCE_EXITED", message: expect.stringContaining("signal 9") });
      else expect(await hibernating).toMatchObject({ instances: 1, skipped: 1, reason: expect.stringContaining("signal 9") });
    },
  );

  it("all idle instances are hibernated and woken, with what it saved", async () => {
    await openBed();
    bed.engine.handler = () => new Promise((resolve) => setTimeout(resolve, 20));
    await Promise.all([1, 2, 3].map(() => bed.platform.invoke("a", "")));
    expect(await bed.platform.hibernate("a")).toEqual({
      name: "a",
      instances: 3,
      skipped: 0,
      residentBytes: 3 * (MIB / 2 - WARM),
      hibernatedBytes: 3 * 300 * 4096,
    });
    expect(states()).toEqual(["hibernated", "hibernated", "hibernated"]);
    expect(bed.platform.metrics().instances).toMatchObject({ idle: 0, hibernated: 3 });
    expect(await bed.platform.wake("a")).toMatchObject({ name: "a", instances: 3, skipped: 0 });
    expect(states()).toEqual(["woken", "woken", "woken"]);
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("reuse");
  });

  it("what is small is hibernated too", async () => {
    await openBed();
    bed.engine.residentBytes.warm = MIB;
    await bed.platform.invoke("a", "");
    expect(await bed.platform.hibernate("a")).toMatchObject({ instances: 1, residentBytes: -MIB / 2 });
  });

  it("it says why there is nothing to do", async () => {
    await openBed();
    const nothing = (what: Promise<unknown>, sentence: string) => expect(what).rejects.toThrow(sentence);
    await nothing(bed.platform.hibernate("nope"), 'There is no function "nope"');
    await nothing(
      bed.platform.hibernate("a"),
      'Function "a" has nothing to hibernate. it has no instance. Invoke it first: `thaw invoke a`; `thaw ls` shows its instances',
    );
    await nothing(
      bed.platform.wake("a"),
      'Function "a" has nothing to wake. it has no instance. Hibernate it first: `thaw hibernate a`',
    );
    bed.engine.handler = (event) => (event === 1 ? new Promise((resolve) => setTimeout(resolve, 50)) : 1);
    const busy = bed.platform.invoke("a", "1");
    await until(() => states()[0] === "running");
    await nothing(bed.platform.hibernate("a"), "its instance is busy");
    await busy;
    await nothing(bed.platform.wake("a"), "its instances are awake");
    await bed.platform.hibernate("a");
    await nothing(bed.platform.hibernate("a"), "its instance is hibernated already");
  });

  it("a refusal and a full disk are told, and the instance goes on", async () => {
    await openBed();
    await bed.platform.invoke("a", "");
    bed.engine.failNext("hibernate", fullDisk());
    const error = await bed.platform.hibernate("a").catch((caught: unknown) => caught);
    expect(isThawError(error, "RESOURCE_EXHAUSTED")).toBe(true);
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("reuse");
  });

  it("a wake that fails is told, and the instance is hibernated as before", async () => {
    await openBed();
    await bed.platform.invoke("a", "");
    await bed.platform.hibernate("a");
    bed.engine.failNext("wake", new ThawError("HIBERNATE_FAILED", { what: "it cannot be woken", why: "EIO" }));
    await expect(bed.platform.wake("a")).rejects.toThrow("it cannot be woken. EIO");
    expect(states()).toEqual(["hibernated"]);
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("wake");
  });
});

describe("provisioned concurrency", () => {
  it("is that many parked husks, used before anything is thawed; it is shown, and survives updates by name and a restart", async () => {
    await openBed({}, []);
    await deploy("a", { provisioned: 2 });
    expect(bed.platform.get("a").provisioned).toBe(2);
    const parked = () => [...bed.engine.parked.values()].map((levels) => levels.get("prefaulted"));
    expect(parked()).toEqual([2]);
    const first = await bed.platform.invoke("a", "", { dispose: true });
    expect(first.start).toMatchObject({ kind: "parked", husk: "prefaulted" });
    expect((await bed.platform.invoke("a", "", { prefer: { kind: "parked" } })).start.kind).toBe("parked");
    bed = await bed.restart();
    await bed.platform.waitReady("a");
    expect(parked()).toEqual([2]);
    await deploy("a", { update: true, provisioned: 5 });
    await until(() => bed.engine.parked.size === 1);
    expect(parked()).toEqual([5]);
    await deploy("a", { update: true });
    await until(() => bed.engine.parked.size === 0);
    await expect(bed.platform.invoke("a", "", { prefer: { kind: "parked" } })).rejects.toThrow(
      "this server parks no husks with this image in them. Deploy it with --provisioned, or start the server with --park image=N or --park prefaulted=N",
    );
  });

  it("is asked for with the loader that husks are parked with, demanded or not", async () => {
    await openBed({ parked: { loader: "eager" } }, []);
    await deploy("a", { provisioned: 2 });
    const seen: unknown[] = [];
    const thaw = bed.engine.thaw.bind(bed.engine);
    bed.engine.thaw = (image, options) => {
      seen.push([options?.husk, options?.loader]);
      return thaw(image, options);
    };
    await bed.platform.invoke("a", "");
    await bed.platform.invoke("a", "", { prefer: { kind: "parked" } });
    expect(seen).toEqual([
      ["parked", "eager"],
      ["parked", "eager"],
    ]);
  });

  it("has a limit", async () => {
    await openBed({}, []);
    await expect(bed.platform.deploy({ name: "a", zip: zipOf(), provisioned: 1_001 })).rejects.toThrow(
      "the number of provisioned husks is 1001, and it must be a whole number from 0 to 1000",
    );
  });
});

describe("under memory pressure", () => {
  it("the longest idle are hibernated before their time", async () => {
    let total = 0;
    await openBed({ readPressure: () => ({ stalledUs: total, scannedPages: total }) }, ["a", "b"]);
    await bed.platform.invoke("a", "");
    await new Promise((resolve) => setTimeout(resolve, 10));
    await bed.platform.invoke("b", "");
    total = 500_000;
    await until(() => states("a")[0] === "hibernated" && states("b")[0] === "hibernated");
    expect(calls("hibernate")).toEqual(["hibernate a", "hibernate b"]);
  });
});

it("whatever comes at once: everyone is answered or refused by name, nothing is lost or used twice", async () => {
  await openBed({ keepWarmMs: 4, keepHibernatedMs: 60, maxInstances: 4 }, ["a", "b"]);
  Object.assign(bed.engine.delayMs, { hibernate: 4, wake: 2, dispose: 1, thaw: 1 });
  bed.engine.handler = () => new Promise((resolve) => setTimeout(resolve, 2));
  const act = fc.record({
    name: fc.constantFrom("a", "b"),
    what: fc.constantFrom("invoke", "invoke", "invoke", "wake-demanded", "hibernate", "wake", "crash", "fail"),
    afterMs: fc.nat(30),
  });
  const codes = ["TOO_MANY_INSTANCES", "PREFERENCE_UNAVAILABLE", "NO_INSTANCE", "RESOURCE_EXHAUSTED"];
  await fc.assert(
    fc.asyncProperty(fc.array(act, { minLength: 1, maxLength: 40 }), async (acts) => {
      const results = await Promise.allSettled(
        acts.map(async ({ name, what, afterMs }) => {
          await new Promise((resolve) => setTimeout(resolve, afterMs));
          if (what === "invoke") await bed.platform.invoke(name, "");
          else if (what === "wake-demanded") expect((await bed.platform.invoke(name, "", wake)).start.kind).toBe("wake");
          else if (what === "hibernate") await bed.platform.hibernate(name);
          else if (what === "wake") await bed.platform.wake(name);
          else if (what === "fail") bed.engine.failNext("hibernate", fullDisk());
          else [...bed.engine.live].find(({ state }) => state === "hibernated")?.crash("killed");
        }),
      );
      for (const result of results) {
        if (result.status === "rejected" && !codes.includes(result.reason.code)) throw result.reason;
      }
      bed.engine.heal("hibernate");
      expect(bed.platform.metrics().instances).toMatchObject({ running: 0, starting: 0 });
      await until(() => {
        const { idle, hibernated } = bed.platform.metrics().instances;
        return bed.engine.live.size === idle + hibernated && idle + hibernated <= 4;
      });
    }),
    { numRuns: 30 },
  );
  await until(() => bed.engine.live.size === 0);
  expect(bed.platform.metrics().memory).toEqual({ residentBytes: 0, hibernatedBytes: 0 });
}, 60_000);
