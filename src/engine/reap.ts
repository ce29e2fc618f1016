/**
 * The loaders that take an image's memory from the pager (REAP, ASPLOS'21), and the steps of the paper's ablation:
 *
 *   reap-lazy       every page by a fault of its own, from the page space
 *   reap-parallel   the recorded pages are read one by one, by several threads, from the page space, then installed
 *   reap-file       … by one read of their contiguous copy, through the page cache
 *   reap            … by one read past the page cache (O_DIRECT)
 *
 * A start of the last three for which nothing usable is recorded is served like `reap-lazy`, and records. The recording is REAP's own
 * (image/reap-set.ts): it is read, and checked as a whole, when it is first used and whenever its file changed since.
 */
import { createHash } from "node:crypto";
import { statSync } from "node:fs";
import { open, readFile } from "node:fs/promises";
import { errorText, ThawError } from "../base/errors.js";
import { writeFileDurably } from "../base/fsync.js";
import type { Logger } from "../base/log.js";
import { PAGE_BYTES } from "../base/units.js";
import {
  type Access,
  accessesOf,
  basePath,
  decodeTrace,
  encodePagePlan,
  encodeTrace,
  type Installation,
  imageFiles,
  installationOf,
  NOTHING_INSTALLED,
  type PageMode,
  type ReapTrace,
} from "../image/index.js";
import { ABI_CONSTANTS } from "../linux/abi.js";
import type { Husk } from "./husk.js";
import type { LoadedImage } from "./images.js";
import type { LiveInstance } from "./instance.js";
import type { Keeper } from "./keeper.js";
import type { PagedReport } from "./keeper-messages.js";
import { PAGE_MODES } from "./page-modes.js";
import { type Loader, PARKED_LOADERS } from "./types.js";

const CHUNK_BYTES = 1 << 20;

/** What is recorded of an image, open in the keeper. */
interface Recorded {
  readonly identity: string;
  readonly setFile: number;
  readonly installation: Installation;
  readonly plans: Map<PageMode, number>;
}

/** How one start goes about it. */
export interface PagedStart {
  readonly mode: PageMode;
  readonly records: boolean;
  /** What was recorded is brought before the function runs. */
  readonly installs: boolean;
  /** Why it records although there is a recording. */
  readonly fallback: string | undefined;
  readonly plan: number;
  /** 0: the plan reads none. */
  readonly set: number;
}

interface Followed {
  readonly loaded: LoadedImage;
  readonly records: boolean;
}

/** See above. */
export class ReapStarts {
  readonly #recorded = new Map<LoadedImage, Recorded>();
  readonly #lazyPlans = new Map<LoadedImage, number>();
  readonly #loading = new Map<LoadedImage, Promise<string | undefined>>();
  readonly #recording = new Set<LoadedImage>();
  readonly #followed = new Map<LiveInstance, Followed>();

  constructor(
    private readonly keeper: Keeper,
    private readonly log: Logger,
  ) {}

  /** Reads and checks what is recorded, if that was not done yet. Nothing else of a start waits. */
  async prepare(loaded: LoadedImage, loader: Loader, device: number | undefined): Promise<PagedStart> {
    if (device === undefined)
      throw new ThawError("UNSUPPORTED_PLATFORM", {
        what: `the loader ${loader} cannot be used`,
        why: "this machine has no usable /dev/userfaultfd; the server's log says why",
        fix: "choose another loader",
      });
    const mode = PAGE_MODES[loader] ?? "lazy";
    if (mode === "lazy")
      return { mode, records: false, installs: false, fallback: undefined, plan: this.#lazyPlan(loaded), set: 0 };
    const fallback = await this.#refresh(loaded);
    const recorded = this.#recorded.get(loaded);
    if (recorded === undefined || this.#recording.has(loaded))
      return { mode: "lazy", records: true, installs: false, fallback, plan: this.#lazyPlan(loaded), set: 0 };
    let plan = recorded.plans.get(mode);
    if (plan === undefined) {
      plan = this.keeper.fileBytes(encodePagePlan(loaded.facts, mode, recorded.installation));
      recorded.plans.set(mode, plan);
    }
    return { mode, records: false, installs: true, fallback: undefined, plan, set: mode === "parallel" ? 0 : recorded.setFile };
  }

  /** In the turn in which the stages are queued, before them. */
  begin(husk: Husk, loaded: LoadedImage, start: PagedStart): void {
    this.keeper.pagedBy(husk.id, {
      plan: start.plan,
      pages: loaded.pagesFile,
      set: start.set,
      base: loaded.baseFile ?? 0,
    });
  }

  /** In the same turn, behind them. */
  follow(instance: LiveInstance, loaded: LoadedImage, start: PagedStart): void {
    this.#followed.set(instance, { loaded, records: start.records });
    instance.paged = true;
    if (start.fallback !== undefined) instance.start = { ...instance.start, fallback: start.fallback };
    if (start.records) instance.start = { ...instance.start, recording: true };
    instance.onInstalled = (report) => installed(instance, start, report);
  }

  /** A promise while the next request must wait: its faults would be recorded, too. Undefined for instances of other loaders. */
  firstAnswer(instance: LiveInstance): Promise<void> | undefined {
    const followed = this.#followed.get(instance);
    if (followed === undefined) return undefined;
    this.#followed.delete(instance);
    const traced = this.keeper.trace(instance.id).then((payload) => {
      const accesses = accessesOf(payload);
      instance.start = { ...instance.start, faultsOutside: accesses.length };
      return accesses;
    });
    if (followed.records) return this.#record(followed.loaded, traced);
    traced.catch((error: unknown) => this.log.debug({ err: error }, "the faults of a start were not counted"));
    return undefined;
  }

  /** Ended, perhaps without an answer. */
  ended(instance: LiveInstance): void {
    this.#followed.delete(instance);
  }

  /** The image is closed. */
  forget(loaded: LoadedImage): void {
    this.#drop(loaded);
    const plan = this.#lazyPlans.get(loaded);
    if (plan !== undefined) this.keeper.closeFile(plan);
    this.#lazyPlans.delete(loaded);
  }

  #lazyPlan(loaded: LoadedImage): number {
    let plan = this.#lazyPlans.get(loaded);
    if (plan === undefined) {
      plan = this.keeper.fileBytes(encodePagePlan(loaded.facts, "lazy", NOTHING_INSTALLED));
      this.#lazyPlans.set(loaded, plan);
    }
    return plan;
  }

  /** Why an existing recording cannot be used; undefined when it can, or when there is none. */
  async #refresh(loaded: LoadedImage): Promise<string | undefined> {
    const now = identityOf(loaded);
    if (this.#recorded.get(loaded)?.identity === now && now !== undefined) return undefined;
    let loading = this.#loading.get(loaded);
    if (loading === undefined) {
      loading = this.#load(loaded).finally(() => this.#loading.delete(loaded));
      this.#loading.set(loaded, loading);
    }
    return loading;
  }

  async #load(loaded: LoadedImage): Promise<string | undefined> {
    this.#drop(loaded);
    const files = imageFiles(loaded.image.dir);
    const bytes = await readFile(files.reapTrace).catch(() => undefined);
    if (bytes === undefined) return undefined;
    const anew = (why: string): string => `what REAP recorded cannot be used (${why}): it is recorded anew`;
    const trace = decodeTrace(bytes);
    if (trace === undefined) return anew("its trace is damaged");
    const identity = identityOf(loaded);
    if (identity === undefined) return anew("its set is missing");
    let setFile: number | undefined;
    try {
      setFile = await this.keeper.openFile(files.reapSet);
      const why = await checkSet(files.reapSet, trace);
      const installation = installationOf(loaded.facts, trace.accesses);
      const usable = why ?? (installation.bytes === trace.setBytes ? undefined : "it belongs to another image");
      if (usable !== undefined || identity !== identityOf(loaded) || loaded.closed)
        throw new Error(usable ?? "it changed while it was read");
      this.#recorded.set(loaded, { identity, setFile, installation, plans: new Map() });
      return undefined;
    } catch (error) {
      if (setFile !== undefined) this.keeper.closeFile(setFile);
      return anew(errorText(error));
    }
  }

  #drop(loaded: LoadedImage): void {
    const recorded = this.#recorded.get(loaded);
    if (recorded === undefined) return;
    this.#recorded.delete(loaded);
    for (const file of [recorded.setFile, ...recorded.plans.values()]) this.keeper.closeFile(file);
  }

  async #record(loaded: LoadedImage, traced: Promise<readonly Access[]>): Promise<void> {
    if (this.#recording.has(loaded)) {
      await traced.catch(() => undefined);
      return;
    }
    this.#recording.add(loaded);
    try {
      const accesses = await traced;
      const { dir } = loaded.image;
      const set = await readSet(dir, installationOf(loaded.facts, accesses));
      if (loaded.closed) return;
      const setSha256 = createHash("sha256").update(set).digest("hex");
      await writeFileDurably(imageFiles(dir).reapSet, set);
      await writeFileDurably(imageFiles(dir).reapTrace, encodeTrace({ accesses, setSha256, setBytes: set.length }));
    } catch (error) {
      this.log.warn({ err: error, image: loaded.image.id }, "REAP could not record; its starts take every page by a fault");
    } finally {
      this.#recording.delete(loaded);
    }
  }
}

/** A parked husk would wait at the pager's gate with its whole set installed: that is `prefaulted`, which `splice` does better. */
export function refuseParking(loader: Loader): void {
  if (PARKED_LOADERS.some((known) => known === loader)) return;
  throw new ThawError("INVALID_ARGUMENT", {
    what: `no husk can be parked with loader ${loader}`,
    why: "how its pages arrive is what it is for",
    fix: "park with lazy, eager or splice",
  });
}

/** The pager alone knows which pages such an instance lacks: to the extractor they would be zeros. */
export function pagesElsewhere(loader: Loader | undefined): ThawError {
  return new ThawError("FREEZE_REFUSED", {
    what: `an instance that was started with loader ${loader} cannot be frozen`,
    why: "part of its memory is still with the pager",
    fix: "start it with splice, lazy or eager",
    // Others of the function can be, which came another way.
    details: { scope: "instance" },
  });
}

function installed(instance: LiveInstance, start: PagedStart, report: PagedReport): void {
  const { readUs, installUs, pages, regions } = report;
  const direct = start.mode === "direct" && !report.direct;
  instance.start = {
    ...instance.start,
    prefetchedPages: pages,
    pager: { readUs, installUs, regions },
    ...(direct ? { fallback: "the file system of the images offers no O_DIRECT: the set came through the page cache" } : {}),
  };
}

function identityOf(loaded: LoadedImage): string | undefined {
  const files = imageFiles(loaded.image.dir);
  const parts = [files.reapTrace, files.reapSet].map((path) => {
    const info = statSync(path, { bigint: true, throwIfNoEntry: false });
    return info === undefined ? undefined : `${info.ino}:${info.size}:${info.ctimeNs}`;
  });
  return parts.includes(undefined) ? undefined : parts.join(" ");
}

/** Why the set is not the one that the trace was written with. In parts, so that nobody else waits for it. */
async function checkSet(path: string, trace: ReapTrace): Promise<string | undefined> {
  const hash = createHash("sha256");
  const buffer = Buffer.alloc(CHUNK_BYTES);
  const file = await open(path, "r");
  try {
    let bytes = 0;
    for (;;) {
      const { bytesRead } = await file.read(buffer, 0, buffer.length, bytes);
      if (bytesRead === 0) break;
      hash.update(buffer.subarray(0, bytesRead));
      bytes += bytesRead;
    }
    if (bytes !== trace.setBytes) return `its set holds ${bytes} bytes where ${trace.setBytes} were written`;
    return hash.digest("hex") === trace.setSha256 ? undefined : "the checksum of its set does not match";
  } finally {
    await file.close();
  }
}

/** The contiguous copy of an installation's pages. */
async function readSet(dir: string, { copies, bytes }: Installation): Promise<Buffer> {
  const set = Buffer.alloc(bytes);
  const inBase = ({ from }: { from: bigint }): boolean => (from & ABI_CONSTANTS.PAGE_FROM_BASE) !== 0n;
  await readCopies(
    imageFiles(dir).pages,
    copies.filter((copy) => !inBase(copy)),
    set,
  );
  const shared = copies.filter(inBase).map((copy) => ({ ...copy, from: copy.from ^ ABI_CONSTANTS.PAGE_FROM_BASE }));
  if (shared.length > 0) await readCopies(basePath(dir), shared, set);
  return set;
}

async function readCopies(path: string, copies: Installation["copies"], set: Buffer): Promise<void> {
  const file = await open(path, "r");
  try {
    for (const { from, at, pages: count } of copies) {
      const { bytesRead } = await file.read(set, at, count * PAGE_BYTES, Number(from));
      if (bytesRead !== count * PAGE_BYTES) throw new Error(`the page space ends at ${from + BigInt(bytesRead)}`);
    }
  } finally {
    await file.close();
  }
}
