/**
 * Hotter images, one at a time over all functions, and never while a first image waits to be made: those decide whether a function
 * can be used well at all. What asks for one is a {@link Job}: warm-up events, an image taken from traffic, or somebody by hand.
 *
 *     job ─▶ thaw in private ─▶ requests ─▶ freeze ─▶ thaw the new image, to see that it can be ─▶ publish (pools.ts)
 *                 └──────── the instance is ended, whatever happens ────────┘
 *
 * A private instance takes no place of those that requests compete for. It counts against the memory budget, and waits for nobody's
 * memory: where the budget has no room, the job fails with RESOURCE_EXHAUSTED.
 */
import { errorText, isThawError, ThawError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import { formatBytes } from "../base/units.js";
import type { Engine, FreezeOptions, Image, Instance } from "../engine/types.js";
import type { Budget } from "./budget.js";
import { isImageFault, isOfTheMoment } from "./image-faults.js";
import type { Images } from "./images.js";
import type { Pools } from "./pools.js";
import type { Events } from "./replay.js";
import { resourceError } from "./resources.js";
import type { ImageEntry } from "./types.js";
import type { Version } from "./version.js";

/** Jobs that may wait; whoever comes then is told. */
const WAITING_MAX = 10_000;

/** Makes images of one version. Ends early, by {@link Heating.check}, when the version is gone. */
export type Job<T> = () => Promise<T>;

interface Waiting {
  readonly version: Version;
  readonly run: () => Promise<void>;
  readonly giveUp: () => void;
}

export interface HeatingOptions {
  readonly engine: Engine;
  readonly images: Images;
  readonly pools: Pools;
  readonly budget: Budget;
  readonly log: Logger;
}

/** See above. */
export class Heating {
  readonly #options: HeatingOptions;
  readonly #queue: Waiting[] = [];
  /** What runs now; `rehearsing` ends the starts of a new image that find out what it touches, `waiting` its wait for first images. */
  readonly #current: { version?: Version; instance?: Instance; rehearsing?: AbortController; waiting?: () => void } = {};
  #working: Promise<void> | undefined;
  #closed = false;

  constructor(options: HeatingOptions) {
    this.#options = options;
  }

  /** Runs a job when its turn comes. Rejects with what it fails with, or with FUNCTION_NOT_FOUND when the version went first. */
  add<T>(version: Version, job: Job<T>): Promise<T> {
    if (this.#closed || version.retired) return Promise.reject(gone(version));
    if (this.#queue.length >= WAITING_MAX) {
      return Promise.reject(
        new ThawError("RESOURCE_EXHAUSTED", {
          what: `Function "${version.name}" was not heated`,
          why: `${WAITING_MAX} others wait for it already`,
          fix: "Try again later",
        }),
      );
    }
    return new Promise<T>((resolve, reject) => {
      // Whatever fails, also before the job's first wait, is told to who asked: the queue goes on.
      const run = async (): Promise<void> => {
        try {
          resolve(await job());
        } catch (error) {
          // What fails because its instance was ended with the version is told as that.
          reject(this.wants(version) ? error : gone(version));
        }
      };
      this.#queue.push({ version, run, giveUp: () => reject(gone(version)) });
      this.#working ??= this.#work();
    });
  }

  /** False when the version is gone, or the server stops: what then fails is nobody's failure. */
  wants(version: Version): boolean {
    return !this.#closed && !version.retired;
  }

  /** Throws when the version is gone; waits while a first image is being made. Between any two requests of a job. */
  async check(version: Version): Promise<void> {
    if (!this.wants(version)) throw gone(version);
    const quiet = this.#options.images.quiet();
    if (quiet === undefined) return;
    // Of other functions there may be hundreds, and whoever removes this one does not wait for them.
    const over = new Promise<void>((resolve) => {
      this.#current.waiting = resolve;
    });
    await Promise.race([quiet, over]);
    delete this.#current.waiting;
    if (!this.wants(version)) throw gone(version);
  }

  /** Uses an instance of `image` that no request gets. It has ended when this settles. An image that cannot be thawed is dropped. */
  async privately<T>(version: Version, image: Image, use: (instance: Instance) => Promise<T>): Promise<T> {
    const { engine, budget, images } = this.#options;
    const bytes = budget.estimate(version);
    if (!budget.fits(bytes)) {
      throw new ThawError("RESOURCE_EXHAUSTED", {
        what: `Function "${version.name}" was not heated`,
        why: `the memory budget has no room for the ${formatBytes(bytes)} of one more instance`,
        fix: "Hibernate another function first, or start the server with a larger --memory-budget",
      });
    }
    budget.count(bytes);
    let instance: Instance | undefined;
    const release = version.generations.use(image);
    try {
      instance = await engine.thaw(image).catch((error: unknown) => {
        if (isImageFault(error)) images.drop(version, image, error);
        throw error;
      });
      this.#current.instance = instance;
      if (!this.wants(version)) throw gone(version);
      return await use(instance);
    } finally {
      release();
      delete this.#current.instance;
      await instance?.dispose();
      budget.count(-bytes);
    }
  }

  /**
   * Freezes a private instance as the next generation, sees that it can be thawed, and lets starts have it, when it is known what they touch: by `events`,
   * or rehearsed. FUNCTION_NOT_FOUND when the version is gone; FREEZE_REFUSED and what else a freeze or a thaw fails with.
   */
  async publish(
    version: Version,
    instance: Instance,
    source: ImageEntry["source"],
    then: NonNullable<FreezeOptions["then"]>,
    events?: Events,
  ): Promise<Image> {
    const { engine, pools } = this.#options;
    await this.check(version);
    const image = await instance.freeze({ then, dir: pools.newDir(version), generation: version.generations.next });
    try {
      const thawed = await engine.thaw(image);
      await thawed.dispose();
      // Nobody's request shall have to record what its starts touch.
      const rehearsing = new AbortController();
      this.#current.rehearsing = rehearsing;
      if (this.wants(version))
        await engine.prepareImage(image, { record: events?.body ?? "rehearsal", signal: rehearsing.signal });
    } catch (error) {
      await engine.removeImage(image);
      throw error;
    } finally {
      delete this.#current.rehearsing;
    }
    if (!(await pools.publish(version, image, source, () => this.wants(version)))) throw gone(version);
    version.counters.add("heatFreezes");
    return image;
  }

  /** Ends what is being made of `version`, and what waits to be. */
  async retire(version: Version): Promise<void> {
    for (const waiting of this.#queue.filter((job) => job.version === version)) {
      this.#queue.splice(this.#queue.indexOf(waiting), 1);
      waiting.giveUp();
    }
    while (this.#current.version === version) {
      await this.#interrupt();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  /** Idempotent. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const { giveUp } of this.#queue.splice(0)) giveUp();
    await this.#interrupt();
    await this.#working;
  }

  /** Whatever runs now: its next step finds out why. */
  async #interrupt(): Promise<void> {
    const { rehearsing, waiting, instance } = this.#current;
    rehearsing?.abort();
    waiting?.();
    await instance?.dispose().catch(() => undefined);
  }

  async #work(): Promise<void> {
    // What led here, a request or a deploy, goes first.
    await new Promise((resolve) => setImmediate(resolve));
    for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
      this.#current.version = next.version;
      await next.run();
      delete this.#current.version;
    }
    this.#working = undefined;
  }
}

function gone(version: Version): ThawError {
  return new ThawError("FUNCTION_NOT_FOUND", {
    what: `Function "${version.name}" was not heated`,
    why: "the function was removed meanwhile",
    fix: "Deploy it again",
  });
}

/** Tries at one image before its failing is final, when something ran out or the moment was a bad one; pauses double between them. */
export const HEAT_TRIES_MAX = 4;

/** Whether trying again later may help. */
export function mayPass(error: unknown): boolean {
  return isThawError(resourceError(error, ""), "RESOURCE_EXHAUSTED") || isOfTheMoment(error);
}

/** A sentence for people: the error's own, in which the kernel's codes are put into words. */
export function reasonOf(version: Version, error: unknown): string {
  return errorText(resourceError(error, `Function "${version.name}" could not be made hotter`));
}
