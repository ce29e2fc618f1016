/**
 * An engine without processes: the same face as the real one (types.ts), deterministic, with failures on demand. Images are small
 * directories with one `manifest.json`, so that restarts, sweeps and damage can be tested. It fails loudly when callers break what
 * holds: a second request while one runs, use after dispose, freezing a dead instance.
 */
import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { sleep } from "../base/clock.js";
import { assert, ThawError } from "../base/errors.js";
import { CpuLatency } from "../linux/cpu-latency.js";
import { FakeHibernation } from "./fake-hibernation.js";
import {
  type FakeContext,
  FakeEnd,
  type FakeEngineOptions,
  type FakeFailure,
  type FakeHandler,
  type FakeOperation,
  fakeInspection,
  RESIDENT_BYTES,
} from "./fake-parts.js";
import type {
  BootOptions,
  Engine,
  EngineStats,
  FreezeOptions,
  FunctionSpec,
  HibernateReport,
  HuskLevel,
  Image,
  ImageInspection,
  Instance,
  InstanceMemory,
  InstanceState,
  InvokeOptions,
  InvokeResult,
  Loader,
  PageCounts,
  ParkedLevel,
  PoolTarget,
  PrepareOptions,
  RuntimeInfo,
  StartFaults,
  StartResult,
  ThawOptions,
} from "./types.js";

export { type FakeContext, FakeEnd, type FakeEngineOptions, type FakeHandler, type FakeOperation } from "./fake-parts.js";

/** The fake. Its extra members are for tests. */
export class FakeEngine implements Engine {
  readonly runtimes: readonly RuntimeInfo[];
  readonly canFreeze: boolean;
  handler: FakeHandler;
  /** Milliseconds that each operation takes; 0 resolves in a microtask. */
  readonly delayMs: Record<"boot" | "thaw" | "freeze" | "dispose" | "hibernate" | "wake", number> = {
    boot: 0,
    thaw: 0,
    freeze: 0,
    dispose: 0,
    hibernate: 0,
    wake: 0,
  };
  /** What {@link Instance.memory} tells of a warm, a woken and a hibernated instance. */
  readonly residentBytes = { ...RESIDENT_BYTES };
  /** Every operation in order, such as `boot hello`. */
  readonly calls: string[] = [];
  /** Functions whose images were prepared, and by which request: in the background, so not among the calls. */
  readonly prepared: string[] = [];
  readonly live = new Set<FakeInstance>();
  /** Most instances that were ever alive at once. */
  liveMax = 0;
  /** Husks parked for each image directory and level. */
  readonly parked = new Map<string, Map<HuskLevel, number>>();
  generic = 0;
  runtime = 0;
  /** What {@link EngineStats.huskBytes} counts for each. */
  huskBytes = 0;
  closed = false;
  readonly cpuLatency = new CpuLatency("off");
  readonly #dir: string | undefined;
  readonly #failures = new Map<FakeOperation, FakeFailure>();
  #nextInstance = 1;
  #nextImage = 1;

  constructor(options: FakeEngineOptions = {}) {
    this.#dir = options.dir;
    this.canFreeze = options.canFreeze ?? true;
    this.runtimes = (options.runtimes ?? ["nodejs20.x", "python3.11"]).map((id) => ({
      id,
      interpreter: `/usr/bin/${id}`,
      version: id.replace(/^[a-z]+/, ""),
    }));
    this.handler = options.handler ?? ((event, context) => ({ event, function: context.spec.name }));
  }

  /** Makes the next `times` calls of `operation` fail with `error`. */
  failNext(operation: FakeOperation, error: Error, times = 1): void {
    this.#failures.set(operation, { error, times });
  }

  /** Forgets failures that were asked for. */
  heal(operation: FakeOperation): void {
    this.#failures.delete(operation);
  }

  async boot(spec: FunctionSpec, options: BootOptions = {}): Promise<Instance> {
    this.note("boot", spec.name);
    await delay(this.delayMs.boot, options.signal);
    this.failIfAsked("boot");
    return this.#instance(spec, 0, {
      kind: "boot",
      us: 90_000,
      phases: [{ name: "load", us: 90_000 }],
      waitUs: 0,
      husk: options.husk === "fresh" ? "fresh" : "generic",
      prefetchedPages: 0,
    });
  }

  async thaw(image: Image, options: ThawOptions = {}): Promise<Instance> {
    const asked = performance.now();
    this.note("thaw", image.spec.name);
    this.#needFreezing("thaw");
    await delay(this.delayMs.thaw);
    this.failIfAsked("thaw");
    const manifest = await this.openImage(image.dir, true);
    let husk: HuskLevel | "fresh" = options.husk === "fresh" ? "fresh" : "generic";
    let waitUs = 0;
    if (options.husk === "parked") {
      let taken = this.#takeParked(image.dir);
      for (; taken === undefined && performance.now() < asked + (options.waitMs ?? 0); taken = this.#takeParked(image.dir))
        await delay(1);
      waitUs = Math.round((performance.now() - asked) * 1000);
      if (taken === undefined) {
        throw new ThawError("PREFERENCE_UNAVAILABLE", {
          what: `No husk is parked for function "${image.spec.name}"`,
          why: `none was ready within ${options.waitMs ?? 0} ms`,
        });
      }
      husk = taken;
    }
    const parkedFilled = husk === "image" || husk === "prefaulted";
    const instance = this.#instance(manifest.spec, manifest.heat, {
      kind: parkedFilled ? "parked" : "thaw",
      loader: options.loader ?? "splice",
      generation: manifest.generation,
      heat: manifest.heat,
      us: parkedFilled ? 300 : 1_800,
      phases: [{ name: "map", us: parkedFilled ? 300 : 1_800 }],
      waitUs,
      husk,
      prefetchedPages: 100,
    });
    if (options.early === true) instance.startEarly();
    else this.failIfAsked("start");
    return instance;
  }

  rememberImage(_image: Image): void {
    // Thawing reads the directory each time.
  }

  async prepareImage(image: Image, { record }: PrepareOptions = {}): Promise<void> {
    const how = record === undefined ? [] : [record === "rehearsal" ? record : record(0)];
    this.prepared.push([image.spec.name, ...how].join(" by "));
    this.failIfAsked("prepareImage");
  }

  async openImage(dir: string, quietly = false): Promise<Image> {
    if (!quietly) {
      this.note("openImage", dir.slice(dir.lastIndexOf("/") + 1));
      this.failIfAsked("openImage");
    }
    try {
      return { ...(JSON.parse(await readFile(join(dir, "manifest.json"), "utf8")) as Image), dir };
    } catch (error) {
      throw new ThawError("IMAGE_DAMAGED", {
        what: `The image ${dir} cannot be used`,
        why: "its manifest cannot be read",
        cause: error,
      });
    }
  }

  async inspect(image: Image): Promise<ImageInspection> {
    return fakeInspection(image);
  }

  async removeImage(image: Image): Promise<void> {
    this.note("removeImage", image.spec.name);
    this.failIfAsked("removeImage");
    this.parked.delete(image.dir);
    await rm(image.dir, { recursive: true, force: true });
  }

  park(image: Image, level: ParkedLevel, count: number, _loader?: Loader): void {
    this.parked.set(image.dir, (this.parked.get(image.dir) ?? new Map<HuskLevel, number>()).set(level, count));
  }

  parkWithin(_allowance: () => number): void {}

  giveUpHusk(): boolean {
    return [...this.parked.keys()].some((dir) => this.#takeParked(dir) !== undefined);
  }

  parkedFor({ dir }: Image): number {
    return [...(this.parked.get(dir)?.values() ?? [])].reduce((sum, count) => sum + count, 0);
  }

  pool({ generic = this.generic, runtime = this.runtime }: PoolTarget): void {
    Object.assign(this, { generic, runtime });
  }

  async poolsFull(_timeoutMs: number): Promise<void> {}

  stats(): EngineStats {
    const husks = { generic: this.generic, runtime: 0, image: 0, prefaulted: 0 };
    for (const levels of this.parked.values()) for (const [level, count] of levels) husks[level] += count;
    const huskBytes = Object.values(husks).reduce((sum, count) => sum + count * this.huskBytes, 0);
    return { instances: this.live.size, husks, huskBytes, husksMade: 0, husksUs: 0 };
  }

  async close(): Promise<void> {
    this.closed = true;
    await Promise.all([...this.live].map((instance) => instance.dispose()));
  }

  /** For the instances of this engine: records an operation. */
  note(operation: FakeOperation | "dispose" | "freeze-live", subject: string): void {
    assert(!this.closed || operation === "dispose", `${operation} after the engine was closed`);
    this.calls.push(`${operation} ${subject}`);
  }

  /** For the instances of this engine: fails an operation that was told to fail. */
  failIfAsked(operation: FakeOperation): void {
    const failure = this.#failures.get(operation);
    if (failure === undefined) return;
    failure.times -= 1;
    if (failure.times <= 0) this.#failures.delete(operation);
    throw failure.error;
  }

  /** For the instances of this engine: writes an image directory as one step. */
  async writeImage(spec: FunctionSpec, generation: number, heat: number, dir: string | undefined, live = false): Promise<Image> {
    this.#needFreezing("freeze");
    const id = `fake-${this.#nextImage++}`;
    const target = dir ?? join(this.#dir ?? "/nonexistent", id);
    const image: Image = {
      id,
      dir: target,
      generation,
      heat,
      code: { functions: 3, tiers: heat >= 100 ? { interpreted: 1, optimised: 2 } : { interpreted: 3 } },
      spec,
      bytesOnDisk: 4096,
      report: {
        hygieneMs: live ? 0 : 1,
        stoppedMs: 2,
        ...(live ? { heldMs: 3 } : {}),
        totalMs: 5,
        anonymousBytes: this.residentBytes.warm,
        storedBytes: 4096,
        copiedAheadBytes: this.residentBytes.warm,
        rounds: 2,
        copiedStoppedBytes: 4096,
        notes: [],
      },
    };
    const temporary = `${target}.partial`;
    await mkdir(temporary);
    await writeFile(join(temporary, "manifest.json"), JSON.stringify(image));
    await rename(temporary, target);
    return image;
  }

  #instance(spec: FunctionSpec, heat: number, start: StartResult): FakeInstance {
    const instance = new FakeInstance(this, this.#nextInstance++, spec, heat, start);
    this.live.add(instance);
    this.liveMax = Math.max(this.liveMax, this.live.size);
    return instance;
  }

  #takeParked(dir: string): HuskLevel | undefined {
    const levels = this.parked.get(dir);
    const level = (["prefaulted", "image"] as const).find((one) => (levels?.get(one) ?? 0) > 0);
    if (level !== undefined) levels?.set(level, (levels.get(level) ?? 0) - 1);
    return level;
  }

  #needFreezing(operation: string): void {
    if (this.canFreeze) return;
    throw new ThawError("UNSUPPORTED_PLATFORM", { what: `Cannot ${operation}`, why: "this engine runs without images" });
  }
}

const FAKE_FAULTS: StartFaults = { minor: 400, major: 3, diskBytes: 12_288, blockedMs: 0 };

/** An instance of {@link FakeEngine}. */
export class FakeInstance implements Instance {
  alive = true;
  /** For tests: what it has printed since its last answer. */
  printed = "";
  started = true;
  served = 0;
  start: StartResult;
  #complete: StartResult;
  #busy = false;
  #freezing: FreezeOptions | undefined;
  readonly #hibernation = new FakeHibernation(this);
  #disposed: Promise<void> | undefined;
  readonly #exitListeners = new Set<(reason: string) => void>();

  constructor(
    readonly engine: FakeEngine,
    readonly id: number,
    readonly spec: FunctionSpec,
    readonly heat: number,
    start: StartResult,
  ) {
    this.start = start;
    this.#complete = start;
  }

  /** As the real one after an early thaw: how long it took is known when the first answer is there. */
  startEarly(): void {
    this.start = { ...this.start, us: 0, phases: [] };
    this.started = false;
  }

  async invoke(payload: Buffer | string, options: InvokeOptions = {}): Promise<InvokeResult> {
    assert(!this.#busy, `two requests at once in instance ${this.id}`);
    assert(this.alive, `request to instance ${this.id}, which has ended`);
    const held = this.#freezing === undefined || this.#freezing.live === true;
    assert(held, `request to instance ${this.id}, which is being frozen`);
    this.#busy = true;
    try {
      if (!this.started) {
        // Behind the request, as the stages of a real thaw are.
        await Promise.resolve();
        try {
          this.engine.failIfAsked("start");
        } catch (error) {
          this.crash("failed");
          throw error;
        }
        this.started = true;
        this.start = this.#complete;
      }
      await this.#hibernation.requested();
      this.engine.failIfAsked("invoke");
      return await this.#answer(payload, options);
    } finally {
      this.#busy = false;
    }
  }

  async freeze(options: FreezeOptions = {}): Promise<Image> {
    const live = options.live === true;
    this.engine.note(live ? "freeze-live" : "freeze", this.spec.name);
    assert(this.alive, `freeze of instance ${this.id}, which has ended`);
    assert(live || !this.#busy, `instance ${this.id} is frozen between two requests`);
    assert(this.#freezing === undefined, `instance ${this.id} is frozen twice at once`);
    assert(this.state !== "deflating", `instance ${this.id} is frozen while it is hibernated`);
    this.#freezing = options;
    try {
      await delay(this.engine.delayMs.freeze);
      this.engine.failIfAsked("freeze");
      if (live && !this.alive) throw new ThawError("INSTANCE_EXITED", { what: `Instance ${this.id} ended while it was frozen` });
      const generation = options.generation ?? (this.start.generation === undefined ? 0 : this.start.generation + 1);
      const image = await this.engine.writeImage(this.spec, generation, this.heat + this.served, options.dir, live);
      if (options.then === "end") await this.dispose();
      return image;
    } finally {
      this.#freezing = undefined;
    }
  }

  async pages(): Promise<PageCounts> {
    this.engine.failIfAsked("pages");
    return { written: 300, image: 2_000, file: 1_500, zero: 10 };
  }

  async memory(): Promise<InstanceMemory> {
    const privateBytes = this.engine.residentBytes[this.state === "deflating" ? "warm" : this.state];
    return { privateBytes, dirtyBytes: privateBytes, sharedBytes: 14_336_000, hibernatedBytes: this.#hibernation.bytes };
  }

  get state(): InstanceState {
    return this.#hibernation.state;
  }

  hibernate(): Promise<HibernateReport> {
    assert(!this.#busy, `instance ${this.id} is hibernated between two requests`);
    assert(this.#freezing === undefined, `instance ${this.id} is hibernated while it is frozen`);
    return this.#hibernation.hibernate();
  }

  wake(): Promise<StartResult> {
    return this.#hibernation.wake();
  }

  async faults(): Promise<StartFaults | undefined> {
    if (this.start.loader === undefined) return undefined;
    this.start = { ...this.start, faults: FAKE_FAULTS, faultsOutside: 7 };
    return FAKE_FAULTS;
  }

  dispose(): Promise<void> {
    this.#disposed ??= this.#end("disposed");
    return this.#disposed;
  }

  onExit(listener: (reason: string) => void): void {
    this.#exitListeners.add(listener);
  }

  takeLogs(): Buffer {
    const taken = Buffer.from(this.printed);
    this.printed = "";
    return taken;
  }

  /** For tests: the process ends by itself, as when it is killed from outside. */
  crash(reason: string): void {
    if (!this.alive) return;
    this.alive = false;
    for (const listener of this.#exitListeners) listener(reason);
  }

  async #end(reason: string): Promise<void> {
    this.engine.note("dispose", this.spec.name);
    await delay(this.engine.delayMs.dispose);
    this.crash(reason);
    this.engine.live.delete(this);
  }

  async #answer(payload: Buffer | string, options: InvokeOptions): Promise<InvokeResult> {
    const began = performance.now();
    const logs: string[] = [];
    const requestId = options.requestId ?? "";
    const context: FakeContext = {
      spec: this.spec,
      requestId,
      instanceId: this.id,
      served: this.served,
      log: (text) => logs.push(text),
    };
    const result = (value: unknown, rest: Partial<InvokeResult> = {}): InvokeResult => {
      const ms = performance.now() - began;
      return {
        payload: Buffer.from(JSON.stringify(value) ?? "null"),
        logs: Buffer.from(logs.join("")),
        handlerMs: ms,
        totalMs: ms,
        maxMemoryMb: 40,
        alive: true,
        ...rest,
      };
    };
    const ended = (platformError: NonNullable<InvokeResult["platformError"]>): InvokeResult => {
      this.crash(platformError);
      const errorMessage = `RequestId: ${requestId} Error: ${platformError}`;
      return result({ errorType: platformError, errorMessage }, { functionError: "Unhandled", platformError, alive: false });
    };
    const limitMs = (options.deadlineMs ?? Date.now() + this.spec.timeoutMs) - Date.now();
    let timer: NodeJS.Timeout | undefined;
    let onExit = (): void => {};
    const timeout = new Promise<"timeout">((resolve) => {
      timer = setTimeout(() => resolve("timeout"), Math.max(0, limitMs));
    });
    try {
      const event: unknown = JSON.parse(payload.toString());
      const exited = new Promise<"exited">((resolve) => {
        onExit = () => resolve("exited");
        this.#exitListeners.add(onExit);
      });
      const answered = Promise.resolve()
        .then(() => this.engine.handler(event, context))
        .then((value) => ({ value }));
      const outcome = await Promise.race([answered, timeout, exited]);
      if (outcome === "timeout") return ended("TIMEOUT");
      if (outcome === "exited") return ended("INSTANCE_EXITED");
      this.served += 1;
      return result(outcome.value);
    } catch (error) {
      if (error instanceof FakeEnd) return ended(error.platformError);
      if (!(error instanceof Error)) throw error;
      this.served += 1;
      return result({ errorType: error.name, errorMessage: error.message, trace: [] }, { functionError: "Unhandled" });
    } finally {
      clearTimeout(timer);
      this.#exitListeners.delete(onExit);
    }
  }
}

const delay = async (ms: number, signal?: AbortSignal): Promise<void> => (ms > 0 ? sleep(ms, signal) : undefined);
