/**
 * How an instance comes into being: parked → thaw → boot when nothing is demanded, or exactly the demanded way. Which image is thawed
 * is the choice of the policy of heat. One that turns out to be unusable is dropped, and the next choice among the others serves the
 * same request; without any, the function is booted, and its first image is made anew. The result says so. A request that demanded a
 * thaw is told instead.
 *
 * Husks are parked for the favourite only (pools.ts). They are taken when the policy chose that image, and of a function with
 * provisioned husks whatever it chose.
 *
 * A thaw is early: the request is queued right behind its stages, which saves a round trip. So a start may fail in two places: in
 * `thaw`, or in the first `invoke`, before the function ran. Both are judged by {@link Starts.judge}, and tried again alike.
 */
import { assert, type ErrorParts, isThawError, ThawError } from "../base/errors.js";
import type { Engine, Image, Instance, StartResult, ThawOptions } from "../engine/types.js";
import { isImageFault } from "./image-faults.js";
import type { Images } from "./images.js";
import type { Starter } from "./instances.js";
import { LIMITS, type ParkedTargets, type Preference } from "./types.js";
import type { Version } from "./version.js";

/** Husks that may be lost between their pool and the function before the request is told, or the image blamed for it. */
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
    await this.images.opened(version);
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
      throw unavailable(version, prefer, why, version.imageAdvice());
    }
    return Math.round((performance.now() - began) * 1000);
  }

  async start(attempt: Attempt): Promise<Instance> {
    const { version, prefer } = attempt;
    for (;;) {
      if (prefer === undefined) attempt.image = version.generations.choose();
      try {
        const instance = await (prefer === undefined ? this.#startAnyWay(attempt) : this.#startThisWay(attempt));
        if (attempt.fallback !== undefined) version.lastFallback = { reason: attempt.fallback, atMs: Date.now() };
        return instance;
      } catch (error) {
        if (isThawError(error, "SANDBOX_FAILED") && attempt.husksLost < HUSKS_LOST_MAX) attempt.husksLost += 1;
        else if (isImageFault(error)) this.#blame(attempt, error);
        else throw error;
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

  /** The image is dropped; who demanded it is told, anybody else gets the next one, or boots. */
  #blame(attempt: Attempt, error: ThawError): void {
    const { version, prefer, image } = attempt;
    if (image === undefined) throw error;
    this.images.drop(version, image, error);
    if (prefer !== undefined) {
      const fix = version.generations.size > 0 ? "Try again: other images are there" : "Try again when the new image is ready";
      throw unavailable(version, prefer, error.message, fix, error);
    }
    // The one that found it first knows why; behind it, the image is only gone.
    attempt.fallback = version.image.lost ?? error.message;
  }

  #startAnyWay(attempt: Attempt): Promise<Instance> {
    const { version, image } = attempt;
    if (image !== undefined) return this.#thawOrParked(attempt, image);
    attempt.fallback ??= version.image.lost;
    return this.engine.boot(version.spec);
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
      if (start.loader !== undefined && prefer.loader !== undefined && start.loader !== prefer.loader) {
        const why = `its images are loaded by ${start.loader} alone: its allocator relies on zeros where memory was given back`;
        throw unavailable(version, prefer, why, `Demand loader=${start.loader}, or none`);
      }
      const came = [start.kind, start.loader, start.husk].filter((part) => part !== undefined).join(", ");
      throw unavailable(version, prefer, `it would have come another way (${came})`, "Try again when the pools are full");
    }
    return instance;
  }

  async #thawOrParked(attempt: Attempt, chosen: Image): Promise<Instance> {
    const { version } = attempt;
    const { favourite } = version.generations;
    if (favourite !== undefined && (version.provisioned > 0 || (this.#parks && favourite === chosen))) {
      attempt.image = favourite;
      try {
        return await this.#thaw(attempt, favourite, { ...this.#parkedLoader, husk: "parked" });
      } catch (error) {
        if (!isThawError(error, "PREFERENCE_UNAVAILABLE")) throw error;
      }
    }
    attempt.image = chosen;
    return this.#thaw(attempt, chosen, {});
  }

  async #startDemanded(attempt: Attempt, prefer: Preference, waitMs: number): Promise<Instance> {
    const { version } = attempt;
    if (prefer.kind === "boot") return this.engine.boot(version.spec, prefer.husk === undefined ? {} : { husk: prefer.husk });
    const image = this.#demandedImage(version, prefer);
    if (prefer.kind === "parked" && !this.#parks && version.provisioned === 0) {
      const fix = "Deploy it with --provisioned, or start the server with --park image=N or --park prefaulted=N";
      throw unavailable(version, prefer, "this server parks no husks with this image in them", fix);
    }
    attempt.image = image;
    return this.#thaw(attempt, image, {
      ...(prefer.kind === "parked" ? this.#parkedLoader : prefer.loader === undefined ? {} : { loader: prefer.loader }),
      husk: prefer.kind === "parked" ? "parked" : (prefer.husk ?? "pooled"),
      waitMs: Math.max(0, Math.round(waitMs)),
    });
  }

  #demandedImage(version: Version, prefer: Preference): Image {
    const { generations } = version;
    if (prefer.generation !== undefined) {
      const image = generations.find(prefer.generation);
      if (image !== undefined) return image;
      const { numbers } = generations;
      const those = numbers.length === 1 ? `generation ${numbers[0]} alone exists` : `generations ${numbers.join(", ")} exist`;
      const why = numbers.length === 0 ? "its images were dropped just now" : `it has no such image: ${those}`;
      throw unavailable(version, prefer, why, `Use one of those that \`thaw image ls ${version.name}\` lists`);
    }
    const image = prefer.kind === "parked" ? generations.favourite : generations.choose();
    if (image === undefined) throw unavailable(version, prefer, "its image was dropped just now", "Try again when it is ready");
    return image;
  }

  /** Early; the image stays where it is until the engine has begun with it. */
  async #thaw({ version }: Attempt, image: Image, options: ThawOptions): Promise<Instance> {
    const release = version.generations.use(image);
    try {
      return await this.engine.thaw(image, { ...options, early: true });
    } finally {
      release();
    }
  }
}

function unavailable(version: Version, prefer: Preference, why: string, fix: string, cause?: unknown): ThawError {
  const of = prefer.generation === undefined ? "" : ` of generation ${prefer.generation}`;
  const way = `${prefer.kind}${of}${prefer.loader === undefined ? "" : ` with loader ${prefer.loader}`}`;
  const parts: ErrorParts = { what: `Function "${version.name}" was not started: the request demands ${way}`, why, fix };
  return new ThawError("PREFERENCE_UNAVAILABLE", cause === undefined ? parts : { ...parts, cause });
}
