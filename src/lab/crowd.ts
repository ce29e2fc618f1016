/** Many live instances at once: made a few at a time, counted together, disposed whatever happens. */

import { errorText } from "../base/errors.js";
import type { Instance } from "../engine/types.js";
import type { Cleanup } from "./bounded.js";
import { cgroupMemory, hostPid, processMemory } from "./process-memory.js";

/** Bytes, all instances together. */
export interface CrowdMemory {
  readonly pssBytes: number;
  /** Charged to their memory cgroups by the kernel for itself. */
  readonly kernelBytes: number;
  readonly pageTableBytes: number;
  readonly eachPssBytes: readonly number[];
}

/** What the machine had less while the crowd was there, by MemAvailable: it sees everything, and everybody. */
export interface MachineShare {
  /** NaN when the machine moved by itself by more than a quarter of it. */
  readonly bytes: number;
  /** By how much MemAvailable differed between before the crowd and after it. */
  readonly driftBytes: number;
}

const DRIFT_MAX = 0.25;

/** From MemAvailable before the crowd came, while it was there, and after it had gone. */
export function machineShare(before: number, during: number, after: number): MachineShare {
  const bytes = (before + after) / 2 - during;
  const driftBytes = Math.abs(after - before);
  return { bytes: driftBytes <= bytes * DRIFT_MAX ? bytes : Number.NaN, driftBytes };
}

/** Instances that live at once. See above. */
export class Crowd {
  readonly instances: Instance[] = [];
  readonly #done: () => void;

  constructor(
    cleanup: Pick<Cleanup, "add">,
    private readonly atOnce: number,
  ) {
    this.#done = cleanup.add("ending all instances", () => this.dispose());
  }

  /** Makes `count` more, a few at a time. The first failure is thrown, once those under way have settled. */
  async fill(count: number, make: (index: number) => Promise<Instance>): Promise<void> {
    await atOnce(count, this.atOnce, async (index) => {
      this.instances.push(await make(index));
    });
  }

  memory(): CrowdMemory {
    const each = this.instances.map((instance) => {
      const pid = hostPid(instance);
      return { process: processMemory(pid), cgroup: cgroupMemory(pid) };
    });
    const sum = (read: (one: (typeof each)[number]) => number) => each.reduce((total, one) => total + read(one), 0);
    return {
      pssBytes: sum(({ process }) => process.pss),
      kernelBytes: sum(({ cgroup }) => cgroup.kernel),
      pageTableBytes: sum(({ process }) => process.pageTables),
      eachPssBytes: each.map(({ process }) => process.pss),
    };
  }

  async dispose(): Promise<void> {
    await Promise.all(this.instances.splice(0).map((instance) => instance.dispose()));
    this.#done();
  }
}

/** Runs `work` for 0 … count - 1, at most `lanes` at once, in order of the index. Throws the first failure, after all that began have ended. */
export async function atOnce(count: number, lanes: number, work: (index: number) => Promise<void>): Promise<void> {
  let next = 0;
  let failed: unknown;
  const lane = async () => {
    while (next < count && failed === undefined) {
      try {
        await work(next++);
      } catch (error) {
        failed ??= error instanceof Error ? error : new Error(errorText(error));
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(lanes, count) }, lane));
  if (failed !== undefined) throw failed;
}
