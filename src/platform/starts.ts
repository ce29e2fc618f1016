/**
 * How an instance comes into being: parked → thaw → boot when nothing is demanded, or exactly the demanded way. When an image turns
 * out to be unusable, the function is booted, the result says so, and the image is made anew. A request that demanded a thaw
 * is told instead.
 *
 * A thaw is early: the request is queued right behind its stages, which saves a round trip. So a start may fail in two places: in
 * `thaw`, or in the first `invoke`, before the function ran. Both are judged by {@link Starts.judge}, and tried again alike.
 */
import { assert, type ErrorParts, isThawError, ThawError } from "../base/errors.js";
import type { Engine, Image, Instance, StartResult, ThawOptions } from "../engine/types.js";
import type { Images } from "./images.js";
import type { Starter } from "./instances.js";
import { LIMITS, type ParkedTargets, type Preference } from "./types.js";
import type { Version } from "./version.js";

/** Husks that may be lost between their pool and the function before the image is blamed for it. */
const HUSKS_LOST_MAX = 1;

/** One request's way to an instance, over all its tries. */
export interface Attempt {
  readonly version: Version;
  readonly prefer: Preference | undefined;
  /** Waited for an image or a pool before the first try. */
  readonly waitedUs: number;
  /** Of the memory budget, kept for the instance until it is there. */
  reservedBytes: number;
  /** The image that is being thawed; undefined for a boot. */
  image: Image | undefined;
  husksLost: number;
  /** Why it is not started as was intended. */
  fallback: string | undefined;
}

/** What a request is told about its start: the instance's own account, with what the platform adds. Complete after the first answer. */
export function startOf(attempt: Attempt, { start }: Instance): StartResult {
  const { waitedUs, fallback } = attempt;
  if (waitedUs === 0 && fallback === undefined) return start;
  return { ...start, waitUs: start.waitUs + waitedUs, ...(fallback === undefined ? {} : { fallback }) };
}

/** See above. */
export class Starts implements Starter {
  readonly #parks: boolean;
  /** Of parked husks: with another loader none would be found. */
  readonly #parkedLoader: Pick<ThawOptions, "loader">;

  constructor(
    private readonly engine: Engine,
    private readonly images: Images,
    parked: ParkedTargets,
  ) {
    this.#parks = (parked.image ?? 0) + (parked.prefaulted ?? 0) > 0;
    this.#parkedLoader = parked.loader === undefined ? {} : { loader: parked.loader };
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

  async start(attempt: Attempt): Promise<Instance> {
    const { version, prefer } = attempt;
    for (;;) {
      if (prefer === undefined) {
        attempt.image = attempt.fallback === undefined ? version.image.image : undefined;
        if (attempt.image === undefined) return this.#boot(attempt);
      }
      try {
        return prefer === undefined && attempt.image !== undefined
          ? await this.#thawOrParked(attempt.image, version.provisioned)
          : await this.#startThisWay(attempt);
      } catch (error) {
        if (!isImageFault(error)) throw error;
        this.#blame(attempt, error);
      }
    }
  }

  /**
   * Judges what `invoke` rejected with before the function ran: returns when `attempt` may be started again, another way if need be;
   * throws what the request is told otherwise.
   */
  judge(attempt: Attempt, error: unknown): void {
    if (attempt.image === undefined) throw error;
    if (isThawError(error, "SANDBOX_FAILED")) {
      attempt.husksLost += 1;
      // Once is somebody's kill. Twice, and it is more likely what the husks were made to do.
      if (attempt.husksLost > HUSKS_LOST_MAX) this.#blame(attempt, error);
    } else if (isImageFault(error)) this.#blame(attempt, error);
    else throw error;
  }

  /** The image is dropped; who demanded it is told, anybody else boots. */
  #blame(attempt: Attempt, error: ThawError): void {
    const { version, prefer, image } = attempt;
    if (image === undefined) throw error;
    this.images.drop(version, image, error);
    if (prefer !== undefined) throw unavailable(version, prefer, error.message, "Try again when the new image is ready", error);
    // The one that found it first knows why; behind it, the image is only gone.
    attempt.fallback = version.image.lost ?? error.message;
  }

  async #boot(attempt: Attempt): Promise<Instance> {
    const { version } = attempt;
    attempt.fallback ??= version.image.lost;
    const instance = await this.engine.boot(version.spec);
    if (attempt.fallback !== undefined) version.lastFallback = { reason: attempt.fallback, atMs: Date.now() };
    return instance;
  }

  async #startThisWay(attempt: Attempt): Promise<Instance> {
    const { version, prefer, waitedUs } = attempt;
    assert(prefer !== undefined, "a demanded start has a preference");
    const instance = await this.#startDemanded(attempt, prefer, LIMITS.preferenceWaitMs - waitedUs / 1000);
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
    return instance;
  }

  async #thawOrParked(image: Image, provisioned: number): Promise<Instance> {
    if (this.#parks || provisioned > 0) {
      try {
        return await this.engine.thaw(image, { ...this.#parkedLoader, husk: "parked", early: true });
      } catch (error) {
        if (!isThawError(error, "PREFERENCE_UNAVAILABLE")) throw error;
      }
    }
    return this.engine.thaw(image, { early: true });
  }

  async #startDemanded(attempt: Attempt, prefer: Preference, waitMs: number): Promise<Instance> {
    const { version } = attempt;
    if (prefer.kind === "boot") return this.engine.boot(version.spec, prefer.husk === undefined ? {} : { husk: prefer.husk });
    const { image } = version.image;
    attempt.image = image;
    if (image === undefined) throw unavailable(version, prefer, "its image was dropped just now", "Try again when it is ready");
    if (prefer.kind === "parked" && !this.#parks && version.provisioned === 0) {
      const fix = "Deploy it with --provisioned, or start the server with --park";
      throw unavailable(version, prefer, "this server parks no husks", fix);
    }
    return this.engine.thaw(image, {
      ...(prefer.kind === "parked" ? this.#parkedLoader : prefer.loader === undefined ? {} : { loader: prefer.loader }),
      husk: prefer.kind === "parked" ? "parked" : (prefer.husk ?? "pooled"),
      waitMs: Math.max(0, Math.round(waitMs)),
      early: true,
    });
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
