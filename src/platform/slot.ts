/** An instance and where it stands in the scheduler. */
import type { Image, Instance, StartResult } from "../engine/types.js";
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
  /** The image that it was thawed from; undefined after a boot. */
  readonly origin: Image | undefined;
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
  /** Why this one cannot be hibernated, though others of its function can; see {@link Version.hibernateRefused}. */
  hibernateRefused: string | undefined;
  /** False since it was last used. */
  measured: boolean;
  /** The request of its lineage after which it shall be frozen, and the state of the pool when that was asked; see learning.ts. */
  freezeAt: number | undefined;
  askedAt: number;
  /** While it is being frozen as it goes on: it answers requests, but is neither hibernated nor ended before this settles. */
  freezing: Promise<void> | undefined;
  /** Why it ended, where neither we ended it nor an answer told of it. */
  endedBy: string | undefined;
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

/** The place of an instance that serves its first request. */
export function newSlot(version: Version, instance: Instance, origin?: Image): Slot {
  const { generation, heat } = instance.start;
  return {
    version,
    instance,
    origin,
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
    hibernateRefused: undefined,
    measured: false,
    freezeAt: undefined,
    askedAt: -1,
    freezing: undefined,
    endedBy: undefined,
    dueMs: 0,
    dueIndex: -1,
  };
}

/** What users see of it. */
export function infoOf({ instance, state, residentBytes, hibernatedBytes }: Slot): InstanceInfo {
  const shown = state === "idle" ? (instance.state === "woken" ? "woken" : "warm") : state === "ending" ? "running" : state;
  return { id: instance.id, state: shown, residentBytes, hibernatedBytes };
}
