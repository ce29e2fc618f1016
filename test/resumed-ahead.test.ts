/** Parked husks that are their function's process already: they wait for a request, and nothing of the function runs before it. */
import { readdirSync, readFileSync } from "node:fs";
import { afterEach, describe, expect, it } from "vitest";
import type { Image, Instance, Loader } from "../src/engine/index.js";
import { decodeManifest, imageFiles, mayResumeAhead } from "../src/image/index.js";
import { processStart } from "../src/linux/process-stat.js";
import { descendants } from "./support/processes.js";
import { until } from "./support/wait.js";
import { call, hostPid, LANGUAGES, type Language, useWorld } from "./support/world.js";

const SYS_READ = { node: "0", python: "19" } as const;
const SYS_RECVMSG = "47";
const CONTROL = "0x3";
const WATCHED_MS = 300;
const FREEZES_MAX = 8;
const PARKED = { husk: "parked" } as const;
const world = useWorld();
let parked: Image | undefined;

afterEach(async () => {
  if (parked !== undefined) await world.engine.removeImage(parked);
  parked = undefined;
});

/** Frozen while none of V8's threads was at work, which it may be, for a moment. */
async function quietImage(language: Language): Promise<Image> {
  for (let tries = 0; tries < FREEZES_MAX; tries++) {
    const image = await world.imageAfter(language, "counter.next");
    if (mayResumeAhead(decodeManifest(readFileSync(imageFiles(image.dir).manifest), image.dir).facts)) return image;
    await world.engine.removeImage(image);
  }
  throw new Error(`of ${FREEZES_MAX} images none may be resumed ahead`);
}

/** Parks one husk and returns the pid of its process. */
async function park(image: Image, loader?: Loader): Promise<number> {
  parked = image;
  world.engine.pool({ generic: 0 });
  world.engine.park(image, "prefaulted", 1, loader);
  await world.engine.poolsFull(20_000);
  // Those that were let go take a moment to end.
  return until("no husk but the parked one", () => {
    const husks = descendants(process.pid).filter(({ exe }) => exe.endsWith("/husk"));
    expect(husks.length).toBeGreaterThan(0);
    return husks.length === 1 ? husks[0]?.pid : undefined;
  });
}

/** System call and arguments that the main thread is blocked in. */
const blockedIn = (pid: number): string[] => readFileSync(`/proc/${pid}/syscall`, "utf8").split(" ");

/** Whether it is gone, or nothing of it will run any more. */
function hasEnded(pid: number): boolean {
  return processStart(pid) === undefined;
}

/** Whether all threads sleep: those that were released with the main thread need a moment on a processor to get there. */
function sleeps(pid: number): boolean {
  const stats = readdirSync(`/proc/${pid}/task`).map((tid) => readFileSync(`/proc/${pid}/task/${tid}/stat`, "utf8"));
  return stats.every((stat) => stat.slice(stat.lastIndexOf(")") + 2).startsWith("S"));
}

/** Of all threads, nanoseconds on a processor. */
const ran = (pid: number): number[] =>
  readdirSync(`/proc/${pid}/task`).map((tid) => Number(readFileSync(`/proc/${pid}/task/${tid}/schedstat`, "utf8").split(" ")[0]));

describe.each(LANGUAGES)("a parked %s husk", (language) => {
  it("waits in the runtime's read, and none of its threads runs until a request comes", async () => {
    const pid = await park(await quietImage(language));
    await expect.poll(() => blockedIn(pid).slice(0, 2), { timeout: 30_000 }).toEqual([SYS_READ[language], CONTROL]);
    await until("all its threads to sleep", () => sleeps(pid) || undefined, 30_000);
    const before = ran(pid);
    await new Promise((resolve) => setTimeout(resolve, WATCHED_MS));
    expect(ran(pid)).toEqual(before);
    await world.thawed(
      parked as Image,
      async (clone) => {
        expect(clone.start).toMatchObject({ kind: "parked", husk: "prefaulted" });
        expect(hostPid(clone)).toBe(pid);
        expect(await call(clone, "counter.next")).toBe(2);
        expect(await call(clone, "counter.next")).toBe(3);
      },
      PARKED,
    );
  });

  it("that was killed as it was taken is told from a function that ended", async () => {
    const pid = await park(await quietImage(language));
    process.kill(pid, "SIGKILL");
    // Until then it could still read. Its end is noticed only in a later turn.
    for (const end = Date.now() + 30_000; !hasEnded(pid) && Date.now() < end; );
    expect(hasEnded(pid)).toBe(true);
    const clone = await world.engine.thaw(parked as Image, { ...PARKED, early: true });
    await expect(call(clone, "counter.next")).rejects.toMatchObject({ code: "SANDBOX_FAILED" });
    await clone.dispose();
  });

  it("that had all of its pages copied tells at once that no faults are counted", async () => {
    const image = await quietImage(language);
    await park(image, "eager");
    const clone = await world.engine.thaw(image, { ...PARKED, loader: "eager", early: true });
    try {
      expect(await call(clone, "counter.next")).toBe(2);
      expect(await clone.faults()).toBeUndefined();
      expect(clone.alive).toBe(true);
    } finally {
      await clone.dispose();
    }
  });

  it("can be frozen before its first request", async () => {
    await park(await quietImage(language));
    const clone = await world.engine.thaw(parked as Image, PARKED);
    const next = await clone.freeze({ then: "end" });
    await world.thawed(next, async (later) => expect(await call(later, "counter.next")).toBe(2));
    await world.engine.removeImage(next);
  });
});

describe("parked husks of an image of which nothing is recorded", () => {
  it("can be frozen or hibernated before their first request, also beside the one that records", async () => {
    const { engine } = world;
    const image = await quietImage("python");
    parked = image;
    engine.park(image, "prefaulted", 3);
    await engine.poolsFull(20_000);
    const [recording, ...others] = await Promise.all([0, 1, 2].map(() => engine.thaw(image, { ...PARKED, early: true })));
    const [one, other] = others as [Instance, Instance];
    try {
      expect(recording?.start).toMatchObject({ kind: "parked", recording: true });
      for (const { start } of others) expect(start).toEqual({ ...start, kind: "parked", recording: undefined });
      const next = await one.freeze({ then: "end" });
      await engine.removeImage(next);
      expect(await other.hibernate()).toMatchObject({ cancelled: false });
      expect(await call(other, "counter.next")).toBe(2);
    } finally {
      for (const clone of [recording, one, other]) await clone?.dispose();
    }
  });
});

describe("a process with a thread that waits in the kernel", () => {
  it.each([
    ["for ever", true, []],
    // For the whole of it again: an image has no remaining time, and no signal came by which it might end early.
    ["for a minute", false, []],
    // The kernel looks at the word when the wait begins anew: who changed it, and was to wake those who wait next, is spared that.
    ["changes", false, ["changes"]],
  ])("%s: whether it may be resumed ahead is %s", async (how, may, ended) => {
    parked = await world.imageAfter("python", ["threads.wait_for_futex", how]);
    const { facts } = decodeManifest(readFileSync(imageFiles(parked.dir).manifest), parked.dir);
    expect(facts.threads.map(({ sleeps }) => sleeps)).toEqual([false, may]);
    expect(mayResumeAhead(facts)).toBe(may);
    world.engine.park(parked, "prefaulted", 1);
    await world.engine.poolsFull(20_000);
    await world.thawed(parked, async (clone) => expect(await call(clone, "threads.went_on")).toEqual(ended), PARKED);
  });
});

describe("a husk whose function has a timer and a thread that waits for it", () => {
  it("is resumed with its request, and not before", async () => {
    const pid = await park(await world.imageAfter("python", ["clocks.set", 1]));
    await expect.poll(() => blockedIn(pid)[0], { timeout: 30_000 }).toBe(SYS_RECVMSG);
    await new Promise((resolve) => setTimeout(resolve, WATCHED_MS));
    expect(blockedIn(pid)[0]).toBe(SYS_RECVMSG);
    await world.thawed(
      parked as Image,
      async (clone) => expect(await call(clone, "clocks.wait", 1)).toMatchObject({ fired: true, alarms: true }),
      PARKED,
    );
  });
});
