import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { isEnding } from "./ending.js";

describe("a process", () => {
  it("goes on while it sleeps or stands still, and ends from the moment it is killed, also when it is a zombie or gone", async () => {
    const child = spawn("sleep", ["1000"], { stdio: "ignore" });
    const exited = once(child, "exit");
    await once(child, "spawn");
    const pid = child.pid ?? 0;
    expect(isEnding(pid)).toBe(false);
    process.kill(pid, "SIGSTOP");
    expect(isEnding(pid)).toBe(false);
    process.kill(pid, "SIGKILL");
    // Nobody waits for it until this test does: it becomes a zombie and stays one.
    for (let zombie = false; !zombie; ) {
      zombie = /^State:\tZ/m.test(readFileSync(`/proc/${pid}/status`, "latin1"));
      expect(isEnding(pid)).toBe(true);
    }
    await exited;
    expect(isEnding(pid)).toBe(true);
  });
});
