/**
 * What a Node function may hold still works after a thaw. Every test has four beats: set up state, freeze, thaw, see that it
 * goes on. Steps are functions of test/fixtures/node.
 */
import { pbkdf2Sync } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { Image, Instance } from "../src/engine/index.js";
import { statFields } from "../src/linux/process-stat.js";
import { openFromTheFuture } from "./support/clock.js";
import { call, hostPid, useWorld } from "./support/world.js";

const DAY_S = 86_400;
const DAY_MS = DAY_S * 1000;
const HOUR_MS = 3_600_000;
/** Longer than the server waits for the end of a process that says nothing more. */
const TOLD_AFTER_MS = 2_500;
const world = useWorld();

/** Looks at two clones of `image`: one made on the way, and one that was parked up to its last step. */
async function clones(image: Image, look: (clone: Instance) => Promise<void>): Promise<void> {
  await world.thawed(image, look);
  world.engine.park(image, "prefaulted", 1);
  await world.engine.poolsFull(20_000);
  await world.thawed(image, look, { husk: "parked" });
  world.engine.park(image, "prefaulted", 0);
}

interface Passed {
  readonly performanceMs: number;
  readonly monotonicMs: number;
  readonly wallMs: number;
  readonly uptimeMs: number;
  readonly date: number;
}

describe("clocks and timers", () => {
  it("fires timers that were set before the freeze, and goes on with intervals", async () => {
    const image = await world.imageAfter("node", ["clocks.set", 300]);
    await clones(image, async (one) => {
      expect(await call(one, "clocks.wait", 3)).toEqual({ fired: ["timeout"], slept: "slept" });
    });
  });

  it("never sets a clock back, and knows what time it is", async () => {
    const image = await world.imageAfter("node", "clocks.look");
    await clones(image, async (one) => {
      const before = Date.now();
      const { date, ...passed } = await call<Passed>(one, "clocks.look");
      expect(date).toBeGreaterThanOrEqual(before);
      expect(date).toBeLessThanOrEqual(Date.now());
      for (const ms of Object.values(passed)) expect(ms).toBeGreaterThanOrEqual(0);
      for (const ms of Object.values(passed)) expect(ms).toBeLessThan(HOUR_MS);
      expect(await call<number>(one, "clocks.sleep", 20)).toBeGreaterThanOrEqual(19);
    });
  });

  it("tells of no processor time that was taken back, though the kernel counts a clone's from zero", async () => {
    const image = await world.imageAfter("node", ["clocks.spend", 300]);
    await clones(image, async (one) => {
      for (const micros of await call<number[]>(one, "clocks.spent")) expect(micros).toBeGreaterThanOrEqual(0);
      await call(one, "clocks.spend", 20);
      for (const micros of await call<number[]>(one, "clocks.spent")) expect(micros).toBeGreaterThanOrEqual(0);
    });
  });

  it("goes on from an image whose clocks are ahead of this machine's, also when that is frozen again", async () => {
    let image = await world.imageAfter("node", "clocks.look", ["clocks.set", 300]);
    image = await openFromTheFuture(world.engine, image, DAY_S);
    const husks = ["fresh", "pooled", "parked"] as const;
    world.engine.park(image, "prefaulted", 1);
    await world.engine.poolsFull(20_000);
    for (const husk of husks) {
      await world.thawed(
        image,
        async (one) => {
          const { wallMs, date, ...passed } = await call<Passed>(one, "clocks.look");
          for (const ms of Object.values(passed)) expect(ms).toBeGreaterThanOrEqual(DAY_MS);
          for (const ms of Object.values(passed)) expect(ms).toBeLessThan(DAY_MS + HOUR_MS);
          expect(wallMs).toBeLessThan(HOUR_MS);
          expect(date).toBeLessThanOrEqual(Date.now());
          expect(await call(one, "clocks.wait", 2)).toEqual({ fired: ["timeout"], slept: "slept" });
          expect(await call<number>(one, "clocks.sleep", 20)).toBeGreaterThanOrEqual(19);
          expect(one.start.us).toBeLessThan(HOUR_MS * 1000);
          for (const { us } of one.start.phases) expect(us).toBeLessThan(HOUR_MS * 1000);
        },
        { husk },
      );
    }
    const parent = await world.engine.thaw(image);
    await call(parent, "clocks.look");
    const second = await parent.freeze();
    for (const one of [parent, await world.engine.thaw(second)]) {
      const { date, ...passed } = await call<Passed>(one, "clocks.look");
      expect(date).toBeLessThanOrEqual(Date.now());
      for (const ms of Object.values(passed)) expect(ms).toBeGreaterThanOrEqual(0);
      for (const ms of Object.values(passed)) expect(ms).toBeLessThan(HOUR_MS);
      await one.dispose();
    }
  });
});

describe("threads", () => {
  it("keeps workers alive, with their state and what lies in their channels, and starts new ones", async () => {
    const image = await world.imageAfter("node", "threads.startWorker");
    await clones(image, async (one) => {
      expect(await call(one, "threads.useWorker")).toEqual({
        answer: { asked: 2, square: 25 },
        lying: "lies in the channel",
        shared: 7,
        later: { asked: 3, square: 81 },
        exitCode: 1,
      });
      expect(await call(one, "threads.newWorkers")).toEqual([0, 1, 4]);
    });
  });

  it("keeps workers alive through a freeze of a thawed instance", async () => {
    const image = await world.imageAfter("node", "threads.startWorker");
    const parent = await world.engine.thaw(image);
    const second = await parent.freeze();
    for (const one of [parent, await world.engine.thaw(second)]) {
      expect(await call(one, "threads.useWorker")).toMatchObject({ answer: { asked: 2 }, later: { asked: 3 } });
      await one.dispose();
    }
  });

  it("lets a worker go on that was in the midst of computing", async () => {
    const instance = await world.boot("node");
    await call(instance, "threads.startComputing", 300);
    const image = await instance.freeze();
    const computed = await call(instance, "threads.computed");
    await instance.dispose();
    await clones(image, async (one) => expect(await call(one, "threads.computed")).toEqual(computed));
  });

  it("is frozen while V8's profiler sends it a signal every tenth of a millisecond, and goes on being profiled", async () => {
    const instance = await world.boot("node");
    await call(instance, "threads.profile", 100);
    for (let freeze = 0; freeze < 4; freeze++) await instance.freeze();
    const image = await instance.freeze({ then: "end" });
    await clones(image, async (one) => expect(await call(one, "threads.profiled")).toBe(true));
  });

  it.each(["before and after the freeze", "only after it"])("uses the thread pool %s", async (when) => {
    const image = await world.imageAfter("node", ...(when === "only after it" ? [] : ["threads.pool"]));
    await clones(image, async (one) => {
      expect(await call(one, "threads.pool")).toEqual({
        key: pbkdf2Sync("secret", "salt", 1000, 16, "sha256").toString("hex"),
        unpacked: 100_000,
        file: "pooled",
        scrypt: 1,
        address: "127.0.0.1",
      });
    });
  });
});

describe("processes and signals", () => {
  const children = {
    stdout: "out\n",
    stderr: "err\n",
    failed: 7,
    catBytes: 300_000,
    catCode: 0,
    killedBy: "SIGTERM",
    node: "42",
    forked: { n: 21, ppidIsParent: true },
    missing: 127,
  };

  it.each(["before and after the freeze", "only after it"])("starts child processes %s", async (when) => {
    const image = await world.imageAfter("node", ...(when === "only after it" ? [] : ["processes.children"]));
    await clones(image, async (one) => expect(await call(one, "processes.children")).toEqual(children));
  });

  it("hears signals that it listened to before the freeze", async () => {
    const image = await world.imageAfter("node", "processes.listen");
    await clones(image, async (one) => {
      expect(await call(one, "processes.signal", "SIGUSR2")).toEqual(["SIGUSR2"]);
      expect(await call(one, "processes.signal", "SIGTERM", "SIGWINCH", "SIGUSR2")).toHaveLength(3);
      expect(await call<Record<string, unknown>>(one, "processes.children")).toEqual(children);
    });
  });

  it.each([
    ["processes.exit", 0, "Runtime exited with error: exit status 0"],
    ["processes.exit", 9, "Runtime exited with error: exit status 9"],
    ["processes.kill", "SIGKILL", "Runtime exited with error: signal 9"],
    ["processes.kill", "SIGSEGV", "Runtime exited with error: signal 11"],
    ["processes.kill", "SIGTERM", "Runtime exited with error: signal 15"],
  ])("ends as it is told to (%s %s)", async (step, how, sentence) => {
    const image = await world.imageAfter("node");
    const one = await world.engine.thaw(image);
    const reason = new Promise((resolve) => one.onExit(resolve));
    const result = await one.invoke(JSON.stringify({ step, args: [how] }));
    expect(result).toMatchObject({ functionError: "Unhandled", platformError: "INSTANCE_EXITED", alive: false });
    expect(result.payload.toString()).toContain(sentence);
    expect(await reason).toContain(sentence);
    expect(one.alive).toBe(false);
    await one.dispose();
  });

  it("says how it ended, also where that is told late", async () => {
    const one = await world.boot("node");
    const init = Number(statFields(hostPid(one))[1]);
    process.kill(init, "SIGSTOP");
    const answer = one.invoke(JSON.stringify({ step: "processes.exit", args: [9] }));
    await sleep(TOLD_AFTER_MS);
    process.kill(init, "SIGCONT");
    const result = await answer;
    expect(result).toMatchObject({ platformError: "INSTANCE_EXITED", alive: false });
    expect(result.payload.toString()).toContain("Runtime exited with error: exit status 9");
    await one.dispose();
  });

  it("reports what is thrown outside of the handler", async () => {
    const image = await world.imageAfter("node");
    const one = await world.engine.thaw(image);
    const result = await one.invoke(JSON.stringify({ step: "processes.throwLater", args: [] }));
    expect(result.functionError).toBe("Unhandled");
    expect(JSON.parse(result.payload.toString())).toMatchObject({ errorType: "RangeError", errorMessage: "thrown later" });
    await one.dispose();
  });
});

describe("network", () => {
  it.each(["before and after the freeze", "only after it"])("serves and fetches on loopback %s", async (when) => {
    const steps = when === "only after it" ? [] : ["network.http", "network.unixAndUdp"];
    const image = await world.imageAfter("node", ...steps);
    await clones(image, async (one) => {
      expect(await call(one, "network.http")).toEqual({ got: "GET /a ", posted: 70_008, kept: 3 });
      expect(await call(one, "network.unixAndUdp")).toEqual({ text: "hello", message: "ping", left: false });
    });
  });

  it.each([4, 6])("sees a connection that was open at the freeze as reset (IPv%i), and says so in the report", async (family) => {
    const image = await world.imageAfter("node", ["network.connect", family]);
    const address = family === 6 ? "::1" : "127.0.0.1";
    const resets = image.report.notes.filter((note) => note.startsWith("TCP connection"));
    expect(resets).toHaveLength(2);
    for (const note of resets)
      expect(note).toMatch(
        new RegExp(`^TCP connection ${address}:\\d+ → ${address}:\\d+ \\(descriptor \\d+\\) will be seen as reset$`),
      );
    await clones(image, async (one) => {
      const events = await call<string[]>(one, "network.useConnection");
      expect(["ECONNRESET", "EPIPE"]).toContain(events[0]);
      expect(events.at(-1)).toBe("close");
      expect(await call(one, "network.http")).toMatchObject({ kept: 3 });
    });
  });
});

describe("files", () => {
  const expected = {
    fromPosition: "4567",
    text: "01234567XY",
    deleted: "deleted but open!",
    deletedLinks: 0,
    log: "one\ntwo\n",
    readOnly: "//",
    modes: ["4755", "600", "644", "2775"],
    link: "b/text",
    times: [1_100_000_000_000, true],
    readAndChanged: [1_300_000_000_250, 1_200_000_000_000],
    large: true,
    names: ["a", "empty", "large", "log"],
    inDirectory: ["b", "link", "run", "secret"],
    owner: 1000,
  };

  it("keeps /tmp, open descriptors with their positions, and files that were deleted while open", async () => {
    const image = await world.imageAfter("node", "files.set");
    await clones(image, async (one) => {
      expect(await call(one, "files.times")).toBe(1_000_000_000_500);
      expect(await call(one, "files.check")).toEqual(expected);
      expect(await call(one, "files.readStream")).toBe(5_000_000);
    });
  });

  it("keeps them through a freeze of a thawed instance", async () => {
    const image = await world.imageAfter("node", "files.set");
    const parent = await world.engine.thaw(image);
    const second = await parent.freeze({ then: "end" });
    await clones(second, async (one) => expect(await call(one, "files.check")).toEqual(expected));
  });

  it("watches /tmp, before and after", async () => {
    const image = await world.imageAfter("node", "files.watch");
    await clones(image, async (one) => {
      expect(await call(one, "files.watch")).toBe("watched");
      expect(await call(one, "files.watch")).toBe("watched");
    });
  });

  it("goes on with a stream that was half read", async () => {
    const image = await world.imageAfter("node", "files.beginStream");
    await clones(image, async (one) => expect(await call(one, "files.endStream")).toBe(700_000));
  });

  it("writes to the log of its own request", async () => {
    const image = await world.imageAfter("node", "files.console");
    await clones(image, async (one) => {
      const result = await one.invoke(JSON.stringify({ step: "files.console", args: [] }));
      expect(result.logs.toString()).toMatch(/to stdout\n[^x]*to stderr\n/);
      expect(result.logs.toString().match(/x/g)).toHaveLength(100_000);
    });
  });
});

describe("memory", () => {
  it("grows a WebAssembly memory that was frozen", async () => {
    const image = await world.imageAfter("node", "memory.setWasm", ["memory.growWasm", 10]);
    await clones(image, async (one) => {
      expect(await call(one, "memory.growWasm", 100)).toEqual({ before: 11, bytes: 111 * 65_536, at: 42, last: 7, zero: true });
      expect(await call(one, "memory.growWasm", 1000)).toEqual({
        before: 111,
        bytes: 1111 * 65_536,
        at: 42,
        last: 7,
        zero: true,
      });
    });
  });

  it("keeps large buffers, lets go of them, and gets zeroed ones anew", async () => {
    const instance = await world.boot("node");
    const digest = await call(instance, "memory.setBuffers", 60);
    const image = await instance.freeze({ then: "end" });
    expect(image.report.anonymousBytes).toBeGreaterThan(60_000_000);
    for (const loader of ["lazy", "eager", "splice"] as const) {
      await world.thawed(
        image,
        async (one) =>
          expect(await call(one, "memory.checkBuffers")).toEqual({ digest, sum: 14, bytes: 203_000_000, zeroed: true }),
        { loader },
      );
    }
  });

  it.each(["lazy", "eager", "splice"] as const)("collects garbage of before and after the freeze (%s)", async (loader) => {
    const image = await world.imageAfter("node", ["memory.churn", 30]);
    await world.thawed(
      image,
      async (one) => {
        for (let round = 0; round < 4; round++)
          expect(await call(one, "memory.churn", 40)).toEqual({ objects: 20_000, sum: 20_000 });
      },
      { loader },
    );
  });

  it("uses all of its stack", async () => {
    const image = await world.imageAfter("node");
    await clones(image, async (one) => expect(await call(one, "memory.recurse")).toEqual({ error: "RangeError", deep: true }));
  });

  it("keeps optimised code, maps, weak references and patterns", async () => {
    const image = await world.imageAfter("node", "memory.setCode");
    await clones(image, async (one) => {
      expect(await call(one, "memory.useCode")).toEqual({
        sum: 4_999_950_000,
        text: "ab",
        found: 9999,
        weak: true,
        matched: ["ab", "c"],
        evaluated: 42,
        date: "01/01/1970",
      });
    });
  });
});

describe("snapshot hooks", () => {
  it("run in their order around the freeze, in the clone and in what goes on", async () => {
    const instance = await world.boot("node");
    await call(instance, "hooks.load");
    const image = await instance.freeze();
    const order = ["before 2", "before 1", "after 1", "after 2"];
    expect(await call(instance, "hooks.take")).toEqual(order);
    expect(await call(instance, "hooks.take")).toEqual([]);
    await clones(image, async (one) => {
      expect(await call(one, "hooks.take")).toEqual(order);
      expect(await call(one, "hooks.take")).toEqual([]);
    });
    await instance.dispose();
  });

  it("refuse the freeze when one fails, and the function goes on", async () => {
    const instance = await world.boot("node");
    await call(instance, "hooks.fail", true);
    const names = world.imageNames();
    await expect(instance.freeze()).rejects.toMatchObject({
      code: "FREEZE_REFUSED",
      why: expect.stringMatching(/^one of its before-snapshot hooks failed: .*cannot be made ready/),
    });
    expect(world.imageNames()).toEqual(names);
    await call(instance, "hooks.fail", false);
    await instance.freeze({ then: "end" });
  });
});
