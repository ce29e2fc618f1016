/** Starts at the engine: every way, interleaved, for the three canonical workloads. */
import type { Engine } from "../../engine/types.js";
import { Deadline } from "../bounded.js";
import { ask, EMPTY_POOLS, makeImage, preparePools, withEngine } from "../engine-under-test.js";
import { interleave } from "../interleave.js";
import type { Lab, Section } from "../lab.js";
import { plainArm } from "../plain.js";
import { type Check, check, type Measurement } from "../report.js";
import { startArms } from "../start-arms.js";
import { type StartResults, startMeasurements, startsTable, timesOf } from "../start-report.js";
import { awayFromOne, differenceOfMedians, type Estimate, ratioOfMedians, seededRandom } from "../statistics.js";
import { runtimeFor, WORKLOADS, type Workload } from "../workloads.js";

/** Each workload with the ratio of boot to thaw that is promised for it, if one is. */
const SUBJECTS: readonly { readonly workload: Workload; readonly bootOverThawMin?: number }[] = [
  { workload: WORKLOADS.node80, bootOverThawMin: 45 },
  { workload: WORKLOADS.python40, bootOverThawMin: 35 },
  { workload: WORKLOADS.helloNode },
];
const BOOT_OVER_PLAIN_MAX = 1.15;
const THAW_MINUS_WARM_MS_MAX = 2.5;
const PARKED_MINUS_WARM_MS_MAX = 0.5;
const WARM_REQUESTS_BEFORE = 20;

export const starts: Section = {
  name: "starts",
  about: "every way of starting, at the engine: plain interpreter, boot, thaw, parked, warm",
  msMax: 300_000,
  run: (lab) => withEngine(lab, (engine) => run(lab, engine)),
};

async function run(lab: Lab, engine: Engine) {
  const measurements: Measurement[] = [];
  const checks: Check[] = [];
  const results: StartResults[] = [];
  for (const [index, { workload, bootOverThawMin }] of SUBJECTS.entries()) {
    const deadline = new Deadline(lab.deadline.remainingMs / (SUBJECTS.length - index));
    const { result, heat } = await measure(lab, engine, workload, deadline);
    results.push(result);
    measurements.push(...startMeasurements(result, { heat }));
    checks.push(...compare(result, bootOverThawMin));
  }
  const subtitle = `Request in hand to response in hand, ms, interleaved; thaw: from a pooled husk with its runtime mapped, unless named otherwise; refill: husks made off the clock to replace the one taken`;
  return { measurements, checks, tables: [startsTable("Starts at the engine", subtitle, results, "warm", "refill")] };
}

async function measure(lab: Lab, engine: Engine, workload: Workload, deadline: Deadline) {
  lab.progress(`${workload.name}: making its image`);
  const image = await makeImage(engine, workload);
  const warm = await engine.thaw(image);
  try {
    for (let seed = 0; seed < WARM_REQUESTS_BEFORE; seed++) await ask(warm, workload, seed);
    const arms = [
      plainArm(workload, runtimeFor(engine.runtimes, workload.language)),
      ...startArms(engine, workload, image, warm),
    ];
    const onRound = (round: number, rounds: number) => lab.progress(`${workload.name}: round ${round + 1} of ${rounds}`);
    const result = {
      workload: workload.name,
      arms: await interleave(arms, { rounds: lab.rounds, deadline, onRound, shuffle: seededRandom(workload.name.length) }),
    };
    return { result, heat: image.heat };
  } finally {
    await warm.dispose();
    await preparePools(engine, image, EMPTY_POOLS);
    await engine.removeImage(image);
  }
}

function compare(result: StartResults, bootOverThawMin: number | undefined): Check[] {
  const times = (name: string) => timesOf(result, name);
  const minusWarm = (name: string, warm = "warm") => inMs(differenceOfMedians(times(name), times(warm)));
  const { workload } = result;
  const again = (name: string) => awayFromOne(ratioOfMedians(times(`${name} again (A/A)`), times(name)));
  return [
    check(
      workload,
      "boot / plain interpreter",
      ratioOfMedians(times("boot"), times("plain interpreter")),
      "<=",
      BOOT_OVER_PLAIN_MAX,
      "",
    ),
    ...(bootOverThawMin === undefined
      ? []
      : [check(workload, "boot / thaw", ratioOfMedians(times("boot"), times("thaw splice")), ">=", bootOverThawMin, "")]),
    check(workload, "thaw minus warm", minusWarm("thaw splice"), "<=", THAW_MINUS_WARM_MS_MAX, "ms"),
    check(workload, "parked, prefaulted, minus warm", minusWarm("parked: prefaulted"), "<=", PARKED_MINUS_WARM_MS_MAX, "ms"),
    check(
      workload,
      "thaw minus warm after the same pause",
      minusWarm("thaw splice", "warm, after a pause"),
      "<=",
      THAW_MINUS_WARM_MS_MAX,
      "ms",
    ),
    check(
      workload,
      "parked, prefaulted, minus warm after the same pause",
      minusWarm("parked: prefaulted", "warm, after a pause"),
      "<=",
      PARKED_MINUS_WARM_MS_MAX,
      "ms",
    ),
    check(workload, "noise: boot and boot again", again("boot"), "<=", NOISE_MAX, ""),
    check(workload, "noise: thaw and thaw again", again("thaw splice"), "<=", NOISE_MAX, ""),
  ];
}

/** Beyond this between two equal ways, the machine was too restless for the other figures to mean much. */
const NOISE_MAX = 1.1;

function inMs({ value, low, high }: Estimate): Estimate {
  return { value: value / 1000, low: low / 1000, high: high / 1000 };
}
