/** What a wake costs: one instance at a time, hibernated before each sample, its memory in the page cache or on a cold disk. */
import { nowUs, sleep } from "../base/clock.js";
import type { Instance } from "../engine/types.js";
import { evictPatiently } from "./cold-start.js";
import { ask, checkAnswer, EMPTY_POOLS, eventOf, preparePools } from "./engine-under-test.js";
import type { HibernateSubject } from "./hibernate-footprint.js";
import { type Arm, type ArmResult, interleave } from "./interleave.js";
import type { Lab } from "./lab.js";
import { fetchAll, filesBelow, mappedFilesOf } from "./page-cache.js";
import { hostPid } from "./process-memory.js";
import { seedOf } from "./start-arms.js";
import { seededRandom } from "./statistics.js";
import { specOf } from "./workloads.js";

/** One request; `us`: microseconds to its answer. */
export interface WakeSample {
  readonly us: number;
  readonly prefetchedPages: number;
}

/** All arms of one function. */
export interface WakeResult {
  readonly workload: string;
  readonly kind: "boot" | "thaw";
  readonly arms: readonly ArmResult<WakeSample>[];
}

/** Names of the arms. */
export const WAKE_ARMS = {
  warm: "warm",
  paused: "warm, after as long a pause",
  pausedAgain: "… again (A/A)",
  cached: "wake, page cache",
  cold: "wake, cold disk",
  woken: "woken, the same event again",
  wokenOther: "woken, another event",
} as const;

const REQUESTS_BEFORE = 20;
/** What a hibernated process may keep in the cache: it returned into its read(2), through pages of the interpreter that lie in folios of up to 64. */
const KEPT_PAGES_MAX = 256;

/** Measures every way of finding an instance: warm, hibernated, woken. */
export async function wakes(lab: Lab, subject: HibernateSubject): Promise<WakeResult> {
  const { engine, workload, image, kind, interpreters } = subject;
  await preparePools(engine, image, EMPTY_POOLS);
  const spec = specOf(workload, engine.runtimes);
  const start = async (): Promise<Instance> => {
    const instance = await (kind === "boot" ? engine.boot(spec) : engine.thaw(image));
    for (let seed = 0; seed < REQUESTS_BEFORE; seed++) await ask(instance, workload, seed);
    return instance;
  };
  let sleeper: Instance | undefined;
  let hibernatingMs = 0;
  const hibernated = async (): Promise<Instance> => {
    sleeper ??= await start();
    const began = nowUs();
    const { cancelled } = await sleeper.hibernate();
    hibernatingMs = (nowUs() - began) / 1000;
    if (cancelled || sleeper.state !== "hibernated") throw new Error(`it should be hibernated, and is ${sleeper.state}`);
    return sleeper;
  };
  const timed = async (instance: Instance, seed: number): Promise<WakeSample> => {
    const event = eventOf(workload, seed);
    const began = nowUs();
    const result = await instance.invoke(event);
    const us = nowUs() - began;
    checkAnswer(workload, seed, result);
    return { us, prefetchedPages: instance.start.prefetchedPages };
  };
  const wake = (name: string, settle: (instance: Instance) => Promise<void>): Arm<WakeSample> => ({
    name,
    async prepare() {
      await settle(await hibernated());
      await sleep(1);
    },
    async run(round) {
      const sample = await timed(await awake(sleeper), seedOf(round));
      if (sleeper?.start.kind !== "wake") throw new Error(`meant to be a wake, but was ${sleeper?.start.kind}`);
      return sample;
    },
  });
  const afterWake = (name: string, seed: (round: number) => number): Arm<WakeSample> => ({
    name,
    async prepare(round) {
      const instance = await hibernated();
      await ask(instance, workload, seedOf(round));
      await ask(instance, workload, seedOf(round));
    },
    run: async (round) => timed(await awake(sleeper), seed(round)),
  });
  /**
   * An instance that never was hibernated, for each sample: it must not keep the interpreter in the cache during the others. Where it `pauses` for
   * as long as the other was being hibernated, its last requests find processors that are as cold, and hibernation is all that differs.
   */
  const warm = (name: string, pauses: boolean): Arm<WakeSample> => ({
    name,
    async run(round) {
      const instance = await start();
      try {
        if (pauses) await sleep(hibernatingMs);
        await ask(instance, workload, seedOf(round));
        await ask(instance, workload, seedOf(round));
        return await timed(instance, seedOf(round));
      } finally {
        await instance.dispose();
      }
    },
  });
  const done = lab.cleanup.add("ending the instance that hibernates", () => sleeper?.dispose());
  try {
    const arms = [
      warm(WAKE_ARMS.warm, false),
      warm(WAKE_ARMS.paused, true),
      warm(WAKE_ARMS.pausedAgain, true),
      wake(WAKE_ARMS.cached, async (instance) => fetchAll(privateFiles(instance, subject))),
      wake(WAKE_ARMS.cold, async (instance) => {
        const own = privateFiles(instance, { ...subject, interpreters: dataDir(subject) });
        await evictPatiently([...own, ...(await filesBelow(interpreters))], KEPT_PAGES_MAX);
      }),
      afterWake(WAKE_ARMS.woken, seedOf),
      afterWake(WAKE_ARMS.wokenOther, (round) => seedOf(round) + 1),
    ];
    const onRound = (round: number, rounds: number) => lab.progress(`${workload.name}, ${kind}: wake ${round + 1} of ${rounds}`);
    return {
      workload: workload.name,
      kind,
      arms: await interleave(arms, {
        rounds: lab.rounds,
        deadline: lab.deadline,
        onRound,
        shuffle: seededRandom(workload.name.length),
      }),
    };
  } finally {
    await sleeper?.dispose();
    done();
  }
}

/** The files of its memory: of the hibernation, which have no name, of the image, and of the interpreter. */
function privateFiles(instance: Instance, subject: HibernateSubject): string[] {
  return mappedFilesOf(hostPid(instance), [dataDir(subject), subject.interpreters]);
}

/** The engine keeps images and hibernated memory below one directory. */
function dataDir({ image }: HibernateSubject): string {
  return image.dir.slice(0, image.dir.lastIndexOf("/images/"));
}

async function awake(instance: Instance | undefined): Promise<Instance> {
  if (instance === undefined) throw new Error("bug: nothing was hibernated");
  return instance;
}
