/** Which husk a start gets: one that is parked for its image, one with its runtime mapped, any other, or a new one. */
import { monotonicNs } from "../base/clock.js";
import { ThawError } from "../base/errors.js";
import type { Fingerprint } from "../linux/fingerprint.js";
import type { Husk } from "./husk.js";
import { DEFAULT_TMP_MB, genericKey, type HuskPool } from "./husk-pool.js";
import type { LoadedImage } from "./images.js";
import { usBetween } from "./parts.js";
import type { HuskLevel, Loader, ThawOptions } from "./types.js";

/** What a start is about, beside its image. */
export interface HuskWish {
  readonly template: number;
  readonly here: Fingerprint;
  readonly loader: Loader;
  readonly options: ThawOptions;
}

/** The husk of a start, and what it cost to have it. */
export interface ChosenHusk {
  readonly husk: Husk;
  readonly from: HuskLevel | "fresh";
  readonly parked: boolean;
  /** For a pool to be filled. */
  readonly waitUs: number;
  /** How long it took to make it. */
  readonly madeNs: bigint;
}

/** PREFERENCE_UNAVAILABLE when a parked one is asked for and none is there in time. */
export async function chooseHusk(
  husks: HuskPool,
  loaded: LoadedImage,
  { template, here, loader, options }: HuskWish,
): Promise<ChosenHusk> {
  const fits = (husk: Husk): boolean => !loaded.avoidPids.has(husk.pid);
  const wanted = options.husk ?? "pooled";
  const keys =
    wanted === "parked"
      ? [parkedKey(loaded, "prefaulted", loader), parkedKey(loaded, "image", loader)]
      : wanted === "pooled"
        ? [loaded.poolKey(here), genericKey(template)]
        : [];
  const usable = loaded.image.spec.tmpMb === DEFAULT_TMP_MB || wanted === "parked" ? keys : [];
  const waitFrom = monotonicNs();
  for (const patient of [false, true]) {
    for (const key of usable) {
      if (patient && husks.targetCount(key) > 0) await husks.waitFor(key, options.waitMs ?? 0);
      const husk = husks.take(key, fits);
      if (husk !== undefined)
        return {
          husk,
          from: husk.level,
          parked: wanted === "parked",
          waitUs: patient ? usBetween(waitFrom, monotonicNs()) : 0,
          madeNs: 0n,
        };
    }
    if ((options.waitMs ?? 0) <= 0) break;
  }
  if (wanted === "parked") {
    throw new ThawError("PREFERENCE_UNAVAILABLE", {
      what: `no husk is parked for function "${loaded.image.spec.name}" with loader ${loader}`,
      why:
        husks.targetCount(keys[0] ?? "") + husks.targetCount(keys[1] ?? "") === 0
          ? "none is configured"
          : `none was ready within ${options.waitMs ?? 0} ms`,
      fix: "start the server with --park, or ask for another kind of start",
    });
  }
  const from = monotonicNs();
  const husk = await husks.make(template, [], "generic", loaded.avoidPids, loaded.image.spec.tmpMb);
  return { husk, from: "fresh", parked: false, waitUs: 0, madeNs: monotonicNs() - from };
}

/** The pool of husks with this image's memory in them. */
export function parkedKey(loaded: Pick<LoadedImage, "image">, level: "image" | "prefaulted", loader: Loader): string {
  return `${level}:${loaded.image.id}:${loader}`;
}
