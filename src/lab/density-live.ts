/** Live idle instances of a mix of functions: made, looked at, hibernated, looked at again, each called. */
import { readdirSync, readFileSync } from "node:fs";
import { nowUs, sleep } from "../base/clock.js";
import { errorText } from "../base/errors.js";
import type { Engine, Image, Instance } from "../engine/types.js";
import { atOnce, Crowd, type MachineShare, machineShare } from "./crowd.js";
import { ask, EMPTY_POOLS, makeImage, preparePools, withEngine } from "./engine-under-test.js";
import type { FailedRun } from "./interleave.js";
import type { Lab } from "./lab.js";
import { childNamed } from "./machine.js";
import { MEMORY_WORKLOADS, type MemoryWorkload, withPackages } from "./memory-workloads.js";
import { availableBytes, cgroupMemory, hostPid } from "./process-memory.js";

/** Of 20 instances so many are of this function: half Python, because a Node has eight threads and the machine 32,768 tasks. */
const MIX: readonly (readonly [MemoryWorkload, number])[] = [
  [MEMORY_WORKLOADS.helloPython, 6],
  [MEMORY_WORKLOADS.decimal, 4],
  [MEMORY_WORKLOADS.helloNode, 5],
  [MEMORY_WORKLOADS.template, 3],
  [MEMORY_WORKLOADS.node80, 2],
];
const AT_ONCE = 4;
const SETTLE_MS = 2_000;

/** Bytes, all instances together. */
export interface LiveLook {
  readonly instances: number;
  readonly cgroupBytes: number;
  readonly kernelBytes: number;
  readonly machine: MachineShare;
}

/** What became of the instances. */
export interface LiveResult {
  readonly wanted: number;
  readonly mix: string;
  readonly idle: LiveLook;
  readonly hibernated: LiveLook;
  /** Microseconds of each call after idling. */
  readonly answered: readonly number[];
  /** Hibernations that failed, after which an instance goes on, among them. */
  readonly failures: readonly FailedRun[];
  /** Instances that did not come to live, or did not answer rightly when called. */
  readonly lost: number;
  /** Of the keeper, with all instances live. */
  readonly descriptors: number;
  readonly tasks: number;
}

interface Live {
  readonly instance: Instance;
  readonly workload: MemoryWorkload;
}

/** Makes `wanted` instances and calls each. See above. */
export function liveInstances(lab: Lab, wanted: number): Promise<LiveResult> {
  return withEngine(lab, (engine) => measure(lab, engine, wanted));
}

async function measure(lab: Lab, engine: Engine, wanted: number): Promise<LiveResult> {
  const images: { workload: MemoryWorkload; image: Image }[] = [];
  for (const [subject, count] of MIX) {
    const workload = withPackages(subject, lab.makeDir("code"));
    lab.progress(`${workload.name}: making its image`);
    const image = await makeImage(engine, workload);
    await preparePools(engine, image, EMPTY_POOLS);
    for (let index = 0; index < count; index++) images.push({ workload, image });
  }
  const failures: FailedRun[] = [];
  const answered: number[] = [];
  const live: Live[] = [];
  const before = availableBytes();
  const crowd = new Crowd(lab.cleanup, AT_ONCE);
  const each = (what: string, lanes: number, work: (one: Live, index: number) => Promise<void>) =>
    atOnce(live.length, lanes, async (index) => {
      const one = live[index];
      if (one === undefined) throw new Error("bug: an index out of range");
      if (index % 20 === 0) lab.progress(`${what} ${index + 1} of ${live.length}`);
      try {
        await work(one, index);
      } catch (error) {
        failures.push({ round: index, error: `${what} ${one.workload.name}: ${errorText(error)}` });
      }
    });
  const during: number[] = [];
  const look = async () => {
    await sleep(SETTLE_MS);
    during.push(availableBytes());
    const groups = crowd.instances.map((instance) => cgroupMemory(hostPid(instance)));
    return {
      instances: groups.length,
      cgroupBytes: groups.reduce((sum, { total, cache }) => sum + total - cache, 0),
      kernelBytes: groups.reduce((sum, { kernel }) => sum + kernel, 0),
    };
  };
  let idle: Awaited<ReturnType<typeof look>>;
  let hibernated: Awaited<ReturnType<typeof look>>;
  let descriptors = Number.NaN;
  let tasks = Number.NaN;
  try {
    try {
      await crowd.fill(wanted, async (index) => {
        const chosen = images[index % images.length];
        if (chosen === undefined) throw new Error("bug: an index out of range");
        if (index % 20 === 0) lab.progress(`live instance ${index + 1} of ${wanted}`);
        const instance = await engine.thaw(chosen.image);
        try {
          await ask(instance, chosen.workload, index);
        } catch (error) {
          await instance.dispose();
          throw error;
        }
        live.push({ instance, workload: chosen.workload });
        return instance;
      });
    } catch (error) {
      failures.push({ round: live.length, error: `only ${live.length} of ${wanted} live: ${errorText(error)}` });
    }
    idle = await look();
    descriptors = keeperDescriptors();
    tasks = Number(readFileSync("/proc/loadavg", "utf8").split(" ")[3]?.split("/")[1]);
    await each("hibernating", 2, async ({ instance }) => {
      const { cancelled } = await instance.hibernate();
      if (cancelled) throw new Error("it was cancelled, though no request came");
    });
    hibernated = await look();
    await each("calling", 1, async ({ instance, workload }, index) => {
      const began = nowUs();
      await ask(instance, workload, index + 1);
      answered.push(nowUs() - began);
    });
  } finally {
    lab.progress("ending all instances");
    await crowd.dispose();
  }
  await sleep(SETTLE_MS);
  const after = availableBytes();
  const [whileIdle = Number.NaN, whileHibernated = Number.NaN] = during;
  return {
    wanted,
    mix: MIX.map(([{ name }, count]) => `${count} of 20 ${name}`).join(", "),
    idle: { ...idle, machine: machineShare(before, whileIdle, after) },
    hibernated: { ...hibernated, machine: machineShare(before, whileHibernated, after) },
    answered,
    failures,
    lost: wanted - answered.length,
    descriptors,
    tasks,
  };
}

/** Open descriptors of the keeper; NaN without one. */
function keeperDescriptors(): number {
  const pid = childNamed("thaw-keeper");
  return pid === undefined ? Number.NaN : readdirSync(`/proc/${pid}/fd`).length;
}
