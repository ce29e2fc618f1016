/** What policies have learned, over restarts and failures, on the fake engine. */

import { join } from "node:path";
import Database from "libsql";
import { afterEach, describe, expect, it, onTestFinished, vi } from "vitest";
import type { Logger } from "../base/log.js";
import { silentLogger } from "../base/log.js";
import type { HeatDecider, HeatPolicy } from "./heat-policy.js";
import type { IdleFacts } from "./idle-times.js";
import type { IdlePolicy } from "./policy.js";
import { openTestBed, type TestBed, zipOf } from "./testing.js";

/** Remembers what it was asked with, and keeps an instance for ever. */
function watching(): IdlePolicy & { readonly seen: { count: number; lastMs: number | undefined }[] } {
  const seen: { count: number; lastMs: number | undefined }[] = [];
  return {
    name: "watching",
    seen,
    decide: ({ count, lastMs }: IdleFacts) => {
      seen.push({ count, lastMs });
      return [];
    },
  };
}

/** Counts answers, and saves the count. */
function counting(name = "counting"): HeatPolicy & { readonly recalled: unknown[] } {
  const recalled: unknown[] = [];
  return {
    name,
    recalled,
    begin(_random, saved): HeatDecider {
      if (saved !== undefined) recalled.push(saved);
      let answers = typeof saved === "number" ? saved : 0;
      return {
        choose: (images) => images[0] as (typeof images)[number],
        freezeAt: () => undefined,
        answered: () => {
          answers += 1;
        },
        surplus: () => [],
        save: () => answers,
      };
    },
  };
}

function logger(): { log: Logger; warned: string[] } {
  const warned: string[] = [];
  const log = { ...silentLogger(), warn: (_facts: unknown, text: string) => warned.push(text) } as unknown as Logger;
  return { log, warned };
}

let bed: TestBed | undefined;
afterEach(async () => {
  vi.useRealTimers();
  await bed?.close();
  bed = undefined;
});

async function open(options: Parameters<typeof openTestBed>[0]): Promise<TestBed> {
  const opened = await openTestBed(options);
  bed = opened;
  await opened.platform.deploy({ name: "f", runtime: "nodejs20.x", handler: "index.handler", zip: zipOf() });
  await opened.platform.waitReady("f");
  return opened;
}

async function restart(): Promise<TestBed> {
  if (bed === undefined) throw new Error("nothing is open");
  bed = await bed.restart();
  await bed.platform.waitReady("f");
  return bed;
}

/** Changes the database of a platform that is closed, and opens it again. */
async function tamper(change: (database: Database.Database) => void): Promise<void> {
  if (bed === undefined) throw new Error("nothing is open");
  await bed.platform.close();
  const database = new Database(join(bed.dataDir, "thaw.db"));
  change(database);
  database.close();
  await restart();
}

describe("what was learned of a function", () => {
  it("is there after a restart: its idle times, and what its images are worth", async () => {
    const policy = watching();
    const heatPolicy = counting();
    const { platform } = await open({ policy, heatPolicy });
    for (let request = 0; request < 5; request++) await platform.invoke("f", "{}");
    // The first request came after no idle time, and was answered by an instance that was thawed.
    expect(policy.seen.at(-1)?.count).toBe(4);
    const { platform: again } = await restart();
    expect(heatPolicy.recalled).toEqual([5]);
    await again.invoke("f", "{}");
    // Nobody knows how long it was idle while no server ran.
    expect(policy.seen.at(-1)?.count).toBe(4);
    await again.invoke("f", "{}");
    expect(policy.seen.at(-1)?.count).toBe(5);
    await restart();
    expect(heatPolicy.recalled).toEqual([5, 7]);
  });

  it("is written every minute: a server that is killed has lost no more", async () => {
    vi.useFakeTimers({ toFake: ["setInterval"] });
    const { platform, dataDir } = await open({ heatPolicy: counting() });
    await platform.invoke("f", "{}");
    const stored = () => {
      const database = new Database(join(dataDir, "thaw.db"), { readonly: true });
      try {
        return database.prepare("SELECT what, state FROM learned ORDER BY what").all();
      } finally {
        database.close();
      }
    };
    expect(stored()).toEqual([]);
    vi.advanceTimersByTime(60_000);
    await vi.waitFor(() => expect(stored()).toEqual([{ what: "heat", state: '{"policy":"counting","learned":1}' }]));
  });

  it("of its images begins anew with new code, and that of its idle times stays", async () => {
    const policy = watching();
    const heatPolicy = counting();
    const { platform } = await open({ policy, heatPolicy });
    for (let request = 0; request < 3; request++) await platform.invoke("f", "{}");
    await restart();
    const zip = zipOf({ "index.mjs": "export const handler = async () => 'other';\n" });
    await bed?.platform.deploy({ name: "f", runtime: "nodejs20.x", handler: "index.handler", zip, update: true });
    await bed?.platform.waitReady("f");
    await restart();
    expect(heatPolicy.recalled).toEqual([3]);
    await bed?.platform.invoke("f", "{}");
    await bed?.platform.invoke("f", "{}");
    expect(policy.seen.at(-1)?.count).toBe(3);
  });

  it("by another policy is left alone, told in the log, and learned anew", async () => {
    const { log, warned } = logger();
    const first = await open({ heatPolicy: counting("one"), log });
    await first.platform.invoke("f", "{}");
    await tamper((database) => {
      database.exec(`UPDATE learned SET state = replace(state, 'one', 'yet another')`);
    });
    expect(warned).toEqual(["what was learned of a function cannot be used, and is learned anew"]);
    expect((await bed?.platform.invoke("f", "{}"))?.start.kind).toBe("thaw");
  });

  it.each(["", "nonsense", "{}", "null", '{"policy":1}'])("is passed over when it is damaged: %j", async (state) => {
    const { log, warned } = logger();
    const policy = watching();
    const { platform } = await open({ policy, heatPolicy: counting(), log });
    for (let request = 0; request < 3; request++) await platform.invoke("f", "{}");
    await tamper((database) => {
      database.prepare("UPDATE learned SET state = ?").run(state);
    });
    expect(warned).toHaveLength(2);
    await bed?.platform.invoke("f", "{}");
    await bed?.platform.invoke("f", "{}");
    expect(policy.seen.at(-1)?.count).toBe(1);
  });

  it("that cannot be written is told once, harms no request, and is written when it can be", async () => {
    vi.useFakeTimers({ toFake: ["setInterval"] });
    const { log, warned } = logger();
    const heatPolicy = counting();
    const { platform, dataDir } = await open({ heatPolicy, log });
    const other = new Database(join(dataDir, "thaw.db"));
    onTestFinished(() => {
      other.close();
    });
    other.exec("ALTER TABLE learned RENAME TO elsewhere");
    for (let minute = 0; minute < 3; minute++) {
      await platform.invoke("f", "{}");
      vi.advanceTimersByTime(60_000);
      await vi.waitFor(() => expect(warned).toHaveLength(1));
    }
    other.exec("ALTER TABLE elsewhere RENAME TO learned");
    await restart();
    expect(heatPolicy.recalled).toEqual([3]);
    expect(warned).toEqual(["what was learned of functions could not be written; it is tried again every minute"]);
  });
});
