/** Starts per second that the machine sustains: thaw, one request, disposal, and the refill of the pool, all on the clock. */
import { errorText } from "../../base/errors.js";
import type { Engine, Image } from "../../engine/types.js";
import { within } from "../bounded.js";
import { ask, EMPTY_POOLS, makeImage, preparePools, withEngine } from "../engine-under-test.js";
import type { FailedRun } from "../interleave.js";
import type { Lab, Section } from "../lab.js";
import { familyCpuUs, machineCpuUs } from "../machine.js";
import { check, exactly, type Measurement } from "../report.js";
import { assertStart } from "../start-arms.js";
import { median } from "../statistics.js";
import { failedCell, ms, type Row, significant } from "../table.js";
import { WORKLOADS, type Workload } from "../workloads.js";

const PER_SECOND_AIM = 400;
/** Starts in progress at once. More than the cores, because a start also waits. */
const AT_ONCE = [2, 4];
const HUSKS_READY = 8;
const RUN_MS = 8_000;
const WAIT_MS_MAX = 2_000;
const FAILURES_MAX = 20;

interface Sustained {
  readonly runMs: number;
  readonly startUs: number[];
  readonly waitUs: number[];
  readonly failures: FailedRun[];
  readonly fresh: number;
  readonly perSecond: number;
  readonly cpuMsPerStart: number;
  readonly machineCpuMsPerStart: number;
  readonly ownCpuMsPerStart: number;
}

export const sustained: Section = {
  name: "sustained",
  about: "starts per second with disposal and pool refill, and the CPU time of each",
  msMax: 120_000,
  run: (lab) => withEngine(lab, (engine) => run(lab, engine)),
};

async function run(lab: Lab, engine: Engine) {
  const measurements: Measurement[] = [];
  const rows: Row[] = [];
  const checks = [];
  for (const workload of [WORKLOADS.helloNode, WORKLOADS.helloPython]) {
    const image = await makeImage(engine, workload);
    rows.push({ heading: workload.name });
    let best = Number.NaN;
    for (const atOnce of AT_ONCE) {
      lab.progress(`${workload.name}: ${atOnce} starts at once`);
      const result = await measure(lab, engine, image, workload, atOnce);
      measurements.push(measurement(workload, atOnce, result));
      rows.push(row(atOnce, result));
      best = Number.isNaN(best) ? result.perSecond : Math.max(best, result.perSecond);
    }
    checks.push(check(workload.name, "starts per second, sustained (aim)", exactly(best), ">=", PER_SECOND_AIM, "/s"));
    await preparePools(engine, image, EMPTY_POOLS);
    await engine.removeImage(image);
  }
  return { measurements, checks, tables: [table(rows)] };
}

async function measure(lab: Lab, engine: Engine, image: Image, workload: Workload, atOnce: number): Promise<Sustained> {
  await preparePools(engine, image, { ...EMPTY_POOLS, generic: HUSKS_READY, runtime: HUSKS_READY });
  const startUs: number[] = [];
  const waitUs: number[] = [];
  const failures: FailedRun[] = [];
  let fresh = 0;
  let round = 0;
  const began = performance.now();
  const busyBefore = machineCpuUs();
  const ownBefore = process.cpuUsage();
  const familyBefore = familyCpuUs();
  const runMs = Math.min(RUN_MS, lab.deadline.remainingMs);
  const endsAt = began + runMs;
  const loop = async () => {
    while (performance.now() < endsAt && failures.length < FAILURES_MAX) {
      const mine = round++;
      try {
        const instance = await within(engine.thaw(image, { waitMs: WAIT_MS_MAX }), 10_000, "thaw");
        const { start } = instance;
        try {
          await ask(instance, workload, mine);
        } finally {
          await instance.dispose();
        }
        assertStart(start, { name: "thaw splice", kind: "thaw", loader: "splice" });
        startUs.push(start.us);
        waitUs.push(start.waitUs);
        if (start.husk === "fresh") fresh += 1;
      } catch (error) {
        failures.push({ round: mine, error: errorText(error) });
      }
    }
  };
  await Promise.all(Array.from({ length: atOnce }, loop));
  const started = startUs.length;
  const loopMs = performance.now() - began;
  // Husks that were borrowed from the pool are paid back before the clock stops.
  await engine.poolsFull(20_000);
  const elapsedMs = performance.now() - began;
  const own = process.cpuUsage(ownBefore);
  const busyUs = machineCpuUs() - busyBefore;
  const familyUs = familyCpuUs() - familyBefore;
  lab.progress(`${workload.name}: ${started} starts in ${Math.round(loopMs)} ms`);
  return {
    runMs,
    startUs,
    waitUs,
    failures,
    fresh,
    perSecond: (started * 1000) / elapsedMs,
    cpuMsPerStart: familyUs / 1000 / started,
    machineCpuMsPerStart: busyUs / 1000 / started,
    ownCpuMsPerStart: (own.user + own.system) / 1000 / started,
  };
}

function measurement(workload: Workload, atOnce: number, result: Sustained): Measurement {
  const { runMs, startUs, failures, perSecond, cpuMsPerStart, machineCpuMsPerStart, ownCpuMsPerStart, fresh, waitUs } = result;
  return {
    workload: workload.name,
    way: `thaw splice, ${atOnce} at once`,
    unit: "us",
    samples: startUs,
    failures,
    ...(runMs < RUN_MS ? { cutShort: `${Math.round(runMs)} of ${RUN_MS} ms: the section's time was over` } : {}),
    facts: {
      perSecond,
      cpuMsPerStart,
      machineCpuMsPerStart,
      ownCpuMsPerStart,
      husksMadeOnThePath: fresh,
      waitUsMedian: median(waitUs),
    },
  };
}

function row(
  atOnce: number,
  { startUs, waitUs, failures, perSecond, cpuMsPerStart, machineCpuMsPerStart, ownCpuMsPerStart, fresh }: Sustained,
): Row {
  return [
    `${atOnce} at once`,
    significant(perSecond),
    ms(median(startUs)),
    ms(median(waitUs)),
    significant(cpuMsPerStart),
    significant(ownCpuMsPerStart),
    significant(machineCpuMsPerStart),
    String(fresh),
    String(startUs.length),
    failedCell(failures),
  ];
}

function table(rows: readonly Row[]) {
  const right = (title: string) => ({ title, align: "right" as const });
  return {
    title: "Sustained starts",
    subtitle:
      "thaw, one request, disposal and refill on the clock; for each start: CPU of the server, the keeper and all sandboxes (/proc/PID/stat), and busy time of all cores, whoever used them (/proc/stat)",
    columns: [
      { title: "" },
      ...["starts/s", "start ms", "pool wait ms", "CPU ms", "of it server", "machine ms", "husks on path", "n"].map(right),
      { title: "" },
    ],
    rows,
  };
}
