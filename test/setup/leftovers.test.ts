import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, expect, it } from "vitest";
import { findLeftovers, type MachineFacts, type ProcessFacts, RUN_MARK, readMachine } from "./leftovers.js";

const context = { mark: "run-1", runnerPid: 500, root: "/srv/thaw" };
const init: ProcessFacts = { pid: 1, parent: 0, started: "1", exe: "/sbin/init", command: "init", environment: "" };
const shell: ProcessFacts = {
  pid: 400,
  parent: 1,
  started: "40",
  exe: "/bin/bash",
  command: "bash",
  environment: "HOME=/root\0",
};
const runner: ProcessFacts = { ...shell, pid: 500, parent: 400, started: "50", command: "node vitest run" };

function machine(processes: ProcessFacts[], mounts: string[] = [], cgroups: string[] = []): MachineFacts {
  return {
    processes: new Map(processes.map((facts) => [facts.pid, facts])),
    mounts: new Set(mounts),
    cgroups: new Set(cgroups),
  };
}

const before = machine([init, shell, runner], ["8:1 / /thaw-old rw"], ["/sys/fs/cgroup/memory/thaw-old"]);

function leftovers(added: ProcessFacts[], mounts: string[] = [], cgroups: string[] = []): string[] {
  const after = machine([init, shell, runner, ...added], [...before.mounts, ...mounts], [...before.cgroups, ...cgroups]);
  return findLeftovers(before, after, context);
}

describe("after the suite", () => {
  it("is content when nothing is new, whatever was there before", () => {
    expect(leftovers([])).toEqual([]);
  });

  it("names a process with the run's mark, and its unmarked children", () => {
    const server = {
      ...shell,
      pid: 600,
      parent: 1,
      started: "60",
      command: "node server",
      environment: `A=1\0${RUN_MARK}=run-1\0`,
    };
    const child = { ...shell, pid: 601, parent: 600, started: "61", command: "function", environment: "" };
    expect(leftovers([server, child])).toEqual(["process 600 (parent 1): node server", "process 601 (parent 600): function"]);
  });

  it("names an orphan that runs one of our programs without the mark", () => {
    const keeper = {
      ...shell,
      pid: 600,
      parent: 1,
      started: "60",
      exe: "/srv/thaw/native/build/keeper",
      command: "keeper",
      environment: "",
    };
    const husk = { ...keeper, pid: 601, parent: 600, started: "61", exe: "/run/thaw/husk", command: "husk" };
    expect(leftovers([keeper, husk])).toHaveLength(2);
  });

  it("lets somebody else's server be: an ancestor of it lived before the suite", () => {
    const keeper = {
      ...shell,
      pid: 600,
      parent: 400,
      started: "60",
      exe: "/srv/thaw/native/build/keeper",
      environment: `${RUN_MARK}=run-2\0`,
    };
    expect(leftovers([keeper])).toEqual([]);
  });

  it("is not fooled by a pid that was used again", () => {
    const reused = { ...shell, started: "70", parent: 1, environment: `${RUN_MARK}=run-1\0` };
    const after = machine([init, runner, reused], [...before.mounts], [...before.cgroups]);
    expect(findLeftovers(before, after, context)).toEqual(["process 400 (parent 1): bash"]);
  });

  it("lets the runner's own workers end by themselves", () => {
    const worker = { ...runner, pid: 700, parent: 500, started: "70", environment: `${RUN_MARK}=run-1\0` };
    expect(leftovers([worker])).toEqual([]);
  });

  it("names new mounts and cgroups", () => {
    expect(leftovers([], ["8:1 / /tmp/thaw-x rw"], ["/sys/fs/cgroup/memory/thaw/h0"])).toEqual([
      "mount 8:1 / /tmp/thaw-x rw",
      "cgroup /sys/fs/cgroup/memory/thaw/h0",
    ]);
  });

  it("names the cgroups of a server that is gone or ours, and lets those of somebody else's be", () => {
    const theirs = { ...shell, pid: 600, parent: 400, started: "60", command: "node server" };
    const dirs = ["/sys/fs/cgroup/memory/thaw", "/sys/fs/cgroup/memory/thaw/600-60", "/sys/fs/cgroup/memory/thaw/600-60/h0"];
    expect(leftovers([theirs], [], dirs)).toEqual([]);
    expect(leftovers([], [], dirs)).toHaveLength(3);
    expect(leftovers([{ ...theirs, started: "61" }], [], dirs)).toHaveLength(3);
    expect(leftovers([{ ...theirs, environment: `${RUN_MARK}=run-1\0` }], [], dirs)).toHaveLength(4);
    expect(leftovers([theirs], [], [...dirs, "/sys/fs/cgroup/memory/thaw/7-7"])).toEqual([
      "cgroup /sys/fs/cgroup/memory/thaw/7-7",
    ]);
  });

  it("sees a real process that outlives its test", async () => {
    const earlier = readMachine();
    // Other tests run beside this one, and make cgroups and mounts.
    const now = (): MachineFacts => ({ ...earlier, processes: readMachine().processes });
    const child = spawn("sleep", ["60"], { env: { [RUN_MARK]: "run-real", PATH: process.env["PATH"] ?? "" }, detached: true });
    try {
      await once(child, "spawn");
      const found = findLeftovers(earlier, now(), { ...context, mark: "run-real" });
      expect(found).toEqual([`process ${child.pid} (parent ${process.pid}): sleep 60`]);
    } finally {
      child.kill("SIGKILL");
      await once(child, "exit");
    }
    expect(findLeftovers(earlier, now(), { ...context, mark: "run-real" })).toEqual([]);
  });
});
