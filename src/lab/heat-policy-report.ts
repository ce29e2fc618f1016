/** From replays of policies to the table and checks of `heat-policy`. */
import type { ReplayResult } from "./heat-replay.js";
import { type Check, check, exactly, type Measurement } from "./report.js";
import { type Cell, type Row, significant, type Table } from "./table.js";

const RATIO_MAX = 1.1;
const FREEZES_MAX = 6;

/** One policy on one function, under all kinds of traffic: the worst of them. */
interface Worst {
  readonly function: string;
  readonly policy: string;
  /** Quotient to the best fixed point that 95 % of the seeds do not exceed, where it is highest. */
  readonly ratio: number;
  /** The most of any seed. */
  readonly freezes: number;
}

/** Node 20 has no `Map.groupBy`. */
function groupBy<Item>(items: readonly Item[], key: (item: Item) => string): Map<string, Item[]> {
  const groups = new Map<string, Item[]>();
  for (const item of items) groups.set(key(item), [...(groups.get(key(item)) ?? []), item]);
  return groups;
}

/** By function and policy, in the order of the results. */
export function worstOf(results: readonly ReplayResult[]): Worst[] {
  const groups = groupBy(results, (result) => `${result.function}\n${result.policy}`);
  return [...groups.values()].map((group) => {
    const [first, ...others] = group;
    if (first === undefined) throw new Error("bug: a group is never empty");
    const worst = others.reduce((high, each) => (each.ratio.p95 > high.ratio.p95 ? each : high), first);
    return {
      function: first.function,
      policy: first.policy,
      ratio: worst.ratio.p95,
      freezes: Math.max(...group.map(({ freezes }) => freezes.max)),
    };
  });
}

/** `missing`: functions whose recording cannot be replayed. What was not replayed never passes. */
export function policyChecks(results: readonly ReplayResult[], missing: readonly string[], policies: readonly string[]): Check[] {
  const none = { ratio: Number.NaN, freezes: Number.NaN };
  const absent = missing.flatMap((name) => policies.map((policy): Worst => ({ function: name, policy, ...none })));
  return [...worstOf(results), ...absent].flatMap((worst) => [
    check(
      worst.function,
      `${worst.policy}: after 300 requests / best fixed point, 95 % of seeds`,
      exactly(worst.ratio),
      "<=",
      RATIO_MAX,
      "",
    ),
    check(worst.function, `${worst.policy}: freezes in 2,000 requests, any seed`, exactly(worst.freezes), "<=", FREEZES_MAX, ""),
  ]);
}

/** One row for each function, policy and kind of traffic. */
export function policyTable(results: readonly ReplayResult[], subtitle: string): Table {
  const functions = groupBy(results, (result) => result.function);
  const judged = (value: number, max: number): Cell => ({ text: significant(value), tone: value <= max ? "good" : "bad" });
  const rows = [...functions].flatMap(([name, own]): Row[] => [
    { heading: name },
    ...own.map(
      (result): Row => [
        result.policy,
        result.lifetimes,
        String(result.best.heat),
        significant(result.ratio.median),
        judged(result.ratio.p95, RATIO_MAX),
        significant(result.freezes.mean),
        judged(result.freezes.max, FREEZES_MAX),
        startsByRange(result.starts),
      ],
    ),
  ]);
  const right = (title: string) => ({ title, align: "right" as const });
  return {
    title: "Policies, replayed on recorded latencies",
    subtitle,
    columns: [
      { title: "policy" },
      { title: "instances answer" },
      ...["best heat", "this/best", "95 % of seeds", "freezes", "most"].map(right),
      { title: "starts by heat" },
    ],
    rows,
    notes: [
      "best heat: the one image that would have been the best for every start. this/best: after the first 300 requests, median over the seeds, and what 95 % of them do not exceed.",
    ],
  };
}

/** A policy that freezes at any number makes hundreds of heats: told by powers of ten, `2–10: 31 %`. */
function startsByRange(starts: ReplayResult["starts"]): string {
  const ends = [0, 1, 10, 100, 1_000, Number.POSITIVE_INFINITY];
  const ranges = ends.map((end, index) => {
    const above = ends[index - 1] ?? -1;
    const share = starts.filter(({ heat }) => heat > above && heat <= end).reduce((sum, each) => sum + each.share, 0);
    const name = end <= 1 ? String(end) : end === Number.POSITIVE_INFINITY ? `${above}+` : `${above + 1}–${end}`;
    return { name, percent: Math.round(100 * share) };
  });
  return ranges
    .filter(({ percent }) => percent > 0)
    .map(({ name, percent }) => `${name}: ${percent} %`)
    .join(", ");
}

/** For `--json`: what each replay gave. A replay has no samples of its own. */
export function policyMeasurements(results: readonly ReplayResult[]): Measurement[] {
  return results.map(({ function: workload, policy, images, lifetimes, seeds, freezes, best, ratio }) => ({
    workload,
    way: `${policy}, ${lifetimes}, images from ${images}`,
    unit: "ms",
    samples: [],
    failures: [],
    facts: {
      seeds,
      bestHeat: best.heat,
      ratioMedian: ratio.median,
      ratioP95: ratio.p95,
      ratioMax: ratio.max,
      freezesMean: freezes.mean,
      freezesMax: freezes.max,
    },
  }));
}
