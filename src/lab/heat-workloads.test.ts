import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { HEAT_WORKLOADS } from "./heat-workloads.js";
import { withPackages } from "./memory-workloads.js";
import { callPlain } from "./testing.js";
import { checkReply } from "./workloads.js";

const temporary = mkdtempSync(join(tmpdir(), "thaw-heat-workloads-"));
afterAll(() => rmSync(temporary, { recursive: true, force: true }));

/** Events go by way of a command line, one argument of which may have 128 KiB. */
const SEEDS = [0, 1_017];

describe("workloads of the heat sections", () => {
  it.each(HEAT_WORKLOADS)(
    "$name answers what the laboratory expects, and nothing else passes",
    {
      timeout: 60_000,
    },
    async (each) => {
      const workload = withPackages(each, temporary);
      for (const seed of SEEDS) {
        const [reply = ""] = await callPlain(workload.dir, workload.language, [workload.event(seed)]);
        checkReply(workload, seed, reply);
        expect(() => checkReply(workload, seed + 1, reply)).toThrow(`wrong reply of ${workload.name}`);
      }
    },
  );

  it.each(HEAT_WORKLOADS)("$name asks for as much work with every seed, on other content", ({ event }) => {
    const texts = [3, 4, 999].map((seed) => JSON.stringify(event(seed)));
    expect(new Set(texts).size).toBe(texts.length);
    const [least = 0, most = 0] = [Math.min, Math.max].map((end) => end(...texts.map((text) => text.length)));
    expect(most).toBeLessThanOrEqual(least * 1.05 + 4);
  });

  it("are eight in JavaScript and more in Python, each with a name of its own", () => {
    const of = (wanted: string) => HEAT_WORKLOADS.filter(({ language }) => language === wanted).length;
    expect(of("node")).toBeGreaterThanOrEqual(8);
    expect(of("python")).toBeGreaterThanOrEqual(3);
    expect(new Set(HEAT_WORKLOADS.map(({ name }) => name)).size).toBe(HEAT_WORKLOADS.length);
  });

  it("bring what their packages depend on", () => {
    const fastify = HEAT_WORKLOADS.find(({ name }) => name === "node-fastify");
    if (fastify === undefined) throw new Error("node-fastify is gone");
    const { dir } = withPackages(fastify, join(temporary, "closure"));
    for (const name of ["fastify", "find-my-way", "@fastify/error", "fast-deep-equal"])
      expect(existsSync(join(dir, "node_modules", name, "package.json"))).toBe(true);
  });
});
