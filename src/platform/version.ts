/** A version of a function while the server runs: what is stored, and the live things that belong to it. */
import type { FunctionSpec, Image } from "../engine/types.js";
import type { Slot, Waiter } from "./instances.js";
import type { FunctionLog } from "./logs.js";
import type { CounterSet } from "./metrics.js";
import type { StoredVersion } from "./store.js";
import type { FunctionInfo, ImageState, ImageStatus } from "./types.js";

/** Where the image of a version stands; see images.ts. */
export interface ImageSlot {
  state: ImageState;
  reason: string | undefined;
  image: Image | undefined;
  attempts: number;
  /** Set while an image that a former server wrote is being opened. */
  opening: Promise<void> | undefined;
  /** Why an image that was there is there no more; starts meanwhile carry it as their fallback. */
  lost: string | undefined;
  /** What ended the last attempt, when it failed. */
  error: Error | undefined;
}

/** Counts and instances of a version; kept by instances.ts. */
export interface InstanceSlots {
  /** Idle ones, the longest idle first. */
  readonly idle: Slot[];
  readonly all: Set<Slot>;
  running: number;
  starting: number;
  /** Places taken: idle, running, starting and ending ones. */
  occupied: number;
  readonly ending: Set<Promise<void>>;
  /** Requests that demand an instance that is running now. */
  readonly waiters: Waiter[];
  /** Called when the last place was given back. */
  onVacant: (() => void) | undefined;
}

/** See above. */
export class Version {
  readonly image: ImageSlot = {
    state: "pending",
    reason: undefined,
    image: undefined,
    attempts: 0,
    opening: undefined,
    lost: undefined,
    error: undefined,
  };
  readonly slots: InstanceSlots = {
    idle: [],
    all: new Set(),
    running: 0,
    starting: 0,
    occupied: 0,
    ending: new Set(),
    waiters: [],
    onVacant: undefined,
  };
  /** Replaced or removed: no new request comes, and instances end when they are free. */
  retired = false;
  /** Its time to drain is over: an instance that still starts ends at once. */
  killed = false;
  lastFallback: { readonly reason: string; readonly atMs: number } | undefined;

  constructor(
    readonly stored: StoredVersion,
    readonly spec: FunctionSpec,
    readonly arn: string,
    readonly log: FunctionLog,
    readonly counters: CounterSet,
  ) {}

  get name(): string {
    return this.stored.functionName;
  }

  /** At most so many instances, when the function has a limit of its own. */
  get limit(): number {
    return this.stored.config.maxInstances ?? Number.POSITIVE_INFINITY;
  }

  imageStatus(): ImageStatus {
    const { state, reason, image, attempts } = this.image;
    return {
      state,
      attempts,
      ...(reason === undefined ? {} : { reason }),
      ...(image === undefined
        ? {}
        : {
            image: {
              id: image.id,
              dir: image.dir,
              generation: image.generation,
              heat: image.heat,
              bytesOnDisk: image.bytesOnDisk,
              report: image.report,
            },
          }),
    };
  }

  info(): FunctionInfo {
    const { config, codeHex, codeBytes, revisionId, modifiedMs, version } = this.stored;
    const { maxInstances, ...rest } = config;
    return {
      name: this.name,
      arn: this.arn,
      version,
      ...rest,
      ...(maxInstances === undefined ? {} : { maxInstances }),
      codeSha256: Buffer.from(codeHex, "hex").toString("base64"),
      codeBytes,
      revisionId,
      modifiedMs,
      image: this.imageStatus(),
      instances: { running: this.slots.running, idle: this.slots.idle.length, starting: this.slots.starting },
      ...(this.lastFallback === undefined ? {} : { lastFallback: this.lastFallback }),
    };
  }
}
