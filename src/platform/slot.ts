/** An instance and where it stands in the scheduler. */
import type { Instance, StartResult } from "../engine/types.js";
import type { Due } from "./due.js";
import type { IdleStep } from "./policy.js";
import type { Version } from "./version.js";

/**
 * `idle`, `deflating` and `waking` can be taken at once and are in the version's list of idle ones; `hibernated` is in a list of its
 * own; `running` and `ending` are in none.
 */
export type SlotState = "running" | "idle" | "deflating" | "hibernated" | "waking" | "ending";

/** See above. */
export interface Slot extends Due {
  readonly version: Version;
  readonly instance: Instance;
  /** Told to everyone that gets this instance after its first request. */
  readonly reuse: StartResult;
  state: SlotState;
  /** When its last request ended, or when it was woken by hand. */
  idleSinceMs: number;
  /** What the policy decided then, and which step is next. */
  plan: readonly IdleStep[];
  nextStep: number;
  /** Private and resident: measured, or an estimate while it is not. Written by {@link Budget.assign} alone. */
  residentBytes: number;
  hibernatedBytes: number;
  /** Of the resident bytes, what hibernating would give back to the machine; known when it is measured. */
  dirtyBytes: number;
  /** False since it was last used. */
  measured: boolean;
}

/** What users see of an instance. */
export interface InstanceInfo {
  readonly id: number;
  /** `warm`: its memory is there. `woken`: what its last requests touched is there again. */
  readonly state: "running" | "warm" | "deflating" | "hibernated" | "waking" | "woken";
  /** Private to it. Of one that runs: when it was last idle, or what its function usually takes. */
  readonly residentBytes: number;
  readonly hibernatedBytes: number;
}

export function newSlot(version: Version, instance: Instance): Slot {
  const { generation, heat } = instance.start;
  return {
    version,
    instance,
    reuse: {
      kind: "reuse",
      ...(generation === undefined ? {} : { generation }),
      ...(heat === undefined ? {} : { heat }),
      us: 0,
      phases: [],
      waitUs: 0,
      prefetchedPages: 0,
    },
    state: "running",
    idleSinceMs: 0,
    plan: [],
    nextStep: 0,
    residentBytes: 0,
    hibernatedBytes: 0,
    dirtyBytes: 0,
    measured: false,
    dueMs: 0,
    dueIndex: -1,
  };
}

export function infoOf({ instance, state, residentBytes, hibernatedBytes }: Slot): InstanceInfo {
  const shown = state === "idle" ? (instance.state === "woken" ? "woken" : "warm") : state === "ending" ? "running" : state;
  return { id: instance.id, state: shown, residentBytes, hibernatedBytes };
}
