/**
 * Starts from a cold disk, by loader and function: see cold-start.ts for what "cold" is. Timed at the engine, from the request in hand to the
 * response in hand, through a husk from the generic pool.
 */
import { sleep } from "../../base/clock.js";
import { PAGE_BYTES } from "../../base/units.js";
import type { Engine, Image } from "../../engine/types.js";
import { Deadline } from "../bounded.js";
import { type ColdWay, coldArm } from "../cold-start.js";
import { ask, EMPTY_POOLS, makeImage, preparePools, withEngine } from "../engine-under-test.js";
import { interleave } from "../interleave.js";
import type { Lab, Section } from "../lab.js";
import { ABLATION, COMPARED, type LoaderName, loaderNamed, missingLoaders } from "../loaders.js";
import { type ColdResult, coldChecks, coldMeasurements, coldTable, type Disk, sumUp } from "../memory-cold-report.js";
import { chosenOf, MEMORY_WORKLOADS, type MemoryWorkload, packageVersions, withPackages } from "../memory-workloads.js";
import { type Bandwidth, countDelays, readAheadKb, readBandwidth } from "../page-cache.js";
import { type PrivateInterpreters, withInterpreters } from "../private-interpreters.js";
import { seedOf, timeRequest } from "../start-arms.js";
import { median, seededRandom } from "../statistics.js";

const { helloNode, helloPython, node80, big, bigOther, writes, template, parse, image, decimal } = MEMORY_WORKLOADS;
const SUBJECTS: readonly MemoryWorkload[] = [
  helloNode,
  helloPython,
  node80,
  big,
  bigOther,
  writes,
  template,
  parse,
  image,
  decimal,
];
/** Functions whose ablation of `reap` is run. */
const ABLATED: readonly MemoryWorkload[] = [helloNode, big];
/** From the end of the last recording until the page space lies as it will. */
const PACKING_MS = 3_000;
const BANDWIDTH_READS = 3;
const WARM_REQUESTS = 20;

export const memoryCold: Section = {
  name: "memory-cold",
  about: "starts from a cold disk by loader; needs about 1 GB of disk",
  msMax: 1_500_000,
  async run(lab) {
    countDelays(lab.cleanup);
    return withInterpreters(lab, async (interpreters, dir) => {
      const disk = await measureDisk(dir, interpreters);
      return withEngine(lab, (engine) => run(lab, engine, interpreters, disk), { interpreters: interpreters.paths });
    });
  },
};

async function run(lab: Lab, engine: Engine, interpreters: PrivateInterpreters, disk: Disk) {
  const results: ColdResult[] = [];
  const subjects = chosenOf(SUBJECTS, lab.only);
  for (const [index, subject] of subjects.entries()) {
    const deadline = new Deadline(lab.deadline.remainingMs / (subjects.length - index));
    const workload = withPackages(subject, lab.makeDir("code"));
    results.push(await measure(lab, engine, workload, interpreters, deadline));
  }
  const missing = subjects.flatMap(({ name }) => missingLoaders(name, waysOf(name)));
  return {
    measurements: [...results.flatMap((each) => coldMeasurements(each, disk)), ...missing],
    checks: [sumUp(results), ...results.flatMap((each) => coldChecks(each, disk))],
    tables: [coldTable(results, disk)],
  };
}

function waysOf(name: string): readonly LoaderName[] {
  return ABLATED.some((each) => each.name === name) ? [...COMPARED, ...ABLATION] : COMPARED;
}

async function measure(
  lab: Lab,
  engine: Engine,
  workload: MemoryWorkload,
  interpreters: PrivateInterpreters,
  deadline: Deadline,
): Promise<ColdResult> {
  lab.progress(`${workload.name}: making its image`);
  const made = await makeImage(engine, workload);
  // Its pages are moved together on the disk, and read again for that: no start may find them cached.
  await sleep(PACKING_MS);
  try {
    const subject = { engine, workload, image: made, interpreterDir: interpreters.dirs[workload.language] };
    const arms = coldWays(waysOf(workload.name)).map((way) => coldArm(subject, way));
    const onRound = (round: number, rounds: number) => lab.progress(`${workload.name}: round ${round + 1} of ${rounds}`);
    const results = await interleave(arms, {
      rounds: lab.rounds,
      deadline,
      onRound,
      shuffle: seededRandom(workload.name.length),
    });
    // Afterwards: an image that is packed meanwhile is read without the gaps, and what is promised is measured by what is read.
    const { workingSet } = await engine.inspect(made);
    return {
      workload,
      libraries: packageVersions(workload),
      arms: results,
      warmUs: await warmTimes(engine, made, workload, lab.rounds),
      workingSetPages: (workingSet?.rangeBytes ?? Number.NaN) / PAGE_BYTES,
    };
  } finally {
    await preparePools(engine, made, EMPTY_POOLS);
    await engine.removeImage(made);
  }
}

/** All loaders that there are, the default once more for the noise, and the default with the interpreter cached. */
function coldWays(names: readonly LoaderName[]): ColdWay[] {
  const both = "image and interpreter";
  const ways = names.flatMap((name): ColdWay[] => {
    const loader = loaderNamed(name);
    return loader === undefined ? [] : [{ name: `thaw ${name}`, loader, cold: both }];
  });
  return [
    ...ways,
    { name: "thaw splice again (A/A)", loader: "splice", cold: both },
    { name: "thaw splice, interpreter cached", loader: "splice", cold: "image" },
  ];
}

/** Requests to a thawed instance just after another: afterwards, because an instance that lives keeps pages in the cache. */
async function warmTimes(engine: Engine, made: Image, workload: MemoryWorkload, rounds: number): Promise<number[]> {
  const instance = await engine.thaw(made);
  const times: number[] = [];
  try {
    for (let count = 0; count < WARM_REQUESTS; count++) await ask(instance, workload, count);
    for (let round = 0; round < rounds; round++) {
      await sleep(1);
      await ask(instance, workload, seedOf(round));
      times.push((await timeRequest(instance, workload, round)).us);
    }
    return times;
  } finally {
    await instance.dispose();
  }
}

async function measureDisk(dir: string, { dirs }: PrivateInterpreters): Promise<Disk> {
  const reads: Bandwidth[] = [];
  for (let read = 0; read < BANDWIDTH_READS; read++) reads.push(await readBandwidth(`${dirs.node}/node`));
  return {
    directBytesPerSecond: median(reads.map(({ directBytesPerSecond }) => directBytesPerSecond)),
    bufferedBytesPerSecond: median(reads.map(({ bufferedBytesPerSecond }) => bufferedBytesPerSecond)),
    readAheadKb: readAheadKb(dir),
  };
}
