/**
 * The platform's face: what gateway, cli and lab see. Functions are named, deployed from zip packages, invoked,
 * removed; every answer says how its instance was started. One platform per data directory.
 */
import type { HistogramView } from "../base/histogram.js";
import type { Logger } from "../base/log.js";
import type {
  CodeHeat,
  Engine,
  Image,
  ImageInspection,
  InvokeResult,
  Loader,
  PARKED_LOADERS,
  PageCounts,
  StartKind,
  StartResult,
} from "../engine/types.js";

import type { HeatPolicy } from "./heat-policy.js";
import type { IdlePolicy } from "./policy.js";
import type { PressureReader } from "./pressure.js";
import type { InstanceInfo } from "./slot.js";
import type { PackageSource, ReceivedPackage } from "./uploads.js";

export type { HeatDecider, HeatPolicy, ImagePoint } from "./heat-policy.js";
export type { IdleFacts } from "./idle-times.js";
export type { IdlePolicy, IdleStep, IdleTimesOptions } from "./policy.js";
export type { InstanceInfo } from "./slot.js";
export type { PackageSource, ReceivedPackage } from "./uploads.js";

/** The only version that this platform creates so far. */
export const LATEST = "$LATEST";

/** Limits that users know, and that messages name. */
export const LIMITS = {
  payloadBytes: 6 * 1024 * 1024,
  unpackedBytes: 250 * 1024 * 1024,
  /** Whatever unpacks to as much as may be: packing may make files a little larger, and their names come twice. */
  packedBytes: 300 * 1024 * 1024,
  /** Files and directories. A large `node_modules` has 30,000 to 60,000. */
  packageEntries: 100_000,
  environmentBytes: 4096,
  memoryMbMin: 128,
  memoryMbMax: 10_240,
  timeoutMsMin: 1_000,
  timeoutMsMax: 900_000,
  tmpMbMin: 512,
  tmpMbMax: 10_240,
  /** How long a request that demands a kind of start waits for it. */
  preferenceWaitMs: 5_000,
  /** How many requests are replayed at most to make one image, and for how long. */
  heatRequestsMax: 100_000,
  heatMs: 600_000,
  /** Of a request's output, how much `X-Amz-Log-Result` carries. */
  logTailBytes: 4096,
} as const;

/** How many husks to keep parked for every image that is ready. */
export interface ParkedTargets {
  readonly runtime?: number;
  readonly image?: number;
  readonly prefaulted?: number;
  /** Loader of the husks parked at `image` and `prefaulted`; default: the engine's. */
  readonly loader?: (typeof PARKED_LOADERS)[number];
}

/** What a platform runs on, and what it keeps and for how long. */
export interface PlatformOptions {
  /** Made when missing. Held by one platform at a time (INVALID_ARGUMENT otherwise). */
  readonly dataDir: string;
  /** Not closed by {@link Platform.close}: whoever opened it closes it afterwards. */
  readonly engine: Engine;
  /** Instances that may run at once, over all functions. Default 32. The one that is booted to be frozen is beyond it. */
  readonly maxInstances?: number;
  /** Decides what happens to idle instances. Default: {@link fixedPolicy} with the three times below. */
  readonly policy?: IdlePolicy;
  /** Decides which image to thaw and when to take the next. Default: fixed points 0, 1, 10, 100, 1000. */
  readonly heatPolicy?: HeatPolicy;
  /** How long an idle instance keeps its memory before it is hibernated. Default 60 s. */
  readonly keepWarmMs?: number;
  /** How long it stays hibernated before only its image remains. Default 1 h. */
  readonly keepHibernatedMs?: number;
  /** How long an idle instance is kept in all, in whatever state, before only its image remains. Default: both together. */
  readonly keepAliveMs?: number;
  /** Private resident memory of all instances and parked husks is kept below this. Default: no limit. */
  readonly memoryBudgetBytes?: number;
  /** First pause after the disk was too full to hibernate. Default 1 s. */
  readonly hibernateBackoffMs?: number;
  /** First pause after the disk was too full to make a hotter image. Default 1 s. */
  readonly heatBackoffMs?: number;
  /** For tests: how the machine's memory pressure is read. Default: PSI, where the kernel has it. */
  readonly readPressure?: PressureReader;
  readonly parked?: ParkedTargets;
  /** Generic husks for any function. Default: the engine's own. */
  readonly genericHusks?: number;
  /** Husks with the runtime mapped, for whatever is started again and again; see engine/parking.ts. Default: the engine's own, none. */
  readonly runtimeHusks?: number;
  /** How long remove and close wait for running requests. Default 10 s. */
  readonly drainMs?: number;
  readonly log?: Logger;
}

/** A function to deploy. */
export interface DeployRequest {
  readonly name: string;
  /** A zip package, at most {@link LIMITS}.packedBytes: its bytes, or what {@link Platform.receive} gave, which whoever asked for it closes. */
  readonly zip: Uint8Array | ReceivedPackage;
  /** One of the engine's runtimes; guessed from the files when absent. */
  readonly runtime?: string | undefined;
  /** `file.export`; guessed from the files when absent. */
  readonly handler?: string | undefined;
  /** Default 128. */
  readonly memoryMb?: number | undefined;
  /** Default 3 s, as in Lambda. */
  readonly timeoutMs?: number | undefined;
  readonly env?: Readonly<Record<string, string>> | undefined;
  /** Default 512. */
  readonly tmpMb?: number | undefined;
  readonly description?: string | undefined;
  /** Instances of this function that may run at once; default: only the platform's limit. */
  readonly maxInstances?: number | undefined;
  /** Provisioned concurrency: husks that are kept parked for it, prefaulted, and used before anything else is started. Default 0. */
  readonly provisioned?: number | undefined;
  /** Events that are replayed in a private instance, so that its images are hot. Their side effects are the developer's to declare harmless. */
  readonly warmUp?: WarmUp | undefined;
  /**
   * Take hotter images from instances that serve real requests (default false). What those requests left in memory is then in the
   * image, and in every instance thawed from it.
   */
  readonly learn?: boolean | undefined;
  /** Replace the function of that name, whole: what is not given gets its default. Otherwise FUNCTION_EXISTS. */
  readonly update?: boolean | undefined;
}

/** Events that make a function hot before its users do (docs/design/heat.md). */
export interface WarmUp {
  /** JSON values, at least one; replayed in turn. */
  readonly events: readonly unknown[];
  /** How many requests to replay at most; the policy may stop earlier. Default 1,000. */
  readonly requests?: number;
}

/** Where the warm-up of a version stands. */
export interface HeatStatus {
  /** `running`: hotter images are being made. `done`. `failed`: see `reason`; the images that exist serve on. */
  readonly state: "running" | "done" | "failed";
  /** A sentence that names what failed, and at which event or request. */
  readonly reason?: string;
  /** Of the warm-up events alone, where the function learns from traffic too: that may go on for ever. */
  readonly warmUp?: HeatStatus["state"];
}

/** One image of a function, as `thaw image ls` shows it. */
export interface ImageEntry {
  readonly generation: number;
  /** Requests served before the freeze. */
  readonly heat: number;
  readonly bytes: number;
  readonly id: string;
  readonly code?: CodeHeat;
  /** Epoch milliseconds. */
  readonly createdMs: number;
  /** By what it was made. */
  readonly source: "deploy" | "warm-up" | "traffic" | "by-hand";
  /** The one that most starts thawed of late, and for which husks are parked; after a new one came, that, until there were some starts. */
  readonly chosen: boolean;
}

/** How a hotter image is made by hand. */
export interface HeatRequest {
  /** How many requests to replay on top of the hottest image that exists, or of the one named by `from`. */
  readonly requests: number;
  /** JSON text; default: the declared warm-up events in turn, or `{}` without any. */
  readonly payload?: Buffer | string | undefined;
  /** Generation to begin from; default: the hottest. */
  readonly from?: number | undefined;
  /** Aborted when nobody waits for it any more: it ends between two requests, and makes no image. */
  readonly signal?: AbortSignal | undefined;
}

/** What {@link Platform.heat} made. */
export interface HeatReport {
  readonly image: ImageEntry;
  readonly requests: number;
  /** Handler time, milliseconds: of the first of these requests, and the median of the last tenth (at least one). */
  readonly firstMs: number;
  readonly lastMs: number;
}

/**
 * `none`: this machine runs without images. `pending`: being made, or made again after a failure that may pass.
 * `ready`. `refused`: the process holds something that cannot be frozen. `failed`: it could not be loaded or frozen.
 * In every state but `ready` the function runs by boot.
 */
export type ImageState = "none" | "pending" | "ready" | "refused" | "failed";

/** Whether a function has an image, and what it is. */
export interface ImageStatus {
  readonly state: ImageState;
  /** A sentence: why there is no image, or why the last one was dropped. */
  readonly reason?: string;
  readonly image?: Pick<Image, "id" | "dir" | "generation" | "heat" | "bytesOnDisk" | "report">;
  /** How often freezing this version was tried since the server started. */
  readonly attempts: number;
  /** Absent where neither warm-up nor learning was asked for. */
  readonly heat?: HeatStatus;
}

/** A deployed function, with what its defaults are. */
export interface FunctionInfo {
  readonly name: string;
  readonly arn: string;
  readonly version: string;
  readonly runtime: string;
  readonly handler: string;
  readonly memoryMb: number;
  readonly timeoutMs: number;
  readonly env: Readonly<Record<string, string>>;
  readonly tmpMb: number;
  readonly description: string;
  readonly maxInstances?: number;
  readonly provisioned?: number;
  /** Of these, how many wait. */
  readonly provisionedReady?: number;
  readonly warmUp?: WarmUp;
  readonly learn?: boolean;
  /** SHA-256 of the zip, base64 (Lambda's CodeSha256). */
  readonly codeSha256: string;
  /** Size of the zip. */
  readonly codeBytes: number;
  readonly revisionId: string;
  /** Epoch milliseconds. */
  readonly modifiedMs: number;
  readonly image: ImageStatus;
  readonly instances: readonly InstanceInfo[];
  readonly counts: InstanceCounts;
  /** Why its instances cannot be hibernated, once that was tried. */
  readonly hibernateRefused?: string;
  /** Why the last start was not the way that was intended, and when. */
  readonly lastFallback?: { readonly reason: string; readonly atMs: number };
}

/** Instances by what they do. Those that are on their way to disk or back count as idle. */
export interface InstanceCounts {
  readonly running: number;
  readonly idle: number;
  readonly hibernated: number;
  readonly starting: number;
  /** Requests that demand an instance that is running, or being hibernated, now. */
  readonly waiting: number;
}

/** What hibernating or waking by hand did. */
export interface HandReport {
  readonly name: string;
  /** How many were hibernated or woken. */
  readonly instances: number;
  /** Those that failed, that a request took, or that the budget has no room for. */
  readonly skipped: number;
  /** What the first one of those failed with; absent where a request took them. */
  readonly reason?: string;
  /** By how much their private resident memory changed: negative is what was given back. */
  readonly residentBytes: number;
  /** What they hold on disk. */
  readonly hibernatedBytes: number;
}

/** A demanded kind of start: that way, or PREFERENCE_UNAVAILABLE. */
export interface Preference {
  readonly kind: StartKind;
  /** With `thaw`. */
  readonly loader?: Loader;
  /** With `thaw`: that image, hot or not. */
  readonly generation?: number;
  /** With `boot` and `thaw`: `fresh` makes the husk on the path instead of taking one from a pool. */
  readonly husk?: "pooled" | "fresh";
}

/** How a request is served, beside its payload. */
export interface InvokeRequest {
  readonly qualifier?: string | undefined;
  /** What the caller named it by, for the function to see: a whole ARN, a qualifier. */
  readonly invokedAs?: { readonly arn?: string; readonly qualifier?: string } | undefined;
  readonly prefer?: Preference | undefined;
  /** End the instance after the reply. */
  readonly dispose?: boolean | undefined;
  /** Return the last 4 KB of the request's log. */
  readonly logTail?: boolean | undefined;
  /** Return pages by source and memory, read after the reply. */
  readonly trace?: boolean | undefined;
  readonly requestId?: string | undefined;
  /** JSON text, as decoded from X-Amz-Client-Context. */
  readonly clientContext?: string | undefined;
  readonly traceId?: string | undefined;
}

/** The answer to a request, and how its instance came to give it. */
export interface InvokeOutcome {
  readonly requestId: string;
  readonly executedVersion: string;
  readonly result: InvokeResult;
  readonly start: StartResult;
  readonly logTail?: Buffer;
  /** With `trace`, unless the instance ended with the request. */
  readonly pages?: PageCounts;
  readonly memory?: { readonly privateBytes: number; readonly sharedBytes: number };
}

/** One request's output, or a note of the platform about the function. */
export interface LogEntry {
  readonly atMs: number;
  readonly requestId: string;
  /** Whole lines: START, what the function wrote, END, REPORT. */
  readonly text: string;
}

/** How a log is followed. */
export interface FollowOptions {
  /** Ends the iteration. */
  readonly signal?: AbortSignal | undefined;
  /** Begin with what is remembered. Default true. */
  readonly backlog?: boolean | undefined;
}

/** Bounds of durations in histograms, milliseconds. A thaw takes two; the usual ones begin at five. */
export const DURATION_BOUNDS_MS: readonly number[] = [
  0.25, 0.5, 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 60_000, 300_000,
];

/** Counted since the platform was opened. */
export interface Counters {
  readonly invocations: number;
  readonly starts: Readonly<Record<StartKind, number>>;
  /** Page faults of thawed and parked instances up to their first answer; those outside the working set; those that waited for a disk. */
  readonly faults: number;
  readonly faultsOutside: number;
  readonly majorFaults: number;
  /** Sum of StartResult.us over the starts of each kind, microseconds. */
  readonly startUs: Readonly<Record<StartKind, number>>;
  /** How long handlers took, by {@link DURATION_BOUNDS_MS}. Absent before the first answer. */
  readonly handlerMs?: HistogramView;
  readonly functionErrors: number;
  readonly timeouts: number;
  readonly outOfMemory: number;
  /** TOO_MANY_INSTANCES. */
  readonly throttles: number;
  readonly fallbacks: number;
  /** Of generation 0. */
  readonly freezes: number;
  readonly freezeFailures: number;
  /** Images beyond generation 0 that were made, and tries at one that failed. */
  readonly heatFreezes: number;
  readonly heatFailures: number;
  /** Images of any generation that could not be used any more. */
  readonly imagesDropped: number;
  readonly evictions: number;
  readonly logWriteFailures: number;
  readonly hibernations: number;
  readonly hibernateFailures: number;
  /** By a request that came first. */
  readonly deflationsCancelled: number;
  /** By a request, ahead of one, or by hand. */
  readonly wakes: number;
}

/** All counters, of the platform and of each function, and what is there now. */
export interface Metrics extends Counters {
  /** How long starts took, by {@link DURATION_BOUNDS_MS}; kinds that there were. */
  readonly startMs: Readonly<Partial<Record<StartKind, HistogramView>>>;
  readonly functions: Readonly<Record<string, Counters>>;
  readonly instances: InstanceCounts & { readonly max: number };
  readonly memory: {
    /** Private and resident, instances and parked husks, as far as they were measured; see budget.ts. */
    readonly residentBytes: number;
    readonly hibernatedBytes: number;
    /** Absent without a budget. */
    readonly budgetBytes?: number;
  };
}

export interface Platform {
  readonly engine: Engine;
  /**
   * Takes a package that is too large for memory, as it comes, to deploy it then. PAYLOAD_TOO_LARGE; RESOURCE_EXHAUSTED when the disk is full or
   * others hold too much; what `source` throws.
   */
  receive(source: PackageSource): Promise<ReceivedPackage>;
  /** Throws what {@link deploy} would, for all but the package: before that is sent. */
  checkDeploy(request: Omit<DeployRequest, "zip">): void;
  /** Durable when it resolves. The image is made afterwards, in the background: see {@link waitReady}. */
  deploy(request: DeployRequest): Promise<FunctionInfo>;
  /** Waits for running requests at most `drainMs`, then ends them; instances, images, code and logs are gone when it resolves. */
  remove(name: string): Promise<void>;
  /** Sorted by name. */
  list(): FunctionInfo[];
  /** Measures the memory of instances, of one function or all, where it is not known; {@link list} and {@link get} show it then. */
  measure(name?: string): Promise<void>;
  /** Hibernates all idle instances of a function now. NO_INSTANCE, HIBERNATE_REFUSED, RESOURCE_EXHAUSTED. */
  hibernate(name: string): Promise<HandReport>;
  /** Wakes all hibernated instances of a function ahead of requests. NO_INSTANCE, TOO_MANY_INSTANCES. */
  wake(name: string): Promise<HandReport>;
  /** FUNCTION_NOT_FOUND when there is none, or none of that qualifier. */
  get(name: string, qualifier?: string): FunctionInfo;
  /** What the function's image consists of, read anew and checked, pages and all. Undefined while there is none. IMAGE_DAMAGED. */
  inspect(name: string, qualifier?: string): Promise<ImageInspection | undefined>;
  /**
   * Resolves with the status once the first try at an image ended in `ready`, `refused` or `none`: the function can be used. Rejects
   * with the reason when the function could not be loaded (INIT_FAILED and its kin), when the freeze failed, or with IMAGE_NOT_READY after that time.
   * Of a function that is replaced meanwhile it is the newer one's.
   */
  waitReady(name: string, options?: { readonly timeoutMs?: number | undefined }): Promise<ImageStatus>;
  /** All images of a function, coldest first. */
  images(name: string): ImageEntry[];
  /**
   * Makes a hotter image now: thaws one in private, replays requests, freezes it. INVALID_ARGUMENT (payload, requests), IMAGE_NOT_READY,
   * WARM_UP_FAILED (a request that failed, hung, or left what cannot be frozen); nothing that serves is touched by that.
   */
  heat(name: string, request: HeatRequest): Promise<HeatReport>;
  /** An empty payload means `{}`. A function error is a result, not an exception. */
  invoke(name: string, payload: Buffer | string, request?: InvokeRequest): Promise<InvokeOutcome>;
  /** What DryRun checks: that the function exists, and the request could be sent. */
  check(name: string, payload: Buffer | string, request?: InvokeRequest): Promise<void>;
  /** The last lines of the function's log, at most `bytes` (default 64 KiB), whole lines. */
  logs(name: string, options?: { readonly bytes?: number | undefined }): Promise<string>;
  /** Entries as they come; ends when aborted, when the function is removed, or when the platform closes. */
  follow(name: string, options?: FollowOptions): AsyncIterable<LogEntry>;
  metrics(): Metrics;
  /** No new requests (SHUTTING_DOWN); waits for running ones at most `drainMs`; ends all instances. Idempotent. */
  close(): Promise<void>;
}
