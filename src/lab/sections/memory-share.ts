/**
 * What many instances of one function cost: booted, each has its own memory; thawed, they share the page space and the interpreter through the page
 * cache. Counted twice, by what each process is charged and by what the machine has left.
 */
import { sleep } from "../../base/clock.js";
import type { Engine, Instance } from "../../engine/types.js";
import { Crowd, type CrowdMemory, type MachineShare, machineShare } from "../crowd.js";
import { ask, EMPTY_POOLS, makeImage, preparePools, withEngine } from "../engine-under-test.js";
import type { Lab, Section } from "../lab.js";
import { MEMORY_WORKLOADS } from "../memory-workloads.js";
import { availableBytes } from "../process-memory.js";
import { type Check, check, exactly, type Measurement } from "../report.js";
import { megabytes, type Row, significant } from "../table.js";
import { specOf, type Workload } from "../workloads.js";

const INSTANCES = 50;
const SHARE_MAX = 0.1;
const SUBJECTS: readonly Workload[] = [MEMORY_WORKLOADS.node80, MEMORY_WORKLOADS.helloNode, MEMORY_WORKLOADS.helloPython];
const AT_ONCE = 4;
const SETTLE_MS = 300;

interface Share extends CrowdMemory {
  readonly machine: MachineShare;
}

interface Shared {
  readonly workload: string;
  readonly booted: Share;
  readonly thawed: Share;
}

export const memoryShare: Section = {
  name: "memory-share",
  about: `memory of ${INSTANCES} thawed instances beside ${INSTANCES} booted ones`,
  msMax: 300_000,
  run: (lab) => withEngine(lab, (engine) => run(lab, engine)),
};

async function run(lab: Lab, engine: Engine) {
  const results: Shared[] = [];
  for (const workload of SUBJECTS) results.push(await measure(lab, engine, workload));
  return { measurements: results.flatMap(measurements), checks: results.flatMap(checks), tables: [table(results)] };
}

async function measure(lab: Lab, engine: Engine, workload: Workload): Promise<Shared> {
  const image = await makeImage(engine, workload);
  try {
    await preparePools(engine, image, EMPTY_POOLS);
    const spec = specOf(workload, engine.runtimes);
    const crowd = async (what: string, start: () => Promise<Instance>): Promise<Share> => {
      await sleep(SETTLE_MS);
      const before = availableBytes();
      const all = new Crowd(lab.cleanup, AT_ONCE);
      let memory: CrowdMemory;
      let during: number;
      try {
        await all.fill(INSTANCES, async (index) => {
          lab.progress(`${workload.name}: ${what} ${index + 1} of ${INSTANCES}`);
          const instance = await start();
          await ask(instance, workload, index);
          return instance;
        });
        await sleep(SETTLE_MS);
        during = availableBytes();
        memory = all.memory();
      } finally {
        await all.dispose();
      }
      await sleep(SETTLE_MS);
      return { ...memory, machine: machineShare(before, during, availableBytes()) };
    };
    const thawed = await crowd("thawing", () => engine.thaw(image));
    const booted = await crowd("booting", () => engine.boot(spec));
    return { workload: workload.name, booted, thawed };
  } finally {
    await engine.removeImage(image);
  }
}

const WAYS = [
  ["by process", (memory: Share) => memory.pssBytes + memory.kernelBytes],
  ["by what the machine has left", ({ machine }: Share) => machine.bytes],
] as const;

function checks({ workload, booted, thawed }: Shared): Check[] {
  return WAYS.map(([way, bytes]) =>
    check(
      workload,
      `memory of ${INSTANCES} thawed / ${INSTANCES} booted, ${way}`,
      exactly(bytes(thawed) / bytes(booted)),
      "<=",
      SHARE_MAX,
      "",
    ),
  );
}

function measurements({ workload, booted, thawed }: Shared): Measurement[] {
  return Object.entries({ booted, thawed }).map(([way, memory]) => ({
    workload,
    way: `${INSTANCES} ${way}`,
    unit: "bytes",
    samples: memory.eachPssBytes,
    failures: [],
    facts: {
      pssBytes: memory.pssBytes,
      kernelBytes: memory.kernelBytes,
      pageTableBytes: memory.pageTableBytes,
      machineBytes: memory.machine.bytes,
      machineDriftBytes: memory.machine.driftBytes,
    },
  }));
}

function table(results: readonly Shared[]) {
  const right = (title: string) => ({ title, align: "right" as const });
  const row = (way: string, memory: Share, booted: Share): Row => [
    way,
    megabytes(memory.pssBytes),
    megabytes(memory.kernelBytes),
    megabytes(memory.pageTableBytes),
    megabytes(memory.machine.bytes),
    megabytes(memory.machine.driftBytes),
    ...WAYS.map(([, bytes]) => `${significant((100 * bytes(memory)) / bytes(booted))} %`),
  ];
  return {
    title: `Memory of ${INSTANCES} instances of one function`,
    subtitle: "Each answered one request; MB, all together",
    columns: [
      { title: "" },
      ...["PSS", "kernel", "of it page tables", "less available", "drift", "by process", "by machine"].map(right),
    ],
    rows: results.flatMap(({ workload, booted, thawed }): Row[] => [
      { heading: workload },
      row("booted", booted, booted),
      row("thawed", thawed, booted),
    ]),
    notes: [
      "PSS: private pages, and of shared ones each process's part (smaps_rollup); kernel: what their memory cgroups are charged for page tables, stacks, sockets, slabs.",
      "less available: MemAvailable with them, beside the mean of before and after; it sees the sandboxes' own processes, too, and whatever else runs: drift is how far before and after lie apart, and beyond a quarter the figure is left out.",
      "The page cache of the image counts once, in the PSS of who maps it; MemAvailable takes it for free memory.",
    ],
  };
}
