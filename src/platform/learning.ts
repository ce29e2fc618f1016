/**
 * Learning from traffic, for functions that were deployed so: the images of instances that served real requests. What those requests
 * left in memory is then in the image (docs/design/heat.md says so plainly), so nothing here happens unless it was asked for.
 *
 *     answer ─▶ the policy learns its time ─▶ request number reached? ─▶ freeze while it goes on ─▶ raw image
 *                                                                                                      │ in private (heating.ts):
 *                                              publish ◀─ thaw, to see that it can be ◀─ freeze ◀─ hygiene ◀─ thaw
 *
 * A raw image has all the garbage of its instance; it serves nobody and is removed. While it is taken the instance answers, but is not
 * hibernated, evicted or ended ({@link Slot.freezing}). One at a time over all functions.
 */
import { isThawError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import type { Engine, Image, InvokeResult, StartResult } from "../engine/types.js";
import { Backoff } from "./backoff.js";
import { HEAT_TRIES_MAX, type Heating, reasonOf } from "./heating.js";
import type { Pools } from "./pools.js";
import type { Slot } from "./slot.js";
import type { Version } from "./version.js";

export interface LearningOptions {
  readonly engine: Engine;
  readonly heating: Heating;
  readonly pools: Pools;
  readonly log: Logger;
  /** First pause after a failure. Default 1 s. */
  readonly backoffMs?: number | undefined;
}

/** See above. */
export class Learning {
  readonly #options: LearningOptions;
  readonly #jobs = new Map<Version, Promise<void>>();
  readonly #backoffs = new Map<Version, Backoff>();

  constructor(options: LearningOptions) {
    this.#options = options;
  }

  /**
   * Tells the policy of an answer. Some tell nothing: a wake's includes what the disk took, that of a start which records its working
   * set a fault for every page, and an error's is about something else.
   */
  answered({ version, instance, origin }: Slot, start: StartResult, result: InvokeResult): void {
    if (origin === undefined || start.kind === "wake" || start.recording === true || result.functionError !== undefined) return;
    version.generations.answered(origin, origin.heat + instance.served, result.handlerMs);
  }

  /** An instance is free again, or was handed on at this moment: freezes it when its time has come. Returns at once. */
  released(slot: Slot): void {
    const { version, origin, instance } = slot;
    if (version.learning === undefined || version.learning.state === "failed" || origin === undefined) return;
    if (version.generations.changes !== slot.askedAt) {
      slot.askedAt = version.generations.changes;
      slot.freezeAt = version.generations.freezeAt(origin);
      version.learning = { state: slot.freezeAt === undefined ? "done" : "running" };
    }
    if (slot.freezeAt === undefined || origin.heat + instance.served < slot.freezeAt) return;
    const free = slot.state === "idle" || slot.state === "running";
    if (!free || !instance.alive || version.retired || this.#jobs.size > 0) return;
    if ((this.#backoffs.get(version)?.leftMs ?? 0) > 0 || !this.#options.heating.wants(version)) return;
    this.#begin(slot, version);
  }

  /** Resolves when nothing of `version` is being made. */
  async settled(version: Version): Promise<void> {
    await this.#jobs.get(version);
    this.#backoffs.delete(version);
  }

  /** Resolves when nothing is being made. */
  async close(): Promise<void> {
    await Promise.all(this.#jobs.values());
    await this.#options.pools.settled();
  }

  #begin(slot: Slot, version: Version): void {
    const { pools } = this.#options;
    const raw = slot.instance.freeze({
      live: true,
      hygiene: false,
      dir: pools.newDir(version),
      generation: version.generations.next,
    });
    slot.freezing = raw.then(
      () => undefined,
      () => undefined,
    );
    void slot.freezing.then(() => {
      slot.freezing = undefined;
    });
    const job = this.#refine(version, slot, raw).finally(() => this.#jobs.delete(version));
    this.#jobs.set(version, job);
  }

  async #refine(version: Version, slot: Slot, freezing: Promise<Image>): Promise<void> {
    const { engine, heating, pools } = this.#options;
    const { instance } = slot;
    try {
      const raw = await freezing;
      try {
        await heating.add(version, async () => {
          await heating.check(version);
          await heating.privately(version, raw, (privately) => heating.publish(version, privately, "traffic", "end"));
        });
      } finally {
        pools.track(version, engine.removeImage(raw));
      }
      this.#backoffs.delete(version);
    } catch (error) {
      // Nothing is known about the next instance: of this one nothing can be taken.
      if (isThawError(error, "FREEZE_REFUSED") && error.details.scope === "instance") slot.freezeAt = undefined;
      // Nor when it ended by itself.
      else if (heating.wants(version) && (instance.alive || isThawError(error, "FREEZE_REFUSED"))) this.#failed(version, error);
    }
  }

  /** What cannot be frozen ends it; anything else is tried again a few times, by the next request that is due. */
  #failed(version: Version, error: unknown): void {
    const { log, backoffMs = 1_000 } = this.#options;
    version.counters.add("heatFailures");
    const backoff = this.#backoffs.get(version) ?? new Backoff(backoffMs, 60_000);
    this.#backoffs.set(version, backoff);
    backoff.fail();
    const over = isThawError(error, "FREEZE_REFUSED") || backoff.failures >= HEAT_TRIES_MAX;
    log.warn({ err: error, function: version.name, again: !over }, "no image could be taken from traffic");
    if (!over) return;
    const reason = reasonOf(version, error);
    version.log.append("", `thaw: learning from traffic has failed: ${reason}\n`);
    version.learning = { state: "failed", reason };
  }
}
