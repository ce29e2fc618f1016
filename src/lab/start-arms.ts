/**
 * The ways of starting that are compared at the engine, each as one arm: prepared off the clock, timed from the request in hand
 * to the response in hand, then checked to be the start it claims to be, then disposed. A start that came about in
 * another way than meant is a failed run: it must not lend its time to a name that is not its own.
 */
import { nowUs, sleep } from "../base/clock.js";
import type {
  BootOptions,
  Engine,
  HuskLevel,
  Image,
  Instance,
  InvokeResult,
  Loader,
  Phase,
  StartKind,
  StartResult,
  ThawOptions,
} from "../engine/types.js";
import {
  ask,
  checkAnswer,
  EMPTY_POOLS,
  eventOf,
  POOL_MS_MAX,
  type PoolPlan,
  preparePools,
  SETTLE_MS,
} from "./engine-under-test.js";
import type { Arm } from "./interleave.js";
import { specOf, type Workload } from "./workloads.js";

/** One start: what it took and what it consisted of. */
export interface StartSample {
  /** Request in hand to response in hand, without time spent waiting for a pool. */
  readonly us: number;
  readonly phases: readonly Phase[];
  /** Off the clock: what making husks to replace the one taken cost (engine), or the wait for a pool (HTTP); microseconds. */
  readonly poolUs: number;
  readonly prefetchedPages?: number;
}

interface Way {
  readonly name: string;
  readonly pools: PoolPlan;
  readonly kind: StartKind;
  readonly husk: HuskLevel | "fresh";
  readonly boot?: BootOptions;
  readonly thaw?: ThawOptions;
}

/** As many as two: one taken by the run, one so that its refill does not begin before the run is over. */
const READY = 2;
const runtime = { ...EMPTY_POOLS, generic: READY, runtime: READY };
const generic = { ...EMPTY_POOLS, generic: READY };

/**
 * In an order in which neighbours need the same pools. The two boots are the A/A pair: whatever differs between
 * them is noise.
 */
const WAYS: readonly Way[] = [
  { name: "boot", pools: generic, kind: "boot", husk: "generic", boot: { husk: "pooled" } },
  { name: "boot again (A/A)", pools: generic, kind: "boot", husk: "generic", boot: { husk: "pooled" } },
  { name: "boot, husk on the path", pools: generic, kind: "boot", husk: "fresh", boot: { husk: "fresh" } },
  { name: "thaw splice, generic husk", pools: generic, kind: "thaw", husk: "generic", thaw: { loader: "splice" } },
  {
    name: "thaw splice, husk on the path",
    pools: generic,
    kind: "thaw",
    husk: "fresh",
    thaw: { loader: "splice", husk: "fresh" },
  },
  { name: "thaw splice", pools: runtime, kind: "thaw", husk: "runtime", thaw: { loader: "splice" } },
  { name: "thaw splice again (A/A)", pools: runtime, kind: "thaw", husk: "runtime", thaw: { loader: "splice" } },
  { name: "thaw lazy", pools: runtime, kind: "thaw", husk: "runtime", thaw: { loader: "lazy" } },
  { name: "thaw eager", pools: runtime, kind: "thaw", husk: "runtime", thaw: { loader: "eager" } },
  { name: "parked: image", pools: { ...EMPTY_POOLS, image: READY }, kind: "parked", husk: "image", thaw: { husk: "parked" } },
  {
    name: "parked: prefaulted",
    pools: { ...EMPTY_POOLS, prefaulted: READY },
    kind: "parked",
    husk: "prefaulted",
    thaw: { husk: "parked" },
  },
];

/** All ways of starting `workload` at the engine, and warm requests to `warm`. */
export function startArms(engine: Engine, workload: Workload, image: Image, warm: Instance): Arm<StartSample>[] {
  const arms = WAYS.map((way) => startArm(engine, workload, image, way));
  return [...arms, ...warmArms(warm, workload)];
}

/** A thaw with one loader, from a pooled husk with its runtime mapped. */
export function thawArm(engine: Engine, workload: Workload, image: Image, name: string, loader: Loader): Arm<StartSample> {
  return startArm(engine, workload, image, { name, pools: runtime, kind: "thaw", husk: "runtime", thaw: { loader } });
}

function startArm(engine: Engine, workload: Workload, image: Image, way: Way): Arm<StartSample> {
  const spec = specOf(workload, engine.runtimes);
  return {
    name: way.name,
    prepare: () => preparePools(engine, image, way.pools),
    async run(round) {
      const seed = seedOf(round);
      const husksUs = engine.stats().husksUs;
      const event = eventOf(workload, seed);
      const began = nowUs();
      // As the platform does: the request is queued right behind the stages.
      const instance = await (way.thaw === undefined
        ? engine.boot(spec, way.boot)
        : engine.thaw(image, { ...way.thaw, early: true }));
      let sample: Omit<StartSample, "poolUs">;
      try {
        const result = await instance.invoke(event);
        const ended = nowUs();
        checkAnswer(workload, seed, result);
        const { start } = instance;
        assertStart(start, { ...way, loader: way.thaw?.loader });
        const phases = [...start.phases, { name: "request", us: ended - began - start.us - start.waitUs }];
        sample = { us: ended - began - start.waitUs, phases, prefetchedPages: start.prefetchedPages };
      } finally {
        await instance.dispose();
      }
      await engine.poolsFull(POOL_MS_MAX);
      return { ...sample, poolUs: engine.stats().husksUs - husksUs };
    },
  };
}

/**
 * Requests to an instance that has answered before. What starts are compared with is the quicker of two: the request just
 * after another one, with every cache still filled by it. The other comes after the pause that all starts come after.
 */
export function warmArms(instance: Instance, workload: Workload): Arm<StartSample>[] {
  const run = async (round: number) => ({ us: (await timeRequest(instance, workload, round)).us, phases: [], poolUs: 0 });
  return [
    { name: "warm, after a pause", prepare: () => sleep(SETTLE_MS), run },
    { name: "warm", prepare: (round) => ask(instance, workload, seedOf(round)), run },
  ];
}

/** One request to an instance that has answered before: the request in hand to its answer, which is checked. */
export async function timeRequest(
  instance: Instance,
  workload: Workload,
  round: number,
): Promise<{ readonly us: number; readonly result: InvokeResult }> {
  const seed = seedOf(round) + 1;
  const event = eventOf(workload, seed);
  const began = nowUs();
  const result = await instance.invoke(event);
  const us = nowUs() - began;
  checkAnswer(workload, seed, result);
  return { us, result };
}

/** Rounds of the warm-up are negative. */
export function seedOf(round: number): number {
  return 1_000 + round * 17;
}

/** What a start has to be to lend its time to a name. */
export interface MeantStart {
  readonly name: string;
  readonly kind: StartKind;
  readonly husk?: HuskLevel | "fresh" | undefined;
  readonly loader?: Loader | undefined;
  readonly generation?: number;
}

/** Throws unless the start came about as meant, without a fallback. */
export function assertStart(start: StartResult, { name, kind, husk, loader, generation }: MeantStart): void {
  const asMeant =
    start.kind === kind &&
    (husk === undefined || start.husk === husk) &&
    (loader === undefined || start.loader === loader) &&
    (generation === undefined || start.generation === generation) &&
    start.fallback === undefined;
  if (asMeant) return;
  const had = generation === undefined ? undefined : `generation ${start.generation}`;
  const got = [start.kind, start.loader, start.husk && `husk ${start.husk}`, had, start.fallback].filter(Boolean).join(", ");
  throw new Error(`meant to be "${name}", but was ${got}`);
}
