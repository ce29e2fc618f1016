/** When an instance tells those who follow its start of it, and what it keeps of what its function printed, on a keeper that does nothing. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import { encodeFrame } from "../runtime/frames.js";
import { Husk } from "./husk.js";
import { type InstanceOwner, LiveInstance } from "./instance.js";
import type { Keeper } from "./keeper.js";
import { exitOf } from "./testing.js";
import type { FunctionSpec, StartResult } from "./types.js";

const SPEC = { name: "f", version: "1", timeoutMs: 30_000, memoryMb: 128 } as FunctionSpec;
const START: StartResult = { kind: "parked", us: 1, phases: [], waitUs: 0, prefetchedPages: 0 };
const ENDED = exitOf();

/** An instance that is followed behind its first answer, and what its owner is told, in order. */
function followed(unwatched?: Promise<void>) {
  const told: string[] = [];
  const killed: number[] = [];
  const keeper = {
    send: () => undefined,
    flush: () => undefined,
    kill: (id: number) => void killed.push(id),
  } as unknown as Keeper;
  const owner = {
    firstAnswer: () => void told.push("first answer"),
    abandonRecording: () => {
      told.push("abandoned");
      return unwatched;
    },
    ended: () => void told.push("ended"),
    hibernation: () => ({
      hibernate: async (after?: Promise<void>) => {
        await after;
        told.push("hibernated");
      },
    }),
    freeze: async () => told.push("frozen"),
  } as unknown as InstanceOwner;
  const husk = new Husk(7);
  const instance = new LiveInstance(keeper, owner, husk, SPEC, START);
  instance.starting.followedBy(() => told.push("followed"));
  const ask = () => instance.invoke("1", { requestId: "r" });
  const answer = (last = false): void => {
    const header = { type: "result", requestId: "r", handlerMs: 1, maxMemoryMb: 1, ...(last ? { last } : {}) };
    husk.onData(Buffer.concat(encodeFrame(header as never, "1")));
  };
  return { told, killed, husk, instance, ask, answer };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

describe("an instance that is followed behind its first answer", () => {
  it("is once that is out, and not again", async () => {
    const { told, ask, answer } = followed();
    for (let requests = 0; requests < 2; requests++) {
      const answered = ask();
      answer();
      if (requests === 0) expect(told).toEqual([]);
      await answered;
      await turn();
      expect(told).toEqual(["followed", "first answer"]);
    }
  });

  it("is before its second request, however soon that comes", async () => {
    const { told, ask, answer } = followed();
    const first = ask();
    answer();
    void first;
    void ask();
    expect(told).toEqual(["followed", "first answer"]);
  });

  it("is before its end, when that was read together with the answer", async () => {
    const { told, husk, ask, answer } = followed();
    const answered = ask();
    answer();
    husk.onExit(ENDED);
    await answered;
    await turn();
    expect(told).toEqual(["followed", "first answer", "ended"]);
  });

  it("is not when it ends without an answer, nor when the answer was its last word", async () => {
    const silent = followed();
    const lost = silent.ask();
    silent.husk.onExit(ENDED);
    await lost;
    await turn();
    expect(silent.told).toEqual(["ended"]);
    const last = followed();
    const answered = last.ask();
    last.answer(true);
    last.husk.onExit(ENDED);
    expect((await answered).alive).toBe(false);
    await turn();
    expect(last.told).toEqual(["ended"]);
  });

  it.each(["hibernate", "freeze"] as const)("is given up before the first request when it has to %s by then", async (work) => {
    const { told, instance, ask, answer } = followed();
    await instance[work]();
    const done = work === "freeze" ? "frozen" : "hibernated";
    expect(told).toEqual(["followed", "abandoned", done]);
    const { hibernation } = instance;
    if (hibernation !== undefined) Object.assign(hibernation, { requested: () => undefined, answered: () => undefined });
    const answered = ask();
    answer();
    await answered;
    await turn();
    expect(told).toEqual(["followed", "abandoned", done, "first answer"]);
  });

  it.each(["hibernate", "freeze"] as const)("is not touched by a %s while its memory is watched", async (work) => {
    let letGo = (): void => {};
    let refuse = (_: Error): void => {};
    const { told, instance } = followed(new Promise((resolve) => (letGo = resolve)));
    const working = instance[work]();
    await turn();
    expect(told).toEqual(["followed", "abandoned"]);
    letGo();
    await working;
    expect(told).toHaveLength(3);
    const kept = followed(new Promise((_, reject) => (refuse = reject)));
    const refused = kept.instance[work]();
    refuse(new Error("kept"));
    await expect(refused).rejects.toThrow("kept");
    expect(kept.told).toEqual(["followed", "abandoned"]);
  });

  it("is when it is frozen live, in the middle of its first request", async () => {
    const { told, instance, ask, answer } = followed();
    const answered = ask();
    await instance.freeze({ live: true });
    expect(told).toEqual(["followed", "abandoned", "frozen"]);
    answer();
    await answered;
  });

  it("is before it is hibernated at once behind the answer", async () => {
    const { told, instance, ask, answer } = followed();
    const answered = ask();
    answer();
    await instance.hibernate();
    await answered;
    expect(told).toEqual(["followed", "first answer", "abandoned", "hibernated"]);
  });
});

it("an instance that claims more time and memory than there is has what there is", async () => {
  const { husk, ask } = followed();
  const asked = ask();
  const header = { type: "result", requestId: "r", handlerMs: 1e308, maxMemoryMb: 1e308 };
  husk.onData(Buffer.concat(encodeFrame(header as never, "1")));
  const { handlerMs, totalMs, maxMemoryMb } = await asked;
  expect([handlerMs, maxMemoryMb]).toEqual([totalMs, SPEC.memoryMb]);
});

describe("an instance that wrote the beginning of a frame behind its answer", () => {
  const answer = { type: "result", requestId: "r", handlerMs: 1, maxMemoryMb: 1 };
  const whole = Buffer.concat(encodeFrame(answer as never, "1"));

  it.each([1, 12, whole.length - 1])("is ended at once, before anybody waits for the rest of it (%i bytes)", async (bytes) => {
    for (const together of [true, false]) {
      const { killed, instance, husk, ask } = followed();
      const answered = ask();
      const begun = whole.subarray(0, bytes);
      if (together) husk.onData(Buffer.concat([whole, begun]));
      else for (const chunk of [whole, begun]) husk.onData(chunk);
      expect((await answered).payload.toString()).toBe("1");
      expect(instance.alive).toBe(false);
      expect(killed).toEqual([husk.id]);
    }
  });

  it("is not when the rest of an answer is still to come", async () => {
    const { instance, husk, ask } = followed();
    const answered = ask();
    for (const byte of whole) husk.onData(Buffer.of(byte));
    expect((await answered).payload.toString()).toBe("1");
    expect(instance.alive).toBe(true);
  });
});

describe("what a function prints", () => {
  it("byte by byte keeps nothing else in memory of what was read together with it", async () => {
    const { instance, husk, ask, answer } = followed();
    const answered = ask();
    const chunks: WeakRef<ArrayBufferLike>[] = [];
    for (let index = 0; index < 100; index++) {
      const chunk = Buffer.allocUnsafeSlow(64 * 1024).fill("y");
      chunks.push(new WeakRef(chunk.buffer));
      husk.onLog(chunk.subarray(0, 1));
    }
    // A WeakRef holds until the turn that looked at it is over.
    await turn();
    setFlagsFromString("--expose-gc");
    (runInNewContext("gc") as () => void)();
    // The last one may still lie on the stack.
    expect(chunks.filter((chunk) => chunk.deref() !== undefined).length).toBeLessThan(10);
    answer();
    expect((await answered).logs.toString()).toBe("y".repeat(100));
    expect(instance.takeLogs()).toHaveLength(0);
  });
});
