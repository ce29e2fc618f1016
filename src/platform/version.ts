/** A version of a function while the server runs: what is stored, and the live things that belong to it. */
import type { FunctionSpec } from "../engine/types.js";
import { Backoff } from "./backoff.js";
import { Generations } from "./generations.js";
import type { HeatPolicy } from "./heat-policy.js";
import { IdleTimes } from "./idle-times.js";
import type { FunctionLog } from "./logs.js";
import type { CounterSet } from "./metrics.js";
import { infoOf, type Slot } from "./slot.js";
import type { StoredVersion } from "./store.js";
import type { FunctionInfo, HeatStatus, ImageEntry, ImageState, ImageStatus, InstanceCounts } from "./types.js";
import type { Waiter } from "./waiters.js";

/** Whether a version has images, and why not; see images.ts. */
export interface ImageSlot {
  state: ImageState;
  reason: string | undefined;
  attempts: number;
  /** Why the last image is there no more; starts meanwhile carry it as their fallback. */
  lost: string | undefined;
  /** What who waits for the image is told at once: it failed for good, or there is no room for it. */
  error: Error | undefined;
}

/** Counts and instances of a version; kept by instances.ts. */
export interface InstanceSlots {
  /** Idle ones whose memory is there, or on its way to disk or back; the longest idle first. */
  readonly idle: Slot[];
  /** Idle ones whose memory is on disk, the longest idle first. */
  readonly hibernated: Slot[];
  readonly all: Set<Slot>;
  running: number;
  starting: number;
  /** Places taken: idle, hibernated, running, starting and ending ones. */
  occupied: number;
  readonly ending: Set<Promise<void>>;
  /** Requests that demand an instance that is running, or being hibernated, now. */
  readonly waiters: Waiter[];
  /** Called when the last place was given back: an update, a removal and the server's end may wait for it at once. */
  readonly onVacant: Set<() => void>;
}

const BACKOFF_MS = 1_000;
const BACKOFF_MS_MAX = 600_000;

/** See above. */
export class Version {
  readonly image: ImageSlot = {
    state: "pending",
    reason: undefined,
    attempts: 0,
    lost: undefined,
    error: undefined,
  };
  readonly slots: InstanceSlots = {
    idle: [],
    hibernated: [],
    all: new Set(),
    running: 0,
    starting: 0,
    occupied: 0,
    ending: new Set(),
    waiters: [],
    onVacant: new Set(),
  };
  /** Private memory of a warm instance, the most of late; undefined until one was measured. */
  warmBytes: number | undefined;
  /** What a hibernated instance of it keeps. */
  leftBytes: number | undefined;
  /** Why its instances cannot be hibernated; another version may do better. */
  hibernateRefused: string | undefined;
  /** After hibernating an instance of it failed. */
  readonly deflating = new Backoff(BACKOFF_MS, BACKOFF_MS_MAX);
  /** Replaced or removed: no new request comes, and instances end when they are free. */
  retired = false;
  /** Its time to drain is over: an instance that still starts ends at once. */
  killed = false;
  lastFallback: { readonly reason: string; readonly atMs: number } | undefined;
  /** Its images. */
  readonly generations: Generations;
  /** What became of its warm-up events; undefined without any. */
  warmUp: HeatStatus | undefined;
  /** Whether hotter images are still to come from its requests; undefined when it does not learn. */
  learning: HeatStatus | undefined;

  constructor(
    readonly stored: StoredVersion,
    readonly spec: FunctionSpec,
    readonly arn: string,
    readonly log: FunctionLog,
    readonly counters: CounterSet,
    heatPolicy: HeatPolicy,
    /** Of the function, over its versions. */
    readonly idleTimes = new IdleTimes(stored.functionName),
  ) {
    this.generations = new Generations(heatPolicy);
    if (stored.config.warmUp !== undefined) this.warmUp = { state: "running" };
    if (stored.config.learn === true) this.learning = { state: "running" };
  }

  get name(): string {
    return this.stored.functionName;
  }

  /** At most so many instances, when the function has a limit of its own. */
  get limit(): number {
    return this.stored.config.maxInstances ?? Number.POSITIVE_INFINITY;
  }

  /** Husks kept parked for it. */
  get provisioned(): number {
    return this.stored.config.provisioned ?? 0;
  }

  instanceCounts(): InstanceCounts {
    const { running, idle, hibernated, starting, waiters } = this.slots;
    return { running, idle: idle.length, hibernated: hibernated.length, starting, waiting: waiters.length };
  }

  /** What a user can do who needs an image of it, and there is none. */
  imageAdvice(): string {
    const { state } = this.image;
    if (state === "none")
      return "Start the server without --boot-only; `thaw doctor` says whether this machine can freeze functions";
    if (state === "refused" || state === "failed") return "Correct what that names, and deploy it again";
    return "Wait for it: `thaw deploy --wait`, or look with `thaw ls`";
  }

  imageStatus(): ImageStatus {
    const { state, reason, attempts } = this.image;
    const image = this.generations.favourite;
    const heat = this.#heatStatus();
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
      ...(heat === undefined ? {} : { heat }),
    };
  }

  /** Its images, coldest first. */
  imageEntries(): ImageEntry[] {
    const { entries, favourite } = this.generations;
    return entries.map(({ image, source, createdMs }) => ({
      generation: image.generation,
      heat: image.heat,
      bytes: image.bytesOnDisk,
      id: image.id,
      ...(image.code === undefined ? {} : { code: image.code }),
      createdMs,
      source,
      chosen: image === favourite,
    }));
  }

  info(): FunctionInfo {
    const { config, codeHex, codeBytes, revisionId, modifiedMs, version } = this.stored;
    const { maxInstances, provisioned, warmUp, learn, ...rest } = config;
    return {
      name: this.name,
      arn: this.arn,
      version,
      ...rest,
      ...(maxInstances === undefined ? {} : { maxInstances }),
      ...(provisioned === undefined ? {} : { provisioned }),
      ...(warmUp === undefined ? {} : { warmUp }),
      ...(learn === undefined ? {} : { learn }),
      codeSha256: Buffer.from(codeHex, "hex").toString("base64"),
      codeBytes,
      revisionId,
      modifiedMs,
      image: this.imageStatus(),
      instances: [...this.slots.all].map(infoOf),
      counts: this.instanceCounts(),
      ...(this.hibernateRefused === undefined ? {} : { hibernateRefused: this.hibernateRefused }),
      ...(this.lastFallback === undefined ? {} : { lastFallback: this.lastFallback }),
    };
  }

  /** Warm-up and learning in one: what failed is told before what runs, and that before what is done. */
  #heatStatus(): HeatStatus | undefined {
    const { state } = this.image;
    const hopeless = state === "refused" || state === "failed" || state === "none";
    const both = [this.warmUp, this.learning].filter((status) => status !== undefined);
    if (hopeless && both.some((status) => status.state === "running"))
      return { state: "failed", reason: "there is no image that could be made hotter; see the image's own state" };
    for (const wanted of ["failed", "running", "done"] as const) {
      const found = both.find((status) => status.state === wanted);
      if (found === undefined) continue;
      return both.length < 2 || this.warmUp === undefined ? found : { ...found, warmUp: this.warmUp.state };
    }
    return undefined;
  }
}
