/** Collections that the Node runtime brings about are V8's own, also when V8 was about one already. */
import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { SOURCE_DIR } from "./plain-process.js";

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
  const output = execFileSync(process.execPath, ["--trace-gc", "-e", program], { encoding: "utf8" });
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
});
