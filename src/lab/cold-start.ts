/**
 * A start from a cold disk. "Cold" means, for each sample:
 * - no other instance exists, and only generic husks are pooled, which map nothing of an interpreter;
 * - the interpreter is a copy that nothing else on the machine runs (private-interpreters.ts);
 * - image and interpreter were flushed and dropped, and not one of their pages is in the page cache: counted, and a failed run otherwise.
 *
 * Still cached: the C libraries that every process of the machine maps, inodes, directory entries, and what the server keeps in its own memory
 * (manifest, program).
 */
import { nowUs, sleep } from "../base/clock.js";
import type { Engine, Image, Loader } from "../engine/types.js";
import { checkAnswer, EMPTY_POOLS, eventOf, preparePools } from "./engine-under-test.js";
import type { Arm } from "./interleave.js";
import { blockedUs, evict, fetchAll, filesBelow, residentPages } from "./page-cache.js";
import { hostPid, majorFaults } from "./process-memory.js";
import { assertStart, type StartSample, seedOf } from "./start-arms.js";
import type { Workload } from "./workloads.js";

/** What of a function's files is dropped. */
export type Coldness = "image and interpreter" | "image";

/** One start from disk. Pages are 4 KiB. */
export interface ColdSample extends StartSample {
  /** Pages of the image's files, and of the private interpreter, that are in the cache after the answer: what the start read, and read ahead. */
  readonly imagePages: number;
  readonly interpreterPages: number;
  /** Time that the function's threads waited for the disk, summed over them; what a pager waits is not in it. */
  readonly blockedUs: number;
  readonly majorFaults: number;
  /** As the engine counts them; NaN where it does not. */
  readonly faultsOutside: number;
}

/** What is started. */
export interface ColdSubject {
  readonly engine: Engine;
  readonly workload: Workload;
  readonly image: Image;
  /** Everything private of the interpreter. */
  readonly interpreterDir: string;
}

/** How. */
export interface ColdWay {
  readonly name: string;
  readonly loader: Loader;
  readonly cold: Coldness;
}

const GENERIC = { ...EMPTY_POOLS, generic: 2 };
/** With the interpreter cached the husk has it mapped, as a server that parks runtimes has. */
const RUNTIME = { ...EMPTY_POOLS, generic: 2, runtime: 2 };
/** Processes that were just killed let go of their mappings within milliseconds. */
const EVICT_TRIES = 50;
const EVICT_PAUSE_MS = 20;

/** One way of starting from a cold disk, as an arm. See above. */
export function coldArm(subject: ColdSubject, way: ColdWay): Arm<ColdSample> {
  const { engine, workload, image, interpreterDir } = subject;
  return {
    name: way.name,
    async prepare() {
      const interpreter = await filesBelow(interpreterDir);
      // Before the husks are made: what they wait for the disk would be counted as the start's.
      if (way.cold === "image") await fetchAll(interpreter);
      await preparePools(engine, image, way.cold === "image" ? RUNTIME : GENERIC);
      const files = await filesBelow(image.dir);
      await evictPatiently(way.cold === "image" ? files : [...files, ...interpreter]);
    },
    async run(round) {
      const event = eventOf(workload, seedOf(round));
      const began = nowUs();
      const instance = await engine.thaw(image, { loader: way.loader, early: true });
      try {
        const result = await instance.invoke(event);
        const us = nowUs() - began;
        checkAnswer(workload, seedOf(round), result);
        const pid = hostPid(instance);
        const [imagePages, interpreterPages, waitedUs] = await Promise.all([
          pagesOf(image.dir),
          pagesOf(interpreterDir),
          blockedUs(pid),
        ]);
        const major = majorFaults(pid);
        await instance.faults();
        const { start } = instance;
        assertStart(start, { ...way, kind: "thaw", husk: way.cold === "image" ? "runtime" : "generic" });
        return {
          us,
          phases: start.phases,
          poolUs: 0,
          prefetchedPages: start.prefetchedPages,
          imagePages,
          interpreterPages,
          blockedUs: waitedUs,
          majorFaults: major,
          faultsOutside: start.faultsOutside ?? Number.NaN,
        };
      } finally {
        await instance.dispose();
      }
    },
  };
}

/** Tries again for a second, then throws what stays cached. */
export async function evictPatiently(files: readonly string[], keptMax = 0): Promise<void> {
  for (let tries = 1; ; tries++) {
    try {
      await evict(files, keptMax);
      return;
    } catch (error) {
      if (tries >= EVICT_TRIES) throw error;
      await sleep(EVICT_PAUSE_MS);
    }
  }
}

async function pagesOf(dir: string): Promise<number> {
  return (await residentPages(await filesBelow(dir))).reduce((sum, pages) => sum + pages, 0);
}
