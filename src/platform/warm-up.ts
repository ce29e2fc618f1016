/**
 * Warm-up events: declared with a function, replayed before its users come.
 *
 *     generation 0 serves ─▶ thaw the hottest image in private ─▶ replay ─▶ the policy's next point? ─▶ freeze, publish ─┐
 *                                                                   ▲                                                    │
 *                                                                   └────────────────────────────────────────────────────┘
 *
 * It ends with a last image after `requests` requests, or after {@link LIMITS}.heatMs; or without one when the policy says that more
 * heat does not pay. What fails ends it for good: the images that exist serve on, and the status names the event. What ran out, and
 * what has to do with the moment, is tried again a few times. A server that is started again goes on from the hottest image.
 */
import { isThawError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import type { Image, Instance } from "../engine/types.js";
import { HEAT_TRIES_MAX, type Heating, mayPass, reasonOf } from "./heating.js";
import type { Images } from "./images.js";
import { declaredEvents, failed, replayEnd, replayOne } from "./replay.js";
import type { Version } from "./version.js";

export interface WarmUpsOptions {
  readonly heating: Heating;
  readonly images: Images;
  readonly log: Logger;
  /** First pause before it is tried again. Default 1 s. */
  readonly backoffMs?: number | undefined;
}

/** See above. */
export class WarmUps {
  readonly #options: WarmUpsOptions;
  readonly #running = new Set<Version>();
  readonly #timers = new Set<NodeJS.Timeout>();

  constructor(options: WarmUpsOptions) {
    this.#options = options;
  }

  /** The version has an image: replays its events on top of the hottest, unless that was done, has failed, or goes on already. */
  begin(version: Version): void {
    if (version.warmUp?.state === "running") this.#begin(version, 1);
  }

  /** Idempotent. */
  close(): void {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
  }

  #begin(version: Version, tries: number): void {
    if (this.#running.has(version)) return;
    this.#running.add(version);
    void this.#try(version, tries).finally(() => this.#running.delete(version));
  }

  async #try(version: Version, tries: number): Promise<void> {
    const { heating, images, log, backoffMs = 1_000 } = this.#options;
    try {
      await heating.add(version, () => this.#warmUp(version));
      // Nothing was there to be warmed: its last image was dropped, and the next first one begins anew.
      if (version.generations.size === 0) return;
      version.warmUp = { state: "done" };
    } catch (error) {
      if (!heating.wants(version)) return;
      version.counters.add("heatFailures");
      const reason = reasonOf(version, error);
      const again = tries < HEAT_TRIES_MAX && mayPass(error);
      log.warn({ err: error, function: version.name, again }, "a function could not be warmed up");
      // Its last image was dropped: the next first one begins anew.
      if (again && version.generations.size === 0) return;
      if (again) {
        this.#later(version, tries + 1, backoffMs * 2 ** (tries - 1));
        return;
      }
      version.log.append("", `thaw: warm-up has failed: ${reason}\n`);
      version.warmUp = { state: "failed", reason };
    }
    images.recordWarmUp(version);
  }

  #later(version: Version, tries: number, pauseMs: number): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      this.#begin(version, tries);
    }, pauseMs).unref();
    this.#timers.add(timer);
  }

  async #warmUp(version: Version): Promise<void> {
    const { heating } = this.#options;
    const { warmUp } = version.stored.config;
    await heating.check(version);
    const origin = version.generations.hottest;
    if (warmUp === undefined || origin === undefined || origin.heat >= warmUp.requests) return;
    if (version.generations.freezeAt(origin) === undefined) return;
    await heating.privately(version, origin, (instance) => this.#replay(version, instance, origin, warmUp));
  }

  async #replay(
    version: Version,
    instance: Instance,
    origin: Image,
    { events, requests }: { readonly events: readonly unknown[]; readonly requests: number },
  ): Promise<void> {
    const { heating } = this.#options;
    const declared = declaredEvents(events);
    const endMs = replayEnd();
    let heat = origin.heat;
    for (;;) {
      const point = version.generations.freezeAt(origin);
      // A point that is behind would be frozen again and again: nothing more is wanted.
      if (point === undefined || point <= heat) return;
      const target = Math.min(point, requests);
      const frozenAt = heat;
      for (; heat < target && performance.now() < endMs; heat++) {
        await heating.check(version);
        await replayOne(version, instance, origin, declared, heat);
      }
      if (heat === frozenAt) return;
      try {
        await heating.publish(version, instance, "warm-up", heat < requests ? "continue" : "end", declared);
      } catch (error) {
        if (!isThawError(error, "FREEZE_REFUSED")) throw error;
        throw failed(version, `after ${declared.name(heat - 1)} it cannot be frozen: ${error.message}`, error);
      }
      if (heat >= requests || performance.now() >= endMs) return;
    }
  }
}
