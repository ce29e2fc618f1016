/**
 * The first image of a version, generation 0, is made in the background, one at a time: boot, freeze, end, publish (pools.ts).
 * Hotter ones come later, from heating.ts, which waits while one is made here.
 *
 *               ┌──── the last image was dropped: damaged, or made for another machine ───┐
 *               ▼                                                                         │
 *     deploy ─▶ pending ──▶ ready ───────────────────────────────────────────────────────┘
 *               │  ▲  │ └─▶ refused   the process holds what cannot be frozen: it runs by boot
 *               │  │  └───▶ failed    it could not be loaded, or not frozen
 *               └──┘ something ran out: again after 1, 2, 4 … 60 s, at most {@link ATTEMPTS_MAX} times; a freeze failed,
 *                    or somebody killed the process: {@link FAILURES_MAX} times
 *
 * The instance that is frozen takes no place of those that requests compete for.
 */

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { sleep } from "../base/clock.js";
import { errorText, isThawError, ThawError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import { nextTurn } from "../base/turns.js";
import { GIB } from "../base/units.js";
import type { Engine, Image, Instance, PrepareOptions } from "../engine/types.js";
import { isOfTheMoment } from "./image-faults.js";
import { wholeLines } from "./logs.js";
import { printedAtLoad } from "./outcome.js";
import type { Pools } from "./pools.js";
import { declaredEvents } from "./replay.js";
import { resourceError } from "./resources.js";
import type { Store, StoredFunction, StoredImage } from "./store.js";
import type { ImageState, ImageStatus, ParkedTargets } from "./types.js";
import type { Version } from "./version.js";

/**
 * The favourite images of so many versions are opened and checked when a server starts, in the background; of more, each when it is first used. Opening one
 * takes some ten milliseconds of the event loop.
 */
const OPENED_AT_START_MAX = 64;
/** Of those, one after the other, so many bytes are read and checked ahead of their first requests: some seconds of a disk. */
const PREPARED_BYTES_MAX = GIB;
/** Before each of them: requests that wait for the server to be there come first. */
const PREPARE_AFTER_MS = 100;
/** Tries for one version, while things run out; and while what fails may have to do with the moment. */
const ATTEMPTS_MAX = 8;
const FAILURES_MAX = 3;
/** First pause after something ran out. */
const BACKOFF_MS = 1_000;
const BACKOFF_MS_MAX = 60_000;
const BOOT_ONLY = "This server runs functions without images: every start that finds no idle instance is a boot";

interface Waiting {
  readonly resolve: (status: ImageStatus) => void;
  readonly reject: (error: Error) => void;
}

export interface ImagesOptions {
  readonly engine: Engine;
  readonly store: Store;
  readonly pools: Pools;
  readonly imagesDir: string;
  readonly parked: ParkedTargets;
  readonly log: Logger;
  /** Called when a version has got its first image, or its first again, or has one from before. */
  readonly onReady?: (version: Version) => void;
}

/** See above. */
export class Images {
  readonly #options: ImagesOptions;
  readonly #queue: Version[] = [];
  readonly #waiting = new Map<Version, Waiting[]>();
  readonly #timers = new Map<Version, NodeJS.Timeout>();
  /** Directories of images that a former server made, and this one cannot use: they are the next one's, unless the function goes. */
  readonly #unusable = new Map<Version, readonly string[]>();
  #working: Promise<void> | undefined;
  #current: { readonly version: Version; readonly stop: AbortController; instance: Instance | undefined } | undefined;
  #closed = false;
  #opened = 0;
  #preparedBytes = 0;
  readonly #closing = new AbortController();
  #preparing: Promise<void> = Promise.resolve();
  /** Versions whose images a former server made, until those are open. */
  readonly #toOpen = new Map<Version, () => Promise<void>>();
  #opening: Promise<void> = Promise.resolve();
  /** Whose image it is at the moment: an instance of its own may run for that. */
  #prepared: { readonly version: Version; readonly stop: AbortController; readonly done: Promise<void> } | undefined;
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

  /** Begins with a version that was stored by a former server: opens its images, or makes one. */
  resume(version: Version, { state, images }: StoredFunction): void {
    if (version.warmUp !== undefined && state.warmUp !== undefined) version.warmUp = state.warmUp;
    if (!this.#options.engine.canFreeze) {
      this.#unusable.set(
        version,
        images.map(({ dir }) => dir),
      );
      this.#settle(version, "none", BOOT_ONLY);
      return;
    }
    version.image.reason = state.reason;
    for (const image of images) this.#options.pools.adopt(version, image);
    const unknown = images.filter(({ summary }) => summary === undefined);
    if (images.length === 0) this.#schedule(version);
    else if (unknown.length === 0 && !this.#parks && version.provisioned === 0 && this.#opened >= OPENED_AT_START_MAX)
      this.#ready(version);
    else {
      this.#opened++;
      let opening: Promise<void> | undefined;
      const open = (): Promise<void> => {
        opening ??= this.#open(version, unknown);
        return opening;
      };
      this.#toOpen.set(version, open);
      // One after the other: to check one takes some milliseconds, and dozens at once would hold up whoever comes meanwhile.
      this.#opening = this.#opening.then(nextTurn).then(open);
    }
  }

  /** Resolves when it is known what a former server left of a version, which is looked at now if that has not begun; undefined when it is. */
  opened(version: Version): Promise<void> | undefined {
    return this.#toOpen.get(version)?.();
  }

  /** Records what became of a version's warm-up events. */
  recordWarmUp(version: Version): void {
    const { state, reason } = version.image;
    if (state !== "none" && this.#options.engine.canFreeze && !this.#abandoned(version)) this.#record(version, state, reason);
  }

  /** Resolves when no first image is being made or waits to be: those are more urgent than any hotter one. Undefined when it is so. */
  quiet(): Promise<void> | undefined {
    return this.#working?.then(() => this.quiet());
  }

  /** Resolves or rejects as {@link Platform.waitReady} says. */
  settled(version: Version, timeoutMs?: number): Promise<ImageStatus> {
    const { state, error } = version.image;
    if (error !== undefined) return Promise.reject(error);
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
          new ThawError("IMAGE_NOT_READY", {
            what: `The image of function "${version.name}" is not ready`,
            why: `it took more than ${timeoutMs / 1000} s`,
            fix: "It is still being made; the function runs by boot meanwhile",
          }),
        );
      }, timeoutMs);
    });
  }

  /**
   * A thaw found `image` unusable: forgets it. The others of the version serve on; without any, another first one is made. Called by
   * every request that met it; the first one counts.
   */
  drop(version: Version, image: Image, error: ThawError): void {
    const { pools, log } = this.#options;
    if (!pools.forget(version, image)) return;
    const { generation } = image;
    version.counters.add("imagesDropped");
    if (version.generations.size > 0) {
      log.warn({ err: error, function: version.name, generation }, "an image cannot be used and is dropped; others serve");
      this.#note(version, `generation ${generation} cannot be used and is dropped; the other images serve`, error);
      pools.trim(version);
      return;
    }
    log.warn({ err: error, function: version.name, image: image.id }, "the image cannot be used; it is made anew");
    this.#note(version, "the image cannot be used and is made anew", error);
    this.#lost(version, error.message);
  }

  /** Stops making an image for `version`, and removes those that it has. Nothing of it is left when it resolves. */
  async retire(version: Version): Promise<void> {
    this.#cancel(version);
    for (const waiting of this.#takeWaiting(version)) waiting.reject(gone(version));
    await this.opened(version);
    if (this.#current?.version === version) {
      await this.#interrupt();
      while (this.#current?.version === version) await new Promise((resolve) => setTimeout(resolve, 5));
    }
    if (this.#prepared?.version === version) {
      this.#prepared.stop.abort();
      await this.#prepared.done;
    }
    for (const dir of this.#unusable.get(version) ?? []) this.#discard(version, dir);
    this.#unusable.delete(version);
    await this.#options.pools.forgetAll(version);
  }

  /** Of an image that nobody has open. */
  #discard(version: Version, dir: string): void {
    const { imagesDir, pools } = this.#options;
    pools.track(version, rm(join(imagesDir, dir), { recursive: true, force: true }));
  }

  /** Stops making images; those that exist stay. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#closing.abort();
    for (const version of [...this.#timers.keys(), ...this.#queue]) this.#cancel(version);
    for (const version of [...this.#waiting.keys()]) {
      for (const waiting of this.#takeWaiting(version)) waiting.reject(gone(version));
    }
    await this.#interrupt();
    await this.#working;
    await this.#opening;
    await this.#preparing;
    await this.#options.pools.settled();
  }

  /** Whatever image is being made: its function may be loading, or run already. */
  async #interrupt(): Promise<void> {
    this.#current?.stop.abort();
    await this.#current?.instance?.dispose().catch(() => undefined);
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
      this.#current = { version, stop: new AbortController(), instance: undefined };
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

  async #make(version: Version, job: { readonly stop: AbortController; instance: Instance | undefined }): Promise<void> {
    const { engine, pools } = this.#options;
    version.image.attempts += 1;
    let image: Image;
    job.instance = await engine.boot(version.spec, { base: true, signal: job.stop.signal }).catch((error: unknown) => {
      const printed = printedAtLoad(error);
      if (printed !== "" && !this.#abandoned(version)) version.log.append("", printed);
      throw error;
    });
    try {
      if (this.#abandoned(version)) return;
      image = await job.instance.freeze({ then: "end", dir: pools.newDir(version), generation: 0 });
    } catch (error) {
      // One that ended by itself said of what.
      const printed = job.instance.alive ? "" : wholeLines(job.instance.takeLogs());
      if (printed !== "") version.log.append("", printed);
      throw error;
    } finally {
      await job.instance.dispose();
    }
    if (!(await pools.publish(version, image, "deploy", () => !this.#abandoned(version)))) return;
    version.counters.add("freezes");
    this.#ready(version);
    const { warmUp } = version.stored.config;
    this.#prepare(version, 0, warmUp === undefined ? "rehearsal" : declaredEvents(warmUp.events).body);
  }

  #ready(version: Version): void {
    version.image.lost = undefined;
    version.image.error = undefined;
    this.#settle(version, "ready", undefined);
    this.#options.pools.trim(version);
    this.#options.onReady?.(version);
  }

  /** Its last image is gone: starts boot, and say why, until there is another. */
  #lost(version: Version, reason: string): void {
    version.image.lost = reason;
    version.image.reason = reason;
    version.image.attempts = 0;
    // What its events had made is gone, too.
    if (version.warmUp?.state === "done") version.warmUp = { state: "running" };
    this.#record(version, "pending", reason);
    this.#schedule(version);
  }

  #failed(version: Version, raw: unknown): void {
    if (this.#abandoned(version)) return;
    const cause = resourceError(raw, `Function "${version.name}" could not be frozen`);
    const error = cause instanceof Error ? cause : new Error(errorText(cause));
    const { log } = this.#options;
    version.counters.add("freezeFailures");
    if (isThawError(error, "FREEZE_REFUSED")) {
      log.info({ function: version.name, reason: error.message }, "the function cannot be frozen; it runs by boot");
      this.#note(version, "the function cannot be frozen and runs by boot", error);
      this.#record(version, "refused", error.message);
      this.#settle(version, "refused", error.message);
      return;
    }
    this.#note(version, "no image could be made", error);
    const attemptsMax = isThawError(error, "RESOURCE_EXHAUSTED") ? ATTEMPTS_MAX : isOfTheMoment(error) ? FAILURES_MAX : 0;
    if (version.image.attempts < attemptsMax) {
      const pauseMs = Math.min(BACKOFF_MS_MAX, BACKOFF_MS * 2 ** (version.image.attempts - 1));
      log.warn({ err: error, function: version.name, pauseMs }, "no image could be made; trying again");
      version.image.reason = error.message;
      this.#record(version, "pending", error.message);
      this.#timers.set(
        version,
        setTimeout(() => {
          this.#timers.delete(version);
          this.#schedule(version);
        }, pauseMs).unref(),
      );
      // Who waits is told at once that there is no room; a moment that passes he waits for.
      if (!isThawError(error, "RESOURCE_EXHAUSTED")) return;
    } else {
      log.warn({ err: error, function: version.name }, "no image could be made; the function runs by boot");
      this.#record(version, "failed", error.message);
      version.image.state = "failed";
      version.image.reason = error.message;
    }
    version.image.error = error;
    for (const waiting of this.#takeWaiting(version)) waiting.reject(error);
  }

  /** Opens those of which nothing is known but their place, then the one that the next start would thaw. */
  async #open(version: Version, unknown: readonly StoredImage[]): Promise<void> {
    const { engine, imagesDir, log, pools, store } = this.#options;
    let reason: string | undefined;
    const failed = (image: { readonly generation: number }, error: unknown): void => {
      reason = errorText(error);
      version.counters.add("imagesDropped");
      log.warn({ err: error, function: version.name, generation: image.generation }, "an image cannot be used");
      const last = version.generations.size === 0;
      const what = last
        ? "the image cannot be used and is made anew"
        : `generation ${image.generation} cannot be used and is dropped`;
      this.#note(version, what, error);
    };
    try {
      // Removed before it was looked at: nobody else knows of its images.
      if (version.retired) for (const { dir } of unknown) this.#discard(version, dir);
      if (this.#abandoned(version)) return;
      for (const { dir, source, createdMs, generation } of unknown) {
        try {
          version.generations.add({ image: await engine.openImage(join(imagesDir, dir)), source, createdMs });
        } catch (error) {
          store.removeImage(dir);
          this.#discard(version, dir);
          failed({ generation }, error);
        }
      }
      for (let image = version.generations.favourite; image !== undefined; image = version.generations.favourite) {
        try {
          await pools.open(image);
          break;
        } catch (error) {
          pools.forget(version, image);
          failed(image, error);
        }
      }
      if (this.#abandoned(version)) return;
      if (version.generations.size > 0) {
        this.#ready(version);
        this.#prepare(version, version.generations.favourite?.bytesOnDisk ?? 0);
      } else this.#lost(version, reason ?? "its images are gone");
    } catch (error) {
      this.#failed(version, error);
    } finally {
      this.#toOpen.delete(version);
    }
  }

  /**
   * So that its first request need not wait for it, nor record what it touches, where that is unknown and `record` can tell. What it finds wrong the first
   * start finds again, and mends. `bytes` have to be read.
   */
  #prepare(version: Version, bytes: number, record?: PrepareOptions["record"]): void {
    const image = version.generations.favourite;
    if (image === undefined || this.#preparedBytes + bytes > PREPARED_BYTES_MAX) return;
    this.#preparedBytes += bytes;
    this.#preparing = this.#preparing.then(async () => {
      const stop = new AbortController();
      const done = this.#prepareNow(version, image, AbortSignal.any([stop.signal, this.#closing.signal]), record);
      this.#prepared = { version, stop, done };
      await done;
      this.#prepared = undefined;
    });
  }

  async #prepareNow(version: Version, image: Image, signal: AbortSignal, record?: PrepareOptions["record"]): Promise<void> {
    try {
      await sleep(PREPARE_AFTER_MS, signal);
      if (version.retired || !version.generations.has(image)) return;
      await this.#options.engine.prepareImage(image, record === undefined ? {} : { record, signal });
    } catch (err) {
      if (!this.#abandoned(version)) this.#options.log.info({ err, function: version.name }, "an image could not be prepared");
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
  #record(version: Version, state: Exclude<ImageState, "none">, reason?: string): void {
    try {
      this.#options.store.putState(version.stored, { state, reason, warmUp: version.warmUp });
    } catch (error) {
      this.#options.log.error({ err: error, function: version.name }, "the image's state could not be recorded");
    }
  }

  #note(version: Version, what: string, error: unknown): void {
    version.log.append("", `thaw: ${what}: ${errorText(error)}\n`);
  }
}

function gone(version: Version): ThawError {
  return new ThawError("FUNCTION_NOT_FOUND", {
    what: `The image of function "${version.name}" was not made`,
    why: "the function was removed meanwhile",
    fix: "Deploy it again",
  });
}
