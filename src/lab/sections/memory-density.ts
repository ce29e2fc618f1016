/** How many live instances one machine holds while nobody calls them. Each must answer when it is called. */
import { type LiveResult, liveInstances } from "../density-live.js";
import type { Lab, Section } from "../lab.js";
import { type Check, check, exactly, type Measurement } from "../report.js";
import { scale } from "../scale.js";
import { median, quantile } from "../statistics.js";
import { megabytes, ms, type Row, significant, type Table } from "../table.js";

export const memoryDensity: Section = {
  name: "memory-density",
  about: "2,000 live idle instances of a mix, each called (THAW_BENCH_INSTANCES)",
  msMax: 1_500_000,
  async run(lab: Lab) {
    const live = await liveInstances(lab, scale("THAW_BENCH_INSTANCES"));
    return { measurements: liveMeasurements(live), checks: liveChecks(live), tables: [liveTable(live)] };
  },
};

const right = (title: string) => ({ title, align: "right" as const });

function liveChecks({ wanted, answered, lost }: LiveResult): Check[] {
  return [
    check("mix", "live idle instances that answered when called", exactly(answered.length), ">=", wanted, ""),
    check("mix", "lost or wrong", exactly(lost), "=", 0, ""),
  ];
}

function liveMeasurements({ answered, failures, idle, hibernated, descriptors, tasks }: LiveResult): Measurement[] {
  return [
    {
      workload: "mix",
      way: "called after idling",
      unit: "us",
      samples: answered,
      failures,
      facts: {
        idleBytesEach: idle.machine.bytes / idle.instances,
        idleCgroupBytesEach: idle.cgroupBytes / idle.instances,
        hibernatedBytesEach: hibernated.machine.bytes / hibernated.instances,
        hibernatedCgroupBytesEach: hibernated.cgroupBytes / hibernated.instances,
        keeperDescriptors: descriptors,
        tasksOfTheMachine: tasks,
      },
    },
  ];
}

function liveTable({ wanted, answered, failures, idle, hibernated, descriptors, tasks, mix }: LiveResult): Table {
  const row = (name: string, of: LiveResult["idle"]): Row => [
    name,
    String(of.instances),
    significant(of.cgroupBytes / of.instances / 1e6),
    significant(of.kernelBytes / of.instances / 1e6),
    significant(of.machine.bytes / of.instances / 1e6),
    megabytes(of.machine.driftBytes),
  ];
  return {
    title: `${wanted} live idle instances`,
    subtitle: `Mix: ${mix}; MB for each, but for the drift`,
    columns: [{ title: "" }, ...["instances", "cgroup", "of it kernel", "machine", "drift MB"].map(right)],
    rows: [row("thawed, idle", idle), row("hibernated", hibernated)],
    notes: [
      `Called one after the other afterwards: ${answered.length} answered; ${failures.length} hibernations or calls failed; p50 ${ms(median(answered))} ms, p99 ${ms(quantile(answered, 0.99))} ms.`,
      `The keeper held ${significant(descriptors / Math.max(1, idle.instances))} descriptors for each; ${tasks} tasks on the machine.`,
      "cgroup: charged to the memory groups, page cache apart; machine: by MemAvailable, the drift of the machine itself beside it.",
    ],
  };
}
