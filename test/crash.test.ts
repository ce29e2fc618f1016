/**
 * Servers that die: at every named fault point, under load, by their keeper's death, in order. After a restart on the same data
 * directory every acknowledged function answers with the right code; of the dead server there is no process, mount, cgroup,
 * temporary directory, and no image or code that nobody owns.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { FAULT_POINTS, type FaultPoint } from "../src/base/fault.js";
import { probeCgroups } from "../src/linux/cgroups.js";
import { descendants, isAlive, type Living } from "./support/processes.js";
import { type Files, HOLD, TestServer, temporaryDir, useServers } from "./support/server.js";
import { until } from "./support/wait.js";

const RESTART_MS_MAX = 150_000;

/** Live freezes are not asked for by any request: `test/live-freeze.test.ts` reaches these points in an engine of its own. */
type ServerPoint = Exclude<FaultPoint, `freeze-live-${string}`>;

function isServerPoint(point: FaultPoint): point is ServerPoint {
  return !point.startsWith("freeze-live-");
}

/** Says which code it is, from a module variable: an image keeps the one that it was made of. */
function node(code: string): Files {
  return {
    "index.js": `
const code = ${JSON.stringify(code)};
exports.handler = async ({ sleep, children }) => {
  for (let index = 0; index < (children ?? 0); index++)
    require("child_process").spawn(process.execPath, ["-e", "setInterval(() => {}, 1000)"], { stdio: "ignore", detached: true });
  if (sleep) await new Promise((resolve) => setTimeout(resolve, sleep));
  while (require("fs").existsSync("${HOLD}")) await new Promise((resolve) => setTimeout(resolve, 20));
  return code;
};`,
  };
}

const PYTHON: Files = { "app.py": "CODE = 'python'\ndef handler(event, context):\n    return CODE\n" };

/** What of a server can outlive it. */
interface Traces {
  readonly pid: number;
  readonly processes: readonly Living[];
  readonly mounts: readonly string[];
}

/** But for what tests mount themselves, of which a run beside this one may be in the middle. */
function mounts(): string[] {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .filter((line) => line.includes("thaw") && !line.includes(" thaw-test "));
}

/** Taken while it lives, together with every process of its sandboxes. */
function tracesOf({ pid, keeper }: TestServer): Traces {
  return { pid, processes: [keeper, ...descendants(keeper.pid)], mounts: mounts() };
}

function cgroupsOf(pid: number): string[] {
  return Object.values(probeCgroups().mounts).flatMap((mount) => {
    const ours = join(mount, "thaw");
    return existsSync(ours)
      ? readdirSync(ours)
          .filter((name) => name.startsWith(`${pid}-`))
          .map((name) => join(ours, name))
      : [];
  });
}

/** Waits until nothing runs any more and nothing is mounted or limited: the keeper outlives its server for that. */
async function expectNothingRuns({ pid, processes, mounts: before }: Traces): Promise<void> {
  await until(`the processes of server ${pid} to end`, () => (processes.some(isAlive) ? undefined : true));
  expect(cgroupsOf(pid)).toEqual([]);
  expect(mounts().filter((mount) => !before.includes(mount))).toEqual([]);
}

/** Names below `dir`, three levels deep at most, relative. */
function namesBelow(dir: string, depth: number): string[] {
  return readdirSync(dir, { withFileTypes: true }).flatMap((entry) => [
    entry.name,
    ...(entry.isDirectory() && depth > 1
      ? namesBelow(join(dir, entry.name), depth - 1).map((name) => join(entry.name, name))
      : []),
  ]);
}

/** Every file of the data directory belongs to a function that the server knows. */
async function expectTidy(server: TestServer): Promise<void> {
  const functions = await server.list();
  const { dataDir } = server;
  const names = functions.map(({ name }) => name);
  // A working set may be on its way to disk at this moment.
  await until("temporary files to go", () =>
    namesBelow(dataDir, 3).some((name) => /\.tmp-|\.after-/.test(name)) ? undefined : true,
  );
  expect(readdirSync(join(dataDir, "images")).sort()).toEqual(
    functions.flatMap(({ image }) => image.image?.dir.slice(join(dataDir, "images").length + 1) ?? []).sort(),
  );
  const code = functions.flatMap(({ name, codeSha256 }) => [name, join(name, Buffer.from(codeSha256, "base64").toString("hex"))]);
  expect(namesBelow(join(dataDir, "functions"), 2).sort()).toEqual(code.sort());
  expect(readdirSync(join(dataDir, "logs")).filter((log) => !names.includes(log.replace(/\.log(\.1)?$/, "")))).toEqual([]);
}

/** Every function of `expected`, and no other, answers with its code at once; and is thawed when its image is there. */
async function expectAnswers(server: TestServer, expected: ReadonlyMap<string, string>): Promise<void> {
  const names = [...expected.keys()].sort();
  expect((await server.list()).map(({ name }) => name)).toEqual(names);
  const codes = names.map((name) => expected.get(name));
  const replies = await Promise.all(names.map((name) => server.invoke(name, {})));
  expect(replies.map(({ json }) => json)).toEqual(codes);
  for (const name of names) expect((await server.ready(name)).state).toBe("ready");
  const thawed = await Promise.all(names.map((name) => server.invoke(name, {}, { "x-thaw-prefer": "thaw;dispose" })));
  expect(thawed.map(({ json, start }) => [json, start.kind])).toEqual(codes.map((code) => [code, "thaw"]));
}

useServers();

describe("a server killed with SIGKILL", () => {
  const dataDir = temporaryDir("crash");
  /** Functions that a client was told of, and the code that they run. */
  const acknowledged = new Map([
    ["kept", "first"],
    ["kept-python", "python"],
    ["changed", "old"],
    ["removed", "unwanted"],
  ]);
  beforeAll(async () => {
    const server = await TestServer.start(dataDir);
    for (const name of ["kept", "changed", "removed"])
      await server.deploy(name, node(acknowledged.get(name) ?? ""), { timeout: "60" });
    await server.deploy("kept-python", PYTHON, { handler: "app.handler" });
    for (const name of acknowledged.keys()) await server.ready(name);
    await server.stop();
  }, RESTART_MS_MAX);

  /** The request during which the server dies: its connection breaks. */
  async function expectNoAnswer(request: Promise<unknown>): Promise<void> {
    await expect(request).rejects.toThrow(/fetch failed|terminated/);
  }

  /** Starts a server that dies at `point`, makes it get there, starts another one on what it left, and looks. */
  async function crash(point: FaultPoint, lead: (server: TestServer) => Promise<void>): Promise<void> {
    const armed = await TestServer.start(dataDir, { env: { THAW_FAULT: point } });
    const traces = tracesOf(armed);
    await lead(armed);
    expect(await armed.ended(), armed.output).toEqual({ code: null, signal: "SIGKILL" });
    await expectNothingRuns(traces);
    const next = await TestServer.start(dataDir);
    await expectAnswers(next, acknowledged);
    await expectTidy(next);
    await next.stop();
  }

  const created = (point: FaultPoint) => crash(point, (server) => expectNoAnswer(server.deploy("new", node("new"))));
  const changed = (point: FaultPoint, to: string) =>
    crash(point, (server) => expectNoAnswer(server.deploy("changed", node(to), { timeout: "60" }, "PUT")));
  const thawed = (point: FaultPoint) => crash(point, (server) => expectNoAnswer(server.invoke("kept")));
  const frozen = (point: FaultPoint) =>
    crash(point, async (server) => {
      expect((await server.deploy(point, node(point))).status).toBe(201);
      acknowledged.set(point, point);
    });

  const hibernate = (server: TestServer) => server.request("POST", "/thaw/v1/functions/kept/hibernate");
  const hibernated = (point: FaultPoint) =>
    crash(point, async (server) => {
      expect((await server.invoke("kept", {})).json).toBe("first");
      await expectNoAnswer(hibernate(server));
    });
  const woken = (point: FaultPoint) =>
    crash(point, async (server) => {
      expect((await server.invoke("kept", {})).json).toBe("first");
      expect((await hibernate(server)).status).toBe(200);
      await expectNoAnswer(server.invoke("kept", {}));
    });

  /** What brings a server to each of the points. */
  const LEADS: Readonly<Record<ServerPoint, () => Promise<void>>> = {
    "deploy-code-unpacked": () => created("deploy-code-unpacked"),
    "deploy-code-renamed": () => created("deploy-code-renamed"),
    "deploy-recorded": () => {
      // Recorded is deployed, though nobody was told.
      acknowledged.set("new", "new");
      return created("deploy-recorded");
    },
    "freeze-prepared": () => frozen("freeze-prepared"),
    "freeze-extracted": () => frozen("freeze-extracted"),
    "freeze-image-written": () => frozen("freeze-image-written"),
    "freeze-image-synced": () => frozen("freeze-image-synced"),
    "freeze-image-renamed": () => frozen("freeze-image-renamed"),
    "freeze-recorded": () => frozen("freeze-recorded"),
    "thaw-husk-taken": () => thawed("thaw-husk-taken"),
    "thaw-stage-sent": () => thawed("thaw-stage-sent"),
    "thaw-request-sent": () => thawed("thaw-request-sent"),
    "hibernate-prepared": () => hibernated("hibernate-prepared"),
    "hibernate-file-made": () => hibernated("hibernate-file-made"),
    "hibernate-deflated": () => hibernated("hibernate-deflated"),
    "wake-request-sent": () => woken("wake-request-sent"),
    "remove-recorded": () => {
      acknowledged.delete("removed");
      return crash("remove-recorded", (server) => expectNoAnswer(server.request("DELETE", "/thaw/v1/functions/removed")));
    },
  };

  it.each((Object.keys(FAULT_POINTS) as FaultPoint[]).filter(isServerPoint))(
    "at %s loses nothing and leaves nothing",
    (point) => LEADS[point](),
    RESTART_MS_MAX,
  );

  it("before an update was recorded, runs the old code", () => changed("deploy-code-renamed", "newer"), RESTART_MS_MAX);

  it(
    "after an update was recorded, runs the new code, and the old image is gone",
    () => {
      acknowledged.set("changed", "newest");
      return changed("deploy-recorded", "newest");
    },
    RESTART_MS_MAX,
  );

  it(
    "under load takes every sandbox with it, and what they started",
    async () => {
      const server = await TestServer.start(dataDir);
      const requests = Array.from({ length: 8 }, (_, index) =>
        server.invoke(index % 2 === 0 ? "kept" : "changed", { sleep: 60_000, children: 1 }),
      );
      const outcomes = Promise.allSettled(requests);
      const running = async (): Promise<true | undefined> => {
        // A thawed function is a husk to the kernel; what it started is not.
        const children = descendants(server.keeper.pid).filter(({ exe }) => exe.endsWith("/node"));
        return (await server.metrics()).instances.running === 8 && children.length >= 8 ? true : undefined;
      };
      await until("8 requests and their children", running);
      const traces = tracesOf(server);
      expect(traces.processes.length).toBeGreaterThan(3 * 8);
      server.kill("SIGKILL");
      for (const { status } of await outcomes) expect(status).toBe("rejected");
      await expectNothingRuns(traces);
      const next = await TestServer.start(dataDir);
      await expectAnswers(next, acknowledged);
      await expectTidy(next);
      await next.stop();
    },
    RESTART_MS_MAX,
  );
});

describe("a server whose keeper is killed", () => {
  it(
    "tells who waits, says what to do, and ends so that a supervisor starts it again",
    async () => {
      const dataDir = temporaryDir("keeper");
      const server = await TestServer.start(dataDir);
      await server.deploy("one", node("one"), { timeout: "60" });
      await server.ready("one");
      const waiting = [
        server.invoke("one", { sleep: 60_000 }),
        server.invoke("one", { sleep: 60_000 }, { "x-thaw-prefer": "boot" }),
      ];
      await until("both to run", async () => ((await server.metrics()).instances.running === 2 ? true : undefined));
      const traces = tracesOf(server);
      process.kill(server.keeper.pid, "SIGKILL");
      for (const reply of await Promise.all(waiting)) {
        expect([reply.status, reply.headers.get("x-amzn-errortype"), reply.json.Type]).toEqual([
          500,
          "ServiceException",
          "Service",
        ]);
        expect(JSON.parse(reply.headers.get("x-thaw-error") ?? "{}")).toMatchObject({
          code: "KEEPER_FAILED",
          why: "it was killed by SIGKILL",
        });
      }
      expect(await server.ended()).toEqual({ code: 1, signal: null });
      expect(server.output).toContain(
        "error: The server cannot go on: its keeper, and with it every instance, has ended\n" +
          "  why: it was killed by SIGKILL\n" +
          "  fix: Start it again: functions and images are kept; under a supervisor, let it restart on failure\n",
      );
      await expectNothingRuns(traces);
      const next = await TestServer.start(dataDir);
      await expectAnswers(next, new Map([["one", "one"]]));
      await expectTidy(next);
      await next.stop();
    },
    RESTART_MS_MAX,
  );

  it(
    "because its builder was killed, says that",
    async () => {
      const server = await TestServer.start(temporaryDir("builder"));
      const traces = tracesOf(server);
      const builder = descendants(server.keeper.pid).find(
        ({ pid }) => readFileSync(`/proc/${pid}/comm`, "utf8") === "thaw-builder\n",
      );
      process.kill(builder?.pid ?? 0, "SIGKILL");
      expect(await server.ended()).toEqual({ code: 1, signal: null });
      expect(server.output).toContain("  why: it exited with code 1; it said: keeper: the builder was killed by signal 9\n");
      await expectNothingRuns(traces);
    },
    RESTART_MS_MAX,
  );

  it(
    "together with the server, leaves empty cgroups that the next server removes",
    async () => {
      const dataDir = temporaryDir("both");
      const server = await TestServer.start(dataDir);
      await server.deployReady("one", node("one"));
      expect((await server.invoke("one")).json).toBe("one");
      const traces = tracesOf(server);
      server.kill("SIGSTOP");
      process.kill(server.keeper.pid, "SIGKILL");
      server.kill("SIGKILL");
      await until("all processes to end", () => (traces.processes.some(isAlive) ? undefined : true));
      expect(cgroupsOf(traces.pid).length).toBeGreaterThan(0);
      const next = await TestServer.start(dataDir);
      await expectNothingRuns(traces);
      await expectAnswers(next, new Map([["one", "one"]]));
      await expectTidy(next);
      await next.stop();
    },
    RESTART_MS_MAX,
  );
});

describe("a server that is told to stop", () => {
  it("answers what runs, takes nothing new, and leaves nothing", { timeout: RESTART_MS_MAX }, async () => {
    const server = await TestServer.start(temporaryDir("stop"));
    for (const name of ["one", "two"]) await server.deployReady(name, node(name), { timeout: "60" });
    const release = await server.hold("one");
    const running = [server.invoke("one"), server.invoke("one")];
    await until("both to run", async () => ((await server.metrics()).instances.running === 2 ? true : undefined));
    const traces = tracesOf(server);
    server.kill("SIGTERM");
    await until("it to stop listening", () =>
      server.invoke("two").then(
        ({ status }) => (status === 500 ? true : undefined),
        () => true as const,
      ),
    );
    release();
    for (const reply of await Promise.all(running)) expect([reply.status, reply.json]).toEqual([200, "one"]);
    expect(await server.ended(), server.output).toEqual({ code: 0, signal: null });
    expect(server.output).toMatch(/\nstopping; a second signal forces it\n$/);
    await expectNothingRuns(traces);
  });

  it("twice does not wait, and still leaves nothing that runs", { timeout: RESTART_MS_MAX }, async () => {
    const server = await TestServer.start(temporaryDir("stop-twice"));
    await server.deploy("one", node("one"), { timeout: "60" });
    const lost = expect(server.invoke("one", { sleep: 60_000 })).rejects.toThrow();
    await until("it to run", async () => ((await server.metrics()).instances.running === 1 ? true : undefined));
    const traces = tracesOf(server);
    server.kill("SIGTERM");
    await until("the first signal", () => (server.output.includes("stopping") ? true : undefined));
    server.kill("SIGINT");
    await lost;
    expect(await server.ended()).toEqual({ code: 130, signal: null });
    await expectNothingRuns(traces);
  });
});
