/**
 * The engine that a section measures: opened for it alone, on a data directory of its own, and closed with it, so
 * that no section meets the husks of another.
 */
import { sleep } from "../base/clock.js";
import { tierUpEarly } from "../base/tier-up.js";
import { type EngineOptions, openEngine } from "../engine/index.js";
import type { Engine, HuskLevel, Image, Instance, InvokeResult } from "../engine/types.js";
import type { Lab } from "./lab.js";
import { checkReply, specOf, type Workload } from "./workloads.js";

/** Requests an instance answers before its image is made: one, which every function survives and few are hot after. */
const REQUESTS_BEFORE_FREEZE = 1;
/** How long pools may take to fill. */
export const POOL_MS_MAX = 15_000;
/**
 * After husks were made or dropped. Their processes are reaped by then; a longer pause lets the processors fall asleep, and
 * a start then measures how they wake (0.3 to 0.9 ms on this kind of machine) on top of itself.
 */
export const SETTLE_MS = 1;

/** Runs `use` with an engine, and closes it whatever happens. */
export async function withEngine<T>(
  lab: Lab,
  use: (engine: Engine) => Promise<T>,
  options: Partial<EngineOptions> = {},
): Promise<T> {
  // As in `thaw serve`, which has done so by its twentieth request.
  tierUpEarly();
  const engine = await openEngine({ dataDir: lab.makeDir("engine"), ...options });
  const done = lab.cleanup.add("closing the engine", () => engine.close());
  try {
    return await use(engine);
  } finally {
    await engine.close();
    done();
  }
}

/** The engine records a working set from the first answers of several instances, until they agree or there are five. */
const RECORDINGS_MIN = 2;
const RECORDINGS_MAX = 6;

/** Boots a workload, lets it answer, freezes it, and lets its working set be recorded. */
export async function makeImage(engine: Engine, workload: Workload): Promise<Image> {
  const instance = await engine.boot(specOf(workload, engine.runtimes));
  try {
    for (let seed = 0; seed < REQUESTS_BEFORE_FREEZE; seed++) await ask(instance, workload, seed);
    const image = await instance.freeze({ then: "end" });
    await recordWorkingSet(engine, workload, image);
    return image;
  } finally {
    await instance.dispose();
  }
}

/** Lets first requests to the image be recorded until the engine says that it knows enough. */
export async function recordWorkingSet(engine: Engine, workload: Asked, image: Image): Promise<void> {
  for (let seed = 0, recording = true; seed < RECORDINGS_MIN || (recording && seed < RECORDINGS_MAX); seed++) {
    const recorded = await engine.thaw(image);
    recording = recorded.start.recording === true;
    try {
      await ask(recorded, workload, seed);
    } finally {
      await recorded.dispose();
    }
  }
}

/** Invokes, checks the answer, and returns it; throws what is wrong with it. */
export async function ask(instance: Instance, workload: Asked, seed: number): Promise<InvokeResult> {
  const result = await instance.invoke(eventOf(workload, seed));
  checkAnswer(workload, seed, result);
  return result;
}

export type Asked = Pick<Workload, "name" | "event" | "reply">;

/** The request, as bytes in hand. */
export function eventOf(workload: Asked, seed: number): Buffer {
  return Buffer.from(JSON.stringify(workload.event(seed)));
}

/** Throws what is wrong with an answer. */
export function checkAnswer(workload: Asked, seed: number, result: InvokeResult): void {
  if (result.functionError !== undefined) {
    const reason = result.platformError ?? "the function failed";
    throw new Error(
      `${workload.name}: ${reason}: ${result.payload.toString("utf8", 0, 300)} ${result.logs.toString("utf8", 0, 300)}`,
    );
  }
  checkReply(workload, seed, result.payload);
}

/** How many husks of each level shall be ready. */
export type PoolPlan = Readonly<Record<HuskLevel, number>>;

export const EMPTY_POOLS: PoolPlan = { generic: 0, runtime: 0, image: 0, prefaulted: 0 };

/** Makes the pools as `plan` says and waits until they are, off the clock. */
export async function preparePools(engine: Engine, image: Image, plan: PoolPlan): Promise<void> {
  engine.pool({ generic: plan.generic });
  for (const level of ["runtime", "image", "prefaulted"] as const) engine.park(image, level, plan[level], "splice");
  await engine.poolsFull(POOL_MS_MAX);
  await sleep(SETTLE_MS);
}
