/**
 * What a start will need from disk is asked for in the turn in which its stages are queued, and nothing waits for it. The pages lie
 * in the page spaces of the image and its base, and in files of the interpreter and the function, which are opened once, after a look at their
 * identity that is not on the path of a start: the first start of an image on a cold machine asks for them a moment later.
 *
 * An exception is an image whose starts read most of the page space, each other parts of it: no set can name them. Its faults would read all of it, piece by piece
 * and in no order. So it is read in order first, by another process, in half the time, and the start waits for that.
 */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { nowMs } from "../base/clock.js";
import type { Logger } from "../base/log.js";
import { BASE, type FileIdentity, type FileRange, imageFiles, isRuntimeFile, PAGES } from "../image/index.js";
import type { LoadedImage } from "./images.js";
import type { Keeper } from "./keeper.js";
import { allPrefetched, encodePrefetch, type PrefetchRange } from "./keeper-messages.js";
import { parseReply } from "./native.js";

const TASK_ROOT = "/var/task/";
const RUNTIME_ROOT = "/var/runtime/";
const NS_PER_S = 1_000_000_000n;

/** Open files by path and identity; ids of the keeper. */
type OpenFiles = Map<string, Promise<number | undefined>>;

/** One image's ranges with the keeper's file ids, encoded once. */
interface Prepared {
  payloads: readonly Buffer[];
  /** Pending while its files are looked at; resolves with the ranges that were left out of the first payloads. */
  later: Promise<readonly PrefetchRange[]> | undefined;
  /** When it was last found in the page cache whole. */
  cachedMs: number;
}

/** Where the host has a file that a function sees under this path. */
function hostPath(path: string, codeDir: string, runtimeDir: string): string {
  if (path.startsWith(TASK_ROOT)) return join(codeDir, path.slice(TASK_ROOT.length));
  if (path.startsWith(RUNTIME_ROOT)) return join(runtimeDir, path.slice(RUNTIME_ROOT.length));
  return path;
}

async function isStill(path: string, identity: FileIdentity): Promise<boolean> {
  try {
    const now = await stat(path, { bigint: true });
    return (
      now.ino === identity.inode &&
      now.size === identity.size &&
      now.mtimeNs === BigInt(identity.mtimeS) * NS_PER_S + BigInt(identity.mtimeNs) &&
      now.ctimeNs === BigInt(identity.ctimeS) * NS_PER_S + BigInt(identity.ctimeNs)
    );
  } catch {
    return false;
  }
}

/** A set that was in the page cache whole is thought to be there for so long: to ask for it takes a processor as long as a tenth of a start, or all of it. */
const KNOWN_CACHED_MS = 1000;

/** Asks the disk for working sets; knows which were in memory a moment ago. See above. */
export class Prefetcher {
  /** Of interpreters and their libraries: shared by all images, a few dozen, open as long as the engine. */
  readonly #shared: OpenFiles = new Map();
  readonly #own = new WeakMap<LoadedImage, OpenFiles>();
  readonly #prepared = new WeakMap<readonly FileRange[], Prepared>();
  /** Page spaces that are being read, for all starts that wait for it. */
  readonly #reading = new Map<LoadedImage, Promise<number>>();

  constructor(
    private readonly keeper: Keeper,
    private readonly extractor: string,
    private readonly runtimeDir: string,
    private readonly log: Logger,
  ) {}

  /**
   * Starts reading what the image's working set needs. Resolves with how many of the pages the page cache did not have (-1: nobody
   * can say), undefined while no set is known. Never rejects. @param ranges of that image, the same array each time. @param awaited the start waits for the answer
   */
  start(loaded: LoadedImage, ranges = loaded.prefetchRanges(), awaited = false): Promise<number> | undefined {
    if (ranges.length === 0) return undefined;
    const known = this.#preparedFor(loaded, ranges);
    const askedMs = nowMs();
    const now = this.keeper.prefetchEncoded(known.payloads, { awaited });
    const complete = known.later === undefined;
    const later = known.later?.then((rest) => this.keeper.prefetch(rest));
    return Promise.all([now, later ?? []]).then((parts) => {
      const { pages: cold } = allPrefetched(parts.flat());
      known.cachedMs = complete && cold === 0 ? askedMs : Number.NEGATIVE_INFINITY;
      return cold;
    });
  }

  /**
   * The same for an image whose starts {@link LoadedImage.readsMost}, where most of it has left the page cache: resolves when all of its page space was read, with how many
   * pages of that were lacking. Undefined where memory has it, or nobody can say: then it is for {@link start}. What could not be read comes by faults, or fails there.
   */
  async startWhole(loaded: LoadedImage): Promise<number | undefined> {
    const samples = loaded.samples();
    const lacking = (await this.start(loaded, samples, true)) ?? 0;
    // Who comes while it is read waits for the rest, too.
    if (lacking * 2 <= samples.length && !this.#reading.has(loaded)) return undefined;
    const files = this.start(loaded, loaded.prefetchFileRanges()) ?? 0;
    const parts = await Promise.all([this.#readWhole(loaded), files]);
    return parts.some((part) => part < 0) ? -1 : parts[0] + parts[1];
  }

  /** Whether all that the image's working set needs was in the page cache a moment ago. */
  foundCached(loaded: LoadedImage): boolean {
    const prepared = this.#prepared.get(loaded.prefetchRanges());
    return prepared !== undefined && nowMs() - prepared.cachedMs < KNOWN_CACHED_MS;
  }

  /** Looks for the files of its working set, so that the next start finds them open. */
  async prepare(loaded: LoadedImage): Promise<void> {
    const ranges = loaded.prefetchRanges();
    if (ranges.length > 0) await this.#preparedFor(loaded, ranges).later;
  }

  /** Closes what belongs to this image alone. */
  forget(loaded: LoadedImage): void {
    for (const opened of this.#own.get(loaded)?.values() ?? [])
      void opened.then((file) => {
        if (file !== undefined) this.keeper.closeFile(file);
      });
    this.#own.delete(loaded);
  }

  /** Resolves with how many pages the page cache lacked, -1 when nobody can say. */
  #readWhole(loaded: LoadedImage): Promise<number> {
    const under = this.#reading.get(loaded);
    if (under !== undefined) return under;
    const { pages } = imageFiles(loaded.image.dir);
    const reading = this.keeper.helper([this.extractor, "fetch", pages]).then(
      ({ stdout }) => {
        const reply = parseReply(stdout);
        if (reply.ok) return Number(reply.lacked);
        this.log.warn(
          { image: loaded.image.id, why: reply.why },
          "an image could not be read ahead: its start waits for its pages one by one",
        );
        return -1;
      },
      // The keeper ended, which everybody is told.
      () => -1,
    );
    this.#reading.set(loaded, reading);
    return reading.finally(() => this.#reading.delete(loaded));
  }

  #preparedFor(loaded: LoadedImage, ranges: readonly FileRange[]): Prepared {
    const known = this.#prepared.get(ranges) ?? this.#prepare(loaded, ranges);
    this.#prepared.set(ranges, known);
    return known;
  }

  /** Until the files are open, the page spaces alone. */
  #prepare(loaded: LoadedImage, ranges: readonly FileRange[]): Prepared {
    const files = new Map<string, number | undefined>([
      [PAGES, loaded.pagesFile],
      [BASE, loaded.baseFile],
    ]);
    const known = (): PrefetchRange[] =>
      ranges.flatMap(({ file, offset, bytes }) => {
        const id = files.get(file);
        return id === undefined ? [] : [{ file: id, offset, bytes }];
      });
    const prepared: Prepared = { payloads: encodePrefetch(known()), later: undefined, cachedMs: Number.NEGATIVE_INFINITY };
    const paths = [...new Set(ranges.map(({ file }) => file))].filter((file) => file !== PAGES && file !== BASE);
    prepared.later = Promise.all(paths.map(async (path) => files.set(path, await this.#open(loaded, path)))).then(() => {
      const all = known();
      prepared.payloads = encodePrefetch(all);
      prepared.later = undefined;
      return all.filter(({ file }) => file !== loaded.pagesFile && file !== loaded.baseFile);
    });
    return prepared;
  }

  /** Undefined when it is not the file that the image was made with, which the husk finds out, too, and refuses. */
  #open(loaded: LoadedImage, path: string): Promise<number | undefined> {
    const region = loaded.facts.regions.find((one) => one.path === path && one.identity !== undefined);
    if (region?.identity === undefined) return Promise.resolve(undefined);
    const { identity } = region;
    const own = this.#own.get(loaded) ?? new Map();
    this.#own.set(loaded, own);
    const host = hostPath(path, loaded.image.spec.codeDir, this.runtimeDir);
    const open = isRuntimeFile(region) ? this.#shared : own;
    const key = `${host}:${identity.inode}:${identity.ctimeS}.${identity.ctimeNs}`;
    let opened = open.get(key);
    if (opened === undefined) {
      opened = this.#openNow(host, identity);
      open.set(key, opened);
    }
    return opened;
  }

  async #openNow(path: string, identity: FileIdentity): Promise<number | undefined> {
    if (!(await isStill(path, identity))) return undefined;
    try {
      return await this.keeper.openFile(path);
    } catch (error) {
      this.log.warn({ err: error, path }, "a mapped file cannot be read ahead: starts wait for its pages one by one");
      return undefined;
    }
  }
}
