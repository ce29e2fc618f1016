/**
 * The images of all versions on disk, in the database and in the engine's pools of husks. An image counts from the moment the
 * database names it: recording comes after the rename that completes the image, and removing begins with the record. One that is on
 * disk but not named there is swept at the next start.
 *
 *     frozen ─▶ renamed ─▶ RECORDED ─▶ in the pool of its version ─▶ chosen by starts; husks are parked for the favourite
 *                                            │ dropped (cannot be used), or given up (surplus)
 *                                            ▼
 *                          forgotten by the database ─▶ no start uses it ─▶ removed from disk
 *
 * Husks are parked for one image of each version, the one that the policy chooses most. A policy that draws lots would otherwise
 * fill and drop pools at every start. What is parked at the level `runtime` belongs to no image and stays.
 */
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { faultPoint } from "../base/fault.js";
import type { Logger } from "../base/log.js";
import type { Engine, Image, ParkedLevel } from "../engine/types.js";
import type { ImageSummary, Store, StoredImage } from "./store.js";
import type { ImageEntry, ParkedTargets } from "./types.js";
import type { Version } from "./version.js";

export interface PoolsOptions {
  readonly engine: Engine;
  readonly store: Store;
  readonly imagesDir: string;
  readonly parked: ParkedTargets;
  readonly log: Logger;
}

/** See above. */
export class Pools {
  readonly #options: PoolsOptions;
  readonly #removals = new Map<Promise<void>, Version>();
  /** For which image husks are parked. */
  readonly #parkedFor = new Map<Version, Image>();
  /** Written by a former server, and not opened by this one yet. */
  readonly #unopened = new WeakSet<Image>();

  constructor(options: PoolsOptions) {
    this.#options = options;
  }

  /** Where a new image goes. */
  newDir({ name }: Version): string {
    return join(this.#options.imagesDir, `${name}.${randomBytes(8).toString("hex")}`);
  }

  /** Records an image that was just frozen, and lets starts have it. False when nobody wants it any more: it is removed then. */
  async publish(version: Version, image: Image, source: ImageEntry["source"], wanted: () => boolean): Promise<boolean> {
    const { engine, imagesDir, store } = this.#options;
    faultPoint("freeze-image-renamed");
    const createdMs = Date.now();
    const { generation, heat } = image;
    const dir = image.dir.slice(imagesDir.length + 1);
    let recorded = false;
    try {
      const stored = { dir, generation, heat, source, createdMs, summary: summaryOf(image) };
      recorded = wanted() && store.putImage(version.stored, stored, version.warmUp);
    } finally {
      if (!recorded) await engine.removeImage(image);
    }
    if (!recorded) return false;
    faultPoint("freeze-recorded");
    version.generations.add({ image, source, createdMs });
    this.trim(version);
    return true;
  }

  /** Takes over an image that a former server wrote: known by its summary, opened when it is first used. */
  adopt(version: Version, { dir, generation, heat, source, createdMs, summary }: StoredImage): void {
    if (summary === undefined) return;
    const image: Image = { ...summary, generation, heat, dir: join(this.#options.imagesDir, dir), spec: version.spec };
    this.#options.engine.rememberImage(image);
    this.#unopened.add(image);
    version.generations.add({ image, source, createdMs });
  }

  /** Reads, checks and opens an image that was only known by its summary. */
  async open(image: Image): Promise<void> {
    if (!this.#unopened.has(image)) return;
    await this.#options.engine.openImage(image.dir);
    this.#unopened.delete(image);
  }

  /** Gives up what is surplus, and parks husks for the favourite. */
  trim(version: Version): void {
    if (version.retired) return;
    // Behind the start that made the difference.
    version.generations.onLook ??= () => setImmediate(() => this.trim(version));
    for (const image of version.generations.surplus()) {
      this.#options.log.debug({ function: version.name, generation: image.generation }, "an image is given up");
      this.forget(version, image);
    }
    this.#park(version);
  }

  /** Takes an image out of everything. False when it is not there any more. */
  forget(version: Version, image: Image): boolean {
    const { generations } = version;
    if (!generations.remove(image)) return false;
    const { engine, imagesDir, store, log } = this.#options;
    if (this.#parkedFor.get(version) === image) this.#parkedFor.delete(version);
    try {
      store.removeImage(image.dir.slice(imagesDir.length + 1));
    } catch (error) {
      // Its directory goes all the same: the next server finds that out, and drops it.
      log.error({ err: error, function: version.name }, "an image could not be forgotten");
    }
    const unused = new Promise<void>((resolve) => generations.whenUnused(image, resolve));
    this.track(
      version,
      unused.then(() => engine.removeImage(image)),
    );
    return true;
  }

  /** Forgets all images of a version that is retired. */
  async forgetAll(version: Version): Promise<void> {
    for (const { image } of [...version.generations.entries]) this.forget(version, image);
    this.#parkedFor.delete(version);
    await this.settled(version);
  }

  /** Resolves when nothing is being removed, of `version` or of all. */
  async settled(version?: Version): Promise<void> {
    const removals = (): Promise<void>[] =>
      [...this.#removals].flatMap(([removal, of]) => (version === undefined || of === version ? [removal] : []));
    for (let some = removals(); some.length > 0; some = removals()) await Promise.all(some);
  }

  /** Remembers a removal until it is done. */
  track(version: Version, removal: Promise<void>): void {
    const done = removal
      .catch((error: unknown) =>
        this.#options.log.error({ err: error }, "an image could not be removed; the next start sweeps it"),
      )
      .finally(() => this.#removals.delete(done));
    this.#removals.set(done, version);
  }

  #park(version: Version): void {
    const { runtime = 0, image: mapped = 0, prefaulted = 0 } = this.#options.parked;
    const levels = { runtime, image: mapped, prefaulted: Math.max(prefaulted, version.provisioned) };
    if (Object.values(levels).every((count) => count === 0)) return;
    const { favourite } = version.generations;
    const before = this.#parkedFor.get(version);
    if (favourite === undefined || favourite === before) return;
    this.#parkedFor.set(version, favourite);
    for (const level of ["runtime", "image", "prefaulted"] as const) {
      if (levels[level] === 0) continue;
      this.#target(favourite, level, levels[level]);
      if (before !== undefined && level !== "runtime") this.#target(before, level, 0);
    }
  }

  #target(image: Image, level: ParkedLevel, count: number): void {
    const { loader } = this.#options.parked;
    this.#options.engine.park(image, level, count, ...(loader === undefined || level === "runtime" ? [] : [loader]));
  }
}

function summaryOf({ id, bytesOnDisk, report, code }: Image): ImageSummary {
  return { id, bytesOnDisk, report, ...(code === undefined ? {} : { code }) };
}
