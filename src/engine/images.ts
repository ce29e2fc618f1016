/**
 * Images that this server has open: programs compiled, pages open in the keeper, bytes verified. Nothing here is needed again to
 * bring an image back after a restart; the manifest is the truth.
 */

import { monotonicNs } from "../base/clock.js";
import { removeTemporaries } from "../base/fsync.js";
import { nextTurn } from "../base/turns.js";
import {
  BASE,
  basePath,
  bytesOnDisk,
  compileEquip,
  compileFloor,
  compileMemory,
  compilePrefault,
  compileResume,
  compileRuntime,
  compileThaw,
  compileTime,
  type Facts,
  type FileRange,
  fdBase,
  type ImageInspection,
  imageFiles,
  inspectImage,
  isFile,
  isMapped,
  isRuntimeFile,
  joinRuns,
  mayResumeAhead,
  PAGES,
  PARK_PASSES,
  type PageRun,
  type Program,
  type ProgramBuilder,
  passed,
  prefetchRanges,
  RESUME_PASSES,
  type Region,
  readImage,
  readNothingAround,
  readsMost,
  readsScattered,
  runPages,
  runtimeKey,
  SortedRuns,
  type StoredImage,
  samplePages,
  sparesFor,
  storedPages,
  THAW_PASSES,
  trackTouches,
  writtenAnywhere,
} from "../image/index.js";
import type { Fingerprint } from "../linux/fingerprint.js";
import { gather } from "./gather.js";
import type { Husk } from "./husk.js";
import { ImageCheck } from "./image-check.js";
import type { Keeper } from "./keeper.js";
import type { PassedFd, StageRequest } from "./keeper-messages.js";
import { isPaged } from "./page-modes.js";
import { type Compiled, Programs } from "./programs.js";
import { checkFingerprint, type SharedBase, sharedBase } from "./shared-base.js";
import type { StageStep } from "./stages.js";
import type { Image, Loader } from "./types.js";
import { LiveWorkingSet } from "./working-sets.js";

/** Runs of read pages closer than this are mapped by one call: file pages cost nothing but their table entries. */
const READ_GAP_PAGES = 16;
const NS_PER_MS = 1_000_000n;
/** Each that is not there is read alone, and more would be in the way of who reads all in order. */
const SAMPLES = 16;

/** How a start records what it touches. */
export interface Tracking {
  /** The keeper's /dev/userfaultfd, by which the record is exact; undefined where the kernel cannot do that. */
  readonly device: number | undefined;
}

/** One open image. */
export class LoadedImage {
  readonly facts: Facts;
  readonly runtimeKey: string;
  readonly avoidPids: ReadonlySet<number>;
  readonly fdBase: number;
  readonly pagesTotal: number;
  readonly pagesPath: string;
  readonly sets: LiveWorkingSet;
  /** Nothing of it runs, once it is resumed, before a request comes. */
  readonly waits: boolean;
  closed = false;
  private readonly programs: Programs;
  private readonly runtimeProgram: Compiled;
  private readonly runtimePool: string;
  /** This boot's clock may still be behind the image's; it only goes forward. */
  private clockBehind = true;
  private ranges: readonly FileRange[] | undefined;
  private copies: readonly PageRun[] | undefined;
  private shared: SharedBase | undefined;
  private fileRanges: readonly FileRange[] | undefined;
  private sampled: readonly FileRange[] | undefined;

  private constructor(
    private readonly keeper: Keeper,
    readonly image: Image,
    private readonly stored: StoredImage,
    readonly pagesFile: number,
    private readonly taskFile: number,
    /** The base's page space. */
    readonly baseFile: number | undefined,
    private readonly check: ImageCheck,
    private readonly extractor: string,
  ) {
    this.facts = stored.manifest.facts;
    this.pagesPath = imageFiles(image.dir).pages;
    this.waits = mayResumeAhead(this.facts);
    this.avoidPids = new Set([...stored.manifest.lineagePids, ...this.facts.threads.map((thread) => thread.number)]);
    this.fdBase = fdBase(this.facts);
    this.pagesTotal = this.facts.regions.reduce((sum, region) => sum + storedPages(region), 0);
    this.sets = new LiveWorkingSet(image.dir, this.facts, stored.workingSet, () => this.setChanged());
    this.programs = new Programs(keeper, this.fdBase);
    this.runtimeProgram = this.programs.get("runtime", () => compileRuntime(this.facts));
    this.runtimeKey = runtimeKey(this.runtimeProgram.program);
    this.runtimePool = `runtime:${image.spec.runtime}:${this.runtimeKey}`;
  }

  /** The way in which its pages arrive: as asked, unless its allocator cannot live on file mappings. */
  loaderFor(asked: Loader = "splice"): Loader {
    return this.facts.trustsZeros === undefined ? asked : "eager";
  }

  /**
   * Reads, checks and opens. `written`: the pages were written by this server a moment ago. `codeDir`: where the code is now; what the manifest says of that holds
   * only until the data directory is moved, or copied: then it is another server's.
   */
  static async open(
    keeper: Keeper,
    extractor: string,
    dir: string,
    here: Fingerprint,
    written: boolean,
    { isBase = false, codeDir }: { readonly isBase?: boolean; readonly codeDir?: string | undefined } = {},
  ): Promise<LoadedImage> {
    // A working set that a killed server was writing.
    if (!written) await removeTemporaries(dir);
    const stored = await readImage(dir);
    const { manifest } = stored;
    checkFingerprint(manifest.fingerprint, here, dir);
    const image: Image = {
      id: manifest.id,
      dir,
      generation: manifest.generation,
      heat: manifest.heat,
      ...(manifest.code === undefined ? {} : { code: manifest.code }),
      spec: codeDir === undefined ? manifest.spec : { ...manifest.spec, codeDir },
      bytesOnDisk: await bytesOnDisk(dir),
      report: manifest.report,
    };
    const check = new ImageCheck(keeper, extractor, stored, dir, isBase);
    const pages = await keeper.openFile(imageFiles(dir).pages);
    let task: number | undefined;
    let base: number | undefined;
    try {
      task = await keeper.openTask(image.spec);
      if (manifest.base !== undefined) base = await keeper.openFile(basePath(dir));
    } catch (error) {
      keeper.closeFile(pages);
      if (task !== undefined) keeper.closeFile(task);
      throw error;
    }
    if (written) check.trust();
    return new LoadedImage(keeper, image, stored, pages, task, base, check, extractor);
  }

  /** The runtime that an image on disk was made for. IMAGE_DAMAGED, IMAGE_MISMATCH. */
  static async runtimeOf(dir: string): Promise<string> {
    return (await readImage(dir)).manifest.spec.runtime;
  }

  /** What an instance of this image shares with others: this image itself when it is a base, or the base that it was made from. */
  asBase(): SharedBase {
    this.shared ??= sharedBase(this.stored);
    return this.shared;
  }

  /** The base's id, where it shares one. */
  get baseId(): string | undefined {
    return this.stored.manifest.base?.id;
  }

  /** A working set was there when the image was opened, but could not be used. */
  get setDamaged(): boolean {
    return this.stored.workingSetDamaged;
  }

  get bootId(): string {
    return this.stored.manifest.fingerprint.bootId;
  }

  get lineagePids(): readonly number[] {
    return this.stored.manifest.lineagePids;
  }

  /** Makes sure that the page space is the one that was written: at first use, and whenever its file changed since. */
  verify(): Promise<void> | undefined {
    return this.check.verify();
  }

  /** Whether it was found to be so once; {@link LoadedImage.verify} tells whether it still is. */
  get foundWhole(): boolean {
    return this.check.foundWhole;
  }

  /** Checks, and compiles what the next starts will need, in turns of some milliseconds; while no set is known, they record one with `tracking`. */
  async prepare(tracking: Tracking): Promise<void> {
    await this.verify();
    const loader = this.loaderFor(undefined);
    const record = loader === "splice" && !this.sets.recorded ? tracking : undefined;
    for (const generic of [true, false]) {
      await nextTurn();
      if (this.closed) return;
      this.thawStep(loader, generic, record, record?.device).labels();
    }
    await nextTurn();
    this.prefetchRanges();
  }

  /** Has the page cache hold parts of the page space in few pieces; nothing is done to one that changed since it was checked. See gather.ts. */
  gather(ranges: readonly FileRange[]): Promise<void> {
    const parts = ranges.filter(({ file }) => file === PAGES);
    return this.check.rewritten(() => gather(this.keeper, this.extractor, this.pagesPath, parts));
  }

  /** What comes with a program that maps memory. An image without a base passes its own pages in its place. */
  private memoryFds(task = this.taskFile): PassedFd[] {
    const fds: PassedFd[] = [];
    fds[THAW_PASSES.pages] = { kind: "file", file: this.pagesFile };
    fds[THAW_PASSES.task] = { kind: "tree", file: task };
    fds[THAW_PASSES.base] = { kind: "file", file: this.baseFile ?? this.pagesFile };
    return fds;
  }

  /** Reads and checks everything again, the pages too. */
  async inspect(): Promise<ImageInspection> {
    const stored = await readImage(this.image.dir);
    await this.check.again();
    return inspectImage(stored, { outside: this.sets.outside, renewals: this.sets.renewals });
  }

  /** Everything that a husk without this image lacks, and it runs. `generic`: it has no runtime mapped either. `task`: other code. */
  thawStep(loader: Loader, generic: boolean, record?: Tracking, device?: number, task = this.taskFile): StageStep {
    const compile = (): Program => {
      return compileThaw(this.facts, {
        contents: this.stored.contents,
        source: isPaged(loader) ? "paged" : loader === "eager" ? "eager" : "lazy",
        runtime: generic,
        ...(loader === "lazy-4k" ? { forget: true, readsAlone: isMapped } : {}),
        ...(loader === "splice" && record === undefined ? { readsAlone: this.readsAlone() } : {}),
        ...(isPaged(loader) ? { readsAlone: isFile } : {}),
        ...(record === undefined ? {} : { record: { exact: record.device !== undefined } }),
        ...(loader === "splice" && record === undefined ? { prefetch: this.sets.set.written } : {}),
      });
    };
    const fds = this.memoryFds(task);
    fds[THAW_PASSES.control] = { kind: "control" };
    fds[THAW_PASSES.log] = { kind: "log" };
    const userfaultfd = isPaged(loader) ? device : record?.device;
    if (userfaultfd !== undefined) fds[THAW_PASSES.userfaultfd] = { kind: "file", file: userfaultfd };
    return this.programs.step(
      "thaw",
      () => this.programs.get(`thaw:${loader}:${generic}:${record === undefined ? "" : "record"}`, compile),
      fds,
      task === this.taskFile,
    );
  }

  /** Ahead of a request, for any image of this interpreter. What is mapped is shared with everything that runs it: it costs no memory. */
  runtimeSteps(here: Fingerprint): StageStep[] {
    const threads = this.movesClock(here) ? 0 : sparesFor(this.facts);
    const prefault = (): Program => compilePrefault([], this.split().runtime, threads);
    return [
      this.programs.step("runtime", () => this.runtimeProgram),
      this.programs.step("prefault runtime", () => this.programs.get(`prefault runtime:${threads}`, prefault)),
    ];
  }

  /** Whether a husk may have to enter a time namespace for this image: the kernel lets only a single thread do that. */
  movesClock(here: Fingerprint): boolean {
    if (here.bootId !== this.bootId) return true;
    this.clockBehind &&= monotonicNs() < this.facts.clock.monotonicNs;
    return this.clockBehind;
  }

  /** The pool of husks with its interpreter's files mapped. Those with threads made ahead are of no use to an image that moves the clock. */
  poolKey(here: Fingerprint): string {
    return this.movesClock(here) ? `${this.runtimePool}:single` : this.runtimePool;
  }

  /** Ahead of a request, for this image alone, up to the last step. */
  parkSteps(loader: Loader, prefaulted: boolean, here: Fingerprint, before: (husk: Husk) => void, device?: number): StageStep[] {
    // Where all starts are parked ones, they have to record: the first husks do, until there is something to prefault.
    const tracked = loader === "splice" && this.sets.tracked;
    if (tracked) return [...this.trackedSteps(before, device), ...this.equipSteps(here)];
    const source = loader === "eager" ? "eager" : "lazy";
    const quiet = (program: ProgramBuilder): void => readNothingAround(program, this.facts, this.readsAlone());
    const compile = (): Program => compileMemory(this.facts, source, loader === "splice" ? quiet : undefined);
    const memory = (): Compiled => this.programs.get(`memory:${loader === "splice" ? loader : source}`, compile);
    const steps: StageStep[] = [
      ...this.runtimeSteps(here),
      { ...this.programs.step("memory", memory, this.memoryFds()), before },
    ];
    if (prefaulted) {
      const prefault = (): Program => compilePrefault(this.parkedCopies(), this.split().image);
      steps.push(this.programs.step("prefault", () => this.programs.get("prefault", prefault)));
    }
    return [...steps, ...this.equipSteps(here)];
  }

  /** Nothing mapped ahead; what is touched from then on can be told. */
  private trackedSteps(before: (husk: Husk) => void, device: number | undefined): StageStep[] {
    const fds = this.memoryFds();
    if (device !== undefined) fds[PARK_PASSES.userfaultfd] = { kind: "file", file: device };
    const track = (program: ProgramBuilder): void => trackTouches(program, this.facts, passed(PARK_PASSES.userfaultfd));
    const compile = (): Program => compileMemory(this.facts, "lazy", device === undefined ? undefined : track);
    const mark = (husk: Husk): void => {
      before(husk);
      husk.tracked = true;
    };
    const memory = this.programs.step("memory", () => this.programs.get("memory:record", compile), fds);
    return [this.programs.step("runtime", () => this.runtimeProgram), { ...memory, before: mark }];
  }

  private equipSteps(here: Fingerprint): StageStep[] {
    const time = this.timeStep(here);
    const equip = this.programs.step("equip", () =>
      this.programs.get("equip", () => compileEquip(this.facts, this.stored.contents)),
    );
    const resume: StageStep = { ...this.resumeStep(), before: (husk) => husk.resumesAhead() };
    return [...(time === undefined ? [] : [time]), equip, ...(this.waits ? [resume] : [])];
  }

  /** What remains for a parked husk; behind it already, where the process may wait for its request by itself. */
  resumeStep(): StageStep {
    const fds: PassedFd[] = [];
    fds[RESUME_PASSES.control] = { kind: "control" };
    fds[RESUME_PASSES.log] = { kind: "log" };
    return this.programs.step("resume", () => this.programs.get("resume", () => compileResume(this.facts)), fds);
  }

  /** The floor's program (see engine/floor.ts); handed over for one use. */
  floorStep(): { step: StageStep; done: () => void; mappings: number; faults: number } {
    const { program, mappings, faults } = compileFloor(this.facts, this.sets.set);
    const file = this.keeper.fileBytes(program.bytes);
    const request = (): StageRequest => ({ program: file, fds: this.memoryFds(), fdBase: this.fdBase });
    return {
      step: { name: "floor", labels: () => program.labels, request },
      done: () => this.keeper.closeFile(file),
      mappings,
      faults,
    };
  }

  /** A stage that puts the clock where the image left it; undefined while the clock only moved forward. */
  timeStep(here: Fingerprint): StageStep | undefined {
    if (!this.movesClock(here)) return undefined;
    const { clock } = this.facts;
    const now = monotonicNs();
    const elapsed = BigInt(Date.now()) * NS_PER_MS - clock.realtimeNs;
    const since = elapsed > 0n ? elapsed : 0n;
    const monotonic = clock.monotonicNs + since - now;
    // Another boot whose clock is ahead already: forward is fine.
    if (monotonic <= 0n) return undefined;
    const program = compileTime(monotonic, monotonic + (clock.boottimeNs - clock.monotonicNs));
    const file = this.keeper.fileBytes(program.bytes);
    return {
      name: "time",
      labels: () => program.labels,
      clockShiftNs: Number(monotonic),
      request: () => {
        setImmediate(() => this.keeper.closeFile(file));
        return { program: file, fds: [], fdBase: this.fdBase };
      },
    };
  }

  /** In which mappings a page that `splice` did not ask for ahead is read alone: image/compile-advice.ts. */
  private readsAlone(): (region: Region) => boolean {
    return readsScattered(this.facts, this.sets.set) ? isFile : isMapped;
  }

  /** How many pages are copied ahead of the function in such a start, for who wants to know later. */
  copiedPages(loader: Loader, husk: Husk, recording: Tracking | undefined): () => number {
    if (loader === "eager") return () => this.pagesTotal;
    const copies = loader === "splice" && recording === undefined && !husk.tracked && husk.level !== "image";
    const runs = !copies ? [] : husk.level === "prefaulted" ? this.parkedCopies() : this.sets.set.written;
    return () => runPages(runs);
  }

  /** What a prefaulted husk has copies of. */
  private parkedCopies(): readonly PageRun[] {
    const { set } = this.sets;
    this.copies ??= joinRuns([...set.written, ...writtenAnywhere(this.facts.regions, set)], 0);
    return this.copies;
  }

  /** What a start needs from disk, in order; see image/prefetch.ts. Empty while nothing is known. */
  prefetchRanges(): readonly FileRange[] {
    this.ranges ??= this.sets.set.recordings === 0 ? [] : prefetchRanges(this.facts, this.sets.set);
    return this.ranges;
  }

  /** Those of them that lie in files of the interpreter and the function. */
  prefetchFileRanges(): readonly FileRange[] {
    this.fileRanges ??= this.prefetchRanges().filter(({ file }) => file !== PAGES && file !== BASE);
    return this.fileRanges;
  }

  /** Some of its stored pages, by which it can be told whether the page cache has most of them. */
  samples(): readonly FileRange[] {
    this.sampled ??= samplePages(this.facts, SAMPLES);
    return this.sampled;
  }

  /** Whether starts read so much of the page space beside the set that it is best read whole (image/compile-advice.ts). */
  get readsMost(): boolean {
    return readsMost(this.facts, this.sets.set);
  }

  close(): void {
    this.closed = true;
    this.programs.close();
    this.keeper.closeFile(this.pagesFile);
    this.keeper.closeFile(this.taskFile);
    if (this.baseFile !== undefined) this.keeper.closeFile(this.baseFile);
  }

  /** The working set by who can be prefaulted with it: any husk of this runtime, or one that belongs to this image. */
  private split(): { runtime: PageRun[]; image: PageRun[] } {
    const read = new SortedRuns(this.sets.set.read);
    const inside = (files: boolean): PageRun[] =>
      this.facts.regions
        .filter(
          (region) => isRuntimeFile(region) === files && region.prot !== 0 && region.kind !== "stack" && region.kind !== "vdso",
        )
        .flatMap(({ start, end }) => joinRuns(read.within(start, end), READ_GAP_PAGES));
    return {
      runtime: inside(true),
      image: inside(false),
    };
  }

  /** Programs with the old working set in them are of no use any more. */
  private setChanged(): void {
    this.ranges = undefined;
    this.copies = undefined;
    this.fileRanges = undefined;
    // What cannot be compiled now is told to the start that needs it.
    if (!this.closed) this.renewPrograms().catch(() => undefined);
  }

  private async renewPrograms(): Promise<void> {
    await nextTurn();
    if (this.closed) return;
    this.prefetchRanges();
    await this.programs.renew(dependsOnSet);
    // What recorded will be thawed by the set next.
    for (const generic of [true, false]) {
      await nextTurn();
      if (this.closed) return;
      if (this.programs.has(`thaw:splice:${generic}:record`)) this.thawStep("splice", generic, undefined).labels();
    }
  }
}

/** Whether a program has pages of the working set in it. */
function dependsOnSet(key: string): boolean {
  return key.startsWith("prefault") || key === "memory:splice" || (key.startsWith("thaw:splice:") && !key.endsWith(":record"));
}
