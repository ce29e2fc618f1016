import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { FakeEngine } from "../engine/fake.js";
import { Deadline } from "./bounded.js";
import { makeImage } from "./engine-under-test.js";
import { interleave } from "./interleave.js";
import { startArms } from "./start-arms.js";
import { startMeasurements, startsTable, timesOf } from "./start-report.js";
import { renderTable } from "./table.js";
import { WORKLOADS } from "./workloads.js";

const workload = WORKLOADS.helloNode;
const dirs: string[] = [];
afterEach(() => {
  for (const dir of dirs.splice(0)) rmSync(dir, { recursive: true, force: true });
});

/** An engine whose functions answer as the workload does; its husks never have a runtime mapped. */
function fakeEngine(): FakeEngine {
  const dir = mkdtempSync(join(tmpdir(), "thaw-lab-test-"));
  dirs.push(dir);
  return new FakeEngine({ dir, handler: (event) => workload.reply((event as { seed: number }).seed) });
}

async function results(engine: FakeEngine, rounds: number) {
  const image = await makeImage(engine, workload);
  const warm = await engine.thaw(image);
  const arms = await interleave(startArms(engine, workload, image, warm), { rounds, deadline: new Deadline(20_000) });
  await warm.dispose();
  return { workload: workload.name, arms };
}

describe("startArms", () => {
  it("disposes every instance, keeps every sample, and times the request as a phase", async () => {
    const engine = fakeEngine();
    const all = await results(engine, 3);
    expect(engine.live.size).toBe(0);
    for (const name of ["boot", "boot again (A/A)", "thaw splice, husk on the path", "parked: image", "warm"]) {
      expect(timesOf(all, name), name).toHaveLength(3);
    }
    const [boot] = startMeasurements(all, { heat: 1 });
    expect(boot).toMatchObject({ way: "boot", unit: "us", failures: [], facts: { heat: 1 } });
    expect(boot?.phases?.["load"]).toEqual([90_000, 90_000, 90_000]);
    expect(boot?.phases?.["request"]).toHaveLength(3);
  });

  it("takes a start of another kind than meant for a failed run, not for a sample", async () => {
    // The fake gives a generic husk where one with its runtime mapped was meant.
    const all = await results(fakeEngine(), 2);
    const thaw = all.arms.find(({ name }) => name === "thaw splice");
    expect(thaw?.samples).toEqual([]);
    expect(thaw?.failures[0]?.error).toBe('meant to be "thaw splice", but was thaw, splice, husk generic');
    expect(renderTable(startsTable("t", "s", [all], "warm", "refill"), false)).toMatch(/thaw splice +– +– .* 3 failed/);
  });

  it("takes a wrong answer for a failed run, and still disposes the instance", async () => {
    const engine = fakeEngine();
    const right = engine.handler;
    const image = await makeImage(engine, workload);
    const warm = await engine.thaw(image);
    engine.handler = (event, context) => (context.instanceId % 2 === 0 ? right(event, context) : { greeting: "bye" });
    const arms = await interleave(startArms(engine, workload, image, warm).slice(0, 2), {
      rounds: 4,
      deadline: new Deadline(20_000),
    });
    const failures = arms.flatMap(({ failures }) => failures);
    expect(failures.length).toBeGreaterThan(0);
    expect(failures[0]?.error).toBe(
      'wrong reply of hello-node: {"greeting":"bye"} instead of {"greeting":"hello lab","seed":983}',
    );
    await warm.dispose();
    expect(engine.live.size).toBe(0);
  });
});
