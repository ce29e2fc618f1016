/**
 * What clients see while a live instance is frozen. The load is an open loop: requests are due by a schedule that knows nothing of the
 * instance, wait in order while it is busy or held, and are timed from the moment they were due. A closed loop would send nothing
 * during a pause, and so would see one slow request where many clients saw one each ("coordinated omission").
 */
import { setTimeout as pause, setImmediate as turn } from "node:timers/promises";
import { errorText } from "../base/errors.js";
import type { Engine, FreezeReport, Image, Instance } from "../engine/types.js";
import { ask, checkAnswer, eventOf } from "./engine-under-test.js";
import type { FailedRun } from "./interleave.js";
import type { Lab } from "./lab.js";
import { quantile } from "./statistics.js";
import { specOf, WORKLOADS } from "./workloads.js";

export const LIVE_FREEZES_MIN = 100;
export const LIVE_REQUESTS_PER_SECOND = 200;
const INTERVAL_MS = 1000 / LIVE_REQUESTS_PER_SECOND;
const WORKLOAD = WORKLOADS.node80;
/** Between two freezes: requests that meet none. */
const BETWEEN_MS = 250;
/** Requests before the first freeze. */
const WARM_REQUESTS = 100;
/** setTimeout is exact to a millisecond; the rest is waited for in turns of the event loop. */
const TIMER_MS = 1;
const FAILURES_KEPT = 5;

/** One live freeze. */
export interface LiveFreeze extends FreezeReport {
  /** Of the requests that were due or under way between its call and its end: the slowest, milliseconds. */
  readonly worstMs: number;
}

/** Of a list of times. */
export interface Spread {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

/** What clients saw of all freezes. */
export interface LiveFreezes {
  readonly method: string;
  readonly freezes: readonly LiveFreeze[];
  /** Of each freeze's slowest request, milliseconds. */
  readonly worstMs: Spread;
  /** Of requests that met no freeze, milliseconds. */
  readonly outsideMs: Spread;
  readonly failures: readonly FailedRun[];
  readonly cutShort?: string;
}

interface Request {
  readonly dueMs: number;
  readonly answeredMs: number;
}

/** Requests by schedule, one at a time, until it is told to stop. */
class OpenLoop {
  readonly requests: Request[] = [];
  readonly failures: FailedRun[] = [];
  #stopped = false;
  readonly #done: Promise<void>;

  constructor(private readonly instance: Instance) {
    this.#done = this.#run();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#done;
  }

  async #run(): Promise<void> {
    const beganMs = performance.now();
    for (let count = 0; !this.#stopped && this.failures.length < FAILURES_KEPT; count++) {
      const dueMs = beganMs + count * INTERVAL_MS;
      const early = dueMs - performance.now();
      if (early > TIMER_MS) await pause(early - TIMER_MS);
      while (performance.now() < dueMs) await turn();
      try {
        const answer = await this.instance.invoke(eventOf(WORKLOAD, count));
        const answeredMs = performance.now();
        checkAnswer(WORKLOAD, count, answer);
        this.requests.push({ dueMs, answeredMs });
      } catch (error) {
        this.failures.push({ round: count, error: errorText(error) });
      }
    }
  }
}

/** Freezes one instance again and again while it serves. Every answer is checked, and so is a clone of the last image. */
export async function measureLiveFreezes(
  lab: Pick<Lab, "deadline" | "progress">,
  engine: Engine,
  wanted: number,
): Promise<LiveFreezes> {
  const instance = await engine.boot(specOf(WORKLOAD, engine.runtimes));
  const freezes: { beganMs: number; endedMs: number; report: FreezeReport }[] = [];
  const failures: FailedRun[] = [];
  let requests: readonly Request[] = [];
  let rounds = 0;
  try {
    for (let seed = 0; seed < WARM_REQUESTS; seed++) await ask(instance, WORKLOAD, seed);
    const loop = new OpenLoop(instance);
    try {
      for (; rounds < wanted && !lab.deadline.passed && instance.alive; rounds++) {
        lab.progress(`${WORKLOAD.name}: live freeze ${rounds + 1} of ${wanted}`);
        await pause(BETWEEN_MS);
        const beganMs = performance.now();
        try {
          const image = await instance.freeze({ live: true });
          freezes.push({ beganMs, endedMs: performance.now(), report: image.report });
          if (rounds + 1 === wanted) await checkClone(engine, image);
          await engine.removeImage(image);
        } catch (error) {
          failures.push({ round: rounds, error: errorText(error) });
        }
      }
    } finally {
      await loop.stop();
      ({ requests } = loop);
      failures.push(...loop.failures);
    }
    await ask(instance, WORKLOAD, WARM_REQUESTS);
  } finally {
    await instance.dispose();
  }
  const met = freezes.map(({ beganMs, endedMs, report }): LiveFreeze => {
    const latencies = requests.filter(({ dueMs, answeredMs }) => answeredMs >= beganMs && dueMs <= endedMs).map(latency);
    return { ...report, worstMs: quantile(latencies, 1) };
  });
  const outside = requests.filter(({ dueMs, answeredMs }) =>
    freezes.every(({ beganMs, endedMs }) => answeredMs < beganMs || dueMs > endedMs),
  );
  return {
    method: `one ${WORKLOAD.name} instance; a request is due every ${INTERVAL_MS} ms whatever the instance does, waits its turn, and is timed from when it was due (late timers of the client included); ${freezes.length} live freezes, ${BETWEEN_MS} ms between two; for each the slowest of all requests due or under way from its call to the published image; engine and client share one event loop`,
    freezes: met,
    worstMs: spread(met.map(({ worstMs }) => worstMs)),
    outsideMs: spread(outside.map(latency)),
    failures,
    ...(rounds === wanted ? {} : { cutShort: `${rounds} of ${wanted} freezes: the section's time was over` }),
  };
}

async function checkClone(engine: Engine, image: Image): Promise<void> {
  const clone = await engine.thaw(image);
  try {
    await ask(clone, WORKLOAD, WARM_REQUESTS + 1);
  } finally {
    await clone.dispose();
  }
}

function latency({ dueMs, answeredMs }: Request): number {
  return answeredMs - dueMs;
}

function spread(samples: readonly number[]): Spread {
  return { count: samples.length, p50: quantile(samples, 0.5), p99: quantile(samples, 0.99), max: quantile(samples, 1) };
}
