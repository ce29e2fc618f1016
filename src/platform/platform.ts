/**
 * Joins the parts. Opening: lock ─▶ database ─▶ sweep ─▶ resume. A request: find ─▶ check ─▶ lease an instance ─▶ invoke ─▶
 * log, count ─▶ release. Closing runs the other way around.
 */
import { chmod } from "node:fs/promises";
import { join, resolve } from "node:path";
import { takeUuid } from "../base/ahead.js";
import { nowMs } from "../base/clock.js";
import { isThawError, ThawError } from "../base/errors.js";
import { mkdirDurably } from "../base/fsync.js";
import { type Logger, silentLogger } from "../base/log.js";
import type { Engine, ImageInspection, Instance, InvokeResult, StartResult } from "../engine/types.js";
import { Budget } from "./budget.js";
import { hibernateByHand, wakeByHand } from "./by-hand.js";
import { checkOptions } from "./check-options.js";
import { mendModes } from "./code.js";
import { fixedPoints } from "./fixed-points.js";
import { Functions } from "./functions.js";
import { guardedHeat, guardedIdle } from "./guarded.js";
import { heatByHand } from "./heat-by-hand.js";
import { Heating } from "./heating.js";
import { claimDirectory } from "./identity.js";
import { Images } from "./images.js";
import { Instances, type Lease } from "./instances.js";
import { Learned } from "./learned.js";
import { Learning } from "./learning.js";
import { type DataLock, lockDataDir } from "./lock.js";
import { renderRequest, tailOf } from "./logs.js";
import { CounterSet } from "./metrics.js";
import { bootFailure, isFunctionFault } from "./outcome.js";
import { checkContext, checkPayload } from "./payload.js";
import { fixedPolicy } from "./policy.js";
import { Pools } from "./pools.js";
import { watchPressure } from "./pressure.js";
import { resourceError } from "./resources.js";
import { Starts } from "./starts.js";
import { cutShort, serverStops } from "./stopping.js";
import { Store, type StoredFunction } from "./store.js";
import { type DataLayout, isStrange, layoutOf, refuseOthersFiles, sweep } from "./sweep.js";
import type {
  DeployRequest,
  FollowOptions,
  FunctionInfo,
  HandReport,
  HeatReport,
  HeatRequest,
  ImageEntry,
  ImageStatus,
  InvokeOutcome,
  InvokeRequest,
  LogEntry,
  Metrics,
  PackageSource,
  Platform,
  PlatformOptions,
  ReceivedPackage,
} from "./types.js";
import { Uploads } from "./uploads.js";
import type { Version } from "./version.js";
import { WarmUps } from "./warm-up.js";

const NO_OPTIONS: InvokeRequest = {};

/** Of a lease whose `invoke` rejected: its start failed, and the function never saw the request. */
function neverRan({ attempt, slot }: Lease): boolean {
  return attempt !== undefined && !slot.instance.started;
}

/** Opens a data directory, and everything that was deployed to it. INVALID_ARGUMENT when another server holds it; DATABASE_FAILED. */
export async function openPlatform(options: PlatformOptions): Promise<Platform> {
  checkOptions(options);
  const dataDir = resolve(options.dataDir);
  const layout = layoutOf(dataDir);
  let lock: DataLock | undefined;
  let store: Store | undefined;
  try {
    await refuseOthersFiles(layout);
    for (const dir of [layout.root, layout.functions, layout.images, layout.logs]) await mkdirDurably(dir);
    // Functions' files are readable by everyone, so that other user ids can run them; the way to them is not.
    for (const dir of [layout.functions, layout.images, layout.logs]) await chmod(dir, 0o700);
    lock = lockDataDir(dataDir);
    store = Store.open(dataDir);
    const stored = store.all();
    const owned = {
      code: stored.map(({ version }) => version),
      images: new Set(stored.flatMap(({ images }) => images.map(({ dir }) => dir))),
    };
    await claimDirectory(dataDir, store.identity, await isStrange(layout, owned));
    const removed = await sweep(layout, owned);
    const log = options.log ?? silentLogger();
    if (removed.length > 0) log.info({ removed }, "removed what an earlier server left behind");
    await mendCode(layout, stored, log);
    return new LocalPlatform(options, { layout, store, lock, stored });
  } catch (error) {
    await store?.close();
    lock?.release();
    throw resourceError(error, `The data directory ${dataDir} could not be opened`);
  }
}

/** One that cannot be mended is told of by its starts. */
async function mendCode({ functions }: DataLayout, stored: readonly StoredFunction[], log: Logger): Promise<void> {
  for (const { version } of stored) {
    try {
      if (!(await mendModes(join(functions, version.functionName, version.codeHex)))) continue;
      log.info(
        { function: version.functionName },
        "the function's code could be read by the server alone, and can be by functions again",
      );
    } catch (error) {
      log.warn({ err: error, function: version.functionName }, "the function's code cannot be made readable for functions");
    }
  }
}

interface Opened {
  readonly layout: DataLayout;
  readonly store: Store;
  readonly lock: DataLock;
  readonly stored: readonly StoredFunction[];
}

/** The platform on one machine. */
class LocalPlatform implements Platform {
  readonly engine: Engine;
  readonly #store: Store;
  readonly #lock: DataLock;
  readonly #log: Logger;
  readonly #drainMs: number;
  readonly #counters = new CounterSet();
  readonly #images: Images;
  readonly #heating: Heating;
  readonly #warmUps: WarmUps;
  readonly #learning: Learning;
  readonly #learned: Learned;
  readonly #instances: Instances;
  readonly #uploads: Uploads;
  readonly #functions: Functions;
  readonly #budget: Budget;
  readonly #pressure: NodeJS.Timeout | undefined;
  #closing: Promise<void> | undefined;

  constructor(options: PlatformOptions, opened: Opened) {
    const { engine, maxInstances = 32, parked = {}, drainMs = 10_000, memoryBudgetBytes = Number.POSITIVE_INFINITY } = options;
    const log = options.log ?? silentLogger();
    const { layout, store } = opened;
    const counters = this.#counters;
    this.engine = engine;
    this.#store = store;
    this.#lock = opened.lock;
    this.#drainMs = drainMs;
    this.#log = log;
    this.#budget = new Budget(engine, memoryBudgetBytes);
    const pools = new Pools({ engine, store, imagesDir: layout.images, parked, log });
    const onReady = (version: Version): void => this.#warmUps.begin(version);
    this.#images = new Images({ engine, store, pools, imagesDir: layout.images, parked, log, onReady });
    this.#heating = new Heating({ engine, images: this.#images, pools, budget: this.#budget, log });
    const hotter = { heating: this.#heating, log, backoffMs: options.heatBackoffMs };
    this.#warmUps = new WarmUps({ ...hotter, images: this.#images });
    this.#learning = new Learning({ ...hotter, engine, pools });
    this.#instances = new Instances(new Starts(engine, this.#images, parked), {
      maxInstances,
      policy: guardedIdle(options.policy ?? fixedPolicy(options), log),
      budget: this.#budget,
      backoffMs: options.hibernateBackoffMs,
      log,
    });
    this.#pressure = watchPressure(() => this.#instances.idle.press(), options.readPressure);
    // Where the sweep of the next start finds what a crash left in the moment before it lost its name.
    this.#uploads = new Uploads(layout.functions);
    this.#functions = new Functions({
      engine,
      store,
      images: this.#images,
      heating: this.#heating,
      learning: this.#learning,
      heatPolicy: guardedHeat(options.heatPolicy ?? fixedPoints(), log),
      instances: this.#instances,
      layout,
      uploads: this.#uploads,
      counters,
      drainMs,
      log,
    });
    const { genericHusks: generic, runtimeHusks: runtime } = options;
    engine.pool({ ...(generic === undefined ? {} : { generic }), ...(runtime === undefined ? {} : { runtime }) });
    for (const stored of opened.stored) this.#functions.resume(stored);
    this.#learned = new Learned({ store, versions: () => this.#functions.versions(), log });
  }

  async receive(source: PackageSource): Promise<ReceivedPackage> {
    this.#refuseWhenClosing();
    return this.#uploads.receive(source);
  }

  checkDeploy(request: Omit<DeployRequest, "zip">): void {
    this.#refuseWhenClosing();
    this.#functions.checkDeploy(request);
  }

  async deploy(request: DeployRequest): Promise<FunctionInfo> {
    this.#refuseWhenClosing();
    return (await this.#functions.deploy(request)).info();
  }

  async remove(name: string): Promise<void> {
    this.#refuseWhenClosing();
    await this.#functions.remove(name);
  }

  list(): FunctionInfo[] {
    return this.#functions.all().map((version) => this.#infoOf(version));
  }

  get(name: string, qualifier?: string): FunctionInfo {
    return this.#infoOf(this.#functions.find(name, qualifier));
  }

  async measure(name?: string): Promise<void> {
    await this.#instances.idle.measure(name === undefined ? this.#functions.all() : [this.#functions.find(name)]);
  }

  async hibernate(name: string): Promise<HandReport> {
    this.#refuseWhenClosing();
    return hibernateByHand(this.#instances.idle, this.#functions.find(name));
  }

  async wake(name: string): Promise<HandReport> {
    this.#refuseWhenClosing();
    return wakeByHand(this.#instances.idle, this.#budget, this.#functions.find(name));
  }

  async inspect(name: string, qualifier?: string): Promise<ImageInspection | undefined> {
    const version = this.#functions.find(name, qualifier);
    const { generations } = version;
    const image = generations.favourite;
    if (image === undefined) return undefined;
    const release = generations.use(image);
    try {
      return await this.engine.inspect(image);
    } catch (error) {
      if (isThawError(error, "IMAGE_DAMAGED")) this.#images.drop(version, image, error);
      throw error;
    } finally {
      release();
    }
  }

  async waitReady(name: string, options: { readonly timeoutMs?: number | undefined } = {}): Promise<ImageStatus> {
    const version = this.#functions.find(name);
    const { timeoutMs } = options;
    const began = performance.now();
    try {
      return await this.#images.settled(version, timeoutMs);
    } catch (error) {
      this.#refuseWhenClosing();
      if (!version.retired || !this.#functions.has(name)) throw error;
    }
    // Replaced: what is waited for is the function's image, which is the newer one's by now.
    const waitedMs = performance.now() - began;
    return this.waitReady(name, timeoutMs === undefined ? {} : { timeoutMs: Math.max(0, timeoutMs - waitedMs) });
  }

  async check(name: string, payload: Buffer | string, request: InvokeRequest = NO_OPTIONS): Promise<void> {
    this.#refuseWhenClosing();
    this.#functions.find(name, request.qualifier);
    checkContext(request);
    await checkPayload(payload);
  }

  async invoke(name: string, payload: Buffer | string, request: InvokeRequest = NO_OPTIONS): Promise<InvokeOutcome> {
    const { cpuLatency } = this.engine;
    cpuLatency.awaited();
    try {
      return await this.#invoke(name, payload, request, nowMs());
    } finally {
      cpuLatency.answered();
    }
  }

  async #invoke(name: string, payload: Buffer | string, request: InvokeRequest, beganMs: number): Promise<InvokeOutcome> {
    this.#refuseWhenClosing();
    let version = this.#functions.find(name, request.qualifier);
    checkContext(request);
    let body = checkPayload(payload);
    if (body instanceof Promise) {
      body = await body;
      this.#refuseWhenClosing();
      version = this.#functions.find(name, request.qualifier);
    }
    const requestId = request.requestId ?? takeUuid();
    this.#instances.arrived(version);
    let lease = request.prefer === undefined ? this.#instances.takeIdle(version) : undefined;
    const acquire = (fresh = false): Promise<Lease | undefined> => this.#instances.acquire(version, request.prefer, fresh);
    let next = (): Promise<Lease | undefined> => acquire();
    for (;;) {
      const began = performance.now();
      try {
        lease ??= await next();
      } catch (error) {
        if (!isFunctionFault(error)) throw error;
        const { result, start } = bootFailure(error, (performance.now() - began) * 1000, requestId);
        return this.#finish(version, request, requestId, result, start);
      }
      if (lease === undefined) {
        // Replaced while this request waited: the newer one answers.
        version = this.#functions.find(name, request.qualifier);
        continue;
      }
      const tried = lease;
      const { attempt } = tried;
      try {
        return await this.#answer(version, request, { requestId, beganMs }, body, tried);
      } catch (error) {
        lease = undefined;
        if (attempt !== undefined && neverRan(tried)) next = () => this.#instances.startAgain(tried, attempt, error);
        // Of what an earlier request left behind: this one is another instance's, of which no request can have left anything.
        else if (isThawError(error, "INSTANCE_EXITED")) next = () => acquire(true);
        else throw error;
      }
    }
  }

  /** One request in one instance. Gives the instance back, except when its start failed. */
  async #answer(
    version: Version,
    request: InvokeRequest,
    asked: { readonly requestId: string; readonly beganMs: number },
    body: Buffer | string,
    lease: Lease,
  ): Promise<InvokeOutcome> {
    const { requestId } = asked;
    const { slot } = lease;
    const { instance } = slot;
    let dispose = true;
    let unseen = false;
    let seen: Pick<InvokeOutcome, "pages" | "memory"> | undefined;
    let traced: Pick<StartResult, "faults" | "faultsOutside"> | undefined;
    try {
      const result = await instance.invoke(body, {
        ...asked,
        invokedArn: invokedArn(version, request),
        ...(request.clientContext === undefined ? {} : { clientContext: request.clientContext }),
        ...(request.traceId === undefined ? {} : { traceId: request.traceId }),
      });
      const start = lease.start();
      if (this.#closing !== undefined && version.killed && result.platformError === "INSTANCE_EXITED") {
        const told = cutShort(version, this.#drainMs);
        const payload = Buffer.from(JSON.stringify({ errorMessage: told.message }));
        version.log.append(requestId, renderRequest(requestId, version.spec.memoryMb, start, { ...result, payload }));
        throw told;
      }
      this.#learning.answered(slot, start, result);
      if (request.trace === true && result.alive) {
        const faults = start.kind === "reuse" ? undefined : this.#countFaults(version, instance);
        seen = await this.#look(instance);
        traced = await faults;
      } else if (start.kind !== "reuse") {
        // Once the answer is out: nobody waits for it who did not ask.
        setImmediate(() => void this.#countFaults(version, instance));
      }
      dispose = request.dispose === true || !result.alive;
      return this.#finish(version, request, requestId, result, { ...start, ...traced }, seen);
    } catch (error) {
      unseen = neverRan(lease);
      // Its end is told in the log: no answer tells of it.
      dispose = !isThawError(error, "INSTANCE_EXITED");
      throw error;
    } finally {
      if (!unseen) {
        this.#instances.release(slot, dispose);
        this.#learning.released(slot);
      }
    }
  }

  /** Undefined when it cannot be seen any more: it ended behind its answer. Who asked is answered all the same. */
  async #look(instance: Instance): Promise<Pick<InvokeOutcome, "pages" | "memory"> | undefined> {
    try {
      return { pages: await instance.pages(), memory: await instance.memory() };
    } catch (error) {
      this.#log.info({ err: error, instance: instance.id }, "the pages of an instance could not be counted for a trace");
      return undefined;
    }
  }

  images(name: string): ImageEntry[] {
    return this.#functions.find(name).imageEntries();
  }

  async heat(name: string, request: HeatRequest): Promise<HeatReport> {
    this.#refuseWhenClosing();
    const version = this.#functions.find(name);
    try {
      return await heatByHand(this.#heating, version, request);
    } catch (error) {
      this.#refuseWhenClosing();
      if (!version.retired || !this.#functions.has(name)) throw error;
      throw new ThawError("WARM_UP_FAILED", {
        what: `Function "${name}" was not heated`,
        why: "it was replaced meanwhile",
        fix: "Heat it again, when its new image is ready",
        cause: error,
      });
    }
  }

  async logs(name: string, options: { readonly bytes?: number | undefined } = {}): Promise<string> {
    return this.#functions.find(name).log.tail(options.bytes);
  }

  follow(name: string, options: FollowOptions = {}): AsyncIterable<LogEntry> {
    return this.#functions.find(name).log.follow(options);
  }

  metrics(): Metrics {
    const versions = this.#functions.all();
    const functions = Object.fromEntries(versions.map((version) => [version.name, version.counters.snapshot()]));
    let hibernatedBytes = 0;
    for (const { slots } of versions) for (const slot of slots.all) hibernatedBytes += slot.hibernatedBytes;
    const { limited, limitBytes, usedBytes } = this.#budget;
    const memory = { residentBytes: usedBytes, hibernatedBytes, ...(limited ? { budgetBytes: limitBytes } : {}) };
    const startMs = this.#counters.startMs();
    return { ...this.#counters.snapshot(), startMs, functions, instances: this.#instances.counts(), memory };
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    clearInterval(this.#pressure);
    this.#functions.stop();
    this.#warmUps.close();
    await Promise.all([this.#heating.close(), this.#images.close()]);
    await this.#instances.close(this.#drainMs);
    await this.#learning.close();
    await this.#functions.close();
    await this.#learned.close();
    await this.#store.close();
    this.#lock.release();
  }

  /** Adds the faults of a start to the counters once they are known. */
  async #countFaults(version: Version, instance: Instance): Promise<Pick<StartResult, "faults" | "faultsOutside">> {
    const faults = await instance.faults();
    if (faults === undefined) return {};
    const { faultsOutside } = instance.start;
    version.counters.faulted(faults, faultsOutside);
    return { faults, ...(faultsOutside === undefined ? {} : { faultsOutside }) };
  }

  #finish(
    version: Version,
    request: InvokeRequest,
    requestId: string,
    result: InvokeResult,
    start: StartResult,
    seen?: Pick<InvokeOutcome, "pages" | "memory">,
  ): InvokeOutcome {
    const render = (): string => renderRequest(requestId, version.spec.memoryMb, start, result);
    const text = request.logTail === true ? render() : undefined;
    version.log.append(requestId, text ?? render);
    version.counters.answered(start, result);
    return {
      requestId,
      executedVersion: version.stored.version,
      result,
      start,
      ...(text === undefined ? {} : { logTail: tailOf(text) }),
      ...seen,
    };
  }

  #infoOf(version: Version): FunctionInfo {
    const { favourite } = version.generations;
    if (version.provisioned === 0) return version.info();
    return {
      ...version.info(),
      provisionedReady: favourite === undefined ? 0 : Math.min(version.provisioned, this.engine.parkedFor(favourite)),
    };
  }

  #refuseWhenClosing(): void {
    if (this.#closing !== undefined) throw serverStops("The request was not accepted");
  }
}

/** What the function sees itself invoked by: as the caller named it, else as Lambda names it without a version. */
function invokedArn({ arn }: Version, { invokedAs }: InvokeRequest): string {
  if (invokedAs === undefined) return arn;
  return `${invokedAs.arn ?? arn}${invokedAs.qualifier === undefined ? "" : `:${invokedAs.qualifier}`}`;
}
