/** The demo as a user runs it: it ends below a minute by itself, and what it could not show by then is a failure. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { ROOT } from "./support/server.js";

/** Images need a file system with a disk below it. */
const dir = mkdtempSync("/var/tmp/thaw-demo-test-");
afterAll(() => rmSync(dir, { recursive: true, force: true }));

function demo(tmp: string, seconds: number): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, [join(ROOT, "dist/lab/demo.js")], {
    env: { ...process.env, TMPDIR: tmp, NO_COLOR: "1", THAW_DEMO_SECONDS: String(seconds) },
    encoding: "utf8",
    timeout: 210_000,
  });
}

describe("the demo", () => {
  it("starts three functions in every way, says what to type next, and leaves nothing behind", () => {
    // Whatever else the machine does.
    const { status, stdout, stderr } = demo(dir, 180);
    expect([status, stderr.match(/FAILED.*/)]).toEqual([0, null]);
    for (const name of ["hello", "hello-python", "report"]) expect(stdout).toMatch(new RegExp(`^${name} \\(`, "m"));
    for (const way of ["boot", "thaw eager", "thaw lazy", "thaw splice", "parked", "wake, hibernated", "reuse"])
      expect(stdout.match(new RegExp(`^${way} `, "gm"))).toHaveLength(3);
    expect(stdout).toMatch(/npx thaw serve --data/);
    expect(readdirSync(dir)).toEqual([]);
  }, 240_000);

  it("ends at its deadline, says so, and leaves nothing behind", () => {
    const { status, stdout, stderr } = demo(dir, 0.5);
    expect(status).toBe(1);
    expect(stderr).toMatch(/FAILED: .*(\d s were over|did not finish within)/);
    expect(stdout).not.toContain("Next, by hand");
    expect(readdirSync(dir)).toEqual([]);
  }, 240_000);

  it("exits with 1, and says why and what to do, when something failed", () => {
    const { status, stdout, stderr } = demo(join(dir, "gone"), 60);
    expect(status).toBe(1);
    expect(stderr).toMatch(/FAILED: .*no such file or directory/);
    expect(stderr).toContain("npx thaw doctor");
    expect(stdout).not.toContain("Next, by hand");
  });
});
