import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { FakeEngine } from "../engine/fake.js";
import { Deadline } from "./bounded.js";
import { notRecorded, REQUESTS_RECORDED, recordingMeasurements, recordLatencies } from "./heat-recording.js";
import { hasFailed } from "./report.js";
import { echoWorkload } from "./testing.js";

const temporary = mkdtempSync(join(tmpdir(), "thaw-heat-recording-"));
afterAll(() => rmSync(temporary, { recursive: true, force: true }));

const workload = echoWorkload(temporary);

/** Thaws from a husk that has its runtime mapped, as the laboratory asks of a real one; the fake has only generic ones. */
class EngineWithRuntimes extends FakeEngine {
  override async thaw(...how: Parameters<FakeEngine["thaw"]>) {
    const instance = await super.thaw(...how);
    let { start } = instance;
    // Told anew once the first request was answered.
    Object.defineProperty(instance, "start", {
      get: () => ({ ...start, husk: "runtime" }),
      set: (told: typeof start) => {
        start = told;
      },
    });
    return instance;
  }
}

describe("a recording", () => {
  it("keeps of each thaw the handler time of each request, and no thaw that was not the one that was meant", async () => {
    const engine = new EngineWithRuntimes({ dir: temporary });
    engine.handler = (event) => event;
    const booted = await engine.boot({
      name: "echo",
      version: "1",
      runtime: "nodejs20.x",
      codeDir: temporary,
      handler: "index.handler",
      memoryMb: 128,
      timeoutMs: 1_000,
      env: {},
      tmpMb: 64,
    });
    const image = await booted.freeze({ then: "end" });
    const named = { ...image, generation: 7 };
    const byHeat = new Map([
      [0, image],
      [1, named],
    ]);
    const options = { rounds: 4, deadline: new Deadline(20_000), onRound: () => {} };
    const recording = await recordLatencies(engine, workload, { byHeat, curve: [3, 2] }, options);
    const [right, wrong] = recordingMeasurements(recording);
    expect(right).toMatchObject({ workload: "echo", failures: [], unit: "ms" });
    expect(right?.samples.length).toBe(4 * REQUESTS_RECORDED);
    expect(recording.latencies).toMatchObject({ function: "echo", curve: [3, 2] });
    expect(recording.latencies.points.map(({ heat, starts }) => [heat, starts.map((start) => start.length)])).toEqual([
      [0, Array(4).fill(REQUESTS_RECORDED)],
      [1, []],
    ]);
    expect(wrong?.failures[0]?.error).toContain('meant to be "thaw of generation 7", but was thaw');
    expect(engine.stats().instances).toBe(0);
  });

  it("that could not be made is a failed run", () => {
    const measurements = recordingMeasurements(notRecorded("echo", "no"));
    expect(hasFailed({ measurements, checks: [], tables: [] })).toBe(true);
  });
});
