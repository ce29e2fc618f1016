/** Freezing: how long the process is stopped, what is done before, and how large the image is. */
import type { Engine, FreezeReport } from "../../engine/types.js";
import { ask, withEngine } from "../engine-under-test.js";
import { type ArmResult, interleave } from "../interleave.js";
import type { Lab, Section } from "../lab.js";
import { type Check, check, exactly, type Measurement } from "../report.js";
import { median, quantile } from "../statistics.js";
import { failedCell, megabytes, type Row, significant } from "../table.js";
import { specOf, WORKLOADS, type Workload } from "../workloads.js";

const FREEZES = 20;
const STOPPED_MS_MAX = 20;

interface FreezeSample extends FreezeReport {
  readonly bytesOnDisk: number;
}

interface Frozen {
  readonly workload: Workload;
  readonly arm: ArmResult<FreezeSample>;
}

export const freeze: Section = {
  name: "freeze",
  about: "time stopped, hygiene, size on disk, for repeated freezes of one instance",
  msMax: 120_000,
  run: (lab) => withEngine(lab, (engine) => run(lab, engine)),
};

async function run(lab: Lab, engine: Engine) {
  const results: Frozen[] = [];
  for (const workload of [WORKLOADS.node80, WORKLOADS.python40, WORKLOADS.helloNode]) {
    results.push({ workload, arm: await measure(lab, engine, workload) });
  }
  return { measurements: results.flatMap(measurements), checks: results.flatMap(checks), tables: [table(results)] };
}

/** One instance, frozen again and again while it goes on serving. */
async function measure(lab: Lab, engine: Engine, workload: Workload): Promise<ArmResult<FreezeSample>> {
  const instance = await engine.boot(specOf(workload, engine.runtimes));
  try {
    const arm = {
      name: "freeze",
      prepare: (round: number) => ask(instance, workload, round + 1),
      async run(): Promise<FreezeSample> {
        const image = await instance.freeze({ then: "continue" });
        await engine.removeImage(image);
        return { ...image.report, bytesOnDisk: image.bytesOnDisk };
      },
    };
    const onRound = (round: number, rounds: number) => lab.progress(`${workload.name}: freeze ${round + 1} of ${rounds}`);
    const rounds = Math.max(FREEZES, lab.rounds);
    const [result] = await interleave([arm], { rounds, deadline: lab.deadline, onRound });
    // It goes on: the instance must still answer rightly after the last freeze.
    await ask(instance, workload, 99);
    return result ?? { name: "freeze", samples: [], rounds: [], failures: [] };
  } finally {
    await instance.dispose();
  }
}

const FIGURES: readonly (readonly [string, Measurement["unit"], (sample: FreezeSample) => number])[] = [
  ["stopped", "ms", (sample) => sample.stoppedMs],
  ["hygiene", "ms", (sample) => sample.hygieneMs],
  ["whole freeze", "ms", (sample) => sample.totalMs],
  ["anonymous memory", "bytes", (sample) => sample.anonymousBytes],
  ["image on disk", "bytes", (sample) => sample.bytesOnDisk],
];

function measurements({ workload, arm }: Frozen): Measurement[] {
  const { failures, cutShort } = arm;
  return FIGURES.map(([way, unit, read], index) => ({
    workload: workload.name,
    way,
    unit,
    samples: arm.samples.map(read),
    // Once, not with every figure of the same runs.
    failures: index === 0 ? failures : [],
    ...(cutShort === undefined || index > 0 ? {} : { cutShort }),
  }));
}

function checks({ workload, arm: { samples } }: Frozen): Check[] {
  const stopped = samples.map(({ stoppedMs }) => stoppedMs);
  const share = samples.map(({ bytesOnDisk, anonymousBytes }) => bytesOnDisk / anonymousBytes);
  const largest = quantile(share, 1);
  return [
    check(workload.name, "stopped while freezing, median", exactly(median(stopped)), "<=", STOPPED_MS_MAX, "ms"),
    check(
      workload.name,
      `stopped while freezing, worst of ${stopped.length}`,
      exactly(quantile(stopped, 1)),
      "<=",
      STOPPED_MS_MAX,
      "ms",
    ),
    check(workload.name, "image on disk / anonymous memory", exactly(largest), "<=", 1, ""),
  ];
}

function table(results: readonly Frozen[]) {
  const right = (title: string) => ({ title, align: "right" as const });
  const rows = results.map(({ workload, arm }): Row => {
    const of = (read: (sample: FreezeSample) => number) => arm.samples.map(read);
    const stopped = of(({ stoppedMs }) => stoppedMs);
    return [
      workload.name,
      significant(median(stopped)),
      significant(quantile(stopped, 1)),
      significant(median(of(({ hygieneMs }) => hygieneMs))),
      significant(median(of(({ totalMs }) => totalMs))),
      megabytes(median(of(({ anonymousBytes }) => anonymousBytes))),
      megabytes(median(of(({ bytesOnDisk }) => bytesOnDisk))),
      String(arm.samples.length),
      failedCell(arm.failures),
    ];
  });
  return {
    title: "Freezing",
    subtitle: "One instance, frozen again and again while it goes on serving; ms and MB",
    columns: [{ title: "" }, ...["stopped", "worst", "hygiene", "whole", "anonymous", "on disk", "n"].map(right), { title: "" }],
    rows,
  };
}
