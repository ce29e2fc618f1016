import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { MEMORY_WORKLOADS, packageVersions, withPackages } from "./memory-workloads.js";
import { callPlain } from "./testing.js";
import { checkReply } from "./workloads.js";

const temporary = mkdtempSync(join(tmpdir(), "thaw-memory-workloads-"));
afterAll(() => rmSync(temporary, { recursive: true, force: true }));

describe("workloads of the memory sections", () => {
  it.each(Object.values(MEMORY_WORKLOADS))("$name answers what the laboratory expects", { timeout: 60_000 }, async (each) => {
    const workload = withPackages(each, temporary);
    const seeds = [0, 1, 1_017];
    const events = seeds.map((seed) => workload.event(seed));
    const replies = await callPlain(workload.dir, workload.language, events);
    for (const [index, seed] of seeds.entries()) checkReply(workload, seed, replies[index] ?? "");
    expect(() => checkReply(workload, 2, replies[0] ?? "")).toThrow(`wrong reply of ${workload.name}`);
  });

  it("are at least eight, three of them with a library of its own", () => {
    const all = Object.values(MEMORY_WORKLOADS);
    expect(all.length).toBeGreaterThanOrEqual(8);
    const versions = all.flatMap(packageVersions);
    expect(versions.map((text) => text.split(" ")[0])).toEqual(["mustache", "acorn", "pngjs"]);
    for (const text of versions) expect(text).toMatch(/^\S+ \d+\.\d+\.\d+$/);
  });

  it("say which package is missing", () => {
    const absent = { ...MEMORY_WORKLOADS.parse, packages: ["no-such-package"] };
    expect(() => withPackages(absent, temporary)).toThrow("package no-such-package is not in");
  });
});
