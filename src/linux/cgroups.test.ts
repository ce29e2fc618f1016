import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { limitWrites, makeParents, probeCgroups } from "./cgroups.js";
import { processStart } from "./process-stat.js";

const HYBRID = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/my\\040memory rw,relatime shared:9 - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`;

describe("probing cgroups", () => {
  it("finds v1 controllers beside an empty cgroup2, and names with spaces", () => {
    const layout = probeCgroups(HYBRID, () => false);
    expect(layout).toEqual({
      version: "v1",
      swapLimit: false,
      mounts: { cpu: "/sys/fs/cgroup/cpu,cpuacct", memory: "/sys/fs/cgroup/my memory", pids: "/sys/fs/cgroup/pids" },
    });
  });

  it("says which controllers are missing", () => {
    const withoutPids = HYBRID.split("\n")
      .filter((line) => !line.includes("pids"))
      .join("\n");
    expect(() => probeCgroups(withoutPids)).toThrow(
      /Functions cannot be limited on this machine\. no cgroup hierarchy offers .*pids.*v1 has cpu, memory/,
    );
    expect(() => probeCgroups("")).toThrow(/v1 has none, v2 has none/);
  });
});

describe("limits", () => {
  it("frees memory+swap before memory is set, so that any former limit can be raised or lowered", () => {
    const writes = limitWrites({ version: "v1", mounts: {}, swapLimit: true }, { memoryMb: 128, cpus: 0.5, pids: 64 });
    expect(writes.map(({ file, value }) => `${file}=${value}`)).toEqual([
      "memory.memsw.limit_in_bytes=-1",
      "memory.limit_in_bytes=134217728",
      "memory.memsw.limit_in_bytes=134217728",
      "cpu.cfs_quota_us=50000",
      "pids.max=65",
    ]);
  });

  it("writes one tree in v2", () => {
    const writes = limitWrites({ version: "v2", mounts: {}, swapLimit: true }, { memoryMb: 64, cpus: 0.001, pids: 10 });
    expect(writes.map(({ controller, file, value }) => `${controller} ${file}=${value}`)).toEqual([
      "unified memory.swap.max=0",
      "unified memory.max=67108864",
      "unified cpu.max=1000 100000",
      "unified pids.max=11",
    ]);
  });

  it("leaves swap alone where a kernel with v2 does not count it: the file is not there", () => {
    const writes = limitWrites({ version: "v2", mounts: {}, swapLimit: false }, { memoryMb: 64, cpus: 1, pids: 10 });
    expect(writes.map(({ file }) => file)).toEqual(["memory.max", "cpu.max", "pids.max"]);
  });
});

describe("the parents of cgroups in one tree", () => {
  const owner = `thaw/${process.pid}-${processStart(process.pid)}`;
  const trees: string[] = [];
  const tree = (): string => {
    const path = mkdtempSync(join(tmpdir(), "thaw-cgroups-"));
    trees.push(path);
    return path;
  };
  afterAll(() => {
    for (const path of trees) rmSync(path, { recursive: true });
  });

  it("tell whether swap is counted", () => {
    const mount = tree();
    const layout = { version: "v2", mounts: { unified: mount }, swapLimit: true } as const;
    expect(makeParents(layout)).toEqual({ layout: { ...layout, swapLimit: false }, dirs: { unified: join(mount, owner) } });
    writeFileSync(join(mount, owner, "memory.swap.max"), "max\n");
    expect(makeParents(layout).layout.swapLimit).toBe(true);
    for (const dir of [mount, join(mount, "thaw"), join(mount, owner)])
      expect(readFileSync(join(dir, "cgroup.subtree_control"), "utf8")).toBe("+memory +cpu +pids");
  });
});

describe("the owner of a cgroup", () => {
  it("is told from a later process with its pid by the start time", () => {
    expect(processStart(process.pid)).toMatch(/^\d+$/);
    expect(processStart(0x3f_ffff)).toBeUndefined();
  });
});
