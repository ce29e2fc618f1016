/**
 * First requests by heat of the image. All images of a function and two ways of asking an instance that stays, in random order within a round;
 * for context the first request of a boot, in every third round.
 */
import { errorText } from "../../base/errors.js";
import type { Engine } from "../../engine/types.js";
import { Deadline } from "../bounded.js";
import { withEngine } from "../engine-under-test.js";
import { bootArm, firstRequestArm, steadyArms } from "../heat-arms.js";
import { type HEATS, HOT, remembered, withHeatImages } from "../heat-images.js";
import {
  aroundTable,
  firstTable,
  gainTable,
  type HeatResult,
  HOT_AGAIN,
  heatChecks,
  heatMeasurements,
  THIRD,
  wayOf,
} from "../heat-report.js";
import { HEAT_WORKLOADS } from "../heat-workloads.js";
import { interleave } from "../interleave.js";
import type { Lab, Section } from "../lab.js";
import { chosenOf, type MemoryWorkload, withPackages } from "../memory-workloads.js";
import { seededRandom } from "../statistics.js";

const BOOT_EVERY = 3;

export const heatFirst: Section = {
  name: "heat-first",
  about: "first request after a thaw by heat of the image, twelve functions",
  msMax: 600_000,
  run: (lab) => withEngine(lab, (engine) => run(lab, engine)),
};

async function run(lab: Lab, engine: Engine) {
  const subjects = chosenOf(HEAT_WORKLOADS, lab.only);
  const results: HeatResult[] = [];
  for (const [index, subject] of subjects.entries()) {
    const deadline = new Deadline(lab.deadline.remainingMs / (subjects.length - index));
    results.push(
      await measure(lab, engine, withPackages(subject, lab.makeDir("code")), deadline).catch((error) => notMade(subject, error)),
    );
  }
  return {
    measurements: results.flatMap(heatMeasurements),
    checks: heatChecks(results),
    tables: [
      firstTable(results, `Handler time, ms, medians of ${lab.rounds} rounds in random order; page faults included`),
      aroundTable(results),
      gainTable(results),
    ],
  };
}

/** A function whose images could not be made is a failed run; the others are measured all the same. */
function notMade({ name, language, about }: MemoryWorkload, error: unknown): HeatResult {
  const failures = [{ round: 0, error: errorText(error) }];
  const arms = [{ name: "making its images", samples: [], rounds: [], failures }];
  return { workload: name, language, about, arms, curve: [], imageBytes: {} };
}

async function measure(lab: Lab, engine: Engine, subject: MemoryWorkload, deadline: Deadline): Promise<HeatResult> {
  const workload = remembered(subject);
  const { progress } = lab;
  return withHeatImages(engine, workload, { deadline, progress, third: true }, async ({ byHeat, third, steady, curve }) => {
    const images = [...byHeat].map(([heat, image]) => ({ way: wayOf(heat), image }));
    if (third !== undefined) images.push({ way: THIRD, image: third });
    const [load, hot] = [0, HOT].map((heat) => images.find(({ way }) => way === wayOf(heat as (typeof HEATS)[number]))?.image);
    if (load === undefined || hot === undefined) throw new Error("bug: images of both ends must be there");
    const arms = [
      ...images.map(({ way, image }) => firstRequestArm(engine, workload, image, way)),
      firstRequestArm(engine, workload, hot, HOT_AGAIN),
      bootArm(engine, workload, load, BOOT_EVERY),
      ...steadyArms(steady, workload),
    ];
    const onRound = (round: number, rounds: number) => progress(`${workload.name}: round ${round + 1} of ${rounds}`);
    const shuffle = seededRandom(workload.name.length);
    return {
      workload: workload.name,
      language: workload.language,
      about: workload.about,
      arms: await interleave(arms, { rounds: lab.rounds, deadline, onRound, shuffle }),
      curve,
      imageBytes: Object.fromEntries(images.map(({ way, image }) => [way, image.bytesOnDisk])),
    };
  });
}
