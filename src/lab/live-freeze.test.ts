import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { FakeEngine } from "../engine/fake.js";
import { Deadline } from "./bounded.js";
import { measureLiveFreezes } from "./live-freeze.js";
import { WORKLOADS } from "./workloads.js";

const dir = mkdtempSync(join(tmpdir(), "thaw-lab-test-"));
afterEach(() => rmSync(dir, { recursive: true, force: true }));

describe("live freezes", () => {
  it("have no latency from a wrong answer, and are cut short whatever failed beside them", async () => {
    let asked = 0;
    const right = (event: unknown) => WORKLOADS.node80.reply((event as { seed: number }).seed);
    // Wrong behind the hundred requests that warm up, until the load gives up.
    const engine = new FakeEngine({ dir, handler: (event) => (++asked > 100 && asked <= 105 ? "wrong" : right(event)) });
    const result = await measureLiveFreezes({ deadline: new Deadline(300), progress: () => {} }, engine, 5);
    expect(result.failures.length).toBeGreaterThan(0);
    expect(result.failures[0]?.error).toContain("wrong reply of node-80mb");
    expect(result.outsideMs.count).toBe(0);
    expect(result.worstMs.p99).toBeNaN();
    expect(result.cutShort).toMatch(/^\d of 5 freezes: the section's time was over$/);
  });
});
