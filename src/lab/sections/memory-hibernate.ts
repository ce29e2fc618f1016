/**
 * Hibernation in place: what a hibernated worker leaves behind, how long it is stopped for it, and what waking costs, from the page cache and from a cold
 * disk. Booted instances are what the promises are about; thawed ones are reported beside them.
 */
import type { Engine, Image } from "../../engine/types.js";
import { makeImage, withEngine } from "../engine-under-test.js";
import { type Footprint, footprint } from "../hibernate-footprint.js";
import { hibernateChecks, hibernateMeasurements, hibernateTables } from "../hibernate-report.js";
import { type WakeResult, wakes } from "../hibernate-wake.js";
import type { Lab, Section } from "../lab.js";
import { MEMORY_WORKLOADS, type MemoryWorkload } from "../memory-workloads.js";
import { withInterpreters } from "../private-interpreters.js";

const SUBJECTS: readonly MemoryWorkload[] = [MEMORY_WORKLOADS.node80, MEMORY_WORKLOADS.helloNode, MEMORY_WORKLOADS.helloPython];
/** Its footprint is promised. */
const PROMISED = MEMORY_WORKLOADS.node80;

export const memoryHibernate: Section = {
  name: "memory-hibernate",
  about: "what hibernated instances leave, how long they are stopped, what a wake costs",
  msMax: 900_000,
  async run(lab) {
    return withInterpreters(lab, ({ paths }, dir) => withEngine(lab, (engine) => run(lab, engine, dir), { interpreters: paths }));
  },
};

async function run(lab: Lab, engine: Engine, interpreters: string) {
  const feet: Footprint[] = [];
  const woken: WakeResult[] = [];
  for (const workload of SUBJECTS) {
    const image = await makeImage(engine, workload);
    try {
      for (const kind of ["boot", "thaw"] as const) await one(lab, engine, workload, image, kind, interpreters, feet, woken);
    } finally {
      await engine.removeImage(image);
    }
  }
  return {
    measurements: hibernateMeasurements(feet, woken),
    checks: hibernateChecks(feet, woken, PROMISED.name),
    tables: hibernateTables(feet, woken),
  };
}

async function one(
  lab: Lab,
  engine: Engine,
  workload: MemoryWorkload,
  image: Image,
  kind: "boot" | "thaw",
  interpreters: string,
  feet: Footprint[],
  woken: WakeResult[],
): Promise<void> {
  const subject = { engine, workload, image, kind, interpreters };
  if (lab.deadline.passed) throw new Error(`the section's time was over before ${workload.name}, ${kind}`);
  // What the kernel keeps for whoever comes next (slabs) is there with the second crowd, and MemAvailable counts it with neither.
  if (workload === PROMISED && kind === "boot") await footprint(lab, subject);
  feet.push(await footprint(lab, subject));
  woken.push(await wakes(lab, subject));
}
