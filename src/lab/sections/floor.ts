/**
 * The floor: what the kernel charges for a process, as many mappings and as many faults as a thaw makes, and nothing
 * else. What a thaw takes beyond it is ours. The engine measures it, because it alone knows the counts of a program.
 */
import type { Engine, FloorSample, Image } from "../../engine/types.js";
import { ask, EMPTY_POOLS, makeImage, preparePools, withEngine } from "../engine-under-test.js";
import { type Arm, interleave } from "../interleave.js";
import type { Lab, Section } from "../lab.js";
import { check } from "../report.js";
import { type StartSample, startArms } from "../start-arms.js";
import { startMeasurements, startsTable, timesOf } from "../start-report.js";
import { median, ratioOfMedians, seededRandom } from "../statistics.js";
import { WORKLOADS, type Workload } from "../workloads.js";

/** What an engine offers that can measure it. */
export interface FloorSource {
  floor(image: Image): Promise<FloorSample>;
}

/** thaw <= FLOOR_FACTOR x floor + warm. */
const FLOOR_FACTOR = 1.3;
const WAYS = ["thaw splice", "thaw splice, husk on the path", "warm"];

export const floor: Section = {
  name: "floor",
  about: "thaw beside spawn + mappings + faults of the same counts",
  msMax: 120_000,
  run: (lab) => withEngine(lab, (engine) => run(lab, engine)),
};

async function run(lab: Lab, engine: Engine) {
  const parts = [];
  for (const workload of [WORKLOADS.node80, WORKLOADS.python40]) parts.push(await measure(lab, engine, workload));
  const results = parts.map(({ result }) => result);
  return {
    measurements: parts.flatMap(({ result, facts }) => startMeasurements(result, facts)),
    checks: parts.map(({ result }) => compare(result)),
    tables: [
      startsTable(
        "Thaw and its floor",
        "Request in hand to response in hand, ms; floor: no request at all",
        results,
        "warm",
        "refill",
      ),
    ],
  };
}

async function measure(lab: Lab, engine: Engine, workload: Workload) {
  const image = await makeImage(engine, workload);
  const warm = await engine.thaw(image);
  const counts: FloorSample[] = [];
  try {
    for (let seed = 0; seed < 20; seed++) await ask(warm, workload, seed);
    const arms = startArms(engine, workload, image, warm).filter(({ name }) => WAYS.includes(name));
    const all = [...floorArm(engine, image, counts), ...arms];
    const onRound = (round: number, rounds: number) => lab.progress(`${workload.name}: round ${round + 1} of ${rounds}`);
    const result = {
      workload: workload.name,
      arms: await interleave(all, {
        rounds: lab.rounds,
        deadline: lab.deadline,
        onRound,
        shuffle: seededRandom(workload.name.length),
      }),
    };
    const middle = (read: (sample: FloorSample) => number) => median(counts.map(read));
    return { result, facts: { mappings: middle(({ mappings }) => mappings), faults: middle(({ faults }) => faults) } };
  } finally {
    await warm.dispose();
    await preparePools(engine, image, EMPTY_POOLS);
    await engine.removeImage(image);
  }
}

/** No arm when the engine cannot measure it: its check then says "not measured". */
function floorArm(engine: Engine & Partial<FloorSource>, image: Image, counts: FloorSample[]): Arm<StartSample>[] {
  if (engine.floor === undefined) return [];
  const source = engine as FloorSource;
  const run = async (): Promise<StartSample> => {
    const sample = await source.floor(image);
    counts.push(sample);
    const { spawnUs, mappingsUs, faultsUs } = sample;
    const phases = [
      { name: "spawn", us: spawnUs },
      { name: "mappings", us: mappingsUs },
      { name: "faults", us: faultsUs },
    ];
    return { us: spawnUs + mappingsUs + faultsUs, phases, poolUs: 0 };
  };
  return [{ name: "floor", run }];
}

function compare(result: { workload: string; arms: Parameters<typeof timesOf>[0]["arms"] }) {
  const warmUs = median(timesOf(result, "warm"));
  const thawWithoutWarm = timesOf(result, "thaw splice").map((us) => us - warmUs);
  const measured = ratioOfMedians(thawWithoutWarm, timesOf(result, "floor"));
  return check(result.workload, "(thaw minus warm) / floor", measured, "<=", FLOOR_FACTOR, "");
}
