import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { expect, it } from "vitest";
import { childNamed, familyCpuUs, machineCpuUs, readUsage } from "./machine.js";

it("sees a child process come and go, and a descriptor of ours", async () => {
  const before = readUsage();
  const child = spawn("sleep", ["30"], { stdio: "ignore" });
  await once(child, "spawn");
  const fd = openSync("/dev/null", "r");
  const during = readUsage();
  expect(during.processes).toBeGreaterThan(before.processes);
  expect(childNamed("sleep")).toBe(child.pid);
  expect(childNamed("no-such-name")).toBeUndefined();
  expect(during.descriptors).toBeGreaterThan(before.descriptors);
  child.kill("SIGKILL");
  await once(child, "exit");
  closeSync(fd);
  expect(readUsage().processes).toBe(before.processes);
  expect(before.serverBytes).toBeGreaterThan(10e6);
  expect(before.mounts).toBeGreaterThan(0);
  expect(before.cgroups).toBeGreaterThan(0);
});

it("counts the CPU time that work costs", () => {
  const before = [machineCpuUs(), familyCpuUs()] as const;
  const used = process.cpuUsage();
  while (process.cpuUsage(used).user + process.cpuUsage(used).system < 150_000);
  expect(machineCpuUs() - before[0]).toBeGreaterThan(80_000);
  expect(familyCpuUs() - before[1]).toBeGreaterThan(140_000);
});
