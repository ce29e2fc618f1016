/**
 * Processes that do not stand still while they are stopped: threads that begin and end, mappings that come and go, signals that nobody can
 * hold back, children that have the same memory. Whatever they do, nothing of theirs is lost, or they are refused by name.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type Image, type Instance, LOADERS } from "../src/engine/index.js";
import { ABI_CONSTANTS } from "../src/linux/abi.js";
import { olderThan } from "./support/kernel.js";
import { call, hostPid, useWorld } from "./support/world.js";

const world = useWorld();

/** Calls `during` again and again while something is under way. */
async function whileUnderWay<T>(work: Promise<T>, during: () => Promise<void>): Promise<T> {
  let under = true;
  const ended = work.finally(() => {
    under = false;
  });
  ended.catch(() => undefined);
  while (under) await during();
  return ended;
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** What those hold who look at this process from outside. */
function extractorMb(pid: number): number {
  let most = 0;
  for (const entry of readdirSync("/proc").filter((name) => /^\d+$/.test(name)))
    try {
      if (readFileSync(`/proc/${entry}/comm`, "utf8") !== "extractor\n") continue;
      if (!readFileSync(`/proc/${entry}/cmdline`, "utf8").includes(`\0${pid}\0`)) continue;
      most = Math.max(most, Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${entry}/status`, "utf8"))?.[1] ?? 0) / 1024);
    } catch {
      // It has ended.
    }
  return most;
}

async function withPython(use: (one: Instance) => Promise<void>): Promise<void> {
  const one = await world.boot("python");
  try {
    await use(one);
  } finally {
    await one.dispose();
  }
}

describe("a process that is stopped", () => {
  it("loses nothing of mappings that come and go meanwhile", async () => {
    await withPython(async (one) => {
      await call(one, "moving.map_and_unmap");
      for (let round = 0; round < 35; round++) {
        expect((await one.hibernate()).cancelled).toBe(false);
        expect(await call(one, "moving.lost")).toEqual([]);
      }
      for (let round = 0; round < 22; round++) {
        const image: Image = await one.freeze({ then: "continue" });
        await world.thawed(image, async (clone) => {
          await pause(10);
          expect(await call(clone, "moving.lost")).toEqual([]);
        });
        await world.engine.removeImage(image);
      }
      await call(one, "moving.end");
    });
  });

  it("is copied to one place though its heap grows while the kernel tells of it", async () => {
    await withPython(async (one) => {
      await call(one, "moving.grow_and_shrink");
      for (let round = 0; round < 30; round++) {
        const image = await one.freeze({ then: "continue", hygiene: false });
        await world.engine.removeImage(image);
        expect(await one.hibernate()).toMatchObject({ cancelled: false });
      }
      await call(one, "moving.end");
    });
  });

  it("is frozen though megabytes go away while they are copied", async () => {
    await withPython(async (one) => {
      await call(one, "moving.hold", "held");
      await call(one, "moving.let_go_in_one");
      for (let round = 0; round < 12; round++) {
        const image = await one.freeze({ then: "continue", live: round % 2 === 1 });
        await world.thawed(image, async (clone) => expect(await call(clone, "moving.holds")).toEqual(["held"]));
        await world.engine.removeImage(image);
      }
      await call(one, "moving.end");
    });
  });

  it("has in its mapping of a file in /tmp that grows meanwhile what the file has", async () => {
    await withPython(async (one) => {
      await call(one, "moving.map_growing_file");
      for (let round = 0; round < 4; round++) {
        const image = await one.freeze({ then: "continue", live: round % 2 === 1 });
        // Nothing but that file is in /tmp.
        const pages = statSync(join(image.dir, "tmp")).size / 4096;
        await world.thawed(image, async (clone) => expect(await call(clone, "moving.mapped_pages")).toBe(pages));
        await world.engine.removeImage(image);
      }
      await call(one, "moving.end");
    });
  });

  it("is not stopped for seconds because it watches much", async () => {
    await withPython(async (one) => {
      await call(one, "moving.watch_much", 150, 80);
      const stoppedMs: number[] = [];
      for (let round = 0; round < 2; round++) {
        const image = await one.freeze({ then: "continue" });
        stoppedMs.push(image.report.stoppedMs);
        await world.engine.removeImage(image);
      }
      const image = await one.freeze({ then: "end" });
      // All compared with all took eight seconds, each time; the machine may stop anything for a second, now and then.
      expect(Math.min(...stoppedMs, image.report.stoppedMs)).toBeLessThan(1500);
      await world.thawed(image, async (clone) => expect(await call(clone, "moving.much_ready")).toEqual([80]));
      await world.engine.removeImage(image);
    });
  });

  it("costs the one who copies it little more than it has, however long a live freeze waits", async () => {
    await withPython(async (one) => {
      await call(one, "moving.wander");
      let most = 0;
      // The request has to come when the memory was copied once, and before the order to stop.
      for (let delay = 60; delay <= 100; delay += 10) {
        let over = false;
        const frozen = one.freeze({ then: "continue", live: true }).finally(() => {
          over = true;
        });
        frozen.catch(() => undefined);
        await pause(delay);
        const slept = call(one, "moving.sleep", 1.5);
        for (; !over; await pause(20)) most = Math.max(most, extractorMb(hostPid(one)));
        expect(await slept).toBe(true);
        const made = await frozen.catch((error: unknown) => error);
        if (made instanceof Error)
          expect(made).toMatchObject({ code: "FREEZE_FAILED", why: "its memory changes too fast to be copied while it runs" });
        else await world.engine.removeImage(made as Image);
      }
      expect(most).toBeLessThan(400);
      await call(one, "moving.end");
    });
  });

  it("may have threads that end while they are being stopped", async () => {
    await withPython(async (one) => {
      await call(one, "moving.make_threads");
      for (let round = 0; round < 50; round++) expect((await one.hibernate()).cancelled, `round ${round}`).toBe(false);
      for (let round = 0; round < 25; round++) await world.engine.removeImage(await one.freeze({ then: "continue" }));
      await call(one, "moving.end");
    });
  });

  it("is frozen when its threads have left the husk: a clone's may get a processor later than its next freeze begins", async () => {
    await withPython(async (one) => {
      // Where no thread of a function ever runs, but that of a clone begins.
      const at = Number(ABI_CONSTANTS.HUSK_ZONE_START) + 0x100000;
      expect(await call(one, "moving.run_elsewhere", at, 1_000)).toBe(at);
      const image = await one.freeze({ then: "continue" });
      await world.thawed(image, async (clone) => {
        const before = await call<number>(clone, "moving.rounds");
        await pause(50);
        expect(await call<number>(clone, "moving.rounds")).toBeGreaterThan(before);
      });
      await world.engine.removeImage(image);
      await call(one, "moving.end");
    });
  });

  it.each(["SIGSTOP", "SIGTRAP"] as const)("is hibernated whoever sends it %s", async (signal) => {
    await withPython(async (one) => {
      let sent = 0;
      let done = 0;
      if (signal === "SIGTRAP") await call(one, "moving.trap", "hear");
      for (let round = 0; round < 15; round++) {
        const report = await whileUnderWay(one.hibernate(), async () => {
          process.kill(hostPid(one), signal);
          sent++;
          await pause(round % 3);
          if (signal === "SIGSTOP") process.kill(hostPid(one), "SIGCONT");
        }).catch((error: unknown) => error);
        // On a busy machine who is stopped and sent on all the time may not come back to its read.
        if (report instanceof Error) expect(report).toMatchObject({ why: "its main thread does not wait for a request" });
        else done++;
        const [, heard] = await call<[boolean, number]>(one, "moving.trap", "look");
        expect(heard).toBeGreaterThanOrEqual(signal === "SIGTRAP" ? round + 1 : 0);
      }
      expect(done).toBeGreaterThan(5);
      expect(sent).toBeGreaterThan(15);
    });
  });

  it("sleeps on, each thread for as long as it wanted", async () => {
    await withPython(async (one) => {
      await call(one, "moving.sleep_in_c");
      for (let round = 0; round < 4; round++) {
        await world.engine.removeImage(await one.freeze({ then: "continue" }));
        await one.hibernate();
        expect(await call(one, "moving.woken")).toEqual([]);
      }
      await call(one, "moving.end");
    });
  });

  it("sleeps on in its clones, also when it was stopped and went on before", async () => {
    await withPython(async (one) => {
      await call(one, "moving.sleep_in_c");
      for (let round = 0; round < 3; round++) {
        const image = await one.freeze({ then: "continue" });
        for (const loader of ["splice", "eager"] as const)
          await world.thawed(image, async (clone) => expect(await call(clone, "moving.woken")).toEqual([]), { loader });
        await world.engine.removeImage(image);
        await one.hibernate();
      }
      await call(one, "moving.end");
    });
  });

  it("goes on to ignore SIGTRAP", async () => {
    await withPython(async (one) => {
      expect(await call(one, "moving.trap", "ignore")).toEqual([true, 0]);
      await world.engine.removeImage(await one.freeze({ then: "continue" }));
      expect(await call(one, "moving.trap", "look")).toEqual([true, 0]);
      await one.hibernate();
      expect(await call(one, "moving.trap", "look")).toEqual([true, 0]);
    });
  });
});

describe("memory that is not one process's alone", () => {
  it("is not changed in a child that was forked since the last hibernation: the next one is refused while it lives", async () => {
    await withPython(async (one) => {
      await call(one, "moving.hold", "old!");
      await one.hibernate();
      await call(one, "moving.fork");
      await call(one, "moving.hold", "new!");
      await expect(one.hibernate()).rejects.toMatchObject({
        code: "HIBERNATE_REFUSED",
        why: expect.stringContaining("forked since its last hibernation"),
        // Of this one, and at this time: others of its function are hibernated.
        details: { scope: "instance" },
      });
      expect(await call(one, "moving.child_has")).toBe("old!");
      expect(await call(one, "moving.end_child")).toBe(0);
      expect((await one.hibernate()).cancelled).toBe(false);
    });
  });

  it("is not written over by other memory that has grown beyond its place since the last hibernation", async () => {
    await withPython(async (one) => {
      await call(one, "moving.reserve");
      await one.hibernate();
      await call(one, "moving.grow_by_gigabytes");
      const made = await one.hibernate().catch((error: unknown) => error);
      expect(await call(one, "moving.others")).toEqual(["B"]);
      expect(made).toMatchObject({ code: "HIBERNATE_REFUSED", why: expect.stringContaining("has grown by gigabytes") });
    });
  });

  it("is a child's own when that was forked before the first", async () => {
    await withPython(async (one) => {
      await call(one, "moving.hold", "old!");
      await call(one, "moving.fork");
      await call(one, "moving.hold", "new!");
      for (let round = 0; round < 2; round++) {
        await one.hibernate();
        expect(await call(one, "moving.child_has")).toBe("old!");
      }
      expect(await call(one, "moving.end_child")).toBe(0);
    });
  });

  it("is refused where a child of one of its threads shares it", async () => {
    await withPython(async (one) => {
      await call(one, "moving.share");
      await expect(one.hibernate()).rejects.toMatchObject({
        code: "HIBERNATE_REFUSED",
        why: expect.stringContaining("another process shares its memory"),
      });
      await call(one, "moving.end_sharer");
      expect((await one.hibernate()).cancelled).toBe(false);
    });
  });
});

describe("reads past the page cache", () => {
  it("do not exist: what a device writes into memory, nobody would know to be written", async () => {
    await withPython(async (one) => expect(await call(one, "moving.open_directly")).toEqual([22, 22]));
  });
});

describe("guard regions", () => {
  it.skipIf(olderThan(6, 13))(
    "stay where a process is hibernated, and where it is frozen, live or not, once and again, with every loader",
    async () => {
      await withPython(async (one) => {
        const guarded = await call(one, "moving.guard");
        expect(guarded).toEqual([11, "07"]);
        if (olderThan(6, 16)) {
          // These kernels have guard regions and do not tell of them.
          for (const move of [() => one.hibernate(), () => one.freeze({ live: true }), () => one.freeze()])
            await expect(move()).rejects.toThrow(/guard regions .* which Linux 6.13 to 6.15 do not tell from swapped memory/);
          expect(await call(one, "moving.guard")).toEqual(guarded);
          return;
        }
        for (let round = 0; round < 2; round++) {
          await one.hibernate();
          expect(await call(one, "moving.guard")).toEqual(guarded);
        }
        const live = await one.freeze({ live: true });
        const image = await one.freeze({ then: "end" });
        for (const loader of LOADERS)
          await world.thawed(image, async (clone) => expect(await call(clone, "moving.guard"), loader).toEqual(guarded), {
            loader,
          });
        await world.thawed(live, async (clone) => {
          expect(await call(clone, "moving.guard")).toEqual(guarded);
          const second = await clone.freeze({ then: "end" });
          await world.thawed(second, async (grandchild) => {
            expect(await call(grandchild, "moving.guard")).toEqual(guarded);
            expect(await call(grandchild, "moving.let_guard_go")).toBe(0);
          });
        });
      });
    },
  );
});
