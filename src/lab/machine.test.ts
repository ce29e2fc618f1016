import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { expect, it } from "vitest";
import { machineCpuUs, readUsage } from "./machine.js";

it("sees a child process come and go, and a descriptor of ours", async () => {
  const before = readUsage();
  const child = spawn("sleep", ["30"], { stdio: "ignore" });
  await once(child, "spawn");
  const fd = openSync("/dev/null", "r");
  const during = readUsage();
  expect(during.processes).toBeGreaterThan(before.processes);
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
  const before = machineCpuUs();
  const until = performance.now() + 150;
  while (performance.now() < until);
  expect(machineCpuUs() - before).toBeGreaterThan(80_000);
});
