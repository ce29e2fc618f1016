/**
 * Runs several ways of doing one thing in turn: A, B, C, A, B, C, …
 *
 * A machine drifts: frequency, cache, neighbours. Ways measured one after the other would each meet another machine;
 * interleaved they all meet the same one. One way listed twice (an A/A pair) shows how large a difference is that means
 * nothing. Every sample is kept, and so is every run that failed, with its reason.
 */
import { errorText } from "../base/errors.js";
import { type Deadline, within } from "./bounded.js";

/** One way of doing the thing. */
export interface Arm<Sample> {
  readonly name: string;
  /** Off the clock, before each run: fill pools, set levels. Its failure is the run's failure. */
  readonly prepare?: (round: number) => Promise<unknown>;
  /** Measures itself and returns the sample; throws when the run failed or was not the run that was meant. */
  readonly run: (round: number) => Promise<Sample>;
  /** Takes part only in rounds that this divides. Default 1: all of them. */
  readonly every?: number;
}

/** A run that gave no sample, and why. */
export interface FailedRun {
  readonly round: number;
  readonly error: string;
}

/** What one arm gave. `samples` and `rounds` go together: `rounds[i]` is the round of `samples[i]`. */
export interface ArmResult<Sample> {
  readonly name: string;
  readonly samples: readonly Sample[];
  readonly rounds: readonly number[];
  readonly failures: readonly FailedRun[];
  /** Why the arm stopped before its last round. */
  readonly cutShort?: string;
}

/** How often, how long and in which order. */
export interface InterleaveOptions {
  readonly rounds: number;
  /** No run begins after it; a run in progress is abandoned then. */
  readonly deadline: Deadline;
  /** Rounds before the first that is kept: page cache, branch predictors, JIT of the measuring code. Default 1. */
  readonly warmupRounds?: number;
  /** A single run may take this long. Default 20 s. */
  readonly runMsMax?: number;
  readonly onRound?: (round: number, rounds: number) => void;
  /**
   * In which order the arms of a round run: always as listed (default), or drawn anew for each round, so that no arm always follows the same
   * other one. Draws [0, 1).
   */
  readonly shuffle?: () => number;
}

/** After so many failures in a row an arm is given up: it would only repeat itself until the deadline. */
const FAILURES_IN_A_ROW_MAX = 3;
const RUN_MS_MAX = 20_000;

interface Progress<Sample> {
  readonly arm: Arm<Sample>;
  readonly samples: Sample[];
  readonly rounds: number[];
  readonly failures: FailedRun[];
  failedInARow: number;
  cutShort?: string;
}

/** Runs the arms in turn, bounded in count and time. Never throws for a failed run. */
export async function interleave<Sample>(arms: readonly Arm<Sample>[], options: InterleaveOptions): Promise<ArmResult<Sample>[]> {
  const warmup = options.warmupRounds ?? 1;
  const all = arms.map((arm): Progress<Sample> => ({ arm, samples: [], rounds: [], failures: [], failedInARow: 0 }));
  for (let turn = 0 - warmup; turn < options.rounds; turn++) {
    options.onRound?.(Math.max(0, turn), options.rounds);
    const order = options.shuffle === undefined ? all : shuffled(all, options.shuffle);
    for (const progress of order) {
      if (turn % (progress.arm.every ?? 1) !== 0) continue;
      if (progress.cutShort !== undefined) continue;
      if (options.deadline.passed) {
        progress.cutShort = `the section's ${Math.round(options.deadline.totalMs / 1000)} s were over at round ${turn}`;
        continue;
      }
      await runOnce(progress, turn, options);
    }
  }
  return all.map(({ arm, samples, rounds, failures, cutShort }) => ({
    name: arm.name,
    samples,
    rounds,
    failures,
    ...(cutShort === undefined ? {} : { cutShort }),
  }));
}

/** Fisher and Yates: every order is equally likely. */
function shuffled<Item>(items: readonly Item[], random: () => number): Item[] {
  const rest = [...items];
  const drawn: Item[] = [];
  while (rest.length > 0) drawn.push(...rest.splice(Math.floor(random() * rest.length), 1));
  return drawn;
}

/** A failure while warming up counts as well: only its sample would have been discarded. */
async function runOnce<Sample>(progress: Progress<Sample>, round: number, options: InterleaveOptions): Promise<void> {
  const { arm } = progress;
  const limitMs = Math.min(options.runMsMax ?? RUN_MS_MAX, options.deadline.remainingMs);
  try {
    const sample = await within(prepareAndRun(arm, round), limitMs, arm.name);
    progress.failedInARow = 0;
    if (round < 0) return;
    progress.samples.push(sample);
    progress.rounds.push(round);
  } catch (error) {
    progress.failures.push({ round, error: errorText(error) });
    progress.failedInARow += 1;
    if (progress.failedInARow >= FAILURES_IN_A_ROW_MAX) {
      progress.cutShort = `given up in round ${round} after ${FAILURES_IN_A_ROW_MAX} failures in a row`;
    }
  }
}

async function prepareAndRun<Sample>(arm: Arm<Sample>, round: number): Promise<Sample> {
  await arm.prepare?.(round);
  return arm.run(round);
}
