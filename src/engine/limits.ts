/** What a function may take of the machine: memory as it was deployed with, processors in proportion to it, so many processes. */
import { type CgroupLayout, type LimitWrite, limitWrites } from "../linux/cgroups.js";
import type { Husk } from "./husk.js";
import type { Keeper } from "./keeper.js";
import type { FunctionSpec } from "./types.js";

const MB_PER_CPU = 1769;
const PIDS_MAX = 1024;

/** Writes to control groups are worked out once for each memory size. */
export class Limits {
  readonly #byMemory = new Map<number, LimitWrite[]>();

  constructor(
    private readonly keeper: Keeper,
    private readonly layout: CgroupLayout,
  ) {}

  /** In force before anything that is sent to the husk after it. One that has them already is left alone. */
  set(husk: Husk, { memoryMb }: FunctionSpec): void {
    if (husk.limitedToMb === memoryMb) return;
    husk.limitedToMb = memoryMb;
    let writes = this.#byMemory.get(memoryMb);
    if (writes === undefined) {
      writes = limitWrites(this.layout, { memoryMb, cpus: Math.max(1, memoryMb / MB_PER_CPU), pids: PIDS_MAX });
      this.#byMemory.set(memoryMb, writes);
    }
    this.keeper.limits(husk.id, writes);
  }
}
