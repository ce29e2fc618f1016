import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { statFields } from "../linux/process-stat.js";
import { lockDataDir } from "./lock.js";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "thaw-lock-"));
});
afterEach(async () => {
  await rm(dir, { recursive: true, force: true });
});

/** What the lock of a living process that is not this one looks like. */
function ownerOf(pid: number): string {
  return `${pid} ${statFields(pid)[19]} ${readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()}`;
}

describe("a data directory is refused", () => {
  it("while another server uses it, naming that server", () => {
    writeFileSync(join(dir, "thaw.lock"), ownerOf(process.ppid));
    expect(() => lockDataDir(dir)).toThrow(
      `The data directory ${dir} cannot be used. a server with process id ${process.ppid} is using it. ` +
        "Stop that server, or give this one another directory with --data",
    );
    expect(readFileSync(join(dir, "thaw.lock"), "utf8")).toBe(ownerOf(process.ppid));
  });

  it("while this process uses it already", () => {
    const lock = lockDataDir(dir);
    expect(() => lockDataDir(dir)).toThrow(`a server with process id ${process.pid} is using it`);
    lock.release();
  });

  it("while another server is just taking it over", () => {
    const dead = "1 0 another-boot";
    writeFileSync(join(dir, "thaw.lock"), dead);
    writeFileSync(join(dir, "thaw.lock.after-1_0_another-boot"), ownerOf(process.ppid));
    expect(() => lockDataDir(dir)).toThrow(`a server with process id ${process.ppid} is using it`);
  });
});

describe("a data directory is taken over", () => {
  it("from a server that was killed", () => {
    const child = spawnSync(process.execPath, [
      "-e",
      "console.log(require('fs').readFileSync('/proc/self/stat','utf8').split(') ')[1].split(' ')[19])",
    ]);
    writeFileSync(join(dir, "thaw.lock"), `${child.pid} ${String(child.stdout).trim()} ${ownerOf(process.pid).split(" ")[2]}`);
    const lock = lockDataDir(dir);
    expect(readFileSync(join(dir, "thaw.lock"), "utf8")).toBe(ownerOf(process.pid));
    expect(readdirSync(dir)).toEqual(["thaw.lock"]);
    lock.release();
    expect(readdirSync(dir)).toEqual([]);
  });

  it("from a process that got the id of the dead server, or ran before a reboot", () => {
    const [pid, start, boot] = ownerOf(process.ppid).split(" ");
    for (const stale of [`${pid} 1 ${boot}`, `${pid} ${start} another-boot`]) {
      writeFileSync(join(dir, "thaw.lock"), stale);
      lockDataDir(dir).release();
    }
  });

  it("from a takeover that was killed itself", () => {
    writeFileSync(join(dir, "thaw.lock"), "1 0 another-boot");
    writeFileSync(join(dir, "thaw.lock.after-1_0_another-boot"), "2 0 another-boot");
    lockDataDir(dir).release();
    expect(readdirSync(dir)).toEqual([]);
  });
});

it("releasing twice, or after somebody else took over, removes nothing of others", () => {
  const lock = lockDataDir(dir);
  writeFileSync(join(dir, "thaw.lock"), ownerOf(process.ppid));
  lock.release();
  lock.release();
  expect(readdirSync(dir)).toEqual(["thaw.lock"]);
});
