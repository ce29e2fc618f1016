/** Functions of which only the image exists: deployed, listed, some of them started. */
import { statfsSync, statSync } from "node:fs";
import { join } from "node:path";
import { nowUs } from "../base/clock.js";
import { errorText } from "../base/errors.js";
import type { Platform } from "../platform/index.js";
import type { FailedRun } from "./interleave.js";
import type { Lab } from "./lab.js";
import { checkMany, type Deployed, deployMany, functionName, withPlatform } from "./many-functions.js";
import { filesBelow } from "./page-cache.js";
import { seededRandom } from "./statistics.js";

const LISTINGS = 20;
const STARTS = 200;
/** Disk that is left to others. */
const FREE_BYTES_MIN = 8e9;
/** Of the section's time, what is kept for listing, starting and removing. */
const RESERVED_MS = 300_000;

/** What became of the functions; times in microseconds. */
export interface ImagesResult {
  readonly wanted: number;
  readonly deployed: Deployed;
  readonly diskBytes: number;
  readonly listUs: readonly number[];
  readonly startUs: readonly number[];
  readonly lost: readonly FailedRun[];
}

/** Images share the pages of their bare runtime here, as `serve --shared-runtime` has it. */
export function imagesOnly(lab: Lab, wanted: number): Promise<ImagesResult> {
  const use = async (platform: Platform, dataDir: string): Promise<ImagesResult> => {
    const deployed = await deployMany(lab, platform, wanted, () => {
      if (lab.deadline.remainingMs < RESERVED_MS) return `the section's ${Math.round(lab.deadline.totalMs / 1000)} s were over`;
      const { bavail, bsize } = statfsSync(dataDir);
      return bavail * bsize < FREE_BYTES_MIN ? `only ${Math.round((bavail * bsize) / 1e9)} GB of disk are free` : undefined;
    });
    const listUs: number[] = [];
    for (let round = 0; round < LISTINGS; round++) {
      const began = nowUs();
      const { length } = platform.list();
      listUs.push(nowUs() - began);
      if (length < deployed.indices.length) throw new Error(`listed ${length} functions of ${deployed.indices.length}`);
    }
    const random = seededRandom(wanted);
    const startUs: number[] = [];
    const lost: FailedRun[] = [];
    for (let round = 0; round < Math.min(STARTS, deployed.indices.length); round++) {
      lab.progress(`start ${round + 1} of ${STARTS}`);
      const index = deployed.indices[Math.floor(random() * deployed.indices.length)];
      if (index === undefined) throw new Error("bug: an index out of range");
      try {
        const prefer = { kind: "thaw" } as const;
        const began = nowUs();
        const { result } = await platform.invoke(functionName(index), JSON.stringify({ seed: round }), { prefer, dispose: true });
        const us = nowUs() - began;
        checkMany(index, round, result.payload);
        startUs.push(us);
      } catch (error) {
        lost.push({ round: index, error: errorText(error) });
      }
    }
    // Working sets may still be replaced: what is gone in the meantime takes no disk.
    const files = await filesBelow(join(dataDir, "images"));
    // What many images link to counts once.
    const bytesOf = new Map<number, number>();
    for (const file of files) {
      const info = statSync(file, { throwIfNoEntry: false });
      if (info !== undefined) bytesOf.set(info.ino, info.blocks * 512);
    }
    const diskBytes = [...bytesOf.values()].reduce((sum, bytes) => sum + bytes, 0);
    return { wanted, deployed, diskBytes, listUs, startUs, lost };
  };
  return withPlatform(lab, { maxInstances: 8 }, use, true);
}
