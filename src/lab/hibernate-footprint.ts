/** Many instances hibernated at once: what is left of each, by process, by control group, by the machine; and again after a wake. */
import { sleep } from "../base/clock.js";
import { errorText } from "../base/errors.js";
import type { Engine, HibernateReport, Image, Instance } from "../engine/types.js";
import { atOnce, Crowd, type MachineShare, machineShare } from "./crowd.js";
import { ask, EMPTY_POOLS, preparePools } from "./engine-under-test.js";
import type { FailedRun } from "./interleave.js";
import type { Lab } from "./lab.js";
import { availableBytes, cgroupMemory, hostPid, processMemory } from "./process-memory.js";
import { specOf, type Workload } from "./workloads.js";

/** What is hibernated. */
export interface HibernateSubject {
  readonly engine: Engine;
  readonly workload: Workload;
  readonly image: Image;
  readonly kind: "boot" | "thaw";
  /** Directory of the private interpreters. */
  readonly interpreters: string;
}

/** One instance in one state; bytes. */
export interface Left {
  readonly privateBytes: number;
  readonly pss: number;
  /** All that its memory cgroup is charged, page cache excepted. */
  readonly cgroupBytes: number;
  readonly cgroupCache: number;
  readonly kernelBytes: number;
}

/** A crowd in each of its states. */
export interface Footprint {
  readonly workload: string;
  readonly kind: "boot" | "thaw";
  readonly warm: readonly Left[];
  readonly hibernated: readonly Left[];
  readonly woken: readonly Left[];
  /** Hibernated again after so many wakes that what each of them writes is kept in memory (engine/wake-set.ts). */
  readonly kept: readonly Left[];
  /** For each instance, hibernated once, and as `kept`. NaN when the machine moved by itself. */
  readonly machine: MachineShare;
  readonly machineKept: MachineShare;
  /** First deflation of each, and those after a wake. */
  readonly first: readonly HibernateReport[];
  readonly second: readonly HibernateReport[];
  readonly failures: readonly FailedRun[];
}

const INSTANCES = 40;
const AT_ONCE = 4;
const REQUESTS_BEFORE = 5;
const SETTLE_MS = 500;
/** Three of each instance are watched, of 32 instances at a time. */
const WAKES = 6;

/** Makes a crowd, and looks at it warm, hibernated, woken, and hibernated after six wakes. */
export async function footprint(lab: Lab, subject: HibernateSubject): Promise<Footprint> {
  const { engine, workload, image, kind } = subject;
  await preparePools(engine, image, EMPTY_POOLS);
  const spec = specOf(workload, engine.runtimes);
  const failures: FailedRun[] = [];
  await sleep(SETTLE_MS);
  const before = availableBytes();
  const shareOf = (during: number, after: number): MachineShare => {
    const whole = machineShare(before, during, after);
    return { bytes: whole.bytes / INSTANCES, driftBytes: whole.driftBytes };
  };
  const crowd = new Crowd(lab.cleanup, AT_ONCE);
  const deflate = async (): Promise<HibernateReport[]> => {
    const reports: HibernateReport[] = [];
    // One at a time: several at once would stop each other for longer.
    await atOnce(crowd.instances.length, 1, async (index) => {
      lab.progress(`${workload.name}, ${kind}: hibernating ${index + 1} of ${INSTANCES}`);
      try {
        const report = await at(crowd, index).hibernate();
        if (report.cancelled) throw new Error("it was cancelled, though no request came");
        reports.push(report);
      } catch (error) {
        failures.push({ round: index, error: errorText(error) });
      }
    });
    await sleep(SETTLE_MS);
    return reports;
  };
  const look = () => crowd.instances.map(left);
  const askAll = async () => {
    for (const [index, instance] of crowd.instances.entries()) await ask(instance, workload, index);
  };
  let part: Omit<Footprint, "workload" | "kind" | "machine" | "machineKept" | "failures">;
  let during: number;
  let duringKept: number;
  try {
    await crowd.fill(INSTANCES, async (index) => {
      lab.progress(`${workload.name}, ${kind}: starting ${index + 1} of ${INSTANCES}`);
      const instance = await (kind === "boot" ? engine.boot(spec) : engine.thaw(image));
      for (let seed = 0; seed < REQUESTS_BEFORE; seed++) await ask(instance, workload, seed);
      return instance;
    });
    await sleep(SETTLE_MS);
    const warm = look();
    const first = await deflate();
    const hibernated = look();
    during = availableBytes();
    await askAll();
    const woken = look();
    const second = await deflate();
    for (let wakes = 1; wakes < WAKES; wakes++) {
      await askAll();
      second.push(...(await deflate()));
    }
    duringKept = availableBytes();
    part = { warm, hibernated, woken, kept: look(), first, second };
  } finally {
    await crowd.dispose();
  }
  await sleep(SETTLE_MS);
  const after = availableBytes();
  const [machine, machineKept] = [shareOf(during, after), shareOf(duringKept, after)];
  return { workload: workload.name, kind, ...part, machine, machineKept, failures };
}

function at(crowd: Crowd, index: number): Instance {
  const instance = crowd.instances[index];
  if (instance === undefined) throw new Error("bug: an index out of range");
  return instance;
}

function left(instance: Instance): Left {
  const pid = hostPid(instance);
  const { privateBytes, pss } = processMemory(pid);
  const { total, kernel, cache } = cgroupMemory(pid);
  return { privateBytes, pss, cgroupBytes: total - cache, cgroupCache: cache, kernelBytes: kernel };
}
