/**
 * How an image lies on the disk and in the page cache. Both are put right when its last instance has ended: what somebody maps can be neither moved nor dropped.
 *
 * **Packed.** What starts read of a page space is moved together on the disk, once its working set is stable (native/pack.c, docs/design/working-set.md):
 * a start that reads thousands of scattered pages then takes the disk as long as one that reads a single part of that length. The file
 * itself does not change. Only ext4 can do that; elsewhere pages stay where they are.
 *
 * **Gathered.** A fault maps what the page cache holds in one piece at the price of a page (gather.ts). A freeze leaves its runs in pieces; packing, a start that
 * read from disk, or memory pressure leave single pages. Packing ends with gathering all of them. What starts touch of an image that is started again and again
 * from single pages is gathered anew; that writes as much to the disk.
 */
import type { Logger } from "../base/log.js";
import { type FileRange, imageFiles, PAGES, packedRanges, readsScattered, type WorkingSet } from "../image/index.js";
import { encodeParts } from "./gather.js";
import type { LoadedImage } from "./images.js";
import type { LiveInstance } from "./instance.js";
import type { Keeper } from "./keeper.js";
import { parseReply } from "./native.js";

/** A part whose pages were busy stays where it was. With fewer than this moved, gaps between ranges are worth reading as before. */
const MOVED_MIN = 0.9;
/** Fewer ranges are read before the start gets to them. */
const RANGES_MIN = 16;
/** Starts may come again and again while it is tried. */
const TRIES = 4;
/**
 * Without an instance for so long it is packed: to be moved it leaves the page cache, and a start in that tenth of a second takes 5 ms more. Who comes again and again
 * finds everything cached, wherever it lies on the disk.
 */
export const REST_MS = 1_000;
/** So many starts in a row found everything cached: the image is in use, and memory is there for it. */
const WARM_STARTS = 4;
const GATHERED = -1;
/** To the end of the page space, wherever that is. */
const WHOLE: readonly FileRange[] = [{ file: PAGES, offset: 0n, bytes: Number.MAX_SAFE_INTEGER }];

/** See above. */
export class Packer {
  readonly #images = new Map<LiveInstance, LoadedImage>();
  readonly #living = new Map<LoadedImage, number>();
  /** Without an instance, and not packed yet. */
  readonly #resting = new Map<LoadedImage, NodeJS.Timeout>();
  readonly #tries = new WeakMap<WorkingSet, number>();
  /** Starts in a row that found everything cached; -1: lies there in pieces. Absent: nobody knows. */
  readonly #warm = new WeakMap<LoadedImage, number>();
  #closed = false;
  #unsupported = false;

  constructor(
    private readonly keeper: Keeper,
    private readonly extractor: string,
    private readonly log: Logger,
  ) {}

  /** An instance of that image begins. */
  began(instance: LiveInstance, loaded: LoadedImage): void {
    this.#images.set(instance, loaded);
    this.#living.set(loaded, (this.#living.get(loaded) ?? 0) + 1);
    clearTimeout(this.#resting.get(loaded));
    this.#resting.delete(loaded);
  }

  /** It was frozen a moment ago. */
  frozen(loaded: LoadedImage): void {
    this.#warm.set(loaded, GATHERED);
  }

  /** A start of that image found all but `cold` pages of its set in the page cache; -1: nobody can say. */
  found(loaded: LoadedImage, cold: number): void {
    const warm = this.#warm.get(loaded) ?? 0;
    if (cold !== 0) this.#warm.set(loaded, 0);
    else if (warm !== GATHERED) this.#warm.set(loaded, warm + 1);
  }

  /** Any instance ended. */
  ended(instance: LiveInstance): void {
    const loaded = this.#images.get(instance);
    if (loaded === undefined) return;
    this.#images.delete(instance);
    const living = (this.#living.get(loaded) ?? 1) - 1;
    if (living > 0) {
      this.#living.set(loaded, living);
      return;
    }
    this.#living.delete(loaded);
    if (this.#closed) return;
    const gathered = this.#gatherWarm(loaded);
    const rested = (): void => {
      this.#resting.delete(loaded);
      void gathered.then(() => this.#pack(loaded));
    };
    this.#resting.set(loaded, setTimeout(rested, REST_MS).unref());
  }

  /** The engine closes: nothing more is begun, and what is under way comes to nothing. */
  close(): void {
    this.#closed = true;
    for (const timer of this.#resting.values()) clearTimeout(timer);
    this.#resting.clear();
  }

  async #gatherWarm(loaded: LoadedImage): Promise<void> {
    if (loaded.closed || (this.#warm.get(loaded) ?? 0) < WARM_STARTS) return;
    await this.#gather(loaded, loaded.prefetchRanges());
  }

  async #gather(loaded: LoadedImage, ranges: readonly FileRange[]): Promise<void> {
    this.#warm.set(loaded, GATHERED);
    await loaded.gather(ranges);
  }

  async #pack(loaded: LoadedImage): Promise<void> {
    const { set } = loaded.sets;
    const tries = this.#tries.get(set) ?? 0;
    // Who reads the whole image, in order, wants it to lie in order.
    if (
      this.#closed ||
      this.#unsupported ||
      loaded.closed ||
      this.#living.has(loaded) ||
      !set.stable ||
      set.packed === true ||
      tries >= TRIES ||
      readsScattered(loaded.facts, set)
    )
      return;
    this.#tries.set(set, tries + 1);
    const ranges = packedRanges(loaded.facts, set);
    if (ranges.length < RANGES_MIN) return;
    const parts = this.keeper.fileBytes(encodeParts(ranges));
    try {
      const { why, busy } = await this.#move(loaded, parts);
      // To be moved it left the page cache, and the next start may be under way.
      await this.#gather(loaded, WHOLE);
      // Zeros in between are no data, but have pages in the cache, too.
      await this.keeper.prefetch(ranges.map(({ offset, bytes }) => ({ file: loaded.pagesFile, offset, bytes })));
      if (this.#closed || loaded.closed) return;
      if (why === undefined) return await loaded.sets.markPacked(set);
      this.log.info({ image: loaded.image.id, why }, "the working set stays scattered on the disk");
      // Pages that the kernel itself was at work on are free by now.
      if (busy && !this.#living.has(loaded)) await this.#pack(loaded);
    } catch (error) {
      if (!this.#closed && !loaded.closed && !this.keeper.lost)
        this.log.warn({ err: error, image: loaded.image.id }, "the working set could not be moved together");
    } finally {
      this.keeper.closeFile(parts);
    }
  }

  /** Why it stays where it is, and whether that was somebody's use of it; no reason when it was moved. */
  async #move(loaded: LoadedImage, parts: number): Promise<{ why?: string; busy: boolean }> {
    const argv = [this.extractor, "pack", imageFiles(loaded.image.dir).pages];
    const { stdout } = await this.keeper.helper(argv, { files: [parts] });
    const reply = parseReply(stdout);
    const moved = Number(reply.movedBytes ?? 0) / Number(reply.bytes ?? 1);
    if (reply.ok && moved >= MOVED_MIN) return { busy: false };
    if (reply.ok) return { why: `others use it: ${Math.round(moved * 100)} % could be moved`, busy: true };
    if (reply.code === "unsupported") this.#unsupported = true;
    return { why: String(reply.why), busy: false };
  }
}
