/** What `heat-first` measures of each image: one first request after a thaw, with what it cost before, and beside it an instance that stays. */
import { nowUs, sleep } from "../base/clock.js";
import type { Engine, Image, Instance, InvokeResult, Phase, StartResult } from "../engine/types.js";
import { RECORDINGS_MAX } from "../image/index.js";
import { ask, checkAnswer, EMPTY_POOLS, eventOf, POOL_MS_MAX, preparePools, SETTLE_MS } from "./engine-under-test.js";
import type { Arm } from "./interleave.js";
import { assertStart, seedOf, timeRequest } from "./start-arms.js";
import { specOf, type Workload } from "./workloads.js";

/** One request. Microseconds. */
export interface HeatSample {
  /** The handler as the runtime saw it, page faults within it included. */
  readonly handlerUs: number;
  /** From the decision to start until the instance could run; 0 where nothing was started. */
  readonly startUs: number;
  /** Request in hand to response in hand, less the handler: the start, what the runtime does around the handler, the way there and back. */
  readonly aroundUs: number;
  readonly phases: readonly Phase[];
  readonly prefetchedPages?: number;
  /** Of the whole start and its first request. */
  readonly faults?: number;
  readonly faultsOutside?: number;
}

const READY = 2;
const BACK_TO_BACK = 5;

/** A thaw from a pooled husk with its runtime mapped, by the default loader. */
export function firstRequestArm(engine: Engine, workload: Workload, image: Image, name: string): Arm<HeatSample> {
  return {
    name,
    prepare: () => preparePools(engine, image, { ...EMPTY_POOLS, generic: READY, runtime: READY }),
    async run(round) {
      const sample = await unlessRecorded(engine, () =>
        firstRequest(
          workload,
          round,
          (start) => assertThaw(start, image),
          () => engine.thaw(image, { early: true }),
        ),
      );
      await engine.poolsFull(POOL_MS_MAX);
      return sample;
    },
  };
}

/** No image: the first request of a process that has just loaded the code. For context, so it need not run in every round. */
export function bootArm(engine: Engine, workload: Workload, image: Image, every: number): Arm<HeatSample> {
  const spec = specOf(workload, engine.runtimes);
  return {
    name: "boot",
    every,
    prepare: () => preparePools(engine, image, { ...EMPTY_POOLS, generic: READY, runtime: READY }),
    run: (round) =>
      firstRequest(
        workload,
        round,
        (start) => assertStart(start, { name: "boot", kind: "boot" }),
        () => engine.boot(spec, { husk: "pooled" }),
      ),
  };
}

async function firstRequest(
  workload: Workload,
  round: number,
  check: (start: StartResult) => void,
  start: () => Promise<Instance>,
): Promise<HeatSample> {
  const seed = seedOf(round);
  const event = eventOf(workload, seed);
  const began = nowUs();
  const instance = await start();
  try {
    const result = await instance.invoke(event);
    const us = nowUs() - began - instance.start.waitUs;
    checkAnswer(workload, seed, result);
    check(instance.start);
    const faults = await instance.faults();
    const { start: known } = instance;
    return {
      ...timesOf(result, us),
      startUs: known.us,
      phases: known.phases,
      prefetchedPages: known.prefetchedPages,
      ...(faults === undefined ? {} : { faults: faults.minor + faults.major }),
      ...(known.faultsOutside === undefined ? {} : { faultsOutside: known.faultsOutside }),
    };
  } finally {
    await instance.dispose();
  }
}

function timesOf({ handlerMs }: InvokeResult, us: number): HeatSample {
  return { handlerUs: handlerMs * 1_000, startUs: 0, aroundUs: us - handlerMs * 1_000, phases: [] };
}

/**
 * The steady state, taken twice. Back to back is what a busy instance does, and the quicker: what first requests are held against. After
 * the pause that starts come after, processor caches hold what ran in between.
 */
export function steadyArms(instance: Instance, workload: Workload): Arm<HeatSample>[] {
  const run = async (round: number) => {
    const { us, result } = await timeRequest(instance, workload, round);
    return timesOf(result, us);
  };
  const askOften = async (round: number) => {
    for (let count = 0; count < BACK_TO_BACK; count++) await ask(instance, workload, seedOf(round) + count + 2);
  };
  return [
    { name: STEADY, prepare: askOften, run },
    { name: STEADY_PAUSED, prepare: () => sleep(SETTLE_MS), run },
  ];
}

export const STEADY = "steady, back to back";
export const STEADY_PAUSED = "steady, after a pause";

/** A start that records takes everything by demand; see {@link unlessRecorded}. */
export function assertThaw(start: StartResult, { generation }: Image): void {
  if (start.recording === true) throw new Recorded("meant to be a thaw that records nothing, but it recorded");
  assertStart(start, { name: `thaw of generation ${generation}`, kind: "thaw", husk: "runtime", generation });
}

class Recorded extends Error {}

/** A working set that fits no more is recorded anew, by up to five starts in a row: these are not what is measured, and made again. */
export async function unlessRecorded<T>(engine: Engine, run: () => Promise<T>): Promise<T> {
  for (let recorded = 0; ; recorded++) {
    try {
      return await run();
    } catch (error) {
      if (!(error instanceof Recorded) || recorded === RECORDINGS_MAX) throw error;
      await engine.poolsFull(POOL_MS_MAX);
    }
  }
}
