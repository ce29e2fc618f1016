/** Starts with everything in the page cache, by loader and function: the default must not lose where it has nothing to fetch. */
import type { Engine, Loader } from "../../engine/types.js";
import { Deadline } from "../bounded.js";
import { ask, EMPTY_POOLS, makeImage, preparePools, withEngine } from "../engine-under-test.js";
import { interleave } from "../interleave.js";
import type { Lab, Section } from "../lab.js";
import { COMPARED, loaderNamed, missingLoaders } from "../loaders.js";
import { MEMORY_WORKLOADS, type MemoryWorkload, withPackages } from "../memory-workloads.js";
import { type Check, check } from "../report.js";
import { thawArm, warmArms } from "../start-arms.js";
import { type StartResults, startMeasurements, startsTable, timesOf } from "../start-report.js";
import { noiseOf, ratioOfMedians, seededRandom } from "../statistics.js";

/** Writes more than 2,000 pages in each request. */
const WRITER = MEMORY_WORKLOADS.writes;
const SUBJECTS: readonly MemoryWorkload[] = Object.values(MEMORY_WORKLOADS);
const WARM_REQUESTS_BEFORE = 20;

export const memoryWarm: Section = {
  name: "memory-warm",
  about: "starts by loader with everything in the page cache, ten functions",
  msMax: 900_000,
  run: (lab) => withEngine(lab, (engine) => run(lab, engine)),
};

async function run(lab: Lab, engine: Engine) {
  const results: StartResults[] = [];
  for (const [index, subject] of SUBJECTS.entries()) {
    const deadline = new Deadline(lab.deadline.remainingMs / (SUBJECTS.length - index));
    results.push(await measure(lab, engine, withPackages(subject, lab.makeDir("code")), deadline));
  }
  const subtitle =
    "Request in hand to response in hand at the engine, ms, interleaved, page cache warm, from a pooled husk with its runtime mapped";
  return {
    measurements: [
      ...results.flatMap((each) => startMeasurements(each, {})),
      ...SUBJECTS.flatMap(({ name }) => missingLoaders(name, COMPARED)),
    ],
    checks: results.flatMap(compare),
    tables: [startsTable("Starts by loader, page cache warm", subtitle, results, "warm", "refill")],
  };
}

async function measure(lab: Lab, engine: Engine, workload: MemoryWorkload, deadline: Deadline): Promise<StartResults> {
  lab.progress(`${workload.name}: making its image`);
  const image = await makeImage(engine, workload);
  const warm = await engine.thaw(image);
  try {
    for (let seed = 0; seed < WARM_REQUESTS_BEFORE; seed++) await ask(warm, workload, seed);
    const loaders = COMPARED.map((name) => loaderNamed(name)).filter((loader): loader is Loader => loader !== undefined);
    const arms = [
      ...loaders.map((loader) => thawArm(engine, workload, image, `thaw ${loader}`, loader)),
      thawArm(engine, workload, image, "thaw splice again (A/A)", "splice"),
      ...warmArms(warm, workload),
    ];
    const onRound = (round: number, rounds: number) => lab.progress(`${workload.name}: round ${round + 1} of ${rounds}`);
    return {
      workload: workload.name,
      arms: await interleave(arms, { rounds: lab.rounds, deadline, onRound, shuffle: seededRandom(workload.name.length) }),
    };
  } finally {
    await warm.dispose();
    await preparePools(engine, image, EMPTY_POOLS);
    await engine.removeImage(image);
  }
}

function compare(result: StartResults): Check[] {
  const splice = timesOf(result, "thaw splice");
  const ratio = ratioOfMedians(splice, timesOf(result, "thaw lazy"));
  const noise = noiseOf(splice, timesOf(result, "thaw splice again (A/A)"));
  const { workload } = result;
  const clearly = { ...ratio, value: ratio.high };
  return [
    check(workload, "warm cache: splice / lazy, at most the noise of A/A", ratio, "<=", noise, ""),
    ...(workload === WRITER.name
      ? [check(workload, "warm cache: splice / lazy, whole interval below 1 / noise", clearly, "<=", 1 / noise, "")]
      : []),
  ];
}
