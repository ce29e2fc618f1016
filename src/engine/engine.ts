/**
 * The engine: boots, freezes and thaws on this machine. It owns the keeper, the husk pools and the open images; what a function is
 * for, and when it starts, is decided above.
 */
import { rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { monotonicNs } from "../base/clock.js";
import type { ThawError } from "../base/errors.js";
import { removeTree } from "../base/fsync.js";
import { type Logger, silentLogger } from "../base/log.js";
import { BOOT_FD_BASE, compileBase } from "../image/index.js";
import { type CgroupParents, makeParents, probeCgroups, removeParents, sweepCgroups } from "../linux/cgroups.js";
import { CpuLatency, type CpuLatencyWish, checkCpuLatency } from "../linux/cpu-latency.js";
import { type Fingerprint, readFingerprint } from "../linux/fingerprint.js";
import { findInterpreters, type Interpreter, interpretersAt } from "../linux/interpreters.js";
import { Bases } from "./bases.js";
import { bootBegins, bootInstance } from "./boot.js";
import { checkFreeze, checkHusks, checkSpec, checkThaw } from "./check-arguments.js";
import { NO_PIDS } from "./choose-pid.js";
import { makeDataDir, refuseNoexec } from "./data-dir.js";
import { measureFloor } from "./floor.js";
import { type FreezeTools, freezeInstance, generationOf } from "./freeze.js";
import { both } from "./gate.js";
import { Hibernation } from "./hibernate.js";
import { HuskPool } from "./husk-pool.js";
import { LoadedImage } from "./images.js";
import { type InstanceOwner, LiveInstance } from "./instance.js";
import { Keeper } from "./keeper.js";
import { Limits } from "./limits.js";
import { MappedFiles } from "./mapped-files.js";
import { type NativePaths, nativePaths } from "./native.js";
import { OpenImages } from "./open-images.js";
import { Packer } from "./packing.js";
import { Parking } from "./parking.js";
import { bootOnly, engineClosed, nextLabel, notOpen, usBetween } from "./parts.js";
import { Prefetcher } from "./prefetcher.js";
import { pagesElsewhere, ReapStarts } from "./reap.js";
import { Recorder } from "./recorder.js";
import { rehearse } from "./rehearsal.js";
import { Templates } from "./templates.js";
import { Thaws } from "./thaw.js";
import type {
  BootOptions,
  Engine,
  EngineStats,
  FloorSample,
  FreezeOptions,
  FunctionSpec,
  Image,
  ImageInspection,
  Instance,
  Loader,
  PageCounts,
  ParkedLevel,
  PoolTarget,
  PrepareOptions,
  RuntimeInfo,
  ThawOptions,
} from "./types.js";

const GRACE_MS = 30_000;

/** How the engine is opened. */
export interface EngineOptions {
  /** Directory of the server's data; images go to `images` below it. Made when missing. */
  readonly dataDir: string;
  /** Default: writes nothing. */
  readonly log?: Logger;
  /** Functions boot, nothing is frozen or thawed. */
  readonly bootOnly?: boolean;
  /** Default false: images that are asked for with {@link BootOptions.base} share the pages of their bare runtime (docs/design/base-images.md). */
  readonly sharedRuntime?: boolean;
  /** The interpreters to use, or their paths, and no others. Default: those that are found on this machine (0.1 to 1 s). */
  readonly interpreters?: readonly (Interpreter | string)[];
  /**
   * Milliseconds that a function has for loading, and for its before-snapshot hooks with the garbage collection behind them, which takes about a
   * second for each gigabyte of small objects. Default 30,000.
   */
  readonly graceMs?: number;
  /** How deeply idle processors may sleep while somebody waits for an answer. Default `off`. */
  readonly cpuLatency?: CpuLatencyWish;
  /** Called once when the keeper ended by itself: every instance is gone, and this engine cannot make another. */
  readonly onLost?: (error: ThawError) => void;
}

/** {@link Engine} on this machine: joins keeper, pools, images and instances. */
export class LocalEngine implements Engine, InstanceOwner {
  readonly runtimes: readonly RuntimeInfo[];
  readonly canFreeze: boolean;
  readonly graceMs: number;
  readonly cpuLatency: CpuLatency;
  private readonly templates: Templates;
  private readonly bases: Bases;
  private readonly images: OpenImages;
  private readonly instances = new Set<LiveInstance>();
  private readonly husks: HuskPool;
  private readonly prefetcher: Prefetcher;
  private readonly reap: ReapStarts;
  private readonly packer: Packer;
  private readonly parking: Parking;
  private readonly thaws: Thaws;
  private readonly imagesDir: string;
  private readonly log: Logger;
  private readonly limits: Limits;
  private readonly mapped: MappedFiles;
  private closing: Promise<void> | undefined;

  private constructor(
    options: EngineOptions,
    private readonly paths: NativePaths,
    private readonly keeper: Keeper,
    private readonly recorder: Recorder,
    private readonly parents: CgroupParents,
    private readonly fingerprint: Fingerprint,
    interpreters: readonly Interpreter[],
  ) {
    this.log = options.log ?? silentLogger();
    this.mapped = new MappedFiles(keeper);
    this.limits = new Limits(keeper, parents.layout);
    this.imagesDir = join(options.dataDir, "images");
    this.canFreeze = options.bootOnly !== true;
    this.graceMs = options.graceMs ?? GRACE_MS;
    this.cpuLatency = new CpuLatency(options.cpuLatency);
    this.runtimes = interpreters.map((one) => ({ id: one.id, interpreter: one.path, version: one.version }));
    this.templates = new Templates(keeper, paths, interpreters, ({ id }) => this.parking.poolGeneric(id));
    this.bases = this.makeBases(options);
    this.images = new OpenImages(
      (dir, known) => this.load(dir, known?.spec.codeDir),
      (loaded) => this.unload(loaded),
    );
    this.prefetcher = new Prefetcher(keeper, paths.extractor, paths.runtimeDir, this.log);
    this.reap = new ReapStarts(keeper, this.log);
    this.packer = new Packer(keeper, paths.extractor, this.log);
    const base = compileBase();
    const file = keeper.fileBytes(base.bytes);
    this.husks = new HuskPool(
      keeper,
      { name: "base", labels: () => base.labels, request: () => ({ program: file, fds: [], fdBase: BOOT_FD_BASE }) },
      this.log,
    );
    const { husks, images, templates, limits } = this;
    this.parking = new Parking({ husks, images, templates, limits, fingerprint, device: recorder.device, log: this.log });
    const { bases, parking, reap, prefetcher, packer } = this;
    const adopt = (instance: LiveInstance): LiveInstance => this.adopt(instance);
    const shared = { keeper, husks, images, templates, limits, fingerprint, owner: this, adopt };
    this.thaws = new Thaws({ ...shared, bases, parking, recorder, reap, prefetcher, packer });
  }

  /** What bases are made and started with. */
  private makeBases({ dataDir, sharedRuntime = false }: EngineOptions): Bases {
    const { keeper, fingerprint, log } = this;
    const { extractor } = this.paths;
    return new Bases({
      keeper,
      extractor,
      dataDir,
      enabled: sharedRuntime,
      fingerprint,
      log,
      boot: (spec) => this.bootFresh(spec, {}, true),
      freeze: (instance, dir) => freezeInstance(this.freezeTools, instance, { dir }),
      husk: (template, avoid, tmpMb) => this.husks.generic(template.id, avoid, tmpMb, true),
      adopt: (husk, spec, start) => {
        this.limits.set(husk, spec);
        return this.adopt(new LiveInstance(keeper, this, husk, spec, start));
      },
    });
  }

  static async open(asked: EngineOptions): Promise<LocalEngine> {
    const paths = nativePaths();
    // The helpers that write there have another working directory.
    const options = { ...asked, dataDir: resolve(asked.dataDir) };
    makeDataDir(options.dataDir);
    if (options.bootOnly !== true) refuseNoexec(options.dataDir);
    checkCpuLatency(options.cpuLatency);
    const layout = probeCgroups();
    await sweepCgroups(layout);
    const interpreters = await (options.interpreters === undefined ? findInterpreters() : interpretersAt(options.interpreters));
    const parents = makeParents(layout, nextLabel());
    const log = options.log ?? silentLogger();
    let keeper: Keeper | undefined;
    let recorder: Recorder;
    try {
      keeper = await Keeper.start({
        binary: paths.keeper,
        onStderr: (text) => log.warn({ keeper: text.trimEnd() }, "the keeper says"),
        onLost: (error) => {
          log.error({ err: error }, "the keeper ended; no instance can run");
          options.onLost?.(error);
        },
      });
      await keeper.cgroups(parents);
      recorder = await Recorder.open(keeper, paths.extractor, log);
    } catch (error) {
      await keeper?.close();
      await removeParents(parents);
      throw error;
    }
    return new LocalEngine(options, paths, keeper, recorder, parents, readFingerprint(paths.runtimeDir), interpreters);
  }

  boot(spec: FunctionSpec, options: BootOptions = {}): Promise<Instance> {
    return this.unlessClosed(this.bootOpen(spec, options));
  }

  private async bootOpen(spec: FunctionSpec, options: BootOptions): Promise<Instance> {
    this.assertOpen();
    checkSpec(spec);
    if (options.base === true && this.canFreeze) {
      const instance = await this.bases.start(spec, await this.templates.get(spec.runtime), options.signal);
      if (instance !== undefined) return instance;
    }
    return this.bootFresh(spec, options, false);
  }

  private async bootFresh(spec: FunctionSpec, options: BootOptions, base: boolean): Promise<LiveInstance> {
    const began = monotonicNs();
    const template = await this.templates.get(spec.runtime);
    const { husk, pooled } = await this.husks.generic(template.id, NO_PIDS, spec.tmpMb, options.husk !== "fresh");
    const made = monotonicNs();
    const start = bootBegins(pooled);
    const instance = this.adopt(new LiveInstance(this.keeper, this, husk, spec, start));
    this.limits.set(husk, spec);
    try {
      const phases = await bootInstance(this.keeper, instance, template, { base, signal: options.signal });
      instance.start = {
        ...start,
        us: usBetween(began, monotonicNs()),
        phases: [{ name: "husk", us: usBetween(began, made) }, ...phases],
      };
      return instance;
    } catch (error) {
      await instance.dispose();
      // One that was killed because it took too long is not told as somebody's kill.
      throw instance.failure ?? error;
    }
  }

  thaw(image: Image, options: ThawOptions = {}): Promise<Instance> {
    const asked = monotonicNs();
    const wrong = checkThaw(options);
    if (wrong !== undefined) return Promise.reject(wrong);
    return this.using(image, (loaded) => this.thaws.start(loaded, image, options, asked));
  }

  /** What fails because the image is removed meanwhile, or the engine closed, is told as that. */
  private async using<T>(image: Image, work: (loaded: LoadedImage) => Promise<T>): Promise<T> {
    this.assertCanFreeze();
    const open = this.images.use(image);
    const loaded = open instanceof LoadedImage ? open : await this.unlessClosed(open);
    const release = this.images.hold(loaded);
    try {
      return await work(loaded);
    } catch (error) {
      this.assertOpen(error);
      throw loaded.closed ? notOpen(image) : error;
    } finally {
      release();
    }
  }

  private async unlessClosed<T>(work: T | Promise<T>): Promise<T> {
    try {
      return await work;
    } catch (error) {
      this.assertOpen(error);
      throw error;
    }
  }

  async freeze(instance: LiveInstance, options: FreezeOptions): Promise<Image> {
    this.assertCanFreeze();
    checkFreeze(options);
    if (instance.paged) {
      if (options.then === "end") await instance.dispose();
      throw pagesElsewhere(instance.start.loader);
    }
    try {
      const dir = await this.unlessClosed(freezeInstance(this.freezeTools, instance, options));
      const opening = LoadedImage.open(this.keeper, this.paths.extractor, dir, this.fingerprint, true);
      const opened = opening.catch(async (error: unknown) => {
        await rm(dir, { recursive: true, force: true });
        throw error;
      });
      const loaded = await this.unlessClosed(opened);
      this.images.add(loaded);
      this.packer.frozen(loaded);
      return loaded.image;
    } finally {
      if (options.then === "end") await instance.dispose();
      // A live one has, before it went on.
      else if (instance.alive && options.live !== true) instance.announceThaw(generationOf(instance, options));
    }
  }

  async openImage(dir: string): Promise<Image> {
    this.assertCanFreeze();
    return (await this.images.open(dir)).image;
  }

  private async load(dir: string, codeDir: string | undefined): Promise<LoadedImage> {
    const { keeper, fingerprint } = this;
    const loaded = await LoadedImage.open(keeper, this.paths.extractor, dir, fingerprint, false, { codeDir });
    await this.templates.get(loaded.image.spec.runtime);
    if (loaded.setDamaged) this.log.warn({ image: loaded.image.id }, "the working set is damaged or old: it is recorded anew");
    return loaded;
  }

  private unload(loaded: LoadedImage): void {
    this.prefetcher.forget(loaded);
    this.reap.forget(loaded);
    loaded.close();
  }

  rememberImage(image: Image): void {
    this.images.remember(image);
  }

  async prepareImage(image: Image, { record, signal }: PrepareOptions = {}): Promise<void> {
    await this.using(image, async (loaded) => {
      await loaded.prepare({ device: this.recorder.device });
      await this.prefetcher.prepare(loaded);
      if (record === undefined || !loaded.sets.wanting) return;
      await rehearse(this, image, record, signal);
      if (!loaded.sets.tracked) this.parking.recorded(loaded);
    });
  }

  inspect(image: Image): Promise<ImageInspection> {
    return this.using(image, (loaded) => loaded.inspect());
  }

  async removeImage(image: Image): Promise<void> {
    const loaded = this.images.remove(image.dir);
    if (loaded !== undefined) {
      this.parking.forget(loaded);
      this.unload(loaded);
    }
    // Its working set may be being written: a file that comes into a directory that is being removed keeps it.
    await removeTree(image.dir);
  }

  parkWithin(allowance: () => number): void {
    this.husks.parkWithin(allowance);
  }

  giveUpHusk(): boolean {
    return this.husks.giveUp();
  }

  parkedFor(image: Image): number {
    return this.parking.readyFor(image);
  }

  park(image: Image, level: ParkedLevel, count: number, asked?: Loader): void {
    checkHusks(level, count);
    this.parking.park(image, level, count, asked);
  }

  pool(target: PoolTarget): void {
    for (const [level, count] of Object.entries(target)) if (count !== undefined) checkHusks(level, count);
    this.parking.pool(target);
  }

  poolsFull(timeoutMs: number): Promise<void> {
    return this.parking.full(timeoutMs);
  }

  /**
   * What the kernel charges for a process, as many mappings and as many faults as this image takes, and nothing else, in
   * microseconds: the measure that a thaw is held against. Needs a recorded working set.
   */
  async floor(image: Image): Promise<FloorSample> {
    this.assertCanFreeze();
    const loaded = await this.images.use(image);
    const template = await this.templates.get(image.spec.runtime);
    return measureFloor({ keeper: this.keeper, husks: this.husks, huskPath: this.paths.husk, template: template.id }, loaded);
  }

  async pages(instance: LiveInstance): Promise<PageCounts> {
    return (await this.recorder.scan(instance)).counts;
  }

  firstAnswer(instance: LiveInstance, event: Buffer | string): Promise<void> | undefined {
    return both(this.recorder.firstAnswer(instance, event), this.reap.firstAnswer(instance));
  }

  hibernation(instance: LiveInstance): Hibernation {
    return new Hibernation(
      { keeper: this.keeper, extractor: this.paths.extractor, dir: this.imagesDir, log: this.log, mapped: this.mapped },
      instance,
    );
  }

  abandonRecording(instance: LiveInstance): Promise<void> | undefined {
    return this.recorder.abandon(instance);
  }

  ended(instance: LiveInstance): void {
    this.instances.delete(instance);
    this.recorder.ended(instance);
    this.reap.ended(instance);
    this.packer.ended(instance);
  }

  stats(): EngineStats {
    const { made, us } = this.husks.totals;
    return {
      instances: this.instances.size,
      husks: this.husks.countByLevel(),
      huskBytes: this.husks.privateBytes,
      husksMade: made,
      husksUs: us,
    };
  }

  close(): Promise<void> {
    this.closing ??= this.closeNow();
    return this.closing;
  }

  private async closeNow(): Promise<void> {
    this.husks.close();
    this.cpuLatency.close();
    for (const instance of this.instances) instance.fail(engineClosed());
    this.packer.close();
    await this.keeper.close();
    await removeParents(this.parents);
  }

  private get freezeTools(): FreezeTools {
    const { keeper, fingerprint, imagesDir } = this;
    return { keeper, extractor: this.paths.extractor, fingerprint, imagesDir };
  }

  private adopt(instance: LiveInstance): LiveInstance {
    this.instances.add(instance);
    return instance;
  }

  private assertOpen(cause?: unknown): void {
    if (this.closing !== undefined) throw engineClosed(cause);
  }

  private assertCanFreeze(): void {
    this.assertOpen();
    if (this.canFreeze) return;
    throw bootOnly();
  }
}
