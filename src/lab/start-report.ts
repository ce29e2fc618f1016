/** From the samples of starts to measurements and a table: the same for starts at the engine and through HTTP. */
import type { ArmResult } from "./interleave.js";
import type { Measurement } from "./report.js";
import type { StartSample } from "./start-arms.js";
import { median, ratioOfMedians, summarize } from "./statistics.js";
import { failedCell, ms, type Row, significant, type Table } from "./table.js";

/** Arms of one workload. */
export interface StartResults {
  readonly workload: string;
  readonly arms: readonly ArmResult<StartSample>[];
}

/** The times of an arm in microseconds; empty, and so NaN in every figure, when it is missing. */
export function timesOf({ arms }: StartResults, name: string): number[] {
  return arms.find((arm) => arm.name === name)?.samples.map(({ us }) => us) ?? [];
}

export function startMeasurements(
  { workload, arms }: StartResults,
  facts: Readonly<Record<string, number | string>>,
): Measurement[] {
  return arms.map(({ name, samples, failures, cutShort }) => ({
    workload,
    way: name,
    unit: "us",
    samples: samples.map(({ us }) => us),
    phases: phaseColumns(samples),
    failures,
    ...(cutShort === undefined ? {} : { cutShort }),
    facts: {
      ...facts,
      poolUsMedian: median(samples.map(({ poolUs }) => poolUs)),
      prefetchedPagesMedian: median(samples.map(({ prefetchedPages }) => prefetchedPages ?? 0)),
    },
  }));
}

/** Times of each phase name over all samples; a name that occurs twice in one start is summed. */
export function phaseColumns(samples: readonly Pick<StartSample, "phases">[]): Record<string, (number | null)[]> {
  const columns: Record<string, (number | null)[]> = {};
  for (const [index, { phases }] of samples.entries()) {
    for (const { name, us } of phases) {
      columns[name] ??= samples.map(() => null);
      const column = columns[name];
      column[index] = (column[index] ?? 0) + us;
    }
  }
  return columns;
}

const PHASES_SHOWN = 3;

/** The phases that take longest, by median: `request 0.81, mappings 0.52, stack 0.04`. */
export function mainPhases(samples: readonly Pick<StartSample, "phases">[], shown = PHASES_SHOWN): string {
  return Object.entries(phaseColumns(samples))
    .map(([name, values]) => ({ name, us: median(values.filter((value) => value !== null)) }))
    .sort((a, b) => b.us - a.us)
    .slice(0, shown)
    .map(({ name, us }) => `${name} ${ms(us)}`)
    .join(", ");
}

/** One group of rows for each workload. `warm`: the arm that others are compared with, besides boot. `pool`: what the samples' poolUs is. */
export function startsTable(
  title: string,
  subtitle: string,
  results: readonly StartResults[],
  warm: string,
  pool: string,
): Table {
  const rows = results.flatMap((each): Row[] => {
    const boot = timesOf(each, "boot");
    const warmUs = median(timesOf(each, warm));
    const body = each.arms.map(({ name, samples, failures }): Row => {
      const us = samples.map((sample) => sample.us);
      const summary = summarize(us);
      return [
        name,
        ms(summary.median),
        ms(summary.p99),
        ms(summary.iqr),
        `${significant(ratioOfMedians(boot, us).value)}x`,
        name === warm ? "" : ms(summary.median - warmUs),
        ms(median(samples.map(({ poolUs }) => poolUs))),
        String(samples.length),
        failedCell(failures),
        mainPhases(samples),
      ];
    });
    return [{ heading: each.workload }, ...body];
  });
  const right = (name: string) => ({ title: name, align: "right" as const });
  return {
    title,
    subtitle,
    columns: [
      { title: "start" },
      ...["median ms", "p99", "iqr", "boot/this", "minus warm", pool, "n"].map(right),
      { title: "" },
      { title: "main phases, ms" },
    ],
    rows,
  };
}
