/**
 * Hibernation as users of a server meet it: by hand, by the policy, and by a memory budget that is held while more instances are alive
 * than would fit.
 */
import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, it } from "vitest";
import { descendants } from "./support/processes.js";
import { type Files, TestServer, temporaryDir, useServers } from "./support/server.js";
import { until } from "./support/wait.js";

const MB = 2 ** 20;
const BALLAST_MB = 48;

/** Memory that is its own, and an answer that needs all of it. */
const WORKER: Files = {
  "index.mjs": `
const ballast = Array.from({ length: ${BALLAST_MB} }, (_, index) => Buffer.alloc(1 << 20, index + 1));
let count = 0;
export const handler = async () => ({ count: ++count, sum: ballast.reduce((sum, part) => sum + part[0] + part[part.length - 1], 0) });
`,
};
const SUM = BALLAST_MB * (BALLAST_MB + 1);

/** Private resident memory of each process that the keeper runs, in kilobytes. */
function privateOfEach(server: TestServer): Map<number, number> {
  const each = new Map<number, number>();
  for (const { pid } of descendants(server.keeper.pid)) {
    try {
      let kilobytes = 0;
      const text = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
      for (const [, value] of text.matchAll(/^Private_(?:Clean|Dirty):\s+(\d+)/gm)) kilobytes += Number(value);
      each.set(pid, kilobytes);
    } catch {
      // It ended meanwhile.
    }
  }
  return each;
}

/**
 * Bytes of all of them together. They are looked at one after the other, and memory that one gives back another may have when that is looked at
 * (`seen`): so each is looked at twice, and the smaller figure counts. All of that was there between the two rounds (`atOnce`).
 */
function privateBytes(server: TestServer): { seen: number; atOnce: number } {
  const first = privateOfEach(server);
  let seen = 0;
  let atOnce = 0;
  for (const kilobytes of first.values()) seen += kilobytes * 1024;
  for (const [pid, second] of privateOfEach(server)) atOnce += Math.min(first.get(pid) ?? 0, second) * 1024;
  return { seen, atOnce };
}

useServers();

describe.each([
  [
    "node",
    {
      "index.mjs": `
import { existsSync } from "node:fs";
awslambda.snapshot.registerBeforeSnapshot(() => { while (existsSync("/tmp/hang")) {} });
import { writeFileSync } from "node:fs";
export const handler = async ({ hang }) => { if (hang) writeFileSync("/tmp/hang", ""); return existsSync("/tmp/hang"); };
`,
    },
  ],
  [
    "python",
    {
      "app.py": `
import os
from snapshot_restore_py import register_before_snapshot
def hook():
    while os.path.exists("/tmp/hang"): pass
register_before_snapshot(hook)
def handler(event, context):
    if event.get("hang"): open("/tmp/hang", "w").close()
    return os.path.exists("/tmp/hang")
`,
    },
  ],
] as const)("a %s instance whose hook before the snapshot hangs", (language, files: Files) => {
  it("costs the request that meets it its time, and not its answer, and is the last that is hibernated", async () => {
    const server = await TestServer.start(temporaryDir(`hook-${language}`));
    await server.deployReady("hooked", files, { timeout: "2" });
    expect((await server.invoke("hooked", { hang: true })).json).toBe(true);
    const hibernating = server.cli(["hibernate", "hooked"]);
    const states = async () => (await server.view("hooked")).instances.map(({ state }) => state);
    await until("its hook to run", async () => ((await states())[0] === "deflating" ? true : undefined));
    // From another instance, which knows of no file.
    expect(await server.invoke("hooked", {})).toMatchObject({ status: 200, json: false, start: { kind: "thaw" } });
    const told = "its before-snapshot hooks took longer than 2 s, and it was ended";
    expect(await hibernating).toMatchObject({ code: 1, err: expect.stringContaining(told) });
    expect((await server.view("hooked")).hibernateRefused).toContain(told);
    await server.stop();
  }, 60_000);
});

describe("a function's instances", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start(temporaryDir("hibernate-cli"), { args: ["--keep-warm", "3600"] });
    await server.deployReady("worker", WORKER, { memory: "256" });
  }, 60_000);
  const json = async (...args: string[]) => JSON.parse((await server.cli([...args, "--json"])).out);

  it("are hibernated and woken by hand, with what that saves, and keep their state", async () => {
    const early = await server.cli(["hibernate", "worker"]);
    expect(early).toMatchObject({ code: 1, out: "" });
    expect(early.err).toMatch(
      /^error: Function "worker" has nothing to hibernate\n {2}why: it has no instance\n {2}fix: Invoke it first: `thaw invoke worker`/,
    );
    expect((await server.invoke("worker", {}, { "x-thaw-prefer": "boot" })).json).toEqual({ count: 1, sum: SUM });
    const [warm] = (await json("ls")).functions[0].instances;
    expect(warm).toEqual({ id: expect.any(Number), state: "warm", residentBytes: expect.any(Number), hibernatedBytes: 0 });
    expect(warm.residentBytes).toBeGreaterThan(BALLAST_MB * MB);

    const hibernated = await server.cli(["hibernate", "worker"]);
    expect(hibernated).toMatchObject({ code: 0, err: "" });
    expect(hibernated.out).toMatch(/^1 instance of worker hibernated: [\d.]+ MiB given back, [\d.]+ MiB on disk\n$/);
    const [asleep] = (await json("ls")).functions[0].instances;
    expect(asleep).toMatchObject({ id: warm.id, state: "hibernated" });
    expect(asleep.residentBytes).toBeLessThan(4 * MB);
    expect(asleep.hibernatedBytes).toBeGreaterThan(BALLAST_MB * MB);
    expect((await server.cli(["ls"])).out).toMatch(/\n *worker .* 1 hibernated +[\d.]+ [KM]iB +[\d.]+ MiB +boot /);

    const woken = await server.invoke("worker", {}, { "x-thaw-prefer": "wake" });
    expect(woken.json).toEqual({ count: 2, sum: SUM });
    expect(woken.start).toMatchObject({ kind: "wake", us: expect.any(Number) });
    const again = await server.invoke("worker", {}, { "x-thaw-prefer": "wake" });
    expect(again.status).toBe(409);
    expect(again.text).toContain("it has no hibernated instance");

    expect(await json("hibernate", "worker")).toMatchObject({ name: "worker", instances: 1, skipped: 0 });
    expect((await server.cli(["wake", "worker"])).out).toBe("1 instance of worker woken\n");
    expect((await server.invoke("worker")).json).toEqual({ count: 3, sum: SUM });
    expect((await server.cli(["wake", "worker"])).err).toContain("why: its instances are awake");
    expect((await server.metrics()).starts).toMatchObject({ wake: 1, reuse: 1 });
    expect(await server.metrics()).toMatchObject({ hibernations: 2, wakes: 2 });
  });

  it("are gone after a restart, and their function is there", async () => {
    await server.cli(["hibernate", "worker"]);
    await server.stop();
    const next = await TestServer.start(server.dataDir);
    expect((await next.view("worker")).instances).toEqual([]);
    expect(await next.invoke("worker")).toMatchObject({ json: { count: 1, sum: SUM }, start: { kind: "thaw" } });
    await next.stop();
  });
});

describe("provisioned concurrency", () => {
  it("has husks filled before the first request, shows them, and keeps them over a restart", async () => {
    const server = await TestServer.start(temporaryDir("provisioned"));
    const deployed = await server.deployReady("quick", WORKER, { provisioned: "2", memory: "256" });
    expect(deployed.state).toBe("ready");
    const filled = (one: TestServer) =>
      until("two parked husks", async () => ((await one.metrics()).engine.husks.prefaulted === 2 ? true : undefined));
    await filled(server);
    expect((await server.metrics()).engine.huskBytes).toBeGreaterThan(0);
    expect((await server.cli(["ls"])).out).toContain("2 provisioned");
    expect((await server.invoke("quick")).start.kind).toBe("parked");
    await server.stop();
    const next = await TestServer.start(server.dataDir);
    await filled(next);
    expect((await next.invoke("quick")).start.kind).toBe("parked");
    await next.stop();
  });
});

describe("a memory budget", () => {
  it("is held while thirty workers live that would take five times as much; each answers, twice, with its state", async () => {
    const budget = 500 * MB;
    const server = await TestServer.start(temporaryDir("budget"), {
      args: ["--boot-only", "--memory-budget", "500M", "--max-instances", "40"],
    });
    const names = Array.from({ length: 30 }, (_, index) => `worker${index}`);
    for (const name of names) expect((await server.deploy(name, WORKER, { memory: "192", timeout: "30" })).status).toBe(201);
    let most = 0;
    let seen = 0;
    const sampler = setInterval(() => {
      const bytes = privateBytes(server);
      most = Math.max(most, bytes.atOnce);
      seen = Math.max(seen, bytes.seen);
    }, 250);
    const kinds: unknown[] = [];
    for (const count of [1, 2]) {
      for (let at = 0; at < names.length; at += 2) {
        const replies = await Promise.all(names.slice(at, at + 2).map((name) => server.invoke(name)));
        for (const reply of replies) {
          expect(reply.json, reply.text).toEqual({ count, sum: SUM });
          kinds.push(reply.start.kind);
        }
      }
    }
    clearInterval(sampler);
    expect(kinds.slice(0, 30)).toEqual(Array(30).fill("boot"));
    expect(kinds.slice(30).filter((kind) => kind === "wake").length).toBeGreaterThan(20);
    const one = (await server.list()).flatMap(({ instances }) => instances.map(({ residentBytes }) => residentBytes));
    expect(one).toHaveLength(30);
    expect(seen).toBeGreaterThan(BALLAST_MB * MB);
    expect(most).toBeLessThan(budget + Math.max(...one));
    await until("what is beyond the budget to be hibernated", async () => {
      const { memory } = await server.metrics();
      return memory.residentBytes < budget || undefined;
    });
    await server.stop();
  }, 240_000);
});
