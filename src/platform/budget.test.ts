import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import { isThawError, ThawError } from "../base/errors.js";
import { MIB } from "../base/units.js";
import { IdleInstances, type IdleOptions } from "./idle.js";
import { openTestBed, type TestBed, until, zipOf } from "./testing.js";
import type { PlatformOptions } from "./types.js";

let bed: TestBed;
afterEach(async () => {
  await bed.close();
});

const WARM = 80 * MIB;
const LEFT = MIB / 2;

async function openBed(options: Partial<PlatformOptions>, names: string[]): Promise<void> {
  bed = await openTestBed({ maxInstances: 100, ...options });
  Object.assign(bed.engine.residentBytes, { warm: WARM, woken: WARM, hibernated: LEFT });
  for (const name of names) await deploy(name);
}
async function deploy(name: string, more: object = {}): Promise<void> {
  await bed.platform.deploy({ name, zip: zipOf(), ...more });
  await bed.platform.waitReady(name);
}
/** What the engine's instances take, whatever the platform believes. */
const residentBytes = (): number =>
  [...bed.engine.live].reduce((sum, { state }) => sum + (state === "hibernated" ? LEFT : bed.engine.residentBytes.warm), 0);
const stateOf = (name: string): string | undefined => bed.platform.get(name).instances[0]?.state;
const names = (count: number): string[] => Array.from({ length: count }, (_, index) => `f${String(index).padStart(2, "0")}`);

describe("a memory budget", () => {
  it("is held by hibernating the longest idle first", async () => {
    await openBed({ memoryBudgetBytes: 250 * MIB }, ["a", "b", "c", "d"]);
    for (const name of ["a", "b", "c"]) await bed.platform.invoke(name, "");
    expect(["a", "b", "c"].map(stateOf)).toEqual(["warm", "warm", "warm"]);
    await bed.platform.invoke("d", "");
    expect(["a", "b", "c", "d"].map(stateOf)).toEqual(["hibernated", "warm", "warm", "warm"]);
    // A wake needs room as well as a start.
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("wake");
    expect(["a", "b", "c", "d"].map(stateOf)).toEqual(["woken", "hibernated", "warm", "warm"]);
    expect(bed.platform.metrics()).toMatchObject({ hibernations: 2, evictions: 0, throttles: 0 });
    expect(bed.platform.metrics().memory).toMatchObject({ budgetBytes: 250 * MIB });
    expect(bed.platform.metrics().memory.residentBytes).toBeLessThan(250 * MIB);
  });

  it("is held by ending hibernated ones when nothing warm is left", async () => {
    await openBed({ memoryBudgetBytes: 81 * MIB }, ["a", "b", "c", "d"]);
    for (const name of ["a", "b", "c", "d"]) await bed.platform.invoke(name, "");
    expect(["a", "b", "c", "d"].map(stateOf)).toEqual([undefined, "hibernated", "hibernated", "warm"]);
    expect(bed.platform.metrics()).toMatchObject({ hibernations: 3, evictions: 1 });
  });

  it("is held by ending instances that cannot be hibernated", async () => {
    await openBed({ memoryBudgetBytes: 170 * MIB }, ["a", "b", "c"]);
    bed.engine.failNext(
      "hibernate",
      new ThawError("HIBERNATE_REFUSED", { what: "it cannot be hibernated", why: "userfaultfd" }),
      9,
    );
    for (const name of ["a", "b", "c"]) await bed.platform.invoke(name, "");
    expect(stateOf("c")).toBe("warm");
    expect(bed.engine.live.size).toBe(2);
    expect(residentBytes()).toBeLessThan(170 * MIB);
  });

  it("counts an instance that lets nobody look at its memory as all that it may have", async () => {
    await openBed({ memoryBudgetBytes: 250 * MIB }, ["a"]);
    await bed.platform.invoke("a", "");
    const [instance] = bed.engine.live;
    if (instance === undefined) throw new Error("a has no instance");
    instance.memory = () => Promise.reject(new ThawError("KEEPER_FAILED", { what: "its memory cannot be looked at" }));
    await bed.platform.measure("a");
    expect(bed.platform.get("a").instances).toMatchObject([{ state: "warm", residentBytes: 128 * MIB }]);
  });

  it("is held by ending an instance that has ended by itself, before its exit is told, and holds up nobody for it", async () => {
    await openBed({ memoryBudgetBytes: 100 * MIB }, ["a", "b"]);
    await bed.platform.invoke("a", "");
    await bed.platform.measure("a");
    const [ended] = bed.engine.live;
    if (ended === undefined) throw new Error("a has no instance");
    ended.alive = false;
    expect((await bed.platform.invoke("b", "")).result.functionError).toBeUndefined();
    expect(bed.platform.metrics()).toMatchObject({ throttles: 0, hibernations: 0 });
    expect([...bed.engine.live].map(({ spec }) => spec.name)).toEqual(["b"]);
  });

  it("lets a start wait for the memory of what ends already, be it after its first request or with its version", async () => {
    await openBed({ memoryBudgetBytes: 100 * MIB }, ["a", "b"]);
    bed.engine.delayMs.dispose = 300;
    await bed.platform.invoke("a", "", { dispose: true });
    await bed.platform.invoke("b", "");
    expect(residentBytes()).toBeLessThan(100 * MIB);
    await bed.platform.deploy({ name: "b", zip: zipOf(), update: true });
    await bed.platform.invoke("a", "");
    expect(bed.platform.metrics().throttles).toBe(0);
    bed.engine.delayMs.dispose = 0;
  });

  it("refuses a start only when nothing idle is left, with the figures", async () => {
    await openBed({ memoryBudgetBytes: 170 * MIB }, ["a", "b", "c"]);
    let open = (): void => undefined;
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    bed.engine.handler = () => gate;
    const busy = [bed.platform.invoke("a", ""), bed.platform.invoke("b", "")];
    await until(() => bed.platform.metrics().instances.running === 2);
    const error = await bed.platform.invoke("c", "").catch((caught: unknown) => caught);
    expect(isThawError(error, "TOO_MANY_INSTANCES")).toBe(true);
    expect((error as Error).message).toBe(
      'Function "c" was not started. it takes about 80 MiB, and 160 MiB of the memory budget of 170 MiB are in use by instances ' +
        "that are busy, or kept for what they may come to. Try again, or start the server with a larger --memory-budget",
    );
    expect(bed.platform.metrics()).toMatchObject({ throttles: 1 });
    open();
    await Promise.all(busy);
    expect((await bed.platform.invoke("c", "")).start.kind).toBe("thaw");
  });

  it("refuses a wake that it has no room for, and at once whoever waited for that instance to become free", async () => {
    await openBed({ memoryBudgetBytes: 100 * MIB }, ["a", "b"]);
    await bed.platform.invoke("a", "");
    await bed.platform.hibernate("a");
    let open = (): void => undefined;
    bed.engine.handler = () =>
      new Promise<void>((resolve) => {
        open = resolve;
      });
    const busy = bed.platform.invoke("b", "");
    await until(() => bed.platform.metrics().instances.running === 1);
    bed.engine.residentBytes.woken = 90 * MIB;
    const waking = bed.platform.invoke("a", "").catch((error: unknown) => error);
    const demanding = bed.platform.invoke("a", "", { prefer: { kind: "reuse" } }).catch((error: unknown) => error);
    expect(await waking).toMatchObject({ code: "TOO_MANY_INSTANCES" });
    const why = "none of its instances that were running or starting became free";
    expect(await demanding).toMatchObject({ code: "PREFERENCE_UNAVAILABLE", why });
    open();
    await busy;
  });

  it("lets one function run that is larger than all of it", async () => {
    await openBed({ memoryBudgetBytes: 10 * MIB }, ["a", "b"]);
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("thaw");
    expect((await bed.platform.invoke("b", "")).start.kind).toBe("thaw");
    expect(stateOf("a")).toBeUndefined();
  });

  it("counts parked husks, and what grew since it was measured", async () => {
    await openBed({ memoryBudgetBytes: 250 * MIB }, ["a", "b"]);
    bed.engine.huskBytes = 20 * MIB;
    await deploy("p", { provisioned: 3 });
    await bed.platform.invoke("a", "");
    await bed.platform.invoke("b", "");
    expect(["a", "b"].map(stateOf)).toEqual(["warm", "warm"]);
    bed.engine.residentBytes.warm = 100 * MIB;
    await bed.platform.invoke("b", "");
    await until(() => stateOf("a") === "hibernated");
    expect(bed.platform.metrics().memory.residentBytes).toBe(3 * 20 * MIB + 100 * MIB + LEFT);
  });

  it("refuses a start after a while when others take what is freed for it", async () => {
    const budget = { fits: () => false };
    const ending = {
      *[Symbol.iterator]() {
        yield new Promise((resolve) => setTimeout(resolve, 5));
      },
    };
    const idle = new IdleInstances({ budget, ending, roomMs: 50, policy: {}, log: {} } as unknown as IdleOptions);
    expect(await idle.reserve(1)).toBe(false);
    idle.close();
  });

  it("is held by giving up parked husks before a start is refused", async () => {
    await openBed({ memoryBudgetBytes: 200 * MIB }, ["a", "b", "c"]);
    bed.engine.huskBytes = 30 * MIB;
    await deploy("p", { provisioned: 3 });
    const ready = (): number | undefined => bed.platform.get("p").provisionedReady;
    expect(ready()).toBe(3);
    const open: (() => void)[] = [];
    bed.engine.handler = () => new Promise<void>((resolve) => open.push(resolve));
    const busy = [bed.platform.invoke("a", ""), bed.platform.invoke("b", "")];
    await until(() => bed.platform.metrics().instances.running === 2);
    expect(ready()).toBe(1);
    await expect(bed.platform.invoke("c", "")).rejects.toThrow(
      "it takes about 80 MiB, and 160 MiB of the memory budget of 200 MiB are in use by instances that are busy, or kept for what they may come to. Try again, or start the server with a larger --memory-budget",
    );
    expect(ready()).toBe(0);
    for (const go of open) go();
    await Promise.all(busy);
  });

  it("does not write what would give nothing back: small instances end", async () => {
    await openBed({ memoryBudgetBytes: 3 * MIB }, ["a", "b", "c", "d"]);
    bed.engine.residentBytes.warm = MIB;
    for (const name of ["a", "b", "c"]) {
      await bed.platform.invoke(name, "");
      await bed.platform.measure(name);
    }
    await bed.platform.invoke("d", "");
    expect(bed.engine.calls.filter((call) => call.startsWith("hibernate"))).toEqual([]);
    expect(bed.engine.live.size).toBeLessThanOrEqual(3);
  });

  it("holds under load, whatever comes at once: nobody is lost, no place, no byte", async () => {
    const budget = 500 * MIB;
    await openBed({ memoryBudgetBytes: budget, keepWarmMs: 20, maxInstances: 40 }, names(12));
    Object.assign(bed.engine.delayMs, { hibernate: 3, wake: 1, thaw: 1, dispose: 1 });
    bed.engine.handler = (event) => new Promise((resolve) => setTimeout(resolve, Number(event)));
    let most = 0;
    const sampler = setInterval(() => {
      most = Math.max(most, residentBytes());
    }, 1);
    const request = fc.tuple(fc.nat(11), fc.integer({ min: 0, max: 8 }), fc.boolean());
    await fc.assert(
      fc.asyncProperty(fc.array(fc.array(request, { maxLength: 12 }), { maxLength: 6 }), async (bursts) => {
        const outcomes = bursts.map(async (burst, turn) => {
          await new Promise((resolve) => setTimeout(resolve, turn * 7));
          return Promise.allSettled(
            burst.map(([at, ms, dispose]) => bed.platform.invoke(names(12)[at] ?? "", String(ms), { dispose })),
          );
        });
        for (const outcome of (await Promise.all(outcomes)).flat()) {
          if (outcome.status === "rejected") expect(isThawError(outcome.reason, "TOO_MANY_INSTANCES")).toBe(true);
          else expect(outcome.value.result.functionError).toBeUndefined();
        }
      }),
      { numRuns: 25 },
    );
    clearInterval(sampler);
    expect(most).toBeGreaterThan(budget / 2);
    expect(most).toBeLessThanOrEqual(budget + WARM);
    const { instances } = bed.platform.metrics();
    expect(instances).toMatchObject({ running: 0, starting: 0 });
    await until(
      () => bed.engine.live.size === bed.platform.metrics().instances.idle + bed.platform.metrics().instances.hibernated,
    );
    await bed.platform.close();
    expect(bed.platform.metrics().memory.residentBytes).toBe(0);
  });
});
