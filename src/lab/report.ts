/**
 * What a section hands back: measurements with every sample, checks against the promised figures, tables for people.
 * A check that fails is a finding; a run that fails is an error, and alone decides the exit code.
 */
import type { Environment } from "./environment.js";
import type { FailedRun } from "./interleave.js";
import type { Estimate } from "./statistics.js";
import { type Cell, significant, type Table } from "./table.js";

/** One way of doing one thing, measured. */
export interface Measurement {
  readonly workload: string;
  readonly way: string;
  /** Unit of the samples. */
  readonly unit: "us" | "ms" | "bytes" | "per second";
  readonly samples: readonly number[];
  /** Phases of each sample, by name: as many values as samples, null where a sample lacks the phase. Microseconds. */
  readonly phases?: Readonly<Record<string, readonly (number | null)[]>>;
  readonly failures: readonly FailedRun[];
  readonly cutShort?: string;
  /** Further figures, each named with its unit last. */
  readonly facts?: Readonly<Record<string, number | string>>;
}

export type Verdict = "PASS" | "FAIL" | "not measured";

/** A promised figure beside the measured one. */
export interface Check {
  readonly workload: string;
  readonly what: string;
  readonly measured: Estimate;
  readonly relation: "<=" | ">=" | "=";
  readonly bound: number;
  readonly unit: string;
  readonly verdict: Verdict;
}

/** All that a section hands back. */
export interface SectionReport {
  readonly measurements: readonly Measurement[];
  readonly checks: readonly Check[];
  readonly tables: readonly Table[];
}

/** An estimate without an interval, for what is counted and not estimated. */
export function exactly(value: number): Estimate {
  return { value, low: value, high: value };
}

/** Compares the estimate's value itself; its interval is printed beside it. NaN on either side was not measured, and never passes. */
export function check(
  workload: string,
  what: string,
  measured: Estimate,
  relation: Check["relation"],
  bound: number,
  unit: string,
): Check {
  return { workload, what, measured, relation, bound, unit, verdict: verdict(measured.value, relation, bound) };
}

function verdict(value: number, relation: Check["relation"], bound: number): Verdict {
  if (Number.isNaN(value) || Number.isNaN(bound)) return "not measured";
  const holds = relation === "<=" ? value <= bound : relation === ">=" ? value >= bound : value === bound;
  return holds ? "PASS" : "FAIL";
}

/** All checks of a run as one table. */
export function checksTable(checks: readonly Check[]): Table {
  return {
    title: "Promised and measured",
    subtitle:
      "Interval: 95 %, bootstrap. A verdict is about the measured value; without --strict only failed runs make the exit code non-zero.",
    columns: [
      { title: "workload" },
      { title: "what" },
      { title: "promised", align: "right" },
      { title: "measured", align: "right" },
      { title: "interval", align: "right" },
      { title: "" },
    ],
    rows: checks.map(({ workload, what, relation, bound, unit, measured, verdict }): Cell[] => [
      workload,
      what,
      `${relation} ${significant(bound)} ${unit}`.trimEnd(),
      `${significant(measured.value)} ${unit}`.trimEnd(),
      Number.isNaN(measured.low) || measured.low === measured.high
        ? ""
        : `${significant(measured.low)} … ${significant(measured.high)}`,
      { text: verdict, tone: verdict === "PASS" ? "good" : verdict === "FAIL" ? "bad" : "dim" },
    ]),
  };
}

/** Failed runs and arms cut short, as sentences. Empty when there are none. */
export function troubles(measurements: readonly Measurement[]): string[] {
  return measurements.flatMap(({ workload, way, failures, cutShort }) => [
    ...failures.map(({ round, error }) => `FAILED: ${workload}, ${way}, round ${round}: ${error}`),
    ...(cutShort === undefined ? [] : [`CUT SHORT: ${workload}, ${way}: ${cutShort}`]),
  ]);
}

/** Whether anything went wrong that must show in the exit code. */
export function hasFailed(report: SectionReport): boolean {
  return report.measurements.some(({ failures, cutShort }) => failures.length > 0 || cutShort !== undefined);
}

/** The lines of `--json`: one for each measurement and check, each with the machine's facts. NaN becomes null. */
export function jsonLines(section: string, report: SectionReport, environment: Environment): string[] {
  const line = (record: object) => JSON.stringify({ section, ...record, environment });
  return [
    ...report.measurements.map((measurement) => line({ type: "measurement", ...measurement })),
    ...report.checks.map((each) => line({ type: "check", ...each })),
  ];
}
