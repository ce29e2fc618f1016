/**
 * Images are made in the background, one at a time: boot, freeze, end, record, park.
 *
 *               ┌─────────────── drop: damaged, or made for another machine ──────────────┐
 *               ▼                                                                         │
 *     deploy ─▶ pending ──▶ ready ───────────────────────────────────────────────────────┘
 *               │  ▲  │ └─▶ refused   the process holds what cannot be frozen: it runs by boot
 *               │  │  └───▶ failed    it could not be loaded, or not frozen
 *               └──┘ something ran out: again after 1, 2, 4 … 60 s, at most {@link ATTEMPTS_MAX} times
 *
 * An image counts from the moment the database names it. One that is on disk, but not named there, is swept at the next
 * start; so recording comes after the rename that completes the image, and removing begins with the record. The instance that is
 * frozen takes no place of those that requests compete for.
 */
import { randomBytes } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { errorText, isThawError, ThawError } from "../base/errors.js";
import { faultPoint } from "../base/fault.js";
import type { Logger } from "../base/log.js";
import type { Engine, Image, Instance } from "../engine/types.js";
import { resourceError } from "./resources.js";
import type { ImageSummary, Store, StoredImage } from "./store.js";
import type { ImageStatus, ParkedTargets } from "./types.js";
import type { Version } from "./version.js";

/**
 * So many images are opened and checked when a server starts, in the background; of more, each when it is first used. Opening one
 * takes some ten milliseconds of the event loop.
 */
const OPENED_AT_START_MAX = 64;
/** Tries for one version, while things run out. */
export const ATTEMPTS_MAX = 8;
const BACKOFF_MS_MAX = 60_000;
const BOOT_ONLY = "This server runs functions without images: every start that finds no idle instance is a boot";

interface Waiting {
  readonly resolve: (status: ImageStatus) => void;
  readonly reject: (error: Error) => void;
}

export interface ImagesOptions {
  readonly engine: Engine;
  readonly store: Store;
  readonly imagesDir: string;
  readonly parked: ParkedTargets;
  readonly log: Logger;
  /** First pause after something ran out. Default 1 s. */
  readonly backoffMs?: number;
}

/** See above. */
export class Images {
  readonly #options: ImagesOptions;
  readonly #queue: Version[] = [];
  readonly #waiting = new Map<Version, Waiting[]>();
  readonly #timers = new Map<Version, NodeJS.Timeout>();
  readonly #removals = new Set<Promise<void>>();
  #working: Promise<void> | undefined;
  #current: { readonly version: Version; instance: Instance | undefined } | undefined;
  #closed = false;
  #opened = 0;
  readonly #parks: boolean;

  constructor(options: ImagesOptions) {
    this.#options = options;
    const { runtime = 0, image = 0, prefaulted = 0 } = options.parked;
    this.#parks = runtime + image + prefaulted > 0;
  }

  /** Begins with a version that has just been deployed. */
  begin(version: Version): void {
    if (this.#options.engine.canFreeze) this.#schedule(version);
    else this.#settle(version, "none", BOOT_ONLY);
  }

  /** Begins with a version that was stored by a former server: opens its image, or makes one. */
  resume(version: Version, stored: StoredImage): void {
    if (!this.#options.engine.canFreeze) {
      this.#settle(version, "none", BOOT_ONLY);
      return;
    }
    version.image.reason = stored.reason;
    if (stored.dir === undefined) this.#schedule(version);
    else if (stored.summary !== undefined && !this.#parks && this.#opened >= OPENED_AT_START_MAX) {
      const dir = join(this.#options.imagesDir, stored.dir);
      const image: Image = { ...stored.summary, dir, spec: version.spec };
      this.#options.engine.rememberImage(image);
      this.#ready(version, image);
    } else {
      this.#opened++;
      version.image.opening = this.#open(version, stored.dir);
    }
  }

  /** Resolves or rejects as {@link Platform.waitReady} says. */
  settled(version: Version, timeoutMs?: number): Promise<ImageStatus> {
    const { state, error } = version.image;
    if (error !== undefined && state !== "refused") return Promise.reject(error);
    if (state !== "pending") return Promise.resolve(version.imageStatus());
    return new Promise((resolve, reject) => {
      let timer: NodeJS.Timeout | undefined;
      const waiting: Waiting = {
        resolve: (status) => {
          clearTimeout(timer);
          resolve(status);
        },
        reject: (reason) => {
          clearTimeout(timer);
          reject(reason);
        },
      };
      const list = this.#waiting.get(version) ?? [];
      list.push(waiting);
      this.#waiting.set(version, list);
      if (timeoutMs === undefined) return;
      timer = setTimeout(() => {
        list.splice(list.indexOf(waiting), 1);
        reject(
          new ThawError("TIMEOUT", {
            what: `The image of function "${version.name}" is not ready`,
            why: `it took more than ${timeoutMs / 1000} s`,
            fix: "It is still being made; the function runs by boot meanwhile",
          }),
        );
      }, timeoutMs);
    });
  }

  /** A thaw found `image` unusable: forgets it, and makes another. Called by every request that met it; the first one counts. */
  drop(version: Version, image: Image, error: ThawError): void {
    if (version.image.image !== image) return;
    this.#options.log.warn({ err: error, function: version.name, image: image.id }, "the image cannot be used; it is made anew");
    version.image.image = undefined;
    version.image.lost = error.message;
    version.image.attempts = 0;
    this.#note(version, "the image cannot be used and is made anew", error);
    this.#record(version, { state: "pending", reason: error.message });
    this.#remove(image);
    this.#schedule(version);
  }

  /** Stops making an image for `version`, and removes the one it has. Nothing of it is left when it resolves. */
  async retire(version: Version): Promise<void> {
    this.#cancel(version);
    for (const waiting of this.#takeWaiting(version)) waiting.reject(gone(version));
    await version.image.opening;
    if (this.#current?.version === version) {
      await this.#current.instance?.dispose().catch(() => undefined);
      while (this.#current?.version === version) await new Promise((resolve) => setTimeout(resolve, 5));
    }
    const { image } = version.image;
    version.image.image = undefined;
    if (image !== undefined) this.#remove(image);
    await Promise.all(this.#removals);
  }

  /** Stops making images; those that exist stay. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const version of [...this.#timers.keys(), ...this.#queue]) this.#cancel(version);
    for (const version of [...this.#waiting.keys()]) {
      for (const waiting of this.#takeWaiting(version)) waiting.reject(gone(version));
    }
    await this.#current?.instance?.dispose().catch(() => undefined);
    await this.#working;
    await Promise.all(this.#removals);
  }

  #schedule(version: Version): void {
    if (this.#closed || version.retired) return;
    version.image.state = "pending";
    version.image.error = undefined;
    this.#queue.push(version);
    this.#working ??= this.#work();
  }

  #cancel(version: Version): void {
    clearTimeout(this.#timers.get(version));
    this.#timers.delete(version);
    const queued = this.#queue.indexOf(version);
    if (queued !== -1) this.#queue.splice(queued, 1);
  }

  async #work(): Promise<void> {
    // The request that led here goes first.
    await new Promise((resolve) => setImmediate(resolve));
    for (let version = this.#queue.shift(); version !== undefined; version = this.#queue.shift()) {
      this.#current = { version, instance: undefined };
      try {
        await this.#make(version, this.#current);
      } catch (error) {
        this.#failed(version, error);
      } finally {
        this.#current = undefined;
      }
    }
    this.#working = undefined;
  }

  async #make(version: Version, job: { instance: Instance | undefined }): Promise<void> {
    const { engine, imagesDir } = this.#options;
    version.image.attempts += 1;
    const dir = join(imagesDir, `${version.name}.${randomBytes(8).toString("hex")}`);
    let image: Image;
    job.instance = await engine.boot(version.spec, { base: true });
    try {
      if (this.#abandoned(version)) return;
      image = await job.instance.freeze({ then: "end", dir });
    } finally {
      await job.instance.dispose();
    }
    faultPoint("freeze-image-renamed");
    let recorded = false;
    try {
      recorded =
        !this.#abandoned(version) &&
        this.#options.store.putImage(version.stored, {
          state: "ready",
          dir: image.dir.slice(imagesDir.length + 1),
          summary: summaryOf(image),
        });
    } finally {
      if (!recorded) await engine.removeImage(image);
    }
    if (!recorded) return;
    faultPoint("freeze-recorded");
    version.counters.add("freezes");
    this.#ready(version, image);
  }

  #ready(version: Version, image: Image): void {
    version.image.image = image;
    version.image.lost = undefined;
    version.image.error = undefined;
    this.#settle(version, "ready", undefined);
    const { runtime = 0, image: mapped = 0, prefaulted = 0, loader } = this.#options.parked;
    const { engine } = this.#options;
    if (runtime > 0) engine.park(image, "runtime", runtime);
    if (mapped > 0) engine.park(image, "image", mapped, ...(loader === undefined ? [] : [loader]));
    const most = Math.max(prefaulted, version.provisioned);
    if (most > 0) engine.park(image, "prefaulted", most, ...(loader === undefined ? [] : [loader]));
  }

  #failed(version: Version, raw: unknown): void {
    if (this.#abandoned(version)) return;
    const cause = resourceError(raw, `Function "${version.name}" could not be frozen`);
    const error = cause instanceof Error ? cause : new Error(errorText(cause));
    const { log, backoffMs = 1_000 } = this.#options;
    version.counters.add("freezeFailures");
    version.image.error = error;
    if (isThawError(error, "FREEZE_REFUSED")) {
      log.info({ function: version.name, reason: error.message }, "the function cannot be frozen; it runs by boot");
      this.#note(version, "the function cannot be frozen and runs by boot", error);
      this.#record(version, { state: "refused", reason: error.message });
      this.#settle(version, "refused", error.message);
      return;
    }
    this.#note(version, "no image could be made", error);
    if (isThawError(error, "RESOURCE_EXHAUSTED") && version.image.attempts < ATTEMPTS_MAX) {
      const pauseMs = Math.min(BACKOFF_MS_MAX, backoffMs * 2 ** (version.image.attempts - 1));
      log.warn({ err: error, function: version.name, pauseMs }, "no image could be made; trying again");
      version.image.reason = error.message;
      this.#record(version, { state: "pending", reason: error.message });
      this.#timers.set(
        version,
        setTimeout(() => {
          this.#timers.delete(version);
          this.#schedule(version);
        }, pauseMs).unref(),
      );
    } else {
      log.warn({ err: error, function: version.name }, "no image could be made; the function runs by boot");
      this.#record(version, { state: "failed", reason: error.message });
      version.image.state = "failed";
      version.image.reason = error.message;
    }
    for (const waiting of this.#takeWaiting(version)) waiting.reject(error);
  }

  async #open(version: Version, name: string): Promise<void> {
    const { engine, imagesDir, log } = this.#options;
    try {
      const image = await engine.openImage(join(imagesDir, name));
      if (!this.#abandoned(version)) this.#ready(version, image);
      else version.image.image = image;
    } catch (error) {
      const reason = errorText(error);
      log.warn({ err: error, function: version.name }, "the image cannot be used; it is made anew");
      this.#note(version, "the image cannot be used and is made anew", error);
      version.image.lost = reason;
      version.image.reason = reason;
      this.#record(version, { state: "pending", reason });
      this.#track(rm(join(imagesDir, name), { recursive: true, force: true }));
      this.#schedule(version);
    } finally {
      version.image.opening = undefined;
    }
  }

  #settle(version: Version, state: "none" | "ready" | "refused", reason: string | undefined): void {
    version.image.state = state;
    version.image.reason = reason;
    for (const waiting of this.#takeWaiting(version)) waiting.resolve(version.imageStatus());
  }

  #takeWaiting(version: Version): Waiting[] {
    const list = this.#waiting.get(version) ?? [];
    this.#waiting.delete(version);
    return list;
  }

  #abandoned(version: Version): boolean {
    return this.#closed || version.retired;
  }

  /** A state that is lost costs one more attempt after a restart, nothing else; so a failure is only logged. */
  #record(version: Version, image: StoredImage): void {
    try {
      this.#options.store.putImage(version.stored, image);
    } catch (error) {
      this.#options.log.error({ err: error, function: version.name }, "the image's state could not be recorded");
    }
  }

  #remove(image: Image): void {
    this.#track(this.#options.engine.removeImage(image));
  }

  #track(removal: Promise<void>): void {
    const done = removal
      .catch((error: unknown) =>
        this.#options.log.error({ err: error }, "an image could not be removed; the next start sweeps it"),
      )
      .finally(() => this.#removals.delete(done));
    this.#removals.add(done);
  }

  #note(version: Version, what: string, error: unknown): void {
    version.log.append("", `thaw: ${what}: ${errorText(error)}\n`);
  }
}

function summaryOf({ id, generation, heat, bytesOnDisk, report }: Image): ImageSummary {
  return { id, generation, heat, bytesOnDisk, report };
}

function gone(version: Version): ThawError {
  return new ThawError("FUNCTION_NOT_FOUND", {
    what: `The image of function "${version.name}" was not made`,
    why: "the function was replaced or removed, or the server stopped, meanwhile",
    fix: "Deploy it again",
  });
}
