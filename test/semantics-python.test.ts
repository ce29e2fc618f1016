/**
 * What a Python function may hold still works after a thaw: the kernel's objects that Node does not show among them. Every test
 * has four beats: set up state, freeze, thaw, see that it goes on. Steps are functions of test/fixtures/python.
 */
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { Image, Instance } from "../src/engine/index.js";
import { decodeRawManifest, encodeManifest, imageFiles } from "../src/image/index.js";
import { openFromTheFuture } from "./support/clock.js";
import { call, hostPid, useWorld } from "./support/world.js";

const DAY_S = 86_400;
const HOUR_S = 3600;
const world = useWorld();

/** Looks at clones of an image that came in each way, and at one of an image frozen from another clone. */
async function clones(image: Image, look: (clone: Instance) => Promise<void>): Promise<void> {
  await world.thawed(image, look, { loader: "lazy" });
  await world.thawed(image, look, { loader: "eager" });
  world.engine.park(image, "prefaulted", 1);
  await world.engine.poolsFull(20_000);
  await world.thawed(image, look, { husk: "parked" });
  world.engine.park(image, "prefaulted", 0);
  const parent = await world.engine.thaw(image);
  const second = await parent.freeze({ then: "end" });
  await world.thawed(second, look);
}

describe("clocks, timers and signals", () => {
  it("fires threading timers and interval timers that were set before the freeze", async () => {
    // Frozen before the first alarm: one that comes in the midst of it would be pending.
    const image = await world.imageAfter("python", ["clocks.set", 0.8]);
    await clones(image, async (one) => {
      expect(await call(one, "clocks.wait", 3)).toEqual({ fired: true, alarms: true, interval: 0.2, going: true });
    });
  });

  it("never sets a clock back, also when the image's clocks are ahead of this machine's", async () => {
    const image = await world.imageAfter("python", "clocks.look");
    const look = async (one: Instance, from: number): Promise<void> => {
      const { wall, dateMs, ...passed } = await call<Record<string, number>>(one, "clocks.look");
      for (const seconds of Object.values(passed)) expect(seconds).toBeGreaterThanOrEqual(from);
      for (const seconds of Object.values(passed)) expect(seconds).toBeLessThan(from + HOUR_S);
      expect(wall).toBeLessThan(HOUR_S);
      expect(dateMs).toBeLessThanOrEqual(Date.now() + 1);
    };
    await world.thawed(image, (one) => look(one, 0));
    const future = await openFromTheFuture(world.engine, image, DAY_S);
    for (const loader of ["lazy", "splice"] as const) await world.thawed(future, (one) => look(one, DAY_S), { loader });
  });

  it("tells of no processor time that was taken back, though the kernel counts a clone's from zero, as a child's", async () => {
    const image = await world.imageAfter("python", ["clocks.spend", 0.4]);
    await clones(image, async (one) => {
      for (const seconds of [0, 0.05]) {
        if (seconds > 0) await call(one, "clocks.spend", seconds);
        const { since, ofChild } = await call<{ since: number[]; ofChild: number }>(one, "clocks.spent");
        for (const passed of since) expect(passed).toBeGreaterThanOrEqual(0);
        expect(ofChild).toBeLessThan(0.2);
      }
    });
  });

  it.each(["SigCgt:0", "SigIgn:0", "Umask:0", "ShdPnd:8"])("keeps signals and umask under the name %s", async (name) => {
    const image = await world.imageAfter("python", ["clocks.take_name", name], "clocks.listen");
    await world.thawed(image, async (one) => {
      expect(await call(one, "clocks.take_name", name)).toBe(`${name}\n`);
      expect(await call(one, "clocks.hear")).toEqual({ heard: ["SIGUSR1"], ignored: true, pending: true, umask: "0o27" });
    });
    await world.engine.removeImage(image);
  });

  it("keeps handlers, ignored and blocked signals, and the umask", async () => {
    const image = await world.imageAfter("python", "clocks.listen");
    await clones(image, async (one) => {
      expect(await call(one, "clocks.hear")).toEqual({ heard: ["SIGUSR1"], ignored: true, pending: true, umask: "0o27" });
    });
  });

  it("hears each signal that comes while it is stopped, be it for a hibernation or a freeze", { timeout: 180_000 }, async () => {
    const one = await world.boot("python");
    // Of a real-time signal all are queued, not one of each kind.
    const number = 40;
    expect(await call(one, "clocks.count_signals", number)).toBe(0);
    let sent = 0;
    const during = async <T>(work: Promise<T>): Promise<T> => {
      let under = true;
      const ended = work.finally(() => {
        under = false;
      });
      ended.catch(() => undefined);
      while (under) {
        process.kill(hostPid(one), number);
        await sleep(sent++ % 2);
      }
      return ended;
    };
    for (let round = 0; round < 120; round++) {
      await during(one.hibernate());
      expect(await call(one, "clocks.count_signals", number)).toBe(sent);
    }
    let frozen = 0;
    // Put off is what finds a signal pending, which is each on a machine that is slow enough.
    for (let round = 0; round < 40 || (frozen === 0 && round < 200); round++) {
      const made = await during(one.freeze({ then: "continue" })).catch((error: unknown) => error);
      if (made instanceof Error)
        expect(made).toMatchObject({ code: "FREEZE_FAILED", why: expect.stringContaining("came at that moment") });
      else {
        frozen++;
        await world.engine.removeImage(made as Image);
      }
      expect(await call(one, "clocks.count_signals", number)).toBe(sent);
    }
    expect(frozen).toBeGreaterThan(0);
    await one.dispose();
  });

  it("ends with the exit code that it chose", async () => {
    const image = await world.imageAfter("python");
    const one = await world.engine.thaw(image);
    const result = await one.invoke(JSON.stringify({ step: "clocks.leave", args: [23] }));
    expect(result).toMatchObject({ platformError: "INSTANCE_EXITED", alive: false });
    expect(result.payload.toString()).toContain("Runtime exited with error: exit status 23");
    await one.dispose();
  });
});

describe("threads", () => {
  it("go on that waited in a queue, a condition, a lock and a barrier", async () => {
    const image = await world.imageAfter("python", "threads.start");
    await clones(image, async (one) => {
      expect(await call(one, "threads.go_on")).toEqual({
        served: [25, 2, "thäd _serve"],
        condition: "notified",
        lock: "locked",
        barrier: ["passed", "passed"],
        rlock: true,
        context: "kept",
        pool: [1, 2, 4, 8],
        newThread: true,
      });
    });
  });

  it("go on that were in the midst of computing, or slept", async () => {
    const instance = await world.boot("python");
    await call(instance, "threads.start_computing", 1000);
    const image = await instance.freeze();
    const computed = await call<Record<string, unknown>>(instance, "threads.computed");
    expect(computed).toMatchObject({ slept: true });
    await instance.dispose();
    await clones(image, async (one) => expect(await call(one, "threads.computed")).toEqual(computed));
  });

  it("go on waiting that waited without limit for events or signals, and hear of no signal that never came", async () => {
    const ended = [{}, { epoll_wait: 1, epoll_pwait2: 1, rt_sigtimedwait: 12 }];
    const frozen = await world.boot("python");
    await call(frozen, "threads.wait_in_c");
    const image = await frozen.freeze();
    expect(await call(frozen, "threads.end_waits")).toEqual(ended);
    await frozen.dispose();
    await clones(image, async (one) => {
      const again = await one.freeze({ then: "end" });
      await world.thawed(again, async (two) => expect(await call(two, "threads.end_waits")).toEqual(ended));
      await world.engine.removeImage(again);
    });
    const hibernated = await world.boot("python");
    await call(hibernated, "threads.wait_in_c");
    await hibernated.hibernate();
    expect(await call(hibernated, "threads.end_waits")).toEqual(ended);
    await hibernated.dispose();
  });

  it("of the C library are joined, end detached, and are reached by its signals", async () => {
    const instance = await world.boot("python");
    expect(await call(instance, "threads.start_native")).toBe(3);
    const image = await instance.freeze({ then: "end" });
    await clones(image, async (one) => {
      const again = await one.freeze();
      await world.thawed(again, async (two) => expect(await call(two, "threads.end_native")).toEqual([["MainThread"], 0, 0]));
      expect(await call(one, "threads.end_native")).toEqual([["MainThread"], 0, 0]);
      await world.engine.removeImage(again);
    });
  });

  it.each([0, 3, 40])(
    "keep their numbers, by which locks know their owner, when %i others ended before each",
    async (skipped) => {
      const instance = await world.boot("python");
      const numbers = await call<number[]>(instance, "threads.hold_locks", skipped);
      expect(numbers).toEqual([2 + skipped, 3 + 2 * skipped]);
      const image = await instance.freeze({ then: "end" });
      const released = { waits: [0, 0, 0, 0], dozes: [0, 0, 0, 0] };
      const look = async (one: Instance): Promise<void> => {
        expect(await call(one, "threads.thread_numbers")).toEqual(numbers);
        expect(await call(one, "threads.release_locks")).toEqual(released);
      };
      await clones(image, async (one) => {
        const again = await one.freeze();
        await world.thawed(again, look);
        await look(one);
        await world.engine.removeImage(again);
      });
      await world.thawed(image, look, { husk: "fresh" });
    },
  );

  it("keep their numbers also when the first of them makes more at once", async () => {
    const instance = await world.boot("python");
    const numbers = await call<number[]>(instance, "threads.churn", 24);
    const image = await instance.freeze();
    await call(instance, "threads.end_churn");
    await instance.dispose();
    await clones(image, async (one) => expect(await call(one, "threads.end_churn")).toEqual([numbers, true]));
    for (let i = 0; i < 4; i++)
      await world.thawed(image, async (one) => expect(await call(one, "threads.end_churn")).toEqual([numbers, true]), {
        husk: "fresh",
      });
  });

  it("end a start in which they cannot have their numbers, and that is told of them", async () => {
    const image = await world.imageAfter("python", ["threads.hold_locks", 0]);
    const dir = `${image.dir}-twice`;
    renameSync(image.dir, dir);
    const { manifest: path } = imageFiles(dir);
    const manifest = decodeRawManifest(readFileSync(path), path);
    const [, first, second] = manifest.facts.threads;
    if (first === undefined || second === undefined) throw new Error("it has no threads");
    second.number = first.number;
    writeFileSync(path, encodeManifest(manifest));
    const twice = await world.engine.openImage(dir);
    await expect(world.engine.thaw(twice, { husk: "fresh" })).rejects.toThrow(/«thread .*EEXIST/);
  });

  it("leave an event loop with its tasks, which goes on", async () => {
    const image = await world.imageAfter("python", "threads.start_loop");
    await clones(image, async (one) => {
      expect(await call(one, "threads.go_on_loop")).toEqual(["woken", "from a thread", "", "through cat", 0]);
    });
  });

  it("make memory barriers, having registered for them before", async () => {
    const image = await world.imageAfter("python", "threads.register_barriers");
    await clones(image, async (one) => expect(await call(one, "threads.make_barrier")).toBe(0));
  });

  it("go on that run an event loop", async () => {
    const image = await world.imageAfter("python", "threads.start_loop_in_thread");
    await clones(image, async (one) => {
      expect(await call(one, "threads.use_loop_in_thread")).toEqual([42, "every moment", false]);
      const again = await one.freeze();
      await world.thawed(again, async (two) =>
        expect(await call(two, "threads.use_loop_in_thread")).toEqual([42, "every moment", false]),
      );
      expect(await call(one, "threads.use_loop_in_thread")).toEqual([42, "every moment", false]);
      await world.engine.removeImage(again);
    });
  });

  it("go on that were in the middle of a turn of their event loops, which forked children do not have", async () => {
    const image = await world.imageAfter("python", "threads.start_callbacks_in_threads");
    await clones(image, async (one) => {
      expect(await call(one, "threads.end_callbacks_in_threads")).toEqual(Array(4).fill([true, false, "slept"]));
    });
  });

  it("go on that run an event loop, also where nobody told the process that it would be frozen", async () => {
    const instance = await world.boot("python");
    await call(instance, "threads.start_loop_in_thread");
    const image = await instance.freeze({ hygiene: false, live: true });
    await instance.dispose();
    await clones(image, async (one) =>
      expect(await call(one, "threads.use_loop_in_thread")).toEqual([42, "every moment", false]),
    );
  });

  it("share memory and locks with children as before, and each clone has its own", async () => {
    const image = await world.imageAfter("python", "memory.hold_common");
    await clones(image, async (one) => {
      const again = await one.freeze();
      const found = ["first", "behind", 2];
      await world.thawed(again, async (two) => {
        expect(await call(two, "memory.use_common", "later")).toEqual([...found, "laterlater", 0, false, [3]]);
      });
      expect(await call(one, "memory.use_common", "other")).toEqual([...found, "otherother", 0, false, [3]]);
      await world.engine.removeImage(again);
    });
    for (const loader of ["eager", "lazy-4k", "reap"] as const) {
      await world.thawed(
        image,
        async (one) => {
          expect(await call(one, "memory.use_common", "other")).toEqual(["first", "behind", 2, "otherother", 0, false, [3]]);
        },
        { loader },
      );
    }
  });

  const mapped = (text: string) => ({
    ...Object.fromEntries(
      ["named", "renamed", "removed", "shm", "memfd"].map((name) => [
        name,
        [name, text, text, `W${text.slice(1)}${`${name.slice(5)}..`.slice(0, 2)}ch`, 3 * 4096],
      ]),
    ),
    closed: ["closed", `${text}d`],
    lost: `lost. ${text}`,
    processes: [42, [1.5, 3.5]],
  });

  it("share what they map of files in /tmp, removed ones and memfds with those files, as before, and each clone has its own", async () => {
    const image = await world.imageAfter("python", "mapped.hold");
    expect(image.report.notes).toEqual([]);
    await clones(image, async (one) => {
      const again = await one.freeze();
      await world.thawed(again, async (two) => expect(await call(two, "mapped.look", "later")).toEqual(mapped("later")));
      expect(await call(one, "mapped.look", "other")).toEqual(mapped("other"));
      await world.engine.removeImage(again);
    });
    for (const loader of ["eager", "lazy-4k", "reap"] as const)
      await world.thawed(image, async (one) => expect(await call(one, "mapped.look", "those")).toEqual(mapped("those")), {
        loader,
      });
  });

  it("share them also when they were frozen while they served, or hibernated", async () => {
    const one = await world.boot("python");
    await call(one, "mapped.hold");
    const image = await one.freeze({ live: true });
    await world.thawed(image, async (clone) => {
      await clone.hibernate();
      expect(await call(clone, "mapped.look", "after")).toEqual(mapped("after"));
    });
    expect(await call(one, "mapped.look", "going")).toEqual(mapped("going"));
    await one.dispose();
  });

  it("share them with the file that they map, also where a hook closes the descriptor that was found while they served", async () => {
    const one = await world.boot("python");
    const first = await call(one, "mapped.hold_and_close");
    // Of memory that two freezes have tidied up the list of mappings stays as it is.
    for (let freezes = 0; freezes < 2; freezes++) await world.engine.removeImage(await one.freeze({ live: true }));
    const image = await one.freeze({ live: true });
    await world.thawed(image, async (clone) => {
      expect(await call(clone, "mapped.look_closed")).toEqual(["first", "again", "other", first]);
    });
    await one.dispose();
  });

  it("go on with databases that have a write-ahead log, beside connections that are opened later", async () => {
    const one = await world.boot("python");
    expect(await call(one, "mapped.open_database")).toBe("wal");
    const image = await one.freeze({ then: "end" });
    await clones(image, async (clone) => {
      expect(await call(clone, "mapped.use_database")).toEqual([
        "database is locked",
        [1],
        [
          [1, 2, 3],
          [1, 2, 3],
        ],
        [0, 0, 0],
        "ok",
      ]);
    });
  });

  it("keep the protections of parts of such memory, and a hole in it", async () => {
    const one = await world.boot("python");
    const seen = [
      [0, "rw-s"],
      [1, "r--s"],
      [3, "rw-s"],
      [4, "---s"],
    ];
    expect(await call(one, "memory.hold_parts")).toEqual([seen, [2, 2, 4, 5]]);
    const image = await one.freeze({ then: "end" });
    await clones(image, async (clone) => expect(await call(clone, "memory.use_parts")).toEqual([seen, [3, 2, 4, 5]]));
  });

  it("start child processes, before and after", async () => {
    const image = await world.imageAfter("python", "threads.children");
    await clones(image, async (one) => {
      expect(await call(one, "threads.children")).toEqual({ run: [5, "in", "err\n"], forked: 17, python: "42" });
    });
  });
});

describe("kernel objects", () => {
  it("eventfd, timerfd and signalfd keep what they count", async () => {
    const image = await world.imageAfter("python", "objects.set_events");
    await clones(image, async (one) => {
      expect(await call(one, "objects.check_events")).toEqual({
        counter: [5, null],
        semaphore: [1, 1, null],
        large: 2 ** 40 + 3,
        expired: true,
        once: 1,
        ticking: true,
        often: true,
        far: null,
        disarmed: null,
        inheritable: [false, true],
        signal: 10,
      });
    });
  });

  it("one-shot entries of an epoll that have fired tell nothing, not that the other end was closed, until they are armed again", async () => {
    const instance = await world.boot("python");
    expect(await call(instance, "objects.set_shots")).toBe(true);
    const image = await instance.freeze({ then: "end" });
    await clones(image, async (one) => expect(await call(one, "objects.check_shots")).toEqual([true, [true], [true], []]));
  });

  it("epoll keeps its entries: dup'ed, edge-triggered, one-shot, nested, stale and of numbers that mean another file, and hundreds of them", async () => {
    const image = await world.imageAfter("python", "objects.set_epoll");
    await clones(image, async (one) => {
      expect(await call(one, "objects.check_epoll")).toEqual({
        before: [],
        plain: ["dup", "plain"],
        edge: [["edge"], []],
        shot: [["shot"], []],
        stale: ["stale"],
        reused: ["reused"],
        other: ["reused"],
        nested: [["inner"], true],
        afterDup: ["plain"],
        many: true,
      });
    });
  });

  it("pipes keep their bytes, their size, and know that an end is closed", async () => {
    const image = await world.imageAfter("python", "objects.set_pipes");
    await clones(image, async (one) => {
      expect(await call(one, "objects.check_pipes")).toEqual({
        pipe: true,
        crossed: "through a duplicate",
        full: true,
        sized: [262_144, 200_000],
        noWriter: ["last words", ""],
        noReader: "EPIPE",
        inheritable: [true, false],
        blocking: [true, false],
      });
    });
  });

  it("sockets keep their options, ports that they share, and more than a new one takes", async () => {
    const instance = await world.boot("python");
    const options = await call(instance, "objects.set_socket_options");
    const image = await instance.freeze({ then: "end" });
    await instance.dispose();
    expect(options).toEqual(expect.arrayContaining([7, 33, [3, 8000], 1200, "reno"]));
    await clones(image, async (one) => expect(await call(one, "objects.check_socket_options")).toEqual(options));
  });

  it("socket pairs keep what lies in them, in both directions; other sockets keep what they are", async () => {
    const image = await world.imageAfter("python", "objects.set_sockets");
    await clones(image, async (one) => {
      expect(await call(one, "objects.check_sockets")).toEqual({
        ready: 1,
        toTheLeft: "to the left",
        toTheRight: true,
        again: [1, "again", false, true],
        half: ["last words", ""],
        packets: ["first", "second"],
        datagrams: ["first", "second"],
        shut: ["end", "", "still"],
        udpName: true,
        udp: "self",
        unused: "served",
        unusedUnix: "served too",
      });
    });
  });

  it("sockets for datagrams stay shut, each end by itself", async () => {
    const instance = await world.boot("python");
    await call(instance, "settings.shut");
    const image = await instance.freeze();
    const before = await call(instance, "settings.use_shut");
    const [IN, HUP, RDHUP] = [0x1, 0x10, 0x2000];
    expect(before).toMatchObject({
      reading: [[IN + RDHUP], [], 1, "BrokenPipeError"],
      writing: [[], [], "BrokenPipeError", 1],
      "udp reading": [IN + RDHUP],
      "udp both": [IN + HUP + RDHUP],
    });
    await instance.dispose();
    await clones(image, async (one) => expect(await call(one, "settings.use_shut")).toEqual(before));
  });

  it("processes and threads keep their niceness, policy and processors, and what prctl set", async () => {
    const image = await world.imageAfter("python", "settings.set");
    await clones(image, async (one) => {
      expect(await call(one, "settings.get")).toEqual({
        main: { nice: 3, batch: false, processors: true },
        thread: { nice: 7, batch: true, processors: 1 },
        prctl: { timerslack: true, keepcaps: true, noNewCode: true, dumpable: true },
      });
    });
  });

  it("descriptors tell by signals, and whom they told, that they are ready", async () => {
    const image = await world.imageAfter("python", "settings.own");
    await clones(image, async (one) => {
      expect(await call(one, "settings.use_own")).toEqual({
        process: [1, "process", ["SIGIO"], false],
        main: [0, "process", [3], false],
        other: [0, "other", ["SIGIO"], false],
      });
    });
  });

  it("a TCP connection is seen as reset, and is in the report", async () => {
    const image = await world.imageAfter("python", "objects.connect");
    expect(image.report.notes.filter((note) => note.startsWith("TCP connection 127.0.0.1:"))).toHaveLength(2);
    await clones(image, async (one) => {
      expect(await call(one, "objects.use_connection")).toEqual(["ECONNRESET", "EPIPE", "ECONNRESET"]);
    });
  });
});

describe("files", () => {
  it("extended attributes of files and directories in /tmp stay", async () => {
    const instance = await world.boot("python");
    expect(await call(instance, "files.set_attributes")).toEqual([true, true]);
    const image = await instance.freeze({ then: "end" });
    await clones(image, async (one) => expect(await call(one, "files.check_attributes")).toEqual([true, true]));
  });

  it("open ones, in memory, deleted, under any name; a database in a transaction; the working directory", async () => {
    const image = await world.imageAfter("python", "files.set");
    expect(image.report.notes.filter((note) => note.includes("SQLite"))).toEqual([]);
    await clones(image, async (one) => {
      expect(await call(one, "files.check")).toEqual({
        memory: "memory",
        temporary: "buffered, not written",
        text: "first line\nsecond line\n",
        offset: 23,
        module: true,
        null: [1, ""],
        random: 8,
        inDirectory: true,
        path: "/tmp/grüße-日本.txt",
        cwd: "/tmp/work",
        rows: [1001, 5000],
        inodes: true,
        links: [2, "linked"],
        inTransaction: true,
        rolledBack: [1000, 999],
        other: [6000],
        self: true,
        relative: true,
        process: ["python3", "/var/runtime/python/bootstrap.py", "_HANDLER=index.handler"],
      });
    });
  });

  it("databases, whose locks are seen by connections that are opened later", async () => {
    const image = await world.imageAfter("python", "files.lock_databases");
    expect(image.report.notes).toEqual([]);
    const locked = ["database is locked", [1, 3], "ok"];
    await clones(image, async (one) => expect(await call(one, "files.meet_locks")).toEqual([locked, locked]));
    for (const loader of ["reap", "lazy-4k"] as const)
      await world.thawed(image, async (one) => expect(await call(one, "files.meet_locks")).toEqual([locked, locked]), {
        loader,
      });
  });

  it("a directory that was read in part; one in /tmp is read from its beginning, which the report says", async () => {
    const image = await world.imageAfter("python", "files.scan");
    expect(image.report.notes.filter((note) => note.includes("will be read from its beginning"))).toEqual([
      expect.stringContaining("the directory /tmp/scanned (descriptor "),
    ]);
    await clones(image, async (one) => expect(await call(one, "files.scanned")).toEqual({ code: true, left: 300 }));
  });

  it("may have names of any length, and such as the kernel gives", async () => {
    const instance = await world.boot("python");
    expect(await call(instance, "files.hold_deep")).toEqual(["/tmp/[vdso]", "[vdso]"]);
    await instance.hibernate();
    const image = await instance.freeze();
    expect(await call(instance, "files.read_deep")).toEqual(["words", 65_536]);
    await instance.dispose();
    await clones(image, async (one) => expect(await call(one, "files.read_deep")).toEqual(["words", 65_536]));
  });

  it("of the code may be mapped under names with line breaks, and with what maps tells of those", async () => {
    const codeDir = join(world.dataDir, "line-breaks");
    mkdirSync(codeDir, { recursive: true });
    const names = ["a\nb", "a\\012b"];
    for (const name of names) writeFileSync(join(codeDir, name), `of ${JSON.stringify(name)}`);
    const source = `import json, mmap
def mapped(name):
    with open("/var/task/" + name, "rb") as file: return mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
held = [mapped(name) for name in json.loads(r'${JSON.stringify(names)}')]
def handler(event, context): return [part[:].decode() for part in held]
`;
    writeFileSync(join(codeDir, "app.py"), source);
    const instance = await world.boot("python", { name: "line-breaks", codeDir, handler: "app.handler" });
    const image = await instance.freeze({ then: "end" });
    await clones(image, async (one) => {
      const { payload } = await one.invoke("{}");
      expect(JSON.parse(payload.toString())).toEqual(names.map((name) => `of ${JSON.stringify(name)}`));
    });
  });

  it("without a name that were opened twice are one file, and the process's own directory is its own", async () => {
    const image = await world.imageAfter("python", "files.hold_twice");
    await clones(image, async (one) =>
      expect(await call(one, "files.use_twice")).toEqual([
        "TOom memory",
        "a file, and on",
        "from a file, and on",
        ["begun, ended"],
        true,
      ]),
    );
  });

  it("in /tmp may have any names, also those by which a start puts files aside", async () => {
    const instance = await world.boot("python");
    const before = await call(instance, "files.put_aside");
    const image = await instance.freeze({ then: "end" });
    await clones(image, async (one) => expect(await call(one, "files.aside")).toEqual(before));
  });

  it("without a name lead to the same one, however often they were opened, with seals and names", async () => {
    const image = await world.imageAfter("python", "files.open_twice");
    await clones(image, async (one) =>
      expect(await call(one, "files.use_both")).toEqual([["BEFORE", "BEFORE"], 2 + 4, "/memfd:sealed (deleted)"]),
    );
  });

  it("keep their locks", async () => {
    const image = await world.imageAfter("python", "files.lock");
    await clones(image, async (one) =>
      expect(await call(one, "files.is_locked")).toEqual({ flock: true, bytes: [false, true, true] }),
    );
  });

  it("fills /tmp with as many bytes as may be frozen", async () => {
    const image = await world.imageAfter("python", ["files.fill", 60]);
    let sum = 0;
    for (let n = 0; n < 60; n++) sum += n % 251;
    await world.thawed(image, async (one) => expect(await call(one, "files.sum")).toBe(sum));
  });
});

describe("memory", () => {
  const blocks = createHash("sha256");
  for (let n = 0; n < 60; n++) blocks.update(Buffer.alloc(500_000, n));
  const digest = blocks.digest("hex");

  it.each(["lazy", "eager", "splice"] as const)(
    "grows what was mapped at the freeze from 1 MB to 300 MB (%s)",
    async (loader) => {
      const image = await world.imageAfter("python", "memory.set");
      await world.thawed(image, async (one) => expect(await call(one, "memory.grow")).toEqual([500_000, 7, 7]), { loader });
    },
  );

  it("keeps mappings and blocks, and gives zeroed memory where that is promised", async () => {
    const image = await world.imageAfter("python", "memory.set");
    await clones(image, async (one) => {
      expect(await call(one, "memory.check")).toEqual({
        digest,
        zeroed: true,
        anonymous: "abc\0",
        anonymousZero: true,
        file: "89XYZ34",
        fileEnd: "789",
        last: "99999 99999 99999 99999",
      });
    });
  });

  it("grows its stack", async () => {
    const image = await world.imageAfter("python");
    await clones(image, async (one) => expect(await call(one, "memory.recurse", 3000)).toEqual([3000, 500]));
  });
});

describe("snapshot hooks", () => {
  it("run in their order around the freeze, in the clone and in what goes on", async () => {
    const instance = await world.boot("python");
    await call(instance, "hooks.take");
    const image = await instance.freeze();
    const order = ["before 2", "before 1", "after 1", "after 2"];
    expect(await call(instance, "hooks.take")).toEqual(order);
    await world.thawed(image, async (one) => {
      expect(await call(one, "hooks.take")).toEqual(order);
      expect(await call(one, "hooks.take")).toEqual([]);
    });
    await instance.dispose();
  });
});
