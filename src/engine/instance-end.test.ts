import { describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { type Ending, obituary, verdict } from "./instance-end.js";
import type { InstanceExit } from "./keeper-messages.js";
import { exitOf } from "./testing.js";
import type { FunctionSpec } from "./types.js";

const REQUEST = { requestId: "r-1", beganMs: 0, timeoutMs: 3000, sent: true };
const KILLED = exitOf({ code: undefined, signal: 9 });
const SPEC = { memoryMb: 128, timeoutMs: 3000 } as FunctionSpec;

function memoryOf(exit: Partial<InstanceExit>, kind: "exited" | "timeout"): number {
  const ending = { end: { kind }, exit: { ...KILLED, ...exit }, spec: SPEC, heapFull: false };
  return obituary(ending, REQUEST).maxMemoryMb;
}

describe("the memory of an instance that ended", () => {
  const both = { peakBytes: 100 * 2 ** 20, maxRssKb: 60 * 1024 };

  it("is its largest process when it ended by itself: its group is charged for files that others read, too", () => {
    expect(memoryOf(both, "exited")).toBe(60);
    expect(memoryOf({ maxRssKb: 150 * 1024 }, "exited"), "its limit at most").toBe(128);
  });

  it("is the peak of its group when it was killed or ran out of memory, and where the kernel cannot tell that, its largest process", () => {
    expect(memoryOf(both, "timeout")).toBe(100);
    expect(memoryOf({ ...both, oomKills: 1 }, "exited")).toBe(100);
    expect(memoryOf({ maxRssKb: 60 * 1024 }, "timeout")).toBe(60);
    expect(memoryOf({ maxRssKb: 150 * 1024 }, "timeout"), "its limit at most").toBe(128);
  });
});

describe("a request that an instance did not answer", () => {
  const exited = (exit: Partial<InstanceExit>, kind: "exited" | "timeout" = "exited"): Ending => {
    return { end: { kind }, exit: { ...KILLED, ...exit }, spec: SPEC, heapFull: false };
  };

  it("may go to another one when this one had answered before and left it unread", () => {
    for (const told of [verdict(exited({ unread: true }), REQUEST, 1), verdict(exited({}), { ...REQUEST, sent: false }, 1)]) {
      expect(told).toBeInstanceOf(ThawError);
      expect(told).toMatchObject({ code: "INSTANCE_EXITED", why: "Runtime exited with error: signal 9 (SIGKILL)" });
    }
  });

  it("may go to another one when this one had answered before and left it unread until its time was over", () => {
    expect(verdict(exited({ unread: true }, "timeout"), REQUEST, 1)).toMatchObject({
      code: "INSTANCE_EXITED",
      why: "the function did not answer before its deadline",
    });
  });

  it("may go to another one when it was still behind hooks of before, however they ended", () => {
    const why = new ThawError("HIBERNATE_REFUSED", { what: "its hooks took too long" });
    const failed: Ending = { ...exited({}), end: { kind: "failed", error: why } };
    for (const ending of [failed, exited({ oomKills: 1 }), exited({}, "timeout")])
      expect(verdict(ending, { ...REQUEST, behindHooks: true }, 1)).toMatchObject({ code: "INSTANCE_EXITED" });
    expect(verdict(failed, { ...REQUEST, sent: false }, 1)).toBe(why);
    expect(verdict(failed, REQUEST, 1)).toBe(why);
  });

  it.each([
    ["it was read", exited({}), 1],
    ["it was the first one", exited({ unread: true }), 0],
    ["memory ran out", exited({ unread: true, oomKills: 1 }), 1],
    ["it was read, and its time was over", exited({}, "timeout"), 1],
    ["it was the first one, and its time was over", exited({ unread: true }, "timeout"), 0],
  ])("is told of the end when %s", (_when, ending, served) => {
    expect(verdict(ending, REQUEST, served)).toMatchObject({ functionError: "Unhandled", alive: false });
  });
});

it("an end by SIGBUS sends to the disk, not to the function's code", () => {
  const ending: Ending = { end: { kind: "exited" }, exit: { ...KILLED, signal: 7 }, spec: SPEC, heapFull: false };
  const { payload } = obituary(ending, REQUEST);
  expect(payload.toString()).toContain("signal 7 (SIGBUS). see whether the server's disk is full or its files were cut short");
});

it.each([
  [11, "signal 11 (SIGSEGV). it crashed: look at native add-ons first"],
  [6, "signal 6 (SIGABRT). it crashed: look at native add-ons first"],
  [9, "signal 9 (SIGKILL). it was sent that signal"],
  [40, "signal 40. it was sent that signal"],
])("an end by signal %s is told by its name, and is no exit to be left out", (signal, sentence) => {
  const ending: Ending = { end: { kind: "exited" }, exit: { ...KILLED, signal }, spec: SPEC, heapFull: false };
  expect(obituary(ending, REQUEST).payload.toString()).toContain(sentence);
});
