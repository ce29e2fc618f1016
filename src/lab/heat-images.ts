/**
 * Images of one function by heat, for the `heat` sections.
 *
 *     boot ─▶ freeze: "load", generation 0, nothing served ─▶ goes on: 1,000 requests ─▶ stays, the steady state
 *                │
 *                ├─ thaw ─▶ 1 ─▶ freeze ─▶ 10 ─▶ freeze ─▶ 100 ─▶ freeze ─▶ 1,000 ─▶ freeze     one private instance, first generation
 *                │
 *                └─ thaw ─▶ 10 ─▶ freeze ─▶ thaw ─▶ 100 ─▶ freeze ─▶ thaw ─▶ 1,000 ─▶ freeze    thaws of thaws, third generation
 *
 * Numbers are requests served over the lineage. Each answer on the way is checked. Each image is thawed until its working set is recorded.
 */
import type { Engine, Image, Instance } from "../engine/types.js";
import type { Deadline } from "./bounded.js";
import { ask, EMPTY_POOLS, preparePools, recordWorkingSet } from "./engine-under-test.js";
import { specOf, type Workload } from "./workloads.js";

/** Requests served before the freeze. 0 is the image after load. */
export const HEATS = [0, 1, 10, 100, 1_000] as const;
export type Heat = (typeof HEATS)[number];
/** What "hot" means wherever one image is compared: decided before anything was measured. */
export const HOT = 1_000 satisfies Heat;
/** Generations of the lineage that is thawed again and again: the heat at which each was frozen. */
const LINEAGE = [10, 100, 1_000] as const;

/** Images of one function by heat, and an instance that stays. */
export interface HeatImages {
  readonly byHeat: ReadonlyMap<Heat, Image>;
  /** As hot as {@link HOT}, after three freezes with a thaw before each; undefined unless asked for. */
  readonly third: Image | undefined;
  /** Never thawed, more than 1,000 requests served. */
  readonly steady: Instance;
  /** Handler milliseconds of request n + 1 of that instance. */
  readonly curve: readonly number[];
}

/**
 * Answers are computed once and kept: heating asks thousands of times, and what it would spend on expecting answers it spends on another
 * processor's time. So many different requests are asked in turn.
 */
const DIFFERENT = 40;

/** The same questions, each made and answered once. A seed beyond `DIFFERENT` is one of them again. */
export function remembered<Kind extends Workload>(workload: Kind): Kind {
  const once = <Value>(compute: (seed: number) => Value) => {
    const known = new Map<number, Value>();
    return (seed: number): Value => {
      const question = ((seed % DIFFERENT) + DIFFERENT) % DIFFERENT;
      if (!known.has(question)) known.set(question, compute(question));
      return known.get(question) as Value;
    };
  };
  return { ...workload, event: once(workload.event), reply: once(workload.reply) };
}

/** Makes all images, hands them to `use`, and removes everything. */
export async function withHeatImages<T>(
  engine: Engine,
  workload: Workload,
  { deadline, progress, third: wantsThird }: { deadline: Deadline; progress: (text: string) => void; third: boolean },
  use: (images: HeatImages) => Promise<T>,
): Promise<T> {
  const all: Image[] = [];
  const keep = (image: Image) => {
    all.push(image);
    return image;
  };
  const bounded = async (instance: Instance, from: number, to: number) => {
    progress(`${workload.name}: heating to ${to} requests`);
    return heat(instance, workload, from, to, deadline);
  };
  const steady = await engine.boot(specOf(workload, engine.runtimes));
  try {
    const load = keep(await steady.freeze({ then: "continue" }));
    // Before it is thawed for heating: those starts have the same event first, and a set of one event is not what the other images have.
    await recordWorkingSet(engine, workload, load);
    const curve = await bounded(steady, 0, HOT);
    const byHeat = new Map<Heat, Image>([[0, load]]);
    await withThawed(engine, load, async (instance) => {
      let served = 0;
      for (const point of HEATS.slice(1)) {
        await bounded(instance, served, point);
        byHeat.set(point, keep(expectHeat(await instance.freeze({ then: point === HOT ? "end" : "continue" }), point)));
        served = point;
      }
    });
    let third: Image | undefined;
    for (const [index, point] of wantsThird ? LINEAGE.entries() : []) {
      const next = await withThawed(engine, third ?? load, async (instance) => {
        await bounded(instance, LINEAGE[index - 1] ?? 0, point);
        return instance.freeze({ then: "end" });
      });
      third = keep(expectHeat(next, point, index + 1));
    }
    const heated = [...byHeat.values(), ...(third === undefined ? [] : [third])].filter((image) => image !== load);
    for (const image of heated) {
      progress(`${workload.name}: recording the working set of ${image.heat} requests, generation ${image.generation}`);
      await recordWorkingSet(engine, workload, image);
    }
    return await use({ byHeat, third, steady, curve });
  } finally {
    await steady.dispose();
    for (const image of all) {
      await preparePools(engine, image, EMPTY_POOLS);
      await engine.removeImage(image);
    }
  }
}

/** Asks for the requests from number `from` + 1 to number `to` of a lineage; the handler's milliseconds of each. */
async function heat(instance: Instance, workload: Workload, from: number, to: number, deadline: Deadline): Promise<number[]> {
  const times: number[] = [];
  for (let served = from; served < to; served++) {
    if (deadline.passed) throw new Error(`${workload.name}: the time was over after ${served} of ${to} requests of heating`);
    times.push((await ask(instance, workload, served)).handlerMs);
  }
  return times;
}

async function withThawed<T>(engine: Engine, image: Image, use: (instance: Instance) => Promise<T>): Promise<T> {
  const instance = await engine.thaw(image);
  try {
    return await use(instance);
  } finally {
    await instance.dispose();
  }
}

/** An image that is not what its name says must not be measured under it. */
function expectHeat(image: Image, heat: number, generation?: number): Image {
  if (image.heat === heat && (generation === undefined || image.generation === generation)) return image;
  const meant = `heat ${heat}${generation === undefined ? "" : `, generation ${generation}`}`;
  throw new Error(`an image was meant to be of ${meant}, and is of heat ${image.heat}, generation ${image.generation}`);
}
