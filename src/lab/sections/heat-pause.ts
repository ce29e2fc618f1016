/** Freezing a live instance: the pause that clients see. */
import { withEngine } from "../engine-under-test.js";
import type { Section } from "../lab.js";
import {
  LIVE_FREEZES_MIN,
  LIVE_REQUESTS_PER_SECOND,
  type LiveFreeze,
  type LiveFreezes,
  measureLiveFreezes,
} from "../live-freeze.js";
import { check, exactly, type Measurement } from "../report.js";
import { median, quantile } from "../statistics.js";
import { megabytes, significant } from "../table.js";
import { WORKLOADS } from "../workloads.js";

const WORST_MS_MAX = 15;
const STOPPED_MS_MAX = 20;

export const heatPause: Section = {
  name: "heat-pause",
  about: `what clients see at ${LIVE_REQUESTS_PER_SECOND} requests/s while a live instance is frozen`,
  msMax: 180_000,
  run: (lab) =>
    withEngine(lab, async (engine) => {
      const result = await measureLiveFreezes(lab, engine, Math.max(LIVE_FREEZES_MIN, lab.rounds));
      return { measurements: measurements(result), checks: checks(result), tables: [table(result)] };
    }),
};

const FIGURES: readonly (readonly [string, Measurement["unit"], (freeze: LiveFreeze) => number])[] = [
  ["slowest request of a freeze", "ms", ({ worstMs }) => worstMs],
  ["requests held", "ms", ({ heldMs }) => heldMs ?? Number.NaN],
  ["stopped", "ms", ({ stoppedMs }) => stoppedMs],
  ["whole freeze", "ms", ({ totalMs }) => totalMs],
  ["copied ahead", "bytes", ({ copiedAheadBytes }) => copiedAheadBytes ?? Number.NaN],
  ["copied while stopped", "bytes", ({ copiedStoppedBytes }) => copiedStoppedBytes ?? Number.NaN],
];
const NAME = WORKLOADS.node80.name;

function measurements({ freezes, failures, cutShort, method, outsideMs }: LiveFreezes): Measurement[] {
  return FIGURES.map(([way, unit, read], index) => ({
    workload: NAME,
    way,
    unit,
    samples: freezes.map(read),
    failures: index === 0 ? failures : [],
    ...(cutShort === undefined || index > 0 ? {} : { cutShort }),
    ...(index > 0
      ? {}
      : { facts: { method, outsideP50Ms: outsideMs.p50, outsideP99Ms: outsideMs.p99, outsideMaxMs: outsideMs.max } }),
  }));
}

function checks({ freezes, worstMs }: LiveFreezes) {
  const stopped = quantile(
    freezes.map(({ stoppedMs }) => stoppedMs),
    1,
  );
  const what = `slowest request of each of ${freezes.length} live freezes, p99`;
  return [
    check(NAME, what, exactly(worstMs.p99), "<=", WORST_MS_MAX, "ms"),
    check(NAME, "stopped while freezing live, worst", exactly(stopped), "<=", STOPPED_MS_MAX, "ms"),
    check(NAME, "live freezes", exactly(freezes.length), ">=", LIVE_FREEZES_MIN, ""),
  ];
}

function table({ freezes, outsideMs, method, failures }: LiveFreezes) {
  const right = (title: string) => ({ title, align: "right" as const });
  const row = (name: string, samples: readonly number[], show: (value: number) => string = significant) => [
    name,
    show(median(samples)),
    show(quantile(samples, 0.99)),
    show(quantile(samples, 1)),
    String(samples.length),
  ];
  return {
    title: "Freezing a live instance",
    subtitle: `${method}; ms and MB${failures.length === 0 ? "" : `; ${failures.length} failed`}`,
    columns: [{ title: "" }, ...["median", "p99", "worst", "n"].map(right)],
    rows: [
      ...FIGURES.map(([way, unit, read]) => row(way, freezes.map(read), unit === "bytes" ? megabytes : significant)),
      [
        "requests that met no freeze",
        significant(outsideMs.p50),
        significant(outsideMs.p99),
        significant(outsideMs.max),
        String(outsideMs.count),
      ],
    ],
  };
}
