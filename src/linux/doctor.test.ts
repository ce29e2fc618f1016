import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { probeCgroups } from "./cgroups.js";
import type { CpuLatencyInfo } from "./cpu-latency.js";
import { type Check, type MachineReport, probeMachine } from "./doctor.js";
import { readCgroupLayout } from "./doctor-cgroups.js";
import { type CommandResult, type Machine, thisMachine } from "./doctor-machine.js";
import type { Interpreter } from "./interpreters.js";

const ALL_CAPABILITIES = "000001ffffffffff";
const MOUNTS_V2 = "/dev/sda1 / ext4 rw,relatime 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
const MOUNTS_HYBRID = [
  "/dev/sda1 / ext4 rw,relatime 0 0",
  "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0",
  "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0",
  "cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0",
  "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0",
].join("\n");

const FILES: Readonly<Record<string, string>> = {
  "/proc/sys/kernel/osrelease": "6.12.9-amd64\n",
  "/proc/self/status": `Uid:\t0\t0\t0\t0\nCapEff:\t${ALL_CAPABILITIES}\n`,
  "/proc/sys/kernel/ns_last_pid": "1\n",
  "/proc/self/ns/time": "",
  "/proc/sys/kernel/seccomp/actions_avail": "kill_process errno allow\n",
  "/proc/self/mounts": MOUNTS_V2,
  "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
  "/proc/sys/kernel/pid_max": "4194304\n",
  "/proc/self/limits": "Max open files            20000                20000                files\n",
  "/proc/sys/user/max_user_namespaces": "96365\n",
  "/proc/sys/vm/overcommit_memory": "0\n",
};

interface Changes extends Partial<Machine> {
  readonly files?: Readonly<Record<string, string | undefined>>;
  readonly commands?: Readonly<Record<string, CommandResult>>;
  readonly unshare?: (args: readonly string[]) => CommandResult;
}

const NODE: Interpreter = {
  id: "nodejs20.x",
  language: "node",
  path: "/usr/bin/node",
  version: "20.19.0",
  prefixes: [],
  libraries: [],
};
const PYTHON: Interpreter = { ...NODE, id: "python3.11", language: "python", path: "/usr/bin/python3.11", version: "3.11.2" };

const YES: CommandResult = { ok: true, missing: false, output: "" };
const ABSENT: CommandResult = { ok: false, missing: true, output: "not found" };

/** A machine on which everything is well, but for `changes`. */
function machineWith(changes: Changes = {}): Machine {
  const { files: changedFiles, commands, unshare, ...rest } = changes;
  const files: Readonly<Record<string, string | undefined>> = { ...FILES, ...changedFiles };
  const answers: Readonly<Record<string, CommandResult>> = {
    gcc: YES,
    make: YES,
    "/opt/thaw/native/build/extractor": { ...YES, output: '{"ok":true,"served":true,"writes":"again"}' },
    ...commands,
  };
  return {
    platform: "linux",
    arch: "x64",
    read: async (path) => files[path],
    exists: async (path) => files[path] !== undefined,
    isExecutable: async () => true,
    nearestDirectory: async (path) => path,
    run: async (command, args) => (command === "/usr/bin/unshare" ? (unshare?.(args) ?? YES) : (answers[command] ?? ABSENT)),
    tryDirectory: async () => undefined,
    trySparseFile: async () => undefined,
    tryMapFiles: async () => undefined,
    freeBytes: async () => 50e9,
    cpuLatency: () => ({ driver: "intel_idle", us: 0 }),
    interpreters: async () => [NODE, PYTHON],
    ...rest,
  };
}

async function probe(changes: Changes = {}): Promise<MachineReport & { failed: Check[]; check(name: string): Check }> {
  const report = await probeMachine({ machine: machineWith(changes), dataDir: "/srv/data", nativeDir: "/opt/thaw/native/build" });
  const check = (name: string): Check => {
    const found = report.checks.find((item) => item.name === name);
    if (found === undefined) throw new Error(`there is no check ${name}`);
    return found;
  };
  return { ...report, failed: report.checks.filter((item) => !item.ok), check };
}

describe("the doctor", () => {
  it("finds nothing wrong with a machine on which everything is well", async () => {
    const report = await probe();
    expect(report.failed).toEqual([]);
    expect(report.ok).toBe(true);
    expect(report.canFreeze).toBe(true);
    expect(report.check("cgroups").says).toBe("Control groups can be made (version 2 at /sys/fs/cgroup: memory, cpu, pids).");
  });

  it("gives a fix with everything that is not well, and none with what is", async () => {
    const report = await probe({
      files: { "/proc/self/mounts": "", "/proc/sys/vm/overcommit_memory": "2" },
      freeBytes: async () => 1e9,
    });
    expect(report.failed.map((check) => check.name)).toEqual(["cgroups", "disk", "overcommit"]);
    for (const check of report.failed) expect(check.fix, check.name).toBeTruthy();
    for (const name of ["kernel", "data"]) expect(report.check(name).fix).toBeUndefined();
  });

  it("stops at the first question elsewhere than on Linux", async () => {
    const report = await probe({ platform: "darwin", arch: "arm64" });
    expect(report.canFreeze).toBe(false);
    expect(report.failed).toHaveLength(1);
    expect(report.check("platform").says).toBe("This is darwin on arm64: functions run only on Linux on x86-64.");
    expect([report.canBoot, report.check("platform").fix]).toEqual([
      false,
      "Run thaw on such a machine: `thaw serve --boot-only`, which needs no freezing, needs one too.",
    ]);
  });

  it.each([
    [
      "No such file or directory",
      "Boot Linux 6.7 or newer, built with CONFIG_USERFAULTFD; in a container, pass /dev/userfaultfd in.",
    ],
    ["Permission denied", "Run as root."],
  ])("says why working sets cannot be recorded exactly (%s), which keeps nothing from running", async (error, fix) => {
    const why = `cannot open /dev/userfaultfd: ${error}`;
    const output = JSON.stringify({ ok: false, code: "unsupported", why, served: false, writes: "again" });
    const report = await probe({ commands: { "/opt/thaw/native/build/extractor": { ok: true, missing: false, output } } });
    expect(report).toMatchObject({ ok: true, canFreeze: true });
    expect(report.failed.map(({ name }) => name)).toEqual(["recording"]);
    expect(report.check("recording").says).toBe(
      `Working sets cannot be recorded exactly (${why}): pages beside those that a function touches count too, and starts from a cold disk read more.`,
    );
    expect(report.check("recording").fix).toBe(fix);
  });

  it.each([
    ["again", true, "Memory can be copied while its process runs: what it writes meanwhile is noted (userfaultfd)."],
    ["once", true, "Memory can be copied while its process runs: what it writes meanwhile is noted (soft-dirty bits)."],
    [
      "no",
      false,
      "What a process writes cannot be noted: it stands still while all of its memory is copied, and no image can be taken of an instance that goes on serving.",
    ],
  ])("says how writes are noted (%s), without which functions are frozen all the same", async (writes, ok, says) => {
    const output = JSON.stringify({ ok: true, served: true, writes });
    const report = await probe({ commands: { "/opt/thaw/native/build/extractor": { ok: true, missing: false, output } } });
    expect(report).toMatchObject({ ok: true, canFreeze: true });
    expect(report.check("writes")).toMatchObject({ ok, says });
  });

  it.each(["4.19.0-27-amd64", "5.13.19", "unknown"])("refuses kernel %s, with the reason", async (release) => {
    const report = await probe({ files: { "/proc/sys/kernel/osrelease": `${release}\n` } });
    expect(report.canFreeze).toBe(false);
    expect(report.check("kernel").says).toBe(
      `Linux ${release} is too old: pages are copied ahead with MADV_POPULATE_WRITE, which came with 5.14.`,
    );
  });

  it.each(["6.1.0-56-amd64", "6.7.0", "6.18.5", "7.0.0-rc1", "10.1"])("accepts kernel %s", async (release) => {
    const says = `Linux ${release} is new enough (6.1).`;
    expect((await probe({ files: { "/proc/sys/kernel/osrelease": release } })).check("kernel")).toMatchObject({ ok: true, says });
  });

  it.each(["5.14.0-503.el9.x86_64", "5.15.0-130-generic"])("lets kernel %s try, and says so", async (release) => {
    const report = await probe({ files: { "/proc/sys/kernel/osrelease": release } });
    expect(report.canFreeze).toBe(true);
    expect(report.check("kernel").says).toBe(`Linux ${release} is older than any with which thaw was tried (6.1), and may do.`);
  });

  it("says to a user who is not root what root is needed for", async () => {
    const report = await probe({ files: { "/proc/self/status": "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n" } });
    expect(report.canFreeze).toBe(false);
    const { says, fix } = report.check("privileges");
    expect(says).toMatch(/^Running as user 1000, not as root, without CAP_CHOWN \(to give files/);
    expect(says).toContain("CAP_SYS_PTRACE (to stop a process and read its memory)");
    expect(fix).toBe("Run as root (sudo): `thaw serve --boot-only` needs that too.");
  });

  it("names the one capability that a container's root lacks", async () => {
    const held = (BigInt(`0x${ALL_CAPABILITIES}`) & ~(1n << 21n)).toString(16);
    const { says, fix } = (await probe({ files: { "/proc/self/status": `Uid:\t0\t0\t0\t0\nCapEff:\t${held}\n` } })).check(
      "privileges",
    );
    expect(says).toBe("Running as root, without CAP_SYS_ADMIN (to make namespaces and mounts, and open mapped files).");
    expect(fix).toContain("--privileged");
  });

  it("says which namespace was refused, in the kernel's words", async () => {
    const refuseNet = (args: readonly string[]): CommandResult =>
      args.includes("--net") ? { ok: false, missing: false, output: "unshare failed: No space left on device" } : YES;
    const report = await probe({ unshare: refuseNet });
    expect(report.canFreeze).toBe(false);
    expect(report.check("namespaces").says).toBe(
      "A child with its own namespaces could not be made (refused: net): unshare failed: No space left on device.",
    );
  });

  it("knows the switch that turns user namespaces off", async () => {
    const report = await probe({ files: { "/proc/sys/user/max_user_namespaces": "0\n" } });
    expect(report.check("namespaces").fix).toContain("sysctl -w user.max_user_namespaces=10000");
  });

  it("says what it could not try when unshare is not installed", async () => {
    const spaces = Object.fromEntries(
      ["user", "pid", "mnt", "ipc", "uts", "net", "cgroup"].map((kind) => [`/proc/self/ns/${kind}`, ""]),
    );
    expect((await probe({ unshare: () => ABSENT, files: spaces })).check("namespaces").says).toContain("not tried");
    const partly = await probe({ unshare: () => ABSENT, files: { ...spaces, "/proc/self/ns/user": undefined } });
    expect(partly.check("namespaces").says).toBe("The kernel lacks user namespaces.");
  });

  it("can do without time namespaces, and says what is lost", async () => {
    const report = await probe({
      unshare: (args) => (args.includes("--time") ? ABSENT : YES),
      files: { "/proc/self/ns/time": undefined },
    });
    expect(report.ok).toBe(true);
    expect(report.check("time namespace").says).toContain("Images cannot be thawed after this machine has rebooted");
  });

  it.each([
    [
      "a kernel without CONFIG_CHECKPOINT_RESTORE",
      { files: { "/proc/sys/kernel/ns_last_pid": undefined } },
      "checkpoint",
      "built without",
    ],
    ["map_files that cannot be opened", { tryMapFiles: async () => "EPERM" }, "checkpoint", "/proc/PID/map_files: EPERM"],
    ["Yama's strictest scope", { files: { "/proc/sys/kernel/yama/ptrace_scope": "3\n" } }, "ptrace", "until the next boot"],
    [
      "a kernel without seccomp filters",
      { files: { "/proc/sys/kernel/seccomp/actions_avail": undefined } },
      "seccomp",
      "cannot filter",
    ],
  ] as [string, Changes, string, string][])("refuses %s", async (_, changes, name, words) => {
    const report = await probe(changes);
    expect(report.failed.map((check) => check.name)).toEqual([name]);
    expect(report.check(name).says).toContain(words);
    expect(report.canFreeze).toBe(false);
  });

  it("is content with Yama's scope 2", async () => {
    expect((await probe({ files: { "/proc/sys/kernel/yama/ptrace_scope": "2\n" } })).check("ptrace").ok).toBe(true);
  });

  it("names missing helpers and missing tools, and what to install", async () => {
    const report = await probe({ isExecutable: async (path) => !path.endsWith("husk"), commands: { gcc: ABSENT } });
    expect(report.check("native").says).toBe(
      "Native helpers are missing in /opt/thaw/native/build: husk, and gcc to build them is missing too.",
    );
    expect(report.check("native").fix).toBe("apt-get install gcc make libc6-dev, then npm run build.");
  });

  it("wants one interpreter at least; a machine without any can freeze, but not serve", async () => {
    const two = await probe();
    expect(two.check("interpreters").says).toBe(
      "Functions can use nodejs20.x (20.19.0 at /usr/bin/node), python3.11 (3.11.2 at /usr/bin/python3.11).",
    );
    expect(two.interpreters).toEqual([NODE, PYTHON]);
    const none = await probe({ interpreters: async () => [] });
    expect(none.check("interpreters").fix).toBe("apt-get install nodejs python3");
    expect([none.ok, none.canFreeze]).toEqual([false, true]);
  });

  it("does not count an interpreter that lies where functions have a directory of their own", async () => {
    const node = { ...NODE, id: "nodejs24.x", version: "24.1.0", path: "/tmp/node/bin/node" };
    const one = (await probe({ interpreters: async () => [node, PYTHON] })).check("interpreters");
    expect(one.says).toBe(
      "Functions can use python3.11 (3.11.2 at /usr/bin/python3.11). nodejs24.x (24.1.0 at /tmp/node/bin/node) is not used: functions have a /tmp of their own.",
    );
    expect(one.ok).toBe(true);
    expect((await probe({ interpreters: async () => [node] })).check("interpreters").ok).toBe(false);
  });

  it("says where pages that rest are taken back, and after how long", async () => {
    const scheme = "/sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/schemes";
    const files = {
      "/sys/kernel/mm/damon/admin/kdamonds/0/state": "on\n",
      "/sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/monitoring_attrs/intervals/aggr_us": "5000000\n",
      [`${scheme}/0/action`]: "stat\n",
      [`${scheme}/1/action`]: "pageout\n",
      [`${scheme}/1/access_pattern/age/min`]: "6\n",
    };
    const report = await probe({ files });
    expect(report.ok).toBe(true);
    expect(report.check("page cache").says).toContain("Pages that nobody touched for 30 s are paged out (DAMON)");
    const off = await probe({ files: { ...files, "/sys/kernel/mm/damon/admin/kdamonds/0/state": "off\n" } });
    expect(off.check("page cache").ok).toBe(true);
    const module = "/sys/module/damon_reclaim/parameters";
    const both = await probe({ files: { ...files, [`${module}/enabled`]: "Y\n", [`${module}/min_age`]: "12000000\n" } });
    expect(both.check("page cache").says).toContain("for 12 s");
  });

  it("says where free memory is given back to a host", async () => {
    const features = (reporting: "0" | "1") => `01100${reporting}01${"0".repeat(56)}\n`;
    const balloon = {
      "/sys/bus/virtio/devices/virtio3/device": "0x0005\n",
      "/sys/bus/virtio/devices/virtio0/device": "0x0002\n",
    };
    const file = "/sys/bus/virtio/devices/virtio3/features";
    const report = await probe({ files: { ...balloon, [file]: features("1") } });
    expect(report.ok).toBe(true);
    expect(report.check("free memory").says).toContain("Free memory is given back to the host (free page reporting)");
    expect((await probe({ files: { ...balloon, [file]: features("0") } })).check("free memory").ok).toBe(true);
    const disk = { "/sys/bus/virtio/devices/virtio0/features": features("1") };
    expect((await probe({ files: { ...balloon, ...disk } })).check("free memory").ok).toBe(true);
  });

  it("refuses a data directory mounted noexec, and says where", async () => {
    const report = await probe({ files: { "/proc/self/mounts": `${MOUNTS_V2}tmpfs /srv tmpfs rw,noexec 0 0\n` } });
    expect(report.check("data").says).toContain("is on /srv, which is mounted noexec");
    const other = await probe({ files: { "/proc/self/mounts": `${MOUNTS_V2}tmpfs /sr tmpfs rw,noexec 0 0\n` } });
    expect(other.check("data").ok).toBe(true);
  });

  it("refuses a file system that takes no large sparse file, and a directory that cannot be written", async () => {
    const tooSmall = (await probe({ trySparseFile: async () => "EFBIG" })).check("data");
    expect(tooSmall.says).toBe("The data directory /srv/data is on ext4, which takes no sparse file of 8 TiB.");
    // One below 512 MiB is made with blocks of 1 KiB.
    expect(tooSmall.fix).toContain("mkfs.ext4 -b 4096");
    expect((await probe({ trySparseFile: async () => "EROFS" })).check("data").says).toContain(
      "No file can be written in /srv/data",
    );
  });

  it("says whether functions can run by boot with such a data directory", async () => {
    const canBoot = async (error: string) => (await probe({ trySparseFile: async () => error })).canBoot;
    expect([await canBoot("EFBIG"), await canBoot("EROFS")]).toEqual([true, false]);
    const file = { nearestDirectory: async () => "/srv", exists: async (path: string) => path === "/srv/data" };
    expect((await probe(file)).canBoot).toBe(false);
  });

  it("refuses a data directory where a file is in its place or above it", async () => {
    const options = { nearestDirectory: async () => "/srv", exists: async (path: string) => path === "/srv/data" };
    expect((await probe(options)).check("data")).toMatchObject({
      ok: false,
      says: "The data directory /srv/data cannot be made: /srv/data is a file.",
    });
    expect((await probe({ ...options, exists: async () => false })).check("data").ok).toBe(true);
  });

  it("takes a full disk for no reason why nothing could be frozen: a server that ended on it has to come back", async () => {
    const full = await probe({ trySparseFile: async () => "ENOSPC", freeBytes: async () => 0 });
    expect([full.canFreeze, full.ok, full.failed.map(({ name }) => name)]).toEqual([true, false, ["disk"]]);
    expect(full.check("data").says).toBe("The data directory /srv/data (ext4) is full.");
  });

  it("warns of little disk, and refuses next to none", async () => {
    const little = await probe({ freeBytes: async () => 1024 ** 3 });
    expect([little.ok, little.check("disk").says]).toEqual([true, "Only 1 GiB are free for code and images."]);
    expect((await probe({ freeBytes: async () => 1e6 })).ok).toBe(false);
  });

  it("says whether idle processors could be kept awake", async () => {
    const at = async (info: CpuLatencyInfo) => (await probe({ cpuLatency: () => info })).check("idle processors");
    expect(await at({ driver: "haltpoll", us: 0 })).toMatchObject({
      ok: true,
      says: expect.stringContaining("`serve --cpu-latency 0` keeps"),
    });
    expect(await at({ driver: "haltpoll", why: "there is no /dev/cpu_dma_latency here" })).toMatchObject({
      ok: true,
      says: "They sleep as deeply as they like, and cannot be kept from it: there is no /dev/cpu_dma_latency here.",
    });
  });

  it("advises on low limits without refusing", async () => {
    const report = await probe({
      files: {
        "/proc/sys/kernel/pid_max": "1024\n",
        "/proc/self/limits": "Max open files            1024                 524288               files\n",
        "/proc/sys/user/max_net_namespaces": "16\n",
      },
    });
    expect(report.ok).toBe(true);
    expect(report.check("limits").says).toContain(
      "kernel.pid_max is 1024, this process may open 1024 files, user.max_net_namespaces is 16",
    );
  });
});

describe("cgroups", () => {
  it("are found in a hybrid layout, where version 2 has no controller of ours", async () => {
    const report = await probe({
      files: { "/proc/self/mounts": MOUNTS_HYBRID, "/sys/fs/cgroup/unified/cgroup.controllers": "hugetlb\n" },
    });
    expect(report.check("cgroups").says).toBe(
      "Control groups can be made (version 1, one hierarchy for each controller: memory, cpu, pids).",
    );
    expect(await readCgroupLayout(MOUNTS_HYBRID, async () => "hugetlb\n")).toEqual({
      version: 1,
      mounts: { memory: "/sys/fs/cgroup/memory", cpu: "/sys/fs/cgroup/cpu,cpuacct", pids: "/sys/fs/cgroup/pids" },
      missing: [],
    });
  });

  it("name the controller that is missing in either version", async () => {
    const v2 = await probe({ files: { "/sys/fs/cgroup/cgroup.controllers": "cpu pids\n" } });
    expect(v2.check("cgroups").says).toBe("The memory controller is not available in cgroup version 2 at /sys/fs/cgroup.");
    const v1 = await probe({ files: { "/proc/self/mounts": MOUNTS_HYBRID.replace("rw,pids", "rw,blkio") } });
    expect(v1.check("cgroups").fix).toBe("Mount it: mount -t cgroup -o pids none /sys/fs/cgroup/pids");
  });

  it("of a container of its own are told to be full of processes, and what to do", async () => {
    const container = { "/sys/fs/cgroup/cgroup.type": "domain\n", "/sys/fs/cgroup/cgroup.procs": "1\n7\n" };
    const report = await probe({ files: { ...container, "/sys/fs/cgroup/cgroup.subtree_control": "memory pids\n" } });
    expect(report.check("cgroups").says).toBe(
      "Processes live in /sys/fs/cgroup itself, which is a container's cgroup and not the root: from there the kernel lends no controllers to cgroups below.",
    );
    expect(report.check("cgroups").fix).toMatch(/--cgroupns=host.*mkdir \/sys\/fs\/cgroup\/init/);
    expect([report.canFreeze, report.canBoot]).toEqual([false, false]);
    const lent = await probe({ files: { ...container, "/sys/fs/cgroup/cgroup.subtree_control": "cpu memory pids\n" } });
    const moved = await probe({ files: { ...container, "/sys/fs/cgroup/cgroup.procs": "" } });
    expect([lent.check("cgroups").ok, moved.check("cgroups").ok]).toEqual([true, true]);
  });

  it("must be writable", async () => {
    const report = await probe({ tryDirectory: async () => "EROFS" });
    expect(report.check("cgroups").says).toBe("A cgroup cannot be made in /sys/fs/cgroup: EROFS.");
    expect(report.canFreeze).toBe(false);
  });
});

describe("this machine", () => {
  it("answers every question with a sentence, and whatever is wrong with a fix", async () => {
    const machine = thisMachine();
    const report = await probeMachine({ dataDir: "/nonexistent/deep/data" });
    expect(report.checks.length).toBeGreaterThan(10);
    for (const check of report.checks) {
      expect(check.says, check.name).toMatch(/^[A-Z0-9].*\.$/s);
      if (!check.ok) expect(check.fix, check.name).toBeTruthy();
    }
    expect(await machine.nearestDirectory("/nonexistent/deep/data")).toBe("/");
  });

  it("finds the cgroups that the engine would use, or fails as the engine would", async () => {
    const found = await readCgroupLayout(readFileSync("/proc/self/mounts", "utf8"), (mount) =>
      thisMachine().read(`${mount}/cgroup.controllers`),
    );
    if (found === undefined || found.missing.length > 0) expect(() => probeCgroups()).toThrow("cannot be limited");
    else if (found.version === 1) expect(probeCgroups()).toMatchObject({ version: "v1", mounts: found.mounts });
    else expect(probeCgroups()).toMatchObject({ version: "v2", mounts: { unified: found.mount } });
  });

  it("tries for real: a directory, a sparse file, a command that does not exist, one that fails", async () => {
    const machine = thisMachine();
    expect(await machine.tryDirectory("/tmp")).toBeUndefined();
    expect(await machine.tryDirectory("/nonexistent")).toBe("ENOENT");
    expect(await machine.trySparseFile("/tmp", 1 << 20)).toBeUndefined();
    expect(await machine.trySparseFile("/nonexistent", 1 << 20)).toBe("ENOENT");
    expect(await machine.run("no-such-command", [])).toMatchObject({ ok: false, missing: true });
    expect(await machine.run("sh", ["-c", "echo broken >&2; exit 3"])).toEqual({ ok: false, missing: false, output: "broken" });
    expect(await machine.isExecutable("/bin/sh")).toBe(true);
    expect(await machine.isExecutable("/etc/passwd")).toBe(false);
    expect(await machine.freeBytes("/tmp")).toBeGreaterThan(0);
  });
});
