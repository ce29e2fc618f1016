/**
 * The engine's public face: what platform, demo, bench and tests see. The engine knows functions only as
 * specs; it does not know what a tenant, an HTTP request or a policy is. A fake with the same face
 * (`src/engine/fake.ts`) tests all of platform without a kernel.
 */

import type { ImageInspection } from "../image/index.js";
import type { CpuLatency } from "../linux/cpu-latency.js";

export type { ImageInspection } from "../image/index.js";

/** Which ways pages arrive in a thawed instance (docs/design/thaw.md, docs/design/pager.md). */
export const LOADERS = ["lazy", "lazy-4k", "eager", "splice", "reap-lazy", "reap-parallel", "reap-file", "reap"] as const;
export type Loader = (typeof LOADERS)[number];
/** Those that can fill a husk before its request comes. */
export const PARKED_LOADERS = ["lazy", "eager", "splice"] as const satisfies readonly Loader[];

/** How an instance came to answer. */
export type StartKind = "boot" | "thaw" | "parked" | "reuse" | "wake";

/**
 * Where the memory of an instance is (Hibernate Container, 2023, §3): `warm`, all of it resident; `deflating`, on its way to disk;
 * `hibernated`, on disk, the process and its kernel objects stay; `woken`, what the last requests touched is resident again.
 */
export type InstanceState = "warm" | "deflating" | "hibernated" | "woken";

/** How far a pooled husk has been filled ahead of a thaw (docs/design/thaw.md: generic, runtime mapped, image mapped, prefaulted). */
export type HuskLevel = "generic" | ParkedLevel;
/** Those of them that are kept ready for images by name. */
export type ParkedLevel = "runtime" | "image" | "prefaulted";

/** What a function is, for the engine. */
export interface FunctionSpec {
  /** Used in messages, logs and the environment; not interpreted. */
  readonly name: string;
  readonly version: string;
  /** A runtime that {@link Engine.runtimes} lists, such as `nodejs20.x` or `python3.11`. */
  readonly runtime: string;
  /** Absolute path on the host of the unpacked code, mounted read-only at /var/task. */
  readonly codeDir: string;
  /** Lambda handler string, `file.export`. */
  readonly handler: string;
  readonly memoryMb: number;
  readonly timeoutMs: number;
  /** User environment; reserved names are set by the engine. */
  readonly env: Readonly<Record<string, string>>;
  readonly tmpMb: number;
}

/** One phase of a start: microseconds from its beginning to its end. */
export interface Phase {
  readonly name: string;
  readonly us: number;
}

/** Pages of an instance by where their content came from (4 KiB each). */
export interface PageCounts {
  /** Private copies in mappings of the page space or anonymous memory (written, or copied ahead). */
  readonly written: number;
  /** Present pages that are shared with the image's page space. */
  readonly image: number;
  /** Present pages that are shared with the interpreter's or libraries' files. */
  readonly file: number;
  /** Present pages that are the kernel's zero page. */
  readonly zero: number;
}

/** How an instance was started. Present in every result; logs, metrics, benchmarks show these numbers. */
export interface StartResult {
  readonly kind: StartKind;
  /** Absent for boot, reuse and wake. */
  readonly loader?: Loader;
  /** Image generation; absent for boot, the origin's for reuse and wake. */
  readonly generation?: number;
  /** Requests that the image had served before it was frozen; absent where the generation is. */
  readonly heat?: number;
  /** From the decision to start until the instance could run, in microseconds; 0 for reuse. */
  readonly us: number;
  readonly phases: readonly Phase[];
  /** Time spent waiting for a pool to refill before the start began; not part of `us`. */
  readonly waitUs: number;
  /** How the husk came: from which pool level, or made on the path. Absent for reuse. */
  readonly husk?: HuskLevel | "fresh";
  /** Pages the loader installed ahead of the function; for a wake those that were read ahead. */
  readonly prefetchedPages: number;
  /** What the pager did before the function ran, for loaders `reap…`: microseconds of reading and installing, contiguous runs. */
  readonly pager?: { readonly readUs: number; readonly installUs: number; readonly regions: number };
  /** Pages of the working set that the page cache did not have when the start asked for them; told a moment after it, by `splice`. */
  readonly coldPages?: number;
  /** Set when this is not the way that was intended, with the reason. */
  readonly fallback?: string;
  /** This start recorded what it touches: everything came by demand, one page a fault. */
  readonly recording?: true;
  /** Page faults up to the first answer; see {@link Instance.faults}. */
  readonly faults?: StartFaults;
  /**
   * Those of them that the working set does not account for; 0 when the start stayed within it. Absent until the first answer was
   * given, for boots and recordings, and while nothing is known of the image.
   */
  readonly faultsOutside?: number;
}

/** Page faults of a thawed instance from the beginning of its start to its first answer. */
export interface StartFaults {
  readonly minor: number;
  /** Those that waited for a disk. */
  readonly major: number;
  /** Bytes that these faults, with the kernel's read-ahead, fetched from disks: what no prefetch had brought. */
  readonly diskBytes: number;
  /** Time blocked on disks: 0 without major faults, else absent when the kernel does not account for it (sysctl kernel.task_delayacct). */
  readonly blockedMs?: number;
}

/** What the caller hands to the handler's context. */
export interface InvokeOptions {
  readonly requestId?: string;
  /** Epoch milliseconds by which the instance must have answered; default now + spec.timeoutMs. */
  readonly deadlineMs?: number;
  /** When the request came, by the clock of `nowMs`, for {@link InvokeResult.totalMs}; default now. */
  readonly beganMs?: number;
  readonly invokedArn?: string;
  readonly clientContext?: string;
  readonly traceId?: string;
  /**
   * The runtime goes its whole way, renewing included, but runs nothing of the function: neither handler nor hooks. The answer is the payload. The instance
   * is of no more use and must be disposed of.
   */
  readonly rehearsal?: boolean;
}

/** See {@link Engine.prepareImage}. */
export interface PrepareOptions {
  /**
   * Also finds out what starts of this image touch, unless that is known, by up to five starts of its own: with these requests (bodies by index), whose effects
   * somebody must have declared harmless, or by rehearsals, without the function's code. What is rehearsed is held provisional: it is recorded anew as soon as one
   * start takes more than a few dozen faults beside it.
   */
  readonly record?: "rehearsal" | ((index: number) => Buffer | string);
  /** Ends the start of its own that is under way, and makes no more: a declared request may take seconds, which nobody shall wait for. */
  readonly signal?: AbortSignal;
}

/** A function's answer. A function error is a result, not an exception. */
export interface InvokeResult {
  /** JSON bytes: the value returned, or the error object of LAMBDA conventions. */
  readonly payload: Buffer;
  /** Set when the handler failed, exited, ran out of memory or time. */
  readonly functionError?: "Unhandled";
  /** Why the platform ended the instance, when it did. */
  readonly platformError?:
    | "TIMEOUT"
    | "OUT_OF_MEMORY"
    | "INSTANCE_EXITED"
    | "PROTOCOL_VIOLATION"
    | "RESPONSE_TOO_LARGE"
    | "INIT_FAILED";
  /** stdout and stderr of this request, in order. */
  readonly logs: Buffer;
  /** Handler time as the runtime saw it, milliseconds. */
  readonly handlerMs: number;
  /** Request in hand to response in hand, milliseconds. */
  readonly totalMs: number;
  /** Highest resident memory that the runtime reported, MiB. */
  readonly maxMemoryMb: number;
  /** False when the instance is gone (exited, killed): it must be disposed and not used again. */
  readonly alive: boolean;
}

/** How an instance is frozen. */
export interface FreezeOptions {
  /** `continue` (default): the instance can be invoked again. `end`: it is disposed once its pages are copied, or that is refused or failed. */
  readonly then?: "continue" | "end";
  /** Absolute path of the directory that shall hold the image; must not exist. Default: inside the engine's data directory. */
  readonly dir?: string;
  /** Run before-snapshot hooks and garbage collection first (default true). */
  readonly hygiene?: boolean;
  /**
   * The instance goes on serving: `invoke` may be called at any time. Memory is copied while requests flow; then, between two of
   * them, the before-snapshot hooks run and the process is stopped for what it wrote since. A request that comes at that moment is
   * held until it goes on, {@link FreezeReport.heldMs} at most. Garbage is not collected, so that the image holds all of it (and
   * whatever requests left in memory): thaw it privately and freeze that for one to keep. Default false.
   */
  readonly live?: boolean;
  /** The image's generation. Default: one more than that of the image it was thawed from, 0 after a boot. */
  readonly generation?: number;
}

/**
 * How far the runtime had optimised the function's own code when it was frozen (Ignite, HotOS'21): what heat is made of. Told by
 * the runtime itself: V8's optimisation status, CPython's specialised instructions.
 */
export interface CodeHeat {
  /** Functions of the user's code that could be looked at. */
  readonly functions: number;
  /** Of these, how many in each tier, slowest first: V8 `interpreted`, `baseline`, `optimised`; CPython `plain`, `specialised`. */
  readonly tiers: Readonly<Record<string, number>>;
  /** Machine code that the runtime holds, all of it, where it tells. */
  readonly codeBytes?: number;
}

/** What freezing cost and what it found. */
export interface FreezeReport {
  readonly hygieneMs: number;
  /** How long the process was stopped, all stops together. */
  readonly stoppedMs: number;
  /** Of a live freeze: how long requests were held back, hooks and stop together. */
  readonly heldMs?: number;
  readonly totalMs: number;
  readonly anonymousBytes: number;
  readonly storedBytes: number;
  /** Copied while the process ran, what changed meanwhile more than once; and in how many rounds. Absent for images of a former version. */
  readonly copiedAheadBytes?: number;
  readonly rounds?: number;
  /** Copied while it was stopped. */
  readonly copiedStoppedBytes?: number;
  /** Plain sentences: TCP connections that will be seen as reset, mappings simplified, … */
  readonly notes: readonly string[];
}

/** What a hibernation cost, and what it left. */
export interface HibernateReport {
  /** Before-snapshot hooks and garbage collection. */
  readonly hygieneMs: number;
  /** How long the process was stopped, all stops together. */
  readonly stoppedMs: number;
  readonly totalMs: number;
  /** Pages written to disk this time; a second hibernation writes what changed since the first. */
  readonly writtenPages: number;
  /** On disk, all hibernations of this instance together. */
  readonly hibernatedBytes: number;
  /** Resident and private afterwards: stacks, page tables. What the kernel keeps for the sandbox comes on top. 0 where it was cancelled and the function keeps everybody from looking. */
  readonly residentBytes: number;
  readonly mappings: number;
  /** A request came first: the instance is as warm as before, and nothing was given back. */
  readonly cancelled: boolean;
}

/** A frozen instance on disk. Plain data; `dir` holds manifest, pages, temporary files, working set. */
export interface Image {
  readonly id: string;
  readonly dir: string;
  readonly generation: number;
  /** Requests that were served before the freeze, over the whole lineage. */
  readonly heat: number;
  /** Absent for images of a former version, and where the runtime does not tell. */
  readonly code?: CodeHeat;
  readonly spec: FunctionSpec;
  readonly bytesOnDisk: number;
  readonly report: FreezeReport;
}

/** How an instance is booted. */
export interface BootOptions {
  /**
   * To be frozen: the function may be loaded into a clone of its bare runtime instead of a fresh process, so that its image shares
   * the runtime's pages. Where that cannot be done it is booted.
   */
  readonly base?: boolean;
  readonly husk?: "pooled" | "fresh";
  /** Ends it while the function is being loaded: INIT_FAILED. */
  readonly signal?: AbortSignal;
}

/** How an image is thawed. */
export interface ThawOptions {
  /** Default `splice`. */
  readonly loader?: Loader;
  /**
   * `pooled` (default): the most advanced husk that suits, `generic` or `runtime`, else made on the path (reported).
   * `fresh`: made on the path. `parked`: only a husk parked for this image; fails with PREFERENCE_UNAVAILABLE if none.
   */
  readonly husk?: "pooled" | "fresh" | "parked";
  /** With `husk`: wait at most this long for a pool to have one (reported as waitUs). Default 0. */
  readonly waitMs?: number;
  /**
   * Resolve as soon as the stages are queued, so that the request can be queued right behind them. What then fails rejects
   * the first `invoke`; `start` is complete once that has answered. Default false: resolve when the process runs.
   */
  readonly early?: boolean;
}

/** A running instance: concurrency 1. */
export interface Instance {
  readonly id: number;
  readonly spec: FunctionSpec;
  /** How it came to answer; after a wake that wake, until the next one. */
  readonly start: StartResult;
  /** False until `start` is complete (see {@link ThawOptions.early}). An `invoke` that rejects while it is false was not seen by the function. */
  readonly started: boolean;
  readonly state: InstanceState;
  /** Requests answered so far by this instance. */
  readonly served: number;
  readonly alive: boolean;
  /**
   * Bytes go to the handler as they are; they must be JSON. One at a time: a second call while one runs is a bug. Wakes a
   * hibernated instance; ends a hibernation that is under way within milliseconds, one way or the other. Rejects with INSTANCE_EXITED when
   * an instance that had answered before ended without having read the request, which is also what becomes of one whose before-snapshot hooks
   * take longer than the request may.
   */
  invoke(payload: Buffer | string, options?: InvokeOptions): Promise<InvokeResult>;
  /** Refuses by name (FREEZE_REFUSED) what cannot be frozen; the instance then goes on. */
  freeze(options?: FreezeOptions): Promise<Image>;
  /**
   * Writes its memory to a file that has no name, and gives it back to the machine (Hibernate Container, 2023, §3.2). Between two
   * requests. HIBERNATE_REFUSED by name, RESOURCE_EXHAUSTED (disk full), HIBERNATE_FAILED: it then stays as it was, unless the
   * message says that it was ended. A hibernated instance answers with its last report.
   */
  hibernate(): Promise<HibernateReport>;
  /** Reads ahead what the last requests touched, before a request asks for it. Idempotent; resolves with {@link start}. */
  wake(): Promise<StartResult>;
  /** Pages by source now (PAGEMAP_SCAN). */
  pages(): Promise<PageCounts>;
  /**
   * Resolves once the faults of the start and its first request were counted, which is after that answer was given; `start` has them
   * from then on. Undefined when there is nothing to count: booted, woken (the thaw that it came from had its own), or gone before. Never rejects.
   */
  faults(): Promise<StartFaults | undefined>;
  /** Resident bytes, private to this instance and shared with others, and those that hibernations hold on disk. */
  memory(): Promise<InstanceMemory>;
  /** What it has printed since its last answer, at most 4 MiB; empty when asked again. The next answer brings only what comes after. */
  takeLogs(): Buffer;
  /** Ends every process of the instance and gives back its cgroup. Idempotent. */
  dispose(): Promise<void>;
  /** Called once when the instance ends, for whatever reason. */
  onExit(listener: (reason: string) => void): void;
}

/** What an instance takes, bytes. */
export interface InstanceMemory {
  readonly privateBytes: number;
  /** Of these, what lies nowhere else: the kernel cannot drop it as it can pages that are equal to their file. */
  readonly dirtyBytes: number;
  readonly sharedBytes: number;
  readonly hibernatedBytes: number;
}

/** An interpreter for functions: `nodejs20.x` or `python3.11`, its absolute path, its full version. */
export interface RuntimeInfo {
  readonly id: string;
  readonly interpreter: string;
  readonly version: string;
}

/** Husks kept ready for whatever is started; what is left out stays as it is. */
export interface PoolTarget {
  /** For any image or boot, of each runtime. At first 2. */
  readonly generic?: number;
  /** With the interpreter's files mapped, for each set of them that functions were started from twice; of the last eight. At first 0. */
  readonly runtime?: number;
}

/** One measurement of an image's floor; microseconds. See `LocalEngine.floor`. */
export interface FloorSample {
  /** A small static program started, and ended, by the keeper. */
  readonly spawnUs: number;
  readonly mappingsUs: number;
  readonly faultsUs: number;
  readonly mappings: number;
  readonly faults: number;
}

/** What there is now, and what making husks has cost since the engine was opened. */
export interface EngineStats {
  readonly instances: number;
  readonly husks: Readonly<Record<HuskLevel, number>>;
  /** Private resident bytes of all husks that wait in pools. */
  readonly huskBytes: number;
  readonly husksMade: number;
  /** Wall microseconds spent on making husks, total. */
  readonly husksUs: number;
}

/** Boots, freezes and thaws. One per server; owns the keeper. */
export interface Engine {
  readonly runtimes: readonly RuntimeInfo[];
  /** Whoever starts or invokes for somebody who waits says so here: from the request in hand to the answer in hand. Closed with the engine. */
  readonly cpuLatency: Pick<CpuLatency, "awaited" | "answered" | "info">;
  /** False under `bootOnly`: freeze and thaw then fail with UNSUPPORTED_PLATFORM. */
  readonly canFreeze: boolean;
  boot(spec: FunctionSpec, options?: BootOptions): Promise<Instance>;
  thaw(image: Image, options?: ThawOptions): Promise<Instance>;
  /** Reads, checks and opens an image that a former run wrote. IMAGE_DAMAGED or IMAGE_MISMATCH when it cannot be used. */
  openImage(dir: string): Promise<Image>;
  /** An image that a former run wrote, known by what was stored about it: read, checked and opened when it is first used. */
  rememberImage(image: Image): void;
  /**
   * Does now what its first start would do while a request waits: reads and checks all of its pages, compiles, looks for its files. For when
   * nobody waits. Rejects as a thaw would.
   */
  prepareImage(image: Image, options?: PrepareOptions): Promise<void>;
  /** Reads the image anew, checks all of it, its pages too, and says what it consists of. IMAGE_DAMAGED when it does not hold. */
  inspect(image: Image): Promise<ImageInspection>;
  /** Forgets the image's pools and descriptors and removes its directory. */
  removeImage(image: Image): Promise<void>;
  /** How many husks to keep ready for this image at a level; refilled in the background, where it is closed once it was opened. 0 drops them. */
  park(image: Image, level: ParkedLevel, count: number, loader?: Loader): void;
  /** Bounds the private memory of all husks that are parked for one image each: more are made as long as they take less than `allowance` says, in bytes. */
  parkWithin(allowance: () => number): void;
  /** Ends a husk that waits for one image, of those of which most wait. False when there is none. */
  giveUpHusk(): boolean;
  /** How many husks wait for that image. */
  parkedFor(image: Image): number;
  /** Husks kept ready for any image. */
  pool(target: PoolTarget): void;
  /** Resolves when every pool has as many husks as asked for, or rejects after `timeoutMs`. */
  poolsFull(timeoutMs: number): Promise<void>;
  stats(): EngineStats;
  /** Ends all instances and husks, the keeper, and removes every cgroup and mount made. Idempotent. */
  close(): Promise<void>;
}
