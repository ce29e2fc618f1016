/**
 * Records what policies are replayed on: for each heat many thaws, each asked as many requests as a short-lived instance answers. All heats take
 * turns in random order, so that none of them meets another machine than the others.
 */
import type { Engine, Image, Instance } from "../engine/types.js";
import type { Deadline } from "./bounded.js";
import { ask, EMPTY_POOLS, preparePools } from "./engine-under-test.js";
import { assertThaw, unlessRecorded } from "./heat-arms.js";
import type { RecordedLatencies } from "./heat-replay.js";
import { type ArmResult, interleave } from "./interleave.js";
import type { Measurement } from "./report.js";
import { seedOf } from "./start-arms.js";
import { seededRandom } from "./statistics.js";
import type { Workload } from "./workloads.js";

/** Requests asked of each thawed instance: the longest mean life of Pronghorn's evaluation. */
export const REQUESTS_RECORDED = 20;
/** One taken by the run, one so that its refill does not begin before the run is over. */
const READY = 2;

/** What was recorded of one function, and the runs that it came from. */
export interface Recording {
  readonly latencies: RecordedLatencies;
  readonly arms: readonly ArmResult<readonly number[]>[];
}

/** `byHeat`: by rising heat. `curve`: of an instance that is never thawed. */
export async function recordLatencies(
  engine: Engine,
  workload: Workload,
  { byHeat, curve }: { readonly byHeat: ReadonlyMap<number, Image>; readonly curve: readonly number[] },
  options: { readonly rounds: number; readonly deadline: Deadline; readonly onRound: (round: number, rounds: number) => void },
): Promise<Recording> {
  const images = [...byHeat];
  const arms = images.map(([heat, image]) => ({
    name: `heat ${heat}`,
    prepare: () => preparePools(engine, image, { ...EMPTY_POOLS, generic: READY, runtime: READY }),
    run: (round: number) =>
      unlessRecorded(engine, async () => {
        const instance = await engine.thaw(image, { early: true });
        try {
          return await answers(instance, image, workload, seedOf(round));
        } finally {
          await instance.dispose();
        }
      }),
  }));
  const results = await interleave(arms, { ...options, shuffle: seededRandom(workload.name.length + 1) });
  const points = images.map(([heat], index) => ({ heat, starts: results[index]?.samples ?? [] }));
  return { latencies: { function: workload.name, points, curve }, arms: results };
}

/** A function whose images could not be made: a failed run, and nothing to replay. */
export function notRecorded(name: string, error: string): Recording {
  const arm = { name: "making its images", samples: [], rounds: [], failures: [{ round: 0, error }] };
  return { latencies: { function: name, points: [] }, arms: [arm] };
}

async function answers(instance: Instance, image: Image, workload: Workload, seed: number): Promise<number[]> {
  const times: number[] = [];
  for (let request = 0; request < REQUESTS_RECORDED; request++) {
    times.push((await ask(instance, workload, seed + request)).handlerMs);
    if (request === 0) assertThaw(instance.start, image);
  }
  return times;
}

/** One measurement for each heat: all requests of all thaws, thaw by thaw. */
export function recordingMeasurements({ latencies, arms }: Recording): Measurement[] {
  return arms.map(({ name, samples, failures, cutShort }) => ({
    workload: latencies.function,
    way: `${name}: ${REQUESTS_RECORDED} requests after each thaw`,
    unit: "ms",
    samples: samples.flat(),
    failures,
    ...(cutShort === undefined ? {} : { cutShort }),
  }));
}
