/**
 * Which husks are kept ready, and for what:
 *
 *   generic      for each runtime, as many as asked for
 *   runtime      for each set of interpreter's files that functions are started from: of itself, where that is asked for, or for images by name
 *   image, prefaulted   for images by name
 *
 * A husk with the runtime mapped takes a quarter off a start, and hardly any memory of its own: it maps files that are shared. So one is kept for whatever is
 * started from twice, without being asked for each image, and for the last few such sets: functions with native modules have their own.
 */

import { nowMs, sleep } from "../base/clock.js";
import { assert, ThawError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import { nextTurn } from "../base/turns.js";
import type { Fingerprint } from "../linux/fingerprint.js";
import { parkedKey } from "./choose-husk.js";
import { NO_PIDS } from "./choose-pid.js";
import type { Husk } from "./husk.js";
import { DEFAULT_TMP_MB, genericKey, type HuskPool } from "./husk-pool.js";
import type { LoadedImage } from "./images.js";
import type { Limits } from "./limits.js";
import type { OpenImages } from "./open-images.js";
import { refuseParking } from "./reap.js";
import type { StageStep } from "./stages.js";
import type { Templates } from "./templates.js";
import type { Image, Loader, ParkedLevel, PoolTarget } from "./types.js";
import { LOADERS } from "./types.js";

const DEFAULT_GENERIC_HUSKS = 2;
/** Sets of files that are kept of themselves, and such that were started from once. */
const RUNTIMES_MAX = 8;
const SEEN_MAX = 64;

/** What parking needs of the engine. */
export interface ParkingTools {
  readonly husks: HuskPool;
  readonly images: OpenImages;
  readonly templates: Templates;
  readonly limits: Limits;
  readonly fingerprint: Fingerprint;
  /** See `Recorder.device`. */
  readonly device: number | undefined;
  readonly log: Logger;
}

/** See above. */
export class Parking {
  #generic = DEFAULT_GENERIC_HUSKS;
  #runtime = 0;
  /** Pools that nobody asked for by name, in order of use. */
  readonly #own = new Set<string>();
  readonly #seen = new Set<string>();
  /** For which images that are still being opened husks were asked for. Each rejects with what opening it fails with. */
  readonly #opening = new Set<Promise<void>>();

  constructor(private readonly tools: ParkingTools) {}

  pool({ generic = this.#generic, runtime = this.#runtime }: PoolTarget): void {
    if (runtime !== this.#runtime) {
      for (const key of this.#own) this.#drop(key);
      this.#own.clear();
    }
    this.#generic = generic;
    this.#runtime = runtime;
    for (const template of this.tools.templates.all()) this.poolGeneric(template.id);
  }

  /** The husks of a runtime that is used for the first time. */
  poolGeneric(template: number): void {
    this.tools.husks.target(genericKey(template), { ...NOTHING, template, count: this.#generic });
  }

  /** An image that is closed is opened first, in the background. IMAGE_NOT_READY if it was never here. */
  park(image: Image, level: ParkedLevel, count: number, asked?: Loader): void {
    if (level !== "runtime") refuseParking(asked ?? "splice");
    const loaded = this.tools.images.use(image);
    if (!(loaded instanceof Promise)) {
      this.#park(loaded, level, count, asked);
      return;
    }
    const parked = loaded.then((opened) => {
      if (!opened.closed) this.#park(opened, level, count, asked);
    });
    this.#opening.add(parked);
    parked
      // The first start that thaws it finds the same, and tells it; here nothing is at stake but a husk.
      .catch((error: unknown) => this.tools.log.warn({ err: error, image: image.id }, "no husk could be parked for an image"))
      .finally(() => this.#opening.delete(parked));
  }

  /** How many husks wait for that image alone. */
  readyFor(image: Image): number {
    const keys = LOADERS.flatMap((loader) => [parkedKey({ image }, "image", loader), parkedKey({ image }, "prefaulted", loader)]);
    return keys.reduce((sum, key) => sum + this.tools.husks.readyCount(key), 0);
  }

  /** Resolves when all that was asked for by now is parked. RESOURCE_EXHAUSTED after `timeoutMs`, or what opening an image fails with. */
  async full(timeoutMs: number): Promise<void> {
    const endMs = nowMs() + timeoutMs;
    // Behind what starts have left to be asked for; see `started`.
    await nextTurn();
    const timer = new AbortController();
    const late = sleep(timeoutMs, timer.signal).then(() => {
      throw new ThawError("RESOURCE_EXHAUSTED", {
        what: `the pools did not fill within ${timeoutMs} ms`,
        why: "images that husks shall be parked for are still being opened",
      });
    });
    await Promise.race([Promise.all(this.#opening), late]).finally(() => timer.abort());
    return this.tools.husks.full(Math.max(0, endMs - nowMs()));
  }

  #park(loaded: LoadedImage, level: ParkedLevel, count: number, asked: Loader | undefined): void {
    const loader = loaded.loaderFor(asked);
    const key = level === "runtime" ? this.#runtimeKey(loaded) : parkedKey(loaded, level, loader);
    this.#own.delete(key);
    this.#target(key, loaded, level, count, loader);
  }

  /** A start took a husk from a pool, or found none. Nothing is done on its way. */
  started(loaded: LoadedImage): void {
    if (this.#runtime === 0 || loaded.image.spec.tmpMb !== DEFAULT_TMP_MB) return;
    const key = this.#runtimeKey(loaded);
    if (this.#own.delete(key)) this.#own.add(key);
    else setImmediate(() => this.#keep(key, loaded));
  }

  /** It is known what starts of the image touch: husks that were parked to find out have nothing of it mapped ahead. */
  recorded(loaded: LoadedImage): void {
    for (const level of ["image", "prefaulted"] as const)
      this.tools.husks.renew(parkedKey(loaded, level, "splice"), ({ tracked }) => tracked);
  }

  /** The image is being removed. Its runtime's pool goes on with the programs of another one, if there is one. */
  forget(loaded: LoadedImage): void {
    for (const level of ["image", "prefaulted"] as const)
      for (const loader of LOADERS) this.#drop(parkedKey(loaded, level, loader));
    const key = this.#runtimeKey(loaded);
    const count = this.tools.husks.targetCount(key);
    const heir = [...this.tools.images.values()].find((other) => other !== loaded && this.#runtimeKey(other) === key);
    if (heir !== undefined && count > 0) this.#target(key, heir, "runtime", count);
    else {
      this.#drop(key);
      this.#own.delete(key);
    }
  }

  #keep(key: string, loaded: LoadedImage): void {
    if (loaded.closed || this.#runtime === 0 || this.tools.husks.targetCount(key) > 0) return;
    if (!this.#seen.delete(key)) {
      this.#seen.add(key);
      if (this.#seen.size > SEEN_MAX) this.#seen.delete(oldest(this.#seen));
      return;
    }
    this.#own.add(key);
    this.#target(key, loaded, "runtime", this.#runtime);
    if (this.#own.size <= RUNTIMES_MAX) return;
    const unused = oldest(this.#own);
    this.#own.delete(unused);
    this.#drop(unused);
  }

  #target(key: string, loaded: LoadedImage, level: ParkedLevel, count: number, loader: Loader = "splice"): void {
    const { husks, images, templates, limits, fingerprint, device } = this.tools;
    const template = templates.made(loaded.image.spec.runtime);
    assert(template !== undefined, "an open image has a template");
    const limit = (husk: Husk): void => limits.set(husk, loaded.image.spec);
    const steps = (): StageStep[] =>
      level === "runtime"
        ? loaded.runtimeSteps(fingerprint).map((step) => ({ ...step, before: limit }))
        : loaded.parkSteps(loader, level === "prefaulted", fingerprint, limit, device);
    images.holdForPool(key, count > 0 ? loaded : undefined);
    husks.target(key, { level, template: template.id, steps, avoid: loaded.avoidPids, count });
  }

  #drop(key: string): void {
    this.tools.images.holdForPool(key, undefined);
    if (this.tools.husks.targetCount(key) > 0) this.tools.husks.target(key, { ...NOTHING, template: 0, count: 0 });
  }

  #runtimeKey(loaded: LoadedImage): string {
    return loaded.poolKey(this.tools.fingerprint);
  }
}

const NOTHING = { level: "generic", steps: (): StageStep[] => [], avoid: NO_PIDS } as const;

function oldest(keys: ReadonlySet<string>): string {
  const [first = ""] = keys;
  return first;
}
