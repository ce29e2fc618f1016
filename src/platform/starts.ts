/**
 * How an instance comes into being: parked → thaw → boot when nothing is demanded, or exactly the demanded way. When an image turns
 * out to be unusable, the function is booted, the result says so, and the image is made anew. A request that demanded a thaw
 * is told instead.
 */
import { type ErrorParts, isThawError, ThawError } from "../base/errors.js";
import type { Engine, Image, Instance, StartResult } from "../engine/types.js";
import type { Images } from "./images.js";
import type { Starter } from "./instances.js";
import { LIMITS, type ParkedTargets, type Preference } from "./types.js";
import type { Version } from "./version.js";

/** A fresh instance. `start` is the instance's own, with what the platform adds: waiting, and a fallback. */
export interface Started {
  readonly instance: Instance;
  readonly start: StartResult;
}

/** See above. */
export class Starts implements Starter {
  readonly #parks: boolean;

  constructor(
    private readonly engine: Engine,
    private readonly images: Images,
    parked: ParkedTargets,
  ) {
    this.#parks = (parked.image ?? 0) + (parked.prefaulted ?? 0) > 0;
  }

  async prepare(version: Version, prefer: Preference | undefined): Promise<number> {
    // What a former server left must be looked at before a boot is the only way.
    await version.image.opening;
    if (prefer === undefined || prefer.kind === "boot" || version.image.state === "ready") return 0;
    const began = performance.now();
    if (version.image.state === "pending") {
      // A failed attempt is told by the state below; here it only ends the waiting.
      await this.images.settled(version, LIMITS.preferenceWaitMs).catch(() => undefined);
    }
    // Replaced or removed meanwhile: the newer version, if there is one, is what the request wants.
    if (version.retired) return 0;
    if (version.imageStatus().state !== "ready") {
      const why = version.image.reason ?? `its image was not ready within ${LIMITS.preferenceWaitMs / 1000} s`;
      throw unavailable(version, prefer, why, "Deploy with --wait, or look at the image's state with `thaw ls`");
    }
    return Math.round((performance.now() - began) * 1000);
  }

  async start(version: Version, prefer: Preference | undefined, waitedUs: number): Promise<Started> {
    if (prefer === undefined) return this.#startAnyWay(version);
    const instance = await this.#startThisWay(version, prefer, LIMITS.preferenceWaitMs - waitedUs / 1000);
    const { start } = instance;
    const differs =
      start.kind !== prefer.kind ||
      (prefer.loader !== undefined && start.loader !== prefer.loader) ||
      (prefer.husk === "fresh" && start.husk !== "fresh") ||
      (prefer.husk === "pooled" && start.husk === "fresh");
    if (differs) {
      await instance.dispose();
      const came = [start.kind, start.loader, start.husk].filter((part) => part !== undefined).join(", ");
      throw unavailable(version, prefer, `it would have come another way (${came})`, "Try again when the pools are full");
    }
    return { instance, start: waitedUs === 0 ? start : { ...start, waitUs: start.waitUs + waitedUs } };
  }

  async #startAnyWay(version: Version): Promise<Started> {
    const { image } = version.image;
    let fallback = version.image.lost;
    if (image !== undefined) {
      try {
        const instance = await this.#thawOrParked(image);
        return { instance, start: instance.start };
      } catch (error) {
        if (!isImageFault(error)) throw error;
        this.images.drop(version, image, error);
        // The one that found it first knows why; behind it, the image is only gone.
        fallback = version.image.lost ?? error.message;
      }
    }
    const instance = await this.engine.boot(version.spec);
    if (fallback === undefined) return { instance, start: instance.start };
    version.lastFallback = { reason: fallback, atMs: Date.now() };
    return { instance, start: { ...instance.start, fallback } };
  }

  async #thawOrParked(image: Image): Promise<Instance> {
    if (this.#parks) {
      try {
        return await this.engine.thaw(image, { husk: "parked" });
      } catch (error) {
        if (!isThawError(error, "PREFERENCE_UNAVAILABLE")) throw error;
      }
    }
    return this.engine.thaw(image);
  }

  async #startThisWay(version: Version, prefer: Preference, waitMs: number): Promise<Instance> {
    if (prefer.kind === "boot") return this.engine.boot(version.spec, prefer.husk === undefined ? {} : { husk: prefer.husk });
    const { image } = version.image;
    if (image === undefined) throw unavailable(version, prefer, "its image was dropped just now", "Try again when it is ready");
    if (prefer.kind === "parked" && !this.#parks) {
      throw unavailable(version, prefer, "this server parks no husks", "Start it with parked husks (see `thaw serve --help`)");
    }
    try {
      return await this.engine.thaw(image, {
        ...(prefer.loader === undefined ? {} : { loader: prefer.loader }),
        husk: prefer.kind === "parked" ? "parked" : (prefer.husk ?? "pooled"),
        waitMs: Math.max(0, Math.round(waitMs)),
      });
    } catch (error) {
      if (!isImageFault(error)) throw error;
      this.images.drop(version, image, error);
      throw unavailable(version, prefer, error.message, "Try again when the new image is ready", error);
    }
  }
}

const IMAGE_FAULTS = ["IMAGE_DAMAGED", "IMAGE_MISMATCH", "IMAGE_NOT_READY", "THAW_FAILED"] as const;

/** Whether an error of a start means that the image, not the request, is at fault. */
function isImageFault(error: unknown): error is ThawError {
  return isThawError(error) && IMAGE_FAULTS.some((code) => code === error.code);
}

function unavailable(version: Version, prefer: Preference, why: string, fix: string, cause?: unknown): ThawError {
  const way = prefer.loader === undefined ? prefer.kind : `${prefer.kind} with loader ${prefer.loader}`;
  const parts: ErrorParts = { what: `Function "${version.name}" was not started: the request demands ${way}`, why, fix };
  return new ThawError("PREFERENCE_UNAVAILABLE", cause === undefined ? parts : { ...parts, cause });
}
