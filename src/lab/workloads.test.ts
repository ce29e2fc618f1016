import { execFile } from "node:child_process";
import { createHmac } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, describe, expect, it } from "vitest";
import { MIXED, MixedChecker, OPERATIONS } from "./mixed.js";
import { callPlain } from "./testing.js";
import { checkReply, runtimeFor, WORKLOADS } from "./workloads.js";

const run = promisify(execFile);

/** Instead of /tmp, where the functions write inside their sandbox. */
const temporary = mkdtempSync(join(tmpdir(), "thaw-lab-test-"));
afterAll(() => rmSync(temporary, { recursive: true, force: true }));

const inTemporary = { ...process.env, TMPDIR: temporary };

describe("workloads", () => {
  it.each(Object.values(WORKLOADS))("$name answers what the laboratory expects", async (workload) => {
    const seeds = [0, 1, 29, 12_345];
    const replies = await callPlain(
      workload.dir,
      workload.language,
      seeds.map((seed) => workload.event(seed)),
      inTemporary,
    );
    for (const [index, seed] of seeds.entries()) checkReply(workload, seed, replies[index] ?? "");
    expect(() => checkReply(workload, 2, replies[0] ?? "")).toThrow(`wrong reply of ${workload.name}`);
  });

  it("have the resident size that their names promise", async () => {
    const node = `await import(process.argv[1]); console.log(process.memoryUsage.rss())`;
    const nodeArgs = ["--input-type=module", "-e", node, join(WORKLOADS.node80.dir, "index.mjs")];
    const nodeMb = Number((await run(process.execPath, nodeArgs)).stdout) / 1e6;
    expect(nodeMb).toBeGreaterThan(70);
    expect(nodeMb).toBeLessThan(100);
    const python =
      "import sys; sys.path.insert(0, sys.argv[1]); import app; print(int(open('/proc/self/statm').read().split()[1]) * 4096)";
    const pythonMb = Number((await run("python3.11", ["-B", "-c", python, WORKLOADS.python40.dir])).stdout) / 1e6;
    expect(pythonMb).toBeGreaterThan(35);
    expect(pythonMb).toBeLessThan(50);
  });

  it.each(MIXED)("$name passes its own check in every operation", async ({ dir, language }) => {
    const events = OPERATIONS.map((op, index) => ({ op, seed: 1_000 + index }));
    const checker = new MixedChecker();
    const before = Date.now();
    const replies = await callPlain(dir, language, events, inTemporary);
    // Whenever between the two it was asked.
    const between = (reply: string): number => Math.min(Date.now(), Math.max(before, Number(JSON.parse(reply)?.wallMs ?? 0)));
    const problems = events.map(({ op, seed }, index) => {
      const reply = replies[index] ?? "null";
      return checker.check(op, seed, index + 1, reply, between(reply));
    });
    expect(problems).toEqual(OPERATIONS.map(() => undefined));
  });

  it("knows a wrong value, a wrong count of calls, a strange clock and a repeated random number", () => {
    const checker = new MixedChecker();
    const child = JSON.stringify({ op: "child", seed: 4, calls: 2, value: 9 });
    expect(checker.check("child", 4, 2, child, 0)).toBeUndefined();
    expect(checker.check("child", 4, 3, child, 0)).toContain('"calls":3');
    expect(checker.check("child", 5, 2, child, 0)).toContain("instead of");
    expect(checker.check("child", 4, 2, "", 0)).toContain("not JSON");
    const timers = JSON.stringify({ op: "timers", seed: 4, calls: 2, value: [true, true, true], wallMs: 1 });
    expect(checker.check("timers", 4, 2, timers, 1_000_000)).toContain("wall clock");
    const value = createHmac("sha256", "key").update("4").digest("hex");
    const random = JSON.stringify({ op: "crypto", seed: 4, calls: 2, value, unique: ["a", "b", "c"] });
    expect(checker.check("crypto", 4, 2, random, 0)).toBeUndefined();
    expect(checker.check("crypto", 4, 2, random, 0)).toContain("another thaw had: a, b, c");
  });

  it("says which runtimes there are when the wanted one is missing", () => {
    expect(() => runtimeFor([{ id: "nodejs20.x", interpreter: "/usr/bin/node", version: "20" }], "python")).toThrow(
      "the engine has only nodejs20.x",
    );
  });
});
