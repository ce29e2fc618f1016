/** From first requests by heat to the tables and checks of `heat-first`. */

import type { HeatSample } from "./heat-arms.js";
import { STEADY, STEADY_PAUSED } from "./heat-arms.js";
import { HEATS, type Heat, HOT } from "./heat-images.js";
import type { ArmResult } from "./interleave.js";
import { type Check, check, exactly, type Measurement } from "./report.js";
import { phaseColumns } from "./start-report.js";
import { awayFromOne, type Estimate, geometricMeanOfRatios, median, ratioOfMedians, type SamplePair } from "./statistics.js";
import { megabytes, ms, type Row, significant, type Table } from "./table.js";
import type { Language } from "./workloads.js";

/** All that was measured of one function. */
export interface HeatResult {
  readonly workload: string;
  readonly language: Language;
  readonly about: string;
  readonly arms: readonly ArmResult<HeatSample>[];
  /** Handler milliseconds of request n + 1 of the instance that stays. */
  readonly curve: readonly number[];
  readonly imageBytes: Readonly<Record<string, number>>;
}

export const wayOf = (heat: Heat): string => (heat === 0 ? "load" : `heat ${heat}`);
export const THIRD = "heat 1000, generation 3";
export const HOT_AGAIN = "heat 1000 again (A/A)";
const LOAD_WAY = wayOf(0);
const HOT_WAY = wayOf(HOT);

const LOAD_OVER_HOT_MIN = 2;
const HOT_OVER_STEADY_MAX = 1.25;
const HOT_MINUS_STEADY_MS_MAX = 0.5;
/** Six of eight. */
const NEAR_STEADY_SHARE = 6 / 8;
const THAW_RATIO_MAX = 1.2;
/** A point counts as enough when its first request takes at most so much longer than that of the quickest point. */
const ENOUGH = 1.1;
const NOISE_MAX = 1.1;

type Part = "handlerUs" | "startUs" | "aroundUs";

/** Samples of one arm; empty, and so NaN in every figure, when it is missing. */
function samplesOf({ arms }: HeatResult, way: string, part: Part = "handlerUs"): number[] {
  return arms.find(({ name }) => name === way)?.samples.map((sample) => sample[part]) ?? [];
}

const pair = (result: HeatResult, numerator: string, denominator: string): SamplePair => ({
  numerator: samplesOf(result, numerator),
  denominator: samplesOf(result, denominator),
});

/** First request after a thaw: image after load over hot image. */
export function loadOverHot(result: HeatResult): Estimate {
  return ratioOfMedians(samplesOf(result, LOAD_WAY), samplesOf(result, HOT_WAY));
}

/** Whether the first request of a hot image is as quick as the steady state, as promised: by ratio, or by difference. */
export function nearSteady(result: HeatResult): boolean {
  const hot = median(samplesOf(result, HOT_WAY));
  const steady = median(samplesOf(result, STEADY));
  return hot <= HOT_OVER_STEADY_MAX * steady || hot - steady <= HOT_MINUS_STEADY_MS_MAX * 1_000;
}

/**
 * What comes before the handler, hot image over image after load. Of the start alone and of all that is not the handler the worse ratio: a
 * start can be quick because it leaves its faults to what the runtime does before the handler.
 */
export function thawRatio(result: HeatResult, way: string): Estimate {
  const of = (part: Part) => ratioOfMedians(samplesOf(result, way, part), samplesOf(result, LOAD_WAY, part));
  const [start, around] = [of("startUs"), of("aroundUs")];
  return start.value >= around.value ? start : around;
}

/** The least heat whose first request is within {@link ENOUGH} of the quickest point's; undefined when a point was not measured. */
export function enoughHeat(result: HeatResult): Heat | undefined {
  const medians = HEATS.map((heat) => median(samplesOf(result, wayOf(heat))));
  const best = Math.min(...medians);
  return HEATS.find((_, index) => (medians[index] ?? Number.NaN) <= ENOUGH * best);
}

export function heatMeasurements({ workload, arms, curve, imageBytes }: HeatResult): Measurement[] {
  const measured = arms.map(({ name, samples, failures, cutShort }): Measurement => {
    const known = (values: readonly (number | undefined)[]) => median(values.filter((value) => value !== undefined));
    return {
      workload,
      way: name,
      unit: "us",
      samples: samples.map(({ handlerUs }) => handlerUs),
      phases: {
        start: samples.map(({ startUs }) => startUs),
        around: samples.map(({ aroundUs }) => aroundUs),
        ...phaseColumns(samples),
      },
      failures,
      ...(cutShort === undefined ? {} : { cutShort }),
      facts: {
        faultsMedian: known(samples.map(({ faults }) => faults)),
        faultsOutsideMedian: known(samples.map(({ faultsOutside }) => faultsOutside)),
        prefetchedPagesMedian: known(samples.map(({ prefetchedPages }) => prefetchedPages)),
        ...(imageBytes[name] === undefined ? {} : { imageBytes: imageBytes[name] }),
      },
    };
  });
  return [...measured, { workload, way: "one instance, request by request", unit: "ms", samples: curve, failures: [] }];
}

export function heatChecks(results: readonly HeatResult[]): Check[] {
  const javascript = results.filter(({ language }) => language === "node");
  const near = results.filter((result) => nearSteady(result)).length;
  return [
    check(
      `JavaScript, ${javascript.length} functions`,
      "first request: load / hot, geometric mean",
      geometricMeanOfRatios(javascript.map((result) => pair(result, LOAD_WAY, HOT_WAY))),
      ">=",
      LOAD_OVER_HOT_MIN,
      "",
    ),
    check(
      `all, ${results.length} functions`,
      "hot first request at most 1.25x steady, or 0.5 ms more",
      exactly(near),
      ">=",
      Math.ceil(results.length * NEAR_STEADY_SHARE),
      "",
    ),
    ...results.flatMap((result): Check[] => {
      const ratio = loadOverHot(result);
      const { workload } = result;
      return [
        check(workload, "first request: load / hot, upper end of its interval", { ...ratio, value: ratio.high }, ">=", 1, ""),
        check(workload, "before the handler: hot / load, first generation", thawRatio(result, HOT_WAY), "<=", THAW_RATIO_MAX, ""),
        check(workload, "before the handler: hot / load, third generation", thawRatio(result, THIRD), "<=", THAW_RATIO_MAX, ""),
        check(
          workload,
          "noise: hot and hot again",
          awayFromOne(ratioOfMedians(samplesOf(result, HOT_AGAIN), samplesOf(result, HOT_WAY))),
          "<=",
          NOISE_MAX,
          "",
        ),
      ];
    }),
  ];
}

const right = (title: string) => ({ title, align: "right" as const });
const interval = ({ low, high }: Estimate) => `${significant(low)} … ${significant(high)}`;

/** First requests by heat, beside the steady state: handler time, medians. */
export function firstTable(results: readonly HeatResult[], subtitle: string): Table {
  const at = (result: HeatResult, way: string) => ms(median(samplesOf(result, way)));
  const rows = results.map((result): Row => {
    const ratio = loadOverHot(result);
    const overSteady = ratioOfMedians(samplesOf(result, HOT_WAY), samplesOf(result, STEADY));
    const enough = enoughHeat(result);
    const failed = result.arms.reduce((sum, { failures }) => sum + failures.length, 0);
    return [
      result.workload,
      ...HEATS.map((heat) => at(result, wayOf(heat))),
      at(result, THIRD),
      at(result, STEADY),
      at(result, STEADY_PAUSED),
      { text: `${significant(ratio.value)}x`, tone: ratio.low > 1 ? "good" : "plain" },
      interval(ratio),
      { text: `${significant(overSteady.value)}x`, tone: nearSteady(result) ? "good" : "bad" },
      enough === undefined ? "–" : String(enough),
      failed === 0 ? "" : { text: `${failed} failed`, tone: "bad" },
    ];
  });
  return {
    title: "First request after a thaw, by heat of the image",
    subtitle,
    columns: [
      { title: "function" },
      ...HEATS.map((heat) => right(wayOf(heat))),
      ...["gen. 3", "steady", "after a pause", "load/hot", "interval", "hot/steady", "enough"].map(right),
      { title: "" },
    ],
    rows,
    notes: [
      ...geometricNote(results, "node", "JavaScript"),
      ...geometricNote(results, "python", "Python"),
      `hot: heat ${HOT}, first generation; gen. 3: as hot, frozen three times with a thaw before each. steady: an instance that was never thawed, after more than 1,000 requests: just after others, and after the pause that starts come after. hot/steady in green: at most ${HOT_OVER_STEADY_MAX}x, or at most ${HOT_MINUS_STEADY_MS_MAX} ms more. enough: the least heat within ${ENOUGH}x of the quickest.`,
    ],
  };
}

function geometricNote(results: readonly HeatResult[], language: Language, name: string): string[] {
  const of = results.filter((result) => result.language === language);
  if (of.length === 0) return [];
  const mean = geometricMeanOfRatios(of.map((result) => pair(result, LOAD_WAY, HOT_WAY)));
  return [`${name}, ${of.length} functions: load/hot, geometric mean ${significant(mean.value)} (${interval(mean)}).`];
}

/** What a thaw costs apart from the handler, by heat and generation; and pages. */
export function aroundTable(results: readonly HeatResult[]): Table {
  const ways = [LOAD_WAY, HOT_WAY, THIRD];
  const rows = results.flatMap((result): Row[] => {
    const body = ways.map((way): Row => {
      const samples = result.arms.find(({ name }) => name === way)?.samples ?? [];
      const known = (values: readonly (number | undefined)[]) => median(values.filter((value) => value !== undefined));
      const ratio = thawRatio(result, way);
      return [
        way,
        ms(median(samplesOf(result, way, "startUs"))),
        ms(median(samplesOf(result, way, "aroundUs"))),
        way === LOAD_WAY ? "" : { text: `${significant(ratio.value)}x`, tone: ratio.value <= THAW_RATIO_MAX ? "good" : "bad" },
        way === LOAD_WAY ? "" : interval(ratio),
        significantCount(known(samples.map(({ prefetchedPages }) => prefetchedPages))),
        significantCount(known(samples.map(({ faults }) => faults))),
        significantCount(known(samples.map(({ faultsOutside }) => faultsOutside))),
        megabytes(result.imageBytes[way] ?? Number.NaN),
      ];
    });
    return [{ heading: result.workload }, ...body];
  });
  return {
    title: "Before and around the handler: what a hot image costs to thaw",
    subtitle: "Medians, ms. start: until the instance could run. around: request in hand to response in hand, less the handler.",
    columns: [
      { title: "image" },
      ...["start", "around", "x load", "interval", "pages ahead", "faults", "unforeseen", "MB on disk"].map(right),
    ],
    rows,
    notes: ["x load: of start and around the larger ratio to the image after load. faults: of the start and its first request."],
  };
}

const significantCount = (value: number) => (Number.isNaN(value) ? "–" : Math.round(value).toLocaleString("en-US"));

/** How much quicker code gets, as Ignite shows it: the first request of a fresh process over the hundredth of one instance. */
export function gainTable(results: readonly HeatResult[]): Table {
  const around = (curve: readonly number[], at: number) => 1_000 * median(curve.slice(Math.max(0, at - 10), at + 9));
  const over = (numerator: number, denominator: number) => `${significant(numerator / denominator)}x`;
  const rows = results.map((result): Row => {
    const [boot, load, hot, steady] = ["boot", LOAD_WAY, HOT_WAY, STEADY].map((way) => median(samplesOf(result, way)));
    const hundredth = around(result.curve, 100);
    const [first = Number.NaN, thawed = Number.NaN, hotter = Number.NaN, end = Number.NaN] = [boot, load, hot, steady];
    return [
      result.workload,
      ms(first),
      ms(hundredth),
      over(first, hundredth),
      over(thawed, hundredth),
      over(hotter, hundredth),
      over(first, end),
      over(thawed, end),
      over(hotter, end),
      result.about,
    ];
  });
  return {
    title: "How much quicker a function gets",
    subtitle:
      "Handler time, medians. first: of a fresh process; 100th: requests 91 to 109 of one instance; then first requests over it, and over the steady state",
    columns: [
      { title: "function" },
      ...["boot's first", "100th", "boot/100th", "load/100th", "hot/100th", "boot/steady", "load/steady", "hot/steady"].map(
        right,
      ),
      { title: "" },
    ],
    rows,
    notes: ["Ignite (HotOS'21) reports first / hundredth for a word count: 2.7x (JavaScript)."],
  };
}
