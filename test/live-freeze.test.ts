/**
 * Freezing an instance that goes on serving, on the real kernel: requests flow, none is lost or answered wrongly, the image is of one
 * moment, and whatever comes in between (a refusal, an end, a killed extractor, a killed server) leaves the instance as it was, or
 * ended and reported, and nothing else.
 */
import { readdirSync, readFileSync, readlinkSync, writeFileSync } from "node:fs";
import { constants, setPriority } from "node:os";
import { join } from "node:path";
import { setImmediate as turn } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import { FAULT_POINTS, type FaultPoint } from "../src/base/fault.js";
import type { Image, Instance } from "../src/engine/index.js";
import { ask, errorOf, refusal, useBench } from "./support/bench.js";
import { killedAt } from "./support/killed.js";
import { descendants, isAlive, type Living } from "./support/processes.js";
import { temporaryDir, useServers } from "./support/server.js";
import { until } from "./support/wait.js";
import { hostPid, withInstance } from "./support/world.js";

/** On a busy machine copying and stopping may be over before this process gets a processor: tried until one is met. */
const MEET_MS_MAX = 100_000;
const bench = useBench();
afterEach(() => setPriority(constants.priority.PRIORITY_NORMAL));
afterEach(() => bench.quiet());

/** Every request changes memory all over; its answer depends on all of it. */
const NODE = `
const { createHash } = require("node:crypto");
const { execFileSync, spawn } = require("node:child_process");
const rows = Array.from({ length: 40000 }, (_, i) => ({ i, text: "row " + i }));
const blocks = Array.from({ length: 64 }, (_, i) => Buffer.alloc(65536, i));
const hooks = [];
awslambda.snapshot.registerBeforeSnapshot(() => { hooks.push("before"); if (hooks.refuse) throw new Error("not now"); });
awslambda.snapshot.registerAfterRestore(() => { hooks.push("after"); });
let count = 0, child;
const steps = {
  change() {
    count++;
    for (let i = count % 8; i < rows.length; i += 8) rows[i] = { i: rows[i].i + 1, text: "changed " + count };
    for (const block of blocks) block[(count * 4099) % 65536] ^= count;
    if (count % 4 === 0) blocks.push(Buffer.alloc(262144, count));
    if (count % 5 === 0) blocks.splice(3, 1);
    const hash = createHash("sha256");
    for (const row of rows) hash.update(row.i + row.text);
    for (const block of blocks) hash.update(block);
    return [count, hash.digest("hex")];
  },
  hooks() { return hooks.splice(0); },
  refuse() { hooks.refuse = true; },
  draw() { return [Math.random(), require("node:crypto").randomUUID(), process.pid]; },
  start() { child = spawn(process.execPath, ["-e", "process.stdin.resume()"], { stdio: ["pipe", "ignore", "ignore"] }); return child.pid; },
  stop() { return new Promise((resolve) => { child.on("exit", () => resolve("stopped")); child.kill("SIGKILL"); }); },
  wait(ms) { return new Promise((resolve) => setTimeout(resolve, ms, "waited")); },
  held() {
    const look = (resolve) => (require("node:fs").existsSync("/tmp/go") ? resolve("let go") : setTimeout(look, 5, resolve));
    return new Promise(look);
  },
  exitLater(ms) { return new Promise(() => setTimeout(() => process.exit(3), ms)); },
};
exports.handler = async ({ step = "change", args = [] }) => steps[step](...args);
`;
/** All of this is copied while it runs, and once more when it is stopped: a good part of a second in which one can be met. */
const LARGE = `${NODE}
const large = Buffer.alloc(256 << 20, 1);
awslambda.snapshot.registerBeforeSnapshot(() => { large.fill(large[0] + 1); });
`;
const PYTHON = `
import hashlib
rows = [{"i": i, "text": "row %d" % i} for i in range(40000)]
blocks = [bytearray([i]) * 65536 for i in range(64)]
count = 0
def handler(event, context):
    global count
    count += 1
    for i in range(count % 8, len(rows), 8): rows[i] = {"i": rows[i]["i"] + 1, "text": "changed %d" % count}
    for block in blocks: block[(count * 4099) % 65536] ^= count & 255
    if count % 4 == 0: blocks.append(bytearray([count & 255]) * 262144)
    if count % 5 == 0: del blocks[3]
    digest = hashlib.sha256()
    for row in rows: digest.update(("%d%s" % (row["i"], row["text"])).encode())
    for block in blocks: digest.update(block)
    return [count, digest.hexdigest()]
`;

/** Holds a lock between its requests, each of which lets go of it and takes it again. */
const LOCKED = `
import errno, fcntl
rows = [{"i": i, "text": "row %d" % i} for i in range(100000)]
held = None
def handler(event, context):
    global held
    if held is not None: held.close()
    held = open("/tmp/lock", "w")
    try: fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error: return errno.errorcode[error.errno]
    return "locked"
`;

const step = (instance: Instance, name: string, ...args: unknown[]): Promise<unknown> => ask(instance, { step: name, args });
/** Half-made images. */
const halves = (): string[] => readdirSync(join(bench.dataDir, "images")).filter((name) => name.startsWith(".tmp-"));

/** What a freeze must not leave behind in a process: write protection, and the descriptor that it came from. */
function traces(instance: Instance): string[] {
  const pid = hostPid(instance);
  const tracked = readFileSync(`/proc/${pid}/smaps`, "utf8")
    .split("\n")
    .filter((line) => /^VmFlags:.* (uw|um|ui)( |$)/.test(line));
  const descriptors = readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`));
  return [...tracked, ...descriptors.filter((link) => link.includes("userfaultfd"))];
}

function hasWord(pid: number, word: string): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "latin1").includes(word);
  } catch {
    return false;
  }
}

/** Whether a tracer has stopped that thread. */
function isHeld(pid: number, tid: string): boolean {
  try {
    return /^State:\tt/m.test(readFileSync(`/proc/${pid}/task/${tid}/status`, "latin1"));
  } catch {
    return false;
  }
}

/** The extractor that works for this process now. */
function extractor(): Living | undefined {
  return descendants(process.pid).find(({ pid, exe }) => exe.endsWith("/extractor") && hasWord(pid, "live="));
}

/** Waits for it; undefined when there is none before `isOver`. */
async function extractorBefore(isOver: () => boolean): Promise<Living | undefined> {
  // On a busy machine what it does would else be over before this process could look.
  setPriority(constants.priority.PRIORITY_HIGHEST);
  for (;;) {
    const found = extractor();
    if (found !== undefined || isOver()) return found;
    await turn();
  }
}

/** Requests one after the other until `done` is settled; their answers in order, and the longest that one took. */
async function serveDuring(instance: Instance, done: Promise<unknown>): Promise<{ answers: unknown[]; longestMs: number }> {
  let over = false;
  const settled = done.then(
    () => undefined,
    () => undefined,
  );
  void settled.then(() => {
    over = true;
  });
  const answers: unknown[] = [];
  let longestMs = 0;
  while (!over) {
    const began = performance.now();
    answers.push(await ask(instance));
    longestMs = Math.max(longestMs, performance.now() - began);
  }
  await settled;
  return { answers, longestMs };
}

describe.each(["node", "python"] as const)("a live %s instance", (language) => {
  it("answers everything in order while it is frozen, again and again, and each image is of one moment", async () => {
    await withInstance(bench.engine.boot(language === "node" ? bench.node(NODE) : bench.python(PYTHON)), async (instance) => {
      const digests = new Map<number, string>();
      const note = (answer: unknown): number => {
        const [count, digest] = answer as [number, string];
        expect(digests.has(count)).toBe(false);
        digests.set(count, digest);
        return count;
      };
      const images: Image[] = [];
      let last = note(await ask(instance));
      const parts: number[] = [];
      for (let round = 0; round < 4; round++) {
        const began = performance.now();
        const freezing = instance.freeze({ live: true });
        const { answers, longestMs } = await serveDuring(instance, freezing);
        for (const answer of answers) expect(note(answer)).toBe(++last);
        images.push(await freezing);
        parts.push(longestMs / (performance.now() - began));
        expect(traces(instance)).toEqual([]);
      }
      // Answered while it is frozen, and not when that is over: no request waits for most of a freeze.
      expect(Math.min(...parts)).toBeLessThan(0.5);
      for (let more = 0; more < 3; more++) expect(note(await ask(instance))).toBe(++last);
      let heat = 0;
      for (const image of images) {
        const { report } = image;
        expect(report.heldMs).toBeGreaterThan(0);
        expect([report.rounds, report.copiedAheadBytes]).not.toContain(0);
        expect(image.heat).toBeGreaterThan(heat);
        heat = image.heat;
        await withInstance(bench.engine.thaw(image), async (clone) => {
          const [count, digest] = (await ask(clone)) as [number, string];
          expect([count, digest]).toEqual([image.heat + 1, digests.get(count)]);
          expect((await bench.engine.inspect(image)).pages.stored).toBeGreaterThan(1000);
        });
        await bench.engine.removeImage(image);
      }
      expect(halves()).toEqual([]);
    });
  });
});

describe("a live freeze", () => {
  it("keeps no lock of a file that the function has closed since it went on", async () => {
    await withInstance(bench.engine.boot(bench.python(LOCKED)), async (instance) => {
      expect(await ask(instance)).toBe("locked");
      const freezing = instance.freeze({ live: true });
      const { answers } = await serveDuring(instance, freezing);
      expect(new Set(answers)).toEqual(new Set(["locked"]));
      await bench.engine.removeImage(await freezing);
    });
  });

  it("waits for a request that takes long, and runs the hooks between two that it holds apart", async () => {
    await withInstance(bench.engine.boot(bench.node(NODE)), async (instance) => {
      const long = step(instance, "wait", 500);
      const freezing = instance.freeze({ live: true });
      expect(await long).toBe("waited");
      let over = false;
      void freezing.then(() => {
        over = true;
      });
      const seen: unknown[] = [];
      while (!over) seen.push(await step(instance, "hooks"));
      seen.push(await step(instance, "hooks"));
      expect(seen.filter((hooks) => (hooks as string[]).length > 0)).toEqual([["before", "after"]]);
      await withInstance(bench.engine.thaw(await freezing), async (clone) => {
        expect(await step(clone, "hooks")).toEqual(["before", "after"]);
      });
    });
  });

  it("leaves instance and clones different in all that must be unique", async () => {
    await withInstance(bench.engine.boot(bench.node(NODE)), async (instance) => {
      await step(instance, "draw");
      const image = await instance.freeze({ live: true });
      const drawn = [await step(instance, "draw")];
      for (let clone = 0; clone < 3; clone++)
        drawn.push(await withInstance(bench.engine.thaw(image), (thawed) => step(thawed, "draw")));
      for (const column of [0, 1, 2]) expect(new Set(drawn.map((row) => (row as unknown[])[column])).size).toBe(4);
    });
  });

  it("takes the generation that it is given, and a thawed instance whose image is gone", async () => {
    const first = await bench.image(bench.node(NODE));
    const second = await withInstance(bench.engine.thaw(first), async (instance) => {
      await ask(instance);
      await bench.engine.removeImage(first);
      return instance.freeze({ live: true, generation: 7 });
    });
    expect([second.generation, second.heat]).toEqual([7, 2]);
    await withInstance(bench.engine.thaw(second), async (clone) => expect(((await ask(clone)) as [number])[0]).toBe(3));
    expect((await bench.engine.openImage(second.dir)).report).toEqual(second.report);
  });

  it("is refused by name, and the instance goes on", async () => {
    await withInstance(bench.engine.boot(bench.node(NODE)), async (instance) => {
      await step(instance, "start");
      const refused = await refusal(instance.freeze({ live: true }));
      expect([refused.code, refused.why]).toEqual(["FREEZE_REFUSED", expect.stringContaining("it has a live child process")]);
      expect(traces(instance)).toEqual([]);
      expect(halves()).toEqual([]);
      expect(await step(instance, "stop")).toBe("stopped");
      await bench.engine.removeImage(await instance.freeze({ live: true }));
      await step(instance, "refuse");
      expect((await refusal(instance.freeze({ live: true }))).why).toContain("not now");
      expect(((await ask(instance)) as [number])[0]).toBe(1);
      expect([traces(instance), halves()]).toEqual([[], []]);
    });
  });

  it("is over when the function ends, and nothing stays", async () => {
    for (const end of ["exit", "dispose"]) {
      const instance = await bench.engine.boot(bench.node(NODE));
      const running = instance.invoke(JSON.stringify({ step: end === "exit" ? "exitLater" : "wait", args: [500] }));
      const freezing = refusal(instance.freeze({ live: true }));
      if (end === "dispose") setTimeout(() => void instance.dispose(), 200);
      expect((await freezing).code).toBe("INSTANCE_EXITED");
      expect(errorOf(await running).errorMessage).toMatch(end === "exit" ? /exit status 3/ : /disposed/);
      await instance.dispose();
    }
    expect(halves()).toEqual([]);
  });

  it("whose extractor is killed before it could begin costs the instance nothing", async () => {
    await withInstance(bench.engine.boot(bench.node(NODE)), async (instance) => {
      const long = step(instance, "held");
      const freezing = refusal(instance.freeze({ live: true }));
      process.kill((await until("the extractor", extractor)).pid, "SIGKILL");
      expect((await freezing).code).toBe("FREEZE_FAILED");
      writeFileSync(`/proc/${hostPid(instance)}/root/tmp/go`, "");
      expect(await long).toBe("let go");
      expect([await ask(instance), traces(instance), halves()]).toEqual([[1, expect.any(String)], [], []]);
    });
  });

  it("whose extractor is killed while it copies costs the instance nothing", async () => {
    for (const until = Date.now() + MEET_MS_MAX; Date.now() < until; ) {
      const met = await withInstance(bench.engine.boot(bench.node(LARGE, { memoryMb: 1024 })), async (instance) => {
        await ask(instance);
        let over = false;
        const freezing = instance.freeze({ live: true }).then(
          () => undefined,
          (error: unknown) => error,
        );
        void freezing.then(() => {
          over = true;
        });
        const found = await extractorBefore(() => over);
        // Writes are noted from the first round to the stop.
        while (!over && traces(instance).length === 0) await turn();
        if (found !== undefined && isAlive(found)) process.kill(found.pid, "SIGKILL");
        const error = await freezing;
        if (error === undefined || !instance.alive) return false; // it was faster than we, or stood at the stop
        expect(error).toMatchObject({ code: "FREEZE_FAILED" });
        expect([await ask(instance), traces(instance), halves()]).toEqual([[2, expect.any(String)], [], []]);
        await bench.engine.removeImage(await instance.freeze({ live: true }));
        return true;
      });
      if (met) return;
    }
    throw new Error("never met the copying");
  }, 120_000);

  it("whose extractor is killed while the process is stopped ends the instance, and says so", async () => {
    for (const until = Date.now() + MEET_MS_MAX; Date.now() < until; ) {
      const instance = await bench.engine.boot(bench.node(LARGE, { memoryMb: 1024 }));
      try {
        await ask(instance);
        const freezing = instance.freeze({ live: true }).then(
          (image) => image,
          (error: unknown) => error,
        );
        const stopped = (): boolean => {
          // All threads: the main one alone is stopped for a moment at the beginning.
          const tasks = readdirSync(`/proc/${hostPid(instance)}/task`);
          return tasks.every((tid) => isHeld(hostPid(instance), tid));
        };
        let over = false;
        void freezing.then(() => {
          over = true;
        });
        const found = await extractorBefore(() => over);
        while (!over && !stopped()) await turn();
        if (found !== undefined && isAlive(found)) process.kill(found.pid, "SIGKILL");
        const outcome = await freezing;
        if (instance.alive || !(outcome instanceof Error)) continue; // it was faster than we
        expect(outcome).toMatchObject({ code: "INSTANCE_EXITED" });
        await expect(instance.invoke("{}")).rejects.toThrow("signal 9");
        expect(halves()).toEqual([]);
        return;
      } finally {
        await instance.dispose();
      }
    }
    throw new Error("never met the stop");
  }, 120_000);
});

describe("a server killed with SIGKILL around a live freeze", () => {
  useServers();
  const points = (Object.keys(FAULT_POINTS) as FaultPoint[]).filter((name) => name.startsWith("freeze-live-"));

  it.each(points)("at %s leaves no process, and no half image under its final name", async (point) => {
    const dataDir = temporaryDir("live-crash");
    const steps = 'await instance.invoke("{}"); await instance.freeze({ live: true });';
    const helpers = await killedAt(point, dataDir, bench.node(NODE), steps);
    // The extractor is the keeper's, who ends it and then itself.
    await until("its keeper to end", () => !helpers.some(isAlive) || undefined);
    // What a server sweeps when it starts (test/crash.test.ts); nothing that could be taken for an image.
    for (const name of readdirSync(join(dataDir, "images"))) expect(name).toMatch(/^\.tmp-/);
  });
});
