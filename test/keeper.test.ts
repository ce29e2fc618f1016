/**
 * The keeper on the real kernel, with a husk of the tests' own (keeper-husk.c), so that nothing above the keeper is needed.
 */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Keeper } from "../src/engine/keeper.js";
import type { HuskReady, HuskReport, InstanceExit, StageRequest } from "../src/engine/keeper-messages.js";
import { promised } from "../src/engine/parts.js";
import { ABI_CONSTANTS } from "../src/linux/abi.js";
import { type CgroupParents, limitWrites, makeParents, probeCgroups, removeParents, sweepCgroups } from "../src/linux/cgroups.js";
import { findInterpreters } from "../src/linux/interpreters.js";
import { processStart } from "../src/linux/process-stat.js";
import { planRoot, type RootOperation } from "../src/linux/rootfs.js";
import { until } from "./support/wait.js";

const ROOT = join(import.meta.dirname, "..");
const BINARY = join(ROOT, "native/build/keeper");
const UID = 200_123;
const stageOf = (keeper: Keeper, id: number, request: StageRequest) =>
  promised<HuskReport>((told) => keeper.beginStage(id, request, told));
const { STAGE_QUIET } = ABI_CONSTANTS;
const dir = mkdtempSync(join(tmpdir(), "thaw-keeper-"));
const husk = join(dir, "husk");
let plan: RootOperation[];

beforeAll(async () => {
  execFileSync("gcc", ["-static", "-O1", "-Wall", `-I${ROOT}/native/build`, "-o", husk, join(ROOT, "test/keeper-husk.c")]);
  for (const name of ["pipe-holder", "silent-mount"])
    execFileSync("gcc", ["-O1", "-Wall", "-pthread", "-o", join(dir, name), join(ROOT, `test/${name}.c`)]);
  mkdirSync(join(dir, "runtime"));
  mkdirSync(join(dir, "code"));
  writeFileSync(join(dir, "code/index.js"), "the code\n");
  const interpreter = (await findInterpreters()).find(({ language }) => language === "node");
  if (interpreter === undefined) throw new Error("no node");
  plan = planRoot(interpreter, { huskPath: husk, runtimeDir: join(dir, "runtime") });
});

afterAll(async () => {
  for (const world of World.opened) await world.close();
  rmSync(dir, { recursive: true, force: true });
});

/** A keeper with cgroups, a template, and the test husk's programs. */
class World {
  keeper!: Keeper;
  parents!: CgroupParents;
  template = 0;
  readonly programs: Record<string, number> = {};
  lost = "";

  static readonly opened = new Set<World>();

  static async open(label = "", parents = makeParents(probeCgroups(), label)): Promise<World> {
    const world = new World();
    World.opened.add(world);
    world.parents = parents;
    world.keeper = await Keeper.start({ binary: BINARY, onLost: (error) => (world.lost = error.message) });
    await world.keeper.cgroups(world.parents);
    world.template = await world.keeper.template(plan);
    for (const name of ["t", "l", "n", "x"]) world.programs[name] = world.keeper.fileBytes(Buffer.from(name));
    return world;
  }

  program(name: string): number {
    return this.programs[name] ?? -1;
  }

  make(pid = 0, template = this.template): One {
    return new One(this, pid, template);
  }

  async close(): Promise<void> {
    World.opened.delete(this);
    await this.keeper.close();
    await removeParents(this.parents);
  }
}

/** One instance and what the keeper said about it, in order. */
class One {
  readonly id: number;
  readonly ready: Promise<HuskReady>;
  readonly exit: Promise<InstanceExit>;
  readonly events: string[] = [];
  readonly failures: string[] = [];
  dataBytes = 0;
  logBytes = 0;
  #answer: ((text: string) => void) | undefined;

  constructor(
    readonly world: World,
    pid: number,
    template: number,
  ) {
    let ended: (exit: InstanceExit) => void;
    this.exit = new Promise((resolve) => (ended = resolve));
    const { id, ready } = world.keeper.husk(
      { template, pid, tmpMb: 16, uid: UID },
      {
        onData: (bytes) => {
          this.dataBytes += bytes.length;
          if (bytes.length < 100) this.events.push(`data ${bytes}`);
          this.#answer?.(bytes.toString("latin1"));
        },
        onLog: (bytes) => {
          this.logBytes += bytes.length;
          if (bytes.length < 10_000) this.events.push(`log ${bytes}`);
        },
        onControlEnd: () => this.events.push("end"),
        onFailure: (error) => this.failures.push(error.message),
        onExit: (exit) => ended(exit),
      },
    );
    this.id = id;
    this.ready = ready;
  }

  async stage(name: string, fds: StageRequest["fds"] = [], flags = 0): Promise<number> {
    const { status } = await stageOf(this.world.keeper, this.id, { program: this.world.program(name), fds, fdBase: 200, flags });
    this.events.push(`stage ${status}`);
    return status;
  }

  /** Becomes a function that runs shell commands. */
  async serve(): Promise<this> {
    await this.ready;
    expect(await this.stage("l", [{ kind: "control" }, { kind: "log" }])).toBe(0);
    return this;
  }

  /** Output of a command, with its status behind it. */
  async shell(command: string): Promise<string> {
    const before = this.events.length;
    const answer = new Promise<string>((resolve) => (this.#answer = resolve));
    this.world.keeper.send(this.id, Buffer.from(`{ ${command}\n} 2>&1`));
    const status = await Promise.race([answer, this.exit.then((exit) => `exit ${JSON.stringify(exit)}`)]);
    return (
      this.events
        .slice(before)
        .filter((event) => event.startsWith("log "))
        .map((event) => event.slice(4))
        .join("") + status.trim()
    );
  }

  async kill(): Promise<InstanceExit> {
    this.world.keeper.kill(this.id);
    return this.exit;
  }
}

/** Has another process keep something waiting until it is released; `says` when it does. */
async function start(program: string, argument: string, says: string): Promise<{ release(): Promise<void> }> {
  const child = spawn(join(dir, program), [argument], { stdio: ["pipe", "pipe", "inherit"] });
  const ended = once(child, "exit");
  const [said] = (await Promise.race([once(child.stdout, "data"), ended])) as [unknown];
  expect(String(said)).toBe(`${says}\n`);
  return {
    release: async () => {
      child.stdin.end();
      expect(await ended).toEqual([0, null]);
    },
  };
}

/** Has the lock of an instance's output pipe held. */
async function holdOutput(one: One): Promise<{ release(): Promise<void> }> {
  return await start("pipe-holder", `/proc/${(await one.ready).pid}/fd/1`, "held");
}

/** As a zombie it has ended, whoever reaps it. */
const runs = (pid: number): boolean => alive(pid) && !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));

const alive = (pid: number): boolean => processStart(pid) !== undefined;

/** The keeper makes a few descriptors ahead once it had nothing to do for 2 ms, and closes files on a thread of its own. */
async function idle(keeper: Keeper): Promise<void> {
  for (let turn = 0; turn < 25; turn++) {
    await keeper.openFile("/nonexistent").catch(() => undefined);
    await sleep(20);
  }
}

/** Waits in read(2) for the first message: what it was asked to run has run, and was reported. */
function servesCommands(pid: number): boolean {
  return readFileSync(`/proc/${pid}/syscall`, "utf8").startsWith("0 0x3 ");
}

/** Whether this process was given that descriptor beyond its standard ones, and hands it to whomever it starts. */
function isLeftOpen(fd: number): boolean {
  try {
    const [, flags = "0"] = /^flags:\s+(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8")) ?? [];
    return fd > 5 && (Number.parseInt(flags, 8) & CLOEXEC) === 0;
  } catch {
    return false;
  }
}

const CLOEXEC = 0o2000000;
const threadsOf = (pid: number): number => readdirSync(`/proc/${pid}/task`).length;
const descriptors = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;
const childrenOf = (pid: number): number[] =>
  readdirSync(`/proc/${pid}/task`)
    .flatMap((thread) => readFileSync(`/proc/${pid}/task/${thread}/children`, "utf8").trim().split(" "))
    .filter(Boolean)
    .map(Number);
/** But for those of tests in other files, which come and go meanwhile. */
const hostMounts = (): number =>
  readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .filter((line) => !line.includes(" - tmpfs thaw-test ")).length;
/** Cgroups of sandboxes; none where the keeper removed their parent with them. */
const pooled = (parents: CgroupParents): number =>
  Object.values(parents.dirs)
    .filter((path) => existsSync(path))
    .reduce((sum, path) => sum + readdirSync(path).filter((name) => /^h\d+$/.test(name)).length, 0);

describe("a husk", () => {
  let world: World;
  beforeAll(async () => {
    world = await World.open("husk");
  });
  afterAll(() => world.close());

  it("runs programs in order in a sandbox, under the pid that was asked for", async () => {
    const one = world.make(4242);
    const ready = await one.ready;
    expect(readFileSync(`/proc/${ready.pid}/status`, "utf8")).toMatch(/NSpid:\t\d+\t4242\n/);
    const code = await world.keeper.openFile(join(dir, "code"), "path");
    const results = await Promise.all([
      one.stage("n"),
      one.stage("t", [{ kind: "tree", file: code }]),
      one.stage("n"),
      one.stage("l", [{ kind: "control" }, { kind: "log" }]),
    ]);
    expect(results).toEqual([0, 0, 0, 0]);
    expect(await one.shell("echo $$ $PPID; cat /var/task/index.js; echo x > /var/task/x")).toMatch(
      /\d+ 4242\nthe code\n.*Read-only file system\n\d$/,
    );
    world.keeper.send(one.id, Buffer.from("exit 7"));
    expect(await one.exit).toMatchObject({ code: 7, signal: undefined, oomKills: 0 });
    expect(one.events.at(-1)).toBe("end");
    world.keeper.closeFile(code);
  });

  it("sends a log before the reply that it belongs to, every time", async () => {
    const one = await world.make().serve();
    for (let turn = 0; turn < 50; turn++) {
      const before = one.events.length;
      expect(await one.shell(`echo turn ${turn}`)).toBe(`turn ${turn}\n0`);
      expect(
        one.events
          .slice(before)
          .map((event) => event.slice(0, 4))
          .join(),
      ).toBe("log ,data");
    }
    await one.kill();
  });

  it("carries large requests and replies whole, and a flood of logs without losing a byte", async () => {
    const one = await world.make().serve();
    world.keeper.send(one.id, Buffer.from("big 6000000"));
    await until("6 MB of data", () => one.dataBytes >= 6_000_000);
    expect(one.dataBytes).toBe(6_000_000);
    expect(await one.shell("head -c 50000000 /dev/zero")).toMatch(/0$/);
    await until("50 MB of logs", () => one.logBytes >= 50_000_000);
    expect(one.logBytes).toBe(50_000_000);
    await one.kill();
  });

  it("that prints without end, while the server reads nothing, lets the reply of another come behind some megabytes", async () => {
    const [loud, quiet] = [await world.make().serve(), await world.make().serve()];
    // Like a server that is busy: nothing is read from the keeper.
    const busy = (): void => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500);
    world.keeper.send(loud.id, Buffer.from("head -c 1000000000 /dev/zero"));
    await until("it prints", () => loud.logBytes > 1_000_000);
    busy();
    const answered = quiet.shell("echo here");
    world.keeper.flush();
    busy();
    const before = loud.logBytes;
    expect(await answered).toBe("here\n0");
    expect(loud.logBytes - before).toBeLessThan(12 * 1024 * 1024);
    await Promise.all([loud.kill(), quiet.kill()]);
  });

  it("that holds its output pipe lets nobody wait but itself: others answer, and it goes on when it lets go", async () => {
    const [held, second, other] = [await world.make().serve(), await world.make().serve(), await world.make().serve()];
    const othersAnswer = async (what: string): Promise<void> => {
      for (let turn = 0; turn < 20; turn++) expect(await other.shell(`echo ${what} ${turn}`)).toBe(`${what} ${turn}\n0`);
    };
    // More than once: it is remembered, which is another way.
    for (let round = 0; round < 3; round++) {
      const holder = await holdOutput(held);
      let answered = false;
      const answer = held.shell("true").finally(() => (answered = true));
      await othersAnswer("one is held");
      const another = await holdOutput(second);
      const late = second.shell("true");
      await othersAnswer("two are held");
      expect(answered).toBe(false);
      await holder.release();
      expect(await answer).toBe("\u00000");
      expect(await held.shell("echo goes on")).toBe("goes on\n0");
      await another.release();
      expect(await late).toBe("\u00000");
    }
    const threads = /Threads:\s+(\d+)/.exec(readFileSync(`/proc/${world.keeper.pid}/status`, "utf8"))?.[1];
    expect(Number(threads)).toBeLessThanOrEqual(6);

    // Killed while it is held: its end is told once somebody can look at what it printed.
    const holder = await holdOutput(held);
    const lost = held.shell("true");
    await othersAnswer("one is held again");
    const killed = held.kill();
    await othersAnswer("one is killed");
    await holder.release();
    expect((await killed).signal).toBe(9);
    await lost;
    await Promise.all([second.kill(), other.kill()]);
  });

  it("that holds its output pipe does not hold up what came just before it looked", async () => {
    const held = await world.make().serve();
    const late = held.shell("sleep 0.1");
    const holder = await holdOutput(held);
    // Both are there when the keeper looks again, in this order.
    process.kill(world.keeper.pid, "SIGSTOP");
    const made = world.make();
    world.keeper.flush();
    await sleep(300);
    process.kill(world.keeper.pid, "SIGCONT");
    await made.ready;
    await holder.release();
    expect(await late).toBe("\u00000");
    await Promise.all([held.kill(), made.kill()]);
  });

  it.skipIf(!existsSync("/dev/fuse"))(
    "whose memory or files cannot be looked at for long holds up nobody: others answer, and who asked is told",
    async () => {
      const other = await world.make().serve();
      const mount = join(dir, "silent");
      mkdirSync(mount);
      const silent = await start("silent-mount", mount, "mounted");
      try {
        let told = false;
        const asked = world.keeper
          .openMapped(process.pid, `../../..${mount}/file`, "0:0:0")
          .catch((error: unknown) => error)
          .finally(() => (told = true));
        for (let turn = 0; turn < 20; turn++) expect(await other.shell(`echo ${turn}`)).toBe(`${turn}\n0`);
        expect(told).toBe(false);
        const kept = { code: "KEEPER_FAILED", why: "the function did not let go of it for 1000 ms" };
        expect(await asked).toMatchObject(kept);
        // No further thread waits for the same.
        const before = threadsOf(world.keeper.pid);
        const asking = [world.keeper.memory(process.pid), world.keeper.openMapped(process.pid, "0-0", "0:0:0")];
        for (const refused of asking) await expect(refused).rejects.toMatchObject(kept);
        expect(threadsOf(world.keeper.pid)).toBe(before);
      } finally {
        // Whoever looks at the directory waits for it, too.
        await silent.release();
      }
      expect(await other.shell("echo still")).toBe("still\n0");
      await until("the process to be looked at again", () => world.keeper.memory(process.pid).catch(() => undefined));
      const { pid } = await other.ready;
      expect(await world.keeper.memory(pid)).toMatch(/^Private_Dirty: +\d+ kB$/m);
      await world.keeper.closeUffd(other.id, pid);
      await expect(world.keeper.memory(0x7fff_ffff)).rejects.toMatchObject({ details: { errno: 2 } });
      await other.kill();
    },
  );

  it("keeps what is sent beyond the socket's buffer until the function reads", async () => {
    const one = await world.make().serve();
    world.keeper.send(one.id, Buffer.from("sleep 0.2"));
    await sleep(50);
    world.keeper.send(one.id, Buffer.alloc(40_000_000, "\n"));
    await until("the socket is full", () => one.events.includes("data 0\n"));
    expect(one.failures).toEqual([]);
    expect((await one.kill()).signal).toBe(9);
  });

  it("sees nothing of the host: files, processes, network, capabilities outside its namespace", async () => {
    const one = await world.make().serve();
    expect(await one.shell("echo /* /home/* /root/* /etc/*")).not.toMatch(/shadow|\/sys|\/boot|\/home\/\w/);
    expect(await one.shell("echo /proc/[0-9]*")).toMatch(/^(\/proc\/\d+ ?){2,4}\n0$/);
    expect(await one.shell("tail -n +3 /proc/net/dev | wc -l")).toBe("1\n0");
    expect(await one.shell("id -u; id -g; id -G; grep NoNewPrivs /proc/self/status")).toBe("1000\n1000\n1000\nNoNewPrivs:\t1\n0");
    expect(await one.shell("echo x > /proc/sys/kernel/hostname")).toMatch(/Permission denied|Read-only/);
    expect(
      await one.shell(
        "echo x > /etc/x; echo x > /usr/x; echo ok > /tmp/x; cat /tmp/x; kill -9 1; cat /proc/1/cgroup | sed 's/.*://' | sort | head -1",
      ),
    ).toMatch(/Read-only file system\n.*Read-only file system\nok\n.*[Oo]peration not permitted\n+\/\n0$/);
    // CAP_CHECKPOINT_RESTORE is at hand, for the numbers of threads.
    expect(await one.shell("cat /proc/1/status | grep 'Cap[PE]'")).toBe(
      "CapPrm:\t0000010000000000\nCapEff:\t0000000000000000\n0",
    );
    const host = (await one.ready).pid;
    expect(statSync(`/proc/${host}`).uid).toBe(UID);
    await one.kill();
  });

  it("is ended by its memory limit, which the exit tells, and the cgroup is as new for the next", async () => {
    const one = await world.make().serve();
    world.keeper.limits(one.id, limitWrites(world.parents.layout, { memoryMb: 32, cpus: 1, pids: 20 }));
    world.keeper.send(one.id, Buffer.from("eat 100000000"));
    const exit = await one.exit;
    expect(exit).toMatchObject({ signal: 9, code: undefined });
    expect(exit.oomKills).toBeGreaterThanOrEqual(1);
    expect(exit.peakBytes).toBeGreaterThan(30 << 20);
    expect(exit.peakBytes).toBeLessThanOrEqual(32 << 20);
    const next = await world.make().serve();
    expect(await next.shell("head -c 60000000 /dev/zero | tail -c 50000000 | wc -c")).toBe("50000000\n0");
    expect(await next.kill()).toMatchObject({ oomKills: 0 });
  });

  it("cannot have more processes than its limit", async () => {
    const one = await world.make().serve();
    world.keeper.limits(one.id, limitWrites(world.parents.layout, { memoryMb: 64, cpus: 1, pids: 4 }));
    expect(await one.shell("for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; true")).toMatch(/[Cc]annot fork/);
    await one.kill();
  });

  it("takes its background children with it when it exits", async () => {
    const one = await world.make().serve();
    await one.shell("sleep 1000 > /dev/null 2>&1 &");
    const init = (await one.ready).initPid;
    const inside = childrenOf(init).concat(childrenOf((await one.ready).pid));
    expect(inside.length).toBeGreaterThanOrEqual(1);
    world.keeper.send(one.id, Buffer.from("exit 0"));
    await one.exit;
    expect([init, ...inside].filter(alive)).toEqual([]);
  });

  it("that dies answers every outstanding stage, then exits", async () => {
    const one = world.make();
    await one.ready;
    expect(await Promise.all([one.stage("n"), one.stage("x"), one.stage("n")])).toEqual([0, -32, -32]);
    expect((await one.exit).code).toBe(9);
  });

  it("that has ended lets nobody wait for an answer, also who had not heard of its end", async () => {
    const one = world.make();
    await one.ready;
    await one.kill();
    await expect(one.stage("n")).rejects.toThrow("The sandbox ended before its stage was done");
    await expect(promised((told) => world.keeper.beginDelivery(one.id, [Buffer.from("x")], told))).rejects.toThrow(
      "The sandbox ended before its request was done",
    );
  });

  it("that was asked to be quiet reports with the first bytes it sends", async () => {
    const one = world.make();
    await one.ready;
    expect(await one.stage("n")).toBe(0);
    const quiet = one.stage("l", [{ kind: "control" }, { kind: "log" }], STAGE_QUIET);
    const { pid } = await one.ready;
    await until("it has reported", () => servesCommands(pid));
    await sleep(100);
    expect(one.events).toEqual(["stage 0"]);
    expect(await one.shell("echo hello")).toContain("hello");
    expect(await quiet).toBe(0);
    expect(one.events).toContain("log hello\n");
    expect(one.events.filter((event) => event.startsWith("stage"))).toEqual(["stage 0", "stage 0"]);
    expect(await one.shell("echo again")).toBe("again\n0");
    await one.kill();
  });

  it("that was asked to be quiet and ends before that is told of by then", async () => {
    const [dead, killed] = [world.make(), world.make()];
    await Promise.all([dead.ready, killed.ready]);
    expect(await dead.stage("x", [], STAGE_QUIET)).toBe(-32);
    expect((await dead.exit).code).toBe(9);
    const ran = killed.stage("l", [{ kind: "control" }, { kind: "log" }], STAGE_QUIET);
    const { pid } = await killed.ready;
    await until("it has reported", () => servesCommands(pid));
    expect(killed.events).toEqual([]);
    await killed.kill();
    expect(await ran).toBe(0);
  });

  it("gets a fresh network unless the last one was never used", async () => {
    const network = (ready: HuskReady): string => readlinkSync(`/proc/${ready.initPid}/ns/net`);
    const quiet = await world.make().serve();
    const first = network(await quiet.ready);
    await quiet.kill();
    const talker = await world.make().serve();
    expect(network(await talker.ready)).toBe(first);
    expect(
      await talker.shell(`node -e 'require("dgram").createSocket("udp4").send("x", 9, "127.0.0.1", () => process.exit())'`),
    ).toBe("0");
    await talker.kill();
    const next = await world.make().serve();
    expect(network(await next.ready)).not.toBe(first);
    expect(network(await next.ready)).not.toBe(readlinkSync("/proc/self/ns/net"));
    await next.kill();
  });

  it("opens what a process has mapped, and no other file that it has put there since it was looked at", async () => {
    const mapped = readFileSync("/proc/self/maps", "latin1")
      .split("\n")
      .flatMap((line) => /^(\S+) \S+ \S+ (\S+) ([1-9]\d*) +\//.exec(line)?.slice(1, 4).join(" ") ?? []);
    const files = new Map(mapped.map((text) => text.split(" ")).map(([at = "", device, inode]) => [`${device}:${inode}`, at]));
    expect(files.size).toBeGreaterThan(2);
    const names = [...files.keys()];
    for (const [index, name] of names.entries()) {
      const file = await world.keeper.openMapped(process.pid, files.get(name) ?? "", name);
      world.keeper.closeFile(file);
      const other = files.get(names[(index + 1) % names.length] ?? "") ?? "";
      await expect(world.keeper.openMapped(process.pid, other, name)).rejects.toThrow(/is another file by now/);
    }
  });

  it("is refused with the reason: pid, template, file, limit", async () => {
    await expect(world.make(0, 60).ready).rejects.toThrow(/no template 60/);
    await expect(world.make(1).ready).rejects.toThrow(/cannot make a sandbox: cannot clone the husk process.*File exists/);
    await expect(world.keeper.openFile("/nonexistent/file")).rejects.toThrow(/cannot open \/nonexistent\/file: No such file/);
    await expect(world.keeper.template([{ kind: "bind", source: "/nonexistent", target: "/x" }])).rejects.toThrow(
      /bind \/nonexistent \/x : No such file/,
    );
    const one = world.make();
    await one.ready;
    world.keeper.limits(one.id, [{ controller: Object.keys(world.parents.dirs)[0] ?? "", file: "no.such.file", value: "1" }]);
    await until("a failure is told", () => one.failures.length > 0);
    expect(one.failures[0]).toMatch(/cannot write 1 to no\.such\.file of controller/);
    await expect(stageOf(world.keeper, one.id, { program: 9999, fds: [], fdBase: 200 })).rejects.toThrow(/no such program/);
    expect(await one.stage("n")).toBe(0);
    await one.kill();
  });

  it("can be killed before it is made", async () => {
    const many = Array.from({ length: 8 }, () => world.make());
    for (const one of many) world.keeper.kill(one.id);
    const exits = await Promise.all(many.map((one) => Promise.allSettled([one.ready]).then(() => one.exit)));
    expect(exits.map(({ signal }) => signal)).toEqual(many.map(() => 9));
  });
});

describe("where cgroups have one tree", () => {
  const mount = "/sys/fs/cgroup/unified";
  it.skipIf(!existsSync(join(mount, "cgroup.procs")))(
    "a husk is cloned into its directory, which is removed at the end",
    async () => {
      const path = join(mount, "thaw", `${process.pid}-${processStart(process.pid)}-tree`);
      mkdirSync(path, { recursive: true });
      const world = await World.open("tree", {
        layout: { version: "v2", mounts: { unified: mount }, swapLimit: true },
        dirs: { unified: path },
      });
      const one = await world.make().serve();
      const { pid, initPid } = await one.ready;
      expect(readFileSync(join(path, "h0/cgroup.procs"), "utf8").trim().split("\n").map(Number)).toEqual([initPid, pid]);
      expect(await one.shell("grep ^0: /proc/self/cgroup")).toBe("0::/\n0");
      await one.kill();
      await world.make().serve();
      await world.close();
      expect(existsSync(path)).toBe(false);
    },
  );
});

describe("helpers", () => {
  it("get files as descriptors, and one without a name is gone with its last user", async () => {
    const world = await World.open("helper-files");
    const dir = mkdtempSync(join(tmpdir(), "thaw-helper-"));
    try {
      const files = await Promise.all([world.keeper.tempFile(dir), world.keeper.openFile("/etc/hostname")]);
      expect(readdirSync(dir)).toEqual([]);
      const { stdout } = await world.keeper.helper(
        [
          "/bin/sh",
          "-c",
          "echo kept >&3; stat -Lc '%a %h' /proc/self/fd/3; cmp - /etc/hostname <&4 && echo same; exec ls /proc/self/fd",
        ],
        { files },
      );
      const [mode, same, ...numbers] = stdout.toString().trimEnd().split("\n");
      expect([mode, same]).toEqual(["600 0", "same"]);
      // 0, 1, 2, the two given, that of the listing itself, and what who started these tests left open to everybody.
      expect(numbers.map(Number).filter((fd) => !isLeftOpen(fd))).toEqual([0, 1, 2, 3, 4, 5]);
      for (const file of files) world.keeper.closeFile(file);
      expect((await world.keeper.helper(["/bin/sh", "-c", "true <&3"])).code).not.toBe(0);
      await expect(world.keeper.helper(["/bin/true"], { files: [files[0] ?? 0] })).rejects.toThrow(/no file/);
      await expect(world.keeper.tempFile(join(dir, "nowhere"))).rejects.toThrow(/cannot make a file in .*nowhere: No such file/);
    } finally {
      rmSync(dir, { recursive: true });
      await world.close();
    }
  });

  it("are told to end, while they run and before their turn", async () => {
    const world = await World.open("helper-cancel");
    try {
      const cancel = new AbortController();
      const listens = join(dir, "listens");
      const script = `trap 'exit 7' TERM; echo > ${listens}; while :; do sleep 0.02; done`;
      const running = world.keeper.helper(["/bin/sh", "-c", script], { cancel: cancel.signal });
      await until("the helper listens", () => existsSync(listens));
      cancel.abort();
      expect((await running).code).toBe(7);
      const late = world.keeper.helper(["/bin/sleep", "30"], { cancel: cancel.signal });
      expect((await late).signal).toBe(15);
    } finally {
      await world.close();
    }
  });

  it("run to their end as root outside any sandbox, or are refused by name", async () => {
    const world = await World.open("helpers");
    const [echo, fail, big] = await Promise.all([
      world.keeper.helper(["/bin/sh", "-c", "id -u; pwd"]),
      world.keeper.helper(["/bin/sh", "-c", "exit 3"]),
      world.keeper.helper(["/bin/sh", "-c", "head -c 3000000 /dev/zero"]),
    ]);
    expect(echo).toMatchObject({ code: 0, stdout: Buffer.from("0\n/\n") });
    expect(fail).toMatchObject({ code: 3 });
    expect(big.stdout.length).toBe(3_000_000);
    await expect(world.keeper.helper(["/nonexistent/tool"])).rejects.toThrow(
      /cannot run \/nonexistent\/tool: No such file or directory/,
    );
    await world.close();
  });
});

describe("over time", () => {
  it("200 husks made and killed leave processes, host mounts, cgroups and descriptors as they were", async () => {
    const world = await World.open("flat");
    const cycle = async (): Promise<void> => {
      const one = await world.make().serve();
      expect(await one.shell("echo hi")).toBe("hi\n0");
      await one.kill();
    };
    for (let count = 0; count < 10; count++) await cycle();
    await idle(world.keeper);
    const builder = childrenOf(world.keeper.pid)[0] ?? 0;
    const look = (): object => ({
      children: childrenOf(world.keeper.pid),
      descriptors: [descriptors(world.keeper.pid), descriptors(builder)],
      mounts: hostMounts(),
      cgroups: pooled(world.parents),
    });
    const before = look();
    for (let count = 0; count < 200; count++) await cycle();
    await until("all is as it was", () => isDeepStrictEqual(look(), before)).catch(() => undefined);
    expect(look()).toEqual(before);
    await world.close();
  });
});

describe("the end", () => {
  it("of the server's socket ends every sandbox and helper, and removes the cgroups", async () => {
    const world = await World.open("closed");
    const all = await Promise.all(Array.from({ length: 5 }, () => world.make().serve()));
    const pids = (await Promise.all(all.map((one) => one.ready))).flatMap(({ pid, initPid }) => [pid, initPid]);
    const helper = world.keeper.helper(["/bin/sleep", "1000"]).catch((error: Error) => error);
    await until("the helper runs", () => childrenOf(world.keeper.pid).length === 7);
    const everyone = [...pids, ...childrenOf(world.keeper.pid), world.keeper.pid];
    expect(pooled(world.parents)).toBeGreaterThan(0);
    await world.keeper.close();
    expect(everyone.filter(alive)).toEqual([]);
    expect(pooled(world.parents)).toBe(0);
    expect(world.lost).toBe("");
    expect(await helper).toBeInstanceOf(Error);
    await removeParents(world.parents);
    expect(Object.values(world.parents.dirs).filter(existsSync)).toEqual([]);
  });

  it("of a keeper by SIGKILL leaves no process, tells the server, and the next server sweeps its cgroups", async () => {
    const world = await World.open("killed");
    const all = await Promise.all(Array.from({ length: 5 }, () => world.make().serve()));
    await all[0]?.shell("sleep 1000 > /dev/null 2>&1 &");
    const pids = (await Promise.all(all.map((one) => one.ready))).flatMap(({ pid, initPid }) => [
      pid,
      initPid,
      ...childrenOf(pid),
    ]);
    const everyone = [...pids, ...childrenOf(world.keeper.pid)];
    process.kill(world.keeper.pid, "SIGKILL");
    expect((await Promise.all(all.map((one) => one.exit))).map(({ signal }) => signal)).toEqual([9, 9, 9, 9, 9]);
    await until("everyone is gone", () => everyone.filter(alive).length === 0);
    expect(world.lost).toMatch(/it was killed by SIGKILL/);
    await expect(world.make().ready).rejects.toThrow(/The keeper .* failed/);
    expect(pooled(world.parents)).toBeGreaterThan(0);
    // What a server with another pid would have left.
    for (const [name, path] of Object.entries(world.parents.dirs)) {
      const mount = world.parents.layout.mounts[name] ?? "";
      mkdirSync(join(mount, "thaw", "999999999-1", "h0"), { recursive: true });
      expect(path.startsWith(mount)).toBe(true);
    }
    expect(await sweepCgroups(world.parents.layout)).toBeGreaterThanOrEqual(Object.keys(world.parents.dirs).length);
    expect(pooled(world.parents)).toBeGreaterThan(0);
    await removeParents(world.parents);
  });

  it("of a keeper by SIGKILL, or SIGTERM, while one of its threads waits for a function ends all others at once", async () => {
    for (const signal of ["SIGKILL", "SIGTERM"] as const) {
      const world = await World.open(`held-${signal.toLowerCase()}`);
      const [held, other] = [await world.make().serve(), await world.make().serve()];
      const holder = await holdOutput(held);
      const late = held.shell("true");
      expect(await other.shell("echo here")).toBe("here\n0");
      const { pid, initPid } = await other.ready;
      process.kill(world.keeper.pid, signal);
      // Not the one that is held: it has that pipe open, and to close it takes the same lock.
      await until("the other is gone", () => [pid, initPid].filter(runs).length === 0);
      await holder.release();
      expect((await other.exit).signal).toBe(9);
      await late;
      expect(world.lost).toMatch(signal === "SIGKILL" ? /it was killed by SIGKILL/ : /it exited with code 0/);
      await removeParents(world.parents);
    }
  });

  it("of a child interrupts no thread: what a parent has blocked, the kernel tells another", async () => {
    const world = await World.open("signals");
    await world.make().serve();
    const SIGCHLD = 1n << 16n;
    const threads = readdirSync(`/proc/${world.keeper.pid}/task`).map((thread) => `/proc/${world.keeper.pid}/task/${thread}`);
    const parents = threads.filter((thread) => readFileSync(`${thread}/children`, "utf8") !== "");
    expect(parents).toHaveLength(1);
    for (const thread of parents) {
      const blocked = /^SigBlk:\s+(\w+)$/m.exec(readFileSync(`${thread}/status`, "utf8"))?.[1];
      expect(BigInt(`0x${blocked}`) & SIGCHLD).toBe(0n);
    }
    await world.keeper.close();
    await removeParents(world.parents);
  });

  it("before it began is told with the reason", async () => {
    await expect(Keeper.start({ binary: "/nonexistent/keeper" })).rejects.toThrow(
      /The keeper \(\/nonexistent\/keeper\) failed.*ENOENT.*npm run build/s,
    );
    await expect(Keeper.start({ binary: "/bin/false" })).rejects.toThrow(/exited with code 1/);
  });
});
