import { afterEach, expect, it, vi } from "vitest";
import { type ErrorCode, ThawError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import type { Husk } from "./husk.js";
import { HuskPool } from "./husk-pool.js";
import type { Keeper } from "./keeper.js";
import type { StageStep } from "./stages.js";

/** A keeper whose husks are this process, and whose stages end as `stage` says. */
function fakeKeeper(stage: (name: unknown) => Promise<void>): Keeper {
  const husks = new Map<number, Husk>();
  const keeper = {
    husk(_options: unknown, husk: Husk) {
      const id = husks.size + 1;
      husks.set(id, husk);
      return { id, ready: Promise.resolve({ pid: process.pid }) };
    },
    beginStage(_id: number, name: unknown, told: (error: unknown, report?: object) => void) {
      stage(name).then(() => told(undefined, { status: 0, failedOp: 0, stamps: [] }), told);
    },
    kill: (id: number) => husks.get(id)?.onExit({} as Parameters<Husk["onExit"]>[0]),
  };
  return keeper as unknown as Keeper;
}

function step(name: string): StageStep {
  return { name, request: () => name } as unknown as StageStep;
}

function spec(name: string): Parameters<HuskPool["target"]>[1] {
  return { level: "runtime", template: 1, steps: () => [step(name)], avoid: new Set(), count: 1 };
}

it("a pool whose programs are another image's by now is filled with those, and nothing is told of the former", async () => {
  const warnings: unknown[] = [];
  let closeFormer = (): void => {};
  let began = (): void => {};
  const beginning = new Promise<void>((resolve) => {
    began = resolve;
  });
  const keeper = fakeKeeper(async (name) => {
    if (name !== "former") return;
    began();
    await new Promise<void>((_, reject) => {
      closeFormer = () => reject(new ThawError("KEEPER_FAILED", { what: "no stage", why: "no such program" }));
    });
  });
  const pool = new HuskPool(keeper, step("base"), { warn: (...told: unknown[]) => warnings.push(told) } as unknown as Logger);
  pool.target("runtime", spec("former"));
  await beginning;
  pool.target("runtime", spec("heir"));
  closeFormer();
  await pool.full(20_000);
  expect(warnings).toEqual([]);
  expect(pool.take("runtime")).toBeDefined();
  pool.close();
});

it("a pool that somebody waits for is filled before others that were lacking sooner", async () => {
  const filled: string[] = [];
  const keeper = fakeKeeper(async (name) => {
    await new Promise((resolve) => setImmediate(resolve));
    if (name !== "base") filled.push(String(name));
  });
  const pool = new HuskPool(keeper, step("base"), { warn: () => {} } as unknown as Logger);
  for (let i = 0; i < 20; i++) pool.target(`parked ${i}`, spec(`parked ${i}`));
  pool.target("wanted", spec("wanted"));
  await pool.waitFor("wanted", 20_000);
  // Not behind all twenty: what was being made already goes on.
  expect(filled.indexOf("wanted")).toBeLessThan(8);
  expect(pool.take("wanted")).toBeDefined();
  pool.close();
});

it("no two living sandboxes have one user id, however many there were; one that ended, or never came to be, has none", async () => {
  const given: number[] = [];
  const keeper = fakeKeeper(async () => {});
  const husk = keeper.husk.bind(keeper);
  let fails = false;
  keeper.husk = (request, listener) => {
    given.push(request.uid);
    const failed = new ThawError("SANDBOX_FAILED", { what: "no sandbox" });
    return fails ? { id: 0, ready: Promise.reject(failed) } : husk(request, listener);
  };
  const pool = new HuskPool(keeper, step("base"), { warn: () => {} } as unknown as Logger, 3);
  const make = () => pool.make(1, [], "generic", new Set());
  const [first, second] = [await make(), await make()];
  fails = true;
  await expect(make()).rejects.toMatchObject({ code: "SANDBOX_FAILED" });
  fails = false;
  await make();
  await expect(make()).rejects.toMatchObject({ code: "RESOURCE_EXHAUSTED" });
  pool.drop(second);
  await second.gone();
  await make();
  expect(first.exit).toBeUndefined();
  expect(given.map((uid) => uid - (given[0] ?? 0))).toEqual([0, 1, 2, 2, 1]);
  pool.close();
});

afterEach(() => vi.useRealTimers());

it.each<[ErrorCode, number[]]>([
  ["IMAGE_MISMATCH", [1, 2, 4, 8, 16]],
  ["RESOURCE_EXHAUSTED", Array(31).fill(1)],
])("a pool that fails with %s is tried again, and that is told, after so many seconds: %j", async (code, pauses) => {
  vi.useFakeTimers();
  const told: string[] = [];
  const keeper = fakeKeeper(async (name) => {
    if (name === "former") throw new ThawError(code, { what: "no husk" });
  });
  const pool = new HuskPool(keeper, step("base"), { warn: (_: unknown, text: string) => told.push(text) } as unknown as Logger);
  pool.target("runtime", spec("former"));
  await vi.advanceTimersByTimeAsync(30_500);
  expect(told).toEqual(pauses.map((seconds) => `a pool could not be refilled; trying again in ${seconds} s`));
  // Whose programs are another image's now is not kept waiting for what the former one came to.
  pool.target("runtime", spec("heir"));
  await vi.advanceTimersByTimeAsync(1_100);
  expect(pool.take("runtime")).toBeDefined();
  pool.close();
});

it("husks that are outdated serve until others have taken their places, one by one, and are taken last", async () => {
  let held: Promise<void> | undefined;
  const pool = new HuskPool(
    fakeKeeper(async () => held),
    step("base"),
    {} as Logger,
  );
  pool.target("parked", { ...spec("parked"), level: "prefaulted", count: 3 });
  await pool.full(20_000);
  const former = new Set<unknown>();
  let release = (): void => {};
  held = new Promise((resolve) => {
    release = resolve;
  });
  pool.renew("parked", (husk) => former.add(husk) && true);
  expect([former.size, pool.readyCount("parked")]).toEqual([3, 3]);
  const served = pool.take("parked");
  expect([former.has(served), served?.exit, pool.readyCount("parked")]).toEqual([true, undefined, 2]);
  release();
  await pool.full(20_000);
  expect(pool.readyCount("parked")).toBe(3);
  for (let taken = 0; taken < 3; taken++) expect(former.has(pool.take("parked"))).toBe(false);
  expect([...former].filter((husk) => (husk as Husk).exit === undefined)).toEqual([served]);
  pool.close();
});

it("husks that are parked for one image are made within an allowance, and can be given up", async () => {
  const pool = new HuskPool(
    fakeKeeper(async () => undefined),
    step("base"),
    {} as Logger,
  );
  const one = async (): Promise<number> => {
    pool.target("generic", { ...spec("any"), level: "generic" });
    await pool.full(20_000);
    return pool.privateBytes;
  };
  const bytes = await one();
  // They are this process, whose size changes by a little.
  let allowed = 3.5;
  pool.parkWithin(() => allowed * bytes);
  pool.target("prefaulted:image:splice", { ...spec("parked"), level: "prefaulted", count: 9 });
  await pool.full(20_000);
  expect(pool.readyCount("prefaulted:image:splice")).toBe(3);
  expect([pool.readyCount("prefaulted:other:splice"), pool.countByLevel()]).toEqual([
    0,
    { generic: 1, runtime: 0, image: 0, prefaulted: 3 },
  ]);
  expect([pool.giveUp(), pool.giveUp(), pool.giveUp(), pool.giveUp()]).toEqual([true, true, true, false]);
  // Once there is room others are made.
  allowed = 2.5;
  await vi.waitFor(() => expect(pool.readyCount("prefaulted:image:splice")).toBe(2), { timeout: 10_000 });
  pool.close();
});
