/**
 * Policies of heat, replayed. Each function is recorded at every fixed point: thaws and what their first requests took. Then each policy meets the
 * same recorded instances, for many seeds and several kinds of traffic.
 */
import { errorText } from "../../base/errors.js";
import type { Engine } from "../../engine/types.js";
import { fixedPoints } from "../../platform/fixed-points.js";
import { pronghorn } from "../../platform/pronghorn.js";
import { Deadline } from "../bounded.js";
import { withEngine } from "../engine-under-test.js";
import { remembered, withHeatImages } from "../heat-images.js";
import { policyChecks, policyMeasurements, policyTable } from "../heat-policy-report.js";
import { notRecorded, REQUESTS_RECORDED, type Recording, recordingMeasurements, recordLatencies } from "../heat-recording.js";
import { replayPolicies } from "../heat-replay.js";
import { HEAT_WORKLOADS } from "../heat-workloads.js";
import type { Lab, Section } from "../lab.js";
import { chosenOf, type MemoryWorkload, withPackages } from "../memory-workloads.js";

const POLICIES = [fixedPoints(), pronghorn()];
const SEEDS = 100;
const REQUESTS = 2_000;

export const heatPolicy: Section = {
  name: "heat-policy",
  about: "which image to thaw and when to freeze: policies replayed on recorded latencies",
  msMax: 600_000,
  run: (lab) => withEngine(lab, (engine) => run(lab, engine)),
};

async function run(lab: Lab, engine: Engine) {
  const subjects = chosenOf(HEAT_WORKLOADS, lab.only);
  const recordings: Recording[] = [];
  for (const [index, subject] of subjects.entries()) {
    const deadline = new Deadline(lab.deadline.remainingMs / (subjects.length - index));
    recordings.push(
      await record(lab, engine, withPackages(subject, lab.makeDir("code")), deadline).catch((error) =>
        notRecorded(subject.name, errorText(error)),
      ),
    );
  }
  const usable = recordings.filter(({ arms }) => arms.every(({ samples }) => samples.length > 0));
  const missing = recordings.filter((each) => !usable.includes(each)).map(({ latencies }) => latencies.function);
  const results = [];
  for (const { latencies } of usable) {
    lab.progress(`replaying ${latencies.function}`);
    // A replay computes for seconds: in between, what else this process has to do gets its turn.
    await new Promise(setImmediate);
    results.push(...replayPolicies([latencies], POLICIES, { seeds: SEEDS, requests: REQUESTS }));
  }
  const policies = POLICIES.map(({ name }) => name);
  return {
    measurements: [...recordings.flatMap(recordingMeasurements), ...policyMeasurements(results)],
    checks: policyChecks(results, missing, policies),
    tables: [
      policyTable(
        results,
        `${SEEDS} seeds of ${REQUESTS.toLocaleString("en-US")} requests each, on ${lab.rounds} thaws of ${REQUESTS_RECORDED} requests by function and heat`,
      ),
    ],
  };
}

async function record(lab: Lab, engine: Engine, subject: MemoryWorkload, deadline: Deadline): Promise<Recording> {
  const workload = remembered(subject);
  const { rounds, progress } = lab;
  const onRound = (round: number) => progress(`${workload.name}: recording, round ${round + 1} of ${rounds}`);
  return withHeatImages(engine, workload, { deadline, progress, third: false }, (images) =>
    recordLatencies(engine, workload, images, { rounds, deadline, onRound }),
  );
}
