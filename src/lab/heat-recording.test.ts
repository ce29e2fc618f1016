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
  /** How many of the next starts record their working set. */
  recordings = 0;

  override async thaw(...how: Parameters<FakeEngine["thaw"]>) {
    const instance = await super.thaw(...how);
    let { start } = instance;
    const recorded = this.recordings-- > 0 ? { recording: true } : {};
    // Told anew once the first request was answered.
    Object.defineProperty(instance, "start", {
      get: () => ({ ...start, ...recorded, husk: "runtime" }),
      set: (told: typeof start) => {
        start = told;
      },
    });
    return instance;
  }
}

async function made() {
  const engine = new EngineWithRuntimes({ dir: mkdtempSync(join(temporary, "engine-")) });
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
  return { engine, image: await booted.freeze({ then: "end" }) };
}

describe("a recording", () => {
  it("keeps of each thaw the handler time of each request, and no thaw that was not the one that was meant", async () => {
    const { engine, image } = await made();
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

  it("has no start that recorded its working set: another is made, as often as a set is recorded, and no more", async () => {
    const { engine, image } = await made();
    const byHeat = new Map([[0, image]]);
    const record = () =>
      recordLatencies(engine, workload, { byHeat, curve: [] }, { rounds: 2, deadline: new Deadline(20_000), onRound: () => {} });
    engine.recordings = 5;
    const [some] = recordingMeasurements(await record());
    expect([some?.samples.length, some?.failures]).toEqual([2 * REQUESTS_RECORDED, []]);
    engine.recordings = 6;
    const [failed] = recordingMeasurements(await record());
    expect([failed?.samples.length, failed?.failures.length]).toEqual([2 * REQUESTS_RECORDED, 1]);
    expect(engine.stats().instances).toBe(0);
  });

  it("that could not be made is a failed run", () => {
    const measurements = recordingMeasurements(notRecorded("echo", "no"));
    expect(hasFailed({ measurements, checks: [], tables: [] })).toBe(true);
  });
});
