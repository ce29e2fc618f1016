/** What becomes of stages, and of the first request of a process that was resumed ahead, on a keeper that answers as it is told to. */
import { describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { ABI_CONSTANTS } from "../linux/abi.js";
import { Husk } from "./husk.js";
import type { Keeper } from "./keeper.js";
import type { HuskReport, InstanceExit, StageRequest } from "./keeper-messages.js";
import type { Told } from "./parts.js";
import { beginStages, deliverFirst, runStage, type StageStep, type Stamps } from "./stages.js";
import { exitOf } from "./testing.js";

const ENDED = exitOf();
const LOST = { code: "SANDBOX_FAILED", message: expect.stringContaining("a husk ended before its thaw stage was done") };

function report(status: number, failedOp = 0, stamps: readonly number[] = []): HuskReport {
  return { status, failedOp, stamps } as unknown as HuskReport;
}

function step(name: string, more: Partial<StageStep> = {}): StageStep {
  return {
    name,
    request: () => ({ program: 1, fds: [], fdBase: 200 }),
    labels: () => ["check that /lib/x is unchanged", "map anon"],
    ...more,
  };
}

function world() {
  const requests: StageRequest[] = [];
  const stages: Told<HuskReport>[] = [];
  const deliveries: Told<void>[] = [];
  const keeper = {
    beginStage(_id: number, request: StageRequest, told: Told<HuskReport>) {
      requests.push(request);
      stages.push(told);
    },
    beginDelivery: (_id: number, _parts: readonly Buffer[], told: Told<void>) => deliveries.push(told),
  } as unknown as Keeper;
  const told: (readonly [ThawError | undefined, unknown])[] = [];
  return {
    keeper,
    husk: new Husk(7),
    requests,
    stages,
    deliveries,
    told,
    tell: (error: ThawError | undefined, value?: unknown) => void told.push([error, value]),
  };
}

describe("stages that are sent at once", () => {
  it("are over with the last one's report, each with its stamps by the clock of the server", () => {
    const { keeper, husk, stages, told, tell } = world();
    beginStages(keeper, husk, [step("time", { clockShiftNs: 100 }), step("thaw")], false, tell);
    stages[0]?.(undefined, report(0, 0, [5, 0]));
    expect(told).toEqual([]);
    // The second one ran by a clock that is ahead; 0 is no time.
    stages[1]?.(undefined, report(0, 0, [107, 0, 109]));
    expect(told).toEqual([
      [
        undefined,
        [
          [5, 0],
          [7, 0, 9],
        ] satisfies Stamps[],
      ],
    ]);
  });

  it("are over, once, with the first that fails", () => {
    const { keeper, husk, stages, told, tell } = world();
    beginStages(keeper, husk, [step("time"), step("thaw")], false, tell);
    stages[0]?.(undefined, report(-12));
    stages[1]?.(undefined, report(-32));
    expect(told.map(([error]) => error?.code)).toEqual(["RESOURCE_EXHAUSTED"]);
  });

  it("are sent behind what each does before, and only the report of the last may be late", () => {
    const { keeper, husk, requests, tell } = world();
    const before = (): void => expect(requests).toEqual([]);
    beginStages(keeper, husk, [step("time", { before }), step("thaw")], true, tell);
    expect(requests.map(({ flags }) => flags)).toEqual([undefined, ABI_CONSTANTS.STAGE_QUIET]);
  });
});

describe("a stage", () => {
  it.each([
    ["the keeper knew of its end", new ThawError("SANDBOX_FAILED", { what: "ended" })],
    ["the keeper could not pass it on", new ThawError("KEEPER_FAILED", { what: "refused", details: { errno: 32 } })],
    ["it ended with the stage unread", undefined],
  ])("whose husk is gone is told as that, and nothing of the image: %s", async (_, error) => {
    const { keeper, husk, stages } = world();
    const ran = runStage(keeper, husk, step("thaw"));
    stages[0]?.(error, error === undefined ? report(-32) : undefined);
    await expect(ran).rejects.toMatchObject(LOST);
  });

  it("whose keeper is gone is told that", async () => {
    const { keeper, husk, stages } = world();
    const lost = new ThawError("KEEPER_FAILED", { what: "killed" });
    const ran = runStage(keeper, husk, step("thaw"));
    stages[0]?.(lost);
    await expect(ran).rejects.toBe(lost);
  });

  it.each([
    [-116, 0, "IMAGE_MISMATCH", "/lib/x is not the file it was made with. its size, inode or times differ"],
    [-12, 1, "RESOURCE_EXHAUSTED", "«map anon». the kernel answered ENOMEM"],
    [-22, 1, "THAW_FAILED", "«map anon». the kernel answered EINVAL"],
    [-999, 7, "THAW_FAILED", "«operation 7». the kernel answered errno 999"],
  ])("that fails with %i at operation %i is told as %s", async (status, failedOp, code, words) => {
    const { keeper, husk, stages } = world();
    const ran = runStage(keeper, husk, step("thaw"));
    stages[0]?.(undefined, report(status, failedOp));
    await expect(ran).rejects.toMatchObject({ code, message: expect.stringContaining(words) });
  });

  it("whose program cannot be made rejects, and does not throw", async () => {
    const { keeper, husk } = world();
    const broken = step("thaw", {
      request: () => {
        throw new Error("no program");
      },
    });
    await expect(runStage(keeper, husk, broken)).rejects.toThrow("no program");
  });
});

describe("the first request of a process that was resumed ahead", () => {
  function delivered() {
    const here = world();
    deliverFirst(here.keeper, here.husk, [Buffer.from("x")], here.tell);
    return {
      ...here,
      lies: () => here.deliveries[0]?.(undefined),
      end: (exit: Partial<InstanceExit> = {}) => here.husk.onExit({ ...ENDED, ...exit }),
    };
  }

  it("is over when it lies there and the process spoke, before anybody hears what it said", () => {
    const { husk, told, lies } = delivered();
    const heard: number[] = [];
    husk.heir = { onData: () => heard.push(told.length), onLog: () => undefined, onExit: () => undefined };
    lies();
    expect(told).toEqual([]);
    husk.onData(Buffer.from("answer"));
    husk.onData(Buffer.from("more"));
    husk.onExit(ENDED);
    expect([heard, told]).toEqual([[1, 1], [[undefined, undefined]]]);
  });

  it.each([
    ["unread", { unread: true }],
    ["sent too late", { sends: 0 }],
  ])("is lost with a process that left it %s", (_, exit) => {
    const { told, lies, end } = delivered();
    lies();
    end(exit);
    expect(told).toEqual([[expect.objectContaining({ code: "SANDBOX_FAILED" }), undefined]]);
  });

  it.each([
    ["had read it", {}],
    ["ran out of memory", { unread: true, oomKills: 1 }],
  ])("is not made again when the process that ended %s", (_, exit) => {
    const { told, lies, end } = delivered();
    lies();
    end(exit);
    expect(told).toEqual([[undefined, undefined]]);
  });

  it("is told once that nobody was left to read it, though the end follows", () => {
    const { told, deliveries, end } = delivered();
    deliveries[0]?.(new ThawError("KEEPER_FAILED", { what: "nobody is left to read it", details: { errno: 32 } }));
    end({ unread: true });
    expect(told).toEqual([[expect.objectContaining({ code: "SANDBOX_FAILED" }), undefined]]);
  });
});
