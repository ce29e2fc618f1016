/** Collections that the Node runtime brings about are V8's own, also when V8 was about one already. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { SOURCE_DIR } from "./testing.js";

function traced(program: string, ...flags: string[]): string {
  return execFileSync(process.execPath, [...flags, "-e", program], { encoding: "utf8", timeout: 60_000, maxBuffer: 2 ** 26 });
}

/** Lines of --trace-gc about full collections, while the collector collects once. `before` runs ahead of it and knows `gc`. */
function collections(before: string): string[] {
  const program = `
    const { collectGarbage, withFlag } = require(${JSON.stringify(`${SOURCE_DIR}node/collector.cjs`)});
    const gc = withFlag("expose-gc", () => require("node:vm").runInNewContext("gc"));
    globalThis.living = Array.from({ length: 200_000 }, (_, i) => ({ i, text: "object " + i }));
    gc();
    process.stdout.write("BEGIN\\n");
    ${before}
    collectGarbage(1, () => process.stdout.write("DONE\\n", () => process.exit()));`;
  const output = traced(program, "--trace-gc");
  const [, during] = /BEGIN\n(.*)DONE\n/s.exec(output) ?? [];
  expect(during, output).toBeDefined();
  return during?.match(/Mark-Compact.*/g) ?? [];
}

const BY_ITSELF = /finalize incremental marking/;

describe("a collection", () => {
  it("is one that V8 finishes by itself", () => {
    const seen = collections("");
    expect(seen.length).toBeGreaterThanOrEqual(1);
    for (const line of seen) expect(line).toMatch(BY_ITSELF);
  });

  it("follows one that V8 had begun before, and is not forced either", () => {
    const seen = collections(`withFlag("stress-incremental-marking", () => gc({ type: "minor" }));`);
    // The first does not know that it is waited for.
    expect(seen.length).toBeGreaterThanOrEqual(2);
    for (const line of seen) expect(line).toMatch(BY_ITSELF);
  });

  it("lets threads end what they took of it before it goes on: one that waits for a processor must not make it look done", () => {
    const output = traced(
      `const { collectGarbage } = require(${JSON.stringify(`${SOURCE_DIR}node/collector.cjs`)});
       const { Worker } = require("node:worker_threads");
       const state = new Int32Array(new SharedArrayBuffer(4));
       new Worker(\`const state = require("node:worker_threads").workerData;
         Atomics.store(state, 0, 1); Atomics.notify(state, 0);
         for (const end = Date.now() + 70; Date.now() < end; );
         Atomics.store(state, 0, 2);\`, { eval: true, workerData: state });
       Atomics.wait(state, 0, 0);
       collectGarbage(1, () => process.stdout.write(String(Atomics.load(state, 0)), () => process.exit()));`,
    );
    expect(output).toBe("2");
  });

  it("waits no more than a moment for a thread that never rests, however many rounds there are", () => {
    const output = traced(
      `const { Worker } = require("node:worker_threads");
       const { wait } = Atomics;
       let waits = 0;
       Atomics.wait = (...all) => { waits += 1; return wait(...all); };
       const { collectGarbage } = require(${JSON.stringify(`${SOURCE_DIR}node/collector.cjs`)});
       new Worker("for (;;);", { eval: true }).on("online", () => {
         collectGarbage(3, () => process.stdout.write(String(waits), () => process.exit()));
       });`,
    );
    // Of a millisecond at least each, which together are 100 ms at most.
    expect(Number(output)).toBeGreaterThan(0);
    expect(Number(output)).toBeLessThanOrEqual(100);
  });

  it("does not wait for itself in a clone, whose process has another number than Node says", () => {
    const output = traced(
      `const fs = require("node:fs");
       const own = "/proc/self/task/" + process.pid + "/";
       const { readFileSync } = fs;
       let seen = 0;
       let itself = 0;
       fs.readFileSync = (path, ...more) => { seen += 1; if (String(path).startsWith(own)) itself += 1; return readFileSync(path, ...more); };
       Object.defineProperty(process, "pid", { value: process.pid - 1 });
       const { collectGarbage } = require(${JSON.stringify(`${SOURCE_DIR}node/collector.cjs`)});
       collectGarbage(3, () => process.stdout.write([seen > 0, itself].join(), () => process.exit()));`,
    );
    expect(output).toBe("true,0");
  });

  it("leaves no other one begun behind it", () => {
    const output = traced(
      `const { collectGarbage } = require(${JSON.stringify(`${SOURCE_DIR}node/collector.cjs`)});
       globalThis.living = Array.from({ length: 200_000 }, (_, i) => ({ i, text: "object " + i, tail: [i] }));
       const again = (left) => left > 0 && collectGarbage(3, () => process.stdout.write("DONE\\n", () => setImmediate(again, left - 1)));
       again(10);`,
      "--trace-gc",
      "--trace-incremental-marking",
    );
    const ends = output.split("DONE\n").slice(0, -1);
    expect(ends).toHaveLength(10);
    for (const before of ends) {
      const begun = before.lastIndexOf("[IncrementalMarking] Start");
      expect(begun, output).toBeGreaterThanOrEqual(0);
      expect(before.lastIndexOf("Mark-Compact"), before).toBeGreaterThan(begun);
    }
  });

  it("is over when it says so, in Node's own C++ heap, too", () => {
    const dir = mkdtempSync(join(tmpdir(), "thaw-sweeps-"));
    try {
      const output = execFileSync(
        process.execPath,
        [
          "--trace-event-categories=cppgc,disabled-by-default-cppgc",
          "-e",
          `const { collectGarbage } = require(${JSON.stringify(`${SOURCE_DIR}node/collector.cjs`)});
           const ends = [];
           const again = () => collectGarbage(1, () => {
             ends.push(Number(process.hrtime.bigint() / 1000n));
             if (ends.length < 10) setTimeout(again, 50);
             else setTimeout(() => process.stdout.write(JSON.stringify(ends)), 50);
           });
           again();`,
        ],
        { cwd: dir, encoding: "utf8", timeout: 60_000 },
      );
      const ends: number[] = JSON.parse(output);
      const { traceEvents } = JSON.parse(readFileSync(join(dir, "node_trace.1.log"), "utf8"));
      const sweeps: { ts: number; dur: number }[] = traceEvents.filter(({ name }: { name: string }) =>
        /^CppGC.*Sweep/.test(name),
      );
      expect(sweeps.length).toBeGreaterThan(10);
      const late = ends.filter((end) => sweeps.some(({ ts, dur = 0 }) => ts + dur > end && ts < end + 25_000));
      // A thread that sweeps may have waited for a processor.
      expect(late.length, JSON.stringify({ ends, late })).toBeLessThanOrEqual(2);
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});
